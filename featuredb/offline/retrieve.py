"""Retrieval without an entity dataframe: the stored rows of a time range, or the latest of each key.

Rows come by entity key (in the order of its values), then event timestamp, then created timestamp, so the
result does not depend on the order in which they arrived. They are made in batches of whole keys.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap, concat
from featuredb.errors import InputError
from featuredb.frames import as_us, open_table
from featuredb.frames.arrays import to_numpy, to_pandas_array
from featuredb.frames.write import EntityFrame
from featuredb.limits import ABSENT_US, JOIN_BATCH_ROWS, TIMESTAMP_MAX_US
from featuredb.offline.dictionary import KeyDictionary
from featuredb.offline.explain import Explanation
from featuredb.offline.joiner import Selection, gather, select, timestamps
from featuredb.offline.lineage import known_at_text
from featuredb.offline.rows import distinct_codes, total_order
from featuredb.offline.search import NO_TIMES, Found, Query, make_query, search, with_max_age
from featuredb.offline.tail import table_readers
from featuredb.offline.training import Snapshot, TrainingSet, shown_names
from featuredb.schema import DTYPES, Alias, FeatureService, check_aliases
from featuredb.storage.env import ReadTxn
from featuredb.storage.keys import decode_keys
from featuredb.storage.log import commit_times, last_commit
from featuredb.storage.references import TableUse
from featuredb.storage.registry import Registry, StoredTable
from featuredb.storage.segment import COMMIT, CREATED, EVENT, SegmentCache, SegmentReader
from featuredb.threads import check_threads, cores

CREATED_COLUMN = "created_timestamp"


@dataclass(frozen=True, slots=True)
class Span:
    """Which stored rows are asked for: event timestamps (both included), what was known, and whether all."""

    start_us: int | None
    end_us: int | None
    known_us: int | None
    latest: bool

    def outside(self, reader: SegmentReader) -> bool:
        """Whether the zone map of the segment rules out that it holds any."""
        before = self.start_us is not None and reader.info.event_max < self.start_us
        return before or (self.end_us is not None and reader.info.event_min > self.end_us)


@dataclass(frozen=True, slots=True)
class _Positions:
    """Rows of segments: the place of each one's key in the batch, its times, its segment and position there."""

    place: NDArray[np.int32]
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    segment: NDArray[np.int32]
    position: NDArray[np.int32]


