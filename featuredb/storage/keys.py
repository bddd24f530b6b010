"""Entity keys as bytes: order-preserving, self-delimiting, so that ``(1, 11)`` can never be ``(11, 1)``.

Integers and timestamps are big-endian with the sign bit flipped, bool is one byte. In string and bytes
the byte 00 becomes 01 01, 01 becomes 01 02, and a 00 ends the value. A composite key is its parts in
the order of the table's entities. Comparing encoded bytes then orders keys as their values do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.errors import CorruptionError, InputError
from featuredb.frames.convert import as_us
from featuredb.limits import KEY_BYTES_MAX
from featuredb.schema import DType

# Longer keys are sorted one by one.
_SORTED_BYTES_MAX = 64
# Tuples made once: a union written in a call is built anew each time, 0.3 us on the path of every read.
_BOOLS, _INTS, _BYTES = (bool, np.bool_), (int, np.integer), (bytes, bytearray, memoryview)


def _sign_bit(dtype: DType) -> int:
    signed = dtype.numpy.kind == "i"
    return 1 << (8 * dtype.numpy.itemsize - 1) if signed else 0


def _encode_fixed(column: Column) -> NDArray[np.uint8]:
    """Big-endian bytes of each value, shape (n, width)."""
    width = column.dtype.numpy.itemsize
    words = np.ascontiguousarray(column.data).view(f"<u{width}") ^ np.array(_sign_bit(column.dtype), f"u{width}")
    raw: NDArray[np.uint8] = words.astype(f">u{width}").view(np.uint8)
    return raw.reshape(len(words), width)


def _decode_fixed(raw: NDArray[np.uint8], dtype: DType) -> NDArray[Any]:
    width = dtype.numpy.itemsize
    words = np.ascontiguousarray(raw).view(f">u{width}").reshape(-1).astype(f"<u{width}")
    values: NDArray[Any] = (words ^ np.array(_sign_bit(dtype), f"u{width}")).view(dtype.numpy)
    return values


def key_words(columns: Sequence[Column], rows: slice) -> NDArray[np.uint64]:
    """The key bytes of some rows as big-endian integers, for keys of a fixed width of at most 8 bytes in all."""
    words = np.zeros(0, dtype=np.uint64)
    for place, column in enumerate(columns):
        width = column.dtype.numpy.itemsize
        part = column.data[rows].view(f"u{width}") ^ np.array(_sign_bit(column.dtype), f"u{width}")
        words = part.astype(np.uint64) if not place else (words << np.uint64(8 * width)) | part
    return words


def _escape(heap: Heap) -> Heap:
    """Every entry escaped and terminated."""
    lengths = np.diff(heap.offsets)
    escaped = heap.data < 2
    extra = np.zeros(len(heap.data) + 1, dtype=np.int64)
    np.cumsum(escaped, out=extra[1:])
    place = np.arange(len(heap.data)) + extra[:-1] + np.repeat(np.arange(len(heap)), lengths)
    offsets = heap.offsets + extra[heap.offsets] + np.arange(len(heap) + 1)
    data = np.zeros(offsets[-1], dtype=np.uint8)
    data[place] = np.where(escaped, 1, heap.data)
    data[place[escaped] + 1] = heap.data[escaped] + 1
    return Heap(offsets, data)


def _unescape(heap: Heap) -> Heap:
    """The inverse of `_escape` for entries without their terminator."""
    # Every second byte of a run of 01 leads an escape: 01 01 and 01 02 both begin with one.
    ones = heap.data == 1
    place = np.arange(len(ones))
    starts = ones & ~np.concatenate([[False], ones[:-1]])[: len(ones)]
    run_start = np.maximum.accumulate(np.where(starts, place, 0))
    mark = ones & ((place - run_start) % 2 == 0)
    follows = np.concatenate([[False], mark[:-1]])[: len(ones)]
    kept = ~mark
    dropped = np.zeros(len(heap.data) + 1, dtype=np.int64)
    np.cumsum(mark, out=dropped[1:])
    values = np.where(follows, heap.data - 1, heap.data)
    return Heap(heap.offsets - dropped[heap.offsets], values[kept].astype(np.uint8))


def encode_keys(columns: Sequence[Column]) -> Heap:
    """The key bytes of every row of `columns`, one column per entity, without nulls."""
    rows = len(columns[0])
    fixed = [None if column.dtype.is_variable else _encode_fixed(column) for column in columns]
    if all(part is not None for part in fixed):
        matrix = np.concatenate([part for part in fixed if part is not None], axis=1)
        return Heap(np.arange(rows + 1, dtype=np.int64) * matrix.shape[1], matrix.reshape(-1))
    variable = [
        None if column.heap is None else _escape(column.heap).take(column.data) if rows else Heap.of([])
        for column in columns
    ]
    if len(columns) == 1 and variable[0] is not None:
        return variable[0]
    lengths = np.zeros(rows, dtype=np.int64)
    for part, heap in zip(fixed, variable, strict=True):
        lengths += part.shape[1] if part is not None else 0
        if heap is not None:
            lengths += np.diff(heap.offsets)
    offsets = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    data = np.empty(offsets[-1], dtype=np.uint8)
    cursor = offsets[:-1].copy()
    for part, heap in zip(fixed, variable, strict=True):
        if part is not None:
            data[cursor[:, None] + np.arange(part.shape[1])] = part
            cursor += part.shape[1]
        elif heap is not None:
            sizes = np.diff(heap.offsets)
            data[np.repeat(cursor - heap.offsets[:-1], sizes) + np.arange(len(heap.data))] = heap.data
            cursor += sizes
    return Heap(offsets, data)


def decode_keys(keys: Heap, dtypes: Sequence[DType]) -> list[Column]:
    """The columns that `encode_keys` made `keys` from."""
    cursor = keys.offsets[:-1].copy()
    ends = keys.offsets[1:]
    zeros = np.flatnonzero(keys.data == 0)
    columns = []
    for dtype in dtypes:
        if not dtype.is_variable:
            width = dtype.numpy.itemsize
            if np.any(cursor + width > ends):
                raise CorruptionError("an entity key is shorter than its dtypes; the file is damaged")
            raw = keys.data[cursor[:, None] + np.arange(width)]
            columns.append(Column(dtype, _decode_fixed(raw, dtype)))
            cursor += width
            continue
        place = np.searchsorted(zeros, cursor)
        stops = np.append(zeros, -1)[place]
        if np.any((stops < cursor) | (stops >= ends)):
            raise CorruptionError("an entity key has no end; the file is damaged")
        lengths = stops - cursor
        offsets = np.zeros(len(cursor) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        source = np.repeat(cursor - offsets[:-1], lengths) + np.arange(offsets[-1])
        heap = _unescape(Heap(offsets, keys.data[source]))
        columns.append(Column(dtype, np.arange(len(cursor), dtype=dtype.numpy), None, heap))
        cursor = stops + 1
    if np.any(cursor != ends):
        raise CorruptionError("an entity key is longer than its dtypes; the file is damaged")
    return columns


def _integer_encoder(dtype: DType) -> Callable[[Any], bytes]:
    info = np.iinfo(dtype.numpy)
    low, high = int(info.min), int(info.max)
    # Flipping the sign bit is adding what makes the least value zero.
    bias, pack = -low, struct.Struct({1: ">B", 2: ">H", 4: ">I", 8: ">Q"}[dtype.numpy.itemsize]).pack

    def encode(value: Any) -> bytes:
        if type(value) is int and low <= value <= high:
            return pack(value + bias)
        if isinstance(value, _BOOLS) or not isinstance(value, _INTS):
            raise InputError(f"{value!r} is not of dtype {dtype}; give an int")
        if not low <= value <= high:
            raise InputError(f"{value!r} is out of range of {dtype}")
        return pack(int(value) + bias)

    return encode


def _encode_bool(value: Any) -> bytes:
    if not isinstance(value, _BOOLS):
        raise InputError(f"{value!r} is not of dtype bool; give True or False")
    return b"\x01" if value else b"\x00"


def _escape_bytes(raw: bytes) -> bytes:
    if 0 in raw or 1 in raw:
        raw = raw.replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")
    return raw + b"\x00"


def _encode_string(value: Any) -> bytes:
    if not isinstance(value, str):
        raise InputError(f"{value!r} is not of dtype string; give a str")
    try:
        return _escape_bytes(value.encode())
    except UnicodeEncodeError:
        raise InputError(f"{value!r} is not valid Unicode; remove the lone surrogate") from None


def _encode_bytes(value: Any) -> bytes:
    if not isinstance(value, _BYTES):
        raise InputError(f"{value!r} is not of dtype bytes; give bytes")
    return _escape_bytes(bytes(value))


def _encode_timestamp(value: Any) -> bytes:
    return ((as_us(value, "entity key") & 0xFFFF_FFFF_FFFF_FFFF) ^ (1 << 63)).to_bytes(8, "big")


def sort_order(keys: Heap) -> NDArray[np.int64]:
    """Positions that put `keys` in byte order."""
    widths = np.diff(keys.offsets)
    width = int(widths.max(initial=0))
    if width > _SORTED_BYTES_MAX:
        entries = keys.tolist()
        return np.array(sorted(range(len(entries)), key=entries.__getitem__), dtype=np.int64)
    if np.all(widths == 8):
        words = keys.data[: keys.offsets[-1]].view(">u8").astype(np.uint64)
        if np.all(words[1:] > words[:-1]):
            return np.arange(len(words))
        return np.argsort(words, kind="stable")
    # Padded with zeros, and then by length, keys are in the order of their bytes. The byte of the length is never
    # zero: numpy would ignore that at the end.
    padded = np.zeros((len(keys), width + 1), dtype=np.uint8)
    place = np.arange(keys.offsets[-1]) - np.repeat(keys.offsets[:-1], widths)
    padded[np.repeat(np.arange(len(keys)), widths), place] = keys.data[: keys.offsets[-1]]
    padded[:, width] = widths + 1
    return np.argsort(padded.view(f"S{width + 1}").reshape(-1), kind="stable")


def whole_keys(prefix: bytes, keys: Heap, spare_bytes: int = 0) -> Heap:
    """Each key with `prefix` in front; behind the last one `spare_bytes` zeros, which belong to none."""
    rows, head = len(keys), len(prefix)
    widths = np.diff(keys.offsets)
    offsets = keys.offsets + head * np.arange(rows + 1)
    data = np.zeros(int(offsets[-1]) + spare_bytes, dtype=np.uint8)
    if rows and np.all(widths == widths[0]):
        matrix = data[: offsets[-1]].reshape(rows, -1)
        matrix[:, :head] = np.frombuffer(prefix, dtype=np.uint8)
        matrix[:, head:] = keys.data.reshape(rows, -1)
    elif rows:
        data[offsets[:-1, None] + np.arange(head)] = np.frombuffer(prefix, dtype=np.uint8)
        data[np.repeat(offsets[:-1] + head - keys.offsets[:-1], widths) + np.arange(keys.offsets[-1])] = keys.data
    return Heap(offsets, data)


def value_encoder(dtype: DType) -> Callable[[Any], bytes]:
    """A function from one Python value to its part of the key; it raises `InputError`."""
    if dtype.is_integer:
        return _integer_encoder(dtype)
    return {
        "bool": _encode_bool,
        "string": _encode_string,
        "bytes": _encode_bytes,
        "timestamp": _encode_timestamp,
    }[dtype.name]


def too_long(keys: Heap) -> NDArray[np.int64]:
    """Rows whose key bytes exceed `KEY_BYTES_MAX`."""
    return np.flatnonzero(np.diff(keys.offsets) > KEY_BYTES_MAX)
