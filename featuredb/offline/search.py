"""As-of search over the segments of a table: it gives positions, and `featuredb.offline.gather` makes columns of them.

Joins, retrieval, materialization, partial rows and verification all search here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from featuredb.limits import ABSENT_US
from featuredb.offline import kernels
from featuredb.offline.cells import Searchable, searchable, trust
from featuredb.offline.explain import TablePlan
from featuredb.offline.kernels.searching import LANES
from featuredb.storage.segment import EVENT, SegmentReader, frozen
from featuredb.threads import over_items, over_rows, ranges

NO_TIMES = np.zeros(0, dtype=np.int64)
# No limit of age: more than the range of timestamps, and no overflow when subtracted from any.
NO_MAX_AGE_US = 1 << 60
# Rows searched at a time, so that what was found so far stays in the cache from segment to segment.
_SEARCH_ROWS = 1 << 14
# Fewer rows are sorted by comparing them, and rows of more codes for each row: counting would walk the codes.
_COUNTED_ROWS_MIN = 4096
_COUNTED_CODES_MAX = 8


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for, sorted by code.

    Query ``i`` asks for the greatest row of ``codes[i]`` with an event at most ``times[i]``, no more than `max_age_us`
    before that, and not before `floor_us`; it is for row ``rows[i]`` of the result. If `known_us` is not empty (one
    time for each query, or one for all), the row must have been known by then: by its created timestamp or, without
    one, by ``commit_times[commit]``. Rows of the result that no query is for follow in `rows`, behind the queries.
    ``sort`` is how they were sorted, for `explain`.
    """

    codes: NDArray[np.int32]
    rows: NDArray[np.int64]
    times: NDArray[np.int64]
    max_age_us: int = NO_MAX_AGE_US
    floor_us: int = ABSENT_US + 1
    known_us: NDArray[np.int64] = field(default_factory=lambda: NO_TIMES)
    commit_times: NDArray[np.int64] = field(default_factory=lambda: NO_TIMES)
    sort: str = ""

    @property
    def span_us(self) -> tuple[int, int]:
        """The earliest event that any query takes, and the latest."""
        return max(int(self.times.min()) - self.max_age_us, self.floor_us), int(self.times.max())


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: for row ``rows[i]`` of the result its segment (-1 if none) and position there.

    If the times were asked for, ``event[i]`` and ``created[i]`` are those of the row found, `ABSENT_US` if none.
    """

    readers: Sequence[SegmentReader]
    rows: NDArray[np.int64]
    segment: NDArray[np.int32]
    position: NDArray[np.int32]
    event: NDArray[np.int64]
    created: NDArray[np.int64]

    @staticmethod
    def nothing(readers: Sequence[SegmentReader], rows: NDArray[np.int64], with_times: bool = True) -> Found:
        """What is found before the first segment is searched; searching improves the arrays in place."""
        count = len(rows)
        event, created = np.full((2, count if with_times else 0), ABSENT_US, dtype=np.int64)
        segment, position = np.full((2, count), -1, dtype=np.int32)
        return Found(readers, rows, segment, position, event, created)

    def take(self, places: NDArray[np.int64]) -> Found:
        """Those entries alone, each for the row of its place among them."""
        rows = np.arange(len(places))
        times = (self.event[places], self.created[places])
        return Found(self.readers, rows, self.segment[places], self.position[places], *times)

    def in_order(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """`event` or `created` in the order of the result."""
        out = np.empty(len(self.rows), dtype=np.int64)
        out[self.rows] = values
        return out


def make_query(
    codes: NDArray[np.int32],
    times: NDArray[np.int64],
    known_us: NDArray[np.int64] = NO_TIMES,
    commit_times: NDArray[np.int64] = NO_TIMES,
    threads: int | None = None,
) -> Query:
    """A query of the rows with a known code (not -1), without a limit of age; `times` and `known_us` are by row."""
    few = len(codes) < _COUNTED_ROWS_MIN or int(codes.max()) > _COUNTED_CODES_MAX * len(codes)
    rows, ordered = _compared(codes) if few else _counted(codes, threads)

    def in_order(values: NDArray[np.int64]) -> NDArray[np.int64]:
        out = np.empty(len(ordered), dtype=np.int64)

        def work(start: int, stop: int) -> None:
            # The mode "raise" would go through a buffer.
            values.take(rows[start:stop], out=out[start:stop], mode="clip")

        over_rows(len(out), work, threads)
        return out

    known_us = in_order(known_us) if len(known_us) > 1 else known_us
    how = "rows by comparison sort" if few else "rows by counting sort"
    return Query(ordered, rows, in_order(times), known_us=known_us, commit_times=commit_times, sort=how)


def _compared(codes: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Stable order of `codes`, those of -1 last, and the others in that order: for few rows, or few of many codes."""
    unsigned = codes.view(np.uint32)
    order = np.argsort(unsigned, kind="stable")
    return order, codes[order][: len(codes) - int(np.count_nonzero(codes < 0))]


