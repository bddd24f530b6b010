"""Packed online rows: one entity key's latest values as bytes, checksummed.

Little-endian, no padding: crc32 of all that follows and then of the key (u32), layout version (u16), event
timestamp (i64), created timestamp (i64), commit id (u64), null bits (bit = 1: null), then the features in order, a
fixed width each (vectors: their elements; strings, bytes and lists: u32 length of the value in bytes), then the
variable-width values one after the other (lists as `Column` has them in its heap).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap, zeroed
from featuredb.errors import CorruptionError, LimitError
from featuredb.limits import CHUNK_BYTES_MAX
from featuredb.schema import DType
from featuredb.storage.crc import crc_tables

Buffer = bytes | memoryview
KeyName = Callable[[int], object]

HEADER = np.dtype(
    [("crc", "<u4"), ("version", "<u2"), ("event", "<i8"), ("created", "<i8"), ("commit", "<u8")], align=False
)
HEADER_BYTES = HEADER.itemsize
# The same behind the checksum, for `struct`.
BODY_CODES = "<HqqQ"
_checked = itemgetter(slice(4, None))
_header = itemgetter(slice(0, HEADER_BYTES))


def damaged(what: str, table: str, key: object) -> CorruptionError:
    """The error for an online row that cannot be trusted."""
    return CorruptionError(
        f"online row of table {table!r}, key {key!r}: {what}; the file is damaged: restore a backup, "
        "or copy what is undamaged with salvage()"
    )


def read_headers(buffers: Sequence[Buffer], keys: Sequence[bytes], table: str, key_of: KeyName) -> NDArray[np.void]:
    """Headers of the rows of these (whole) keys, their checksums verified; ``key_of(i)`` names row `i` in an error."""
    lengths = np.fromiter(map(len, buffers), dtype=np.int64, count=len(buffers))
    short = np.flatnonzero(lengths < HEADER_BYTES)
    if len(short):
        raise damaged(f"{lengths[short[0]]} bytes are too few for a row", table, key_of(int(short[0])))
    headers = np.frombuffer(b"".join(map(_header, buffers)), dtype=HEADER)
    sums = map(zlib.crc32, keys, map(zlib.crc32, map(_checked, buffers)))
    wrong = np.flatnonzero(np.fromiter(sums, dtype=np.uint32, count=len(buffers)) != headers["crc"])
    if len(wrong):
        raise damaged("its checksum does not match", table, key_of(int(wrong[0])))
    return headers


class RowLayout:
    """The bytes of a row for one list of features.

    Parameters
    ----------
    version : int
        Stored in every row, so that a reader knows which layout it has.
    features : sequence of (int, DType)
        Feature ids and dtypes, in the order of their values.
    """

    def __init__(self, version: int, features: Sequence[tuple[int, DType]]) -> None:
        self.version = version
        self.features = tuple(features)
        self.places = {feature_id: place for place, (feature_id, _) in enumerate(self.features)}
        self.null_bytes = (len(self.features) + 7) // 8
        self._names = [f"v{place}" for place in range(len(self.features))]
        self._variable = [place for place, (_, dtype) in enumerate(self.features) if dtype.is_variable]
        self._dtype = np.dtype(
            [
                *((name, HEADER[name]) for name in HEADER.names or ()),
                ("nulls", "u1", (self.null_bytes,)),
                *(
                    (name, "<u4" if dtype.is_variable else dtype.numpy)
                    for name, (_, dtype) in zip(self._names, self.features, strict=True)
                ),
            ],
            align=False,
        )
        self.fixed_bytes = self._dtype.itemsize
        # Where the fixed part of each value stands.
        self.offsets = [self._dtype.fields[name][1] for name in self._names] if self._dtype.fields else []

    def pack_many(
        self,
        keys: Heap,
        event: NDArray[np.int64],
        created: NDArray[np.int64],
        commit: NDArray[Any],
        columns: Sequence[Column],
    ) -> Heap:
        """One row for each of the (whole) keys, from `columns` in feature order; equal rows differ in checksum only."""
        from featuredb.online import kernels

        rows = len(event)
        fixed = np.zeros(rows, dtype=self._dtype)
        fixed["version"] = self.version
        fixed["event"], fixed["created"], fixed["commit"] = event, created, commit
        nulls = fixed["nulls"]
        sizes = np.full(rows, self.fixed_bytes, dtype=np.int64)
        pieces = []
        for place, (name, column) in enumerate(zip(self._names, columns, strict=True)):
            if column.valid is not None:
                nulls[:, place >> 3] |= (~column.valid).astype(np.uint8) << (place & 7)
            if column.heap is not None:
                starts, lengths = _spans(column, column.heap)
                pieces.append((column.heap.data, starts, lengths))
                fixed[name] = lengths
                sizes += lengths
            else:
                # A null is stored as zero whatever the column holds there: content is compared by its bytes.
                fixed[name] = zeroed(column.data, column.valid)
        if rows and int(sizes.max()) > CHUNK_BYTES_MAX:
            raise LimitError(
                f"a row of {int(sizes.max())} bytes is too long; at most {CHUNK_BYTES_MAX}: split the table"
            )
        offsets = np.zeros(rows + 1, dtype=np.int64)
        np.cumsum(sizes, out=offsets[1:])
        data = fixed.view(np.uint8).reshape(-1)
        if pieces:
            widths = np.full(rows, self.fixed_bytes, dtype=np.int64)
            pieces.insert(0, (data, np.cumsum(widths) - widths, widths))
            data = np.empty(int(offsets[-1]), dtype=np.uint8)
            cursor = offsets[:-1].copy()
            for source, starts, lengths in pieces:
                kernels.copy_spans(source, starts, lengths, cursor, data)
                cursor += lengths
        kernels.checksum(data, offsets, keys.data, keys.offsets, crc_tables())
        return Heap(offsets, data)

    def unpack_many(
        self,
        buffers: Sequence[Buffer],
        keys: Sequence[bytes],
        table: str = "",
        key_of: KeyName = int,
        places: Sequence[int] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64], list[Column]]:
        """Event, created and commit of the rows of these (whole) keys, and the columns at `places` (None: all).

        Raises
        ------
        CorruptionError
            Names `table` and ``key_of(i)`` of the first row that is not what was written.
        """
        headers = read_headers(buffers, keys, table, key_of)
        raw = np.frombuffer(b"".join(buffers), dtype=np.uint8)
        sizes = np.fromiter(map(len, buffers), dtype=np.int64, count=len(buffers))
        self._raise_first(headers["version"] != self.version, "it has another layout than asked", table, key_of)
        self._raise_first(sizes < self.fixed_bytes, "it is shorter than its layout", table, key_of)
        if self._variable:
            front = itemgetter(slice(0, self.fixed_bytes))
            fixed = np.frombuffer(b"".join(map(front, buffers)), dtype=self._dtype)
        else:
            self._raise_first(sizes != self.fixed_bytes, "it is longer than its layout", table, key_of)
            fixed = raw.view(self._dtype)
        # starts[place]: where the values of that variable-width feature begin within raw.
        cursor = np.cumsum(sizes) - sizes + self.fixed_bytes
        starts = {}
        for place in self._variable:
            starts[place] = cursor
            cursor = cursor + fixed[self._names[place]]
        self._raise_first(cursor != np.cumsum(sizes), "its values do not fill it", table, key_of)
        wanted = range(len(self.features)) if places is None else places
        nulls = fixed["nulls"] if fixed["nulls"].any() else None
        columns = [self._column(place, fixed[self._names[place]], nulls, starts.get(place), raw) for place in wanted]
        return headers["event"].copy(), headers["created"].copy(), headers["commit"].copy(), columns

    def _column(
        self,
        place: int,
        data: NDArray[Any],
        nulls: NDArray[np.uint8] | None,
        starts: NDArray[np.int64] | None,
        raw: NDArray[np.uint8],
    ) -> Column:
        dtype = self.features[place][1]
        valid = None
        if nulls is not None:
            bits = nulls[:, place >> 3] >> (place & 7) & 1
            valid = (bits == 0) if bits.any() else None
        if starts is None:
            return Column(dtype, data.copy(), valid)
        rows = np.arange(len(data))
        spans = np.append(np.stack([starts, starts + data], axis=1).reshape(-1), len(raw))
        heap = Heap(spans.astype(np.int64), raw).take(2 * rows)
        numbers = rows if valid is None else np.where(valid, rows, 0)
        return Column(dtype, numbers.astype(dtype.numpy), valid, heap)

    @staticmethod
    def _raise_first(wrong: NDArray[np.bool_], what: str, table: str, key_of: KeyName) -> None:
        if wrong.any():
            raise damaged(what, table, key_of(int(np.argmax(wrong))))


def _spans(column: Column, heap: Heap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where in the heap's data each value of a string, bytes or list column begins, and its length; of a null, 0."""
    if not len(heap):
        nothing = np.zeros(len(column), dtype=np.int64)
        return nothing, nothing
    starts = heap.offsets[column.data]
    lengths = heap.offsets[column.data.astype(np.int64) + 1] - starts
    return starts, zeroed(lengths, column.valid)
