"""Segments: immutable rows of one table, sorted by (code, event, created), in checksummed column chunks.

A column is cut into chunks of a fixed number of rows, so that the chunk and place of a row follow from
its position. The descriptor names every chunk with its length and checksum; FORMAT.md has the bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap, null_column
from featuredb.errors import CorruptionError
from featuredb.limits import NS_FORMAT, SEGMENT_ROWS_MAX, SEGMENTS_HELD_MAX
from featuredb.schema import DTYPES, DType
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.manifest import SegmentRef, chunk_prefix, dead_key, segment_key
from featuredb.storage.records import decode, text, whole, wholes

# Column ids of the system columns; features count up from 1.
EVENT, CREATED, COMMIT, CODES, STARTS = range(0xFFFF_FFF0, 0xFFFF_FFF5)
SYSTEM_COLUMNS = frozenset((EVENT, CREATED, COMMIT, CODES, STARTS))
DATA, VALID, OFFSETS, BYTES = range(4)
_LEAST, _GREATEST = -(1 << 63), (1 << 63) - 1
SYSTEM_DTYPES = {EVENT: "int64", CREATED: "int64", COMMIT: "int64", CODES: "int32", STARTS: "int32"}


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """How one column of a segment is stored.

    ``encoding`` is ``packed`` (integers of `width` bits; the values are ``(base + integer) / 10**exponent``),
    ``plain`` (fixed-width values), ``null`` (only nulls, no chunk), ``dictionary`` (packed entry numbers, and one
    heap for the segment) or ``heap`` (a heap a chunk). ``chunks`` maps (chunk, part) to (bytes, checksum).
    """

    id: int
    dtype: DType
    encoding: str
    chunk_rows: int
    null_count: int
    width: int
    base: int
    exponent: int
    chunks: Mapping[tuple[int, int], tuple[int, int]]

    @property
    def nbytes(self) -> int:
        return sum(size for size, _ in self.chunks.values())

    @property
    def constant(self) -> int | None:
        """The integer that all rows have, None if they differ."""
        return self.base if self.encoding == "packed" and self.width == 0 else None


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


def read_info(txn: ReadTxn, table_id: int, ref: SegmentRef) -> SegmentInfo:
    """The descriptor of the segment `ref`."""
    what = f"the descriptor of segment {ref.id} of table {table_id}"
    key = segment_key(table_id, ref.id)
    raw = txn.get(key)
    if raw is None or zlib.crc32(raw) != ref.crc:
        raise CorruptionError(f"{what} is missing or damaged; restore the file from a backup")

    def info(record: Any) -> SegmentInfo:
        (rows, *zone), stored = record
        whole(rows, 0, SEGMENT_ROWS_MAX)
        columns = {column.id: column for column in (_column_of(fields, rows) for fields in stored)}
        for column_id, dtype in SYSTEM_DTYPES.items():
            if columns[column_id].dtype.name != dtype:
                raise ValueError(f"column {column_id} is {columns[column_id].dtype}")
        event_min, event_max, code_min, code_max = wholes(zone, _LEAST, _GREATEST)
        return SegmentInfo(table_id, ref.id, rows, event_min, event_max, code_min, code_max, columns)

    return decode(key, raw, what, info)


def _column_of(fields: Any, rows: int) -> ColumnInfo:
    """A column of a descriptor: numbers of the right kind, which may yet contradict one another."""
    column_id, dtype, encoding, chunk_rows, nulls, width, base, exponent, chunks = fields
    refs = {(chunk, part): (size, expected) for chunk, part, size, expected in chunks}
    wholes(chain.from_iterable(chunks))
    # Each chunk has a value, and of starts there is one more than of rows.
    wholes((chunk for chunk, _ in refs), 0, rows)
    wholes((part for _, part in refs), 0, BYTES)
    wholes((width, exponent), 0, 0xFF)
    facts = (text(encoding), whole(chunk_rows), whole(nulls), width, whole(base, _LEAST, _GREATEST), exponent)
    return ColumnInfo(whole(column_id, 0, 0xFFFF_FFFF), DTYPES[dtype], *facts, refs)


def frozen(values: NDArray[Any]) -> NDArray[Any]:
    """A read-only view: chunks in the file are read-only, and numba compiles anew for each kind it meets."""
    view = values.view()
    view.flags.writeable = False
    return view


def address_of(raw: memoryview) -> int:
    """Where the bytes begin in memory."""
    return int(np.frombuffer(raw, dtype=np.uint8).__array_interface__["data"][0])


def checksum(raw: memoryview | bytes) -> int:
    """The checksum of a chunk: XXH64, as CRC-32 would take most of the time of a first join."""
    from featuredb.storage import kernels

    data = np.frombuffer(raw, dtype=np.uint8)
    words = data[: len(data) & ~7]
    if words.__array_interface__["data"][0] % 8:
        words = words.copy()
    return int(kernels.xxh64(frozen(words.view(np.uint64)), frozen(data[len(words) :])))


def words_of(values: int, width: int) -> int:
    """64-bit words of that many packed values of `width` bits: one more than they take, none without bits."""
    return (values * width + 63) // 64 + 1 if width else 0


def unpacked(words: NDArray[np.uint64], column: ColumnInfo, rows: int) -> NDArray[np.uint64]:
    """The integers of a chunk, negative ones as two's complement."""
    from featuredb.storage import kernels

    base = np.uint64(column.base % (1 << 64))
    if column.width == 0:
        return np.full(rows, base, dtype=np.uint64)
    out = np.empty(rows, dtype=np.uint64)
    kernels.unpack(words, base, column.width, out)
    return out


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
    views : dict
        For whoever reads by address: what is known of where chunks lie, as long as they lie there.
    """

    def __init__(
        self,
        txn: ReadTxn,
        ref: SegmentRef,
        info: SegmentInfo,
        verified: set[tuple[int, ...]],
        views: dict[tuple[int, ...], Any],
    ) -> None:
        self._txn = txn
        self._verified = verified
        self.views = views
        self.ref = ref
        self.info = info
        self.rows = info.rows

    def _key(self, column_id: int, chunk: int, part: int) -> bytes:
        prefix = chunk_prefix(self.info.table_id, self.ref.id) + column_id.to_bytes(4, "big")
        return prefix + chunk.to_bytes(4, "big") + bytes([part])

    def _raw(self, column: ColumnInfo, chunk: int, part: int, dtype: str) -> NDArray[Any]:
        if (chunk, part) not in column.chunks:
            raise self.damaged(column, f"it has no chunk {chunk}")
        size, expected = column.chunks[chunk, part]
        return self._checked(self._key(column.id, chunk, part), size, expected, dtype)

    def chunk_fault(self, column_id: int, chunk: int, part: int, *, read: bool = True) -> str | None:
        """What is wrong with the bytes of a chunk, None if they are those its descriptor names.

        Without `read` only that they are there, and as many.
        """
        size, expected = self.info.columns[column_id].chunks[chunk, part]
        key = self._key(column_id, chunk, part)
        return self._fault(key, size, expected)[1] if read else _length_fault(self._txn.get(key), size)

    def stored(self, column_id: int, chunk: int, part: int) -> memoryview:
        """The bytes of a chunk as they lie in the file: of the right length, and perhaps not yet checked."""
        size, _ = self.info.columns[column_id].chunks[chunk, part]
        key = self._key(column_id, chunk, part)
        raw = self._txn.get(key)
        fault = _length_fault(raw, size)
        if raw is None or fault is not None:
            raise self._chunk_error(key, fault or "")
        return raw

    def is_checked(self, column_id: int, chunk: int, part: int) -> bool:
        """Whether this process has checked the checksum of a chunk."""
        _, expected = self.info.columns[column_id].chunks[chunk, part]
        return (int.from_bytes(self._key(column_id, chunk, part)[1:], "big"), expected) in self._verified

    def check(self, column_id: int, chunk: int, part: int) -> None:
        """Check the checksum of a chunk, unless this process has; from any thread."""
        size, expected = self.info.columns[column_id].chunks[chunk, part]
        self._checked(self._key(column_id, chunk, part), size, expected, "u1")

    def _fault(self, key: bytes, size: int, expected: int) -> tuple[memoryview, str | None]:
        raw = self._txn.get(key)
        fault = _length_fault(raw, size)
        if raw is None or fault is not None:
            return memoryview(b""), fault
        seen = (int.from_bytes(key[1:], "big"), expected)
        if seen not in self._verified:
            if checksum(raw) != expected:
                return raw, "is damaged: its checksum does not match"
            self._verified.add(seen)
        return raw, None

    def _checked(self, key: bytes, size: int, expected: int, dtype: str) -> NDArray[Any]:
        raw, fault = self._fault(key, size, expected)
        if fault is None and size % np.dtype(dtype).itemsize:
            fault = f"has {size} bytes, which are no values of {np.dtype(dtype).itemsize}"
        if fault is not None:
            raise self._chunk_error(key, fault)
        values = np.frombuffer(raw, dtype=dtype)
        # Small chunks share a page with others and may lie at any even address; kernels want alignment, and so
        # do the elements of vectors, which the flag of a void array does not tell.
        aligned = values.flags.aligned and (dtype[-1:] == "1" or values.__array_interface__["data"][0] % 8 == 0)
        # What is in a page that a write transaction has changed moves with whatever it writes next.
        return values if aligned and not isinstance(self._txn, WriteTxn) else frozen(values.copy())

    def _chunk_error(self, key: bytes, fault: str) -> CorruptionError:
        return CorruptionError(
            f"table {self.info.table_id}, segment {self.ref.id}: chunk {key.hex()} {fault}; "
            "run `featuredb verify`, and restore the file from a backup"
        )

    def chunk_bounds(self, column_id: int) -> list[tuple[int, int]]:
        """First and last + 1 row of each chunk of a column."""
        column = self.info.columns[column_id]
        step = column.chunk_rows
        if step < 1:
            raise self.damaged(column, f"chunks of {step} rows")
        return [(first, min(first + step, self.rows)) for first in range(0, self.rows, step)]

    def _expect(self, values: NDArray[Any], rows: int, column: ColumnInfo) -> NDArray[Any]:
        if len(values) != rows:
            raise self.damaged(column, f"a chunk has {len(values)} values instead of {rows}")
        return values

    def damaged(self, column: ColumnInfo, what: str) -> CorruptionError:
        """What to raise if a column is not as it must be."""
        return CorruptionError(
            f"table {self.info.table_id}, segment {self.ref.id}, column {column.id}: {what}; "
            "run `featuredb verify`, and restore the file from a backup"
        )

    def check_encoding(self, column: ColumnInfo) -> None:
        """Raise `CorruptionError` if values of the dtype of a column are never stored as it says."""
        if column.dtype.is_variable:
            known: tuple[str, ...] = ("dictionary", "heap", "null")
        else:
            known = ("plain", "null") if column.dtype.is_vector else ("plain", "packed", "null")
        if column.encoding not in known:
            raise self.damaged(column, f"it is {column.encoding} {column.dtype}")

    def words(self, column: ColumnInfo, chunk: int, rows: int) -> NDArray[np.uint64]:
        """The packed values of a chunk: value `i` begins at bit ``i * width``, and one word follows the last."""
        if not column.width:
            return frozen(np.zeros(0, dtype=np.uint64))
        if not 0 < column.width <= 64:
            raise self.damaged(column, f"its values have {column.width} bits")
        found = self._raw(column, chunk, DATA, "<u8")
        return self._expect(found, words_of(rows, column.width), column)

    def system(self, column_id: int, chunk: int) -> NDArray[np.int64] | int:
        """One chunk of the event, created or commit column, or the one value that all rows have."""
        column = self.info.columns[column_id]
        if column.constant is not None:
            return column.constant
        first, stop = self.chunk_bounds(column_id)[chunk]
        return self._values(column, chunk, stop - first)

    def _index(self, column_id: int) -> NDArray[np.int32]:
        column = self.info.columns[column_id]
        if column.encoding != "plain":
            raise self.damaged(column, f"its encoding is {column.encoding!r}")
        parts = [self._raw(column, chunk, DATA, "int32") for chunk in range(max(1, len(column.chunks)))]
        # Searches take the place of a value from `chunk_rows`.
        full = all(len(part) == column.chunk_rows for part in parts[:-1])
        if not full or not 0 < len(parts[-1]) <= column.chunk_rows:
            raise self.damaged(column, f"its chunks are not of {column.chunk_rows} values")
        return parts[0] if len(parts) == 1 else frozen(np.concatenate(parts))

    def entity_index(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Sorted distinct codes (u,), and where the rows of each start (u + 1,)."""
        codes, starts = self._index(CODES), self._index(STARTS)
        if len(starts) != len(codes) + 1 or starts[0] != 0 or starts[-1] != self.rows:
            raise self.damaged(self.info.columns[STARTS], "its entity index is damaged")
        times = [self.info.columns[number] for number in (EVENT, CREATED)]
        bits = sum(64 if column.encoding == "plain" else column.width for column in times)
        # All rows differ in key or time, so that no few bytes can stand for millions of rows.
        if self.rows > len(codes) << min(bits, 32):
            what = f"rows are out of order: {self.rows} of {len(codes)} keys differ in {bits} bits of time"
            raise self.damaged(times[0], what)
        return codes, starts

    def dead(self) -> NDArray[np.int32]:
        """Sorted positions of rows replaced by later ingests."""
        if not self.ref.dead_count:
            return np.zeros(0, dtype=np.int32)
        key = dead_key(self.info.table_id, self.ref.id, self.ref.dead_version)
        return self._checked(key, 4 * self.ref.dead_count, self.ref.dead_checksum, "int32")

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

    def dictionary(self, column_id: int) -> Heap:
        """The entries of a column with encoding ``dictionary``."""
        return self._heap(self.info.columns[column_id], 0)

    def _heap(self, column: ColumnInfo, chunk: int) -> Heap:
        offsets = self._raw(column, chunk, OFFSETS, "<u4").astype(np.int64)
        data = self._raw(column, chunk, BYTES, "u1")
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(data) or np.any(np.diff(offsets) < 0):
            raise self.damaged(column, "a heap's offsets are damaged")
        return Heap(offsets, data)

    def _feature_chunk(self, column: ColumnInfo, chunk: int, rows: int, heap: Heap | None) -> Column:
        self.check_encoding(column)
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
        data = self._values(column, chunk, rows)
        if heap is not None and len(data) and data.view(np.uint32).max() >= len(heap):
            raise self.damaged(column, "an entry number is not in its dictionary")
        if valid is not None and column.encoding != "plain":
            # What is packed under a null is the base.
            data[~valid] = 0
        return Column(column.dtype, data, valid, heap)

    def _values(self, column: ColumnInfo, chunk: int, rows: int) -> NDArray[Any]:
        """The values of a chunk, or of a dictionary its entry numbers."""
        dtype = column.dtype.numpy
        if column.encoding == "plain":
            return self._expect(self._raw(column, chunk, DATA, dtype.str), rows, column)
        integers = unpacked(self.words(column, chunk, rows), column, rows)
        if dtype.kind == "f":
            return (integers.view(np.int64) / 10.0**column.exponent).astype(dtype, copy=False)
        if dtype.kind == "b":
            return integers.astype(np.uint8).view(np.bool_)
        return integers.view(np.int64).astype(dtype, copy=False) if dtype != np.uint64 else integers

    def feature_parts(self, column_id: int, dtype: DType) -> list[Column]:
        """A whole feature column, in parts; nulls if the segment is older than the feature."""
        if column_id not in self.info.columns:
            return [null_column(dtype, self.rows)]
        return [part for _, _, part in self.feature_chunks(column_id)]

    def read_system(self, column_id: int) -> NDArray[np.int64]:
        """A whole system column (event, created or commit)."""
        column = self.info.columns[column_id]
        if column.constant is not None:
            return np.broadcast_to(np.int64(column.constant), self.rows)
        chunks = range(len(self.chunk_bounds(column_id)))
        return np.concatenate([np.asarray(self.system(column_id, chunk)) for chunk in chunks])


