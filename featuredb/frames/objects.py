"""Casts of Python values: lists, object arrays, and the text of CSV files."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import compress, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.frames.casts import (
    BELOW_MICROSECOND,
    OUTSIDE_YEARS,
    Cast,
    Mask,
    cast_array,
    cast_bytes,
    cast_datetimes,
    cast_strings,
    factorize,
    inexact,
    merge,
    out_of_range,
)
from featuredb.limits import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from featuredb.schema import DType

_NUMBERS = ("int", "float")
_ACCEPTED: dict[str, tuple[str, ...]] = {
    "bool": ("bool",),
    "string": ("str",),
    "bytes": ("bytes",),
    "timestamp": ("datetime", "pandas.Timestamp", "date", "numpy.datetime64", "str"),
}
# datetime.fromisoformat alone would take any separator (and so read 13-digit epoch milliseconds as a
# date and a time) and would cut fractions off after 6 digits.
_ISO = re.compile(
    r"\d{4}-?(?:\d\d-?\d\d|W\d\d(?:-?\d)?)(?:[Tt ][^.,]*(?:[.,]\d{1,6}0*(?!\d)[^.,]*)?)?", re.ASCII
).fullmatch
_ISO_BELOW = re.compile(r"[.,]\d{6}0*[1-9]", re.ASCII).search
_INTEGER = re.compile(r"\s*([+-]?\d{1,400})(?:\.0*)?\s*", re.ASCII).fullmatch
_FLOAT = re.compile(
    r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)\s*", re.ASCII | re.IGNORECASE
).fullmatch
_BOOLS = {"true": True, "false": False}
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_EPOCH_DAY = _EPOCH.toordinal()


@lru_cache(maxsize=1024)
def kind_of(value_type: type) -> str:
    """What values of a Python type count as; for types of no use to us, their name."""
    name = value_type.__name__
    if name in ("NoneType", "NAType", "NaTType", "MaskedConstant"):
        return "null"
    if issubclass(value_type, (bool, np.bool_)):
        return "bool"
    if issubclass(value_type, np.timedelta64):  # numpy counts it among the integers
        return name
    if issubclass(value_type, (int, np.integer)):
        return "int"
    if issubclass(value_type, (float, np.floating)):
        return "float"
    if issubclass(value_type, str):
        return "str"
    if issubclass(value_type, (bytes, bytearray, memoryview)):
        return "bytes"
    if issubclass(value_type, np.datetime64):
        return "numpy.datetime64"
    if issubclass(value_type, datetime):
        return "pandas.Timestamp" if hasattr(value_type, "to_datetime64") else "datetime"
    return "date" if issubclass(value_type, date) else name


def cast_objects(
    values: Sequence[Any], dtype: DType, describe: Callable[[str], str], *, text: bool, nan_is_null: bool
) -> Cast | None:
    """Python values as `dtype`; None if none of the values that are not null fits.

    `describe` words the reason why a value of the given kind does not fit.
    """
    types = list(map(type, values))
    kinds = {value_type: kind_of(value_type) for value_type in set(types)}
    present = sorted({kind for kind in kinds.values() if kind != "null"})
    accepted = ("str",) if text else _ACCEPTED.get(dtype.name, _NUMBERS)
    if len(present) == 1 and present[0] in accepted and "null" not in kinds.values():
        return _cast_kind(present[0], values, dtype, text, nan_is_null)

    number_of = {kind: number for number, kind in enumerate(["null", *present])}
    numbers = np.fromiter(
        map({t: number_of[kind] for t, kind in kinds.items()}.__getitem__, types), dtype=np.int64, count=len(types)
    )
    array = np.fromiter(values, dtype=object, count=len(types))
    parts: list[tuple[NDArray[np.int64], Cast]] = []
    refused: list[tuple[str, Mask]] = []
    some_fit = False
    for kind in present:
        mask = numbers == number_of[kind]
        if nan_is_null and kind == "float":
            mask[mask] = ~np.isnan(array[mask].astype(np.float64))
        rows = np.flatnonzero(mask)
        if kind in accepted:
            parts.append((rows, _cast_kind(kind, array[rows].tolist(), dtype, text, nan_is_null)))
            some_fit |= len(rows) > 0
        elif len(rows):
            refused.append((describe(kind), mask))
    if not some_fit and refused:
        return None
    merged = merge(len(types), dtype.numpy, parts)
    for reason, mask in refused:
        merged.reject(reason, mask)
    if dtype.is_variable and merged.heap is None:
        merged.heap = cast_bytes([]).heap
    return merged


def _cast_kind(kind: str, values: Sequence[Any], dtype: DType, text: bool, nan_is_null: bool) -> Cast:
    """Values of one kind, which `dtype` accepts."""
    cast: Cast | None
    if text:
        cast = _cast_text(values, dtype)
    elif kind == "int":
        cast = _cast_integers(list(map(int, values)), dtype)
    elif kind == "float":
        cast = cast_array(np.array(values, dtype=np.float64), dtype, nan_is_null)
    elif kind == "bool":
        cast = cast_array(np.array(values, dtype=np.bool_), dtype)
    elif kind == "str":
        cast = cast_strings(values) if dtype.name == "string" else parse_timestamps(values)
    elif kind == "bytes":
        cast = cast_bytes(list(map(bytes, values)))
    elif kind == "datetime":
        cast = cast_python_datetimes(values)
    elif kind == "date":
        cast = cast_datetimes(_days(values))
    elif kind == "pandas.Timestamp":  # the aware ones in UTC
        cast = _cast_datetime64s(list(map(operator.methodcaller("to_datetime64"), values)))
    else:
        cast = _cast_datetime64s(values)
    assert cast is not None
    return cast


def _days(values: Sequence[date]) -> NDArray[np.datetime64]:
    ordinals = np.fromiter(map(operator.methodcaller("toordinal"), values), dtype=np.int64, count=len(values))
    return (ordinals - _EPOCH_DAY).view("M8[D]")


def _cast_integers(values: list[int], dtype: DType) -> Cast:
    for native in (np.int64, np.uint64):
        try:
            array = np.array(values, dtype=native)
        except OverflowError:
            continue
        cast = cast_array(array, dtype)
        assert cast is not None
        return cast
    big = np.fromiter(values, dtype=object, count=len(values))
    if dtype.is_integer:
        bounds = np.iinfo(dtype.numpy)
        outside = ((big < int(bounds.min)) | (big > int(bounds.max))).astype(np.bool_)
        cast = Cast(np.where(outside, 0, big).astype(dtype.numpy))
        cast.reject(out_of_range(dtype), outside)
        return cast
    largest = int(np.finfo(dtype.numpy).max)
    outside = ((big < -largest) | (big > largest)).astype(np.bool_)
    kept = np.where(outside, 0, big)
    cast = Cast(kept.astype(dtype.numpy))
    back = np.fromiter(map(int, cast.data.tolist()), dtype=object, count=len(values))
    cast.reject(out_of_range(dtype), outside)
    cast.reject(inexact(dtype), (back != kept).astype(np.bool_))
    return cast


def _cast_datetime64s(values: Sequence[Any]) -> Cast:
    dtypes = list(map(operator.attrgetter("dtype"), values))
    distinct, places = factorize(dtypes)
    if len(distinct) == 1:
        return cast_datetimes(np.array(values, dtype=distinct[0]))
    array = np.fromiter(values, dtype=object, count=len(values))
    parts = []
    for place, unit in enumerate(distinct):  # one round per unit; a common unit could overflow
        rows = np.flatnonzero(places == place)
        parts.append((rows, cast_datetimes(np.array(array[rows].tolist(), dtype=unit))))
    return merge(len(values), np.dtype("<i8"), parts)


def cast_python_datetimes(values: Sequence[datetime]) -> Cast:
    """datetime objects, naive (taken as UTC) and aware, to int64 microseconds."""
    if not any(map(operator.attrgetter("tzinfo"), values)):
        return Cast(_micros(values, _EPOCH))
    aware = _flags(map(operator.methodcaller("utcoffset"), values), len(values))
    if aware.all():
        cast = Cast(_micros(values, _EPOCH.replace(tzinfo=UTC)))
    else:
        parts = [(np.flatnonzero(~aware), Cast(_micros(list(compress(values, ~aware)), _EPOCH)))]
        utc = _micros(list(compress(values, aware)), _EPOCH.replace(tzinfo=UTC))
        cast = merge(len(values), np.dtype("<i8"), [*parts, (np.flatnonzero(aware), Cast(utc))])
    cast.reject(OUTSIDE_YEARS, (cast.data < TIMESTAMP_MIN_US) | (cast.data > TIMESTAMP_MAX_US))
    return cast


def _micros(values: Sequence[datetime], epoch: datetime) -> NDArray[np.int64]:
    # 0.35 us a value; numpy.array(values, "M8[us]") takes 1.5 us.
    since = map(operator.sub, values, repeat(epoch))
    return np.fromiter(map(operator.floordiv, since, repeat(_MICROSECOND)), dtype=np.int64, count=len(values))


def _flags(found: Iterable[Any], count: int) -> Mask:
    """Which of the `count` values are not None."""
    return np.fromiter(map(operator.is_not, found, repeat(None)), dtype=np.bool_, count=count)


def parse_timestamps(values: Sequence[str]) -> Cast:
    """ISO 8601 text to int64 microseconds."""
    distinct, places = factorize(values)
    count = len(distinct)
    trimmed = list(map(str.strip, distinct))
    shaped = _flags(map(_ISO, trimmed), count)
    try:
        if not shaped.all():
            raise ValueError
        return cast_python_datetimes(list(map(datetime.fromisoformat, trimmed))).take(places)
    except ValueError:
        parsed = list(map(_parse_or_none, trimmed))
    fits = _flags(parsed, count) & shaped
    below = ~fits & _flags(parsed, count) & _flags(map(_ISO_BELOW, trimmed), count)
    array = np.fromiter(parsed, dtype=object, count=count)
    array[~fits] = _EPOCH
    cast = cast_python_datetimes(array.tolist())
    cast.reject(BELOW_MICROSECOND, below)
    cast.reject("is not an ISO 8601 timestamp such as 2024-05-01T12:30:00Z", ~fits & ~below)
    return cast.take(places)


def _parse_or_none(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _cast_text(values: Sequence[str], dtype: DType) -> Cast:
    """The fields of a CSV column, none of them empty."""
    if dtype.name == "string":
        return cast_strings(values)
    if dtype.name == "bytes":
        return cast_bytes([*map(operator.methodcaller("encode", errors="surrogatepass"), values)])
    if dtype.name == "timestamp":
        return parse_timestamps(values)
    if dtype.name == "bool":
        lowered = map(str.lower, map(str.strip, values))
        found = list(map(_BOOLS.get, lowered))
        cast = Cast(np.array(found, dtype=np.bool_))
        cast.reject("is neither true nor false", ~_flags(found, len(found)))
        return cast
    try:
        return _cast_numerals(_plain(values), dtype)
    except ValueError:  # some are no numbers: the pattern tells which, at four times the cost
        pattern = _INTEGER if dtype.is_integer else _FLOAT
        fits = _flags(map(pattern, values), len(values))
    part = _cast_numerals(list(compress(values, fits)), dtype)
    cast = merge(len(values), dtype.numpy, [(np.flatnonzero(fits), part)])
    cast.reject(f"cannot be read as {dtype}", ~fits)
    return cast


def _plain(values: Sequence[str]) -> Sequence[str]:
    """`values`, unless they hold what ``int`` and ``float`` would take and we do not: ``1_000``, other digits."""
    joined = "".join(values)
    if "_" in joined or not joined.isascii():
        raise ValueError
    return values


def _cast_numerals(values: Sequence[str], dtype: DType) -> Cast:
    if dtype.is_float:
        return _cast_float_texts(values, dtype)
    if "." in "".join(values):  # 3.0: what is left of a column of integers that went through floats
        parts = list(map(operator.methodcaller("partition", "."), values))
        if any(tail.strip().strip("0") for tail in set(map(operator.itemgetter(2), parts))):
            raise ValueError
        values = list(map(operator.itemgetter(0), parts))
    return _cast_integers(list(map(int, values)), dtype)


def _cast_float_texts(values: Sequence[str], dtype: DType) -> Cast:
    floats = np.fromiter(map(float, values), dtype=np.float64, count=len(values))
    infinite = np.flatnonzero(np.isinf(floats))
    cast = cast_array(floats, dtype) or Cast(floats)
    if len(infinite):  # 1e999 is a number, and too large; inf is meant
        named = np.fromiter(
            ("inf" in values[row].lower() for row in infinite.tolist()), dtype=np.bool_, count=len(infinite)
        )
        overflown = np.zeros(len(values), dtype=np.bool_)
        overflown[infinite] = ~named
        cast.reject(out_of_range(dtype), overflown)
    return cast
