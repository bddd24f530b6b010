"""Small records of the file: msgpack behind a CRC-32, so that a damaged one is never believed."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgpack

from featuredb.errors import CorruptionError

_CRC = struct.Struct("<I")


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
    except (ValueError, msgpack.UnpackException) as error:
        raise CorruptionError(f"{what} cannot be decoded: {error}; restore the file from a backup") from None
