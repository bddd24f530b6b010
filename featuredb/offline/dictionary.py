"""Entity keys of many rows to integer codes: the dictionary of a key space, hashed in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.errors import CorruptionError
from featuredb.limits import KEYS_PER_BLOCK
from featuredb.offline import kernels
from featuredb.offline.kernels.hashing import LANES
from featuredb.schema import DType
from featuredb.storage.encode import distinct, taken
from featuredb.storage.env import ReadTxn
from featuredb.storage.keys import encode_keys, key_words, too_long
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.segment import frozen
from featuredb.threads import over_items, over_rows, ranges

# So many look-ups in the tree cost less than reading the dictionary: of a small one, and for each key of a large one.
TREE_LOOKUPS_MAX = 512
TREE_LOOKUPS_PER_KEY = 1 / 16
# Keys are put into words so many at a time, in the cache.
_ROWS_AT_A_TIME = 1 << 14
# Room for distinct keys to begin with when rows are numbered.
_DISTINCT_MIN = 1 << 12


def _table(entries: int) -> NDArray[np.int32]:
    """An empty hash table at most half full with `entries`."""
    return np.full(1 << max(4, int(2 * entries - 1).bit_length()), -1, dtype=np.int32)


def _words(keys: Heap, width: int) -> NDArray[np.uint64]:
    """Keys of `width` <= 8 bytes each as integers: see `key_words`. Zero where there is no key."""
    padded = np.zeros((len(keys), 8), dtype=np.uint8)
    whole = slice(None) if len(keys.data) == width * len(keys) else np.diff(keys.offsets) > 0
    padded[whole, 8 - width :] = keys.data.reshape(-1, width)
    return padded.view(">u8").reshape(-1).astype(np.uint64)


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


def _escaped_lengths(heap: Heap, out: NDArray[np.int64], start: int, stop: int) -> None:
    kernels.escaped_lengths(heap.offsets[start : stop + 1], heap.data, out[start:stop])


def _encoder(columns: Sequence[Column]) -> Callable[[slice], Heap]:
    """A function from some rows to their key bytes: `encode_keys` of the columns, for many rows."""
    heaps, lengths = [], []
    for column in columns:
        heap = column.heap
        length = np.empty(0 if heap is None else len(heap), dtype=np.int64)
        if heap is not None:
            heap = Heap(frozen(heap.offsets), frozen(heap.data))
            over_rows(len(heap), partial(_escaped_lengths, heap, length))
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
        # Keys that were looked up in the tree, which the dictionary would have answered sooner in the end.
        self._lookups = 0

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        arrays = (self._keys.offsets, self._keys.data, self._words, self._slots)
        return sum(array.nbytes for array in arrays)

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
        if self._width and not np.isin(np.diff(keys.offsets), (0, self._width)).all():
            raise CorruptionError(
                f"key space {self._space.id} has keys of other dtypes than its own; restore the file from a backup"
            )
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
            scratch = np.empty(LANES, dtype=np.uint64)
            for low in range(start, stop, _ROWS_AT_A_TIME):
                part = slice(low, min(low + _ROWS_AT_A_TIME, stop))
                kernels.find_words(words_of(part), words, slots, scratch, out[part])

        over_rows(rows, find, threads)
        return out

    def _find_bytes(
        self, txn: ReadTxn, rows: int, keys_of: Callable[[slice], Heap], threads: int | None
    ) -> NDArray[np.int32]:
        held, _, slots = self._read(txn)
        held_offsets, held_data = frozen(held.offsets), frozen(held.data)
        out = np.empty(rows, dtype=np.int32)

        def find(start: int, stop: int) -> None:
            scratch = np.empty(LANES, dtype=np.uint64)
            for low in range(start, stop, _ROWS_AT_A_TIME):
                part = slice(low, min(low + _ROWS_AT_A_TIME, stop))
                keys = keys_of(part)
                offsets, data = frozen(keys.offsets), frozen(keys.data)
                kernels.find_bytes(offsets, data, held_offsets, held_data, slots, scratch, out[part])

        over_rows(rows, find, threads)
        return out

    def keys(self, txn: ReadTxn, codes: NDArray[np.int32]) -> Heap:
        """The key bytes of each code."""
        held, _, _ = self._read(txn)
        if len(codes) and not 0 <= codes.min() <= codes.max() < len(held):
            raise CorruptionError(
                f"key space {self._space.id} has {len(held)} keys, and rows have others; restore the file from a backup"
            )
        return held.take(codes)
