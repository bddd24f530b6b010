"""The walk down LMDB's tree, compiled. See `featuredb.online.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from featuredb.online.kernels.words import big_endian, prefetch, u16, u32, u64

_options = {"nogil": True, "cache": True, "boundscheck": False}

ABSENT, UNSETTLED = -1, -2

# Keys walked in lock step: the cache misses of one key pass while others are compared. 8 to 64 are alike.
_LANES = 32
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG_VALUE = 1
_PAGE_HEADER, _NODE_HEADER = 16, 8


@njit(inline="always", nogil=True)
def _page_is(pages, page, page_bytes, number, flags):
    """Whether a page of the tree is what was expected, and has entries that may be looked at."""
    lower = u16(pages, page + 12)
    return (
        u64(pages, page) == np.uint64(number)
        and u16(pages, page + 10) == flags
        and lower > _PAGE_HEADER
        and lower <= page_bytes
    )


@njit(inline="always", nogil=True)
def _value(pages, node, page, page_bytes, page_count):
    """Where the value of a leaf's node is, and its size; `UNSETTLED` if not where it could be."""
    flags = u16(pages, node + 4)
    size = u32(pages, node)
    at = node + _NODE_HEADER + u16(pages, node + 6)
    if flags == 0:
        return (at, size) if at + size <= page + page_bytes else (UNSETTLED, 0)
    if flags != _BIG_VALUE or at + 8 > page + page_bytes:
        return UNSETTLED, 0
    number = np.int64(u64(pages, at))
    if number < 2 or number >= page_count:
        return UNSETTLED, 0
    start = number * page_bytes
    span = u32(pages, start + 12)
    if u64(pages, start) != np.uint64(number) or u16(pages, start + 10) != _OVERFLOW or span > page_count - number:
        return UNSETTLED, 0
    return (start + _PAGE_HEADER, size) if _PAGE_HEADER + size <= span * page_bytes else (UNSETTLED, 0)


@njit(inline="always", nogil=True)
def _same(pages, at, keys, key_at, size):
    """Whether `size` bytes agree."""
    if size < 8:
        for i in range(size):
            if pages[np.uint64(at + i)] != keys[np.uint64(key_at + i)]:
                return False
        return True
    differ = u64(pages, at + size - 8) ^ u64(keys, key_at + size - 8)
    for i in range(0, size - 8, 8):
        differ |= u64(pages, at + i) ^ u64(keys, key_at + i)
    return differ == np.uint64(0)


@njit(nogil=True, cache=True)
def _precedes(pages, at, size, keys, key_at, key_size):
    """Whether the node's key (`size` bytes at `at`) is not greater than the key."""
    shared = min(size, key_size)
    if shared < 8:
        for i in range(shared):
            one, two = pages[np.uint64(at + i)], keys[np.uint64(key_at + i)]
            if one != two:
                return one < two
        return size <= key_size
    for i in range(0, shared - 8, 8):
        one, two = big_endian(pages, at + i), big_endian(keys, key_at + i)
        if one != two:
            return one < two
    # The last eight bytes; that some of them are known to agree does no harm.
    one, two = big_endian(pages, at + shared - 8), big_endian(keys, key_at + shared - 8)
    return one < two or (one == two and size <= key_size)


@njit(inline="always", nogil=True)
def _enter_pages(pages, page_bytes, flags, lanes, page, base, count, probe, sound):
    """Begin with the page of each lane, a number that becomes a place; the most nodes of any."""
    most = 0
    for lane in range(lanes):
        number = page[lane]
        here = number * page_bytes
        page[lane] = here
        base[lane] = 0
        sound[lane] &= _page_is(pages, here, page_bytes, number, flags)
        # An unsound page is one whose only node is looked at in vain.
        count[lane] = (u16(pages, here + 12) - _PAGE_HEADER) >> 1 if sound[lane] else 1
        most = max(most, count[lane])
        prefetch(pages, here + _PAGE_HEADER + 2 * (count[lane] >> 1))
    for lane in range(lanes):
        probe[lane] = u16(pages, page[lane] + _PAGE_HEADER + 2 * (count[lane] >> 1))
        prefetch(pages, page[lane] + probe[lane])
    return most