class StoredRows:
    """The stored rows of some tables within one transaction.

    Parameters
    ----------
    txn : ReadTxn
        The commit that is read.
    cache : SegmentCache
        Of the file.
    dictionary_of : callable
        From a table to the dictionary of its key space.
    selection : Selection
        Tables of one key space, and what they are to give.
    span : Span
        Which rows.
    event_column : str
        Name of the event timestamp column.
    explanation : Explanation
        Is told what is done.
    threads : int or None
        At most so many; None: one for each core.
    """

    def __init__(
        self,
        txn: ReadTxn,
        cache: SegmentCache,
        dictionary_of: Callable[[StoredTable], KeyDictionary],
        selection: Selection,
        span: Span,
        event_column: str,
        explanation: Explanation,
        threads: int | None,
    ) -> None:
        self._txn = txn
        self._selection = selection
        self._span = span
        self._event_column = event_column
        self._explanation = explanation
        self._threads = threads
        self._first = selection.uses[0]
        self._dictionary = dictionary_of(self._first.table)
        self._readers = {table.id: table_readers(txn, cache, table) for table in selection.tables}
        # With several tables a row of the result has no one created timestamp. An entity of that name goes first.
        self._with_created = (
            len(selection.uses) == 1
            and CREATED_COLUMN not in self._first.columns
            and any(_has_created(reader) for reader in self._readers[self._first.table.id])
        )
        times = [] if span.known_us is None else commit_times(txn)
        self._commit_times = np.array(times, dtype=np.int64)

    def batches(self) -> Iterator[dict[str, Column]]:
        """Keys, timestamps and features of about `JOIN_BATCH_ROWS` rows at a time; one batch at least."""
        codes, counts = self._codes()
        ends = np.cumsum(counts)
        first, empty = 0, True
        while first < len(codes):
            done = int(ends[first - 1]) if first else 0
            stop = max(first + 1, int(np.searchsorted(ends, done + JOIN_BATCH_ROWS, side="right")))
            batch = self._batch(codes[first:stop])
            if len(next(iter(batch.values()))):
                empty = False
                yield batch
            first = stop
        if empty:
            yield self._batch(codes[:0])

    def _codes(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The codes that may have rows, in the order of their keys, and how many each at most."""
        indexes = [
            reader.entity_index()
            for readers in self._readers.values()
            for reader in readers
            if not self._span.outside(reader)
        ]
        if not indexes:
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
        codes = distinct_codes([codes for codes, _ in indexes])
        counts = np.zeros(len(codes), dtype=np.int64)
        for own, starts in indexes:
            counts[np.searchsorted(codes, own)] += 1 if self._span.latest else np.diff(starts)
        order = _key_order(self._dictionary.keys(self._txn, codes))
        return codes[order], counts[order]

    def _batch(self, codes: NDArray[np.int32]) -> dict[str, Column]:
        place, event, created, founds = self._latest(codes) if self._span.latest else self._every(codes)
        keys = decode_keys(self._dictionary.keys(self._txn, codes), self._first.table.key_dtypes)
        columns = {name: key.take(place) for name, key in zip(self._first.columns, keys, strict=True)}
        columns[self._event_column] = Column(DTYPES["timestamp"], event)
        if self._with_created:
            columns[CREATED_COLUMN] = timestamps(created)
        gathered: dict[str, Column] = {}
        for use in self._selection.uses:
            plan = self._explanation.table(use.name, use.table.name)
            with self._explanation.stage("gather", plan):
                gathered.update(gather(self._selection, use, founds[use.name], plan, self._threads))
        return {**columns, **{name: gathered[name] for name in self._selection.names}}

    # --- the latest row of each key -----------------------------------------------------------

    def _latest(
        self, codes: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], dict[str, Found]]:
        """Each key with a row in any table, and what each table has for it."""
        times = np.full(len(codes), TIMESTAMP_MAX_US if self._span.end_us is None else self._span.end_us)
        query = self._query(codes, times)
        if self._span.start_us is not None:
            query = replace(query, floor_us=self._span.start_us)
        founds = {use.name: self._search(use, query) for use in self._selection.uses}
        event = np.maximum.reduce([found.in_order(found.event) for found in founds.values()])
        first = founds[self._first.name]
        created = first.in_order(first.created)
        kept = np.flatnonzero(event != ABSENT_US)
        return kept, event[kept], created[kept], {name: _kept(found, kept) for name, found in founds.items()}

    def _query(self, codes: NDArray[np.int32], times: NDArray[np.int64]) -> Query:
        known_us = NO_TIMES if self._span.known_us is None else np.array([self._span.known_us], dtype=np.int64)
        return make_query(codes, times, known_us, self._commit_times, threads=self._threads)

    def _search(self, use: TableUse, query: Query) -> Found:
        plan = self._explanation.table(use.name, use.table.name)
        with self._explanation.stage("search", plan):
            return search(self._readers[use.table.id], query, with_times=True, threads=self._threads, plan=plan)

    # --- every row ----------------------------------------------------------------------------

    def _every(
        self, codes: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], dict[str, Found]]:
        """The rows of one table as they are; of several each (key, event timestamp), joined at that time."""
        uses = self._selection.uses
        stored = {number: self._stored(readers, codes) for number, readers in self._readers.items()}
        if len(uses) == 1:
            rows = stored[self._first.table.id]
            order, _ = total_order(rows.place, rows.event, rows.created)
            found = _as_found(self._readers[self._first.table.id], rows, order)
            return rows.place[order], rows.event[order], rows.created[order], {self._first.name: found}
        place = np.concatenate([rows.place for rows in stored.values()])
        event = np.concatenate([rows.event for rows in stored.values()])
        order, repeated = total_order(place, event, np.zeros_like(event))
        order = order[~repeated]
        place, event = place[order], event[order]
        query = self._query(codes[place], event)
        founds = {use.name: self._search(use, with_max_age(query, use.table.definition.max_age_us)) for use in uses}
        return place, event, np.full(len(event), ABSENT_US, dtype=np.int64), founds

    def _stored(self, readers: Sequence[SegmentReader], codes: NDArray[np.int32]) -> _Positions:
        """The live rows of `codes` in the time range, known by then; segment after segment."""
        order = np.argsort(codes).astype(np.int32)
        parts = [
            self._stored_in(number, reader, codes[order], order)
            for number, reader in enumerate(readers)
            if not self._span.outside(reader)
        ]
        none = np.zeros(0, dtype=np.int32)
        times = np.zeros(0, dtype=np.int64)
        parts.append(_Positions(none, times, times, none, none))
        return _Positions(
            np.concatenate([part.place for part in parts]),
            np.concatenate([part.event for part in parts]),
            np.concatenate([part.created for part in parts]),
            np.concatenate([part.segment for part in parts]),
            np.concatenate([part.position for part in parts]),
        )

    def _stored_in(
        self, number: int, reader: SegmentReader, codes: NDArray[np.int32], places: NDArray[np.int32]
    ) -> _Positions:
        """As `_stored`, in one segment; `codes` are sorted, ``places[i]`` is that of ``codes[i]`` in the batch."""
        own, starts = reader.entity_index()
        at = np.minimum(np.searchsorted(own, codes), len(own) - 1)
        has = own[at] == codes
        at, places = at[has], places[has]
        lengths = (starts[1:] - starts[:-1])[at].astype(np.int64)
        begins = np.cumsum(lengths) - lengths
        position = (np.repeat(starts[at] - begins, lengths) + np.arange(lengths.sum())).astype(np.int32)
        place = np.repeat(places, lengths)
        event, created = _values(reader, EVENT, position), _values(reader, CREATED, position)
        kept = np.ones(len(position), dtype=np.bool_)
        if self._span.start_us is not None:
            kept &= event >= self._span.start_us
        if self._span.end_us is not None:
            kept &= event <= self._span.end_us
        if self._span.known_us is not None:
            committed = self._commit_times[_values(reader, COMMIT, position)]
            kept &= np.where(created == ABSENT_US, committed, created) <= self._span.known_us
        dead = reader.dead()
        if len(dead):
            kept &= ~np.isin(position, dead)
        segment = np.full(int(kept.sum()), number, dtype=np.int32)
        return _Positions(place[kept], event[kept], created[kept], segment, position[kept])


def _has_created(reader: SegmentReader) -> bool:
    """Whether any row carries a created timestamp."""
    return reader.info.columns[CREATED].constant != ABSENT_US


def _key_order(keys: Heap) -> NDArray[np.int64]:
    """The order of distinct encoded keys."""
    width = int(keys.offsets[1]) if len(keys) else 0
    if 0 < width <= 8 and len(keys.data) == width * len(keys) and np.all(np.diff(keys.offsets) == width):
        words = np.zeros((len(keys), 8), dtype=np.uint8)
        words[:, :width] = keys.data.reshape(-1, width)
        return np.argsort(words.view(">u8").reshape(-1).astype(np.uint64))
    values = keys.tolist()
    return np.array(sorted(range(len(values)), key=values.__getitem__), dtype=np.int64)


def _values(reader: SegmentReader, column_id: int, positions: NDArray[np.int32]) -> NDArray[np.int64]:
    """A system column at sorted `positions`."""
    out = np.empty(len(positions), dtype=np.int64)
    bounds = reader.chunk_bounds(column_id)
    cuts = np.searchsorted(positions, [first for first, _ in bounds] + [reader.rows]).tolist()
    for chunk, (first, _) in enumerate(bounds):
        begin, end = cuts[chunk], cuts[chunk + 1]
        if begin < end:
            values = reader.system(column_id, chunk)
            out[begin:end] = values if isinstance(values, int) else values[positions[begin:end] - first]
    return out


def _as_found(readers: Sequence[SegmentReader], rows: _Positions, order: NDArray[np.int64]) -> Found:
    """Rows already at hand as a search would have found them, to be gathered in `order`."""
    where = np.empty(len(order), dtype=np.int64)
    where[order] = np.arange(len(order))
    return Found(readers, where, rows.segment, rows.position, rows.event, rows.created)


def _kept(found: Found, kept: NDArray[np.int64]) -> Found:
    """What was found for the rows `kept` of the result, which are then all of it."""
    places = np.empty(len(found.rows), dtype=np.int64)
    places[found.rows] = np.arange(len(found.rows))
    return found.take(places[kept])


class StoredTrainingSet(TrainingSet):
    """Stored rows as a training set, without an entity dataframe; computed at the first conversion, and once.

    The columns are the keys, the event timestamp, the created timestamp if there is one, and the
    features; `to_numpy` gives all of them. Timestamps are UTC.

    Memory: the result. `to_parquet` streams unless the result is already computed, and holds a million
    rows at a time, or the rows of one key if those are more.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        cache: SegmentCache,
        dictionary_of: Callable[[StoredTable], KeyDictionary],
        features: str | FeatureService | Sequence[str],
        between_us: tuple[int | None, int | None],
        *,
        aliases: Mapping[str, Alias] | None,
        latest: bool,
        known_at: object,
        full_feature_names: bool,
        include_event_timestamps: bool,
        event_timestamp_column: str,
        threads: int | None,
    ) -> None:
        # Not the base's: there is no entity dataframe to read or check.
        self._snapshot = snapshot
        self._cache = cache
        self._dictionary_of = dictionary_of
        self._features = features
        self._aliases = check_aliases(aliases, "features")
        self._span = Span(*between_us, None if known_at is None else _known_us(known_at), latest)
        self._full_feature_names = full_feature_names
        self._include_event_timestamps = include_event_timestamps
        self._event_column = event_timestamp_column
        self._threads = check_threads(threads)
        self._explanation = Explanation(self._threads or cores())
        self._lock = threading.RLock()
        self._lineage: dict[str, Any] = {}
        self._commit_id: int | None = None
        self._stored: dict[str, Column] | None = None
        with snapshot() as (_, registry):
            selection = self._select(registry)
        self._names = [name for _, _, name in selection.outputs]
        self._event_outputs = list(selection.event_timestamps.values())

    def __repr__(self) -> str:
        names = [*self._names, *self._event_outputs]
        state = "not computed yet" if self._commit_id is None else f"read at commit {self._commit_id}"
        return (
            f"<TrainingSet: {'latest' if self._span.latest else 'stored'} rows, columns {shown_names(names)}; {state}>"
        )

    def _select(self, registry: Registry) -> Selection:
        references = registry.references(self._features, self._aliases)
        uses = list({use.name: use for use, _ in references}.values())
        _check_keys(uses)
        columns = [*uses[0].columns, *([] if CREATED_COLUMN in uses[0].columns else [CREATED_COLUMN])]
        if self._event_column in columns:
            raise InputError(
                f"the event timestamp column cannot be named {self._event_column!r} like another column of the "
                "result; give another name as event_timestamp_column"
            )
        return select(
            references,
            [*columns, self._event_column],
            full_feature_names=self._full_feature_names,
            include_event_timestamps=self._include_event_timestamps,
            subject="keys and timestamps in the result",
        )

    def _rows(self, txn: ReadTxn, registry: Registry) -> StoredRows:
        last = last_commit(txn)
        self._commit_id = 0 if last is None else last.id
        selection = self._select(registry)
        bounds = {"start": known_at_text(self._span.start_us), "end": known_at_text(self._span.end_us)}
        facts = self._facts(txn, selection, self._span.known_us)
        self._lineage = {**facts, **bounds, "latest": self._span.latest}
        self._explanation.start(self._commit_id)
        return StoredRows(
            txn,
            self._cache,
            self._dictionary_of,
            selection,
            self._span,
            self._event_column,
            self._explanation,
            self._threads,
        )

    @property
    def lineage(self) -> dict[str, Any]:
        """As `TrainingSet.lineage`, with ``start``, ``end`` and ``latest`` instead of an entity dataframe."""
        self._columns_of_all()
        return dict(self._lineage)

    def _rows_in_all(self) -> int | None:
        return None

    def _lineage_json(self) -> bytes:
        return json.dumps(self._lineage, separators=(",", ":")).encode()

    def _columns_of_all(self) -> dict[str, Column]:
        with self._lock:
            if self._stored is None:
                with self._snapshot() as (txn, registry):
                    parts = list(self._rows(txn, registry).batches())
                self._stored = {name: concat([part[name] for part in parts]) for name in parts[0]}
            return self._stored

    def _compute(self) -> tuple[EntityFrame, dict[str, Column]]:
        columns = self._columns_of_all()
        return EntityFrame({}), columns

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``; dtypes as in `TrainingSet.to_pandas`."""
        columns = dict(self._columns_of_all())
        key = next(iter(columns))
        base = EntityFrame({key: to_pandas_array(columns.pop(key))})
        # A copy: the frame's blocks are otherwise those that the next conversion reads.
        return base.to_pandas(columns).copy()

    to_df = to_pandas

    def to_arrow(self) -> Any:
        """The rows as a ``pyarrow.Table``; `MissingExtraError` if pyarrow is not installed."""
        return EntityFrame({}).to_arrow(self._columns_of_all())

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """All columns, keys and timestamps too, as read-only arrays; dtypes as in `TrainingSet.to_numpy`."""
        arrays = {name: to_numpy(column) for name, column in self._columns_of_all().items()}
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def _tables(self) -> Iterator[Any]:
        if self._stored is not None:
            yield self.to_arrow()
            return
        with self._snapshot() as (txn, registry):
            for columns in self._rows(txn, registry).batches():
                yield EntityFrame({}).to_arrow(columns)


def training_set(
    snapshot: Snapshot,
    cache: SegmentCache,
    dictionary_of: Callable[[StoredTable], KeyDictionary],
    entity_df: Any,
    features: str | FeatureService | Sequence[str],
    between_us: tuple[int | None, int | None],
    *,
    latest: bool,
    **options: Any,
) -> TrainingSet:
    """Features joined onto `entity_df`, or if that is None the stored rows."""
    if entity_df is None:
        return StoredTrainingSet(snapshot, cache, dictionary_of, features, between_us, latest=latest, **options)
    if latest or between_us != (None, None):
        raise InputError(
            "start, end and latest choose stored rows where there is no entity dataframe; "
            "leave rows out of the entity dataframe, or give None instead of it"
        )
    given = open_table(entity_df, "entity dataframe")
    return TrainingSet(snapshot, cache, dictionary_of, given, features, **options)


def _known_us(known_at: object) -> int:
    try:
        return as_us(known_at, "known_at")
    except InputError as error:
        if not isinstance(known_at, str):
            raise
        raise InputError(
            f"known_at: {known_at!r} is not a timestamp, and without an entity dataframe it cannot be a column; "
            "give a timestamp"
        ) from error


def _check_keys(uses: Sequence[TableUse]) -> None:
    """Rows of several tables are put together by key: refuse tables with other keys."""
    first = uses[0]
    others = [use for use in uses if (use.table.space_id, use.columns) != (first.table.space_id, first.columns)]
    if others:
        raise InputError(
            f"without an entity dataframe all feature tables must have the same entities in the same order: "
            f"{first.name!r} has {', '.join(first.columns)}; "
            + "; ".join(f"{use.name!r} has {', '.join(use.columns)}" for use in others)
            + ". Retrieve them one by one, or give an entity dataframe"
        )
