"""Data as the user gave it to typed columns, with every problem found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.errors import Problem
from featuredb.frames import Frame, RowProblems, TableInput, as_column
from featuredb.limits import ABSENT_US, KEY_BYTES_MAX, REJECTIONS_KEPT_MAX
from featuredb.schema import DTYPES, Source
from featuredb.storage.keys import encode_keys, too_long
from featuredb.storage.registry import StoredTable

_PARTIAL_REMEDY = ", or give partial=True to fill it from the row before"


@dataclass(frozen=True, slots=True)
class SourceColumns:
    """Names, in the data, of a table's columns."""

    event: str
    created: str | None
    entities: Mapping[str, str]
    features: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        created = [] if self.created is None else [self.created]
        return list(dict.fromkeys([*self.entities.values(), self.event, *created, *self.features.values()]))


@dataclass(frozen=True, slots=True)
class Prepared:
    """One batch, ready to be stored: no nulls in keys or event timestamps, rows in the order given."""

    keys: Heap
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    columns: Mapping[int, Column]

    def __len__(self) -> int:
        return len(self.event)


def source_columns(
    table: StoredTable, given: TableInput, source: Source | None, *, partial: bool = False
) -> tuple[SourceColumns, list[Problem]]:
    """Where the table's columns are in the data, and what is missing; if `partial`, features may be.

    `source` names the columns: the one given to ``ingest``, else the table's own, else none.
    """
    definition = replace(table.definition, batch_source=source)
    created = definition.created_timestamp_column
    if definition.batch_source is None and "created_timestamp" in given.names:
        created = "created_timestamp"
    columns = SourceColumns(
        definition.event_timestamp_column,
        created,
        {name: definition.column_of(name) for name in definition.entities},
        {name: definition.column_of(name) for name in definition.feature_names},
    )
    some = any(column in given.names for column in columns.features.values())
    if partial and some:
        # A column that has become an index was not left out on purpose.
        present = {*given.names, *given.index_names}
        found = {name: column for name, column in columns.features.items() if column in present}
        columns = SourceColumns(columns.event, columns.created, columns.entities, found)
    roles = {columns.event: "event timestamp"}
    if created is not None:
        roles[created] = "created timestamp"
    roles |= {column: f"entity {name!r}" for name, column in columns.entities.items()}
    roles |= {column: f"feature {name!r}" for name, column in columns.features.items()}
    problems = missing_columns(given, roles, "data")
    if some and not partial:
        absent = set(columns.features.values()) - {*given.names, *given.index_names}
        problems = [
            replace(problem, reason=f"{problem.reason}{_PARTIAL_REMEDY}") if problem.column in absent else problem
            for problem in problems
        ]
    return columns, problems


def missing_columns(given: TableInput, roles: Mapping[str, str], what: str) -> list[Problem]:
    """A problem for each column of `roles` (name to what it is for) that the table lacks, with its remedy."""
    has = ", ".join(map(repr, given.names[:30])) or "no columns"
    problems = []
    for name, role in roles.items():
        if name in given.index_names:
            problems.append(Problem(f"missing ({role}): it is an index; call reset_index() first", column=name))
        elif name not in given.names:
            problems.append(Problem(f"missing ({role}); the {what} has {has}", column=name))
    return problems


def prepare(
    table: StoredTable, columns: SourceColumns, frame: Frame, first_row: int
) -> tuple[Prepared, list[RowProblems], list[Problem], NDArray[np.bool_]]:
    """Convert one batch.

    Returns the usable rows, the rejected ones (row numbers counted from the start of the data), problems
    of whole columns, and a mask of the rows used.
    """
    rejected: list[RowProblems] = []
    problems: list[Problem] = []

    unusable: set[str] = set()

    def convert(name: str, dtype_name: str) -> Column:
        result = as_column(frame.column(name), DTYPES[dtype_name], name, text=frame.text)
        rejected.extend(result.rejected)
        if result.problem is not None:
            problems.append(result.problem)
            unusable.add(name)
        return result.column

    dtypes = dict(zip(table.definition.entities, table.key_dtypes, strict=True))
    keys = {name: convert(column, dtypes[name].name) for name, column in columns.entities.items()}
    event = convert(columns.event, "timestamp")
    created = None if columns.created is None else convert(columns.created, "timestamp")
    features = {
        f.name: convert(columns.features[f.name], f.dtype)
        for f in table.definition.features
        if f.name in columns.features
    }
    required = {column: (keys[name], "entity key") for name, column in columns.entities.items()}
    required[columns.event] = (event, "event timestamp")
    if created is not None and columns.created is not None:
        required[columns.created] = (created, "created timestamp")
    for name, (column, what) in required.items():
        if name not in unusable:
            rejected.extend(_nulls(column, name, f"a null {what}; leave the row out", rejected))
    used = np.ones(frame.rows, dtype=np.bool_)
    for problem in rejected:
        used[problem.rows] = False
    encoded = _encode(keys, used, columns, rejected)
    ages = np.full(frame.rows, ABSENT_US, dtype=np.int64)
    if created is not None:
        ages = created.data if created.valid is None else np.where(created.valid, created.data, ABSENT_US)
    every = bool(used.all())
    prepared = Prepared(
        encoded,
        event.data if every else event.data[used],
        ages if every else ages[used],
        {table.feature_ids[name]: column if every else column.take(used) for name, column in features.items()},
    )
    shifted = [RowProblems(p.column, p.reason, p.rows + first_row, p.values) for p in rejected]
    return prepared, shifted, problems, used


def _nulls(column: Column, name: str, reason: str, rejected: Sequence[RowProblems]) -> list[RowProblems]:
    """The null rows of `column` that are not already rejected for a value that could not be read."""
    if column.valid is None:
        return []
    null = ~column.valid
    for problem in rejected:
        if problem.column == name:
            null[problem.rows] = False
    rows = np.flatnonzero(null)
    return [RowProblems(name, reason, rows, ("None",) * min(len(rows), REJECTIONS_KEPT_MAX))] if len(rows) else []


def _encode(
    keys: Mapping[str, Column], used: NDArray[np.bool_], columns: SourceColumns, rejected: list[RowProblems]
) -> Heap:
    """Key bytes of the used rows; rows with too long a key are rejected and no longer used."""
    every = bool(used.all())
    encoded = encode_keys([column if every else column.take(used) for column in keys.values()])
    long = too_long(encoded)
    if len(long):
        rows = np.flatnonzero(used)[long]
        sizes = np.diff(encoded.offsets)[long[:REJECTIONS_KEPT_MAX]]
        reason = f"the entity key takes more than {KEY_BYTES_MAX} bytes; use a shorter key, such as a hash of it"
        values = tuple(f"{size} bytes" for size in sizes)
        rejected.append(RowProblems(", ".join(columns.entities.values()), reason, rows, values))
        used[rows] = False
        encoded = encoded.take(np.setdiff1d(np.arange(len(encoded)), long))
    return encoded


def within(prepared: Prepared, start_us: int | None, end_us: int | None) -> Prepared:
    """The rows with an event timestamp from `start_us` to `end_us`, both included."""
    keep = np.ones(len(prepared), dtype=np.bool_)
    if start_us is not None:
        keep &= prepared.event >= start_us
    if end_us is not None:
        keep &= prepared.event <= end_us
    if keep.all():
        return prepared
    return Prepared(
        prepared.keys.take(np.flatnonzero(keep)),
        prepared.event[keep],
        prepared.created[keep],
        {feature: column.take(keep) for feature, column in prepared.columns.items()},
    )
