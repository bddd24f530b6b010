"""Search in the chunks of a segment, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

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


@njit(**_options)
def asof(
    codes,
    times,
    oldest,
    known_us,
    segment_codes,
    segment_starts,
    first,
    event,
    created,
    knowledge,
    block_min,
    superblock_min,
    segment,
    best_event,
    best_created,
    best_segment,
    best_position,
):
    """As-of search of one chunk of a segment: the greatest row in (event, created) with event <= time.

    The entity rows are sorted by code. Row i asks for event in oldest[i] <= event <= times[i]; with
    `known_us` (else empty) only for rows known by known_us[i]. `event` is the chunk, whose first row has
    position `first`; `created` is the chunk's, or one value for all. `knowledge` is empty, or when each row
    became known: greater than any time for a replaced one; `block_min` and `superblock_min` are its minima
    over each 64 and each 4096 rows, so that rows not yet known are stepped over in blocks. The best_ arrays
    are improved where this chunk has a greater row. Binary search within the entity's slice (kdb+ `aj` and
    the Polars as-of kernel search likewise): O(log rows) a row.
    """
    stop = first + len(event)
    filtered = len(knowledge) > 0
    one_created = len(created) == 1
    limit = np.int64(2**63 - 2)
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
        time = times[i]
        while low < high:
            middle = (low + high) >> 1
            if event[middle] <= time:
                low = middle + 1
            else:
                high = middle
        place = low - 1
        if filtered:
            if len(known_us) > 0:
                limit = known_us[i]
            while place >= slice_start and event[place] >= oldest[i] and knowledge[place] > limit:
                if place & 4095 == 4095 and superblock_min[place >> 12] > limit:
                    place -= 4096
                elif place & 63 == 63 and block_min[place >> 6] > limit:
                    place -= 64
                else:
                    place -= 1
        if place < slice_start or event[place] < oldest[i]:
            continue
        made = created[0] if one_created else created[place]
        if event[place] > best_event[i] or (event[place] == best_event[i] and made >= best_created[i]):
            best_event[i] = event[place]
            best_created[i] = made
            best_segment[i] = segment
            best_position[i] = place + first


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
