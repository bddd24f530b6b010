"""Writing segments: rows in memory to checksummed column chunks. FORMAT.md has the bytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.errors import LimitError
from featuredb.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_TARGET, CHUNK_ROWS_MAX, PACKED_SAVING_MIN
from featuredb.schema import DTYPES
from featuredb.storage.env import WriteTxn
from featuredb.storage.manifest import SegmentRef, chunk_prefix, dead_key, drop_dead, segment_key
from featuredb.storage.packing import Packing, choose, packed
from featuredb.storage.records import pack
from featuredb.storage.segment import (
    BYTES,
    CODES,
    COMMIT,
    CREATED,
    DATA,
    EVENT,
    OFFSETS,
    STARTS,
    SYSTEM_DTYPES,
    VALID,
    ColumnInfo,
    SegmentInfo,
    checksum,
    words_of,
)


@dataclass(frozen=True, slots=True)
class Rows:
    """History rows in memory, sorted by (code, event, created): what a segment is written from.

    ``codes`` is int32, ``event``, ``created`` (`ABSENT_US` where absent) and ``commit`` int64, all of
    shape (n,); ``columns`` maps feature ids to columns of n values.
    """

    codes: NDArray[np.int32]
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    commit: NDArray[np.int64]
    columns: Mapping[int, Column]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: NDArray[Any] | slice) -> Rows:
        return Rows(
            self.codes[rows],
            self.event[rows],
            self.created[rows],
            self.commit[rows],
            {name: column.take(rows) for name, column in self.columns.items()},
        )


class _ColumnWriter:
    """Puts the chunks of one column and remembers their lengths and checksums."""

    def __init__(self, put: Callable[[bytes, bytes | memoryview], None], prefix: bytes, column_id: int) -> None:
        self._put = put
        self._prefix = prefix + column_id.to_bytes(4, "big")
        self.chunks: dict[tuple[int, int], tuple[int, int]] = {}

    def put(self, chunk: int, part: int, values: NDArray[Any]) -> None:
        raw = np.ascontiguousarray(values).view(np.uint8).data if values.size else memoryview(b"")
        if len(raw) > CHUNK_BYTES_MAX:
            raise LimitError(f"a column chunk of {len(raw)} bytes exceeds {CHUNK_BYTES_MAX}; ingest in smaller batches")
        self._put(self._prefix + chunk.to_bytes(4, "big") + bytes([part]), raw)
        self.chunks[chunk, part] = (len(raw), checksum(raw))


def _chunk_rows(row_bytes: float) -> int:
    """A power of two, so that readers find the chunk of a row without a division."""
    rows = int(min(CHUNK_ROWS_MAX, max(1, CHUNK_BYTES_TARGET // max(row_bytes, 1))))
    return 1 << (rows.bit_length() - 1)


def _distinct(column: Column) -> Column:
    """The column with a heap of distinct entries, if it had few enough to try."""
    heap = column.heap
    if heap is None or len(heap) > max(1024, len(column) // 2):
        return column
    values = heap.tolist()
    places: dict[bytes, int] = {}
    renumbered = [places.setdefault(value, len(places)) for value in values]
    if len(places) == len(values):
        return column
    data = np.array(renumbered, dtype=column.dtype.numpy)[column.data] if values else column.data
    if column.valid is not None:
        data = np.where(column.valid, data, 0).astype(column.dtype.numpy)
    return Column(column.dtype, data, column.valid, Heap.of(list(places)))


def _write_heaps(writer: _ColumnWriter, column: Column, heap: Heap) -> int:
    """Chunks that each hold their own values in row order; returns the rows of a chunk."""
    rows = len(column)
    lengths = np.diff(heap.offsets)[column.data] if len(heap) else np.zeros(rows, dtype=np.int64)
    if column.valid is not None:
        lengths = np.where(column.valid, lengths, 0)
    chunk_rows = _chunk_rows(4 + lengths.sum() / rows)
    starts = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    while chunk_rows > 1 and np.diff(starts[np.r_[0:rows:chunk_rows, rows]]).max() > 4 * CHUNK_BYTES_TARGET:
        chunk_rows //= 2
    for chunk, first in enumerate(range(0, rows, chunk_rows)):
        stop = min(first + chunk_rows, rows)
        bounds = starts[first : stop + 1] - starts[first]
        source = np.repeat(heap.offsets[column.data[first:stop]] - bounds[:-1], lengths[first:stop])
        writer.put(chunk, OFFSETS, bounds.astype("<u4"))
        writer.put(chunk, BYTES, heap.data[source + np.arange(bounds[-1])])
    return chunk_rows


def _write_column(writer: _ColumnWriter, column_id: int, column: Column) -> ColumnInfo:
    rows, dtype, nulls = len(column), column.dtype, column.null_count
    if nulls == rows:
        return ColumnInfo(column_id, dtype, "null", CHUNK_ROWS_MAX, nulls, 0, 0, 0, writer.chunks)
    packing, encoding, chunk_rows = Packing(0, 0), "plain", _chunk_rows(dtype.numpy.itemsize)
    if column.heap is not None:
        column = _distinct(column.compact())
        heap = column.heap
        assert heap is not None
        if len(heap) <= max(256, rows // 4) and heap.offsets[-1] <= CHUNK_BYTES_TARGET:
            packing, encoding, chunk_rows = Packing((len(heap) - 1).bit_length(), 0), "dictionary", CHUNK_ROWS_MAX
            writer.put(0, OFFSETS, heap.offsets.astype("<u4"))
            writer.put(0, BYTES, heap.data)
        else:
            encoding, chunk_rows = "heap", _write_heaps(writer, column, heap)
    elif column_id not in (CODES, STARTS) and not dtype.is_vector:
        chosen = choose(column)
        if chosen is not None and _saves(rows, dtype.numpy.itemsize, chosen.width):
            packing, encoding, chunk_rows = chosen, "packed", CHUNK_ROWS_MAX
    for chunk, first in enumerate(range(0, rows, chunk_rows)):
        data, valid = _part(column, first, first + chunk_rows)
        if encoding == "plain":
            writer.put(chunk, DATA, data)
        elif packing.width:
            writer.put(chunk, DATA, packed(packing, data, valid))
        if valid is not None:
            writer.put(chunk, VALID, np.packbits(valid, bitorder="little"))
    facts = (packing.width, packing.base, packing.exponent)
    return ColumnInfo(column_id, dtype, encoding, chunk_rows, nulls, *facts, writer.chunks)


def _part(column: Column, first: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Some rows of a column: data, and validity if one of them is null."""
    valid = None if column.valid is None else column.valid[first:stop]
    return column.data[first:stop], None if valid is None or valid.all() else valid


