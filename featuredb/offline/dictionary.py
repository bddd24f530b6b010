"""Entity keys of many rows to integer codes: the dictionary of a key space, hashed in memory."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Heap
from featuredb.limits import KEYS_PER_BLOCK
from featuredb.offline import kernels
from featuredb.schema import DType
from featuredb.storage.env import ReadTxn
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.segment import frozen

# Below this many keys a look-up in the tree beats reading the whole dictionary.
TREE_LOOKUPS_MAX = 512


def _table(entries: int) -> NDArray[np.int32]:
    """An empty hash table at most half full with `entries`."""
    return np.full(1 << max(4, int(2 * entries - 1).bit_length()), -1, dtype=np.int32)


def _words(keys: Heap, width: int) -> NDArray[np.uint64]:
    """Keys of `width` <= 8 bytes each as 64-bit words; zero where there is no key."""
    padded = np.zeros((len(keys), 8), dtype=np.uint8)
    whole = slice(None) if len(keys.data) == width * len(keys) else np.diff(keys.offsets) > 0
    padded[whole, :width] = keys.data.reshape(-1, width)
    return padded.view("<u8").reshape(-1)


def word_width(dtypes: tuple[DType, ...]) -> int:
    """Bytes of a key of these dtypes if it has a fixed width of at most 8, else 0."""
    if any(dtype.is_variable for dtype in dtypes):
        return 0
    width = sum(dtype.numpy.itemsize for dtype in dtypes)
    return width if width <= 8 else 0


def factorize(keys: Heap, dtypes: tuple[DType, ...]) -> tuple[NDArray[np.int32], Heap]:
    """Each key's number, and the distinct keys in order of appearance."""
    out = np.empty(len(keys), dtype=np.int32)
    firsts = np.empty(len(keys), dtype=np.int32)
    width = word_width(dtypes)
    if width:
        count = kernels.factorize_words(_words(keys, width), _table(len(keys)), out, firsts)
    else:
        count = kernels.factorize_bytes(frozen(keys.offsets), frozen(keys.data), _table(len(keys)), out, firsts)
    return out, keys.take(firsts[:count])


class KeyDictionary:
    """The keys of a key space in memory, read once and extended as the space grows.

    Codes are never given again, so one dictionary serves every transaction in which the same keys have been
    forgotten: a code that an older transaction does not know yet occurs in none of its segments. For a transaction
    of another generation, older or newer, it is read anew. Memory: the key bytes and about 20 bytes for each key.
    """

    def __init__(self, space_id: int, dtypes: tuple[DType, ...]) -> None:
        self._space = KeySpace(space_id)
        self._width = word_width(dtypes)
        self._lock = threading.Lock()
        self._generation = 0
        self._keys = Heap.of([])
        self._words = np.zeros(0, dtype=np.uint64)
        self._slots = _table(0)

    def _extend(self, txn: ReadTxn) -> None:
        generation = self._space.generation(txn)
        if generation != self._generation:
            self._generation, self._keys, self._slots = generation, Heap.of([]), _table(0)
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
            self._insert_words(keys, first, slots)
        else:
            kernels.insert_bytes(frozen(keys.offsets), frozen(keys.data), first, slots)
        self._keys, self._slots = keys, slots

    def _insert_words(self, keys: Heap, first: int, slots: NDArray[np.int32]) -> None:
        """Enter the words from `first` on, save those of forgotten keys: each word may be a key's."""
        gaps = first + np.flatnonzero(np.diff(keys.offsets[first:]) == 0)
        for start, stop in zip([first, *(gaps + 1).tolist()], [*gaps.tolist(), len(keys)], strict=True):
            kernels.insert_words(self._words[:stop], start, slots)

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
