"""Checks of history: manifests, segments and the order of their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.limits import (
    ABSENT_US,
    CHUNK_BYTES_MAX,
    NS_TAIL,
    REJECTED_ROWS_MAX,
    SEGMENT_ROWS_MAX,
    TIMESTAMP_MAX_US,
    TIMESTAMP_MIN_US,
)
from featuredb.storage.env import ReadTxn
from featuredb.storage.manifest import SegmentRef, chunk_prefix, dead_key, read_manifest
from featuredb.storage.records import COUNTER_MAX
from featuredb.storage.registry import StoredTable
from featuredb.storage.rejected import count_rejected, next_rejected, rejected_rows
from featuredb.storage.segment import (
    BYTES,
    CODES,
    COMMIT,
    CREATED,
    DATA,
    EVENT,
    OFFSETS,
    STARTS,
    VALID,
    ColumnInfo,
    SegmentReader,
)
from featuredb.storage.tail import read_tail, tail_rows
from featuredb.verify.packed import frame_fault, packing_faults
from featuredb.verify.report import Check
from featuredb.verify.values import value_faults

_SYSTEM = {
    EVENT: "event_timestamp",
    CREATED: "created_timestamp",
    COMMIT: "commit",
    CODES: "entity codes",
    STARTS: "row starts",
}
_PARTS = {DATA: "data", VALID: "validity", OFFSETS: "offsets", BYTES: "bytes"}
_ENCODINGS = ("packed", "plain", "null", "dictionary", "heap")


def check_pinned(check: Check, txn: ReadTxn, table: StoredTable) -> None:
    """Check what a snapshot holds of a table's history and the tables checked before do not."""
    for ref in read_manifest(txn, table.id).segments:
        reader = check.cache.reader(txn, table.id, ref)
        if (table.id, ref.id) not in check.segments_live:
            check.segments_live.add((table.id, ref.id))
            check.unread.add((table.id, ref.id))
            _check_segment(check, table, ref, reader)
        elif reader.rows != ref.rows:
            what = f"its descriptor has {reader.rows} rows, the manifest that is held {ref.rows}"
            check.problem(what, table=table.name, segment=ref.id)
        elif ref.dead_count and dead_key(table.id, ref.id, ref.dead_version) not in check.chunks_expected:
            _expect_chunks(check, reader)
            _check_dead(check, table, reader)


def check_table(check: Check, table: StoredTable) -> bool:
    """Check a table's history; whether it is known to be sound, so that it can be searched."""
    before = check.problem_count
    readers: list[SegmentReader] = []
    check.unread.add((table.id, None))
    with check.guarded(table=table.name):
        manifest = read_manifest(check.txn, table.id)
        numbers = [ref.id for ref in manifest.segments]
        if len(set(numbers)) != len(numbers):
            check.problem("its manifest names a segment twice", table=table.name)
        if max(numbers, default=0) >= manifest.next_segment_id:
            check.problem("its manifest would give a segment's number out again", table=table.name)
        check.segments_live |= {(table.id, number) for number in numbers}
        check.unread.remove((table.id, None))
        for ref in manifest.segments:
            check.segments += 1
            check.rows += ref.rows - ref.dead_count
            check.unread.add((table.id, ref.id))
            with check.guarded(table=table.name, segment=ref.id):
                reader = check.cache.reader(check.txn, table.id, ref)
                _check_segment(check, table, ref, reader)
                readers.append(reader)
    if check.problem_count == before:
        with check.guarded(table=table.name):
            tail = _check_tail(check, table)
            if check.level == "quick":
                return False
            _check_unique(check, table, readers if tail is None else [*readers, tail])
    return check.problem_count == before


