"""Segments read whole, and replaced by what was made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from featuredb.columns import Column, Heap, concat
from featuredb.offline.rows import joined
from featuredb.schema import DType
from featuredb.storage.env import WriteTxn
from featuredb.storage.manifest import Manifest, SegmentRef, drop_segment, write_manifest
from featuredb.storage.segment import COMMIT, CREATED, EVENT, SegmentReader
from featuredb.storage.segment_writer import Rows


def _copied(parts: Sequence[Column]) -> Column:
    """The parts as one column, no longer in need of the transaction they were read in."""
    column = concat(parts)
    heap = column.heap
    if heap is not None and heap is parts[0].heap:
        heap = Heap(heap.offsets, heap.data.copy())
    data = column.data.copy() if len(parts) == 1 else column.data
    return Column(column.dtype, data, column.valid, heap)


def read_rows(readers: Sequence[SegmentReader], dtypes: Mapping[int, DType]) -> Rows:
    """The live rows of some segments, one segment after the other, with the features in `dtypes`; not sorted.

    They are copies. Places are those of all rows, replaced ones included.
    """
    codes = [np.repeat(codes, np.diff(starts)) for codes, starts in (reader.entity_index() for reader in readers)]
    event, created, commit = (
        joined([reader.read_system(number) for reader in readers]) for number in (EVENT, CREATED, COMMIT)
    )
    # Copied once, from the chunks of all.
    columns = {
        number: _copied([part for reader in readers for part in reader.feature_parts(number, dtype)])
        for number, dtype in dtypes.items()
    }
    rows = Rows(np.concatenate(codes), event, created, commit, columns)
    alive = np.ones(len(rows), dtype=np.bool_)
    first = 0
    for reader in readers:
        alive[first + reader.dead()] = False
        first += reader.rows
    return rows if alive.all() else rows.where(alive)


def replace_segments(txn: WriteTxn, manifest: Manifest, gone: set[int], merged: SegmentRef | None) -> None:
    """Put a segment, if any row was left, in the place of those that it was merged from."""
    kept = [ref for ref in manifest.segments if ref.id not in gone]
    if merged is not None:
        # That of the oldest: order in the manifest is age.
        place = next(i for i, old in enumerate(manifest.segments) if old.id in gone)
        kept.insert(min(place, len(kept)), merged)
    for number in gone:
        drop_segment(txn, manifest.table_id, number)
    write_manifest(txn, manifest.with_segments(tuple(kept)))
