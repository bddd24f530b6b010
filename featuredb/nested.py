"""Lists and vectors as flat columns of their elements, and back.

A list is one heap entry: the bytes of its elements back to back or, for strings and bytes, their number,
the length of each (u32, little-endian) and then their bytes. A vector is one fixed-width value.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap, matrix
from featuredb.errors import CorruptionError
from featuredb.schema import DType

_WORD = 4
_DAMAGED = "a list in the file does not fit its length; the file is damaged: restore a backup"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Buffer = bytes | memoryview


def _running(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Where each of the runs of these lengths begins, and where the last ends."""
    bounds = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def _put_words(data: NDArray[np.uint8], at: NDArray[np.int64], words: NDArray[Any]) -> None:
    data[at[:, None] + np.arange(_WORD)] = words.astype("<u4").view(np.uint8).reshape(-1, _WORD)


def _words(data: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.int64]:
    words: NDArray[np.int64] = data[at[:, None] + np.arange(_WORD)].view("<u4").reshape(-1).astype(np.int64)
    return words


def encode_lists(items: Column, lengths: NDArray[Any]) -> Heap:
    """A heap entry for each list, of `lengths` elements; `items` holds the elements of all, none null."""
    if items.heap is None:
        width = items.dtype.numpy.itemsize
        return Heap(_running(lengths * width), np.ascontiguousarray(items.data).view(np.uint8))
    values = items.heap.take(items.data) if len(items) else Heap.of([])
    firsts = _running(lengths)
    head = _WORD * (1 + lengths)
    offsets = _running(head + np.diff(values.offsets[firsts]))
    data = np.empty(int(offsets[-1]), dtype=np.uint8)
    _put_words(data, offsets[:-1], lengths)
    within = np.arange(len(values)) - np.repeat(firsts[:-1], lengths)
    item_lengths = np.diff(values.offsets)
    _put_words(data, np.repeat(offsets[:-1] + _WORD, lengths) + _WORD * within, item_lengths)
    # The values of a list lie together in `values` as well: one shift for each list.
    shift = offsets[:-1] + head - values.offsets[firsts[:-1]]
    data[np.repeat(shift, np.diff(values.offsets[firsts])) + np.arange(len(values.data))] = values.data
    return Heap(offsets, data)


def decode_lists(dtype: DType, heap: Heap) -> tuple[Column, NDArray[np.int64]]:
    """The elements of all entries as one column, and where those of each entry begin and end.

    Raises
    ------
    CorruptionError
        If an entry is not what `encode_lists` writes.
    """
    item = dtype.item
    if not item.is_variable:
        width = item.numpy.itemsize
        if np.any(heap.offsets % width):
            raise CorruptionError(_DAMAGED)
        data = heap.data[: heap.offsets[-1]]
        values = np.ascontiguousarray(data).view(item.numpy)
        return Column(item, values if values.flags.aligned else values.copy()), heap.offsets // width
    sizes = np.diff(heap.offsets)
    if np.any(sizes < _WORD):
        raise CorruptionError(_DAMAGED)
    counts = _words(heap.data, heap.offsets[:-1])
    if np.any(_WORD * (1 + counts) > sizes):
        raise CorruptionError(_DAMAGED)
    bounds = _running(counts)
    within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], counts)
    lengths = _words(heap.data, np.repeat(heap.offsets[:-1] + _WORD, counts) + _WORD * within)
    offsets = _running(lengths)
    bodies = np.diff(offsets[bounds])
    if np.any(_WORD * (1 + counts) + bodies != sizes):
        raise CorruptionError(_DAMAGED)
    shift = heap.offsets[:-1] + _WORD * (1 + counts) - offsets[bounds[:-1]]
    data = heap.data[np.repeat(shift, bodies) + np.arange(offsets[-1])]
    places = np.arange(len(lengths), dtype=item.numpy)
    return Column(item, places, None, Heap(offsets, data)), bounds


def elements(column: Column) -> tuple[Column, NDArray[np.int64]]:
    """The elements of all rows as one column, and where those of each row begin and end.

    A null list has no elements; a null vector has zeros.
    """
    if column.dtype.is_vector:
        length = column.dtype.length
        return Column(column.dtype.item, matrix(column).reshape(-1)), np.arange(len(column) + 1) * length
    assert column.heap is not None
    valid = column.valid
    places = column.data if valid is None else column.data[valid]
    in_order = len(places) == len(column.heap) and np.array_equal(places, np.arange(len(places)))
    items, bounds = decode_lists(column.dtype, column.heap if in_order else column.heap.take(places))
    if valid is None:
        return items, bounds
    lengths = np.zeros(len(column), dtype=np.int64)
    lengths[valid] = np.diff(bounds)
    return items, _running(lengths)


def vector_decoder(dtype: DType) -> Callable[[Buffer], NDArray[Any]]:
    """From the bytes of a vector to a read-only array of shape (length,); timestamps as ``datetime64[us]``."""
    stored = np.dtype("M8[us]") if dtype.item.name == "timestamp" else dtype.item.numpy
    return lambda raw: np.frombuffer(raw, stored)


def list_decoder(dtype: DType) -> Callable[[Buffer], list[Any]]:
    """From the bytes of a list to a list of plain Python values; ValueError if they are not those of a list."""
    item = dtype.item
    if item.is_variable:
        is_text = item.name == "string"
        return lambda raw: _decode_values(raw, is_text)
    if item.name == "timestamp":
        return lambda raw: list(map(_EPOCH.__add__, np.frombuffer(raw, "m8[us]").tolist()))
    return lambda raw: np.frombuffer(raw, item.numpy).tolist()


def _decode_values(raw: Buffer, is_text: bool) -> list[Any]:
    data = bytes(raw)
    if not data:
        return []  # of a null, which takes no bytes; the caller drops it
    count = int.from_bytes(data[:_WORD], "little")
    start = _WORD * (1 + count)
    if len(data) < start:
        raise ValueError("a list in it does not fit its length")
    lengths = np.frombuffer(data, "<u4", count, _WORD).tolist()
    bounds = list(accumulate(lengths, initial=start))
    if bounds[-1] != len(data):
        raise ValueError("a list in it does not fit its length")
    values = [data[begin:end] for begin, end in pairwise(bounds)]
    return list(map(bytes.decode, values)) if is_text else values
