"""Data as the user gave it to typed columns, with every problem found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.errors import Problem
from featuredb.frames import Converted, Frame, RowProblems, TableInput, as_column
from featuredb.limits import ABSENT_US, KEY_BYTES_MAX, REJECTIONS_KEPT_MAX
from featuredb.offline.dictionary import number_keys
from featuredb.schema import DTYPES, Source
from featuredb.storage.keys import encode_keys, too_long
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment_writer import uniform
from featuredb.threads import over_items, ranges

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
    """One batch, ready to be stored: no nulls in keys or event timestamps, rows in the order given.

    The key of row `i` is ``keys[number[i]]``; `keys` are distinct, and each is some row's.
    """

    number: NDArray[np.int32]
    keys: Heap
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    columns: Mapping[int, Column]

    def __len__(self) -> int:
        return len(self.event)

    def nothing(self) -> Prepared:
        """A batch of no rows."""
        columns = {feature: column.take(slice(0)) for feature, column in self.columns.items()}
        return Prepared(self.number[:0], Heap.of([]), self.event[:0], self.created[:0], columns)


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

    dtypes = dict(zip(table.definition.entities, table.key_dtypes, strict=True))
    features = {f.name: f.dtype for f in table.definition.features if f.name in columns.features}
    wanted = [(column, dtypes[name].name) for name, column in columns.entities.items()]
    wanted += [(column, "timestamp") for column in (columns.event, columns.created) if column is not None]
    wanted += [(columns.features[name], dtype) for name, dtype in features.items()]
    converted = _converted(frame, list(dict.fromkeys(wanted)))
    for result in converted.values():
        rejected.extend(result.rejected)
        problems.extend([] if result.problem is None else [result.problem])
    unusable = {name for (name, _), result in converted.items() if result.problem is not None}
    keys = {name: converted[column, dtypes[name].name].column for name, column in columns.entities.items()}
    event = converted[columns.event, "timestamp"].column
    created = None if columns.created is None else converted[columns.created, "timestamp"].column
    given = {name: converted[columns.features[name], dtype].column for name, dtype in features.items()}
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
    number, distinct = np.zeros(0, dtype=np.int32), Heap.of([])
    if not unusable & set(columns.entities.values()):
        number, distinct = _number(keys, used, columns, rejected)
    ages = uniform(ABSENT_US, frame.rows)
    if created is not None:
        ages = created.data if created.valid is None else np.where(created.valid, created.data, ABSENT_US)
    every = bool(used.all())
    prepared = Prepared(
        number,
        distinct,
        event.data if every else event.data[used],
        ages if every else ages[used],
        {table.feature_ids[name]: values.take(slice(None) if every else used) for name, values in given.items()},
    )
    shifted = [RowProblems(p.column, p.reason, p.rows + first_row, p.values) for p in rejected]
    return prepared, shifted, problems, used


def _converted(frame: Frame, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Converted]:
    """Columns by name and dtype, converted by several threads if they are long."""
    # Taken from the frame by one thread: pandas notes what it has taken.
    found = {one: frame.column(one[0]) for one in wanted}
    converted: dict[tuple[str, str], Converted] = {}

    def convert(one: tuple[str, str]) -> None:
        converted[one] = as_column(found[one], DTYPES[one[1]], one[0], text=frame.text)

    # Strings take longest, and so come first.
    over_items(sorted(wanted, key=lambda one: not DTYPES[one[1]].is_variable), convert, len(ranges(frame.rows)))
    return {one: converted[one] for one in wanted}


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


def _number(
    keys: Mapping[str, Column], used: NDArray[np.bool_], columns: SourceColumns, rejected: list[RowProblems]
) -> tuple[NDArray[np.int32], Heap]:
    """The number of each used row's key, and the distinct keys; rows with too long a key are no longer used."""
    every = bool(used.all())
    parts = [column if every else column.take(used) for column in keys.values()]
    number, firsts = number_keys(parts)
    distinct = encode_keys([column.take(firsts) for column in parts])
    long = too_long(distinct)
    if len(long):
        at = np.flatnonzero(np.isin(number, long))
        rows = np.flatnonzero(used)[at]
        sizes = np.diff(distinct.offsets)[number[at[:REJECTIONS_KEPT_MAX]]]
        reason = f"the entity key takes more than {KEY_BYTES_MAX} bytes; use a shorter key, such as a hash of it"
        values = tuple(f"{size} bytes" for size in sizes)
        rejected.append(RowProblems(", ".join(columns.entities.values()), reason, rows, values))
        used[rows] = False
        number, distinct = _in_use(np.delete(number, at), distinct)
    return number, distinct


def _in_use(number: NDArray[np.int32], keys: Heap) -> tuple[NDArray[np.int32], Heap]:
    """Numbers and keys without those of no row."""
    used = np.zeros(len(keys), dtype=np.bool_)
    used[number] = True
    renumbered = (np.cumsum(used) - 1).astype(np.int32)
    return renumbered[number], keys.take(np.flatnonzero(used))


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
        *_in_use(prepared.number[keep], prepared.keys),
        prepared.event[keep],
        prepared.created[keep],
        {feature: column.take(keep) for feature, column in prepared.columns.items()},
    )
