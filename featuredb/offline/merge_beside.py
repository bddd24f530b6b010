"""A merge of many rows while others write: it holds the writer lock for no longer than a part takes to be written.

The segments are read in a transaction of their own, and the new one is staged, a part at a time. In the end it takes
their place, if they are all still there. Of rows that were replaced meanwhile the new segment's are marked, too. If a
segment was written anew by others, or what is staged was removed, the merge was in vain: a later ingest merges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace

import numpy as np

from featuredb.errors import FeatureDBError
from featuredb.limits import MERGE_PAUSE_SECONDS, MERGE_STAGE_BYTES, MERGE_STALE_SECONDS
from featuredb.offline.rows import live_dtypes, sort_rows
from featuredb.offline.segments import read_rows, replace_segments
from featuredb.storage.env import Env, ReadTxn, WriteTxn
from featuredb.storage.manifest import (
    SegmentRef,
    drop_staged,
    is_staged,
    publish_staged,
    read_manifest,
    stage_segment,
    write_manifest,
)
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment import SegmentCache
from featuredb.storage.segment_writer import Entries, Rows, put_staged, stage_rows, write_dead


class _Overtaken(Exception):
    """Others have changed what is merged, or removed what was staged."""


def _until_us() -> int:
    return time.time_ns() // 1000 + MERGE_STALE_SECONDS * 1_000_000


class Beside:
    """One merge. To be made while the writer lock is held, and run while it is not."""

    def __init__(
        self,
        env: Env,
        cache: SegmentCache,
        table: StoredTable,
        chosen: Sequence[SegmentRef],
        *,
        durable: bool,
        writer: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._env, self._cache, self._table = env, cache, table
        self._chosen = [ref.id for ref in chosen]
        self._durable, self._writer = durable, writer
        self._id = env.write(self._name, durable=False)

    def _name(self, txn: WriteTxn) -> int:
        """Take a number for the new segment, which no one else will give."""
        manifest = read_manifest(txn, self._table.id)
        write_manifest(txn, replace(manifest, next_segment_id=manifest.next_segment_id + 1))
        stage_segment(txn, self._table.id, manifest.next_segment_id, _until_us())
        return manifest.next_segment_id

    def run(self) -> bool:
        """Merge; False if it was in vain."""
        try:
            with self._env.read() as txn:
                before = self._refs(txn)
                readers = [self._cache.reader(txn, self._table.id, ref) for ref in before]
                rows = sort_rows(read_rows(readers, live_dtypes(self._table)))
                dead = [reader.dead().copy() for reader in readers]
            merged = stage_rows(self._table.id, self._id, rows, self._stage, MERGE_STAGE_BYTES) if len(rows) else None
            with self._writer():
                self._env.write(lambda txn: self._publish(txn, before, dead, rows, merged), durable=self._durable)
        except BaseException as error:
            with suppress(FeatureDBError), self._writer():
                self._env.write(lambda txn: drop_staged(txn, self._table.id, self._id), durable=False)
            if isinstance(error, _Overtaken):
                return False
            raise
        return True

    def _refs(self, txn: ReadTxn) -> list[SegmentRef]:
        """The segments to be merged, as the manifest names them now."""
        live = {ref.id: ref for ref in read_manifest(txn, self._table.id).segments}
        if not all(number in live for number in self._chosen):
            raise _Overtaken
        return [live[number] for number in self._chosen]

    def _stage(self, entries: Entries) -> None:
        def work(txn: WriteTxn) -> None:
            self._check_staged(txn)
            put_staged(txn, self._table.id, self._id, entries, _until_us())

        with self._writer():
            self._env.write(work, durable=False)
        time.sleep(MERGE_PAUSE_SECONDS)

    def _check_staged(self, txn: ReadTxn) -> None:
        if not is_staged(txn, self._table.id, self._id):
            raise _Overtaken

    def _publish(
        self,
        txn: WriteTxn,
        before: Sequence[SegmentRef],
        dead: Sequence[np.ndarray],
        rows: Rows,
        merged: SegmentRef | None,
    ) -> None:
        self._check_staged(txn)
        first, replaced = 0, []
        for old, new, known in zip(before, self._refs(txn), dead, strict=True):
            if new.dead_version != old.dead_version:
                found = self._cache.reader(txn, self._table.id, new).dead()
                replaced.append(first + np.setdiff1d(found, known, assume_unique=True))
            first += old.rows
        if merged is not None and replaced:
            # Where the rows now are that were there before.
            places = np.arange(first, dtype=np.int32) if rows.places is None else rows.places
            now = np.flatnonzero(np.isin(places, np.concatenate(replaced)))
            if len(now):
                merged = write_dead(txn, self._table.id, merged, now.astype(np.int32))
        replace_segments(txn, read_manifest(txn, self._table.id), set(self._chosen), merged)
        publish_staged(txn, [(self._table.id, self._id)])
