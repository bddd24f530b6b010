"""The point-in-time join of batches of entity rows, within one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column
from featuredb.errors import Problem, input_error
from featuredb.frames import Frame, as_column
from featuredb.limits import ABSENT_US
from featuredb.offline.dictionary import KeyDictionary
from featuredb.offline.explain import Explanation, TablePlan
from featuredb.offline.gather import Gatherer
from featuredb.offline.search import NO_TIMES, Found, Query, make_query, search, with_max_age
from featuredb.offline.tail import table_readers
from featuredb.schema import DTYPES, DType
from featuredb.storage.env import ReadTxn
from featuredb.storage.log import commit_times
from featuredb.storage.references import TableUse
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment import SegmentCache

SUBJECT = "entity dataframe"


@dataclass(frozen=True)
class Selection:
    """What a join produces: for each table its features, in the order asked, and their output names."""

    outputs: Sequence[tuple[TableUse, str, str]]
    event_timestamps: Mapping[str, str]

    @property
    def uses(self) -> list[TableUse]:
        return list({use.name: use for use, _, _ in self.outputs}.values())

    @property
    def tables(self) -> list[StoredTable]:
        return list({use.table.id: use.table for use, _, _ in self.outputs}.values())

    @property
    def names(self) -> list[str]:
        """Names of the output columns, in their order."""
        return [*(name for _, _, name in self.outputs), *self.event_timestamps.values()]

    @property
    def key_dtypes(self) -> dict[str, DType]:
        """The key columns of the tables, with their dtypes."""
        return {name: dtype for use in self.uses for name, dtype in use.key_dtypes.items()}


def output_name(table: str, feature: str, full_feature_names: bool) -> str:
    """Name of a feature's column in a result."""
    return f"{table}__{feature}" if full_feature_names else feature


