"""Checked casts of flat arrays to a dtype: a value is kept as it is, or its row is reported.

Knows numpy and Python's own types only; pandas and Arrow are taken apart in `convert`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Heap
from featuredb.limits import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, VALUE_BYTES_MAX
from featuredb.schema import DType

Mask = NDArray[np.bool_]

BELOW_MICROSECOND = "has a part below a microsecond; round it first, for example with .dt.floor('us')"
OUTSIDE_YEARS = "is outside the years 1 to 9999; leave the row out"

# Lengths of numpy's datetime units in microseconds; months and years have none.
_UNIT_US = {
    "W": Fraction(604_800_000_000),
    "D": Fraction(86_400_000_000),
    "h": Fraction(3_600_000_000),
    "m": Fraction(60_000_000),
    "s": Fraction(1_000_000),
    "ms": Fraction(1000),
    "us": Fraction(1),
    "ns": Fraction(1, 10**3),
    "ps": Fraction(1, 10**6),
    "fs": Fraction(1, 10**9),
    "as": Fraction(1, 10**12),
}
_MONTHS = {"Y": 12, "M": 1}


@dataclass(slots=True)
class Cast:
    """Values cast to a dtype, with the rows that are null or could not be cast (their `data` means nothing).

    A row that is both null and bad is bad.
    """

    data: NDArray[Any]
    null: Mask | None = None
    bad: list[tuple[str, Mask]] = field(default_factory=list)
    heap: Heap | None = None

    def reject(self, reason: str, mask: Mask) -> None:
        """Marks the rows of `mask`, if there are any; one mask for each reason."""
        if not mask.any():
            return
        for place, (known, marked) in enumerate(self.bad):
            if known == reason:
                self.bad[place] = (reason, marked | mask)
                return
        self.bad.append((reason, mask))

    def take(self, places: NDArray[Any]) -> Cast:
        """The cast of ``values[places]``."""
        null = None if self.null is None else self.null[places]
        return Cast(self.data[places], null, [(reason, mask[places]) for reason, mask in self.bad], self.heap)


def merge(rows_total: int, numpy_dtype: np.dtype[Any], parts: Sequence[tuple[NDArray[np.int64], Cast]]) -> Cast:
    """One cast of `rows_total` rows from casts of some of them; rows in no part are null."""
    merged = Cast(np.zeros(rows_total, dtype=numpy_dtype), np.ones(rows_total, dtype=np.bool_))
    assert merged.null is not None
    for rows, cast in parts:
        merged.data[rows] = cast.data
        merged.null[rows] = False if cast.null is None else cast.null
        merged.heap = merged.heap or cast.heap
        for reason, mask in cast.bad:
            merged.reject(reason, lift(rows_total, rows[mask]))
    return merged


def lift(rows_total: int, rows: NDArray[Any]) -> Mask:
    """A mask of `rows_total` rows, True at `rows`."""
    mask = np.zeros(rows_total, dtype=np.bool_)
    mask[rows] = True
    return mask


def absent(data: NDArray[Any], nan_is_null: bool) -> Mask | None:
    """Which values of an array stand for null: NaT, and by pandas' convention NaN."""
    if data.dtype.kind == "M":
        found = np.isnat(data)
    elif data.dtype.kind == "f" and nan_is_null:
        found = np.isnan(data)
    else:
        return None
    return found if found.any() else None


def cast_array(data: NDArray[Any], dtype: DType, nan_is_null: bool = False) -> Cast | None:
    """`data` (any kind but object) as `dtype`; None if arrays of its kind never are."""
    kind = data.dtype.kind
    cast: Cast | None = None
    if dtype.name == "bool" and kind == "b":
        cast = Cast(data)
    elif dtype.is_integer and kind in "iu":
        cast = _integers_to_integer(data, dtype)
    elif dtype.is_integer and kind == "f":
        cast = _floats_to_integer(data, dtype, nan_is_null)
    elif dtype.is_float and kind in "iu":
        cast = _integers_to_float(data, dtype)
    elif dtype.is_float and kind == "f":
        cast = _floats_to_float(data, dtype)
    elif dtype.name == "timestamp" and kind == "M":
        cast = cast_datetimes(data)
    elif dtype.name == "string" and kind == "U":
        cast = cast_strings(data.tolist())
    elif dtype.name == "bytes" and kind == "S":
        cast = cast_bytes(data.tolist())
    if cast is not None:
        cast.null = absent(data, nan_is_null)
    return cast


def out_of_range(dtype: DType) -> str:
    return f"is out of the range of {dtype}"


def _without(data: NDArray[Any], mask: Mask) -> NDArray[Any]:
    """`data` with zeros at `mask`, so that what follows cannot overflow."""
    return np.where(mask, np.zeros(1, dtype=data.dtype), data) if mask.any() else data


def _integers_to_integer(data: NDArray[Any], dtype: DType) -> Cast:
    if np.can_cast(data.dtype, dtype.numpy):
        return Cast(data.astype(dtype.numpy, copy=False))
    have, want = np.iinfo(data.dtype), np.iinfo(dtype.numpy)
    outside = (data < max(have.min, want.min)) | (data > min(have.max, want.max))
    cast = Cast(_without(data, outside).astype(dtype.numpy))
    cast.reject(out_of_range(dtype), outside)
    return cast


