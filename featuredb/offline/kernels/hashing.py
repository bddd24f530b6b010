"""Hash tables of entity keys, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from featuredb.storage.kernels import hash_bytes, mix, same_bytes

_options = {"nogil": True, "cache": True, "boundscheck": False}

# Open addressing with linear probing over a power-of-two table of codes, -1 where free.


@njit(**_options)
def insert_words(words, first, table):
    """Enter words[first:] into `table`; the place of a word is its code. Words are distinct."""
    mask = np.uint64(len(table) - 1)
    for code in range(first, len(words)):
        slot = mix(words[code]) & mask
        while table[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = code


@njit(**_options)
def find_words(queries, words, table, out):
    """out[i] = code of queries[i], or -1."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(queries)):
        query = queries[i]
        slot = mix(query) & mask
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
        slot = hash_bytes(data, offsets[code], offsets[code + 1]) & mask
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
        slot = hash_bytes(query_data, start, stop) & mask
        code = table[slot]
        while code >= 0 and not same_bytes(query_data, start, stop, data, offsets[code], offsets[code + 1]):
            slot = (slot + np.uint64(1)) & mask
            code = table[slot]
        out[i] = code


@njit(**_options)
def factorize_words(words, row, count, table, distinct, firsts, out):
    """Number the distinct words in order of appearance, from `row` on, where `count` are known.

    out[i] = number; distinct[number] = the word; firsts[number] = the first row that has it. Stops where a new word
    finds `distinct` full. Returns that row, or the end, and the count of distinct words.
    """
    mask = np.uint64(len(table) - 1)
    for i in range(row, len(words)):
        word = words[i]
        slot = mix(word) & mask
        code = table[slot]
        while code >= 0 and distinct[code] != word:
            slot = (slot + np.uint64(1)) & mask
            code = table[slot]
        if code < 0:
            if count == len(distinct):
                return i, count
            code = count
            table[slot] = code
            distinct[code] = word
            firsts[code] = i
            count += 1
        out[i] = code
    return len(words), count
