"""The loops of batched online reads and writes, compiled by numba: arrays in, `out` arrays filled.

Callers validate, allocate and spread the work over threads by slicing. All kernels release the GIL. What they read of
the file is not trusted: `locate` checks every offset before it is used, and says where it could not.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_options = {"nogil": True, "cache": True, "boundscheck": False}

ABSENT, UNSETTLED = -1, -2
READ, BAD, OTHER_LAYOUT = 1, 2, 3
LOSES, WINS = 0, 1

# Keys walked in lock step: the cache misses of one key pass while others are compared. 8 to 64 are alike.
_LANES = 32
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG_VALUE = 1
_PAGE_HEADER, _NODE_HEADER = 16, 8
_ROW_HEADER = 30


# --- words at any address: the compiler makes one load of each -------------------------------------


@njit(inline="always", nogil=True)
def _u16(data, at):
    i = np.uint64(at)
    return np.int64(data[i]) | np.int64(data[i + np.uint64(1)]) << 8


@njit(inline="always", nogil=True)
def _u32(data, at):
    return _u16(data, at) | _u16(data, at + 2) << 16


@njit(inline="always", nogil=True)
def _u64(data, at):
    i = np.uint64(at)
    word = np.uint64(data[i])
    word |= np.uint64(data[i + np.uint64(1)]) << np.uint64(8)
    word |= np.uint64(data[i + np.uint64(2)]) << np.uint64(16)
    word |= np.uint64(data[i + np.uint64(3)]) << np.uint64(24)
    word |= np.uint64(data[i + np.uint64(4)]) << np.uint64(32)
    word |= np.uint64(data[i + np.uint64(5)]) << np.uint64(40)
    word |= np.uint64(data[i + np.uint64(6)]) << np.uint64(48)
    word |= np.uint64(data[i + np.uint64(7)]) << np.uint64(56)
    return word


@njit(inline="always", nogil=True)
def _big_endian(data, at):
    """Eight bytes as a number that orders as they do."""
    i = np.uint64(at)
    word = np.uint64(data[i]) << np.uint64(56)
    word |= np.uint64(data[i + np.uint64(1)]) << np.uint64(48)
    word |= np.uint64(data[i + np.uint64(2)]) << np.uint64(40)
    word |= np.uint64(data[i + np.uint64(3)]) << np.uint64(32)
    word |= np.uint64(data[i + np.uint64(4)]) << np.uint64(24)
    word |= np.uint64(data[i + np.uint64(5)]) << np.uint64(16)
    word |= np.uint64(data[i + np.uint64(6)]) << np.uint64(8)
    word |= np.uint64(data[i + np.uint64(7)])
    return word


# --- the walk ---------------------------------------------------------------------------------------


@njit(inline="always", nogil=True)
def _page_is(pages, page, page_bytes, number, flags):
    """Whether a page of the tree is what was expected, and has entries that may be looked at."""
    lower = _u16(pages, page + 12)
    return (
        _u64(pages, page) == np.uint64(number)
        and _u16(pages, page + 10) == flags
        and lower > _PAGE_HEADER
        and lower <= page_bytes
    )


@njit(inline="always", nogil=True)
def _value(pages, node, page, page_bytes, page_count):
    """Where the value of a leaf's node is, and its size; `UNSETTLED` if not where it could be."""
    flags = _u16(pages, node + 4)
    size = _u32(pages, node)
    at = node + _NODE_HEADER + _u16(pages, node + 6)
    if flags == 0:
        return (at, size) if at + size <= page + page_bytes else (UNSETTLED, 0)
    if flags != _BIG_VALUE or at + 8 > page + page_bytes:
        return UNSETTLED, 0
    number = np.int64(_u64(pages, at))
    if number < 2 or number >= page_count:
        return UNSETTLED, 0
    start = number * page_bytes
    span = _u32(pages, start + 12)
    if _u64(pages, start) != np.uint64(number) or _u16(pages, start + 10) != _OVERFLOW or span > page_count - number:
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
    differ = _u64(pages, at + size - 8) ^ _u64(keys, key_at + size - 8)
    for i in range(0, size - 8, 8):
        differ |= _u64(pages, at + i) ^ _u64(keys, key_at + i)
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
        one, two = _big_endian(pages, at + i), _big_endian(keys, key_at + i)
        if one != two:
            return one < two
    # The last eight bytes; that some of them are known to agree does no harm.
    one, two = _big_endian(pages, at + shared - 8), _big_endian(keys, key_at + shared - 8)
    return one < two or (one == two and size <= key_size)


