"""What packed values must be beyond their checksums: in range, with nothing behind the last."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from featuredb.limits import DECIMAL_EXPONENT_MAX, DECIMAL_INTEGER_MAX
from featuredb.schema import DType
from featuredb.storage.segment import ColumnInfo, SegmentReader, unpacked


def frame_fault(column: ColumnInfo) -> str | None:
    """What is wrong with width, base and exponent, None if nothing."""
    frame = (column.width, column.base, column.exponent)
    dtype = column.dtype
    if column.encoding == "packed":
        scalar = not dtype.is_variable and not dtype.is_vector
        exponent_max = DECIMAL_EXPONENT_MAX if scalar and dtype.numpy.kind == "f" else 0
        sound = (
            scalar
            and 0 <= column.width <= 64
            and -(1 << 63) <= column.base < 1 << 63
            and 0 <= column.exponent <= exponent_max
        )
    elif column.encoding == "dictionary":
        sound = dtype.is_variable and 0 <= column.width <= 32 and frame[1:] == (0, 0)
    else:
        sound = frame == (0, 0, 0)
    return None if sound else f"its width, base and exponent are {frame}, and it is {column.encoding} {dtype}"


def packing_faults(reader: SegmentReader, column: ColumnInfo) -> Iterator[str]:
    """What is wrong with the packed integers of a column whose chunks are whole."""
    if not column.width:
        # One value for all rows, however many they are said to be.
        if column.encoding == "packed" and not _in_range(np.array([column.base % (1 << 64)], dtype=np.uint64), column):
            yield "a packed value is out of the range of its dtype"
        return
    for chunk, (first, stop) in enumerate(reader.chunk_bounds(column.id)):
        rows = stop - first
        words = reader.words(column, chunk, rows)
        bits = rows * column.width
        if len(words) and (words[bits >> 6] >> np.uint64(bits & 63) or words[-1]):
            yield "bits behind its last packed value are set"
        if column.encoding == "packed" and not _in_range(unpacked(words, column, rows), column):
            yield "a packed value is out of the range of its dtype"


def _in_range(integers: NDArray[np.uint64], column: ColumnInfo) -> bool:
    low, high = _range(column.dtype)
    # Distances that wrap around give values below the base.
    signed = low < 0
    values = integers.view(np.int64) if signed else integers
    least = column.base if signed else column.base % (1 << 64)
    return low <= least <= int(values.min()) and int(values.max()) <= high


def _range(dtype: DType) -> tuple[int, int]:
    if dtype.numpy.kind == "f":
        return 1 - DECIMAL_INTEGER_MAX, DECIMAL_INTEGER_MAX - 1
    if dtype.numpy.kind == "b":
        return 0, 1
    info = np.iinfo(dtype.numpy)
    return int(info.min), int(info.max)
