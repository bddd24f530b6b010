"""Small records of the file: msgpack sealed with its key, so that a damaged or misplaced one is never believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgpack

from featuredb.errors import CorruptionError
from featuredb.storage.crc import CRC_BYTES, is_sealed, seal
from featuredb.storage.txn import Bytes

T = TypeVar("T")
Raw = TypeVar("Raw", bytes, bytearray, memoryview)

# What counts on is far below: from a number that a record may have, counting overflows nothing.
COUNTER_MAX = 4 * 10**18
# What comes of taking a record for something else than it is; errors in definitions are among them.
_UNLIKE = (TypeError, ValueError, LookupError, AttributeError, OverflowError)


def pack(key: bytes, record: object) -> bytes:
    """`record` (dicts, lists, str, bytes, int, bool, None) as it is stored under `key`."""
    return seal(key, msgpack.packb(record, use_bin_type=True))


def unseal(key: Bytes, raw: Raw, what: str) -> Raw:
    """What was sealed for `key`; `CorruptionError` naming `what` if it is damaged."""
    if not is_sealed(key, raw):
        raise CorruptionError(f"{what} is damaged: its checksum does not match; restore the file from a backup")
    return raw[CRC_BYTES:]


def unpack(key: Bytes, raw: Bytes, what: str) -> Any:
    """The record `pack` made `raw` from; `CorruptionError` naming `what` if it is damaged."""
    try:
        return msgpack.unpackb(unseal(key, memoryview(raw), what), raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptionError(f"{what} cannot be decoded: {error}; restore the file from a backup") from None


def decode(key: Bytes, raw: Bytes, what: str, make: Callable[[Any], T]) -> T:
    """What `make` makes of a record; `CorruptionError` naming `what` if it is damaged, or of another shape.

    A checksum that is right only says that the record is as someone wrote it.
    """
    record = unpack(key, raw, what)
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