def check_rejected(check: Check, table: StoredTable) -> None:
    """The rejected rows of a table are readable, numbered without gaps, not too many, and of logged commits."""
    rows = list(rejected_rows(check.txn, table.id))
    if len(rows) != count_rejected(check.txn, table.id):
        check.problem("its rejected rows are not numbered without gaps", table=table.name)
    if next_rejected(check.txn, table.id) > COUNTER_MAX:
        check.problem("the numbers of its rejected rows are used up", table=table.name)
    if len(rows) > REJECTED_ROWS_MAX:
        check.problem(f"it keeps {len(rows)} rejected rows; at most {REJECTED_ROWS_MAX}", table=table.name)
    if any(not 1 <= row.commit_id <= check.last_commit for row in rows):
        check.problem("a rejected row is of a commit that is not logged", table=table.name)


def _check_segment(check: Check, table: StoredTable, ref: SegmentRef, reader: SegmentReader) -> None:
    where: dict[str, Any] = {"table": table.name, "segment": ref.id}
    _expect_chunks(check, reader)
    info = reader.info
    if info.rows != ref.rows or not 1 <= info.rows <= SEGMENT_ROWS_MAX:
        check.problem(f"its descriptor has {info.rows} rows, its manifest {ref.rows}", **where)
        return
    sound = {number: _check_chunks(check, table, reader, column) for number, column in info.columns.items()}
    if check.level == "full" and sound[CODES] and sound[STARTS]:
        with check.guarded(**where):
            index = reader.entity_index()
            _check_order(check, table, reader, index, all(sound[number] for number in (EVENT, CREATED, COMMIT)))
            # Only now it is known to have so many rows: columns of one value take no space in the file.
            for number, column in info.columns.items():
                if sound[number] and number not in _SYSTEM and sound[EVENT] and sound[CREATED]:
                    _check_feature(check, table, reader, column)
    _check_dead(check, table, reader)


def _check_dead(check: Check, table: StoredTable, reader: SegmentReader) -> None:
    where: dict[str, Any] = {"table": table.name, "segment": reader.ref.id, "column": "replaced rows"}
    with check.guarded(**where):
        dead = reader.dead()
        check.chunks += len(dead) > 0
        if np.any(dead[1:] <= dead[:-1]) or (len(dead) and not 0 <= dead[0] <= dead[-1] < reader.rows):
            check.problem("its list of replaced rows is out of order or range", **where)


def _expect_chunks(check: Check, reader: SegmentReader) -> None:
    prefix = chunk_prefix(reader.info.table_id, reader.ref.id)
    for column in reader.info.columns.values():
        for chunk, part in column.chunks:
            check.chunks_expected.add(
                prefix + column.id.to_bytes(4, "big") + chunk.to_bytes(4, "big") + part.to_bytes(1, "big")
            )
    if reader.ref.dead_count:
        check.chunks_expected.add(dead_key(reader.info.table_id, reader.ref.id, reader.ref.dead_version))
    check.unread.discard((reader.info.table_id, reader.ref.id))


def _column_name(table: StoredTable, number: int) -> str:
    names = {own: name for name, own in table.feature_ids.items()}
    return _SYSTEM.get(number) or names.get(number, f"of removed feature {number}")


def _check_chunks(check: Check, table: StoredTable, reader: SegmentReader, column: ColumnInfo) -> bool:
    """The chunks that the encoding of a column takes, each whole; False if the column cannot be read."""
    where: dict[str, Any] = {"table": table.name, "segment": reader.ref.id, "column": _column_name(table, column.id)}
    before, full = check.problem_count, check.level == "full"
    with check.guarded(**where):
        _check_shape(check, reader, column, where)
        for chunk, part in column.chunks:
            check.chunks += 1
            fault = reader.chunk_fault(column.id, chunk, part, read=full)
            if fault is not None:
                check.problem(f"chunk {chunk} ({_PARTS.get(part, part)}) {fault}", **where)
        if full and check.problem_count == before and column.encoding in ("packed", "dictionary"):
            for fault in dict.fromkeys(packing_faults(reader, column)):
                check.problem(fault, **where)
    return check.problem_count == before


