"""The loops over the bytes of chunks, compiled by numba: arrays in, `out` arrays filled.

Callers validate, allocate and spread the work over threads by slicing. All kernels release the GIL.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# Division by zero gives an infinity, as in C, and not an exception.
_options = {"nogil": True, "cache": True, "boundscheck": False, "error_model": "numpy"}

_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@njit(inline="always", nogil=True)
def _rotated(word, bits):
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@njit(inline="always", nogil=True)
def _round(state, word):
    return _rotated(state + word * _PRIME_2, 31) * _PRIME_1


@njit(inline="always", nogil=True)
def _merged(state, lane):
    return (state ^ _round(np.uint64(0), lane)) * _PRIME_1 + _PRIME_4


@njit(**_options)
def xxh64(words, tail):
    """XXH64 (Collet, xxHash specification 0.1.1) with seed 0 of 64-bit `words` and up to 7 bytes behind them."""
    count = len(words)
    i = 0
    if count >= 4:
        one = _PRIME_1 + _PRIME_2
        two = _PRIME_2
        three = np.uint64(0)
        four = np.uint64(0) - _PRIME_1
        while i + 4 <= count:
            one = _round(one, words[i])
            two = _round(two, words[i + 1])
            three = _round(three, words[i + 2])
            four = _round(four, words[i + 3])
            i += 4
        state = _rotated(one, 1) + _rotated(two, 7) + _rotated(three, 12) + _rotated(four, 18)
        state = _merged(_merged(_merged(_merged(state, one), two), three), four)
    else:
        state = _PRIME_5
    state += np.uint64(8 * count + len(tail))
    while i < count:
        state = _rotated(state ^ _round(np.uint64(0), words[i]), 27) * _PRIME_1 + _PRIME_4
        i += 1
    j = 0
    if len(tail) >= 4:
        half = np.uint64(tail[0]) | np.uint64(tail[1]) << np.uint64(8)
        half |= np.uint64(tail[2]) << np.uint64(16) | np.uint64(tail[3]) << np.uint64(24)
        state = _rotated(state ^ half * _PRIME_1, 23) * _PRIME_2 + _PRIME_3
        j = 4
    while j < len(tail):
        state = _rotated(state ^ np.uint64(tail[j]) * _PRIME_5, 11) * _PRIME_1
        j += 1
    state ^= state >> np.uint64(33)
    state *= _PRIME_2
    state ^= state >> np.uint64(29)
    state *= _PRIME_3
    return state ^ (state >> np.uint64(32))


@njit(inline="always", nogil=True)
def mix(word):
    """The finalizer of MurmurHash3 (Appleby, public domain): every input bit reaches every output bit."""
    word ^= word >> np.uint64(33)
    word *= np.uint64(0xFF51AFD7ED558CCD)
    word ^= word >> np.uint64(33)
    word *= np.uint64(0xC4CEB9FE1A85EC53)
    word ^= word >> np.uint64(33)
    return word


@intrinsic
def _load_word(_, array, place):
    """The 8 bytes of an array of bytes from `place` on, as an integer."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer()), align=1)

    return types.uint64(array, types.int64), codegen


@njit(nogil=True)
def _word(data, start, stop):
    """The bytes from `start` up to `stop`, 8 at most, as an integer."""
    if start + 8 <= len(data):
        word = _load_word(data, start)
        return word if stop - start >= 8 else word & ((np.uint64(1) << np.uint64(8 * (stop - start))) - np.uint64(1))
    word = np.uint64(0)
    for j in range(min(stop - start, 8)):
        word |= np.uint64(data[start + j]) << np.uint64(8 * j)
    return word


@njit(nogil=True)
def hash_bytes(data, start, stop):
    state = np.uint64(stop - start)
    for i in range(start, stop, 8):
        state = mix(state ^ _word(data, i, stop)) + np.uint64(0x9E3779B97F4A7C15)
    return state


@njit(nogil=True)
def same_bytes(a, a_start, a_stop, b, b_start, b_stop):
    if a_stop - a_start != b_stop - b_start:
        return False
    for i in range(0, a_stop - a_start, 8):
        if _word(a, a_start + i, a_stop) != _word(b, b_start + i, b_stop):
            return False
    return True


