"""Everything that can be done to a database, in random order, against a model of plain dicts (`model`).

After each call that writes, the log has one commit more if the model has changed, and none if it has not.

``FEATUREDB_PROFILE=long FEATUREDB_EXAMPLES=6000 python -m pytest tests/test_stateful.py`` is the long run.
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
from strategies import CONTAINERS, TAILS, listed, set_tails, small_batches, tiny_limits, to_datetime, to_us

import featuredb as fdb
from featuredb.limits import DEAD_SHARE_MAX

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
    min_size=1,
    max_size=8,
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

    @initialize(
        tiny=st.booleans(),
        batch_rows=st.sampled_from([2, 1000]),
        dead_share=st.sampled_from([1.0, DEAD_SHARE_MAX]),
        tails=st.sampled_from(TAILS),
        raw=raw_rows,
    )
    def start(self, tiny: bool, batch_rows: int, dead_share: float, tails: tuple[int, int], raw: list[Any]) -> None:
        """Every table has some rows, and then more."""
        if tiny:
            tiny_limits(self.patch)
            self.patch.setattr("featuredb.storage.snapshots._BATCH_ROWS", 2)
        small_batches(self.patch, batch_rows)
        self.patch.setattr("featuredb.offline.merge.DEAD_SHARE_MAX", dead_share)
        set_tails(self.patch, *tails)
        self.db.apply([fdb.Entity(name, dtype) for name, dtype in ENTITIES.items()])
        self.db.apply([kept.definition for kept in self.tables.values()])
        for kept in self.tables.values():
            kept.redefine(kept.definition)
        for name in TABLES:
            self.put(name, self.rows_of(name, raw, created=True), created=True)

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

    def put(
        self, name: str, rows: list[oracle.Row], *, created: bool, kind: str = "arrow", lacking: int = 0, **options: Any
    ) -> None:
        """Ingest rows that can be stored, without the first features if they are to be lacking; then once more."""
        kept = self.tables[name]
        missing = list(kept.definition.feature_names)[: min(lacking, len(kept.definition.features) - 1)]
        options["partial"] = bool(missing)
        data, arrived = data_of(kept.definition, rows, created=created, kind=kind, lacking=missing)
        if options.get("to") == "online" and not kept.definition.online:
            with self.refused("not kept online"):
                self.db.ingest(name, data, **options)
            return
        with self.one_commit_if_changed():
            report = self.db.ingest(name, data, **options)
            assert report.features_filled == tuple(missing)
            self.take(kept, report, arrived, options.get("to", "both"))
        with self.one_commit_if_changed():
            assert not self.db.ingest(name, data, **options).committed

    @rule(name=names, raw=raw_rows, created=st.booleans(), to=destinations, kind=st.sampled_from(CONTAINERS))
    def ingest(self, name: str, raw: list[Any], created: bool, to: str, kind: str) -> None:
        """Rows late or new, some that repeat or replace others."""
        created = created or self.tables[name].definition.batch_source is not None  # which names the column
        self.put(name, self.rows_of(name, raw, created), created=created, kind=kind, to=to)

    @rule(name=names, raw=raw_rows, to=destinations, lacking=st.integers(1, 2))
    def ingest_partial_rows(self, name: str, raw: list[Any], to: str, lacking: int) -> None:
        self.put(name, self.rows_of(name, raw, True), created=True, lacking=lacking, to=to)

    @rule(
        name=names,
        places=st.lists(st.integers(0, 40), min_size=1, max_size=4),
        number=st.integers(0, 30),
        to=destinations,
    )
    def replace_rows(self, name: str, places: list[int], number: int, to: str) -> None:
        """Stored rows with other values; all of them have a created timestamp, or none."""
        kept = self.tables[name]
        for created in (True, False) if kept.definition.batch_source is None else (True,):
            stored = [row for row in kept.rows.history if (row.created is not None) == created]
            if stored:
                chosen = [stored[place % len(stored)] for place in places]
                rows = [replace(row, values=some_values(kept.definition, number)) for row in chosen]
                self.put(name, rows, created=created, to=to)

    @rule(
        name=names,
        raw=raw_rows,
        bad=st.lists(
            st.tuples(st.integers(0, 8), st.sampled_from(["key", "event", "created"])), min_size=1, max_size=2
        ),
        skip=st.booleans(),
        to=destinations,
    )
    def ingest_with_bad_rows(self, name: str, raw: list[Any], bad: list[Any], skip: bool, to: str) -> None:
        """Null keys and timestamps: all of the call is refused, or these rows are left out and kept as rejected."""
        kept = self.tables[name]
        if to == "online" and not kept.definition.online:
            return
        rows = self.rows_of(name, raw, created=True)
        wrong = {place % len(rows): what for place, what in bad}
        spoilt: dict[str, dict[str, Any]] = {
            "key": {"key": (None,) * len(kept.definition.entities)},
            "event": {"event": None},
            "created": {"created": None},
        }
        faulty = [replace(row, **spoilt[wrong[place]]) if place in wrong else row for place, row in enumerate(rows)]
        data, _ = data_of(kept.definition, faulty, created=True, kind="arrow")
        if not skip:
            with self.refused(
                "null", *{f"row {place}" for place in wrong if list(wrong.values()).count(wrong[place]) == 1}
            ):
                self.db.ingest(name, data, to=to)
            return
        with self.one_commit_if_changed():
            report = self.db.ingest(name, data, to=to, on_error="skip")
            assert {one.row for one in report.rejections} == set(wrong)
            self.take(kept, report, [row for place, row in enumerate(rows) if place not in wrong], to)
        with self.one_commit_if_changed():
            assert not self.db.ingest(name, data, to=to, on_error="skip").committed

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
        # Arrow 16 cannot write a null vector.
        pq.write_table(listed(data), source.path)
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
                self.db.forget(keys, tables)
            return
        with self.one_commit_if_changed():
            self.db.forget(keys, tables)
            for name in having:
                self.tables[name].forget(keys)

    # --- definitions ------------------------------------------------------------------------------

    def apply(self, name: str, **changes: Any) -> None:
        after = replace(self.tables[name].definition, **changes)
        with self.one_commit_if_changed():
            self.db.apply(after)
            self.tables[name].redefine(after)

    @rule(
        name=names,
        change=st.sampled_from(["add", "add", "remove", "max age", "online", "source"]),
        number=st.integers(0, 4),
    )
    def redefine(self, name: str, change: str, number: int) -> None:
        table = self.tables[name].definition
        features = list(table.features)
        max_age = timedelta(microseconds=number) if number else None
        if change == "add":
            self.features += 1
            features.insert(number, fdb.Feature(f"{name}_{self.features}", ADDED[self.features % len(ADDED)]))
            self.apply(name, features=features)
        elif change == "remove" and len(features) > 1:
            removed = features.pop(number % len(features))
            self.apply(name, features=features, max_age=max_age)
            with self.refused(removed.name, "reserved"):
                self.db.apply(replace(self.tables[name].definition, features=[*features, removed]))
        elif change == "max age":
            self.apply(name, max_age=max_age)
        elif change == "online":
            self.apply(name, online=not table.online)
        elif change == "source":
            first = table.entities[0]
            mapping = {f"its_{first}": first}
            source = fdb.FileSource(self.new_path("parquet"), "at", "made", mapping) if number else None
            self.apply(name, batch_source=source, labels={"team": str(number)}, description=f"of team {number}")

    @rule(name=names)
    def change_what_cannot_be_changed(self, name: str) -> None:
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

    @rule(
        rng=rngs,
        chosen=st.sampled_from([["clicks"], ["visits"], ["likes", "clicks"]]),
        span=spans,
        latest=st.booleans(),
        now=st.integers(-1, 14),
        kind=kinds,
    )
    def read(
        self, rng: random.Random, chosen: list[str], span: tuple[Any, Any], latest: bool, now: int, kind: str
    ) -> None:
        assert_joins(self.db, self.tables, rng)
        assert_stored(self.db, self.tables, chosen, span, latest)
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
    settings = settings(max_examples=settings.default.max_examples // 3, stateful_step_count=40)