@njit(inline="always", nogil=True)
def _halve(pages, words_end, lanes, page, base, count, probe, half_left, skip, first, second, key_size, masks):
    """One step of the binary search of each lane, by 16 bytes behind those skipped; whether some need more of them.

    There is no branch in the loop: what it compares is not to be guessed, and each wrong guess costs as much as the
    rest.
    """
    left = False
    for lane in range(lanes):
        half = count[lane] >> 1
        offset = probe[lane] + skip[lane]
        node = page[lane] + min(offset, words_end)
        size = u16(pages, node - skip[lane] + 6) - skip[lane]
        kept = max(min(size, 16), 0)
        one = big_endian(pages, node + _NODE_HEADER) & masks[kept, 0]
        two = big_endian(pages, node + _NODE_HEADER + 8) & masks[kept, 1]
        same = one == first[lane]
        even = same & (two == second[lane])
        key_left = key_size[lane] - skip[lane]
        precedes = (one < first[lane]) | (same & (two < second[lane])) | (even & (size <= key_left))
        undecided = (offset > words_end) | (even & (size > 16) & (key_left > 16))
        half_left[lane] = half * np.int64(undecided)
        left |= undecided & (half > 0)
        base[lane] += half * np.int64(precedes & (not undecided))
        count[lane] -= half
        probe[lane] = u16(pages, page[lane] + _PAGE_HEADER + 2 * (base[lane] + (count[lane] >> 1)))
        prefetch(pages, page[lane] + probe[lane])
    return left


@njit(nogil=True, cache=True)
def _decide(pages, page_bytes, lanes, page, base, count, probe, sound, half_left, keys, key_start, key_size):
    """Finish the step of lanes whose node is at the end of its page, or agrees in 16 bytes."""
    for lane in range(lanes):
        half = half_left[lane]
        if half == 0:
            continue
        here = page[lane]
        offset = u16(pages, here + _PAGE_HEADER + 2 * (base[lane] + half))
        sound[lane] &= offset <= page_bytes - _NODE_HEADER
        size = u16(pages, here + offset + 6) if sound[lane] else 0
        sound[lane] &= offset + _NODE_HEADER + size <= page_bytes
        if sound[lane] and _precedes(pages, here + offset + _NODE_HEADER, size, keys, key_start[lane], key_size[lane]):
            base[lane] += half
            probe[lane] = u16(pages, here + _PAGE_HEADER + 2 * (base[lane] + (count[lane] >> 1)))
            prefetch(pages, here + probe[lane])


@njit(nogil=True, cache=True)
def _agree(pages, page_bytes, here, place, known, keys, key_start, key_size):
    """How many bytes the key shares with that of a node, which are `known` at least if the page is sound."""
    offset = u16(pages, here + _PAGE_HEADER + 2 * place)
    if offset > page_bytes - _NODE_HEADER:
        return 0
    size = min(u16(pages, here + offset + 6), key_size)
    if offset + _NODE_HEADER + size > page_bytes:
        return 0
    while known < size and pages[np.uint64(here + offset + _NODE_HEADER + known)] == keys[np.uint64(key_start + known)]:
        known += 1
    return known


@njit(inline="always", nogil=True)
def _child(pages, page_bytes, page_count, here, offset):
    """The page that a branch's node leads to; 0 if there can be none."""
    if offset > page_bytes - _NODE_HEADER:
        return 0
    number = u32(pages, here + offset) | u16(pages, here + offset + 4) << 32
    return number if 2 <= number < page_count else 0


