"""Facts about a file, as plain values."""

from __future__ import annotations

from typing import Any

from featuredb.limits import FORMAT_VERSION, NS_UNDO
from featuredb.online.index import OnlineIndex
from featuredb.storage.env import Env, ReadTxn
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.log import last_commit
from featuredb.storage.manifest import SNAPSHOT_ID_BYTES, pinned_manifests, read_manifest
from featuredb.storage.registry import Registry, StoredTable
from featuredb.storage.segment import SegmentCache, SegmentInfo
from featuredb.storage.snapshots import SnapshotTxn, snapshots
from featuredb.storage.tail import read_tail, tail_rows


def database_info(env: Env, txn: ReadTxn, registry: Registry, cache: SegmentCache) -> dict[str, Any]:
    """See `Database.info`."""
    last = last_commit(txn)
    return {
        "path": env.path,
        "format_version": FORMAT_VERSION,
        "commit": None if last is None else {"id": last.id, "time": last.time.isoformat(), "operation": last.operation},
        **env.space(),
        "entities": len(registry.entities),
        "feature_services": len(registry.services),
        "snapshots": {} if isinstance(txn, SnapshotTxn) else _snapshots(txn, cache),
        "feature_tables": {name: _table(txn, table, cache) for name, table in sorted(registry.tables.items())},
    }


def _snapshots(txn: ReadTxn, cache: SegmentCache) -> dict[str, Any]:
    """For each snapshot its commit, and the bytes that it alone holds: history, and saved online rows."""
    holders: dict[tuple[int, int], set[int]] = {}
    sizes: dict[tuple[int, int], int] = {}
    for number, manifest in pinned_manifests(txn):
        live = {ref.id for ref in read_manifest(txn, manifest.table_id).segments}
        for ref in manifest.segments:
            if ref.id not in live:
                holders.setdefault((manifest.table_id, ref.id), set()).add(number)
                sizes[manifest.table_id, ref.id] = cache.reader(txn, manifest.table_id, ref).info.nbytes
    alone = {snapshot.id: 0 for snapshot in snapshots(txn)}
    for segment, numbers in holders.items():
        if len(numbers) == 1:
            alone[min(numbers)] += sizes[segment]
    return {
        snapshot.name: {
            "commit_id": snapshot.commit_id,
            "time": snapshot.time.isoformat(),
            "history_bytes": alone[snapshot.id],
            "online_bytes": sum(
                len(key) + len(row) for key, row in txn.scan(NS_UNDO + snapshot.id.to_bytes(SNAPSHOT_ID_BYTES, "big"))
            ),
        }
        for snapshot in snapshots(txn)
    }


def _table(txn: ReadTxn, table: StoredTable, cache: SegmentCache) -> dict[str, Any]:
    manifest, space, tail = read_manifest(txn, table.id), KeySpace(table.space_id), read_tail(txn, table.id)
    infos = [cache.reader(txn, table.id, ref).info for ref in manifest.segments]
    spans = [(info.event_min, info.event_max) for info in infos]
    spans += [(event, event) for _, _, event, _, _ in tail_rows(txn, table.id)]
    names = {number: name for name, number in table.feature_ids.items()}
    return {
        "entities": list(table.definition.entities),
        "features": {feature.name: feature.dtype for feature in table.definition.features},
        "rows": manifest.rows + tail.rows,
        "replaced_rows": sum(ref.dead_count for ref in manifest.segments),
        "segments": len(manifest.segments),
        "rows_in_tail": tail.rows,
        "bytes": sum(info.nbytes for info in infos) + tail.nbytes,
        "event_min_us": min((first for first, _ in spans), default=None),
        "event_max_us": max((last for _, last in spans), default=None),
        "entity_keys_in_key_space": space.count(txn) - space.forgotten(txn),
        "online_keys": OnlineIndex(table).count(txn) if table.definition.online else None,
        "encodings": {name: _encoding(infos, number) for number, name in names.items()},
    }


def _encoding(infos: list[SegmentInfo], feature: int) -> dict[str, Any]:
    """How a feature is stored: its encodings, and what a value takes with its share of validity bits and heaps."""
    stored = [(info.rows, info.columns[feature]) for info in infos if feature in info.columns]
    rows = sum(rows for rows, _ in stored)
    return {
        "encodings": list(dict.fromkeys(column.encoding for _, column in stored)),
        "bits_per_value": 8 * sum(column.nbytes for _, column in stored) / rows if rows else None,
    }
