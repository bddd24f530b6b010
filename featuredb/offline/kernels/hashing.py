"""Hash tables of entity keys, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from featuredb.storage.kernels import hash_bytes, mix, same_bytes

# Keys looked up in step.
LANES = 16
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
def find_words(queries, words, table, slots, out):
    """out[i] = code of queries[i], or -1. `slots` is scratch, of `LANES` integers.

    Queries are looked up `LANES` at a time, in steps: so their loads, which mostly miss the cache, overlap.
    """
    mask = np.uint64(len(table) - 1)
    for first in range(0, len(queries), LANES):
        count = min(LANES, len(queries) - first)
        for j in range(count):
            slots[j] = mix(queries[first + j]) & mask
        for j in range(count):
            out[first + j] = table[slots[j]]
        for j in range(count):
            query = queries[first + j]
            code = out[first + j]
            slot = slots[j]
            while code >= 0 and words[code] != query:
                slot = (slot + np.uint64(1)) & mask
                code = table[slot]
            out[first + j] = code


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
def find_bytes(query_offsets, query_data, offsets, data, table, slots, out):
    """As `find_words`, of the i-th query entry in the heap that `table` indexes: half the time of one by one."""
    mask = np.uint64(len(table) - 1)
    queries = len(query_offsets) - 1
    for first in range(0, queries, LANES):
        count = min(LANES, queries - first)
        for j in range(count):
            slots[j] = hash_bytes(query_data, query_offsets[first + j], query_offsets[first + j + 1]) & mask
        for j in range(count):
            out[first + j] = table[slots[j]]
        for j in range(count):
            start = query_offsets[first + j]
            stop = query_offsets[first + j + 1]
            code = out[first + j]
            slot = slots[j]
            while code >= 0 and not same_bytes(query_data, start, stop, data, offsets[code], offsets[code + 1]):
                slot = (slot + np.uint64(1)) & mask
                code = table[slot]
            out[first + j] = code


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
