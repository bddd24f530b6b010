"""Hash tables of entity keys, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_options = {"nogil": True, "cache": True, "boundscheck": False}

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
def _hash_bytes(data, start, stop):
    state = np.uint64(stop - start)
    for i in range(start, stop, 8):
        state = _mix(state ^ _word(data, i, stop)) + np.uint64(0x9E3779B97F4A7C15)
    return state


@njit(nogil=True)
def _same_bytes(a, a_start, a_stop, b, b_start, b_stop):
    if a_stop - a_start != b_stop - b_start:
        return False
    for i in range(0, a_stop - a_start, 8):
        if _word(a, a_start + i, a_stop) != _word(b, b_start + i, b_stop):
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