def _saves(rows: int, value_bytes: int, width: int) -> bool:
    """Whether packing is worth its price: short columns may even grow."""
    return 8 * words_of(rows, width) <= (1 - PACKED_SAVING_MIN) * rows * value_bytes


def _pack_info(info: SegmentInfo) -> bytes:
    columns = []
    for column in info.columns.values():
        chunks = [[*at, *ref] for at, ref in column.chunks.items()]
        facts = [column.id, column.dtype.name, column.encoding, column.chunk_rows, column.null_count]
        columns.append([*facts, column.width, column.base, column.exponent, chunks])
    zone = [info.rows, info.event_min, info.event_max, info.code_min, info.code_max]
    return pack([zone, columns])


def write_segment(txn: WriteTxn, table_id: int, segment_id: int, rows: Rows) -> SegmentRef:
    """Write sorted `rows` (at least one, at most `SEGMENT_ROWS_MAX`) as a segment."""
    starts = np.flatnonzero(np.concatenate([[True], rows.codes[1:] != rows.codes[:-1]]))
    system: dict[int, NDArray[Any]] = {
        EVENT: rows.event,
        CREATED: rows.created,
        COMMIT: rows.commit,
        CODES: rows.codes[starts],
        STARTS: np.append(starts, len(rows)).astype(np.int32),
    }
    columns = {key: Column(DTYPES[SYSTEM_DTYPES[key]], values) for key, values in system.items()}
    columns.update(rows.columns)
    prefix = chunk_prefix(table_id, segment_id)
    infos = {key: _write_column(_ColumnWriter(txn.put, prefix, key), key, column) for key, column in columns.items()}
    info = SegmentInfo(
        table_id,
        segment_id,
        len(rows),
        int(rows.event.min()),
        int(rows.event.max()),
        int(rows.codes[0]),
        int(rows.codes[-1]),
        infos,
    )
    raw = _pack_info(info)
    txn.put(segment_key(table_id, segment_id), raw)
    return SegmentRef(segment_id, zlib.crc32(raw), len(rows))


def write_dead(txn: WriteTxn, table_id: int, ref: SegmentRef, positions: NDArray[np.int32]) -> SegmentRef:
    """The segment with the rows at `positions` (sorted, all that are dead) marked as replaced."""
    if ref.dead_count:
        drop_dead(txn, table_id, ref.id, ref.dead_version)
    version = ref.dead_version + 1
    raw = positions.astype("<i4").tobytes()
    txn.put(dead_key(table_id, ref.id, version), raw)
    return SegmentRef(ref.id, ref.crc, ref.rows, version, len(positions), checksum(raw))
