"""The tail of a table (see `storage.tail`) as history: read as one more segment, and made one when it is long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap, null_column
from featuredb.errors import CorruptionError
from featuredb.limits import TAILS_HELD_MAX
from featuredb.offline.rows import concat_rows, live_dtypes
from featuredb.online.index import OnlineIndex
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.manifest import read_manifest, write_manifest
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment import SegmentCache, SegmentReader, read_info
from featuredb.storage.segment_writer import Rows, write_segment
from featuredb.storage.tail import TAIL_ID, drop_tail, put_tail, read_tail, tail_key, tail_rows

# --- rows ---------------------------------------------------------------------------------------


def read_tail_rows(txn: ReadTxn, table: StoredTable) -> Rows:
    """The rows of a tail that has some, in total order, with the features that the table has now.

    Raises
    ------
    CorruptionError
        If they are not those that were written.
    """
    entries = list(tail_rows(txn, table.id))
    codes = np.fromiter((entry[1] for entry in entries), dtype=np.int32, count=len(entries))
    return _decoded(table, codes, [entry[0] for entry in entries], [entry[4] for entry in entries])


def _decoded(table: StoredTable, codes: NDArray[np.int32], keys: Sequence[bytes], stored: Sequence[memoryview]) -> Rows:
    """Packed rows of any layouts, in their order."""
    versions = np.fromiter((int.from_bytes(raw[4:6], "little") for raw in stored), dtype=np.int64, count=len(stored))
    parts, places = [], []
    for version in np.unique(versions).tolist():
        at = np.flatnonzero(versions == version)
        chosen = at.tolist()
        raws = [stored[place] for place in chosen]
        parts.append(_of_layout(table, version, codes[at], [keys[place] for place in chosen], raws))
        places.append(at)
    rows = concat_rows(parts)
    return rows if len(parts) == 1 else rows.take(np.argsort(np.concatenate(places)))


def _of_layout(
    table: StoredTable, version: int, codes: NDArray[np.int32], keys: list[bytes], stored: list[memoryview]
) -> Rows:
    def name_of(row: int) -> object:
        return f"of code {codes[row]}"

    dtypes = live_dtypes(table)
    try:
        layout = OnlineIndex(table).layout(version, name_of)
        held = [number for number in dtypes if number in layout.places]
        places = [layout.places[number] for number in held]
        event, created, commit, columns = layout.unpack_many(stored, keys, table.name, name_of, places)
    except CorruptionError as error:
        # It speaks of online rows, and how to mend those.
        raise CorruptionError(
            f"the tail of feature table {table.name!r} has a damaged row; restore the file from a backup"
        ) from error
    found: dict[int, Column] = dict(zip(held, columns, strict=True))
    every = {
        number: found[number] if number in found else null_column(dtype, len(codes)) for number, dtype in dtypes.items()
    }
    return Rows(codes, event, created, commit.astype(np.int64), every)


def _keys(table: StoredTable, rows: Rows) -> list[bytes]:
    times = zip(rows.codes.tolist(), rows.event.tolist(), rows.created.tolist(), strict=True)
    return [tail_key(table.id, *row) for row in times]


def find_in_tail(txn: ReadTxn, table: StoredTable, rows: Rows) -> tuple[NDArray[np.int64], Rows | None]:
    """Which of `rows` have one of their key and timestamps in the tail, and those, in the same order."""
    if not read_tail(txn, table.id).rows:
        return np.zeros(0, dtype=np.int64), None
    keys = _keys(table, rows)
    found = [txn.get(key) for key in keys]
    at = np.array([place for place, raw in enumerate(found) if raw is not None], dtype=np.int64)
    stored = [raw for raw in found if raw is not None]
    return at, _decoded(table, rows.codes[at], [keys[place] for place in at.tolist()], stored) if stored else None


def append_rows(txn: WriteTxn, table: StoredTable, commit_id: int, rows: Rows) -> int:
    """Put rows into the tail, in place of those that have their keys and timestamps; their bytes."""
    names = {number: name for name, number in table.feature_ids.items()}
    columns = {names[number]: column for number, column in rows.columns.items()}
    keys = Heap.of(_keys(table, rows))
    packed = OnlineIndex(table).pack(keys, rows.event, rows.created, rows.commit, columns).tolist()
    put_tail(txn, table.id, commit_id, zip(keys.tolist(), packed, strict=True))
    return sum(map(len, packed))


# --- as a segment -------------------------------------------------------------------------------


class _Memory:
    """What a segment can be written to, and read from, in place of a transaction."""

    def __init__(self) -> None:
        self._entries: dict[bytes, memoryview] = {}

    def put(self, key: bytes, value: bytes | memoryview) -> None:
        self._entries[bytes(key)] = memoryview(bytes(value))

    def get(self, key: bytes) -> memoryview | None:
        return self._entries.get(bytes(key))


def _as_segment(rows: Rows, table_id: int) -> SegmentReader:
    memory: Any = _Memory()
    ref = write_segment(cast(WriteTxn, memory), table_id, TAIL_ID, rows)
    return SegmentReader(cast(ReadTxn, memory), ref, read_info(cast(ReadTxn, memory), table_id, ref), set(), {})


def tail_reader(txn: ReadTxn, cache: SegmentCache, table: StoredTable) -> SegmentReader | None:
    """The tail as a segment, None if it is empty. It has no replaced rows: those are overwritten."""
    tail = read_tail(txn, table.id)
    if not tail.rows:
        return None
    key = (tail.commit_id, table.layouts)
    held = cache.tails.get(table.id)
    if held is not None and held[0] == key:
        return held[1]
    reader = _as_segment(read_tail_rows(txn, table), table.id)
    # What a write transaction sees may be undone, and another one have its commit number.
    if not isinstance(txn, WriteTxn):
        if len(cache.tails) >= TAILS_HELD_MAX:
            cache.tails.clear()
        cache.tails[table.id] = (key, reader)
    return reader


def table_readers(txn: ReadTxn, cache: SegmentCache, table: StoredTable) -> list[SegmentReader]:
    """All of a table's history: its live segments, oldest first, and the tail."""
    tail = tail_reader(txn, cache, table)
    segments = [cache.reader(txn, table.id, ref) for ref in read_manifest(txn, table.id).segments]
    return segments if tail is None else [*segments, tail]


def flush_tail(txn: WriteTxn, table: StoredTable) -> None:
    """Make a segment of the tail. What readers see does not change, so that is no commit."""
    if not read_tail(txn, table.id).rows:
        return
    rows = read_tail_rows(txn, table)
    manifest = read_manifest(txn, table.id)
    ref = write_segment(txn, table.id, manifest.next_segment_id, rows)
    write_manifest(txn, manifest.with_segments((*manifest.segments, ref)))
    drop_tail(txn, table.id)
