"""History: segments that are whole stay; of others, and of a tail, the rows that are."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from featuredb.errors import CorruptionError
from featuredb.limits import (
    NS_CHUNK,
    NS_CODE_BLOCK,
    NS_KEY,
    NS_MANIFEST,
    NS_ONLINE,
    NS_PENDING,
    NS_REJECTED,
    NS_SEGMENT,
    NS_TAIL,
)
from featuredb.recovery.repair import Repair, descriptors
from featuredb.recovery.segments import REPLACED_BACK, join_all, renew_segments
from featuredb.storage.crc import is_sealed
from featuredb.storage.manifest import (
    DEAD,
    Manifest,
    SegmentRef,
    chunk_prefix,
    read_manifest,
    segment_key,
    write_manifest,
)
from featuredb.storage.records import unpack
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment import checksum
from featuredb.storage.tail import drop_tail, put_tail, read_tail, tail_rows
from featuredb.verify.history import check_table
from featuredb.verify.report import Finding
from featuredb.verify.strays import heads

_TIMES = struct.Struct("<qq")
_TIMES_AT = 6


def repair_history(work: Repair, table: StoredTable) -> None:
    """Take what is damaged out of a table's history, by as little as will do, until the rest is in order."""
    _repair_manifest(work, table)
    for step in (renew_segments, _repair_tail, join_all, _drop_segments, _drop_all):
        check = work.check()
        if check_table(check, table):
            return
        work.tables_lost.add(table.id)
        step(work, table, check.problems)


def _repair_manifest(work: Repair, table: StoredTable) -> None:
    """If the manifest of a table is lost, make it anew from the segments that are there."""
    txn = work.txn
    present = descriptors(work, table.id)
    with suppress(CorruptionError):
        manifest = read_manifest(txn, table.id)
        if manifest.segments or txn.get(NS_MANIFEST + table.id.to_bytes(4, "big")) is not None or not present:
            return
    work.lose(f"its manifest, which was made anew from the segments that are there; {REPLACED_BACK}", table=table.name)
    work.tables_lost.add(table.id)
    refs = []
    for number in present:
        try:
            refs.append(_ref(work, table.id, number))
        except (CorruptionError, TypeError, ValueError) as error:
            work.lose(f"its rows: {error}", table=table.name, segment=number)
    write_manifest(txn, Manifest(table.id).with_segments(tuple(refs)))


def _ref(work: Repair, table_id: int, number: int) -> SegmentRef:
    """What the manifest would say of a segment: of lists of replaced rows the newest counts."""
    key = segment_key(table_id, number)
    raw = work.txn.get(key)
    assert raw is not None
    (rows, *_), _ = unpack(key, raw, f"the descriptor of segment {number} of table {table_id}")
    crc = zlib.crc32(raw)
    last = work.txn.last(chunk_prefix(table_id, number) + DEAD.to_bytes(4, "big"))
    if last is None:
        return SegmentRef(number, crc, rows)
    return SegmentRef(number, crc, rows, int.from_bytes(last[0][17:21], "big"), len(last[1]) // 4, checksum(last[1]))


def _repair_tail(work: Repair, table: StoredTable, problems: Sequence[Finding]) -> None:
    """Keep the rows that are whole, stand under their own timestamps and are of a key that is known."""
    if all(problem.segment is not None for problem in problems):
        return
    txn, before, rows = work.txn, None, list[tuple[bytes, bytes]]()
    with suppress(CorruptionError):
        # Without a head it is not known how many rows there were.
        before = read_tail(txn, table.id) if txn.get(NS_TAIL + table.id.to_bytes(4, "big")) is not None else None
    with suppress(CorruptionError):
        for key, code, event, created, raw in tail_rows(txn, table.id):
            if _is_whole(table, key, (event, created), raw) and work.has_key(table, np.array([code]))[0]:
                rows.append((key, bytes(raw)))
    if before is not None and len(rows) == before.rows:
        # All are there, and yet they are not those that the head marks: one is of before or after.
        rows = []
    commit = max((int.from_bytes(raw[22:30], "little") for _, raw in rows), default=0)
    drop_tail(txn, table.id)
    if rows:
        put_tail(txn, table.id, commit if before is None else before.commit_id, rows)
    count = "rows" if before is None else f"{before.rows - len(rows)} of {before.rows} rows"
    work.lose(f"{count} of its tail", table=table.name)


def _is_whole(table: StoredTable, key: bytes, times: tuple[int, int], raw: memoryview) -> bool:
    """Whether a packed row is as it was written, of these timestamps, and of a layout that is known."""
    if len(raw) < _TIMES_AT + _TIMES.size or not is_sealed(key, raw):
        return False
    is_known = int.from_bytes(raw[4:6], "little") < len(table.layouts)
    return is_known and _TIMES.unpack_from(raw, _TIMES_AT) == times


def _drop_segments(work: Repair, table: StoredTable, problems: Sequence[Finding]) -> None:
    """Let go of the segments that are damaged still."""
    damaged = {problem.segment: problem for problem in reversed(problems)}
    manifest = read_manifest(work.txn, table.id)
    for ref in manifest.segments:
        if ref.id in damaged:
            problem = damaged[ref.id]
            what = f"its {ref.rows - ref.dead_count} rows: {problem.what}"
            work.lose(what, table=table.name, segment=ref.id, column=problem.column)
    write_manifest(work.txn, manifest.with_segments(tuple(ref for ref in manifest.segments if ref.id not in damaged)))


def _drop_all(work: Repair, table: StoredTable, problems: Sequence[Finding]) -> None:
    """Let go of a history that is damaged still."""
    work.lose(f"its history: {problems[0].what}", table=table.name)
    drop_tail(work.txn, table.id)
    write_manifest(work.txn, read_manifest(work.txn, table.id).with_segments(()))


def drop_strays(work: Repair) -> None:
    """Remove the entries that belong to nothing that is left."""
    txn, check = work.txn, work.check("quick")
    tables = {table.id: table for table in work.registry.tables.values()}
    for table in tables.values():
        check_table(check, table)
    live = {segment_key(*one) for one in check.segments_live} | check.chunks_expected
    lost: set[int] = set()
    unnamed = work.staged | work.held
    told = {(finding.table, finding.segment) for finding in work.lost}
    for namespace in (NS_SEGMENT, NS_CHUNK):
        for key in [bytes(key) for key, _ in txn.scan(namespace) if bytes(key) not in live]:
            number, segment = int.from_bytes(key[1:5], "big"), int.from_bytes(key[5:13], "big")
            if not unnamed & {(number, segment), (number, None)}:
                lost.add(number)
                if number in tables and (tables[number].name, segment) not in told:
                    told.add((tables[number].name, segment))
                    work.lose("its rows: nothing describes them", table=tables[number].name, segment=segment)
            txn.delete(key)
    for namespace in (NS_MANIFEST, NS_ONLINE, NS_PENDING, NS_REJECTED, NS_TAIL):
        for head in [head for head in heads(txn, namespace, 4) if int.from_bytes(head, "big") not in tables]:
            lost.add(int.from_bytes(head, "big"))
            txn.delete_prefix(namespace + head)
    for namespace in (NS_KEY, NS_CODE_BLOCK):
        for head in list(heads(txn, namespace, 4)):
            if int.from_bytes(head, "big") not in work.registry.spaces.values():
                txn.delete_prefix(namespace + head)
    for number in sorted(lost - tables.keys()):
        work.lose("all of it: its definition is lost", table=f"number {number}")
