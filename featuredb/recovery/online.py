"""Online values that are not those of history any more: made anew, after history got back what only they have."""

from __future__ import annotations

from contextlib import suppress

from featuredb.columns import Heap
from featuredb.errors import CorruptionError
from featuredb.limits import NS_PENDING, NS_REJECTED
from featuredb.offline.dictionary import KeyDictionary
from featuredb.offline.materialize import latest, materialize
from featuredb.offline.tail import flush_tail
from featuredb.online.index import OnlineIndex
from featuredb.recovery.repair import Repair
from featuredb.storage.crc import CRC_BYTES, seal
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.log import LOST
from featuredb.storage.pending import note_pending
from featuredb.storage.records import unpack
from featuredb.storage.registry import StoredTable
from featuredb.storage.rejected import RejectedRow, add_rejected, clear_rejected
from featuredb.storage.segment import SegmentCache
from featuredb.storage.tail import is_long, put_tail, tail_key
from featuredb.verify.history import check_rejected
from featuredb.verify.serving import batches, check_online, check_pending, key_faults, key_text


def repair_online(work: Repair, table: StoredTable) -> None:
    """Make the online values of a table anew if they are damaged, or its history lacks rows that they have.

    Rows that were loaded by ``ingest online`` stay as they are.
    """
    txn, index = work.txn, OnlineIndex(table)
    if not table.definition.online:
        txn.delete_prefix(index.prefix)
        return
    check = work.check()
    with check.guarded():
        check_online(check, table, sound=True)
    if not check.problem_count:
        if check.differences:
            # The mark of what was not offered may be lost; what was is offered in vain.
            note_pending(txn, table.id, 1)
        return
    gone, rows = _sorted_out(work, table, index)
    for key in gone:
        txn.delete(index.prefix + key)
    if rows:
        if table.id not in work.tables_lost:
            work.lose(f"rows of its history; {len(rows)} were found among its online values", table=table.name)
        tail = put_tail(txn, table.id, work.last_commit, rows)
        if is_long(tail):
            flush_tail(txn, table)
    materialize(txn, SegmentCache(), lambda of: KeyDictionary(of.space_id, of.key_dtypes), table, None, None)


def _sorted_out(work: Repair, table: StoredTable, index: OnlineIndex) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Keys whose online rows are to go, and what of these rows history is to get."""
    txn, space = work.txn, KeySpace(table.space_id)
    codes, found = latest(txn, SegmentCache(), table, None, None)
    newest = dict(zip(codes.tolist(), zip(found.event.tolist(), found.created.tolist(), strict=True), strict=True))
    apart = {number for number, operation in work.operations.items() if operation in ("ingest online", LOST)}
    remade = table.id not in work.tables_lost and not apart
    gone, missed = list[bytes](), list[tuple[bytes, bytes]]()
    for keys, rows, damaged in batches(work.check(), table, index):
        gone += damaged
        for key, code in zip(damaged, space.lookup(txn, damaged).tolist(), strict=True):
            if not (remade and code in newest):
                work.lose("its online value", table=table.name, key=key_text(table, key))
        names = keys.tolist()
        none = {key for key in names if key_faults(table, Heap.of([key]))} if key_faults(table, keys) else set[bytes]()
        columns = (space.lookup(txn, names), rows.event, rows.created, rows.commit)
        for key, code, event, created, commit in zip(names, *(column.tolist() for column in columns), strict=True):
            # A key without rows of history may have no code.
            if key in none or (code < 0 and commit not in apart):
                work.lose("its online value, as its key is lost", table=table.name, key=key_text(table, key))
            elif commit in apart:
                continue
            gone.append(key)
            raw = txn.get(index.prefix + key)
            if code >= 0 and raw is not None and (event, created) > newest.get(code, ()):
                at = tail_key(table.id, code, event, created)
                missed.append((at, seal(at, bytes(raw[CRC_BYTES:]))))
    return gone, missed


def repair_rest(work: Repair, table: StoredTable) -> None:
    """The mark of rows that were not materialized, and rejected rows."""
    check = work.check()
    with check.guarded():
        check_pending(check, table)
    if check.problem_count:
        work.txn.delete(NS_PENDING + table.id.to_bytes(4, "big"))
        if table.definition.online:
            # No row is of an earlier commit.
            note_pending(work.txn, table.id, 1)
    check = work.check()
    with check.guarded():
        check_rejected(check, table)
    if check.problem_count:
        _repair_rejected(work, table)


def _repair_rejected(work: Repair, table: StoredTable) -> None:
    """Keep the rejected rows that can be read, numbered anew."""
    rows = []
    for key, raw in work.txn.scan(NS_REJECTED + table.id.to_bytes(4, "big")):
        with suppress(CorruptionError, TypeError):
            rows.append(RejectedRow(*unpack(key, raw, "a rejected row")))
    work.lose("some of its rejected rows", table=table.name)
    clear_rejected(work.txn, table.id)
    add_rejected(work.txn, table.id, [row for row in rows if 1 <= row.commit_id <= work.last_commit])
