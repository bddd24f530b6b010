"""Checks of snapshots: their records, the manifests they hold, and the online rows saved for them."""

from __future__ import annotations

from itertools import islice

from featuredb.columns import Heap
from featuredb.errors import CorruptionError
from featuredb.limits import NS_PINNED, NS_SNAPSHOT, NS_UNDO
from featuredb.online.index import BATCH_ROWS, OnlineIndex
from featuredb.storage.env import ReadTxn
from featuredb.storage.manifest import SNAPSHOT_ID_BYTES, pin_key
from featuredb.storage.registry import StoredTable, read_registry
from featuredb.storage.snapshots import Snapshot, SnapshotTxn, snapshot_of
from featuredb.verify.history import check_pinned
from featuredb.verify.report import Check
from featuredb.verify.serving import key_text

_ID = slice(1, 1 + SNAPSHOT_ID_BYTES)


def check_snapshots(check: Check) -> None:
    """Every snapshot can be read, and every held manifest and saved online row is of a table of a snapshot."""
    known: set[tuple[int, int]] = set()
    # A damaged record does not make all that it holds look astray.
    damaged: set[int] = set()
    strange = [bytes(key).hex() for key, _ in check.txn.scan(NS_SNAPSHOT) if len(key) != _ID.stop]
    if strange:
        check.problem(f"the key {strange[0]} is none of a snapshot")
        return
    for key, raw in check.txn.scan(NS_SNAPSHOT):
        number, found = int.from_bytes(key[1:], "big"), None
        with check.guarded():
            found = snapshot_of(key, raw)
        if found is None:
            damaged.add(number)
            continue
        snapshot, definitions = found
        if not 0 <= snapshot.commit_id < snapshot.id <= check.last_commit:
            check.problem(f"snapshot {snapshot.name!r} holds commit {snapshot.commit_id}, and is not in the log")
        with check.guarded(f"snapshot {snapshot.name!r}"):
            view = SnapshotTxn(check.txn, snapshot, definitions)
            registry = read_registry(view)
            for service in registry.services.values():
                registry.references(service)
            for table in registry.tables.values():
                known.add((snapshot.id, table.id))
                with check.guarded(f"snapshot {snapshot.name!r}", table=table.name):
                    _check_table(check, snapshot, view, table)
    for key, _ in check.txn.scan(NS_PINNED):
        number, table_id = int.from_bytes(key[5:], "big"), int.from_bytes(key[1:5], "big")
        if number not in damaged and (number, table_id) not in known:
            check.problem("a manifest is held for no snapshot", table=f"number {table_id}")
    strays = dict.fromkeys(bytes(key[: _ID.stop + 4]) for key, _ in check.txn.scan(NS_UNDO))
    for head in strays:
        number, table_id = int.from_bytes(head[_ID], "big"), int.from_bytes(head[_ID.stop :], "big")
        if number not in damaged and (number, table_id) not in known:
            check.problem(f"online rows are saved for number {number}, no snapshot", table=f"number {table_id}")


def _check_table(check: Check, snapshot: Snapshot, view: ReadTxn, table: StoredTable) -> None:
    if check.txn.get(pin_key(table.id, snapshot.id)) is None:
        check.problem(f"snapshot {snapshot.name!r} lacks its manifest", table=table.name)
    check_pinned(check, view, table)
    if check.level == "quick":
        return
    index = OnlineIndex(table)
    prefix = NS_UNDO + snapshot.id.to_bytes(SNAPSHOT_ID_BYTES, "big") + table.id.to_bytes(4, "big")
    entries = check.txn.scan(prefix)
    while batch := list(islice(entries, BATCH_ROWS)):
        # What is saved under a snapshot is what is read at it; reading checks the checksums.
        keys = [bytes(key[len(prefix) :]) for key, _ in batch]
        try:
            index.read(view, Heap.of(keys))
        except CorruptionError:
            for key in keys:
                with check.guarded(f"snapshot {snapshot.name!r}", table=table.name, key=key_text(table, key)):
                    index.read(view, Heap.of([key]))
