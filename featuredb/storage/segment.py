"""Segments: immutable rows of one table, sorted by (code, event, created), in checksummed column chunks.

A column is cut into chunks of a fixed number of rows, so that the chunk and place of a row follow from
its position. The descriptor names every chunk with its length and checksum; FORMAT.md has the bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap, concat, null_column
from featuredb.errors import CorruptionError, LimitError
from featuredb.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_TARGET, CHUNK_ROWS_MAX, SEGMENTS_HELD_MAX
from featuredb.schema import DTYPES, DType
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.manifest import SegmentRef, chunk_prefix, dead_key, drop_dead, segment_key
from featuredb.storage.records import pack, unpack

# Column ids of the system columns; features count up from 1.
EVENT, CREATED, COMMIT, CODES, STARTS = range(0xFFFF_FFF0, 0xFFFF_FFF5)
SYSTEM_COLUMNS = frozenset((EVENT, CREATED, COMMIT, CODES, STARTS))
DATA, VALID, OFFSETS, BYTES = range(4)
_SYSTEM_DTYPES = {EVENT: "int64", CREATED: "int64", COMMIT: "int64", CODES: "int32", STARTS: "int32"}


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """How one column of a segment is stored.

    ``encoding`` is ``plain`` (fixed-width values), ``constant`` (one value, no chunk), ``null`` (only
    nulls, no chunk), ``dictionary`` (codes, and one heap for the segment) or ``heap`` (a heap a chunk).
    ``chunks`` maps (chunk, part) to (bytes, crc).
    """

    id: int
    dtype: DType
    encoding: str
    chunk_rows: int
    null_count: int
    constant: int
    chunks: Mapping[tuple[int, int], tuple[int, int]]

    @property
    def nbytes(self) -> int:
        return sum(size for size, _ in self.chunks.values())


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A segment's descriptor: row count, zone map and columns."""

    table_id: int
    id: int
    rows: int
    event_min: int
    event_max: int
    code_min: int
    code_max: int
    columns: Mapping[int, ColumnInfo]

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values())


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
            {name: column.take(rows) for name, column in self.columns.items()},  # type: ignore[arg-type]
        )


class _ColumnWriter:
    """Puts the chunks of one column and remembers their lengths and checksums."""

    def __init__(self, put: Callable[[bytes, bytes | memoryview], None], prefix: bytes, column_id: int) -> None:
        self._put = put
        self._prefix = prefix + column_id.to_bytes(4, "big")
        self.chunks: dict[tuple[int, int], tuple[int, int]] = {}

    def put(self, chunk: int, part: int, values: NDArray[Any]) -> None:
        raw = np.ascontiguousarray(values).data.cast("B") if values.size else memoryview(b"")
        if len(raw) > CHUNK_BYTES_MAX:
            raise LimitError(f"a column chunk of {len(raw)} bytes exceeds {CHUNK_BYTES_MAX}; ingest in smaller batches")
        self._put(self._prefix + chunk.to_bytes(4, "big") + bytes([part]), raw)
        self.chunks[chunk, part] = (len(raw), zlib.crc32(raw))