def _floats_to_integer(data: NDArray[Any], dtype: DType, nan_is_null: bool) -> Cast:
    if data.dtype.itemsize < 8:
        data = data.astype(np.float64)
    bounds = np.iinfo(dtype.numpy)
    nan = np.isnan(data)
    # Both bounds are powers of two or zero, hence exact as floats; the largest integer itself would not be.
    outside = (data < float(bounds.min)) | (data >= float(int(bounds.max) + 1))
    broken = ~nan & ~outside & (np.floor(data) != data)
    cast = Cast(_without(data, nan | outside | broken).astype(dtype.numpy))
    if not nan_is_null:
        cast.reject(f"is NaN, which {dtype} cannot hold; use None for null", nan)
    cast.reject(out_of_range(dtype), outside)
    cast.reject("is not a whole number", broken)
    return cast


def inexact(dtype: DType) -> str:
    return f"is an integer that {dtype} cannot hold exactly"


def _integers_to_float(data: NDArray[Any], dtype: DType) -> Cast:
    floats = data.astype(dtype.numpy)
    cast = Cast(floats)
    if not np.can_cast(data.dtype, dtype.numpy, casting="safe") or data.dtype.itemsize == 8:
        # The largest integers round up to a float one beyond the range: inexact, and not to be cast back.
        beyond = floats >= float(int(np.iinfo(data.dtype).max) + 1)
        back = _without(floats, beyond).astype(data.dtype)
        cast.reject(inexact(dtype), beyond | (back != data))
    return cast


def _floats_to_float(data: NDArray[Any], dtype: DType) -> Cast:
    if np.can_cast(data.dtype, dtype.numpy):
        return Cast(data.astype(dtype.numpy, copy=False))
    with np.errstate(over="ignore", under="ignore"):
        cast = Cast(data.astype(dtype.numpy))
    cast.reject(out_of_range(dtype), np.isinf(cast.data) & ~np.isinf(data))
    return cast


def cast_datetimes(data: NDArray[Any]) -> Cast:
    """datetime64 of any unit to int64 microseconds; NaT is left to `absent`."""
    unit, count = np.datetime_data(data.dtype)
    if unit == "generic":  # such arrays hold nothing but NaT
        return Cast(np.zeros(len(data), dtype=np.int64), np.ones(len(data), dtype=np.bool_))
    ticks = data.astype(data.dtype.newbyteorder("="), copy=False).view(np.int64)
    null = np.isnat(data)
    cast = Cast(ticks, null if null.any() else None)
    if unit in _MONTHS:
        months = _MONTHS[unit] * count
        outside = (ticks < -1969 * 12 // months) | (ticks >= 8030 * 12 // months)
        months_only = (_without(ticks, outside) * months).view("M8[M]")
        cast.data = months_only.astype("M8[us]").view(np.int64)
        cast.reject(OUTSIDE_YEARS, outside & ~null)
        return cast
    tick_us = _UNIT_US[unit] * count
    first = math.ceil(TIMESTAMP_MIN_US / tick_us)
    last = math.floor(TIMESTAMP_MAX_US / tick_us)
    outside = (ticks < max(first, -(2**63))) | (ticks > min(last, 2**63 - 1))
    whole, part = ticks, None
    if tick_us.denominator > 1:
        whole = ticks // tick_us.denominator
        part = whole * tick_us.denominator != ticks
    cast.data = _without(whole, outside) * tick_us.numerator if tick_us.numerator > 1 else whole
    cast.reject(OUTSIDE_YEARS, outside & ~null)
    if part is not None:
        cast.reject(BELOW_MICROSECOND, part & ~null & ~outside)
    return cast


def factorize(values: Sequence[Any]) -> tuple[list[Any], NDArray[np.int32]]:
    """The distinct values, in order of first appearance, and each value's place among them."""
    # A dict keeps pandas out of online reads; pandas.factorize of 1 million strings is no faster than this.
    distinct = dict.fromkeys(values)
    places = dict(zip(distinct, range(len(distinct)), strict=True))
    return list(distinct), np.fromiter(map(places.__getitem__, values), dtype=np.int32, count=len(values))


def cast_strings(values: Sequence[str]) -> Cast:
    """Strings as places in a heap of the distinct ones."""
    distinct, places = factorize(values)
    try:
        return _heap_cast(Heap.of(list(map(str.encode, distinct))), places)
    except UnicodeEncodeError:
        cast = _heap_cast(Heap.of([text.encode(errors="replace") for text in distinct]), places)
        encodes = np.fromiter(map(_encodes, distinct), dtype=np.bool_, count=len(distinct))
        cast.reject("is not valid Unicode: it holds a lone surrogate", ~encodes[places])
        return cast


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cast_bytes(values: Sequence[bytes]) -> Cast:
    """Byte strings as places in a heap of the distinct ones."""
    distinct, places = factorize(values)
    return _heap_cast(Heap.of(distinct), places)


def _heap_cast(heap: Heap, places: NDArray[np.int32]) -> Cast:
    cast = heap_entries(heap)
    return Cast(places, None, [(reason, mask[places]) for reason, mask in cast.bad], heap)


def heap_entries(heap: Heap, check: Callable[[bytes], bool] | None = None) -> Cast:
    """Every entry of `heap` once, too long ones rejected and, for strings, those that fail `check`."""
    cast = Cast(np.arange(len(heap), dtype=np.int32), heap=heap)
    long = np.diff(heap.offsets) > VALUE_BYTES_MAX
    cast.reject(f"is longer than {VALUE_BYTES_MAX} bytes; store where it is instead", long)
    if check is not None:
        fits = np.fromiter(map(check, heap.tolist()), dtype=np.bool_, count=len(heap))
        cast.reject("is not valid UTF-8", ~fits & ~long)
    return cast
