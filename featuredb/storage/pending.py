"""What history holds and the online values have not been offered: the first such commit of each table.

Every ingest offers its rows to the online values, except with ``to="offline"``. So all that an incremental
materialize needs is the first commit since the last one that did not: rows of older commits have had their turn,
however late their event timestamps are.
"""

from __future__ import annotations

from featuredb.limits import NS_PENDING
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.records import decode, pack, whole


def _key(table_id: int) -> bytes:
    return NS_PENDING + table_id.to_bytes(4, "big")


def pending_since(txn: ReadTxn, table_id: int) -> int | None:
    """The first commit whose rows have not been offered to the online values; None if all have."""
    key = _key(table_id)
    raw = txn.get(key)
    return None if raw is None else decode(key, raw, f"the pending mark of table {table_id}", whole)


def note_pending(txn: WriteTxn, table_id: int, commit_id: int) -> None:
    """Remember that the rows of this commit have not been offered."""
    key = _key(table_id)
    if txn.get(key) is None:
        txn.put(key, pack(key, commit_id))


def clear_pending(txn: WriteTxn, table_id: int) -> None:
    """All rows have been offered, or there is nothing to offer them to."""
    txn.delete(_key(table_id))
