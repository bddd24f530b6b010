"""Entity keys of many rows to integer codes: the dictionary of a key space, hashed in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.limits import KEYS_PER_BLOCK
from featuredb.offline import kernels
from featuredb.schema import DType
from featuredb.storage.env import ReadTxn
from featuredb.storage.keys import encode_keys, key_words, too_long
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.segment import frozen
from featuredb.threads import over_rows

# So many look-ups in the tree cost less than reading the dictionary: of a small one, and for each key of a large one.
TREE_LOOKUPS_MAX = 512
TREE_LOOKUPS_PER_KEY = 1 / 16
# Keys are put into words so many at a time, in the cache.
_ROWS_AT_A_TIME = 1 << 14


def _table(entries: int) -> NDArray[np.int32]:
    """An empty hash table at most half full with `entries`."""
    return np.full(1 << max(4, int(2 * entries - 1).bit_length()), -1, dtype=np.int32)


def _words(keys: Heap, width: int) -> NDArray[np.uint64]:
    """Keys of `width` <= 8 bytes each as integers: see `key_words`."""
    padded = np.zeros((len(keys), 8), dtype=np.uint8)
    padded[:, 8 - width :] = keys.data.reshape(-1, width)
    return padded.view(">u8").reshape(-1).astype(np.uint64)


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


def _encoder(columns: Sequence[Column]) -> Callable[[slice], Heap]:
    """A function from some rows to their key bytes: `encode_keys` of the columns, for many rows."""
    heaps, lengths = [], []
    for column in columns:
        heap = column.heap
        length = np.empty(0 if heap is None else len(heap), dtype=np.int64)
        if heap is not None:
            heap = Heap(frozen(heap.offsets), frozen(heap.data))
            kernels.escaped_lengths(heap.offsets, heap.data, length)
        heaps.append(heap)
        lengths.append(length)

    def encode(rows: slice) -> Heap:
        sizes = np.zeros(rows.stop - rows.start, dtype=np.int64)
        for column, length in zip(columns, lengths, strict=True):
            sizes += length.take(column.data[rows]) if column.heap is not None else column.dtype.numpy.itemsize
        offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
        np.cumsum(sizes, out=offsets[1:])
        cursors, data = offsets[:-1].copy(), np.empty(offsets[-1], dtype=np.uint8)
        for column, heap in zip(columns, heaps, strict=True):
            if heap is not None:
                kernels.put_escaped(frozen(column.data[rows]), heap.offsets, heap.data, cursors, data)
            else:
                kernels.put_words(key_words([column], rows), column.dtype.numpy.itemsize, cursors, data)
        return Heap(offsets, data)

    return encode


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
        # Keys that were looked up in the tree, which the dictionary would have answered sooner in the end.
        self._lookups = 0

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
        if self._prefers_tree(txn, len(keys)):
            return self._space.lookup(txn, keys.tolist())
        if not self._width:
            return self._find_bytes(
                txn, len(keys), lambda part: Heap(keys.offsets[part.start : part.stop + 1], keys.data), None
            )
        words = _words(keys, self._width)
        return self._find_words(txn, len(keys), words.__getitem__, None)

    def codes(
        self, txn: ReadTxn, columns: Sequence[Column], threads: int | None = None
    ) -> tuple[NDArray[np.int32], str]:
        """The code of each row's key, -1 where it is unknown, and how it was found.

        `columns` are one for each entity. The code of a row where one of them is null has no meaning.
        """
        first = columns[0]
        if any(column.heap is not None and not len(column.heap) for column in columns):
            return np.full(len(first), -1, dtype=np.int32), "nothing to look up"
        if self._prefers_tree(txn, len(first)):
            keys = encode_keys(columns)
            codes = np.full(len(keys), -1, dtype=np.int32)
            short = np.setdiff1d(np.arange(len(keys)), too_long(keys))
            codes[short] = self._space.lookup(txn, keys.take(short).tolist())
            return codes, "look-ups in the tree"
        if self._width:
            found = self._find_words(txn, len(first), lambda part: key_words(columns, part), threads)
        elif len(columns) == 1 and first.heap is not None and 2 * len(first.heap) <= len(first):
            # Of strings that repeat, each is looked up once.
            entries = Column(first.dtype, np.arange(len(first.heap), dtype=np.int32), None, first.heap)
            found = self._find_bytes(txn, len(entries), _encoder([entries]), threads).take(first.data)
        else:
            found = self._find_bytes(txn, len(first), _encoder(columns), threads)
        return found, "hashed dictionary"

    def _prefers_tree(self, txn: ReadTxn, rows: int) -> bool:
        """Whether so many more look-ups in the tree cost less than reading the dictionary."""
        with self._lock:
            if len(self._keys):
                return False
            self._lookups += rows
            return self._lookups <= TREE_LOOKUPS_MAX or self._lookups <= TREE_LOOKUPS_PER_KEY * self._space.count(txn)

    def _read(self, txn: ReadTxn) -> tuple[Heap, NDArray[np.uint64], NDArray[np.int32]]:
        with self._lock:
            self._extend(txn)
            return self._keys, self._words, self._slots

    def _find_words(
        self, txn: ReadTxn, rows: int, words_of: Callable[[slice], NDArray[np.uint64]], threads: int | None
    ) -> NDArray[np.int32]:
        _, words, slots = self._read(txn)
        out = np.empty(rows, dtype=np.int32)

        def find(start: int, stop: int) -> None:
            for low in range(start, stop, _ROWS_AT_A_TIME):
                part = slice(low, min(low + _ROWS_AT_A_TIME, stop))
                kernels.find_words(words_of(part), words, slots, out[part])

        over_rows(rows, find, threads)
        return out

    def _find_bytes(
        self, txn: ReadTxn, rows: int, keys_of: Callable[[slice], Heap], threads: int | None
    ) -> NDArray[np.int32]:
        held, _, slots = self._read(txn)
        held_offsets, held_data = frozen(held.offsets), frozen(held.data)
        out = np.empty(rows, dtype=np.int32)

        def find(start: int, stop: int) -> None:
            for low in range(start, stop, _ROWS_AT_A_TIME):
                part = slice(low, min(low + _ROWS_AT_A_TIME, stop))
                keys = keys_of(part)
                kernels.find_bytes(frozen(keys.offsets), frozen(keys.data), held_offsets, held_data, slots, out[part])

        over_rows(rows, find, threads)
        return out

    def keys(self, txn: ReadTxn, codes: NDArray[np.int32]) -> Heap:
        """The key bytes of each code."""
        held, _, _ = self._read(txn)
        return held.take(codes)
