"""Small records of the file: msgpack behind a CRC-32, so that a damaged one is never believed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgpack

from featuredb.errors import CorruptionError

T = TypeVar("T")

_CRC = struct.Struct("<I")
# What comes of taking a record for something else than it is; errors in definitions are among them.
_UNLIKE = (TypeError, ValueError, LookupError, AttributeError, OverflowError)


def pack(record: object) -> bytes:
    """`record` (dicts, lists, str, bytes, int, bool, None) as checksummed bytes."""
    body: bytes = msgpack.packb(record, use_bin_type=True)
    return _CRC.pack(zlib.crc32(body)) + body


def unpack(raw: bytes | memoryview, what: str) -> Any:
    """The record `pack` made `raw` from; `CorruptionError` naming `what` if it is damaged."""
    if len(raw) < _CRC.size or zlib.crc32(raw[_CRC.size :]) != _CRC.unpack_from(raw)[0]:
        raise CorruptionError(f"{what} is damaged: its checksum does not match; restore the file from a backup")
    try:
        return msgpack.unpackb(raw[_CRC.size :], raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptionError(f"{what} cannot be decoded: {error}; restore the file from a backup") from None


def decode(raw: bytes | memoryview, what: str, make: Callable[[Any], T]) -> T:
    """What `make` makes of a record; `CorruptionError` naming `what` if it is damaged, or of another shape.

    A checksum that is right only says that the record is as someone wrote it.
    """
    record = unpack(raw, what)
    try:
        return make(record)
    except _UNLIKE as error:
        reason = repr(error) if isinstance(error, LookupError) else str(error)
        raise CorruptionError(f"{what} has an unknown shape: {reason}; restore the file from a backup") from error


def whole(value: Any, low: int = 0, high: int = (1 << 64) - 1) -> int:
    """`value`, if it is an integer from `low` to `high`; else `ValueError`."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is no integer from {low} to {high}")
    return value


def wholes(values: Iterable[Any], low: int = 0, high: int = (1 << 64) - 1) -> list[int]:
    """As `whole`, of many at once."""
    listed = list(values)
    if not set(map(type, listed)) <= {int} or (listed and not low <= min(listed) <= max(listed) <= high):
        raise ValueError(f"not all are integers from {low} to {high}")
    return listed


def text(value: Any) -> str:
    """`value`, if it is text; else `TypeError`."""
    if type(value) is not str:
        raise TypeError(f"{value!r:.40} is no text")
    return value


def binary(value: Any) -> bytes:
    """`value`, if it is bytes; else `TypeError`."""
    if type(value) is not bytes:
        raise TypeError(f"{value!r:.40} is no bytes")
    return value
