"""The loops, compiled by numba: arrays in, `out` arrays filled. No allocation, no checks, no exceptions.

Callers validate, allocate and spread the work over threads by slicing. All kernels release the GIL.
The first call in a fresh installation compiles; the machine code is cached on disk.
"""

# Kernels are compiled, not type-checked: annotations would only repeat what the callers' arrays are.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

_options = {"nogil": True, "cache": True, "boundscheck": False}

# --- hashing ----------------------------------------------------------------------------------
# Open addressing with linear probing over a power-of-two table of codes, -1 where free. The hash is
# the finalizer of MurmurHash3 (Appleby, public domain): every input bit reaches every output bit.


@njit(inline="always", nogil=True)
def _mix(word):
    word ^= word >> np.uint64(33)
    word *= np.uint64(0xFF51AFD7ED558CCD)
    word ^= word >> np.uint64(33)
    word *= np.uint64(0xC4CEB9FE1A85EC53)
    word ^= word >> np.uint64(33)
    return word


@njit(inline="always", nogil=True)
def _hash_bytes(data, start, stop):
    state = np.uint64(stop - start)
    i = start
    while i + 8 <= stop:
        word = np.uint64(0)
        for j in range(8):
            word |= np.uint64(data[i + j]) << np.uint64(8 * j)
        state = _mix(state ^ word) + np.uint64(0x9E3779B97F4A7C15)
        i += 8
    word = np.uint64(0)
    shift = np.uint64(0)
    while i < stop:
        word |= np.uint64(data[i]) << shift
        shift += np.uint64(8)
        i += 1
    return _mix(state ^ word)


@njit(inline="always", nogil=True)
def _same_bytes(a, a_start, a_stop, b, b_start, b_stop):
    if a_stop - a_start != b_stop - b_start:
        return False
    for i in range(a_stop - a_start):
        if a[a_start + i] != b[b_start + i]:
            return False
    return True


