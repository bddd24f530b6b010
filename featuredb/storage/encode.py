"""A column in memory to the chunks of a segment: first a plan for the whole column, then chunk after chunk.

Planning reads the column as it came; a chunk then takes its values from there, in the order of the rows, and
encodes them while they are in the processor's cache. Chunks may be encoded by several threads at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap, zeroed
from featuredb.errors import LimitError
from featuredb.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_TARGET, CHUNK_ROWS_MAX
from featuredb.storage import kernels
from featuredb.storage.packing import Packing, choose, mask, packed
from featuredb.storage.segment import BYTES, CODES, DATA, OFFSETS, STARTS, VALID, checksum, frozen

_PLAIN = Packing(0, 0)


@dataclass(frozen=True, slots=True)
class Part:
    """One value of the file: a part of a chunk, with its checksum."""

    chunk: int
    part: int
    raw: memoryview
    checksum: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How one column will be stored. With `places`, row `i` is row ``places[i]`` of `column`."""

    id: int
    column: Column
    places: NDArray[np.int32] | None
    encoding: str
    chunk_rows: int
    packing: Packing = _PLAIN

    @property
    def rows(self) -> int:
        return len(self.column if self.places is None else self.places)

    @property
    def chunks(self) -> range:
        return range(0 if self.encoding == "null" else -(-self.rows // self.chunk_rows))

    def encode(self, chunk: int) -> tuple[list[Part], int]:
        """The parts of a chunk, and how many of its rows are null."""
        first = chunk * self.chunk_rows
        column = _rows_of(self.column, self.places, first, min(first + self.chunk_rows, self.rows))
        parts = []
        if self.encoding == "plain":
            parts.append(_part(chunk, DATA, column.data))
        elif self.encoding == "heap":
            offsets, data = _entries(column)
            parts += [_part(chunk, OFFSETS, offsets.astype("<u4")), _part(chunk, BYTES, data)]
        elif self.packing.width:
            parts.append(_part(chunk, DATA, packed(self.packing, column.data, column.valid)))
        if column.valid is not None:
            parts.append(_part(chunk, VALID, np.packbits(column.valid, bitorder="little")))
        if self.encoding == "dictionary" and chunk == 0:
            heap = self.column.heap
            assert heap is not None
            parts += [_part(0, OFFSETS, heap.offsets.astype("<u4")), _part(0, BYTES, heap.data)]
        return parts, column.null_count


def plan(column_id: int, column: Column, places: NDArray[np.int32] | None = None) -> Plan:
    """How to store `column`, or its rows at `places`, in that order."""
    if places is not None and len(places) < len(column):
        # Frame and heap must tell nothing of rows that are not stored.
        column, places = _rows_of(column, places, 0, len(places)), None
    if column.null_count == len(column):
        return Plan(column_id, column, places, "null", CHUNK_ROWS_MAX)
    if column.heap is not None:
        return _plan_heap(column_id, column, places)
    value_bytes = column.dtype.numpy.itemsize
    # The entity index is searched as it lies.
    if column_id not in (CODES, STARTS) and not column.dtype.is_vector:
        packing = choose(column)
        if packing is not None:
            return Plan(column_id, column, places, "packed", CHUNK_ROWS_MAX, packing)
    return Plan(column_id, column, places, "plain", _chunk_rows(value_bytes))


def _chunk_rows(row_bytes: float) -> int:
    """A power of two, so that readers find the chunk of a row without a division."""
    rows = int(min(CHUNK_ROWS_MAX, max(1, CHUNK_BYTES_TARGET // max(row_bytes, 1))))
    return 1 << (rows.bit_length() - 1)


def _plan_heap(column_id: int, column: Column, places: NDArray[np.int32] | None) -> Plan:
    column = distinct(column)
    heap = column.heap
    assert heap is not None
    if len(heap) <= max(256, len(column) // 4) and heap.offsets[-1] <= CHUNK_BYTES_TARGET:
        packing = Packing((len(heap) - 1).bit_length(), 0)
        return Plan(column_id, column, places, "dictionary", CHUNK_ROWS_MAX, packing)
    lengths = _lengths(_rows_of(column, places, 0, len(column if places is None else places)))
    chunk_rows = _chunk_rows(4 + lengths.mean())
    while chunk_rows > 1 and np.add.reduceat(lengths, np.arange(0, len(lengths), chunk_rows)).max() > (
        4 * CHUNK_BYTES_TARGET
    ):
        chunk_rows //= 2
    return Plan(column_id, column, places, "heap", chunk_rows)


def distinct(column: Column) -> Column:
    """The column of variable width with a heap of the entries in use, each once if there were few enough to try."""
    heap = column.heap
    assert heap is not None
    used = np.zeros(len(heap), dtype=np.bool_)
    kernels.mark(frozen(column.data), mask(column.valid), used)
    places = np.flatnonzero(used)
    kept = heap if len(places) == len(heap) else heap.take(places)
    numbers = np.arange(len(kept), dtype=np.int32)
    if len(kept) <= max(1024, len(column) // 2):
        numbers, firsts = number_entries(kept)
        kept = kept if len(firsts) == len(kept) else kept.take(firsts)
    if len(kept) == len(heap):
        return column
    renumbered = np.zeros(len(heap), dtype=np.int32)
    renumbered[places] = numbers
    data = taken(renumbered, column.data)
    return Column(column.dtype, zeroed(data, column.valid), column.valid, kept)


def number_entries(heap: Heap) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The number of each entry among the distinct ones, and the first entry of each."""
    numbers, firsts = np.empty(len(heap), dtype=np.int32), np.empty(len(heap), dtype=np.int32)
    table = np.full(1 << max(4, (2 * len(heap)).bit_length()), -1, dtype=np.int32)
    count = kernels.factorize_bytes(frozen(heap.offsets), frozen(heap.data), table, numbers, firsts)
    return numbers, firsts[:count]


def _rows_of(column: Column, places: NDArray[np.int32] | None, first: int, stop: int) -> Column:
    """Some rows in order; valid only if one of them is null."""
    data, valid = column.data, column.valid
    if places is None:
        data, valid = data[first:stop], None if valid is None else valid[first:stop]
    else:
        at = places[first:stop]
        data, valid = taken(data, at), None if valid is None else taken(valid, at)
    return Column(column.dtype, data, None if valid is None or valid.all() else valid, column.heap)


def taken(values: NDArray[Any], places: NDArray[np.int32]) -> NDArray[Any]:
    """``values[places]``, as words so that few kernels are compiled; numpy would check each place."""
    width = values.dtype.itemsize
    if width not in (1, 2, 4, 8):
        return values[places]
    out = np.empty(len(places), dtype=values.dtype)
    word = f"u{width}"
    kernels.take(frozen(np.ascontiguousarray(values).view(word)), frozen(places), out.view(word))
    return out


def _lengths(column: Column) -> NDArray[np.int64]:
    """Bytes of each value of variable width, 0 where null."""
    assert column.heap is not None
    lengths = np.diff(column.heap.offsets)[column.data] if len(column.heap) else np.zeros(len(column), dtype=np.int64)
    return lengths if column.valid is None else np.where(column.valid, lengths, 0)


def _entries(column: Column) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """A heap with one entry for each row: offsets and bytes."""
    heap = column.heap
    assert heap is not None
    bounds = np.zeros(len(column) + 1, dtype=np.int64)
    np.cumsum(_lengths(column), out=bounds[1:])
    out = np.empty(bounds[-1], dtype=np.uint8)
    if len(out):
        kernels.take_entries(frozen(heap.offsets), frozen(heap.data), frozen(column.data), bounds, out)
    return bounds, out


def _part(chunk: int, part: int, values: NDArray[Any]) -> Part:
    raw = np.ascontiguousarray(values).view(np.uint8).data if values.size else memoryview(b"")
    if len(raw) > CHUNK_BYTES_MAX:
        raise LimitError(f"a column chunk of {len(raw)} bytes exceeds {CHUNK_BYTES_MAX}; ingest in smaller batches")
    return Part(chunk, part, raw, checksum(raw))
