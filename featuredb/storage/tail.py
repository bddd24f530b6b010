"""The tail of a table: rows of small ingests, an entry each, until enough have gathered for a segment.

A segment for every row that arrives would be a chunk or more for each feature, merged over and over. Instead a
row is put here once, packed just as its online row is, and is read with the others as one more segment (see
`offline.tail`). It is history like any: a live row is in a segment or in the tail, never in both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from featuredb.errors import CorruptionError
from featuredb.limits import ENTITIES_MAX, NS_TAIL, TAIL_BYTES_MAX, TAIL_ROWS_MAX
from featuredb.storage.crc import CRC_BYTES, is_sealed
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.records import decode, pack, wholes
from featuredb.storage.txn import Bytes

# Its number where it is read as a segment: manifests number those from 1.
TAIL_ID = 0
_ROW = struct.Struct(">IQQ")
# With the sign bit flipped the bytes of numbers sort as they do.
_SIGN = 1 << 63
_TABLE_BYTES = 5
_KEY_BYTES = _TABLE_BYTES + _ROW.size


@dataclass(frozen=True, slots=True)
class Tail:
    """What is known of the tail of a table.

    Its rows, the bytes that they take packed, and the last commit that changed it. ``marks`` is the exclusive or of
    their checksums, which are also of their keys: so no row can be lost.
    """

    rows: int = 0
    nbytes: int = 0
    commit_id: int = 0
    marks: int = 0


def _head(table_id: int) -> bytes:
    return NS_TAIL + table_id.to_bytes(4, "big")


def tail_key(table_id: int, code: int, event_us: int, created_us: int) -> bytes:
    """Key of a row: they sort as the rows of a segment do."""
    return _head(table_id) + _ROW.pack(code, event_us + _SIGN, created_us + _SIGN)


def read_tail(txn: ReadTxn, table_id: int) -> Tail:
    """What there is in the tail of a table."""
    key = _head(table_id)
    raw = txn.get(key)
    if raw is None:
        return Tail()

    def tail(record: Any) -> Tail:
        rows, nbytes, commit_id, marks = wholes(record)
        return Tail(rows, nbytes, commit_id, marks)

    return decode(key, raw, f"the head of the tail of table {table_id}", tail)


def _damaged(table_id: int, what: str) -> CorruptionError:
    return CorruptionError(f"the tail of table {table_id} is damaged: {what}; restore the file from a backup")


def _mark(raw: Bytes) -> int:
    return int.from_bytes(raw[:CRC_BYTES], "little")


def tail_rows(txn: ReadTxn, table_id: int) -> Iterator[tuple[bytes, int, int, int, memoryview]]:
    """Key, code, event and created timestamp, and the packed row, of every row in total order.

    Raises
    ------
    CorruptionError
        After the last of them, if they are not those that were written.
    """
    rows = marks = 0
    for key, raw in txn.scan(_head(table_id), b"\0"):
        if len(key) != _KEY_BYTES:
            raise _damaged(table_id, f"{bytes(key).hex()} is no key of a row")
        rows, marks = rows + 1, marks ^ _mark(raw)
        code, event, created = _ROW.unpack_from(key, _TABLE_BYTES)
        if code > ENTITIES_MAX:
            raise _damaged(table_id, f"it has code {code}")
        yield bytes(key), code, event - _SIGN, created - _SIGN, raw
    tail = read_tail(txn, table_id)
    if (rows, marks) != (tail.rows, tail.marks):
        raise _damaged(table_id, "its rows are not those that its head counts")


def tail_codes(txn: ReadTxn, table_id: int) -> list[int]:
    """The entity codes that have rows in the tail; `CorruptionError` if one of these is not of the key it is under."""
    codes: dict[int, None] = {}
    for key, code, _, _, raw in tail_rows(txn, table_id):
        if not is_sealed(key, raw):
            raise _damaged(table_id, "it has a row whose checksum does not match")
        codes[code] = None
    return list(codes)


def put_tail(txn: WriteTxn, table_id: int, commit_id: int, rows: Iterable[tuple[bytes, Bytes]]) -> Tail:
    """Add rows, packed for their keys from `tail_key`; one that is there already is replaced."""
    before = read_tail(txn, table_id)
    count, nbytes, marks = before.rows, before.nbytes, before.marks
    for key, raw in rows:
        replaced = txn.get(key)
        if replaced is None:
            count += 1
        else:
            nbytes -= len(replaced)
            marks ^= _mark(replaced)
        nbytes += len(raw)
        marks ^= _mark(raw)
        txn.put(key, raw)
    head = _head(table_id)
    txn.put(head, pack(head, [count, nbytes, commit_id, marks]))
    return Tail(count, nbytes, commit_id, marks)


def is_long(tail: Tail) -> bool:
    """Whether it is time to make a segment of it."""
    return tail.rows >= TAIL_ROWS_MAX or tail.nbytes >= TAIL_BYTES_MAX


def drop_tail(txn: WriteTxn, table_id: int) -> None:
    """Remove all rows of the tail of a table."""
    txn.delete_prefix(_head(table_id))
