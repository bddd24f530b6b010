"""One packed row at a time into plain Python values: for look-ups of a single key. `online.row` has the bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

from featuredb.nested import list_decoder, vector_decoder
from featuredb.online.row import RowLayout, damaged
from featuredb.schema import DType

# Checksum, layout, event timestamp; created timestamp and commit are not read.
_HEADER_CODES = "<IHq16x"
_CODES = {
    "bool": "?", "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I",
    "uint64": "Q", "float32": "f", "float64": "d", "timestamp": "q",
}  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RowReader:
    """Reads chosen features of rows of one layout.

    Parameters
    ----------
    layout : RowLayout
        Layout of the rows to read.
    feature_ids : sequence of int
        The features to return, in that order; one that `layout` lacks is None.
    """

    __slots__ = ("_arrange", "_convert", "_fixed_bytes", "_no_nulls", "_positions", "_unpack", "_variable", "_version")

    def __init__(self, layout: RowLayout, feature_ids: Sequence[int]) -> None:
        wanted = {layout.places[one] for one in feature_ids if one in layout.places}
        # Lengths of all variable-width values are read, the fixed-width ones not asked for are skipped.
        places = [place for place, (_, dtype) in enumerate(layout.features) if place in wanted or dtype.is_variable]
        codes = [
            code_of(dtype) if place in wanted or dtype.is_variable else f"{dtype.numpy.itemsize}x"
            for place, (_, dtype) in enumerate(layout.features)
        ]
        packed = struct.Struct(f"{_HEADER_CODES}{layout.null_bytes}s{''.join(codes)}")
        dtypes = [layout.features[place][1] for place in places]
        self._variable = [(i, _decoder(dtype)) for i, dtype in enumerate(dtypes) if dtype.is_variable]
        self._unpack: Callable[[bytes], tuple[Any, ...]] = packed.unpack_from if self._variable else packed.unpack
        self._fixed_bytes = layout.fixed_bytes
        self._version = layout.version
        self._no_nulls = bytes(layout.null_bytes)
        self._convert = [(i, _converter(dtype)) for i, dtype in enumerate(dtypes) if _is_converted(dtype)]
        # Of each null bit, the position of its value, if that is read.
        position_of = {place: i for i, place in enumerate(places)}
        self._positions = [position_of.get(place) for place in range(8 * layout.null_bytes)]
        missing = len(places)
        positions = {layout.features[place][0]: i for i, place in enumerate(places)}
        order = [positions.get(one, missing) for one in feature_ids]
        self._arrange = None if order == list(range(missing)) else order

    def read(self, raw: bytes, full_key: bytes, table: str = "", key: object = None) -> tuple[int, list[Any]]:
        """Event timestamp in microseconds, and the values of the row stored under `full_key`: plain, None where null.

        A vector is a numpy array of shape (length,), read-only.

        Raises
        ------
        CorruptionError
            If checksum, layout version or lengths do not match; names `table` and `key`.
        """
        try:
            crc, version, event, bits, *values = self._unpack(raw)
        except struct.error:
            raise damaged(f"{len(raw)} bytes do not fit its layout", table, key) from None
        if crc32(full_key, crc32(raw[4:])) != crc:
            raise damaged("its checksum does not match", table, key)
        if version != self._version:
            raise damaged(f"it has layout {version}, not {self._version}", table, key)
        try:
            if self._variable:
                # Lengths become the values behind the fixed part.
                start = self._fixed_bytes
                for i, decode in self._variable:
                    end = start + values[i]
                    values[i] = decode(raw[start:end])
                    start = end
                if start != len(raw):
                    raise damaged("its values do not fill it", table, key)
            for i, convert in self._convert:
                values[i] = convert(values[i])
        except (ValueError, OverflowError) as error:
            raise damaged(str(error), table, key) from None
        if bits != self._no_nulls:
            self._set_nulls(bits, values)
        if self._arrange is not None:
            values.append(None)
            values = [values[i] for i in self._arrange]
        return event, values

    def _set_nulls(self, bits: bytes, values: list[Any]) -> None:
        mask = int.from_bytes(bits, "little")
        while mask:
            place = mask.bit_length() - 1
            mask ^= 1 << place
            position = self._positions[place]
            if position is not None:
                values[position] = None


def code_of(dtype: DType) -> str:
    """How `struct` reads a value's fixed part."""
    if dtype.is_variable:
        return "I"
    return f"{dtype.numpy.itemsize}s" if dtype.is_vector else _CODES[dtype.name]


def _decoder(dtype: DType) -> Callable[[bytes], Any]:
    """From the bytes of a variable-width value to the value."""
    if dtype.is_list:
        return list_decoder(dtype)
    return bytes.decode if dtype.name == "string" else bytes


def _is_converted(dtype: DType) -> bool:
    return dtype.is_vector or dtype.name == "timestamp"


def _converter(dtype: DType) -> Callable[[Any], Any]:
    """From what `struct` makes of a fixed-width value to the value."""
    return vector_decoder(dtype) if dtype.is_vector else _as_datetime


def _as_datetime(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)
