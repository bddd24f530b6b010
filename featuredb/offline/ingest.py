"""Ingest: data in, one commit over history, online values and the log out - or nothing.

Batches are read, converted and sorted one at a time. All but the last, and that too if it is long, are written as
staged segments in transactions of their own (see `storage.manifest`); the last transaction puts every segment
into the manifest, updates the online rows and logs the commit. The rows of a small call go to the tail instead, and
before the first batch of a longer one what is there becomes a segment, so that it is compared with segments only.
Memory: one batch, the distinct keys of the data, and the latest row of each key for the online index.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.errors import Problem, input_error
from featuredb.frames import RowProblems, TableInput
from featuredb.limits import (
    INGEST_BATCH_ROWS,
    INGEST_MEMORY_ROWS,
    REJECTIONS_KEPT_MAX,
    SMALL_INGEST_BYTES_MAX,
    SMALL_INGEST_ROWS_MAX,
    STAGE_BYTES,
)
from featuredb.offline.dictionary import KeyDictionary
from featuredb.offline.gather import Gatherer
from featuredb.offline.latest import Latest
from featuredb.offline.partial import fill_from_history, fill_from_online
from featuredb.offline.prepare import Prepared, prepare, source_columns, within
from featuredb.offline.report import IngestReport, Rejection
from featuredb.offline.rows import last_of_each, live_dtypes, same_rows, sort_rows
from featuredb.offline.stored import at_positions, find_stored, in_sorted
from featuredb.offline.tail import append_rows, find_in_tail, flush_tail, table_readers
from featuredb.online.index import OnlineIndex
from featuredb.progress import Report
from featuredb.schema import DTYPES, Source
from featuredb.storage.encode import taken
from featuredb.storage.env import Env, ReadTxn, WriteTxn
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.log import append_commit, last_commit
from featuredb.storage.manifest import (
    SegmentRef,
    discard_staged,
    drop_staged,
    left_behind,
    publish_staged,
    read_manifest,
    write_manifest,
)
from featuredb.storage.pending import note_pending
from featuredb.storage.registry import StoredTable
from featuredb.storage.rejected import RejectedRow, add_rejected, are_newest
from featuredb.storage.segment import SegmentCache, SegmentReader
from featuredb.storage.segment_writer import Entries, Rows, put_staged, stage_rows, uniform, write_dead, write_segment
from featuredb.storage.tail import read_tail


@dataclass(slots=True)
class _Rejections:
    """Rejected rows over all batches: counted, and the first of them kept."""

    rows: int = 0
    kept: list[Rejection] = field(default_factory=list)
    by_reason: dict[str, int] = field(default_factory=dict)
    problems: dict[tuple[str, str], Problem] = field(default_factory=dict)

    def add(self, found: list[RowProblems], rows_left_out: int) -> None:
        self.rows += rows_left_out
        for item in found:
            room = max(0, REJECTIONS_KEPT_MAX - len(self.kept))
            for place, shown in zip(item.rows[:room].tolist(), item.values[:room], strict=False):
                self.kept.append(Rejection(place, item.column, shown, item.reason))
            key = (item.column, item.reason)
            reason = f"{item.column}: {item.reason}"
            self.by_reason[reason] = self.by_reason.get(reason, 0) + len(item.rows)
            first = self.problems.get(key)
            value = item.values[0] if item.values else None
            row, count = int(item.rows[0]), len(item.rows)
            if first is not None:
                row, value, count = first.row or 0, first.value, first.count + count
            self.problems[key] = Problem(item.reason, item.column, row, value, count)


@dataclass(slots=True)
class _Outcome:
    """What one batch adds to the call; made anew if its transaction is run again."""

    segments: list[SegmentRef]
    dead: dict[int, NDArray[np.int32]]
    latest: Latest
    ingested: int = 0
    unchanged: int = 0
    repeated: int = 0
    replaced: int = 0
    nbytes: int = 0


class Ingest:
    """One call of ``ingest``: holds the writer lock from `run`'s start to its end.

    Parameters
    ----------
    env, cache, dictionary
        The file, its segment cache, and the dictionary of the table's key space.
    table : StoredTable
        The table as it is while the lock is held.
    to : str
        ``both``, ``offline`` or ``online``.
    skip : bool
        Leave rejected rows out instead of raising.
    partial : bool
        Fill features that the data lacks from the row before, instead of refusing the data.
    durable : bool
        Whether the commit survives power loss.
    """

    def __init__(
        self,
        env: Env,
        cache: SegmentCache,
        dictionary: KeyDictionary,
        table: StoredTable,
        *,
        to: str,
        skip: bool,
        durable: bool,
        partial: bool = False,
    ) -> None:
        self._env, self._cache, self._dictionary, self._table = env, cache, dictionary, table
        self._to, self._skip, self._durable, self._partial = to, skip, durable, partial
        self._space = KeySpace(table.space_id)
        self._segments: tuple[SegmentRef, ...] = ()
        self._committed: set[int] = set()
        # Positions that this call replaces, by segment. Only the commit may write them: until then
        # readers use the dead lists that the manifest names.
        self._dead: dict[int, NDArray[np.int32]] = {}
        self._latest = Latest()
        self._filled: tuple[str, ...] = ()

    def run(
        self,
        given: TableInput,
        source: Source | None,
        start_us: int | None,
        end_us: int | None,
        progress: Report,
    ) -> IngestReport:
        """Ingest `given`, whose columns `source` names; changes nothing if it is not usable.

        Raises
        ------
        InputError
            Lists every problem of the data.
        """
        began = time.perf_counter()
        with self._env.read() as txn:
            last = last_commit(txn)
            self._segments = read_manifest(txn, self._table.id).segments
        self._committed = {ref.id for ref in self._segments}
        before = 0 if last is None else last.id
        commit_id = before + 1
        subject = f"data for feature table {self._table.name!r}"
        columns, problems = source_columns(self._table, given, source, partial=self._partial)
        # No rows and no columns, such as an empty list of dicts, is nothing to load.
        if problems and (given.names or given.rows != 0):
            raise input_error(subject, problems)
        self._filled = tuple(name for name in self._table.feature_ids if name not in columns.features)
        rejections, outcomes, whole = _Rejections(), _Outcome([], {}, Latest()), list[Problem]()
        read = outside = 0
        pending: Prepared | None = None
        staged_rows = self._table.rows_within(INGEST_BATCH_ROWS)
        batch_rows = staged_rows if given.native is None else self._table.rows_within(INGEST_MEMORY_ROWS)
        for frame in given.batches(columns.names, batch_rows) if not problems else ():
            prepared, rejected, wrong, used = prepare(self._table, columns, frame, read)
            whole.extend(problem for problem in wrong if problem not in whole)
            rejections.add(rejected, int(len(used) - np.count_nonzero(used)))
            read += frame.rows
            progress(read, given.rows)
            if whole or (rejections.rows and not self._skip):
                continue  # nothing will be written; read on to report every problem at once
            kept = within(prepared, start_us, end_us)
            outside += len(prepared) - len(kept)
            if pending is not None:
                self._stage(pending, commit_id, outcomes)
            pending = kept
        if whole or (rejections.rows and not self._skip):
            raise input_error(subject, [*whole, *rejections.problems.values()])
        updated, commit = 0, before
        if pending is not None:
            if len(pending) > staged_rows:
                # The commit is short then, and its rows are written while they are encoded.
                self._stage(pending, commit_id, outcomes)
                pending = pending.nothing()
            updated, commit = self._finish(pending, commit_id, outcomes, rejections.kept)
        return IngestReport(
            self._table.name,
            self._to,
            read,
            outcomes.ingested,
            outcomes.unchanged,
            outcomes.repeated,
            outside,
            rejections.rows,
            tuple(rejections.kept),
            rejections.by_reason,
            outcomes.repeated + outcomes.replaced,
            updated,
            commit,
            time.perf_counter() - began,
            outcomes.nbytes,
            self._filled,
            commit != before,
        )

    # --- transactions -------------------------------------------------------------------------

    def _flush_tail(self) -> None:
        """Make a segment of the tail, if history is to be compared with."""
        with self._env.read() as txn:
            if self._to == "online" or not read_tail(txn, self._table.id).rows:
                return
        self._env.write(lambda txn: flush_tail(txn, self._table), durable=self._durable)
        with self._env.read() as txn:
            self._segments = read_manifest(txn, self._table.id).segments
        self._committed = {ref.id for ref in self._segments}

    def _is_small(self, batch: Prepared) -> bool:
        """Whether the rows of the call are this batch, and go to the tail."""
        staged = len(self._segments) > len(self._committed)
        if staged or len(batch) > SMALL_INGEST_ROWS_MAX:
            return False
        return sum(map(_packed_bytes, batch.columns.values())) <= SMALL_INGEST_BYTES_MAX

    def _stage(self, batch: Prepared, commit_id: int, total: _Outcome) -> None:
        """Write a batch before the commit, as a staged segment."""
        self._flush_tail()
        outcome, fresh, segment_id = self._env.write(
            lambda txn: self._add(txn, batch, commit_id), durable=self._durable
        )
        if len(fresh):
            table_id = self._table.id

            def write(entries: Entries) -> None:
                self._env.write(lambda txn: put_staged(txn, table_id, segment_id, entries), durable=self._durable)

            ref = stage_rows(table_id, segment_id, fresh, write, STAGE_BYTES)
            with self._env.read() as txn:
                self._added(txn, outcome, ref)
        self._take(outcome, total)

    def _take(self, outcome: _Outcome, total: _Outcome) -> None:
        self._segments, self._dead = tuple(outcome.segments), outcome.dead
        self._latest = outcome.latest
        for name in ("ingested", "unchanged", "repeated", "replaced", "nbytes"):
            setattr(total, name, getattr(total, name) + getattr(outcome, name))

    def _finish(self, batch: Prepared, commit_id: int, total: _Outcome, rejections: list[Rejection]) -> tuple[int, int]:
        """The commit: the last batch, manifest, online rows, rejected rows and log in one transaction."""
        table_id = self._table.id
        rejected = [RejectedRow(commit_id, r.row, r.column, r.value, r.reason) for r in rejections]
        small = self._is_small(batch)
        if not small:
            self._flush_tail()

        def work(txn: WriteTxn) -> tuple[_Outcome, int, int]:
            outcome, fresh, segment_id = self._add(txn, batch, commit_id)
            if len(fresh) and small:
                outcome.nbytes = append_rows(txn, self._table, commit_id, fresh.gathered())
            elif len(fresh):
                self._added(txn, outcome, write_segment(txn, table_id, segment_id, fresh))
            updated = 0
            latest = outcome.latest.fold()
            if latest is not None:
                rows, keys = latest
                index = OnlineIndex(self._table)
                if self._filled and self._to == "online":
                    rows = fill_from_online(txn, index, keys, rows)
                names = {number: name for name, number in self._table.feature_ids.items()}
                columns = {names[number]: column for number, column in rows.columns.items()}
                updated = index.update(txn, keys, rows.event, rows.created, commit_id, columns)
            ingested = total.ingested + outcome.ingested
            changed = updated > 0 or (ingested > 0 and self._to != "online")
            if not changed and are_newest(txn, table_id, rejected):
                raise _NothingToCommit(outcome)
            if changed:
                self._publish(txn, outcome)
            else:
                # Batches may have cancelled out.
                for segment in left_behind(txn):
                    drop_staged(txn, *segment)
            if self._to == "offline" and self._table.definition.online and ingested > 0:
                note_pending(txn, table_id, commit_id)
            add_rejected(txn, table_id, rejected)
            operation = "ingest" if self._to == "both" else f"ingest {self._to}"
            commit = append_commit(txn, operation, self._table.name, ingested)
            return outcome, updated, commit.id

        try:
            outcome, updated, commit = self._env.write(work, durable=self._durable)
        except _NothingToCommit as nothing:
            outcome, updated, commit = nothing.outcome, 0, commit_id - 1
            # Batches may have cancelled out.
            discard_staged(self._env)
        self._take(outcome, total)
        return updated, commit

    def _publish(self, txn: WriteTxn, outcome: _Outcome) -> None:
        """Make the segments of this call, and what they replace, part of the table."""
        for place, ref in enumerate(outcome.segments):
            if ref.id in outcome.dead:
                outcome.segments[place] = write_dead(txn, self._table.id, ref, outcome.dead[ref.id])
        manifest = read_manifest(txn, self._table.id)
        if manifest.segments != tuple(outcome.segments):
            write_manifest(txn, manifest.with_segments(tuple(outcome.segments)))
        publish_staged(txn, ((self._table.id, ref.id) for ref in outcome.segments if ref.id not in self._committed))

    # --- one batch ----------------------------------------------------------------------------

    def _add(self, txn: WriteTxn, batch: Prepared, commit_id: int) -> tuple[_Outcome, Rows, int]:
        """Sort a batch and drop what history already holds: what is left to be written, and as which segment."""
        outcome = _Outcome(list(self._segments), dict(self._dead), self._latest)
        next_ids = [read_manifest(txn, self._table.id).next_segment_id, *(ref.id + 1 for ref in outcome.segments)]
        commit = uniform(commit_id, len(batch))
        # Online values are found by the keys themselves: without history, a key needs no code.
        codes = batch.number if self._to == "online" else taken(self._codes(txn, batch.keys), batch.number)
        rows = sort_rows(Rows(codes, batch.event, batch.created, commit, batch.columns))
        if not len(batch):
            return outcome, rows, 0
        outcome.repeated = len(batch) - len(rows)
        places = rows.places
        if self._filled and self._to != "online":
            before = table_readers(txn, self._cache, self._table)
            rows = fill_from_history(before, rows.gathered(), live_dtypes(self._table))
        if self._to != "offline" and self._table.definition.online:
            last = last_of_each(rows.codes)
            numbers = batch.number[last if places is None else places[last]]
            outcome.latest = self._latest.add(rows.take(last), batch.keys.take(numbers))
        if self._to == "online":
            outcome.ingested = len(rows)
            return outcome, rows.take(slice(0)), 0
        fresh = self._settle(txn, outcome, rows)
        outcome.ingested += len(fresh)
        return outcome, fresh, max(next_ids)

    def _added(self, txn: ReadTxn, outcome: _Outcome, ref: SegmentRef) -> None:
        outcome.nbytes = self._cache.reader(txn, self._table.id, ref).info.nbytes
        outcome.segments.append(ref)

    def _codes(self, txn: WriteTxn, keys: Heap) -> NDArray[np.int32]:
        """The code of each of the distinct keys; new ones get codes."""
        # The dictionary is asked before the new keys are added: what this transaction adds may be undone.
        codes = self._dictionary.lookup(txn, keys)
        new = np.flatnonzero(codes < 0)
        if len(new):
            codes[new] = self._space.append(txn, keys.take(new))
        return codes

    def _settle(self, txn: WriteTxn, outcome: _Outcome, rows: Rows) -> Rows:
        """The rows that history lacks; stored rows that they replace are marked dead.

        Rows of earlier batches of this call count as repeated, and what they had replaced lives again if it
        comes back: what is stored is the same as of one batch, whatever their size. So is the report, but for a row
        that one batch finds unchanged and a later one replaces: it counts as unchanged and not as repeated.
        """
        kept = np.ones(len(rows), dtype=np.bool_)
        for ref in outcome.segments:
            reader = self._cache.reader(txn, self._table.id, ref)
            before = reader.dead()
            dead = outcome.dead.get(ref.id, before)
            own = ref.id not in self._committed
            positions = find_stored(reader, rows, dead if own else before)
            at = np.flatnonzero(positions >= 0)
            if not len(at):
                continue
            positions = positions[at]
            same = same_rows(rows.take(at).columns, self._stored_values(reader, positions), len(at))
            kept[at[same]] = False
            was_dead = in_sorted(positions, dead)
            replaced = positions[~same & ~was_dead]
            if own:
                outcome.repeated += len(at)
                outcome.ingested -= len(replaced)
                revived = positions[:0]
            else:
                outcome.unchanged += int(np.count_nonzero(same))
                revived = positions[same & was_dead]
                outcome.replaced += len(replaced) - len(revived)
            if len(replaced) or len(revived):
                alive = np.isin(dead, revived, invert=True, kind="sort") if len(revived) else slice(None)
                # Sorted already but for its end, which a merge sort makes use of.
                outcome.dead[ref.id] = np.sort(np.concatenate([dead[alive], replaced]), kind="stable")
            if ref.id in outcome.dead and len(outcome.dead[ref.id]) == len(before):
                del outcome.dead[ref.id]  # all of them live again
        at, stored = find_in_tail(txn, self._table, rows)
        if stored is not None:
            unchanged = same_rows(rows.take(at).columns, stored.columns, len(at))
            kept[at[unchanged]] = False
            outcome.unchanged += int(np.count_nonzero(unchanged))
            outcome.replaced += int(np.count_nonzero(~unchanged))
        return rows if kept.all() else rows.where(kept)

    def _stored_values(self, reader: SegmentReader, positions: NDArray[np.int32]) -> dict[int, Column]:
        dtypes = {f.name: DTYPES[f.dtype] for f in self._table.definition.features}
        gatherer = Gatherer(at_positions(reader, positions))
        return {number: gatherer.feature(number, dtypes[name]) for name, number in self._table.feature_ids.items()}


class _NothingToCommit(Exception):
    """Raised inside the last transaction to undo it: the file already held everything."""

    def __init__(self, outcome: _Outcome) -> None:
        super().__init__()
        self.outcome = outcome


def _packed_bytes(column: Column) -> int:
    """What the values of a column take in packed rows."""
    if column.heap is None or not len(column.heap):
        return column.data.nbytes
    return column.data.nbytes + int(np.diff(column.heap.offsets)[column.data].sum())
