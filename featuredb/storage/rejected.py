"""Rejected rows: what ``ingest(on_error="skip")`` left out of a table, and why. The newest are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from featuredb.limits import NS_REJECTED, REJECTED_ROWS_MAX
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.records import decode, pack, text, whole


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """One row that an ingest left out.

    Attributes
    ----------
    commit_id : int
        The commit of that ingest; `Database.log` has its time.
    row : int
        The row's number in the data, from 0.
    column : str
        The column of the data that it was rejected for. A row with several bad columns is there several times.
    value : str or None
        ``repr`` of the value, shortened.
    reason : str
        What is wrong with it and how to mend it.
    """

    commit_id: int
    row: int
    column: str
    value: str | None
    reason: str


def _prefix(table_id: int) -> bytes:
    return NS_REJECTED + table_id.to_bytes(4, "big")


def _number(key: bytes | memoryview) -> int:
    return int.from_bytes(key[5:], "big")


def rejected_rows(txn: ReadTxn, table_id: int, first: int = 0) -> Iterator[RejectedRow]:
    """The rejected rows of a table, oldest first, from the one numbered `first` on."""
    for key, value in txn.scan(_prefix(table_id), first.to_bytes(8, "big")):
        yield decode(key, value, f"rejected row {_number(key)} of table {table_id}", _of_record)


def _of_record(record: Any) -> RejectedRow:
    commit_id, row, column, value, reason = record
    shown = None if value is None else text(value)
    return RejectedRow(whole(commit_id), whole(row), text(column), shown, text(reason))


def next_rejected(txn: ReadTxn, table_id: int) -> int:
    """The number of the next rejected row of a table."""
    last = txn.last(_prefix(table_id))
    return 0 if last is None else _number(last[0]) + 1


def count_rejected(txn: ReadTxn, table_id: int) -> int:
    """How many rejected rows of a table there are."""
    first, last = next(txn.scan(_prefix(table_id)), None), txn.last(_prefix(table_id))
    return 0 if first is None or last is None else _number(last[0]) - _number(first[0]) + 1


def add_rejected(txn: WriteTxn, table_id: int, rows: Sequence[RejectedRow]) -> None:
    """Keep `rows`, and of those before only as many as may be kept."""
    prefix = _prefix(table_id)
    # Numbers rise without gaps, so that the count and what is too old follow from the ends.
    first_new = next_rejected(txn, table_id)
    for place, row in enumerate(rows[-REJECTED_ROWS_MAX:]):
        record = [row.commit_id, row.row, row.column, row.value, row.reason]
        key = prefix + (first_new + place).to_bytes(8, "big")
        txn.put(key, pack(key, record))
    surplus = count_rejected(txn, table_id) - REJECTED_ROWS_MAX
    if surplus > 0:
        keys = [bytes(key) for (key, _), _ in zip(txn.scan(prefix), range(surplus), strict=False)]
        for key in keys:
            txn.delete(key)


def are_newest(txn: ReadTxn, table_id: int, rows: Sequence[RejectedRow]) -> bool:
    """Whether the table's newest rejecting commit rejected just these rows: the same data once more."""
    last = txn.last(_prefix(table_id))
    if not rows or last is None:
        return not rows
    stored = list(rejected_rows(txn, table_id, max(0, _number(last[0]) - len(rows))))
    newest = [row for row in stored if row.commit_id == stored[-1].commit_id]
    return [_content(row) for row in newest] == [_content(row) for row in rows]


def _content(row: RejectedRow) -> tuple[object, ...]:
    return row.row, row.column, row.value, row.reason


def drop_rejected(txn: WriteTxn, table_id: int, unwanted: Callable[[RejectedRow], bool]) -> int:
    """Forget some rejected rows of a table; returns how many."""
    rows = list(rejected_rows(txn, table_id))
    kept = [row for row in rows if not unwanted(row)]
    if len(kept) < len(rows):
        # Anew from the first number on, for numbers have no gaps.
        clear_rejected(txn, table_id)
        add_rejected(txn, table_id, kept)
    return len(rows) - len(kept)


def clear_rejected(txn: WriteTxn, table_id: int) -> int:
    """Forget the rejected rows of a table; returns how many there were."""
    return txn.delete_prefix(_prefix(table_id))
