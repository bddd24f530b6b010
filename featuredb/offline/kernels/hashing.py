"""Hash tables of entity keys, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

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