def _check_shape(check: Check, reader: SegmentReader, column: ColumnInfo, where: dict[str, Any]) -> None:
    """Whether a column has just the chunks that its encoding takes."""
    index = column.id in (CODES, STARTS)
    if column.encoding not in (("plain",) if index else _ENCODINGS) or column.chunk_rows.bit_count() != 1:
        check.problem(f"its encoding is {column.encoding!r}, {column.chunk_rows} rows a chunk", **where)
        return
    fault = frame_fault(column)
    if fault is not None:
        check.problem(fault, **where)
        return
    held = set(column.chunks)
    # The entity index is as long as the segment has entities, which only it tells.
    chunks = range(len(held) if index else -(-reader.rows // column.chunk_rows))
    data = {(chunk, DATA) for chunk in chunks}
    distances = data if column.width else set()
    expected = {
        "packed": distances,
        "plain": data,
        "dictionary": {*distances, (0, OFFSETS), (0, BYTES)},
        "heap": {(chunk, part) for chunk in chunks for part in (OFFSETS, BYTES)},
        "null": set(),
    }[column.encoding]
    nullable = column.encoding != "null" and column.id not in _SYSTEM
    optional = {(chunk, VALID) for chunk in chunks} if nullable else set()
    if not expected <= held <= expected | optional:
        check.problem(f"its chunks are not those of {reader.rows} rows", **where)
    if any(size > CHUNK_BYTES_MAX for size, _ in column.chunks.values()):
        check.problem(f"a chunk is longer than {CHUNK_BYTES_MAX} bytes", **where)
    if column.encoding == "null" and column.null_count != reader.rows:
        check.problem(f"its descriptor counts {column.null_count} nulls in a column of nulls", **where)


def _check_feature(check: Check, table: StoredTable, reader: SegmentReader, column: ColumnInfo) -> None:
    where: dict[str, Any] = {"table": table.name, "segment": reader.ref.id, "column": _column_name(table, column.id)}
    dtypes = {number: dtype for layout in table.layouts for number, dtype in layout}
    if dtypes.get(column.id) != column.dtype.name:
        check.problem(f"it is stored as {column.dtype}, and defined as {dtypes.get(column.id)}", **where)
        return
    if column.encoding == "null":
        return
    with check.guarded(**where):
        nulls, faults = 0, dict[str, None]()
        for _, _, part in reader.feature_chunks(column.id):
            nulls += part.null_count
            faults.update(dict.fromkeys(value_faults(part)))
        for fault in faults:
            check.problem(fault, **where)
        if nulls != column.null_count:
            check.problem(f"its descriptor counts {column.null_count} nulls, and it has {nulls}", **where)


def _check_order(
    check: Check,
    table: StoredTable,
    reader: SegmentReader,
    index: tuple[NDArray[np.int32], NDArray[np.int32]],
    readable: bool,
) -> None:
    """Entity index, total order, and zone map."""
    where: dict[str, Any] = {"table": table.name, "segment": reader.ref.id}
    info = reader.info
    codes, starts = index
    if np.any(codes[1:] <= codes[:-1]) or np.any(np.diff(starts) <= 0):
        check.problem("its entity index is out of order", **where)
        return
    _check_codes(check, table, codes, where)
    if (info.code_min, info.code_max) != (int(codes[0]), int(codes[-1])):
        check.problem("the codes of its zone map are not those of its rows", **where)
    if not readable:
        return
    event, created, commit = (reader.read_system(column) for column in (EVENT, CREATED, COMMIT))
    if not _in_order(np.repeat(codes, np.diff(starts)), event, created):
        check.problem("its rows are out of order", **where)
    if (info.event_min, info.event_max) != (int(event.min()), int(event.max())):
        check.problem("the times of its zone map are not those of its rows", **where)
    _check_times(check, event, created, where)
    if commit.min() < 1 or commit.max() > check.last_commit:
        check.problem("it has rows of a commit that is not logged", **where)


def _in_order(codes: NDArray[np.int32], event: NDArray[np.int64], created: NDArray[np.int64]) -> bool:
    """Whether rows ascend strictly by (code, event, created)."""
    same_code, same_event = codes[1:] == codes[:-1], event[1:] == event[:-1]
    ascending = (codes[1:] > codes[:-1]) | (same_code & (event[1:] > event[:-1]))
    return bool(np.all(ascending | (same_code & same_event & (created[1:] > created[:-1]))))


def _check_tail(check: Check, table: StoredTable) -> SegmentReader | None:
    """The tail: readable, of known keys and logged commits, each row under its own key."""
    from featuredb.offline.tail import read_tail_rows, tail_reader

    where: dict[str, Any] = {"table": table.name, "column": "tail"}
    with check.guarded(**where):
        tail = read_tail(check.txn, table.id)
        check.rows += tail.rows
        if not tail.rows:
            if next(check.txn.scan(NS_TAIL + table.id.to_bytes(4, "big")), None) is not None:
                check.problem("it has entries, and its head counts none", **where)
            return None
        keys = np.array([entry[1:4] for entry in tail_rows(check.txn, table.id)], dtype=np.int64)
        rows = read_tail_rows(check.txn, table)
        if not np.array_equal(keys, np.stack([rows.codes, rows.event, rows.created], axis=1)):
            check.problem("it has a row under the key of another", **where)
            return None
        if sum(len(entry[4]) for entry in tail_rows(check.txn, table.id)) != tail.nbytes:
            check.problem("its head counts other bytes than its rows have", **where)
        if not 1 <= tail.commit_id <= check.last_commit:
            check.problem(f"its head names commit {tail.commit_id}, which is not logged", **where)
        if rows.commit.min() < 1 or rows.commit.max() > check.last_commit:
            check.problem("it has rows of a commit that is not logged", **where)
        _check_codes(check, table, np.unique(rows.codes), where)
        _check_times(check, rows.event, rows.created, where)
        for number, column in rows.columns.items():
            for fault in value_faults(column):
                check.problem(f"{fault}, in the tail", table=table.name, column=_column_name(table, number))
        return tail_reader(check.txn, check.cache, table)
    return None


def _check_codes(check: Check, table: StoredTable, codes: NDArray[np.int32], where: dict[str, Any]) -> None:
    """Ascending codes are of entity keys that there are."""
    known = check.key_counts.get(table.space_id)
    if codes[0] < 0 or (known is not None and codes[-1] >= known):
        check.problem(f"it has code {int(codes[-1])}, and there are {known} entity keys", **where)
    if known is not None and np.isin(codes, check.forgotten[table.space_id]).any():
        check.problem("it has rows of an entity key that was forgotten", **where)


def _check_times(check: Check, event: NDArray[np.int64], created: NDArray[np.int64], where: dict[str, Any]) -> None:
    outside = (created != ABSENT_US) & ((created < TIMESTAMP_MIN_US) | (created > TIMESTAMP_MAX_US))
    if event.min() < TIMESTAMP_MIN_US or event.max() > TIMESTAMP_MAX_US or outside.any():
        check.problem("it has timestamps outside the years 1 to 9999", **where)


def _check_unique(check: Check, table: StoredTable, readers: list[SegmentReader]) -> None:
    """No two live rows of different segments, or of one and the tail, have one key, event and created timestamp."""
    from featuredb.offline.segments import read_rows
    from featuredb.offline.stored import find_stored

    for place, reader in enumerate(readers[:-1]):
        rows = read_rows([reader], {})
        for other in readers[place + 1 :]:
            twice = int(np.count_nonzero(find_stored(other, rows, other.dead()) >= 0)) if len(rows) else 0
            if twice:
                what = f"{twice} of its rows are also in {f'segment {other.ref.id}' if other.ref.id else 'the tail'}"
                check.problem(what, table=table.name, segment=reader.ref.id)