@njit(**_options)
def insert_words(words, first, table):
    """Enter words[first:] into `table`; the place of a word is its code. Words are distinct."""
    mask = np.uint64(len(table) - 1)
    for code in range(first, len(words)):
        slot = _mix(words[code]) & mask
        while table[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = code


@njit(**_options)
def find_words(queries, words, table, out):
    """out[i] = code of queries[i], or -1."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(queries)):
        query = queries[i]
        slot = _mix(query) & mask
        code = table[slot]
        while code >= 0 and words[code] != query:
            slot = (slot + np.uint64(1)) & mask
            code = table[slot]
        out[i] = code


@njit(**_options)
def insert_bytes(offsets, data, first, table):
    """Enter entries first, first + 1, ... of a heap into `table`. Entries are distinct."""
    mask = np.uint64(len(table) - 1)
    for code in range(first, len(offsets) - 1):
        slot = _hash_bytes(data, offsets[code], offsets[code + 1]) & mask
        while table[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = code


@njit(**_options)
def find_bytes(query_offsets, query_data, offsets, data, table, out):
    """out[i] = code of the i-th query entry in the heap that `table` indexes, or -1."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(query_offsets) - 1):
        start = query_offsets[i]
        stop = query_offsets[i + 1]
        slot = _hash_bytes(query_data, start, stop) & mask
        code = table[slot]
        while code >= 0 and not _same_bytes(query_data, start, stop, data, offsets[code], offsets[code + 1]):
            slot = (slot + np.uint64(1)) & mask
            code = table[slot]
        out[i] = code


@njit(**_options)
def factorize_bytes(offsets, data, table, out, firsts):
    """Number the distinct entries in order of appearance: out[i] = number, firsts[number] = first entry.

    `table` starts as -1 everywhere. Returns the count of distinct entries.
    """
    mask = np.uint64(len(table) - 1)
    count = 0
    for i in range(len(offsets) - 1):
        start = offsets[i]
        stop = offsets[i + 1]
        slot = _hash_bytes(data, start, stop) & mask
        code = table[slot]
        while code >= 0:
            first = firsts[code]
            if _same_bytes(data, start, stop, data, offsets[first], offsets[first + 1]):
                break
            slot = (slot + np.uint64(1)) & mask
            code = table[slot]
        if code < 0:
            code = count
            table[slot] = code
            firsts[code] = i
            count += 1
        out[i] = code
    return count


@njit(**_options)
def factorize_words(words, table, out, firsts):
    """As `factorize_bytes`, for keys that fit a 64-bit word."""
    mask = np.uint64(len(table) - 1)
    count = 0
    for i in range(len(words)):
        word = words[i]
        slot = _mix(word) & mask
        code = table[slot]
        while code >= 0 and words[firsts[code]] != word:
            slot = (slot + np.uint64(1)) & mask
            code = table[slot]
        if code < 0:
            code = count
            table[slot] = code
            firsts[code] = i
            count += 1
        out[i] = code
    return count


# --- sorting ----------------------------------------------------------------------------------


@njit(**_options)
def counting_sort(codes, starts, order):
    """Stable order by code. `starts` has one zero a code plus one, and ends as where each run ends."""
    for i in range(len(codes)):
        starts[codes[i] + 1] += 1
    for code in range(1, len(starts)):
        starts[code] += starts[code - 1]
    for i in range(len(codes)):
        code = codes[i]
        order[starts[code]] = i
        starts[code] += 1


@njit(inline="always", nogil=True)
def _before(event, created, order, i, j):
    if event[i] != event[j]:
        return event[i] < event[j]
    if created[i] != created[j]:
        return created[i] < created[j]
    return order[i] < order[j]


@njit(**_options)
def sort_runs(bounds, event, created, order, event_tmp, created_tmp, order_tmp):
    """Sort each run bounds[r]:bounds[r + 1] by (event, created, order), in place.

    A natural check first (data mostly arrives in time order), then insertion sort of blocks of 16 and a
    bottom-up merge sort. The `_tmp` arrays are scratch of the same lengths.
    """
    for r in range(len(bounds) - 1):
        first = bounds[r]
        stop = bounds[r + 1]
        ordered = True
        for i in range(first + 1, stop):
            if _before(event, created, order, i, i - 1):
                ordered = False
                break
        if ordered:
            continue
        for low in range(first, stop, 16):
            for i in range(low + 1, min(low + 16, stop)):
                e = event[i]
                c = created[i]
                o = order[i]
                j = i - 1
                while j >= low and (
                    event[j] > e or (event[j] == e and (created[j] > c or (created[j] == c and order[j] > o)))
                ):
                    event[j + 1] = event[j]
                    created[j + 1] = created[j]
                    order[j + 1] = order[j]
                    j -= 1
                event[j + 1] = e
                created[j + 1] = c
                order[j + 1] = o
        width = 16
        while width < stop - first:
            for low in range(first, stop, 2 * width):
                middle = min(low + width, stop)
                high = min(low + 2 * width, stop)
                if middle >= high or not _before(event, created, order, middle, middle - 1):
                    continue
                for i in range(low, middle):
                    event_tmp[i] = event[i]
                    created_tmp[i] = created[i]
                    order_tmp[i] = order[i]
                i = low
                j = middle
                k = low
                while i < middle and j < high:
                    if event[j] < event_tmp[i] or (
                        event[j] == event_tmp[i]
                        and (created[j] < created_tmp[i] or (created[j] == created_tmp[i] and order[j] < order_tmp[i]))
                    ):
                        event[k] = event[j]
                        created[k] = created[j]
                        order[k] = order[j]
                        j += 1
                    else:
                        event[k] = event_tmp[i]
                        created[k] = created_tmp[i]
                        order[k] = order_tmp[i]
                        i += 1
                    k += 1
                while i < middle:
                    event[k] = event_tmp[i]
                    created[k] = created_tmp[i]
                    order[k] = order_tmp[i]
                    i += 1
                    k += 1
            width *= 2


# --- searching --------------------------------------------------------------------------------


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


# --- gathering --------------------------------------------------------------------------------


@njit(**_options)
def gather(values, positions, first, rows, out):
    """out[rows[i]] = values[positions[i] - first]."""
    for i in range(len(rows)):
        out[rows[i]] = values[positions[i] - first]


@njit(**_options)
def gather_bytes(values, positions, first, rows, out):
    """As `gather`, for values of any width: both arrays are bytes of shape (n, width).

    Words of 8 bytes are no faster, as the compiler copies in vectors of 32, and would need alignment.
    """
    for i in range(len(rows)):
        source = positions[i] - first
        target = rows[i]
        for j in range(values.shape[1]):
            out[target, j] = values[source, j]
