"""Verification: that the file holds what it says, and that serving agrees with training.

Structure, checksums, order within and between segments, zone maps, the entity dictionary, the log, and the
invariant of the store: the online value of every key is its latest row of history. It reads everything once.
What it does not check: LMDB's own pages (``lmdb.verify`` does), and whether values are what was ingested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Heap
from featuredb.errors import FeatureDBError
from featuredb.limits import (
    NS_CHUNK,
    NS_FORMAT,
    NS_KEY,
    NS_MANIFEST,
    NS_ONLINE,
    NS_SEGMENT,
    VERIFY_FINDINGS_MAX,
)
from featuredb.online.index import OnlineIndex, OnlineRows
from featuredb.schema import DTYPES
from featuredb.storage.env import ReadTxn
from featuredb.storage.keys import decode_keys
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.log import commits
from featuredb.storage.manifest import SegmentRef, chunk_prefix, read_manifest, staged_segments
from featuredb.storage.registry import Registry, StoredTable
from featuredb.storage.segment import CODES, COMMIT, CREATED, DEAD, EVENT, STARTS, SegmentCache, SegmentReader

if TYPE_CHECKING:
    from featuredb.offline.search import Found


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, and where."""

    what: str
    table: str | None = None
    segment: int | None = None
    column: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        parts = [("table", self.table), ("segment", self.segment), ("column", self.column), ("key", self.key)]
        where = ", ".join(f"{name} {value}" for name, value in parts if value is not None)
        return f"{where}: {self.what}" if where else self.what