@intrinsic
def _prefetch(_, data, at):
    """Ask for the cache line of ``data[at]``."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.gep(array.data, [args[1]]), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(data, types.int64), codegen


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
        count[lane] = (_u16(pages, here + 12) - _PAGE_HEADER) >> 1 if sound[lane] else 1
        most = max(most, count[lane])
        _prefetch(pages, here + _PAGE_HEADER + 2 * (count[lane] >> 1))
    for lane in range(lanes):
        probe[lane] = _u16(pages, page[lane] + _PAGE_HEADER + 2 * (count[lane] >> 1))
        _prefetch(pages, page[lane] + probe[lane])
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
        size = _u16(pages, node - skip[lane] + 6) - skip[lane]
        kept = max(min(size, 16), 0)
        one = _big_endian(pages, node + _NODE_HEADER) & masks[kept, 0]
        two = _big_endian(pages, node + _NODE_HEADER + 8) & masks[kept, 1]
        same = one == first[lane]
        even = same & (two == second[lane])
        key_left = key_size[lane] - skip[lane]
        precedes = (one < first[lane]) | (same & (two < second[lane])) | (even & (size <= key_left))
        undecided = (offset > words_end) | (even & (size > 16) & (key_left > 16))
        half_left[lane] = half * np.int64(undecided)
        left |= undecided & (half > 0)
        base[lane] += half * np.int64(precedes & (not undecided))
        count[lane] -= half
        probe[lane] = _u16(pages, page[lane] + _PAGE_HEADER + 2 * (base[lane] + (count[lane] >> 1)))
        _prefetch(pages, page[lane] + probe[lane])
    return left


@njit(nogil=True, cache=True)
def _decide(pages, page_bytes, lanes, page, base, count, probe, sound, half_left, keys, key_start, key_size):
    """Finish the step of lanes whose node is at the end of its page, or agrees in 16 bytes."""
    for lane in range(lanes):
        half = half_left[lane]
        if half == 0:
            continue
        here = page[lane]
        offset = _u16(pages, here + _PAGE_HEADER + 2 * (base[lane] + half))
        sound[lane] &= offset <= page_bytes - _NODE_HEADER
        size = _u16(pages, here + offset + 6) if sound[lane] else 0
        sound[lane] &= offset + _NODE_HEADER + size <= page_bytes
        if sound[lane] and _precedes(pages, here + offset + _NODE_HEADER, size, keys, key_start[lane], key_size[lane]):
            base[lane] += half
            probe[lane] = _u16(pages, here + _PAGE_HEADER + 2 * (base[lane] + (count[lane] >> 1)))
            _prefetch(pages, here + probe[lane])


@njit(nogil=True, cache=True)
def _agree(pages, page_bytes, here, place, known, keys, key_start, key_size):
    """How many bytes the key shares with that of a node, which are `known` at least if the page is sound."""
    offset = _u16(pages, here + _PAGE_HEADER + 2 * place)
    if offset > page_bytes - _NODE_HEADER:
        return 0
    size = min(_u16(pages, here + offset + 6), key_size)
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
    number = _u32(pages, here + offset) | _u16(pages, here + offset + 4) << 32
    return number if 2 <= number < page_count else 0


@njit(inline="always", nogil=True)
def _found(pages, page_bytes, page_count, here, offset, keys, key_start, key_size):
    """Where the value is, and its size, if the leaf's node has the key; `ABSENT`, or `UNSETTLED` if it cannot be."""
    if offset > page_bytes - _NODE_HEADER:
        return UNSETTLED, 0
    node = here + offset
    size = _u16(pages, node + 6)
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
                first[lane] = _big_endian(keys, start) & masks[kept, 0]
                second[lane] = _big_endian(keys, start + 8) & masks[kept, 1]
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
                        if base[lane] + 1 < (_u16(pages, here + 12) - _PAGE_HEADER) >> 1:
                            above[lane] = _agree(
                                pages, page_bytes, here, base[lane] + 1, skip[lane], keys, start, whole
                            )
                        skip[lane] = min(below[lane], above[lane], words_end)
                    page[lane] = _child(pages, page_bytes, page_count, here, offset)
                    sound[lane] = page[lane] > 0
                    _prefetch(pages, page[lane] * page_bytes)
                elif sound[lane]:
                    at[begin + lane], size[begin + lane] = _found(
                        pages, page_bytes, page_count, here, offset, keys, key_start[lane], key_size[lane]
                    )