def _chunk_rows(row_bytes: float) -> int:
    return int(min(CHUNK_ROWS_MAX, max(1, CHUNK_BYTES_TARGET // max(row_bytes, 1))))


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
    rows, dtype = len(column), column.dtype
    nulls = column.null_count

    def info(encoding: str, chunk_rows: int, constant: int = 0) -> ColumnInfo:
        return ColumnInfo(column_id, dtype, encoding, chunk_rows, nulls, constant, writer.chunks)

    if nulls == rows:
        return info("null", CHUNK_ROWS_MAX)
    # Only columns of our own are stored as constants: commit ids and absent created timestamps.
    if column_id >= EVENT and column.data[0] == column.data[-1] and np.all(column.data == column.data[0]):
        return info("constant", CHUNK_ROWS_MAX, int(column.data[0]))
    data, encoding, chunk_rows = column.data, "plain", _chunk_rows(dtype.numpy.itemsize)
    if column.heap is not None:
        column = _distinct(column.compact())
        heap = column.heap
        assert heap is not None
        if len(heap) <= max(256, rows // 4) and heap.offsets[-1] <= CHUNK_BYTES_TARGET:
            encoding = "dictionary"
            width = 1 if len(heap) <= 1 << 8 else 2 if len(heap) <= 1 << 16 else 4
            data, chunk_rows = column.data.astype(f"<u{width}"), CHUNK_ROWS_MAX
            writer.put(0, OFFSETS, heap.offsets.astype("<u4"))
            writer.put(0, BYTES, heap.data)
        else:
            encoding, chunk_rows = "heap", _write_heaps(writer, column, heap)
    for chunk, first in enumerate(range(0, rows, chunk_rows)):
        stop = min(first + chunk_rows, rows)
        if encoding != "heap":
            writer.put(chunk, DATA, data[first:stop])
        if column.valid is not None and not column.valid[first:stop].all():
            writer.put(chunk, VALID, np.packbits(column.valid[first:stop], bitorder="little"))
    return info(encoding, chunk_rows)


def _pack_info(info: SegmentInfo) -> bytes:
    columns = []
    for column in info.columns.values():
        chunks = [[*at, *ref] for at, ref in column.chunks.items()]
        facts = [column.id, column.dtype.name, column.encoding, column.chunk_rows, column.null_count, column.constant]
        columns.append([*facts, chunks])
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
    columns = {key: Column(DTYPES[_SYSTEM_DTYPES[key]], values) for key, values in system.items()}
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
    return SegmentRef(ref.id, ref.crc, ref.rows, version, len(positions), zlib.crc32(raw))


def read_info(txn: ReadTxn, table_id: int, ref: SegmentRef) -> SegmentInfo:
    """The descriptor of the segment `ref`."""
    what = f"the descriptor of segment {ref.id} of table {table_id}"
    raw = txn.get(segment_key(table_id, ref.id))
    if raw is None or zlib.crc32(raw) != ref.crc:
        raise CorruptionError(f"{what} is missing or damaged; restore the file from a backup")
    (rows, event_min, event_max, code_min, code_max), stored = unpack(raw, what)
    columns = {}
    for column_id, dtype, encoding, chunk_rows, nulls, constant, chunks in stored:
        refs = {(chunk, part): (size, crc) for chunk, part, size, crc in chunks}
        columns[column_id] = ColumnInfo(column_id, DTYPES[dtype], encoding, chunk_rows, nulls, constant, refs)
    return SegmentInfo(table_id, ref.id, rows, event_min, event_max, code_min, code_max, columns)


def frozen(values: NDArray[Any]) -> NDArray[Any]:
    """A read-only view: chunks in the file are read-only, and numba compiles anew for each kind it meets."""
    view = values.view()
    view.flags.writeable = False
    return view


class SegmentReader:
    """One segment within one read transaction. Arrays it returns are valid only as long as that lasts.

    Parameters
    ----------
    txn : ReadTxn
        The transaction; its commit decides what is dead.
    ref : SegmentRef
        The segment, from the manifest.
    info : SegmentInfo
        Its descriptor.
    verified : set
        Chunks whose checksum this process has already checked; a chunk is checked when first touched.
    """

    def __init__(self, txn: ReadTxn, ref: SegmentRef, info: SegmentInfo, verified: set[tuple[int, ...]]) -> None:
        self._txn = txn
        self._verified = verified
        self.ref = ref
        self.info = info
        self.rows = info.rows

    def _raw(self, column: ColumnInfo, chunk: int, part: int, dtype: str) -> NDArray[Any]:
        size, crc = column.chunks[chunk, part]
        key = chunk_prefix(self.info.table_id, self.ref.id) + column.id.to_bytes(4, "big")
        return self._checked(key + chunk.to_bytes(4, "big") + bytes([part]), size, crc, dtype)

    def chunk_fault(self, column_id: int, chunk: int, part: int) -> str | None:
        """What is wrong with the bytes of a chunk, None if they are those its descriptor names."""
        size, crc = self.info.columns[column_id].chunks[chunk, part]
        key = chunk_prefix(self.info.table_id, self.ref.id) + column_id.to_bytes(4, "big")
        return self._fault(key + chunk.to_bytes(4, "big") + bytes([part]), size, crc)[1]

    def _fault(self, key: bytes, size: int, crc: int) -> tuple[memoryview, str | None]:
        raw = self._txn.get(key)
        if raw is None:
            return memoryview(b""), "is missing"
        if len(raw) != size:
            return raw, f"has {len(raw)} bytes instead of {size}"
        seen = (int.from_bytes(key[1:], "big"), crc)
        if seen not in self._verified:
            if zlib.crc32(raw) != crc:
                return raw, "is damaged: its checksum does not match"
            self._verified.add(seen)
        return raw, None

    def _checked(self, key: bytes, size: int, crc: int, dtype: str) -> NDArray[Any]:
        raw, fault = self._fault(key, size, crc)
        if fault is not None:
            raise CorruptionError(
                f"table {self.info.table_id}, segment {self.ref.id}: chunk {key.hex()} {fault}; "
                "run `featuredb verify`, and restore the file from a backup"
            )
        values = np.frombuffer(raw, dtype=dtype)
        # Small chunks share a page with others and may lie at any even address; kernels want alignment.
        return values if values.flags.aligned else frozen(values.copy())

    def chunk_bounds(self, column_id: int) -> list[tuple[int, int]]:
        """First and last + 1 row of each chunk of a column."""
        step = self.info.columns[column_id].chunk_rows
        return [(first, min(first + step, self.rows)) for first in range(0, self.rows, step)]

    def _expect(self, values: NDArray[Any], rows: int, column: ColumnInfo) -> NDArray[Any]:
        if len(values) != rows:
            raise CorruptionError(
                f"table {self.info.table_id}, segment {self.ref.id}, column {column.id}: "
                f"a chunk has {len(values)} values instead of {rows}"
            )
        return values

    def system(self, column_id: int, chunk: int) -> NDArray[np.int64] | int:
        """One chunk of a system column, or the one value of a constant column."""
        column = self.info.columns[column_id]
        if column.encoding == "constant":
            return column.constant
        values = self._raw(column, chunk, DATA, _SYSTEM_DTYPES[column_id])
        first, stop = chunk * column.chunk_rows, min((chunk + 1) * column.chunk_rows, self.rows)
        return values if column_id in (CODES, STARTS) else self._expect(values, stop - first, column)

    def _index(self, column_id: int) -> NDArray[np.int32]:
        column = self.info.columns[column_id]
        if column.encoding == "constant":
            return frozen(np.array([column.constant], dtype=np.int32))
        count = 1 + max(chunk for chunk, _ in column.chunks)
        parts = [self._raw(column, chunk, DATA, "int32") for chunk in range(count)]
        return parts[0] if len(parts) == 1 else frozen(np.concatenate(parts))

    def entity_index(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Sorted distinct codes (u,), and where the rows of each start (u + 1,)."""
        codes, starts = self._index(CODES), self._index(STARTS)
        if len(starts) != len(codes) + 1 or starts[0] != 0 or starts[-1] != self.rows:
            raise CorruptionError(f"table {self.info.table_id}, segment {self.ref.id}: its entity index is damaged")
        return codes, starts

    def dead(self) -> NDArray[np.int32]:
        """Sorted positions of rows replaced by later ingests."""
        if not self.ref.dead_count:
            return np.zeros(0, dtype=np.int32)
        key = dead_key(self.info.table_id, self.ref.id, self.ref.dead_version)
        return self._checked(key, 4 * self.ref.dead_count, self.ref.dead_crc, "int32")

    def feature_chunks(self, column_id: int) -> Iterator[tuple[int, int, Column]]:
        """Every chunk of a feature column as (first row, last row + 1, column)."""
        column = self.info.columns[column_id]
        heap = self._heap(column, 0) if column.encoding == "dictionary" else None
        for chunk, (first, stop) in enumerate(self.chunk_bounds(column_id)):
            yield first, stop, self._feature_chunk(column, chunk, stop - first, heap)

    def feature_chunk(self, column_id: int, chunk: int) -> Column:
        """One chunk of a feature column."""
        column = self.info.columns[column_id]
        heap = self._heap(column, 0) if column.encoding == "dictionary" else None
        first, stop = self.chunk_bounds(column_id)[chunk]
        return self._feature_chunk(column, chunk, stop - first, heap)

    def _heap(self, column: ColumnInfo, chunk: int) -> Heap:
        offsets = self._raw(column, chunk, OFFSETS, "<u4").astype(np.int64)
        data = self._raw(column, chunk, BYTES, "u1")
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(data) or np.any(np.diff(offsets) < 0):
            raise CorruptionError(f"table {self.info.table_id}, segment {self.ref.id}: a heap's offsets are damaged")
        return Heap(offsets, data)

    def _feature_chunk(self, column: ColumnInfo, chunk: int, rows: int, heap: Heap | None) -> Column:
        if column.encoding == "null":
            return null_column(column.dtype, rows)
        valid = None
        if (chunk, VALID) in column.chunks:
            bits = self._expect(self._raw(column, chunk, VALID, "u1"), (rows + 7) // 8, column)
            valid = np.unpackbits(bits, count=rows, bitorder="little").view(np.bool_)
        if column.encoding == "heap":
            own = self._heap(column, chunk)
            data = self._expect(np.arange(len(own), dtype=np.int32), rows, column)
            return Column(column.dtype, data, valid, own)
        if heap is None:
            return Column(column.dtype, self._data(column, chunk, rows, column.dtype.numpy.str), valid)
        width = column.chunks[chunk, DATA][0] // max(rows, 1)
        codes = self._data(column, chunk, rows, f"<u{width}" if width in (1, 2, 4) else "u1")
        if len(codes) and codes.max() >= len(heap):
            raise CorruptionError(f"table {self.info.table_id}, segment {self.ref.id}: a code is not in its dictionary")
        return Column(column.dtype, codes.astype(np.int32), valid, heap)

    def _data(self, column: ColumnInfo, chunk: int, rows: int, dtype: str) -> NDArray[Any]:
        return self._expect(self._raw(column, chunk, DATA, dtype), rows, column)

    def read_feature(self, column_id: int, dtype: DType) -> Column:
        """A whole feature column; nulls if the segment is older than the feature."""
        if column_id not in self.info.columns:
            return null_column(dtype, self.rows)
        return concat([part for _, _, part in self.feature_chunks(column_id)])

    def read_system(self, column_id: int) -> NDArray[np.int64]:
        """A whole system column (event, created or commit)."""
        column = self.info.columns[column_id]
        if column.encoding == "constant":
            return np.full(self.rows, column.constant, dtype=np.int64)
        chunks = range(len(self.chunk_bounds(column_id)))
        return np.concatenate([np.asarray(self.system(column_id, chunk)) for chunk in chunks])


class SegmentCache:
    """Decoded descriptors and checked chunks, shared by all readers of one open file."""

    def __init__(self) -> None:
        self._infos: dict[tuple[int, int, int], SegmentInfo] = {}
        self._verified: set[tuple[int, ...]] = set()

    def reader(self, txn: ReadTxn, table_id: int, ref: SegmentRef) -> SegmentReader:
        """A reader of the segment `ref` in `txn`."""
        key = (table_id, ref.id, ref.crc)
        if len(self._infos) > SEGMENTS_HELD_MAX:
            self._infos.clear()
            self._verified.clear()
        info = self._infos.get(key)
        if info is None:
            info = self._infos[key] = read_info(txn, table_id, ref)
        return SegmentReader(txn, ref, info, self._verified)
