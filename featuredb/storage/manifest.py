"""Manifests: the segments that make up a table at a commit, and the staging of segments before it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from featuredb.limits import NS_CHUNK, NS_MANIFEST, NS_PINNED, NS_SEGMENT, NS_STAGED, SEGMENT_ROWS_MAX
from featuredb.storage.crc import seal
from featuredb.storage.env import Env, ReadTxn, WriteTxn
from featuredb.storage.records import COUNTER_MAX, Raw, decode, pack, unseal, whole, wholes
from featuredb.storage.txn import Bytes

SNAPSHOT_ID_BYTES = 6
# Column id of the lists of dead rows among a segment's chunks.
DEAD = 0xFFFF_FFF5
# Of lists of dead rows, which count on in a `u32`.
_VERSION_MAX = 2_000_000_000


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A live segment as its manifest names it.

    ``crc`` is that of its descriptor, which in turn holds the checksums of its chunks. ``dead_count``
    rows were replaced by later ingests; their positions are chunk ``dead_version`` of the dead list.
    """

    id: int
    crc: int
    rows: int
    dead_version: int = 0
    dead_count: int = 0
    dead_checksum: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """The live segments of a table, oldest first."""

    table_id: int
    segments: tuple[SegmentRef, ...] = ()
    next_segment_id: int = 1

    @property
    def rows(self) -> int:
        """Live rows."""
        return sum(ref.rows - ref.dead_count for ref in self.segments)

    def with_segments(self, segments: tuple[SegmentRef, ...]) -> Manifest:
        next_id = max([self.next_segment_id, *(ref.id + 1 for ref in segments)])
        return replace(self, segments=segments, next_segment_id=next_id)


def _table(table_id: int) -> bytes:
    return table_id.to_bytes(4, "big")


def segment_key(table_id: int, segment_id: int) -> bytes:
    """Key of a segment's descriptor."""
    return NS_SEGMENT + _table(table_id) + segment_id.to_bytes(8, "big")


def chunk_prefix(table_id: int, segment_id: int) -> bytes:
    """Prefix of the keys of a segment's chunks."""
    return NS_CHUNK + _table(table_id) + segment_id.to_bytes(8, "big")


def read_manifest(txn: ReadTxn, table_id: int) -> Manifest:
    """The manifest of a table; empty for a table that was never written."""
    raw = txn.get(_key(table_id))
    return Manifest(table_id) if raw is None else _unpacked(raw, table_id)


def _key(table_id: int) -> bytes:
    return NS_MANIFEST + _table(table_id)


def _unpacked(raw: Bytes, table_id: int) -> Manifest:
    def manifest(record: Any) -> Manifest:
        next_id, segments = record
        refs = tuple(_ref_of(*wholes(fields)) for fields in segments)
        wholes((ref.dead_version for ref in refs), 0, _VERSION_MAX)
        wholes((ref.id for ref in refs), 0, COUNTER_MAX)
        wholes((bound for ref in refs for bound in (ref.rows, ref.dead_count)), 0, SEGMENT_ROWS_MAX)
        return Manifest(table_id, refs, whole(next_id, 0, COUNTER_MAX))

    return decode(_key(table_id), raw, f"the manifest of table {table_id}", manifest)


def _ref_of(number: int, crc: int, rows: int, version: int, count: int, checksum: int) -> SegmentRef:
    return SegmentRef(number, crc, rows, version, count, checksum)


def write_manifest(txn: WriteTxn, manifest: Manifest) -> None:
    txn.put(_key(manifest.table_id), _packed(manifest))


def _packed(manifest: Manifest) -> bytes:
    segments = [
        [ref.id, ref.crc, ref.rows, ref.dead_version, ref.dead_count, ref.dead_checksum] for ref in manifest.segments
    ]
    return pack(_key(manifest.table_id), [manifest.next_segment_id, segments])


# A snapshot holds copies of the manifests, and thereby the segments and lists of dead rows that they name.


def pin_key(table_id: int, snapshot_id: int) -> bytes:
    """Key of the copy of a table's manifest that a snapshot holds."""
    return NS_PINNED + _table(table_id) + snapshot_id.to_bytes(SNAPSHOT_ID_BYTES, "big")


def pin_manifest(txn: WriteTxn, table_id: int, snapshot_id: int) -> None:
    """Let a snapshot hold the table's manifest as it is now."""
    key = pin_key(table_id, snapshot_id)
    txn.put(key, seal(key, _packed(read_manifest(txn, table_id))))


def held_manifest(key: Bytes, raw: Raw) -> Raw:
    """The value of the manifest that a snapshot holds a copy of; `CorruptionError` if that is damaged."""
    number, snapshot_id = int.from_bytes(key[1:5], "big"), int.from_bytes(key[5:], "big")
    return unseal(key, raw, f"the manifest of table {number} that snapshot {snapshot_id} holds")


def pinned_manifests(txn: ReadTxn, table_id: int | None = None) -> Iterator[tuple[int, Manifest]]:
    """Snapshot id and manifest of every copy held, of one table or of all."""
    for key, raw in txn.scan(NS_PINNED + (b"" if table_id is None else _table(table_id))):
        yield int.from_bytes(key[5:], "big"), _unpacked(held_manifest(key, raw), int.from_bytes(key[1:5], "big"))


