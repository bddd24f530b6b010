"""Packed rows to columns, and compared, compiled. See `featuredb.online.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from featuredb.online.kernels.checking import BAD, ROW_HEADER, check, crc32
from featuredb.online.kernels.words import u16, u32, u64

_options = {"nogil": True, "cache": True, "boundscheck": False}

OTHER_LAYOUT = 3
LOSES, WINS = 0, 1


@njit(inline="always", nogil=True)
def _fits(data, at, size, fixed_bytes, variable):
    """Whether a row has the length that follows from its layout."""
    length = np.int64(fixed_bytes)
    if length > size:
        return False
    for i in range(len(variable)):
        length += u32(data, at + variable[i, 0])
    return length == size


@njit(inline="always", nogil=True)
def _is_set(data, start, null):
    """Whether the value with this null bit is there."""
    return data[np.uint64(start + ROW_HEADER + (null >> 3))] >> (null & 7) & 1 ^ 1


@njit(**_options)
def decode(
    data, at, size, keys, key_offsets, begin, end, tables, version, fixed_bytes, fields, variable, state, head, bytes1,
    bytes2, bytes4, bytes8, valid, spans,
):  # fmt: skip
    """Spread the rows from `begin` up to `end` over columns; a row whose `at` is negative is left as it is.

    ``fields[i]`` is the offset of a value in the row, its width in bytes, the bit that says it is null, its output
    column, and where that begins in the buffer that ``bytes1`` to ``bytes8`` are views of; ``variable[i]`` the offset
    of a length, the bit, the output column (-1: not wanted) and the first of two rows of `spans`, for place and length.
    ``head`` takes event, created, commit and layout, `valid` has flags for each output column, `state` says what
    became of a row.
    """
    check(data, at, size, keys, key_offsets, begin, end, tables, state)
    for row in range(begin, end):
        start = at[row]
        if start < 0 or state[row] == BAD:
            continue
        head[3, row] = u16(data, start + 4)
        if head[3, row] != version:
            state[row] = OTHER_LAYOUT
            continue
        if not _fits(data, start, size[row], fixed_bytes, variable):
            state[row] = BAD
            continue
        head[0, row] = np.int64(u64(data, start + 6))
        head[1, row] = np.int64(u64(data, start + 14))
        head[2, row] = np.int64(u64(data, start + 22))
        for i in range(len(fields)):
            source = start + fields[i, 0]
            width, null, target = fields[i, 1], fields[i, 2], fields[i, 4]
            valid[fields[i, 3], row] = _is_set(data, start, null)
            if width == 8:
                bytes8[(target >> 3) + row] = u64(data, source)
            elif width == 4:
                bytes4[(target >> 2) + row] = u32(data, source)
            elif width == 1:
                bytes1[target + row] = data[np.uint64(source)]
            elif width == 2:
                bytes2[(target >> 1) + row] = u16(data, source)
            else:
                target += width * row
                for j in range(width):
                    bytes1[np.uint64(target + j)] = data[np.uint64(source + j)]
        cursor = start + fixed_bytes
        for i in range(len(variable)):
            length = u32(data, start + variable[i, 0])
            if variable[i, 2] >= 0:
                valid[variable[i, 2], row] = _is_set(data, start, variable[i, 1])
                spans[variable[i, 3], row] = cursor
                spans[variable[i, 3] + 1, row] = length
            cursor += length


@njit(inline="always", nogil=True)
def _last_word(data, start, length):
    """The last eight bytes of a value, or all of a shorter one. The header of its row stands before it."""
    if length == 0:
        return np.uint64(0)
    return u64(data, start + length - 8) >> np.uint64(64 - 8 * min(length, 8))


@njit(inline="always", nogil=True)
def _hash(data, start, length):
    """FNV-1a over words, then the finalizer of MurmurHash3 (Appleby, public domain)."""
    hashed = np.uint64(length)
    for i in range(0, length - 8, 8):
        hashed = (hashed ^ u64(data, start + i)) * np.uint64(0x100000001B3)
        hashed ^= hashed >> np.uint64(29)
    hashed ^= _last_word(data, start, length)
    hashed = (hashed ^ hashed >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    hashed = (hashed ^ hashed >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashed ^ hashed >> np.uint64(33)


@njit(inline="always", nogil=True)
def _same(data, one, other, length):
    """Whether two values of one length are the same."""
    differ = _last_word(data, one, length) ^ _last_word(data, other, length)
    for i in range(0, length - 8, 8):
        differ |= u64(data, one + i) ^ u64(data, other + i)
    return differ == np.uint64(0)


@njit(**_options)
def distinct(data, starts, lengths, chosen, slots, codes, firsts):
    """Number the distinct values of the `chosen` rows in `codes`, the first row of each in `firsts`; their count.

    `slots` is a table of a power of two, larger than the rows, filled with -1.
    """
    mask = np.uint64(len(slots) - 1)
    count = 0
    for row in range(len(starts)):
        if not chosen[row]:
            continue
        start, length = starts[row], lengths[row]
        slot = _hash(data, start, length) & mask
        while True:
            code = slots[slot]
            if code < 0:
                slots[slot] = count
                firsts[count] = row
                codes[row] = count
                count += 1
                break
            other = firsts[code]
            if lengths[other] == length and _same(data, starts[other], start, length):
                codes[row] = code
                break
            slot = (slot + np.uint64(1)) & mask
    return count


@njit(**_options)
def copy_spans(data, starts, lengths, targets, out):
    """``lengths[i]`` bytes from ``starts[i]`` on to ``targets[i]`` and on."""
    for i in range(len(starts)):
        source, target = starts[i], targets[i]
        for j in range(lengths[i]):
            out[np.uint64(target + j)] = data[np.uint64(source + j)]


@njit(**_options)
def compare(data, at, size, keys, key_offsets, fresh, fresh_offsets, tables, outcome):
    """Which fresh rows are to replace the stored ones: `LOSES`, `WINS`, `BAD`, or `OTHER_LAYOUT` if that decides.

    A row whose `at` is negative is left as it is. The later in (event, created, commit) counts, unless the values are
    the same.
    """
    for row in range(len(at)):
        one = at[row]
        if one < 0:
            continue
        end, other = one + size[row], fresh_offsets[row]
        first, last = key_offsets[row], key_offsets[row + 1]
        if size[row] < ROW_HEADER or crc32(data, one + 4, end, keys, first, last, tables) != u32(data, one):
            outcome[row] = BAD
            continue
        event, created = np.int64(u64(data, one + 6)), np.int64(u64(data, one + 14))
        fresh_event, fresh_created = np.int64(u64(fresh, other + 6)), np.int64(u64(fresh, other + 14))
        if fresh_event != event or fresh_created != created:
            later = fresh_event > event or (fresh_event == event and fresh_created > created)
            outcome[row] = WINS if later else LOSES
        elif u64(fresh, other + 22) < u64(data, one + 22):
            # Of two that are one row, the later commit's values count: history may have been left behind.
            outcome[row] = LOSES
        elif u16(fresh, other + 4) != u16(data, one + 4):
            outcome[row] = OTHER_LAYOUT
        else:
            same = size[row] == fresh_offsets[row + 1] - other
            for i in range(ROW_HEADER, size[row] if same else 0):
                same &= data[np.uint64(one + i)] == fresh[np.uint64(other + i)]
            outcome[row] = LOSES if same else WINS
