"""Fixed-width values as packed integers: how a column is packed, chosen when it is written.

One frame of reference for the whole column (Zukowski et al., "Super-scalar RAM-CPU cache compression", ICDE
2006): every value is stored as its distance from the least, in as many bits as the greatest distance takes. So
the place of any value follows from its number. Floats that are decimals are stored as integers (as in ALP,
Afroozeh et al., SIGMOD 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column
from featuredb.limits import CHUNK_ROWS_MAX, DECIMAL_EXPONENT_MAX, DECIMAL_INTEGER_MAX, PACKED_SAVING_MIN
from featuredb.storage import kernels
from featuredb.storage.segment import frozen, words_of

# Floats that are tried before the whole column is read; few of the columns that pass are no decimals.
_SAMPLE_ROWS = 1024
_NO_ROWS: NDArray[Any] = frozen(np.zeros(0, dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class Packing:
    """Values are ``(base + v) / 10**exponent`` for unsigned integers `v` of `width` bits (0 to 64)."""

    width: int
    base: int
    exponent: int = 0


def choose(column: Column) -> Packing | None:
    """How to pack a column of fixed-width scalars, not all of them null; None if that saves too little."""
    packing = _of_floats(column) if column.dtype.numpy.kind == "f" else _of_integers(column)
    return packing if packing is not None and worthwhile(column, packing.width) else None


def packed(packing: Packing, data: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[np.uint64]:
    """Some values of the column that `packing` was chosen for, as the words of a chunk."""
    out = np.zeros(words_of(len(data), packing.width), dtype=np.uint64)
    present = mask(valid)
    if data.dtype.kind == "f":
        integers = np.empty(len(data), dtype=np.int64)
        kernels.decimals(_doubles(data), present, 10.0**packing.exponent, integers)
        data = integers
    kernels.pack(_integers(data), present, np.uint64(packing.base % (1 << 64)), packing.width, out)
    return out


def mask(valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Validity as kernels take it: empty if nothing is null."""
    return _NO_ROWS if valid is None else frozen(np.ascontiguousarray(valid))


def _integers(data: NDArray[Any]) -> NDArray[np.uint64]:
    """Integers, bools or timestamps as 64-bit words, negative ones as two's complement."""
    wide = data.astype(np.int64 if data.dtype.kind == "i" else np.uint64, copy=False)
    return frozen(np.ascontiguousarray(wide).view(np.uint64))


def _doubles(data: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # a signalling NaN stays a NaN, and is no decimal
        return frozen(np.ascontiguousarray(data, dtype=np.float64))


def _of_integers(column: Column) -> Packing:
    data, valid = column.data, column.valid
    if data.strides == (0,) and data.dtype.kind == "i":
        return Packing(0, int(data[0]))
    flip, dtype = (np.uint64(1 << 63), np.int64) if data.dtype.kind == "i" else (np.uint64(0), np.uint64)
    found = np.empty(2, dtype=np.uint64)
    least, greatest = [], []
    for first in range(0, len(data), CHUNK_ROWS_MAX):
        part = slice(first, first + CHUNK_ROWS_MAX)
        if valid is None or valid[part].any():
            present = mask(None if valid is None else valid[part])
            kernels.bounds(_integers(data[part]), present, flip, found)
            low, high = found.view(dtype).tolist()
            least.append(low)
            greatest.append(high)
    base = min(least)
    return Packing((max(greatest) - base).bit_length(), base if base < 1 << 63 else base - (1 << 64))


def _of_floats(column: Column) -> Packing | None:
    """The least exponent that makes decimals of all values; a greater one would only make the integers longer."""
    rows = len(column)
    step = max(1, rows // _SAMPLE_ROWS)
    tried = column.take(slice(0, rows, step))
    for exponent in range(DECIMAL_EXPONENT_MAX + 1):
        failed, least, greatest = _decimals(tried, exponent)
        if failed >= 0:
            continue
        if not worthwhile(column, max(0, greatest - least).bit_length()):
            return None
        failed, least, greatest = _decimals(column, exponent)
        if failed < 0:
            return Packing((greatest - least).bit_length(), least, exponent)
        # Most likely it fails with the next exponent as well, which shows at once.
        tried = column.take(slice(failed, failed + 1))
    return None


def worthwhile(column: Column, width: int) -> bool:
    """Whether packing so many bits a value saves enough: short columns may even grow."""
    plain_bytes = len(column) * column.dtype.numpy.itemsize
    return 8 * words_of(len(column), width) <= (1 - PACKED_SAVING_MIN) * plain_bytes


def _decimals(column: Column, exponent: int) -> tuple[int, int, int]:
    """The first row that is no decimal, or -1, and the least and greatest integer."""
    found = np.zeros(2, dtype=np.int64)
    least, greatest = DECIMAL_INTEGER_MAX, -DECIMAL_INTEGER_MAX
    single = column.dtype.numpy.itemsize == 4
    for first in range(0, len(column), CHUNK_ROWS_MAX):
        part = column.take(slice(first, first + CHUNK_ROWS_MAX))
        doubles, present = _doubles(part.data), mask(part.valid)
        failed = kernels.decimal_bounds(doubles, present, 10.0**exponent, single, float(DECIMAL_INTEGER_MAX), found)
        if failed >= 0:
            return first + failed, 0, 0
        least, greatest = min(least, int(found[0])), max(greatest, int(found[1]))
    return -1, least, greatest