def is_pinned(txn: ReadTxn, table_id: int, segment_id: int, dead_version: int | None = None) -> bool:
    """Whether a snapshot holds the segment (with its dead list of that version, if one is given)."""
    return any(
        ref.id == segment_id and dead_version in (None, ref.dead_version)
        for _, manifest in pinned_manifests(txn, table_id)
        for ref in manifest.segments
    )


def unpin(txn: WriteTxn, snapshot_id: int) -> None:
    """Take its manifests from a snapshot, and remove what nothing else holds."""
    held = [manifest for number, manifest in pinned_manifests(txn) if number == snapshot_id]
    for manifest in held:
        table_id = manifest.table_id
        txn.delete(pin_key(table_id, snapshot_id))
        live = {ref.id: ref for ref in read_manifest(txn, table_id).segments}
        for ref in manifest.segments:
            if ref.id not in live:
                drop_segment(txn, table_id, ref.id)
            elif live[ref.id].dead_version != ref.dead_version:
                drop_dead(txn, table_id, ref.id, ref.dead_version)


def dead_key(table_id: int, segment_id: int, version: int) -> bytes:
    """Key of a version of the list of a segment's dead rows: a chunk of a column of its own."""
    return chunk_prefix(table_id, segment_id) + DEAD.to_bytes(4, "big") + version.to_bytes(4, "big") + b"\x00"


def drop_dead(txn: WriteTxn, table_id: int, segment_id: int, version: int) -> None:
    """Remove a version of a segment's list of dead rows, unless a snapshot holds it."""
    if not is_pinned(txn, table_id, segment_id, version):
        txn.delete(dead_key(table_id, segment_id, version))


def drop_segment(txn: WriteTxn, table_id: int, segment_id: int) -> None:
    """Remove a segment's chunks and descriptor, or of one that a snapshot holds, dead lists that none does."""
    if not is_pinned(txn, table_id, segment_id):
        txn.delete_prefix(chunk_prefix(table_id, segment_id))
        txn.delete(segment_key(table_id, segment_id))
        return
    prefix = chunk_prefix(table_id, segment_id) + DEAD.to_bytes(4, "big")
    for version in [int.from_bytes(key[17:21], "big") for key, _ in txn.scan(prefix)]:
        drop_dead(txn, table_id, segment_id, version)


def drop_table(txn: WriteTxn, table_id: int) -> None:
    """Remove a table's whole history, save what a snapshot holds."""
    for ref in read_manifest(txn, table_id).segments:
        drop_segment(txn, table_id, ref.id)
    txn.delete(_key(table_id))


# A call that loads more than one batch writes each batch's segment in transactions of its own, so that
# its memory stays bounded, and names it here. Only the last transaction, which is the commit, puts the
# segments into the manifest. What a dead process left staged is removed by the next writer.
#
# A merge stages its segment likewise, but lets others write meanwhile. They leave it alone until a time, which the
# merge puts off as it goes on: by then it is dead. One that was only slow finds its segment gone, and gives up.

_UNTIL_BYTES = 8
_BY_LOADING = b"\x01"


def _staged_key(table_id: int, segment_id: int) -> bytes:
    return NS_STAGED + _table(table_id) + segment_id.to_bytes(8, "big")


def _staged(key: memoryview) -> tuple[int, int]:
    return int.from_bytes(key[1:5], "big"), int.from_bytes(key[5:13], "big")


def stage_segment(txn: WriteTxn, table_id: int, segment_id: int, until_us: int | None = None) -> None:
    """Name a segment that is not in a manifest yet; one of a merge with the time until when others leave it alone."""
    value = _BY_LOADING if until_us is None else until_us.to_bytes(_UNTIL_BYTES, "little")
    txn.put(_staged_key(table_id, segment_id), value)


def is_staged(txn: ReadTxn, table_id: int, segment_id: int) -> bool:
    """Whether the segment has been named and not been removed since."""
    return txn.get(_staged_key(table_id, segment_id)) is not None


def staged_segments(txn: ReadTxn) -> Iterator[tuple[int, int]]:
    """Table and number of each, whoever stages it."""
    return map(_staged, (key for key, _ in txn.scan(NS_STAGED)))


def left_behind(txn: ReadTxn, *, merges: bool = False) -> list[tuple[int, int]]:
    """Those of calls that load, and of merges that are dead; or of all `merges`. Only for the one writer."""
    now_us = time.time_ns() // 1000
    found = []
    for key, raw in txn.scan(NS_STAGED):
        until = bytes(raw)
        if until == _BY_LOADING or merges or int.from_bytes(until, "little") < now_us:
            found.append(_staged(key))
    return found


def drop_staged(txn: WriteTxn, table_id: int, segment_id: int) -> None:
    """Remove a segment that was staged and will be in no manifest."""
    drop_segment(txn, table_id, segment_id)
    txn.delete(_staged_key(table_id, segment_id))


def publish_staged(txn: WriteTxn, segments: Iterable[tuple[int, int]]) -> None:
    """Let staged segments, that are in a manifest now, be like any others."""
    for table_id, segment_id in segments:
        txn.delete(_staged_key(table_id, segment_id))


def discard_staged(env: Env, *, merges: bool = False) -> None:
    """Remove what a call that died or failed midway left staged, see `left_behind`. Needs the writer lock."""
    with env.read() as txn:
        found = left_behind(txn, merges=merges)
    if found:

        def work(txn: WriteTxn) -> None:
            for segment in found:
                drop_staged(txn, *segment)

        env.write(work)
