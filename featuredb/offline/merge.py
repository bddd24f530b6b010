"""Merging: small segments of a table become one, so that it has O(log rows) of them.

Size-tiered (as in the log-structured merge trees of Cassandra and RocksDB's universal compaction):
segments of like size are merged once `MERGE_FANOUT` of them have gathered, so a row is rewritten
O(log rows) times. Replaced rows are left behind. What readers see does not change, so a merge is no commit. Many rows
are merged while others write (`merge_beside`), so that none of them waits long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from featuredb.limits import DEAD_SHARE_MAX, MERGE_FANOUT, MERGE_LOCKED_ROWS_MAX, SEGMENT_ROWS_MAX
from featuredb.offline.merge_beside import Beside
from featuredb.offline.rows import live_dtypes, sort_rows
from featuredb.offline.segments import read_rows, replace_segments
from featuredb.offline.tail import flush_tail
from featuredb.storage.env import Env, WriteTxn
from featuredb.storage.manifest import SegmentRef, read_manifest, staged_segments
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment import SYSTEM_COLUMNS, SegmentCache
from featuredb.storage.segment_writer import write_segment
from featuredb.storage.tail import is_long, read_tail

# Segments below this are of one size class: rewriting them costs no more than the commit itself.
_TIER_ROWS_MIN = 4096


def _tier(rows: int) -> int:
    tier = 0
    while rows >= _TIER_ROWS_MIN * MERGE_FANOUT**tier:
        tier += 1
    return tier


def pick(segments: Sequence[SegmentRef], rows_max: int) -> list[SegmentRef]:
    """The segments to merge now, into one of at most `rows_max` rows; empty when the table is in shape."""
    worn = [ref for ref in segments if ref.dead_count > DEAD_SHARE_MAX * ref.rows]
    if worn:
        return worn[:1]
    tiers: dict[int, list[SegmentRef]] = {}
    for ref in segments:
        tiers.setdefault(_tier(ref.rows), []).append(ref)
    for tier in sorted(tiers):
        alike = sorted(tiers[tier], key=lambda ref: ref.rows)
        if len(alike) < MERGE_FANOUT:
            continue
        sizes = np.cumsum([ref.rows for ref in alike])
        fitting = int(np.searchsorted(sizes, rows_max, side="right"))
        if fitting > 1:
            return alike[:fitting]
    return []


def merge(
    env: Env,
    cache: SegmentCache,
    table: StoredTable,
    *,
    durable: bool,
    writer: Callable[[], AbstractContextManager[None]],
) -> int:
    """Merge what is due, and the tail if it is long; how many segments were merged from others.

    ``with writer():`` holds the writer lock, for little at a time: much is merged while others write.
    """
    rounds, rows_max = 0, table.rows_within(SEGMENT_ROWS_MAX)
    while True:
        with writer():
            with env.read() as txn:
                long = is_long(read_tail(txn, table.id))
            if long:
                env.write(lambda txn: flush_tail(txn, table), durable=durable)
            with env.read() as txn:
                chosen = pick(read_manifest(txn, table.id).segments, rows_max)
                others = any(table_id == table.id for table_id, _ in staged_segments(txn))
            if not chosen:
                return rounds
            little = sum(ref.rows for ref in chosen) <= MERGE_LOCKED_ROWS_MAX
            if little:
                env.write(lambda txn: _merge_round(txn, cache, table, chosen), durable=durable)  # noqa: B023
            elif others:
                return rounds  # someone else is merging this table
            else:
                beside = Beside(env, cache, table, chosen, durable=durable, writer=writer)
        if not little and not beside.run():
            return rounds
        rounds += 1


def merge_all(env: Env, cache: SegmentCache, table: StoredTable, *, durable: bool) -> None:
    """Merge all segments of a table and its tail, as far as one may grow, and leave replaced rows behind."""
    with env.read() as txn:
        rows_in_tail = read_tail(txn, table.id).rows
    if rows_in_tail:
        env.write(lambda txn: flush_tail(txn, table), durable=durable)
    with env.read() as txn:
        segments = sorted(read_manifest(txn, table.id).segments, key=lambda ref: ref.rows)
    groups: list[list[SegmentRef]] = [[]]
    rows_max = table.rows_within(SEGMENT_ROWS_MAX)
    for ref in segments:
        if sum(held.rows for held in groups[-1]) + ref.rows > rows_max and groups[-1]:
            groups.append([])
        groups[-1].append(ref)
    for group in groups:
        if len(group) > 1 or any(ref.dead_count or _outdated(env, cache, table, ref) for ref in group):
            env.write(lambda txn: _merge_round(txn, cache, table, group), durable=durable)  # noqa: B023


def _outdated(env: Env, cache: SegmentCache, table: StoredTable, ref: SegmentRef) -> bool:
    """Whether the segment holds features that have been removed."""
    with env.read() as txn:
        stored = cache.reader(txn, table.id, ref).info.columns.keys()
    return bool(stored - live_dtypes(table).keys() - SYSTEM_COLUMNS)


def _merge_round(txn: WriteTxn, cache: SegmentCache, table: StoredTable, chosen: Sequence[SegmentRef]) -> None:
    manifest = read_manifest(txn, table.id)
    dtypes = live_dtypes(table)
    rows = read_rows([cache.reader(txn, table.id, ref) for ref in chosen], dtypes)
    ref = write_segment(txn, table.id, manifest.next_segment_id, sort_rows(rows)) if len(rows) else None
    replace_segments(txn, manifest, {ref.id for ref in chosen}, ref)
