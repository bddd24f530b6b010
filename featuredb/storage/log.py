"""The commit log: one record for each commit, in order, never rewritten."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from featuredb.errors import LimitError
from featuredb.limits import ABSENT_US, NS_COMMIT, TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.records import decode, pack, text, whole

# What `salvage` puts in the place of a commit whose record is damaged: it may have been any.
LOST = "lost"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit: what changed the file, when, and by how much.

    ``id`` counts from 1 without gaps, ``time`` never runs backwards, ``rows`` is the number of history
    rows the commit added (for ``materialize``: online keys it wrote).
    """

    id: int
    time_us: int
    operation: str
    table: str | None
    rows: int

    @property
    def time(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.time_us)


def commit_of(key: bytes | memoryview, value: bytes | memoryview) -> Commit:
    """The commit that an entry of the log records."""
    number = int.from_bytes(key[1:], "big")

    def commit(record: Any) -> Commit:
        time_us, operation, table, rows = record
        whole(time_us, TIMESTAMP_MIN_US, TIMESTAMP_MAX_US)
        return Commit(number, time_us, text(operation), None if table is None else text(table), whole(rows))

    return decode(key, value, f"the record of commit {number}", commit)


def last_commit(txn: ReadTxn) -> Commit | None:
    """The newest commit, or None in a new file."""
    found = txn.last(NS_COMMIT)
    return None if found is None else commit_of(*found)


def append_commit(txn: WriteTxn, operation: str, table: str | None, rows: int) -> Commit:
    """Log a commit in the transaction that makes it."""
    last = last_commit(txn)
    now_us = time.time_ns() // 1000
    # Knowledge time asks which commits had happened by then: the clock may step back, the log may not.
    time_us = now_us if last is None else max(now_us, last.time_us + 1)
    if time_us > TIMESTAMP_MAX_US:
        raise LimitError(
            "the last commit, or the clock, is at the end of the year 9999: none can follow; check the clock"
        )
    commit = Commit(1 if last is None else last.id + 1, time_us, operation, table, rows)
    key = NS_COMMIT + commit.id.to_bytes(8, "big")
    txn.put(key, pack(key, [time_us, operation, table, rows]))
    return commit


def commits(txn: ReadTxn) -> Iterator[Commit]:
    """Every commit, oldest first."""
    for key, value in txn.scan(NS_COMMIT):
        yield commit_of(key, value)


def commit_times(txn: ReadTxn) -> list[int]:
    """The time of each commit in microseconds, at the place of its id; commit 0 is before all of them."""
    return [ABSENT_US, *(commit.time_us for commit in commits(txn))]