@njit(**_options)
def factorize_bytes(offsets, data, table, out, firsts):
    """Number the distinct entries in order of appearance: out[i] = number, firsts[number] = first entry.

    `table` is a hash table with open addressing and linear probing: a power of two of numbers, -1 everywhere.
    Returns the count of distinct entries.
    """
    mask = np.uint64(len(table) - 1)
    count = 0
    for i in range(len(offsets) - 1):
        start = offsets[i]
        stop = offsets[i + 1]
        slot = hash_bytes(data, start, stop) & mask
        code = table[slot]
        while code >= 0:
            first = firsts[code]
            if same_bytes(data, start, stop, data, offsets[first], offsets[first + 1]):
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
def take(values, places, out):
    """out[i] = values[places[i]]."""
    for i in range(len(places)):
        out[i] = values[places[i]]


@njit(**_options)
def mark(places, valid, out):
    """out[place] = True for all `places` that are not null; `valid` is empty or False where one is."""
    for i in range(len(places)):
        if len(valid) == 0 or valid[i]:
            out[places[i]] = True


@njit(**_options)
def take_entries(offsets, data, entries, bounds, out):
    """Entries of a heap one after the other: entry entries[i] to out[bounds[i]:bounds[i + 1]], which may be empty."""
    for i in range(len(entries)):
        source = offsets[entries[i]]
        target = bounds[i]
        for j in range(bounds[i + 1] - target):
            out[target + j] = data[source + j]


@njit(**_options)
def pack(values, valid, base, width, out):
    """values[i] - base in bits [i * width, (i + 1) * width) of `out`, which ends in a word of zeros.

    `valid` is empty, or False where a value is null: 0 is stored there. `width` is 1 to 64, and every value
    fits it. A word is written once it is full.
    """
    word = np.uint64(0)
    used = 0
    at = 0
    for i in range(len(values)):
        value = values[i] - base
        if len(valid) > 0 and not valid[i]:
            value = np.uint64(0)
        word |= value << np.uint64(used)
        used += width
        if used >= 64:
            out[at] = word
            at += 1
            used -= 64
            # What did not fit; a shift by 64 is undefined.
            word = value >> np.uint64(width - used) if used > 0 else np.uint64(0)
    if used > 0:
        out[at] = word


@njit(**_options)
def unpack(words, base, width, out):
    """The inverse of `pack`; `words` has one word more than the values take."""
    mask = _ALL >> np.uint64(64 - width)
    bit = 0
    for i in range(len(out)):
        at = bit >> 6
        shift = bit & 63
        value = words[at] >> np.uint64(shift)
        if shift + width > 64:
            value |= words[at + 1] << np.uint64(64 - shift)
        out[i] = (value & mask) + base
        bit += width


@njit(**_options)
def bounds(values, valid, flip, out):
    """Least and greatest of the values that are not null into out[0] and out[1]; `flip` is 2**63 if they are signed.

    Unsigned comparison orders signed values once their sign bits are flipped. There is a value that is not null.
    """
    least = _ALL
    greatest = np.uint64(0)
    for i in range(len(values)):
        if len(valid) == 0 or valid[i]:
            value = values[i] ^ flip
            least = min(least, value)
            greatest = max(greatest, value)
    out[0] = least ^ flip
    out[1] = greatest ^ flip


@njit(inline="always", nogil=True)
def _bits_equal(a, b):
    # Of two floats that are equal, only the zeros can differ in their bits; NaN is not equal to itself.
    return a == b and (a != 0.0 or 1.0 / a == 1.0 / b)


@njit(**_options)
def decimal_bounds(values, valid, scale, single, limit, out):
    """Whether all values are decimals: i / scale for an integer i, -limit < i < limit, bit for bit.

    With `single` they are float32, and so is the quotient. Least and greatest i go to out[0] and out[1]. Returns
    the first row whose value is not such a decimal, or -1. Nulls count as decimals.
    """
    least = limit
    greatest = -limit
    for i in range(len(values)):
        if len(valid) > 0 and not valid[i]:
            continue
        # Plus 0.0, for -0.0 is no integer.
        scaled = np.rint(values[i] * scale) + 0.0
        # NaN fails as well.
        if not (scaled > -limit and scaled < limit):
            return i
        quotient = scaled / scale
        if single:
            quotient = np.float64(np.float32(quotient))
        if not _bits_equal(quotient, values[i]):
            return i
        least = min(least, scaled)
        greatest = max(greatest, scaled)
    out[0] = np.int64(least)
    out[1] = np.int64(greatest)
    return -1


@njit(**_options)
def decimals(values, valid, scale, out):
    """The integers that `decimal_bounds` found, 0 where null."""
    for i in range(len(values)):
        out[i] = np.int64(np.rint(values[i] * scale)) if len(valid) == 0 or valid[i] else np.int64(0)
