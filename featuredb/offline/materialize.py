"""Materialize: online values from history. The newest row of each key wins, whatever was there before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column
from featuredb.errors import InputError
from featuredb.limits import ABSENT_US, TIMESTAMP_MAX_US
from featuredb.offline.chunks import system_chunk
from featuredb.offline.dictionary import KeyDictionary
from featuredb.offline.gather import Gatherer
from featuredb.offline.rows import distinct_codes, live_dtypes, run_bounds
from featuredb.offline.search import Found, Query, search
from featuredb.offline.tail import table_readers
from featuredb.online.index import OnlineIndex
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.keys import sort_order
from featuredb.storage.log import append_commit, last_commit
from featuredb.storage.pending import clear_pending, pending_since
from featuredb.storage.registry import StoredTable, read_registry
from featuredb.storage.segment import COMMIT, SegmentCache, SegmentReader


def _codes_since(reader: SegmentReader, since_commit: int) -> NDArray[np.int32]:
    """The codes that have a row of commit `since_commit` or later."""
    codes, starts = reader.entity_index()
    found = []
    for chunk, (first, stop) in enumerate(reader.chunk_bounds(COMMIT)):
        # One value stands for a whole segment that no merge has made.
        recent = np.broadcast_to(system_chunk(reader, COMMIT, chunk) >= since_commit, stop - first)
        positions = first + np.flatnonzero(recent)
        runs = np.searchsorted(starts, positions, side="right").astype(np.int32) - 1
        found.append(codes[runs[run_bounds(runs)[:-1]]])
    return distinct_codes(found)


def latest(
    txn: ReadTxn,
    cache: SegmentCache,
    table: StoredTable,
    start_us: int | None,
    end_us: int | None,
    since_commit: int | None = None,
) -> tuple[NDArray[np.int32], Found]:
    """The codes that have a row between `start_us` and `end_us` (both included), and its greatest.

    With `since_commit` only codes that have a row of that commit or later; their greatest may be an older one.
    """
    readers = table_readers(txn, cache, table)
    codes = distinct_codes(
        [reader.entity_index()[0] if since_commit is None else _codes_since(reader, since_commit) for reader in readers]
    )
    newest = TIMESTAMP_MAX_US if end_us is None else end_us
    floor_us = ABSENT_US + 1 if start_us is None else start_us
    times = np.full(len(codes), newest, dtype=np.int64)
    query = Query(codes, np.arange(len(codes)), times, floor_us=floor_us)
    found = search(readers, query, with_times=True)
    matched = np.flatnonzero(found.position >= 0)
    return codes[matched], found.take(matched)


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
    *,
    incremental: bool = False,
) -> int:
    """Offer the latest rows of one table to its online values; returns the keys written.

    If `incremental`, only of keys that have rows which have not been offered.
    """
    since = pending_since(txn, table.id) if incremental else None
    if incremental and since is None:
        return 0
    codes, found = latest(txn, cache, table, start_us, end_us, since)
    if start_us is None and end_us is None:
        clear_pending(txn, table.id)
    if not len(codes):
        return 0
    keys = dictionary_of(table).keys(txn, codes)
    # In the order in which they are written, values are gathered once.
    order = sort_order(keys)
    keys, found = keys.take(order), found.take(order)
    # The rows keep their own commits: the order among rows of equal timestamps is that of history.
    commits = Gatherer(found).commits()
    return OnlineIndex(table).update(txn, keys, found.event, found.created, commits, latest_columns(table, found))


def materialize_tables(
    txn: WriteTxn,
    cache: SegmentCache,
    dictionary_of: Callable[[StoredTable], KeyDictionary],
    names: str | Sequence[str] | None,
    start_us: int | None,
    end_us: int | None,
    *,
    incremental: bool,
) -> tuple[dict[str, int], int]:
    """Materialize the tables of these names (None: all that are online); keys written by table, and the commit."""
    registry = read_registry(txn)
    if names is None:
        chosen = [table for table in registry.tables.values() if table.definition.online]
    else:
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, Iterable):
            raise InputError(f"tables must be names of feature tables, not {names!r}")
        chosen = [registry.table(name) for name in names]
    offline = [table.name for table in chosen if not table.definition.online]
    if offline:
        raise InputError(f"feature table {', '.join(offline)} is not kept online; define it with online=True")
    updated = {
        table.name: materialize(txn, cache, dictionary_of, table, start_us, end_us, incremental=incremental)
        for table in chosen
    }
    last = last_commit(txn)
    if not any(updated.values()):
        return updated, 0 if last is None else last.id
    name = chosen[0].name if len(chosen) == 1 else None
    return updated, append_commit(txn, "materialize", name, sum(updated.values())).id