def select(
    references: Sequence[tuple[TableUse, str]],
    columns: Sequence[str],
    *,
    full_feature_names: bool,
    include_event_timestamps: bool,
    subject: str = SUBJECT,
) -> Selection:
    """Name the output columns; an `InputError` lists every collision and its remedy."""
    outputs = [(table, name, output_name(table.name, name, full_feature_names)) for table, name in references]
    events = {table.name: f"{table.name}__event_timestamp" for table, _ in references if include_event_timestamps}
    names = [name for _, _, name in outputs] + list(events.values())
    remedy = "rename the column" if full_feature_names else "pass full_feature_names=True"
    problems = [
        Problem(f"two of the features asked for would both be named so; {remedy}", column=name)
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    problems += [
        Problem(f"a feature would be named like this column of the {subject}; {remedy}", column=name)
        for name in dict.fromkeys(names)
        if name in columns
    ]
    if problems:
        raise input_error("features", problems)
    return Selection(outputs, events)


class Joiner:
    """Joins batches of entity rows within one transaction.

    Parameters
    ----------
    txn : ReadTxn
        The commit that is joined.
    cache : SegmentCache
        Of the file.
    dictionary_of : callable
        From a table to the dictionary of its key space.
    selection : Selection
        What to join, as the definitions of this commit have it.
    event_column : str
        Name of the event timestamp column.
    known_at : int, str or None
        Microseconds UTC, or the name of a column.
    seen : callable
        Given the columns of each batch that the join reads: keys, timestamps, known_at.
    explanation : Explanation
        Is told what is done, in the order in which it is.
    threads : int or None
        At most so many; None: one for each core.
    """

    def __init__(
        self,
        txn: ReadTxn,
        cache: SegmentCache,
        dictionary_of: Callable[[StoredTable], KeyDictionary],
        selection: Selection,
        event_column: str,
        known_at: int | str | None,
        seen: Callable[[dict[str, Column]], None],
        explanation: Explanation,
        threads: int | None,
    ) -> None:
        self._txn = txn
        self._seen = seen
        self._dictionary_of = dictionary_of
        self._selection = selection
        self._event_column = event_column
        self._known_at = known_at
        self._explanation = explanation
        self._threads = threads
        self._readers = {table.id: table_readers(txn, cache, table) for table in selection.tables}

    def join(self, frame: Frame, first_row: int) -> dict[str, Column]:
        """The output columns for one batch of entity rows, in its order."""
        explanation = self._explanation
        with explanation.stage("read"):
            keys, times, known = self._read(frame, first_row)
            by_column = {self._known_at: known} if isinstance(self._known_at, str) and known is not None else {}
            self._seen({**keys, self._event_column: times, **by_column})
            usable = times.valid
            known_us = times_of_commits = NO_TIMES
            if self._known_at is not None:
                known_us, times_of_commits = self._known_us(known), self._commit_times
            if known is not None and known.valid is not None:
                usable = known.valid if usable is None else usable & known.valid
        explanation.note_batch(frame.rows)
        # Keys are encoded and sorted once for all tables that have them.
        spaces: dict[tuple[int, tuple[str, ...]], list[TableUse]] = {}
        for use in self._selection.uses:
            spaces.setdefault((use.table.space_id, use.columns), []).append(use)
        columns: dict[str, Column] = {}
        for uses in spaces.values():
            with explanation.stage("encode keys"):
                codes, lookup = self._codes(uses[0], keys, usable)
            with explanation.stage("sort"):
                query = make_query(codes, times.data, known_us, times_of_commits, threads=self._threads)
            del codes
            for use in uses:
                plan = explanation.table(use.name, use.table.name)
                plan.lookup, plan.sort = lookup, query.sort
                found = self._search(use, with_max_age(query, use.table.definition.max_age_us), plan)
                with explanation.stage("gather", plan):
                    columns.update(gather(self._selection, use, found, plan, self._threads))
        return {name: columns[name] for name in self._selection.names}

    def _search(self, use: TableUse, query: Query, plan: TablePlan) -> Found:
        with self._explanation.stage("search", plan):
            return search(
                self._readers[use.table.id],
                query,
                with_times=use.name in self._selection.event_timestamps,
                threads=self._threads,
                plan=plan,
            )

    def _known_us(self, known: Column | None) -> NDArray[np.int64]:
        """The times by which rows must have been known: one for each row of the batch, or one for all."""
        if known is not None:
            return known.data
        return np.array([self._known_at], dtype=np.int64)

    def _read(self, frame: Frame, first_row: int) -> tuple[dict[str, Column], Column, Column | None]:
        """Entity key columns, event timestamps and the known_at column of the batch; all problems in one error."""
        problems: list[Problem] = []

        def convert(name: str, dtype: DType) -> Column:
            result = as_column(frame.column(name), dtype, name, distinct=False)
            problems.extend(result.problems(first_row))
            return result.column

        keys = {name: convert(name, dtype) for name, dtype in self._selection.key_dtypes.items()}
        times = convert(self._event_column, DTYPES["timestamp"])
        known = convert(self._known_at, DTYPES["timestamp"]) if isinstance(self._known_at, str) else None
        if problems:
            raise input_error(SUBJECT, problems)
        return keys, times, known

    @cached_property
    def _commit_times(self) -> NDArray[np.int64]:
        return np.array(commit_times(self._txn), dtype=np.int64)

    def _codes(
        self, use: TableUse, keys: Mapping[str, Column], usable: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int32], str]:
        """The code of each row's key, -1 where it is null, unknown, too long or the row not usable; and how."""
        columns = [keys[name] for name in use.columns]
        codes, lookup = self._dictionary_of(use.table).codes(self._txn, columns, self._threads)
        for valid in (usable, *(column.valid for column in columns)):
            if valid is not None:
                codes[~valid] = -1
        return codes, lookup


def gather(
    selection: Selection, use: TableUse, found: Found, plan: TablePlan, threads: int | None
) -> dict[str, Column]:
    """The output columns of one table, or of one alias of it."""
    asked = {name: feature for one, feature, name in selection.outputs if one.name == use.name}
    wanted = [(use.table.feature_ids[feature], use.table.dtype_of(feature)) for feature in asked.values()]
    gatherer = Gatherer(found, threads=threads, plan=plan)
    columns = dict(zip(asked, gatherer.features(wanted, nan=True), strict=True))
    if use.name in selection.event_timestamps:
        columns[selection.event_timestamps[use.name]] = timestamps(found.in_order(found.event))
    return columns


def timestamps(values: NDArray[np.int64]) -> Column:
    """Timestamps, null where `ABSENT_US`."""
    valid = values != ABSENT_US
    if valid.all():
        return Column(DTYPES["timestamp"], values)
    return Column(DTYPES["timestamp"], np.where(valid, values, 0), valid)
