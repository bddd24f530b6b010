"""Search in the chunks of a segment, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from featuredb.offline.kernels.words import unpacked, value_at

# The columns of a segment that are searched, by their place in `cells`.
CODES, STARTS, EVENT, CREATED, COMMIT, DEAD = range(6)
ABSENT = -(2**63)
NEVER = 2**63 - 1

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


@njit(inline="always", nogil=True)
def _find_packed(addresses, table, shift, width, mask, base, count, code, low):
    """As `_find_code`, in the packed column of codes of a segment."""
    step = 1
    high = low
    while high < count and base + np.int64(unpacked(addresses, table, shift, width, mask, high)) < code:
        low = high + 1
        high += step
        step *= 2
    if high > count:
        high = count
    while low < high:
        middle = (low + high) >> 1
        if base + np.int64(unpacked(addresses, table, shift, width, mask, middle)) < code:
            low = middle + 1
        else:
            high = middle
    return low


@njit(inline="always", nogil=True)
def _known_since(cells, addresses, commit_times, knows, place):
    """When a row became known; greater than any time if it was replaced."""
    if value_at(addresses, cells[DEAD], place) != 0:
        return np.int64(NEVER)
    if not knows:
        return np.int64(ABSENT)
    created = value_at(addresses, cells[CREATED], place)
    if created != ABSENT:
        return created
    return commit_times[min(value_at(addresses, cells[COMMIT], place), len(commit_times) - 1)]


@njit(**_options)
def block_minima(cells, addresses, commit_times, knows, rows, out):
    """out[b] = the earliest time that any of the rows 64 * b to 64 * b + 63 of a segment became known."""
    for block in range(len(out)):
        earliest = np.int64(NEVER)
        for place in range(64 * block, min(64 * block + 64, rows)):
            earliest = min(earliest, _known_since(cells, addresses, commit_times, knows, place))
        out[block] = earliest


@njit(**_options)
def asof(
    codes,
    rows,
    times,
    max_age,
    floor,
    known_us,
    commit_times,
    cells,
    addresses,
    zone,
    block_min,
    superblock_min,
    segment,
    best_event,
    best_created,
    best_segment,
    best_position,
    marks,
):
    """As-of search of one segment: the greatest row in (event, created) with event <= time.

    Query i, of the sorted `codes`, asks at the time times[rows[i]] for rows no older than `max_age` and not before
    `floor`; with `known_us` (else empty; of one entry for all, or one a row) only for rows known by then. `cells`
    are the columns of the segment, `zone` its (rows, entities, least event, greatest event). If any row may have to be
    passed over, `block_min` and `superblock_min` are the minima of when rows became known over each 64 and each 4096
    rows, so that rows not yet known are stepped over in blocks; else they are empty. The best_ arrays are improved
    where this segment has a greater row, and ``marks[chunk]`` set for each chunk of event timestamps searched. Binary search within the entity's slice (kdb+ `aj` and the Polars as-of
    kernel search likewise), without branches, as half of them would be predicted wrongly: O(log rows) a row.
    """
    stop, entities, event_min, event_max = zone[0], zone[1], zone[2], zone[3]
    table, shift, width = cells[EVENT].table, cells[EVENT].shift, cells[EVENT].width
    mask, base = cells[EVENT].mask, cells[EVENT].base
    codes_table, codes_shift, codes_width = cells[CODES].table, cells[CODES].shift, cells[CODES].width
    codes_mask, codes_base = cells[CODES].mask, cells[CODES].base
    filtered = len(block_min) > 0
    knows = len(known_us) > 0
    limit = np.int64(NEVER - 1)
    entity = np.int64(0)
    held = np.int64(-1)
    slice_start = slice_stop = np.int64(0)
    for i in range(len(codes)):
        row = rows[i]
        time = times[row]
        oldest = max(floor, time - max_age)
        if time < event_min or oldest > event_max or best_event[i] > event_max:
            continue
        code = np.int64(codes[i])
        if code != held:
            held = code
            entity = _find_packed(
                addresses, codes_table, codes_shift, codes_width, codes_mask, codes_base, entities, code, entity
            )
            if entity == entities:
                break
            slice_start = slice_stop = 0
            if (
                codes_base + np.int64(unpacked(addresses, codes_table, codes_shift, codes_width, codes_mask, entity))
                == code
            ):
                # Whatever the file says, no position is outside the segment.
                slice_stop = min(value_at(addresses, cells[STARTS], entity + 1), stop)
                slice_start = max(min(value_at(addresses, cells[STARTS], entity), slice_stop), 0)
                if slice_start < slice_stop:
                    for chunk in range(slice_start >> shift, ((slice_stop - 1) >> shift) + 1):
                        marks[chunk] = True
        count = slice_stop - slice_start
        if count <= 0:
            continue
        place = slice_start
        while count > 1:
            half = count >> 1
            later = base + np.int64(unpacked(addresses, table, shift, width, mask, place + half)) <= time
            place += half * np.int64(later)
            count -= half
        event = base + np.int64(unpacked(addresses, table, shift, width, mask, place))
        if event > time:
            continue
        if filtered:
            if knows:
                limit = known_us[row if len(known_us) > 1 else 0]
            while (
                place >= slice_start
                and event >= oldest
                and _known_since(cells, addresses, commit_times, knows, place) > limit
            ):
                if place & 4095 == 4095 and superblock_min[place >> 12] > limit:
                    place -= 4096
                elif place & 63 == 63 and block_min[place >> 6] > limit:
                    place -= 64
                else:
                    place -= 1
                if place >= slice_start:
                    event = base + np.int64(unpacked(addresses, table, shift, width, mask, place))
        if place < slice_start or event < oldest or event < best_event[i]:
            continue
        created = value_at(addresses, cells[CREATED], place)
        if event > best_event[i] or created >= best_created[i]:
            best_event[i] = event
            best_created[i] = created
            best_segment[i] = segment
            best_position[i] = place


@njit(**_options)
def mark_slices(codes, cells, addresses, zone, marks):
    """marks[chunk] = True for each chunk of the event timestamps that has rows of any of the sorted `codes`."""
    stop, entities = zone[0], zone[1]
    entity = np.int64(0)
    held = np.int64(-1)
    for i in range(len(codes)):
        code = np.int64(codes[i])
        if code == held:
            continue
        held = code
        column = cells[CODES]
        entity = _find_packed(
            addresses, column.table, column.shift, column.width, column.mask, column.base, entities, code, entity
        )
        if entity == entities:
            break
        if value_at(addresses, column, entity) == code:
            slice_stop = min(value_at(addresses, cells[STARTS], entity + 1), stop)
            slice_start = max(min(value_at(addresses, cells[STARTS], entity), slice_stop), 0)
            if slice_start < slice_stop:
                for chunk in range(slice_start >> cells[EVENT].shift, ((slice_stop - 1) >> cells[EVENT].shift) + 1):
                    marks[chunk] = True


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