# --- rows -------------------------------------------------------------------------------------------


@njit(inline="always", nogil=True)
def _crc32(data, at, stop, tables):
    """The CRC-32 of zlib, eight bytes a step; ``tables[256 * n + byte]`` is that of a byte and `n` zero bytes."""
    crc = np.uint64(0xFFFFFFFF)
    while at + 8 <= stop:
        word = _u64(data, at) ^ crc
        crc = np.uint64(
            tables[np.uint64(1792) + (word & np.uint64(255))]
            ^ tables[np.uint64(1536) + (word >> np.uint64(8) & np.uint64(255))]
            ^ tables[np.uint64(1280) + (word >> np.uint64(16) & np.uint64(255))]
            ^ tables[np.uint64(1024) + (word >> np.uint64(24) & np.uint64(255))]
            ^ tables[np.uint64(768) + (word >> np.uint64(32) & np.uint64(255))]
            ^ tables[np.uint64(512) + (word >> np.uint64(40) & np.uint64(255))]
            ^ tables[np.uint64(256) + (word >> np.uint64(48) & np.uint64(255))]
            ^ tables[word >> np.uint64(56)]
        )
        at += 8
    while at < stop:
        crc = np.uint64(tables[(crc ^ np.uint64(data[np.uint64(at)])) & np.uint64(255)]) ^ (crc >> np.uint64(8))
        at += 1
    return np.int64(crc ^ np.uint64(0xFFFFFFFF))


@njit(inline="always", nogil=True)
def _state(data, at, size, tables, version, fixed_bytes, variable):
    """Whether a row has its checksum, the layout asked for, and the length that follows from it."""
    if size < _ROW_HEADER or _crc32(data, at + 4, at + size, tables) != _u32(data, at):
        return BAD
    if _u16(data, at + 4) != version:
        return OTHER_LAYOUT
    length = np.int64(fixed_bytes)
    if length > size:
        return BAD
    for i in range(len(variable)):
        length += _u32(data, at + variable[i, 0])
    return READ if length == size else BAD


@njit(inline="always", nogil=True)
def _is_set(data, start, null):
    """Whether the value with this null bit is there."""
    return data[np.uint64(start + _ROW_HEADER + (null >> 3))] >> (null & 7) & 1 ^ 1


