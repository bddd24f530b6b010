"""Search in the chunks of a segment, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from featuredb.offline.kernels.words import (
    ALIGN,
    BASE,
    MASK,
    SHIFT,
    TABLE,
    WIDTH,
    prefetch_at,
    unpacked,
    value_at,
)

# The columns of a segment that are searched, by their place in `cells`.
CODES, STARTS, EVENT, CREATED, COMMIT, DEAD = range(6)
ABSENT = -(2**63)
NEVER = 2**63 - 1
# Queries searched in step; 32 are as fast, and more leave the cache.
LANES = 16

_options = {"nogil": True, "cache": True, "boundscheck": False}


@njit(inline="always", nogil=True)
def _find_code(codes, code, low):
    """Place of `code` in sorted `codes` at or after `low`, or of the next greater; gallops, then bisects."""
    count = len(codes)
    step = 1
    high = low
    while high < count and codes[high] < code:
        low = high + 1
        high += step
        step *= 2
    if high > count:
        high = count
    while low < high:
        middle = (low + high) >> 1
        if codes[middle] < code:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True)
def _find_entity(addresses, cells, count, code, low):
    """As `_find_code`, in the column of codes of a segment."""
    if low >= count:
        return low
    here = value_at(addresses, cells, low)
    if here >= code:
        return low
    # The codes are distinct: the place is here if all between are in the segment, and not behind in any case.
    guess = low + (code - here)
    if guess < count and value_at(addresses, cells, guess) == code:
        return guess
    count = min(count, guess)
    step = 1
    high = low
    while high < count and value_at(addresses, cells, high) < code:
        low = high + 1
        high += step
        step *= 2
    if high > count:
        high = count
    while low < high:
        middle = (low + high) >> 1
        if value_at(addresses, cells, middle) < code:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True)
def _slice_of(addresses, cells, zone, entity, code):
    """Where the rows of a code start and stop, if it is that of `entity`; nothing if not.

    Whatever the file says, no position is outside the segment.
    """
    if entity >= zone[1] or value_at(addresses, cells[CODES], entity) != code:
        return np.int64(0), np.int64(0)
    stop = min(value_at(addresses, cells[STARTS], entity + 1), zone[0])
    return max(min(value_at(addresses, cells[STARTS], entity), stop), 0), stop


@njit(nogil=True)
def _known_since(addresses, cells, commit_times, knows, place):
    """When a row became known; later than any time if it was replaced."""
    if value_at(addresses, cells[DEAD], place) != 0:
        return np.int64(NEVER)
    if not knows:
        return np.int64(ABSENT)
    created = value_at(addresses, cells[CREATED], place)
    if created != ABSENT:
        return created
    return commit_times[max(min(value_at(addresses, cells[COMMIT], place), len(commit_times) - 1), 0)]


@njit(**_options)
def block_minima(cells, addresses, commit_times, knows, rows, out):
    """out[b] = the earliest time that any of the rows 64 * b to 64 * b + 63 of a segment became known."""
    for block in range(len(out)):
        earliest = np.int64(NEVER)
        for place in range(64 * block, min(64 * block + 64, rows)):
            earliest = min(earliest, _known_since(addresses, cells, commit_times, knows, place))
        out[block] = earliest


@njit(**_options)
def find_slices(codes, times, max_age, best_event, cells, addresses, zone, queries, slices, marks):
    """The queries, numbered as `codes` (sorted) and `times`, that a segment may answer; how many.

    Query queries[n] is for the rows from slices[n, 0] up to slices[n, 1]. Left out are those whose code has no rows
    here, and those that no row can answer by its time, or by what was found before (nothing if `best_event` is empty):
    of many segments that follow one another in time, most. marks[chunk] = True for each chunk of event timestamps that
    has any of these rows.
    """
    entity = np.int64(0)
    table, shift, width = cells[EVENT, TABLE], cells[EVENT, SHIFT], cells[EVENT, WIDTH]
    event_min, event_max = zone[2], zone[3]
    searched = len(best_event) > 0
    held = np.int64(-1)
    start = stop = found = np.int64(0)
    for i in range(len(codes)):
        outside = times[i] < event_min or times[i] - max_age > event_max
        if outside or (searched and best_event[i] > event_max):
            continue
        code = np.int64(codes[i])
        if code != held:
            held = code
            entity = _find_entity(addresses, cells[CODES], zone[1], code, entity)
            start, stop = _slice_of(addresses, cells, zone, entity, code)
            if start < stop:
                middle = (start + stop) >> 1
                prefetch_at(addresses, table, shift, width, middle)
                prefetch_at(addresses, table, shift, width, (start + middle) >> 1)
                prefetch_at(addresses, table, shift, width, (middle + stop) >> 1)
                for chunk in range(start >> shift, ((stop - 1) >> shift) + 1):
                    marks[chunk] = True
        queries[found] = i
        slices[found, 0] = start
        slices[found, 1] = stop
        found += np.int64(start < stop)
    return found


@njit(**_options)
def asof(
    queries,
    slices,
    times,
    max_age,
    floor,
    known_us,
    commit_times,
    cells,
    addresses,
    block_min,
    superblock_min,
    segment,
    best_event,
    best_created,
    best_segment,
    best_position,
    asked,
    places,
    sizes,
):
    """As-of search of one segment: the greatest row in (event, created) with event <= time.

    Query i = queries[n] is for the rows from slices[n, 0] up to slices[n, 1] (see `find_slices`), of which there is at
    least one, at the time times[i], no older than `max_age` and not before `floor`; with `known_us` (else empty; of one
    entry for all, or one a query) only for rows known by then. `cells` are the columns of the segment. If any row may
    have to be passed over, `block_min` and `superblock_min` are the minima of when rows became known over each 64 and
    each 4096 rows, so that rows not yet known are stepped over in blocks; else they are empty. The best_ arrays are
    improved where this segment has a greater row. `asked`, `places` and `sizes` are scratch, of `LANES` integers.

    Binary search within the entity's slice (kdb+ `aj` and the Polars as-of kernel search likewise), O(log rows) a row,
    of `LANES` queries in step: one after the other, they took 2.3 times as long, for each waited for its own loads.
    """
    table, shift, width = cells[EVENT, TABLE], cells[EVENT, SHIFT], cells[EVENT, WIDTH]
    mask, align, base = cells[EVENT, MASK], cells[EVENT, ALIGN], cells[EVENT, BASE]
    created_width, created_base = cells[CREATED, WIDTH], cells[CREATED, BASE]
    filtered = len(block_min) > 0
    knows = len(known_us) > 0
    limit = np.int64(NEVER - 1)
    for first in range(0, len(slices), LANES):
        count = min(LANES, len(slices) - first)
        longest = np.int64(0)
        for j in range(count):
            asked[j] = times[queries[first + j]]
            places[j] = slices[first + j, 0]
            sizes[j] = slices[first + j, 1] - slices[first + j, 0]
            longest = max(longest, sizes[j])
        while longest > 1:
            for j in range(count):
                half = sizes[j] >> 1
                event = base + unpacked(addresses, table, shift, width, mask, align, places[j] + half)
                # Without a branch, as half of them would be predicted wrongly.
                places[j] += half * np.int64(event <= asked[j])
                sizes[j] -= half
            longest -= longest >> 1
        for j in range(count):
            i = queries[first + j]
            place = places[j]
            time = asked[j]
            event = base + unpacked(addresses, table, shift, width, mask, align, place)
            oldest = max(floor, time - max_age)
            slice_start = np.int64(slices[first + j, 0])
            if filtered and event <= time:
                if knows:
                    limit = known_us[i if len(known_us) > 1 else 0]
                while (
                    place >= slice_start
                    and event >= oldest
                    and _known_since(addresses, cells, commit_times, knows, place) > limit
                ):
                    if place & 4095 == 4095 and superblock_min[place >> 12] > limit:
                        place -= 4096
                    elif place & 63 == 63 and block_min[place >> 6] > limit:
                        place -= 64
                    else:
                        place -= 1
                    if place >= slice_start:
                        event = base + unpacked(addresses, table, shift, width, mask, align, place)
            # One branch of all conditions: each of them is right about as often as not.
            found = (place >= slice_start) & (event <= time)
            if not (found & (event >= oldest) & (event >= best_event[i])):
                continue
            created = created_base if created_width == 0 else value_at(addresses, cells[CREATED], place)
            if event > best_event[i] or created >= best_created[i]:
                best_event[i] = event
                best_created[i] = created
                best_segment[i] = segment
                best_position[i] = place


@njit(**_options)
def find_rows(codes, event, created, segment_codes, segment_starts, first, chunk_event, chunk_created, out):
    """out[i] = position of the row with just (codes[i], event[i], created[i]) in this chunk, if it has one.

    The queries are sorted by code.
    """
    stop = first + len(chunk_event)
    one_created = len(chunk_created) == 1
    entity = 0
    for i in range(len(codes)):
        entity = _find_code(segment_codes, codes[i], entity)
        if entity == len(segment_codes):
            break
        if segment_codes[entity] != codes[i]:
            continue
        low = max(segment_starts[entity], first) - first
        high = min(segment_starts[entity + 1], stop) - first
        end = high
        while low < high:
            middle = (low + high) >> 1
            made = chunk_created[0] if one_created else chunk_created[middle]
            if chunk_event[middle] < event[i] or (chunk_event[middle] == event[i] and made < created[i]):
                low = middle + 1
            else:
                high = middle
        if low < end and chunk_event[low] == event[i]:
            made = chunk_created[0] if one_created else chunk_created[low]
            if made == created[i]:
                out[i] = low + first


@njit(**_options)
def find_before(
    codes,
    event,
    created,
    segment_codes,
    segment_starts,
    first,
    chunk_event,
    chunk_created,
    dead,
    segment,
    best_event,
    best_created,
    best_segment,
    best_position,
):
    """As-of search in the total order: the greatest row of codes[i] up to (event[i], created[i]), that one included.

    The chunk and the best_ arrays are those of `asof`; `dead` is empty or a flag a row. A kernel of its own, so that
    joins need not compare created timestamps. The queries are sorted by code.
    """
    stop = first + len(chunk_event)
    one_created = len(chunk_created) == 1
    entity = 0
    for i in range(len(codes)):
        entity = _find_code(segment_codes, codes[i], entity)
        if entity == len(segment_codes):
            break
        if segment_codes[entity] != codes[i]:
            continue
        slice_start = max(segment_starts[entity], first) - first
        low = slice_start
        high = min(segment_starts[entity + 1], stop) - first
        while low < high:
            middle = (low + high) >> 1
            made = chunk_created[0] if one_created else chunk_created[middle]
            if chunk_event[middle] < event[i] or (chunk_event[middle] == event[i] and made <= created[i]):
                low = middle + 1
            else:
                high = middle
        place = low - 1
        while len(dead) > 0 and place >= slice_start and dead[place]:
            place -= 1
        if place < slice_start:
            continue
        made = chunk_created[0] if one_created else chunk_created[place]
        if chunk_event[place] > best_event[i] or (chunk_event[place] == best_event[i] and made >= best_created[i]):
            best_event[i] = chunk_event[place]
            best_created[i] = made
            best_segment[i] = segment
            best_position[i] = place + first
