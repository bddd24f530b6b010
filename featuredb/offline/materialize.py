"""Materialize: online values from history. The newest row of each key wins, whatever was there before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column
from featuredb.limits import ABSENT_US, TIMESTAMP_MAX_US
from featuredb.offline.dictionary import KeyDictionary
from featuredb.offline.merge import live_dtypes
from featuredb.offline.search import Found, Gatherer, Query, search
from featuredb.online.index import OnlineIndex
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.manifest import read_manifest
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment import SegmentCache


def latest(
    txn: ReadTxn, cache: SegmentCache, table: StoredTable, start_us: int | None, end_us: int | None
) -> tuple[NDArray[np.int32], Found]:
    """The codes that have a row between `start_us` and `end_us` (both included), and its greatest."""
    readers = [cache.reader(txn, table.id, ref) for ref in read_manifest(txn, table.id).segments]
    codes = np.zeros(0, dtype=np.int32)
    for reader in readers:
        codes = np.union1d(codes, reader.entity_index()[0]).astype(np.int32)
    rows = len(codes)
    times = np.full(rows, TIMESTAMP_MAX_US if end_us is None else end_us, dtype=np.int64)
    oldest = np.full(rows, ABSENT_US + 1 if start_us is None else start_us, dtype=np.int64)
    found = search(readers, Query(codes, times, oldest, np.arange(rows), rows))
    matched = found.segment >= 0
    if matched.all():
        return codes, found
    kept = Query(codes[matched], times[matched], oldest[matched], np.arange(int(matched.sum())), int(matched.sum()))
    return kept.codes, Found(
        kept, readers, found.event[matched], found.created[matched], found.segment[matched], found.position[matched]
    )


def latest_columns(table: StoredTable, found: Found) -> dict[str, Column]:
    """The features of what `latest` found, by name."""
    gatherer, dtypes = Gatherer(found), live_dtypes(table)
    return {name: gatherer.feature(number, dtypes[number]) for name, number in table.feature_ids.items()}


def materialize(
    txn: WriteTxn,
    cache: SegmentCache,
    dictionary_of: Callable[[StoredTable], KeyDictionary],
    table: StoredTable,
    start_us: int | None,
    end_us: int | None,
    commit_id: int,
) -> int:
    """Offer the latest rows of one table to its online values; returns the keys written."""
    codes, found = latest(txn, cache, table, start_us, end_us)
    if not len(codes):
        return 0
    keys = dictionary_of(table).keys(txn, codes)
    return OnlineIndex(table).update(txn, keys, found.event, found.created, commit_id, latest_columns(table, found))