@dataclass(slots=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes
    ----------
    problems : list of Finding
        Damage: content that contradicts itself. A file in order has none.
    differences : list of Finding
        Keys whose online value is not their latest row of history because rows were loaded apart, with
        ``to="offline"`` or ``to="online"``. ``materialize`` brings online up to history.
    tables, segments, rows, chunks, entity_keys, online_keys, commits : int
        How much was checked.
    seconds : float
        Wall time.
    """

    problems: list[Finding] = field(default_factory=list)
    differences: list[Finding] = field(default_factory=list)
    tables: int = 0
    segments: int = 0
    rows: int = 0
    chunks: int = 0
    entity_keys: int = 0
    online_keys: int = 0
    commits: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no damage was found."""
        return not self.problems

    def __str__(self) -> str:
        checked = (
            f"{self.tables} tables, {self.segments} segments, {self.rows} rows, {self.chunks} chunks, "
            f"{self.entity_keys} entity keys, {self.online_keys} online keys, {self.commits} commits"
        )
        if self.ok and not self.differences:
            return f"ok: {checked}"
        lines = [f"{len(self.problems)} problems, {len(self.differences)} differences in {checked}"]
        return "\n".join(lines + [f"problem: {item}" for item in self.problems]
                         + [f"difference: {item}" for item in self.differences])  # fmt: skip


def verify_database(txn: ReadTxn, registry: Registry) -> VerifyReport:
    """Check everything in one snapshot.

    Memory: the rows of one segment, the keys of one key space, and the latest row of each key of a table.
    """
    began = time.perf_counter()
    verifier = _Verifier(txn, registry)
    verifier.run()
    verifier.report.seconds = time.perf_counter() - began
    return verifier.report


class _Verifier:
    def __init__(self, txn: ReadTxn, registry: Registry) -> None:
        self.txn = txn
        self.registry = registry
        self.report = VerifyReport()
        # A cache of its own: checksums that the process has seen before are checked again.
        self.cache = SegmentCache()
        self.last_commit = 0
        self.key_counts: dict[int, int] = {}
        self.expected_chunks: set[bytes] = set()

    def problem(self, what: str, **where: Any) -> None:
        if len(self.report.problems) < VERIFY_FINDINGS_MAX:
            self.report.problems.append(Finding(what, **where))

    def difference(self, what: str, **where: Any) -> None:
        if len(self.report.differences) < VERIFY_FINDINGS_MAX:
            self.report.differences.append(Finding(what, **where))

    @contextmanager
    def guarded(self, **where: Any) -> Iterator[None]:
        """Turns an error of reading into a problem, so that the check goes on."""
        try:
            yield
        except FeatureDBError as error:
            self.problem(str(error), **where)

    def run(self) -> None:
        with self.guarded():
            self.check_log()
        for entities, number in sorted(self.registry.spaces.items()):
            with self.guarded():
                self.check_key_space(entities, number)
        for name in sorted(self.registry.tables):
            self.report.tables += 1
            self.check_table(self.registry.tables[name])
        self.check_strays()

    # --- log and dictionary -------------------------------------------------------------------

    def check_log(self) -> None:
        before_us = None
        for commit in commits(self.txn):
            self.last_commit += 1
            if commit.id != self.last_commit:
                self.problem(f"commit {self.last_commit} is missing from the log; the next is {commit.id}")
                self.last_commit = commit.id
            if before_us is not None and commit.time_us <= before_us:
                self.problem(f"commit {commit.id} is not later than the one before it")
            before_us = commit.time_us
            self.report.commits += 1

    def check_key_space(self, entities: tuple[str, ...], number: int) -> None:
        space = KeySpace(number)
        name = f"key space {'/'.join(entities)}"
        raw: list[bytes] = []
        for heap in space.blocks(self.txn):
            raw.extend(heap.tolist())
        self.key_counts[number] = len(raw)
        self.report.entity_keys += len(raw)
        if len(set(raw)) != len(raw):
            self.problem(f"{name}: a key has two codes")
        prefix = NS_KEY + number.to_bytes(4, "big")
        tree = {bytes(key[5:]): int.from_bytes(value, "little") for key, value in self.txn.scan(prefix)}
        if tree != dict(zip(raw, range(len(raw)), strict=True)):
            wrong = sum(tree.get(key) != code for code, key in enumerate(raw)) + len(tree.keys() - set(raw))
            self.problem(f"{name}: {wrong} keys have another code in the tree than in the blocks")
        tables = [table for table in self.registry.tables.values() if table.space_id == number]
        if tables:
            decode_keys(Heap.of(raw), tables[0].key_dtypes)

    # --- history ------------------------------------------------------------------------------

    def check_table(self, table: StoredTable) -> None:
        problems_before = len(self.report.problems)
        readers: list[SegmentReader] = []
        with self.guarded(table=table.name):
            manifest = read_manifest(self.txn, table.id)
            for ref in manifest.segments:
                self.report.segments += 1
                self.report.rows += ref.rows - ref.dead_count
                if ref.id >= manifest.next_segment_id:
                    self.problem("the manifest would give its number out again", table=table.name, segment=ref.id)
                with self.guarded(table=table.name, segment=ref.id):
                    reader = self.cache.reader(self.txn, table.id, ref)
                    self.expect_chunks(reader)
                    self.check_segment(table, ref, reader)
                    readers.append(reader)
        if len(self.report.problems) > problems_before:
            return  # comparing damaged segments would report the same damage again
        with self.guarded(table=table.name):
            self.check_unique(table, readers)
        if table.definition.online:
            with self.guarded(table=table.name):
                self.check_online(table)

    def expect_chunks(self, reader: SegmentReader) -> None:
        prefix = chunk_prefix(reader.info.table_id, reader.ref.id)
        for column in reader.info.columns.values():
            for chunk, part in column.chunks:
                self.expected_chunks.add(
                    prefix + column.id.to_bytes(4, "big") + chunk.to_bytes(4, "big") + bytes([part])
                )
        if reader.ref.dead_count:
            dead = DEAD.to_bytes(4, "big") + reader.ref.dead_version.to_bytes(4, "big") + b"\0"
            self.expected_chunks.add(prefix + dead)

    def check_segment(self, table: StoredTable, ref: SegmentRef, reader: SegmentReader) -> None:
        where = {"table": table.name, "segment": ref.id}
        info = reader.info

        def expect(condition: object, what: str) -> None:
            if not condition:
                self.problem(what, **where)

        self.report.chunks += sum(len(column.chunks) for column in info.columns.values())
        codes, starts = reader.entity_index()
        expect(info.rows == ref.rows, "descriptor and manifest disagree on its rows")
        expect(np.all(codes[1:] > codes[:-1]) and np.all(np.diff(starts) > 0), "its entity index is out of order")
        known = self.key_counts.get(table.space_id, 0)
        expect(len(codes) and codes[0] >= 0 and codes[-1] < known, "it has codes that no entity key has")
        event, created, commit = (reader.read_system(column) for column in (EVENT, CREATED, COMMIT))
        expect(self.in_order(np.repeat(codes, np.diff(starts)), event, created), "its rows are out of order")
        zone = (info.event_min, info.event_max, info.code_min, info.code_max)
        found = (int(event.min()), int(event.max()), int(codes[0]), int(codes[-1]))
        expect(zone == found, f"its zone map says {zone}, its rows {found}")
        expect(commit.min() >= 1 and commit.max() <= self.last_commit, "it has rows of a commit that is not logged")
        dead = reader.dead()
        expect(
            np.all(dead[1:] > dead[:-1]) and (not len(dead) or (dead[0] >= 0 and dead[-1] < info.rows)),
            "its list of replaced rows is out of order",
        )
        self.check_features(table, reader)

    @staticmethod
    def in_order(codes: NDArray[np.int32], event: NDArray[np.int64], created: NDArray[np.int64]) -> bool:
        """Whether rows are strictly ascending by (code, event, created)."""
        same_code, same_event = codes[1:] == codes[:-1], event[1:] == event[:-1]
        ascending = (codes[1:] > codes[:-1]) | (same_code & (event[1:] > event[:-1]))
        return bool(np.all(ascending | (same_code & same_event & (created[1:] > created[:-1]))))

    def check_features(self, table: StoredTable, reader: SegmentReader) -> None:
        names = {number: name for name, number in table.feature_ids.items()}
        for column in reader.info.columns.values():
            if column.id in (EVENT, CREATED, COMMIT, CODES, STARTS):
                continue
            name = names.get(column.id, f"of removed feature {column.id}")
            where = {"table": table.name, "segment": reader.ref.id, "column": name}
            with self.guarded(**where):
                if name in table.feature_ids and table.dtype_of(name) != column.dtype:
                    self.problem(f"it is stored as {column.dtype}, and defined otherwise", **where)
                nulls = 0
                for _, _, part in reader.feature_chunks(column.id):
                    nulls += part.null_count
                    if column.dtype == DTYPES["string"] and part.heap is not None:
                        self.check_utf8(part.heap, where)
                if nulls != column.null_count:
                    self.problem(f"its descriptor counts {column.null_count} nulls, and it has {nulls}", **where)

    def check_utf8(self, heap: Heap, where: dict[str, Any]) -> None:
        try:
            for value in heap.tolist():
                value.decode()
        except UnicodeDecodeError as error:
            self.problem(f"a string is not valid UTF-8: {error.reason}", **where)

    def check_unique(self, table: StoredTable, readers: list[SegmentReader]) -> None:
        """No two live rows of different segments are one row."""
        from featuredb.offline.ingest import find_stored
        from featuredb.offline.merge import read_rows

        for place, reader in enumerate(readers[:-1]):
            rows = read_rows(reader, {})
            for other in readers[place + 1 :]:
                twice = int(np.count_nonzero(find_stored(other, rows, other.dead()) >= 0)) if len(rows) else 0
                if twice:
                    what = f"{twice} of its rows are also in segment {other.ref.id}"
                    self.problem(what, table=table.name, segment=reader.ref.id)

    # --- online -------------------------------------------------------------------------------

    def check_online(self, table: StoredTable) -> None:
        """Every online row is the latest row of its key's history, and every key has one."""
        from featuredb.offline.materialize import latest, latest_columns

        codes, found = latest(self.txn, self.cache, table, None, None)
        columns = latest_columns(table, found)
        index, space = OnlineIndex(table), KeySpace(table.space_id)
        seen = np.zeros(len(codes), dtype=np.bool_)
        for keys, rows in self.online_batches(index):
            self.report.online_keys += len(keys)
            place = np.searchsorted(codes, lookup := space.lookup(self.txn, keys.tolist()))
            place[place == len(codes)] = 0
            stored = np.zeros(len(keys), np.bool_) if not len(codes) else (codes[place] == lookup) & (lookup >= 0)
            seen[place[stored]] = True
            if np.any(rows.commit > self.last_commit):
                self.problem("an online row is of a commit that is not logged", table=table.name)
            self.compare(table, keys, rows, found, columns, place, stored)
        missing = np.flatnonzero(~seen)
        if len(missing):
            heap = Heap.of([key for block in space.blocks(self.txn) for key in block.tolist()])
            for key in heap.take(codes[missing[:VERIFY_FINDINGS_MAX]]).tolist():
                self.difference("it has rows of history and no online value", table=table.name, key=name_of(table, key))

    def online_batches(self, index: OnlineIndex) -> Iterator[tuple[Heap, OnlineRows]]:
        """Online rows in batches; where a batch cannot be decoded, its rows one by one, without the damaged."""
        try:
            yield from index.scan(self.txn)
            return
        except FeatureDBError:
            self.report.online_keys = 0
        for key, _ in self.txn.scan(index.prefix):
            with self.guarded(table=index.name):
                one = Heap.of([bytes(key[len(index.prefix) :])])
                yield one, index.read(self.txn, one)

    def compare(
        self,
        table: StoredTable,
        keys: Heap,
        rows: OnlineRows,
        found: Found,
        columns: dict[str, Any],
        place: NDArray[Any],
        stored: NDArray[np.bool_],
    ) -> None:
        from featuredb.offline.rows import same_rows

        at = np.flatnonzero(stored)
        event, created = found.event[place[at]], found.created[place[at]]
        same_time = (rows.event[at] == event) & (rows.created[at] == created)
        online_newer = (rows.event[at] > event) | ((rows.event[at] == event) & (rows.created[at] > created))
        tied = at[same_time]
        numbers = table.feature_ids
        same = same_rows(
            {number: rows.columns[name].take(tied) for name, number in numbers.items()},
            {number: columns[name].take(place[tied]) for name, number in numbers.items()},
            len(tied),
        )

        def tell(report: Callable[..., None], what: str, places: NDArray[Any]) -> None:
            for key in keys.take(places[:VERIFY_FINDINGS_MAX]).tolist():
                report(what, table=table.name, key=name_of(table, key))

        tell(self.problem, "its online value differs from the same row of history", tied[~same])
        tell(
            self.difference, "its online value is older than its latest row of history", at[~same_time & ~online_newer]
        )
        tell(self.difference, "its online value is newer than its history", at[online_newer])
        tell(self.difference, "it has an online value and no rows of history", np.flatnonzero(~stored))

    # --- what belongs to nothing --------------------------------------------------------------

    def check_strays(self) -> None:
        """Entries of tables or segments that do not exist. What a running or killed ingest staged is allowed."""
        names = {table.id: table.name for table in self.registry.tables.values()}
        staged = {table.to_bytes(4, "big") + segment.to_bytes(8, "big") for table, segment in staged_segments(self.txn)}
        live = {key[1:13] for key in self.expected_chunks} | staged
        damaged = {(item.table, item.segment) for item in self.report.problems if item.segment is not None}
        for space, what in ((NS_CHUNK, "chunk"), (NS_SEGMENT, "descriptor")):
            strays = set()
            for key, _ in self.txn.scan(space):
                table_id, segment = int.from_bytes(key[1:5], "big"), int.from_bytes(key[5:13], "big")
                expected = bytes(key) in self.expected_chunks if what == "chunk" else bytes(key[1:13]) in live
                known = expected or bytes(key[1:13]) in staged or (names.get(table_id), segment) in damaged
                if not known:
                    strays.add((table_id, segment))
            for table_id, segment in sorted(strays):
                name = names.get(table_id, f"number {table_id}")
                self.problem(f"a {what} belongs to no live segment", table=name, segment=segment)
        for space, what in ((NS_MANIFEST, "a manifest"), (NS_ONLINE, "an online row")):
            ids = {int.from_bytes(key[1:5], "big") for key, _ in self.txn.scan(space)}
            for table_id in sorted(ids - names.keys()):
                self.problem(f"{what} belongs to no feature table", table=f"number {table_id}")
        first = next(iter(self.txn.scan(b"")), None)
        if first is None or bytes(first[0]) != NS_FORMAT:
            self.problem("the format record is not the first of the file")


def name_of(table: StoredTable, key: bytes) -> str:
    """An entity key as text."""
    from featuredb.frames.write import to_pylist

    values = [to_pylist(column)[0] for column in decode_keys(Heap.of([key]), table.key_dtypes)]
    return ", ".join(f"{name}={value!r}" for name, value in zip(table.definition.entities, values, strict=True))