@njit(inline="always", nogil=True)
def _found(pages, page_bytes, page_count, here, offset, keys, key_start, key_size):
    """Where the value is, and its size, if the leaf's node has the key; `ABSENT`, or `UNSETTLED` if it cannot be."""
    if offset > page_bytes - _NODE_HEADER:
        return UNSETTLED, 0
    node = here + offset
    size = u16(pages, node + 6)
    if offset + _NODE_HEADER + size > page_bytes:
        return UNSETTLED, 0
    if size != key_size or not _same(pages, node + _NODE_HEADER, keys, key_start, key_size):
        return ABSENT, 0
    return _value(pages, node, here, page_bytes, page_count)


@njit(**_options)
def locate(pages, page_bytes, page_count, root, depth, keys, key_offsets, masks, at, size):
    """Walk LMDB's tree for each key: where in `pages` its value is, or `ABSENT`, or `UNSETTLED`.

    `keys` are whole keys, one after the other, with 16 bytes behind the last; ``masks[n]`` keeps the first n of 16
    bytes. Whatever the pages hold, just the first `page_count` of them are read, which `pages` has.
    """
    page, base, count, probe = np.empty((4, _LANES), dtype=np.int64)
    half_left, key_start, key_size = np.empty((3, _LANES), dtype=np.int64)
    # What the key shares with the greatest node known to be below it, with the least above, and with all between.
    below, above, skip = np.empty((3, _LANES), dtype=np.int64)
    first, second = np.empty((2, _LANES), dtype=np.uint64)
    sound = np.empty(_LANES, dtype=np.bool_)
    words_end = page_bytes - _NODE_HEADER - 16
    for begin in range(0, len(key_offsets) - 1, _LANES):
        lanes = min(_LANES, len(key_offsets) - 1 - begin)
        for lane in range(lanes):
            start = key_start[lane] = key_offsets[begin + lane]
            key_size[lane] = key_offsets[begin + lane + 1] - start
            below[lane] = above[lane] = skip[lane] = 0
            page[lane] = root
            sound[lane] = True
            at[begin + lane] = UNSETTLED
        for level in range(depth):
            flags = _LEAF if level == depth - 1 else _BRANCH
            for lane in range(lanes):
                start, kept = key_start[lane] + skip[lane], min(key_size[lane] - skip[lane], 16)
                first[lane] = big_endian(keys, start) & masks[kept, 0]
                second[lane] = big_endian(keys, start + 8) & masks[kept, 1]
            most = _enter_pages(pages, page_bytes, flags, lanes, page, base, count, probe, sound)
            # The last node whose key is not greater; a branch's first stands for all that is less than its second.
            while most > 1:
                most -= most >> 1
                if _halve(
                    pages, words_end, lanes, page, base, count, probe, half_left, skip, first, second, key_size, masks
                ):
                    _decide(
                        pages, page_bytes, lanes, page, base, count, probe, sound, half_left, keys, key_start, key_size
                    )
            for lane in range(lanes):
                here, offset = page[lane], probe[lane]
                page[lane] = 0
                if flags == _BRANCH and sound[lane]:
                    if key_size[lane] > 16:
                        start, whole = key_start[lane], key_size[lane]
                        if base[lane] > 0:
                            below[lane] = _agree(pages, page_bytes, here, base[lane], skip[lane], keys, start, whole)
                        if base[lane] + 1 < (u16(pages, here + 12) - _PAGE_HEADER) >> 1:
                            above[lane] = _agree(
                                pages, page_bytes, here, base[lane] + 1, skip[lane], keys, start, whole
                            )
                        skip[lane] = min(below[lane], above[lane], words_end)
                    page[lane] = _child(pages, page_bytes, page_count, here, offset)
                    sound[lane] = page[lane] > 0
                    prefetch(pages, page[lane] * page_bytes)
                elif sound[lane]:
                    at[begin + lane], size[begin + lane] = _found(
                        pages, page_bytes, page_count, here, offset, keys, key_start[lane], key_size[lane]
                    )
