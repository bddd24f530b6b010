"""Manifests: the segments that make up a table at a commit, and the staging of segments before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from featuredb.errors import CorruptionError
from featuredb.limits import NS_CHUNK, NS_MANIFEST, NS_SEGMENT, NS_STAGED
from featuredb.storage.env import Env, ReadTxn, WriteTxn
from featuredb.storage.records import pack, unpack


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A live segment as its manifest names it.

    ``crc`` is the checksum of its descriptor, which in turn holds those of its chunks. ``dead_count``
    rows were replaced by later ingests; their positions are chunk ``dead_version`` of the dead list.
    """

    id: int
    crc: int
    rows: int
    dead_version: int = 0
    dead_count: int = 0
    dead_crc: int = 0


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
    raw = txn.get(NS_MANIFEST + _table(table_id))
    if raw is None:
        return Manifest(table_id)
    next_id, segments = unpack(raw, f"the manifest of table {table_id}")
    try:
        return Manifest(table_id, tuple(SegmentRef(*fields) for fields in segments), next_id)
    except TypeError:
        raise CorruptionError(f"the manifest of table {table_id} has an unknown shape") from None


def write_manifest(txn: WriteTxn, manifest: Manifest) -> None:
    segments = [
        [ref.id, ref.crc, ref.rows, ref.dead_version, ref.dead_count, ref.dead_crc] for ref in manifest.segments
    ]
    txn.put(NS_MANIFEST + _table(manifest.table_id), pack([manifest.next_segment_id, segments]))


def drop_segment(txn: WriteTxn, table_id: int, segment_id: int) -> None:
    """Remove a segment's chunks and descriptor."""
    txn.delete_prefix(chunk_prefix(table_id, segment_id))
    txn.delete(segment_key(table_id, segment_id))


def drop_table(txn: WriteTxn, table_id: int) -> None:
    """Remove a table's whole history."""
    for ref in read_manifest(txn, table_id).segments:
        drop_segment(txn, table_id, ref.id)
    txn.delete(NS_MANIFEST + _table(table_id))


# A call that loads more than one batch writes each batch's segment in a transaction of its own, so that
# its memory stays bounded, and names it here. Only the last transaction, which is the commit, puts the
# segments into the manifest. What a dead process left staged is removed by the next writer.


def stage_segment(txn: WriteTxn, table_id: int, segment_id: int) -> None:
    txn.put(NS_STAGED + _table(table_id) + segment_id.to_bytes(8, "big"), b"\x01")


def staged_segments(txn: ReadTxn) -> Iterator[tuple[int, int]]:
    for key, _ in txn.scan(NS_STAGED):
        yield int.from_bytes(key[1:5], "big"), int.from_bytes(key[5:13], "big")


def unstage(txn: WriteTxn, *, drop: bool) -> None:
    """Forget what is staged; with `drop`, remove the segments as well. Only for the one writer."""
    for table_id, segment_id in list(staged_segments(txn)):
        if drop:
            drop_segment(txn, table_id, segment_id)
        txn.delete(NS_STAGED + _table(table_id) + segment_id.to_bytes(8, "big"))


def discard_staged(env: Env) -> None:
    """Remove what a call that died or failed midway left staged. Needs the writer lock."""
    with env.read() as txn:
        found = any(True for _ in staged_segments(txn))
    if found:
        env.write(lambda txn: unstage(txn, drop=True))
