"""Everything that can be done to a database, in random order, against a model of plain dicts (`model`).

After each call that writes, the log has one commit more if the model has changed, and none if it has not.

``FEATUREDB_PROFILE=long FEATUREDB_EXAMPLES=2000 python -m pytest tests/test_stateful.py`` is the long run.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import oracle
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from model import (
    BASE,
    ENTITIES,
    KEYS,
    TABLES,
    Kept,
    Rejected,
    Tables,
    assert_holds,
    assert_joins,
    assert_online,
    assert_rejected,
    assert_stored,
    data_of,
    definition,
    some_values,
)
from strategies import CONTAINERS, small_batches, tiny_limits, to_datetime, to_us

import featuredb as fdb

CAN_FORGET = hasattr(fdb.Database, "forget")
SNAPSHOTS_MAX = 3
ADDED = ["string", "bool", "int8", "timestamp", "list[int16]", "float64[3]", "bytes", "float64"]

names = st.sampled_from(list(TABLES))
moments = st.integers(0, 8).map(BASE.__add__)
spans = st.tuples(*[st.one_of(st.none(), moments)] * 2).map(
    lambda pair: pair if None in pair or pair[0] <= pair[1] else pair[::-1]
)
rngs = st.randoms(use_true_random=True)
# A row: places in the pools of both keys, event, created, and a number that stands for the values.
raw_rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), moments, st.integers(0, 3).map(BASE.__add__), st.integers(0, 30)),
    max_size=6,
)
destinations = st.sampled_from(["both", "both", "offline", "online"])
kinds = st.sampled_from(CONTAINERS[1:])  # a list of no dicts has no columns


class Machine(RuleBasedStateMachine):
    """A file and its model, taken through the same calls."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.files = 0
        self.features = 0
        self.tables: Tables = {name: Kept(definition(name), oracle.Table([])) for name in TABLES}
        self.snapshots: dict[str, Tables] = {}
        self.path = self.new_path("fdb")
        self.db = fdb.open(self.path, durability="relaxed")

    def new_path(self, suffix: str) -> Path:
        self.files += 1
        return Path(self.folder.name) / f"{self.files}.{suffix}"

    @initialize(tiny=st.booleans(), batch_rows=st.sampled_from([2, 1000]))
    def start(self, tiny: bool, batch_rows: int) -> None:
        if tiny:
            tiny_limits(self.patch)
            self.patch.setattr("featuredb.storage.snapshots._BATCH_ROWS", 2)
        small_batches(self.patch, batch_rows)
        self.db.apply([fdb.Entity(name, dtype) for name, dtype in ENTITIES.items()])
        self.db.apply([kept.definition for kept in self.tables.values()])
        for kept in self.tables.values():
            kept.redefine(kept.definition)

    @contextmanager
    def one_commit_if_changed(self) -> Iterator[None]:
        """Of database and model, both changed inside: one commit, or none if the model is what it was."""
        before, commits = repr((self.tables, list(self.snapshots))), len(self.db.log())
        yield
        changed = repr((self.tables, list(self.snapshots))) != before
        assert len(self.db.log()) - commits == changed

    @contextmanager
    def refused(self, *words: str) -> Iterator[None]:
        """One error of ours, and no commit."""
        with self.one_commit_if_changed(), pytest.raises(fdb.FeatureDBError) as caught:
            yield
        assert all(word in str(caught.value) for word in words), str(caught.value)

    def rows_of(self, name: str, raw: list[Any], created: bool) -> list[oracle.Row]:
        table = self.tables[name].definition
        return [
            oracle.Row(
                tuple(KEYS[entity][row[list(KEYS).index(entity)]] for entity in table.entities),
                row[2],
                row[3] if created else None,
                some_values(table, row[4]),
            )
            for row in raw
        ]

    # --- ingest -----------------------------------------------------------------------------------

    @rule(
        name=names, raw=raw_rows, created=st.booleans(), to=destinations, kind=kinds, parted=st.integers(0, 3),
        bad=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["key", "event"])), max_size=2), skip=st.booleans(),
        twice=st.booleans(),
    )  # fmt: skip
    def ingest(
        self, name: str, raw: list[Any], created: bool, to: str, kind: str, parted: int, bad: list[Any], skip: bool,
        twice: bool,
    ) -> None:  # fmt: skip
        """Rows late or new, some that repeat or replace others, some partial, some that cannot be stored."""
        kept = self.tables[name]
        table = kept.definition
        created = created or table.batch_source is not None  # the source names the column
        lacking = list(table.feature_names)[: min(parted, len(table.features) - 1)]
        rows = self.rows_of(name, raw, created)
        faulty = list(rows)
        wrong: set[int] = set()
        for place, what in bad if rows else ():
            place = place % (len(faulty) + 1)
            copied = (
                replace(rows[0], key=(None,) * len(table.entities)) if what == "key" else replace(rows[0], event=None)
            )
            faulty.insert(place, copied)
            wrong = {one + (one >= place) for one in wrong} | {place}
        data, arrived = data_of(table, faulty, created=created, kind=kind, lacking=lacking)
        options: dict[str, Any] = {"to": to, "partial": bool(lacking), "on_error": "skip" if skip else "raise"}
        if to == "online" and not table.online:
            with self.refused("not kept online"):
                self.db.ingest(name, data, **options)
            return
        if wrong and not skip:
            with self.refused("null"):
                self.db.ingest(name, data, **options)
            return
        with self.one_commit_if_changed():
            report = self.db.ingest(name, data, **options)
            assert {one.row for one in report.rejections} == wrong
            assert report.features_filled == tuple(lacking)
            self.take(kept, report, [row for place, row in enumerate(arrived) if place not in wrong], to)
        if twice:
            with self.one_commit_if_changed():
                assert not self.db.ingest(name, data, **options).committed

    def take(self, kept: Kept, report: Any, rows: list[oracle.Row], to: str) -> None:
        """What an ingest should have done, in the model."""
        before = repr(kept.rows)
        commit_us = to_us(self.db.log()[report.commit_id - 1].time)
        if not kept.definition.online:
            to = "offline"
        kept.rows.ingest(kept.rows.fill(rows, to), commit_us, to)
        rejected = [Rejected(one.row, one.column, one.value, one.reason) for one in report.rejections]
        kept.reject(report.commit_id, rejected, repr(kept.rows) != before)

    @rule(name=names, raw=raw_rows)
    def ingest_from_the_source(self, name: str, raw: list[Any]) -> None:
        kept = self.tables[name]
        source = kept.definition.batch_source
        if source is None:
            with self.refused("no batch source"):
                self.db.ingest(name)
            return
        data, rows = data_of(kept.definition, self.rows_of(name, raw, True), created=True, kind="arrow")
        pq.write_table(data, source.path)
        with self.one_commit_if_changed():
            self.take(kept, self.db.ingest(name), rows, "both")

    @rule(name=st.one_of(st.none(), names), span=spans, incremental=st.booleans())
    def materialize(self, name: str | None, span: tuple[Any, Any], incremental: bool) -> None:
        chosen = [kept for table, kept in self.tables.items() if name in (None, table)]
        span = (None, None) if incremental else span
        options = {"start": to_datetime(span[0]), "end": to_datetime(span[1]), "incremental": incremental}
        if name is not None and not self.tables[name].definition.online:
            with self.refused("not kept online"):
                self.db.materialize(name, **options)
            return
        with self.one_commit_if_changed():
            self.db.materialize(name, **options)
            for kept in chosen:
                if kept.definition.online:
                    kept.rows.materialize(*span)

    @precondition(lambda self: CAN_FORGET)
    @rule(
        chosen=st.sampled_from([["user"], ["city"], ["city", "user"]]),
        places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=2),
        one=st.booleans(),
    )
    def forget(self, chosen: list[str], places: list[tuple[int, int]], one: bool) -> None:
        """Some keys, the last of each pool unknown to the file."""
        pools = {"user": [*KEYS["user"], 7], "city": [*KEYS["city"], "nowhere"]}
        keys = {name: [pools[name][pair[number]] for pair in places] for number, name in enumerate(chosen)}
        having = [name for name, kept in self.tables.items() if set(chosen) <= set(kept.definition.entities)]
        having = having[:1] if one else having
        held = [
            label for label, tables in self.snapshots.items() if any(tables[name].matching(keys) for name in having)
        ]
        tables = having if one else None
        if held:
            with self.refused(*held):
                self.db.forget(keys, tables)  # type: ignore[attr-defined]
            return
        with self.one_commit_if_changed():
            self.db.forget(keys, tables)  # type: ignore[attr-defined]
            for name in having:
                self.tables[name].forget(keys)

    # --- definitions ------------------------------------------------------------------------------

    def apply(self, name: str, **changes: Any) -> None:
        after = replace(self.tables[name].definition, **changes)
        with self.one_commit_if_changed():
            self.db.apply(after)
            self.tables[name].redefine(after)

    @rule(name=names, first=st.booleans())
    def add_a_feature(self, name: str, first: bool) -> None:
        self.features += 1
        added = fdb.Feature(f"{name}_{self.features}", ADDED[self.features % len(ADDED)])
        features = list(self.tables[name].definition.features)
        self.apply(name, features=[added, *features] if first else [*features, added])

    @rule(name=names, place=st.integers(0, 5), max_age=st.integers(0, 4))
    def remove_a_feature(self, name: str, place: int, max_age: int) -> None:
        """And change the max age in the same call."""
        features = list(self.tables[name].definition.features)
        if len(features) < 2:
            return
        removed = features.pop(place % len(features))
        self.apply(name, features=features, max_age=timedelta(microseconds=max_age) if max_age else None)
        with self.refused(removed.name, "reserved"):
            self.db.apply(replace(self.tables[name].definition, features=[*features, removed]))

    @rule(name=names, max_age=st.integers(0, 4))
    def change_the_max_age(self, name: str, max_age: int) -> None:
        self.apply(name, max_age=timedelta(microseconds=max_age) if max_age else None)

    @rule(name=names)
    def switch_online(self, name: str) -> None:
        self.apply(name, online=not self.tables[name].definition.online)

    @rule(name=names, sourced=st.booleans(), label=st.sampled_from("ab"))
    def change_source_and_labels(self, name: str, sourced: bool, label: str) -> None:
        source = None
        if sourced:
            first = self.tables[name].definition.entities[0]
            path = str(self.new_path("parquet"))
            source = fdb.FileSource(path, "at", created_timestamp_column="made", field_mapping={f"its_{first}": first})
        self.apply(name, batch_source=source, labels={"team": label}, description=f"of team {label}")

    @rule(name=names)
    def change_what_cannot_be(self, name: str) -> None:
        table = self.tables[name].definition
        first = table.features[0]
        with self.refused(first.name, "dtype"):
            self.db.apply(replace(table, features=[fdb.Feature(first.name, "uint64"), *table.features[1:]]))
        with self.refused("entities"):
            self.db.apply(replace(table, entities=["city"], batch_source=None))

    # --- the file ---------------------------------------------------------------------------------

    @precondition(lambda self: len(self.snapshots) < SNAPSHOTS_MAX)
    @rule()
    def snapshot(self) -> None:
        self.files += 1
        name = f"s{self.files}"
        with self.one_commit_if_changed():
            self.db.snapshot(name)
            self.snapshots[name] = {table: kept.copy() for table, kept in self.tables.items()}

    @precondition(lambda self: self.snapshots)
    @rule(place=st.integers(0, SNAPSHOTS_MAX))
    def drop_a_snapshot(self, place: int) -> None:
        name = list(self.snapshots)[place % len(self.snapshots)]
        with self.one_commit_if_changed():
            self.db.drop_snapshot(name)
            del self.snapshots[name]

    @rule()
    def compact(self) -> None:
        with self.one_commit_if_changed():
            self.db.compact()

    @rule(durability=st.sampled_from(["full", "relaxed", "relaxed"]))
    def reopen(self, durability: Any) -> None:
        log = self.db.log()
        self.db.close()
        self.db = fdb.open(self.path, durability=durability)
        assert self.db.log() == log

    @rule(rng=rngs, go_on=st.booleans())
    def back_up(self, rng: random.Random, go_on: bool) -> None:
        """A backup holds the same; the story may go on with it."""
        path = self.new_path("fdb")
        self.db.backup(path)
        copy = fdb.open(path, durability="relaxed")
        assert copy.log() == self.db.log()
        assert_holds(copy, self.tables, rng)
        if go_on:
            self.path, self.db, copy = path, copy, self.db
        copy.close()

    # --- reads ------------------------------------------------------------------------------------

    @rule(rng=rngs)
    def join(self, rng: random.Random) -> None:
        assert_joins(self.db, self.tables, rng)

    @rule(chosen=st.sampled_from([["clicks"], ["visits"], ["likes", "clicks"]]), span=spans, latest=st.booleans())
    def read_stored_rows(self, chosen: list[str], span: tuple[Any, Any], latest: bool) -> None:
        assert_stored(self.db, self.tables, chosen, span, latest)

    @rule(now=st.integers(-1, 14), kind=kinds)
    def read_online(self, now: int, kind: str) -> None:
        assert_online(self.db, self.tables, BASE + now, kind)

    @precondition(lambda self: self.snapshots)
    @rule(place=st.integers(0, SNAPSHOTS_MAX), rng=rngs)
    def read_at_a_snapshot(self, place: int, rng: random.Random) -> None:
        name = list(self.snapshots)[place % len(self.snapshots)]
        assert_holds(self.db.at(name), self.snapshots[name], rng)

    @rule(rng=rngs)
    def check(self, rng: random.Random) -> None:
        assert_holds(self.db, self.tables, rng)
        assert_rejected(self.db, self.tables)

    def teardown(self) -> None:
        try:
            rng = random.Random(0)
            if self.tables["clicks"].rows.features:  # a machine that ends before it has started has no tables
                self.check(rng)
                for name, tables in self.snapshots.items():
                    assert_holds(self.db.at(name), tables, rng)
        finally:
            self.db.close()
            self.patch.undo()
            self.folder.cleanup()


class TestMachine(Machine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=settings.default.max_examples // 3, stateful_step_count=30)
