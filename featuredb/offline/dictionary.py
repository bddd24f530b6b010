"""Entity keys of many rows to integer codes: the dictionary of a key space, hashed in memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.limits import KEYS_PER_BLOCK
from featuredb.offline import kernels
from featuredb.schema import DType
from featuredb.storage.encode import distinct, taken
from featuredb.storage.env import ReadTxn
from featuredb.storage.keys import key_words
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.segment import frozen
from featuredb.threads import over_items, ranges

# Below this many keys a look-up in the tree beats reading the whole dictionary.
TREE_LOOKUPS_MAX = 512
# Room for distinct keys to begin with when rows are numbered.
_DISTINCT_MIN = 1 << 12


def _table(entries: int) -> NDArray[np.int32]:
    """An empty hash table at most half full with `entries`."""
    return np.full(1 << max(4, int(2 * entries - 1).bit_length()), -1, dtype=np.int32)


def _words(keys: Heap, width: int) -> NDArray[np.uint64]:
    """Keys of `width` <= 8 bytes each as 64-bit words."""
    padded = np.zeros((len(keys), 8), dtype=np.uint8)
    padded[:, :width] = keys.data.reshape(-1, width)
    return padded.view("<u8").reshape(-1)


def word_width(dtypes: tuple[DType, ...]) -> int:
    """Bytes of a key of these dtypes if it has a fixed width of at most 8, else 0."""
    if any(dtype.is_variable for dtype in dtypes):
        return 0
    width = sum(dtype.numpy.itemsize for dtype in dtypes)
    return width if width <= 8 else 0


def number_keys(columns: Sequence[Column]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Numbers for the distinct keys of the rows of `columns` (one for each entity, without nulls).

    Returns each row's number, and the first row of each, which ascend. Cost: linear; only distinct keys are encoded.
    """
    if word_width(tuple(column.dtype for column in columns)):
        return _number_words(key_words(columns, slice(None)))
    numbers, firsts = _number_column(columns[0])
    for column in columns[1:]:
        more, _ = _number_column(column)
        numbers, firsts = _number_words(numbers.astype(np.uint64) << np.uint64(32) | more.astype(np.uint64))
    return numbers, firsts


def _number_column(column: Column) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if column.heap is None:
        return _number_words(key_words([column], slice(None)))
    places = distinct(column).data
    return _number_words(places.astype(np.uint64))


def _number_words(words: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """As `number_keys`, each part of the rows by a thread of its own."""
    numbers = np.empty(len(words), dtype=np.int32)
    parts = ranges(len(words))
    firsts: dict[int, NDArray[np.int32]] = {}

    def number(part: tuple[int, int]) -> None:
        start, stop = part
        firsts[start] = start + _number_part(words[start:stop], numbers[start:stop])

    over_items(parts, number)
    if len(parts) == 1:
        return numbers, firsts[0]
    found = np.concatenate([firsts[start] for start, _ in parts])
    joint = np.empty(len(found), dtype=np.int32)
    joint_firsts = _number_part(words[found], joint)
    offsets = np.cumsum([0, *(len(firsts[start]) for start, _ in parts)])

    def renumber(place: int) -> None:
        part = numbers[slice(*parts[place])]
        part[:] = taken(joint[offsets[place] : offsets[place + 1]], part)

    over_items(range(len(parts)), renumber)
    return numbers, found[joint_firsts]


def _number_part(words: NDArray[np.uint64], numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Fill `numbers`; the first row of each."""
    held = np.empty(_DISTINCT_MIN, dtype=np.uint64)
    firsts = np.empty(_DISTINCT_MIN, dtype=np.int32)
    row, count = kernels.factorize_words(words, 0, 0, _table(len(held)), held, firsts, numbers)
    while row < len(words):
        # The table grows with the distinct keys, and so stays in the cache where they are few.
        held, firsts = np.resize(held, 2 * count), np.resize(firsts, 2 * count)
        table = _table(len(held))
        kernels.insert_words(held[:count], 0, table)
        row, count = kernels.factorize_words(words, row, count, table, held, firsts, numbers)
    return firsts[:count]


class KeyDictionary:
    """The keys of a key space in memory, read once and extended as the space grows.

    Codes are never reused and keys never change, so one dictionary serves every transaction: a code
    that an older transaction does not know yet occurs in none of its segments. Memory: the key bytes
    and about 20 bytes for each key.
    """

    def __init__(self, space_id: int, dtypes: tuple[DType, ...]) -> None:
        self._space = KeySpace(space_id)
        self._width = word_width(dtypes)
        self._lock = threading.Lock()
        self._keys = Heap.of([])
        self._words = np.zeros(0, dtype=np.uint64)
        self._slots = _table(0)

    def _extend(self, txn: ReadTxn) -> None:
        known = len(self._keys)
        if self._space.count(txn) <= known:
            return
        block, used = divmod(known, KEYS_PER_BLOCK)
        heaps = list(self._space.blocks(txn, block))
        parts = [self._keys, heaps[0].take(np.arange(used, len(heaps[0]))), *heaps[1:]]
        keys = Heap.concat(parts)
        slots, first = self._slots, known
        if 2 * len(keys) > len(slots):
            slots, first = _table(2 * len(keys)), 0
        else:
            slots = slots.copy()  # other threads may be searching the old one
        if self._width:
            self._words = _words(keys, self._width)
            kernels.insert_words(self._words, first, slots)
        else:
            kernels.insert_bytes(frozen(keys.offsets), frozen(keys.data), first, slots)
        self._keys, self._slots = keys, slots

    def lookup(self, txn: ReadTxn, keys: Heap) -> NDArray[np.int32]:
        """The code of each key, -1 where unknown."""
        if len(keys) <= TREE_LOOKUPS_MAX and not len(self._keys):
            return self._space.lookup(txn, keys.tolist())
        with self._lock:
            self._extend(txn)
            held, words, slots = self._keys, self._words, self._slots
        out = np.empty(len(keys), dtype=np.int32)
        if self._width:
            kernels.find_words(_words(keys, self._width), words, slots, out)
        else:
            heaps = (frozen(array) for array in (keys.offsets, keys.data, held.offsets, held.data))
            kernels.find_bytes(*heaps, slots, out)
        return out

    def keys(self, txn: ReadTxn, codes: NDArray[np.int32]) -> Heap:
        """The key bytes of each code."""
        with self._lock:
            self._extend(txn)
            return self._keys.take(codes)