def _counted(codes: NDArray[np.int32], threads: int | None) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """As `_compared`: each thread counts the codes of its rows, and then puts them in their places."""
    bounds = ranges(len(codes), threads)
    order, ordered = np.empty(len(codes), dtype=np.int64), np.empty(len(codes), dtype=np.int32)
    starts = np.zeros((len(bounds), int(codes.max()) + 2), dtype=np.int64)
    parts = range(len(bounds))
    over_items(parts, lambda part: kernels.count_codes(codes[slice(*bounds[part])], starts[part]), threads)
    unknown = int(starts[:, -1].sum())
    kernels.counts_to_starts(starts)
    over_items(
        parts,
        lambda part: kernels.place_by_code(codes[slice(*bounds[part])], starts[part], bounds[part][0], order, ordered),
        threads,
    )
    return order, ordered[: len(codes) - unknown]


def with_max_age(query: Query, max_age_us: int | None) -> Query:
    """The query with a limit of age, or as it is if that is None."""
    return query if max_age_us is None else replace(query, max_age_us=min(max_age_us, NO_MAX_AGE_US))


def pruned(reader: SegmentReader, query: Query, span_us: tuple[int, int]) -> str:
    """Why the zone map of the segment rules out that it holds an answer; empty if it does not."""
    info = reader.info
    if info.code_max < query.codes[0] or info.code_min > query.codes[-1]:
        return "other keys"
    earliest, latest = span_us
    if info.event_min > latest:
        return "later"
    if info.event_max < earliest:
        return "too old"
    return ""


def search(
    readers: Sequence[SegmentReader],
    query: Query,
    *,
    with_times: bool = False,
    threads: int | None = None,
    plan: TablePlan | None = None,
) -> Found:
    """The greatest row for each query, over all segments."""
    found = Found.nothing(readers, query.rows, with_times)
    chosen = []
    span_us = query.span_us if len(query.codes) else (0, 0)
    for number, reader in enumerate(readers):
        reason = pruned(reader, query, span_us) if len(query.codes) else "no row has a known key and a timestamp"
        if plan is not None:
            plan.note_segment(reader, reason)
        if not reason:
            chosen.append((number, _opened(reader, query, threads), np.zeros(_chunks(reader), dtype=np.bool_)))
    # The newest first: what it has need not be looked for in older ones.
    chosen.sort(key=lambda segment: -int(segment[1].zone[3]))
    codes, times, commit_times = frozen(query.codes), frozen(query.times), frozen(query.commit_times)

    def work(start: int, stop: int) -> None:
        scratch = np.empty((3, LANES), dtype=np.int64)
        for low in range(start, stop, _SEARCH_ROWS):
            part = slice(low, min(low + _SEARCH_ROWS, stop))
            event, created = found.event[part], found.created[part]
            if not with_times:
                event, created = np.full((2, part.stop - low), ABSENT_US, dtype=np.int64)
            known_us = query.known_us[part] if len(query.known_us) > 1 else query.known_us
            queries, slices = _room(part.stop - low)
            for number, segment, marks in chosen:
                asked = codes[part], times[part], query.max_age_us, event
                count = _find_slices(segment, *asked, queries, slices, marks)
                kernels.asof(
                    queries[:count],
                    slices[:count],
                    times[part],
                    query.max_age_us,
                    query.floor_us,
                    frozen(known_us),
                    commit_times,
                    segment.cells,
                    segment.addresses,
                    *segment.minima,
                    number,
                    event,
                    created,
                    found.segment[part],
                    found.position[part],
                    *scratch,
                )

    if chosen:
        over_rows(len(codes), work, threads)
    if plan is not None:
        plan.rows_searched += len(codes)
        plan.rows_found += int(np.count_nonzero(found.position >= 0))
        for number, segment, marks in chosen:
            for column in segment.columns:
                plan.note_column(readers[number], column, marks if column is segment.event else None)
    return found


def _chunks(reader: SegmentReader) -> int:
    return len(reader.chunk_bounds(EVENT))


def _room(rows: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For the queries that a segment may answer, and their slices."""
    return np.empty(rows, dtype=np.int32), np.empty((rows, 2), dtype=np.int32)


def _find_slices(
    segment: Searchable,
    codes: NDArray[np.int32],
    times: NDArray[np.int64],
    max_age_us: int,
    best_event: NDArray[np.int64],
    queries: NDArray[np.int32],
    slices: NDArray[np.int32],
    marks: NDArray[np.bool_],
) -> int:
    count: int = kernels.find_slices(
        codes, times, max_age_us, best_event, segment.cells, segment.addresses, segment.zone, queries, slices, marks
    )
    return count


def _opened(reader: SegmentReader, query: Query, threads: int | None) -> Searchable:
    """The segment, with the checksums of what the query touches checked."""
    segment = searchable(reader, len(query.known_us) > 0, query.commit_times, threads)
    if not segment.event.trusted.all():
        marks = np.zeros(len(segment.event.trusted), dtype=np.bool_)
        asked = frozen(query.codes), frozen(query.times), query.max_age_us, NO_TIMES
        _find_slices(segment, *asked, *_room(len(query.codes)), marks)
        trust([(reader, segment.event, marks)], threads)
    return segment
