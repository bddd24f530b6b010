"""Packing one row of plain Python values without arrays: the bytes of `RowLayout.pack_many`, but for the checksum.

Plain means that a value is of the one Python type that needs no cast: int, float, bool, str, bytes and datetime, a
numpy scalar or, for a vector, array of just the dtype, or None. Anything else is `NotPlain`: for the general path to
judge.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from featuredb.limits import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, VALUE_BYTES_MAX
from featuredb.online.row import BODY_CODES, RowLayout
from featuredb.online.row_reader import code_of
from featuredb.schema import DType

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_KINDS: dict[str, type] = {"bool": bool, "float32": float, "float64": float, "string": str, "bytes": bytes}


class NotPlain(Exception):
    """A value that takes a cast, or is wrong."""


def plain_us(value: Any) -> int:
    """Microseconds of a datetime (or a pandas Timestamp, if they are whole), which is UTC if it is naive."""
    if isinstance(value, datetime):
        if type(value) is not datetime:
            # Of NaT it is NaN.
            if getattr(value, "nanosecond", 1) != 0:
                raise NotPlain
            try:
                value = value.to_pydatetime()  # type: ignore[attr-defined]
            except ValueError:
                raise NotPlain from None  # of no year that a datetime can have
        moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        try:
            us: int = (moment - _EPOCH) // _MICROSECOND
        except (TypeError, ValueError, OverflowError):
            # The time zone has no offset for it, or gives no proper one.
            raise NotPlain from None
    elif type(value) is np.datetime64 and value.dtype == "M8[us]":
        us = int(value.astype(np.int64))
    else:
        raise NotPlain
    if not TIMESTAMP_MIN_US <= us <= TIMESTAMP_MAX_US:
        raise NotPlain
    return us


def _string(value: str) -> bytes:
    try:
        return _bounded(value.encode())
    except UnicodeEncodeError:
        raise NotPlain from None


def _bounded(value: bytes) -> bytes:
    if len(value) > VALUE_BYTES_MAX:
        raise NotPlain
    return value


def _refused(value: object) -> bytes:
    raise NotPlain


def _vector(item: DType, length: int) -> Callable[[Any], bytes]:
    def convert(value: Any) -> bytes:
        if type(value) is not np.ndarray or value.dtype != item.numpy or value.shape != (length,):
            raise NotPlain
        return value.tobytes()

    return convert


def _converter(dtype: DType) -> Callable[[Any], Any] | None:
    """From a plain value to what is packed, where that is not the value itself."""
    if dtype.is_vector:
        # Integers are no timestamps, though stored alike.
        return _refused if dtype.item.name == "timestamp" else _vector(dtype.item, dtype.length)
    if dtype.is_list:
        return _refused
    converters: dict[str, Callable[[Any], Any]] = {"string": _string, "bytes": _bounded, "timestamp": plain_us}
    return converters.get(dtype.name)


class RowPacker:
    """Packs rows of one layout.

    Parameters
    ----------
    layout : RowLayout
        Its features, in the order in which `pack` takes their values.
    """

    def __init__(self, layout: RowLayout) -> None:
        dtypes = [dtype for _, dtype in layout.features]
        self._version = layout.version
        self._null_bytes = layout.null_bytes
        self._fixed = struct.Struct(f"{BODY_CODES}{layout.null_bytes}s{''.join(map(code_of, dtypes))}")
        self._kinds = [_KINDS.get(dtype.name, int if dtype.is_integer else None) for dtype in dtypes]
        self._whole_max = [1 << (24 if dtype.name == "float32" else 53) for dtype in dtypes]
        found = [(place, _converter(dtype)) for place, dtype in enumerate(dtypes)]
        self._converters = [(place, convert) for place, convert in found if convert is not None]
        self._numpy = [dtype.numpy for dtype in dtypes]
        self._variable = [place for place, dtype in enumerate(dtypes) if dtype.is_variable]
        self._zeros = [bytes(dtype.numpy.itemsize) if dtype.is_vector else 0 for dtype in dtypes]

    def pack(self, values: list[Any], event_us: int, created_us: int, commit_id: int) -> bytes:
        """The packed row behind its checksum, which `seal` puts there. `values` is overwritten.

        Raises
        ------
        NotPlain
            If a value is not of its plain type, or out of range.
        """
        nulls = 0
        for place, (value, kind) in enumerate(zip(values, self._kinds, strict=True)):
            if value is None:
                nulls |= 1 << place
                values[place] = self._zeros[place]
            elif type(value) is not kind and kind is not None:
                if isinstance(value, np.generic) and value.dtype == self._numpy[place]:
                    values[place] = value.item()
                    continue
                whole = kind is float and type(value) is int and -self._whole_max[place] <= value
                if not whole or value > self._whole_max[place]:
                    raise NotPlain
        for place, convert in self._converters:
            if not nulls >> place & 1:
                values[place] = convert(values[place])
        behind = b""
        for place in self._variable:
            if not nulls >> place & 1:
                raw = values[place]
                values[place] = len(raw)
                behind += raw
        bits = nulls.to_bytes(self._null_bytes, "little")
        try:
            packed: bytes = self._fixed.pack(self._version, event_us, created_us, commit_id, bits, *values) + behind
        except (struct.error, OverflowError):
            raise NotPlain from None
        return packed
