"""Merging: small segments of a table become one, so that it has O(log rows) of them.

Size-tiered (as in the log-structured merge trees of Cassandra and RocksDB's universal compaction):
segments of like size are merged once `MERGE_FANOUT` of them have gathered, so a row is rewritten
O(log rows) times. Replaced rows are left behind. What readers see does not change, so a merge is no commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from featuredb.columns import concat
from featuredb.limits import DEAD_SHARE_MAX, MERGE_FANOUT, SEGMENT_ROWS_MAX
from featuredb.offline.rows import joined, live_dtypes, sort_rows
from featuredb.offline.tail import flush_tail
from featuredb.schema import DType
from featuredb.storage.env import Env, WriteTxn
from featuredb.storage.manifest import SegmentRef, drop_segment, read_manifest, write_manifest
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment import (
    COMMIT,
    CREATED,
    EVENT,
    SYSTEM_COLUMNS,
    SegmentCache,
    SegmentReader,
)
from featuredb.storage.segment_writer import Rows, write_segment
from featuredb.storage.tail import is_long, read_tail

# Segments below this are of one size class: rewriting them costs no more than the commit itself.
_TIER_ROWS_MIN = 4096


def read_rows(readers: Sequence[SegmentReader], dtypes: Mapping[int, DType]) -> Rows:
    """The live rows of some segments, one segment after the other, with the features in `dtypes`; not sorted."""
    codes = [np.repeat(codes, np.diff(starts)) for codes, starts in (reader.entity_index() for reader in readers)]
    event, created, commit = (
        joined([reader.read_system(number) for reader in readers]) for number in (EVENT, CREATED, COMMIT)
    )
    # Copied once, from the chunks of all.
    columns = {
        number: concat([part for reader in readers for part in reader.feature_parts(number, dtype)])
        for number, dtype in dtypes.items()
    }
    rows = Rows(np.concatenate(codes), event, created, commit, columns)
    alive = np.ones(len(rows), dtype=np.bool_)
    first = 0
    for reader in readers:
        alive[first + reader.dead()] = False
        first += reader.rows
    return rows if alive.all() else rows.where(alive)


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


def merge(env: Env, cache: SegmentCache, table: StoredTable, *, durable: bool) -> int:
    """Merge what is due, and the tail if it is long. Needs the writer lock; each round is a transaction.

    Returns the number of segments that were merged from others.
    """
    rounds, rows_max = 0, table.rows_within(SEGMENT_ROWS_MAX)
    with env.read() as txn:
        long = is_long(read_tail(txn, table.id))
    if long:
        env.write(lambda txn: flush_tail(txn, table), durable=durable)
    while True:
        with env.read() as txn:
            chosen = pick(read_manifest(txn, table.id).segments, rows_max)
        if not chosen:
            return rounds
        env.write(lambda txn: _merge_round(txn, cache, table, chosen), durable=durable)  # noqa: B023
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
    gone = {ref.id for ref in chosen}
    kept = [ref for ref in manifest.segments if ref.id not in gone]
    if len(rows):
        # The merged segment takes the place of the oldest: order in the manifest is age.
        ref = write_segment(txn, table.id, manifest.next_segment_id, sort_rows(rows))
        place = next(i for i, old in enumerate(manifest.segments) if old.id in gone)
        kept.insert(min(place, len(kept)), ref)
    for ref in chosen:
        drop_segment(txn, table.id, ref.id)
    write_manifest(txn, manifest.with_segments(tuple(kept)))