@njit(**_options)
def decode(
    data, at, size, begin, end, tables, version, fixed_bytes, fields, variable, state, head, bytes1, bytes2, bytes4,
    bytes8, valid, spans,
):  # fmt: skip
    """Spread the rows from `begin` up to `end` over columns; a row whose `at` is negative is left as it is.

    ``fields[i]`` is the offset of a value in the row, its width in bytes, the bit that says it is null, its output
    column, and where that begins in the buffer that ``bytes1`` to ``bytes8`` are views of; ``variable[i]`` the offset
    of a length, the bit, the output column (-1: not wanted) and the first of two rows of `spans`, for place and length.
    ``head`` takes event, created, commit and layout, `valid` has flags for each output column, `state` says what
    became of a row.
    """
    for row in range(begin, end):
        start = at[row]
        if start < 0:
            continue
        found = _state(data, start, size[row], tables, version, fixed_bytes, variable)
        state[row] = found
        if found != BAD:
            head[3, row] = _u16(data, start + 4)
        if found != READ:
            continue
        head[0, row] = np.int64(_u64(data, start + 6))
        head[1, row] = np.int64(_u64(data, start + 14))
        head[2, row] = np.int64(_u64(data, start + 22))
        for i in range(len(fields)):
            source = start + fields[i, 0]
            width, null, target = fields[i, 1], fields[i, 2], fields[i, 4]
            valid[fields[i, 3], row] = _is_set(data, start, null)
            if width == 8:
                bytes8[(target >> 3) + row] = _u64(data, source)
            elif width == 4:
                bytes4[(target >> 2) + row] = _u32(data, source)
            elif width == 1:
                bytes1[target + row] = data[np.uint64(source)]
            elif width == 2:
                bytes2[(target >> 1) + row] = _u16(data, source)
            else:
                target += width * row
                for j in range(width):
                    bytes1[np.uint64(target + j)] = data[np.uint64(source + j)]
        cursor = start + fixed_bytes
        for i in range(len(variable)):
            length = _u32(data, start + variable[i, 0])
            if variable[i, 2] >= 0:
                valid[variable[i, 2], row] = _is_set(data, start, variable[i, 1])
                spans[variable[i, 3], row] = cursor
                spans[variable[i, 3] + 1, row] = length
            cursor += length


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
        # FNV-1a over words, stirred at the end (the multiplier of MurmurHash3's finalizer).
        hashed = np.uint64(length)
        i = start
        while i + 8 <= start + length:
            hashed = (hashed ^ _u64(data, i)) * np.uint64(0x100000001B3)
            hashed ^= hashed >> np.uint64(29)
            i += 8
        while i < start + length:
            hashed = (hashed ^ np.uint64(data[np.uint64(i)])) * np.uint64(0x100000001B3)
            i += 1
        hashed = (hashed ^ hashed >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
        slot = (hashed ^ hashed >> np.uint64(33)) & mask
        while True:
            code = slots[slot]
            if code < 0:
                slots[slot] = count
                firsts[count] = row
                codes[row] = count
                count += 1
                break
            other = firsts[code]
            if lengths[other] == length:
                same = True
                for j in range(length):
                    if data[np.uint64(starts[other] + j)] != data[np.uint64(start + j)]:
                        same = False
                        break
                if same:
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


# --- rows to be written -----------------------------------------------------------------------------


@njit(**_options)
def checksum(data, offsets, tables):
    """Put before each row its checksum, in the first four of its bytes."""
    for row in range(len(offsets) - 1):
        start = offsets[row]
        crc = _crc32(data, start + 4, offsets[row + 1], tables)
        for i in range(4):
            data[np.uint64(start + i)] = crc >> (8 * i) & 255


@njit(**_options)
def compare(data, at, size, fresh, fresh_offsets, tables, outcome):
    """Which fresh rows are to replace the stored ones: `LOSES`, `WINS`, `BAD`, or `OTHER_LAYOUT` if that decides.

    A row whose `at` is negative is left as it is. The later in (event, created, commit) counts, unless the values are
    the same.
    """
    for row in range(len(at)):
        one = at[row]
        if one < 0:
            continue
        end, other = one + size[row], fresh_offsets[row]
        if size[row] < _ROW_HEADER or _crc32(data, one + 4, end, tables) != _u32(data, one):
            outcome[row] = BAD
            continue
        event, created = np.int64(_u64(data, one + 6)), np.int64(_u64(data, one + 14))
        fresh_event, fresh_created = np.int64(_u64(fresh, other + 6)), np.int64(_u64(fresh, other + 14))
        if fresh_event != event or fresh_created != created:
            later = fresh_event > event or (fresh_event == event and fresh_created > created)
            outcome[row] = WINS if later else LOSES
        elif _u64(fresh, other + 22) < _u64(data, one + 22):
            # Of two that are one row, the later commit's values count: history may have been left behind.
            outcome[row] = LOSES
        elif _u16(fresh, other + 4) != _u16(data, one + 4):
            outcome[row] = OTHER_LAYOUT
        else:
            same = size[row] == fresh_offsets[row + 1] - other
            for i in range(_ROW_HEADER, size[row] if same else 0):
                same &= data[np.uint64(one + i)] == fresh[np.uint64(other + i)]
            outcome[row] = LOSES if same else WINS
