"""As-of search over the segments of a table, and gathering of what it found.

Searching gives positions; gathering turns positions into columns. Joins, materialization, merging and
verification all use these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.limits import ABSENT_US, NEVER_US
from featuredb.offline import kernels
from featuredb.offline.rows import order_by_code
from featuredb.schema import DType
from featuredb.storage.segment import COMMIT, CREATED, EVENT, SegmentReader, frozen
from featuredb.threads import over_rows

_NO_TIMES = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for, sorted by code.

    Row ``i`` asks for the greatest row of ``codes[i]`` with ``oldest[i] <= event <= times[i]``, and if
    ``known_us`` is not empty, known by ``known_us[i]``: by their created timestamp or, without one, by
    ``commit_times[commit]``. ``rows[i]`` is where the answer belongs in a result of `rows_out` rows.
    """

    codes: NDArray[np.int32]
    times: NDArray[np.int64]
    oldest: NDArray[np.int64]
    rows: NDArray[np.int64]
    rows_out: int
    known_us: NDArray[np.int64] = field(default_factory=lambda: _NO_TIMES)
    commit_times: NDArray[np.int64] = field(default_factory=lambda: _NO_TIMES)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: for each row of the query its segment (-1 if none), position and times."""

    query: Query
    readers: Sequence[SegmentReader]
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    segment: NDArray[np.int32]
    position: NDArray[np.int32]

    @staticmethod
    def nothing(query: Query, readers: Sequence[SegmentReader]) -> Found:
        """What is found before the first segment is searched; searching improves the arrays in place."""
        rows = len(query.codes)
        times = (np.full(rows, ABSENT_US, dtype=np.int64), np.full(rows, ABSENT_US, dtype=np.int64))
        return Found(query, readers, *times, np.full(rows, -1, dtype=np.int32), np.zeros(rows, dtype=np.int32))

    @property
    def matched(self) -> NDArray[np.bool_]:
        """Which rows of the result have a row of history."""
        out = np.zeros(self.query.rows_out, dtype=np.bool_)
        out[self.query.rows[self.segment >= 0]] = True
        return out

    def event_out(self) -> NDArray[np.int64]:
        """Event timestamp for each row of the result, `ABSENT_US` where there is none."""
        out = np.full(self.query.rows_out, ABSENT_US, dtype=np.int64)
        out[self.query.rows] = self.event
        return out


def make_query(
    codes: NDArray[np.int32],
    times: NDArray[np.int64],
    usable: NDArray[np.bool_],
    known_us: NDArray[np.int64] = _NO_TIMES,
    commit_times: NDArray[np.int64] = _NO_TIMES,
) -> Query:
    """A query of the `usable` rows with a known code, without a limit of age."""
    rows = np.flatnonzero(usable & (codes >= 0))
    rows = rows[order_by_code(codes[rows])]
    known = known_us[rows] if len(known_us) else _NO_TIMES
    oldest = np.full(len(rows), ABSENT_US + 1, dtype=np.int64)
    return Query(codes[rows], times[rows], oldest, rows, len(codes), known, commit_times)


def with_max_age(query: Query, max_age_us: int | None) -> Query:
    """The query with rows older than `max_age_us` before its times left out."""
    if max_age_us is None:
        return query
    # A longer age than the range of timestamps is no limit, and would overflow.
    oldest = query.times - min(max_age_us, 1 << 60)
    return replace(query, oldest=oldest)


def prunable(reader: SegmentReader, query: Query) -> bool:
    """Whether the zone map of the segment rules out that it holds an answer."""
    if not len(query.codes):
        return True
    info = reader.info
    return bool(
        info.code_max < query.codes[0]
        or info.code_min > query.codes[-1]
        or info.event_min > query.times.max()
        or info.event_max < query.oldest.min()
    )


def chunks_to_search(
    reader: SegmentReader, index: tuple[NDArray[np.int32], NDArray[np.int32]], codes: NDArray[np.int32]
) -> list[tuple[int, int, int, int]]:
    """Chunks that hold rows of any of the sorted `codes`: (chunk, first row, range of `codes`)."""
    segment_codes, starts = index
    found = []
    for chunk, (first, stop) in enumerate(reader.chunk_bounds(EVENT)):
        low = segment_codes[np.searchsorted(starts, first, side="right") - 1]
        high = segment_codes[np.searchsorted(starts, stop - 1, side="right") - 1]
        begin = int(np.searchsorted(codes, low, side="left"))
        end = int(np.searchsorted(codes, high, side="right"))
        if begin < end:
            found.append((chunk, first, begin, end))
    return found


def system_chunk(reader: SegmentReader, column_id: int, chunk: int) -> NDArray[np.int64]:
    """A chunk of a system column, one value long if it is constant."""
    values = reader.system(column_id, chunk)
    return frozen(np.array([values], dtype=np.int64) if isinstance(values, int) else values)


def event_chunk(reader: SegmentReader, chunk: int) -> NDArray[np.int64]:
    """A chunk of event timestamps, always at full length."""
    values = reader.system(EVENT, chunk)
    if isinstance(values, int):
        first, stop = reader.chunk_bounds(EVENT)[chunk]
        values = np.full(stop - first, values, dtype=np.int64)
    return frozen(values)


def search(readers: Sequence[SegmentReader], query: Query) -> Found:
    """The greatest row for each row of the query, over all segments."""
    found = Found.nothing(query, readers)
    for number, reader in enumerate(readers):
        if not prunable(reader, query):
            _search_segment(number, reader, found)
    return found


def _search_segment(number: int, reader: SegmentReader, found: Found) -> None:
    query = found.query
    index = reader.entity_index()
    dead = reader.dead()
    known = len(query.known_us) > 0
    for chunk, first, begin, end in chunks_to_search(reader, index, query.codes):
        event = event_chunk(reader, chunk)
        created = system_chunk(reader, CREATED, chunk)
        commit = system_chunk(reader, COMMIT, chunk) if known else _NO_TIMES
        here = dead[np.searchsorted(dead, first) : np.searchsorted(dead, first + len(event))] - first
        knowledge = _knowledge(query, len(event), created, commit, here)
        minima = (_minima(knowledge, 64), _minima(knowledge, 4096))

        def work(start: int, stop: int) -> None:
            part = slice(begin + start, begin + stop)  # noqa: B023 (called before the loop goes on)
            kernels.asof(
                query.codes[part],
                query.times[part],
                query.oldest[part],
                query.known_us[part] if known else _NO_TIMES,
                *index,
                first,  # noqa: B023
                event,  # noqa: B023
                created,  # noqa: B023
                knowledge,  # noqa: B023
                *minima,  # noqa: B023
                number,
                found.event[part],
                found.created[part],
                found.segment[part],
                found.position[part],
            )

        over_rows(end - begin, work)


def _knowledge(
    query: Query, rows: int, created: NDArray[np.int64], commit: NDArray[np.int64], dead: NDArray[np.int32]
) -> NDArray[np.int64]:
    """When each row of a chunk became known; empty if every row counts."""
    if not len(query.known_us) and not len(dead):
        return _NO_TIMES
    knowledge = np.full(rows, ABSENT_US, dtype=np.int64)
    if len(query.known_us):
        knowledge[:] = np.where(created == ABSENT_US, query.commit_times[commit], created)
    knowledge[dead] = NEVER_US
    return knowledge


def _minima(values: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """The least of each `step` values."""
    return np.minimum.reduceat(values, np.arange(0, len(values), step)) if len(values) else values


class Gatherer:
    """Turns found positions into columns; groups them by chunk once for all columns cut alike."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._rows_out = found.query.rows_out
        self._matched = found.matched
        self._parts: list[tuple[SegmentReader, NDArray[np.int32], NDArray[np.int64]]] = []
        for number, reader in enumerate(found.readers):
            at = np.flatnonzero(found.segment == number)
            if len(at):
                self._parts.append((reader, found.position[at], found.query.rows[at]))
        self._groups: dict[tuple[int, int], list[tuple[int, NDArray[np.int32], NDArray[np.int64]]]] = {}

    def _by_chunk(self, part: int, chunk_rows: int) -> list[tuple[int, NDArray[np.int32], NDArray[np.int64]]]:
        """(chunk, positions, rows of the result) of one segment, chunk after chunk."""
        key = (part, chunk_rows)
        if key not in self._groups:
            reader, positions, rows = self._parts[part]
            if reader.rows <= chunk_rows:
                self._groups[key] = [(0, positions, rows)]
                return self._groups[key]
            chunks = positions // chunk_rows
            if np.any(chunks[1:] < chunks[:-1]):
                order = np.argsort(chunks, kind="stable")
                chunks, positions, rows = chunks[order], positions[order], rows[order]
            cuts = np.concatenate([[0], np.flatnonzero(chunks[1:] != chunks[:-1]) + 1, [len(chunks)]])
            self._groups[key] = [(int(chunks[a]), positions[a:b], rows[a:b]) for a, b in pairwise(cuts)]
        return self._groups[key]

    def commits(self) -> NDArray[np.int64]:
        """The commit of each row of the result, 0 where nothing was found."""
        out = np.zeros(self._rows_out, dtype=np.int64)
        for part, (reader, _, part_rows) in enumerate(self._parts):
            info = reader.info.columns[COMMIT]
            if info.constant is not None:
                out[part_rows] = info.constant
                continue
            for chunk, positions, rows in self._by_chunk(part, info.chunk_rows):
                out[rows] = system_chunk(reader, COMMIT, chunk)[positions - chunk * info.chunk_rows]
        return out

    def feature(self, feature_id: int, dtype: DType) -> Column:
        """The feature's values in the rows of the result; null where nothing was found."""
        out = np.zeros(self._rows_out, dtype=dtype.numpy)
        valid = self._matched.copy()
        heaps = [Heap.of([])]
        for part in range(len(self._parts)):
            self._gather_part(part, feature_id, out, valid, heaps)
        if not dtype.is_variable:
            return Column(dtype, out, None if valid.all() else valid)
        out[~valid] = 0
        return Column(dtype, out, None if valid.all() else valid, Heap.concat(heaps))

    def _gather_part(
        self,
        part: int,
        feature_id: int,
        out: NDArray[Any],
        valid: NDArray[np.bool_],
        heaps: list[Heap],
    ) -> None:
        """Fill `out` and `valid` from one segment; values of variable width go to the end of `heaps`."""
        reader, _, part_rows = self._parts[part]
        info = reader.info.columns.get(feature_id)
        if info is None or info.encoding == "null":
            valid[part_rows] = False
            return
        base = sum(map(len, heaps))
        heap = None
        for chunk, positions, rows in self._by_chunk(part, info.chunk_rows):
            first = chunk * info.chunk_rows
            column = reader.feature_chunk(feature_id, chunk)
            if info.encoding == "heap":
                column = column.take(positions - first).compact()
                out[rows] = column.data + base
                nulls = column.valid
            else:
                _scatter(column.data, positions, first, rows, out, base)
                nulls = None if column.valid is None else column.valid[positions - first]
            if nulls is not None:
                valid[rows] = nulls
            heap = column.heap
            if heap is not None and info.encoding == "heap":
                heaps.append(heap)
                base += len(heap)
        if heap is not None and info.encoding == "dictionary":
            # It lies in the file's pages, and the result must outlive the transaction.
            heaps.append(Heap(heap.offsets.copy(), heap.data.copy()))


def _scatter(
    values: NDArray[Any],
    positions: NDArray[np.int32],
    first: int,
    rows: NDArray[np.int64],
    out: NDArray[Any],
    base: int,
) -> None:
    """out[rows[i]] = values[positions[i] - first] + base, as words so that few kernels are compiled."""
    if base:
        out[rows] = values[positions - first] + base
        return
    width = out.dtype.itemsize
    if width not in (1, 2, 4, 8):
        wide, matrix = frozen(values.view("u1").reshape(-1, width)), out.view("u1").reshape(-1, width)
        over_rows(len(rows), lambda a, b: kernels.gather_bytes(wide, positions[a:b], first, rows[a:b], matrix))
        return
    word = f"u{width}"
    source, target = frozen(values.view(word)), out.view(word)
    over_rows(len(rows), lambda a, b: kernels.gather(source, positions[a:b], first, rows[a:b], target))