def _length_fault(raw: memoryview | None, size: int) -> str | None:
    if raw is None:
        return "is missing"
    return None if len(raw) == size else f"has {len(raw)} bytes instead of {size}"


class SegmentCache:
    """Decoded descriptors and checked chunks, shared by all readers of one open file."""

    def __init__(self) -> None:
        self._infos: dict[tuple[int, int, int], SegmentInfo] = {}
        self._verified: set[tuple[int, ...]] = set()
        # Of each table the tail as it last was (see `offline.tail`), with what tells whether it still is.
        self.tails: dict[int, tuple[tuple[Any, ...], SegmentReader]] = {}
        # Where chunks lie, as of one commit: what it was, where its first entry lay, and the views.
        self._views: tuple[int, int, dict[tuple[int, ...], Any]] = (-1, 0, {})

    def reader(self, txn: ReadTxn, table_id: int, ref: SegmentRef) -> SegmentReader:
        """A reader of the segment `ref` in `txn`."""
        key = (table_id, ref.id, ref.crc)
        if len(self._infos) > SEGMENTS_HELD_MAX:
            self._infos.clear()
            self._verified.clear()
        info = self._infos.get(key)
        if info is None:
            info = self._infos[key] = read_info(txn, table_id, ref)
        return SegmentReader(txn, ref, info, self._verified, self._views_in(txn))

    def _views_in(self, txn: ReadTxn) -> dict[tuple[int, ...], Any]:
        """Views that hold in `txn`. As long as nothing is committed, every chunk stays where it is.

        Another commit may move small chunks, and put others where removed ones lay. The map as a whole moves when
        it grows, which the address of the file's first entry tells. What a transaction writes has no lasting place.
        """
        if isinstance(txn, WriteTxn):
            return {}
        first = txn.get(NS_FORMAT)
        commit, address = txn.id(), 0 if first is None else address_of(first)
        held = self._views
        if held[:2] != (commit, address):
            held = self._views = (commit, address, {})
        return held[2]
