"""Snapshots stay as they were, whatever comes after; and the lineage of a training set says how to make it again."""

from __future__ import annotations

import gc
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from strategies import CONTAINERS, POOLS, Columns, container, plain, small_batches, tiny_limits

import featuredb as fdb
from featuredb.limits import KEY_BYTES_MAX, NS_CHUNK, NS_ONLINE, NS_PINNED, NS_SEGMENT, NS_SNAPSHOT, NS_UNDO
from featuredb.storage.crc import seal
from featuredb.storage.manifest import DEAD

pytestmark = pytest.mark.usefixtures("segments_only")

BASE = 1_357_034_400_000_000
ENTITIES = {"u": "int64", "s": "string"}
KEYS: dict[str, list[Any]] = {"u": [1, 2, -3], "s": ["", "a"]}
ADDED = ["string", "bool", "int8", "timestamp"]
LEFT: Columns = {
    "u": ("int64", [1, 2, -3, 9, 1, None] * 4),
    "s": ("string", (["", "a"] * 12)),
    "event_timestamp": ("timestamp", [BASE + place // 4 for place in range(24)]),
}


def tables() -> list[fdb.FeatureTable]:
    features = [fdb.Feature("x", "float64"), fdb.Feature("text", "string")]
    return [fdb.FeatureTable("one", ["u"], features), fdb.FeatureTable("two", ["s", "u"], features)]


def define(db: fdb.Database) -> None:
    db.apply([*(fdb.Entity(name, dtype) for name, dtype in ENTITIES.items()), *tables()])


def data(table: fdb.FeatureTable, rows: list[tuple[int, int, int, int, int]]) -> Any:
    """Rows of (u, s, event, created, value), each a place in a pool; value 0 is null."""
    columns: Columns = {
        "u": ("int64", [KEYS["u"][row[0]] for row in rows]),
        "s": ("string", [KEYS["s"][row[1]] for row in rows]),
        "event_timestamp": ("timestamp", [BASE + row[2] for row in rows]),
        "created_timestamp": ("timestamp", [BASE + row[3] for row in rows]),
    }
    for feature in table.features:
        pool = [None, *POOLS[feature.dtype]]
        columns[feature.name] = (feature.dtype, [pool[row[4] % len(pool)] for row in rows])
    return container("arrow", columns)


def as_bytes(table: pa.Table) -> bytes:
    """Every byte of an Arrow table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def state(db: fdb.Database) -> dict[str, Any]:
    """All that can be read: definitions, log, history joined, and online values in every way of reading them."""
    found: dict[str, Any] = {
        "entities": db.list_entities(),
        "tables": db.list_feature_tables(),
        "services": db.list_feature_services(),
        "log": db.log(),
    }
    frame = container("arrow", LEFT)
    for table in db.list_feature_tables():
        references = [f"{table.name}:{name}" for name in table.feature_names]
        joined = db.get_historical_features(frame, references, include_event_timestamps=True)
        found[f"history of {table.name}"] = as_bytes(joined.to_arrow())
        found[f"lineage of {table.name}"] = {**joined.lineage, "snapshot": None}
        if table.online:
            keys = {name: LEFT[name][1][:6] for name in table.entities}
            response = db.get_online_features(references, keys)
            found[f"online of {table.name}"] = (as_bytes(response.to_arrow()), response.statuses)
            reader = db.online_reader(references)
            rows = zip(*(keys[name] for name in table.entities), strict=True)
            singles = [reader.get(row if len(row) > 1 else row[0]) for row in rows]
            found[f"single of {table.name}"] = repr(singles)
            found[f"keys of {table.name}"] = db.info()["feature_tables"][table.name]["online_keys"]
    return found


def assert_sound(db: fdb.Database) -> None:
    report = db.verify()
    assert report.ok, str(report)


def entries(db: fdb.Database, *namespaces: bytes) -> list[bytes]:
    with db._env.read() as txn:
        return [bytes(key) for namespace in namespaces for key, _ in txn.scan(namespace)]


# --- whatever comes after -------------------------------------------------------------------------

NAMES = st.sampled_from(["one", "two"])
ROW = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 4), st.integers(0, 1), st.integers(0, 5))
INGEST = st.tuples(
    st.just("ingest"),
    NAMES,
    st.lists(ROW, min_size=1, max_size=6),
    st.sampled_from(["both", "both", "offline", "online"]),
)
OTHER = st.one_of(
    st.tuples(st.sampled_from(["evolve", "toggle", "recreate", "materialize"]), NAMES),
    st.tuples(st.just("drop"), st.integers(0, 5)),
    st.sampled_from([("compact",), ("reopen",)]),
)
STEPS = st.lists(st.one_of(INGEST, INGEST, st.just(("snapshot",)), OTHER), max_size=14)


class Story:
    """A database, the steps it is taken through, and what each snapshot must look like."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = fdb.open(path, durability="relaxed")
        self.expected: dict[str, dict[str, Any]] = {}
        self.count = 0
        define(self.db)

    def step(self, step: tuple[Any, ...]) -> None:
        getattr(self, step[0])(*step[1:])

    def ingest(self, name: str, rows: list[tuple[int, int, int, int, int]], to: str) -> None:
        table = self.db.get_feature_table(name)
        if to != "online" or table.online:
            self.db.ingest(name, data(table, rows), to=to)  # type: ignore[arg-type]

    def snapshot(self) -> None:
        self.count += 1
        name = f"s{self.count}"
        self.expected[name] = state(self.db)
        held = self.db.snapshot(name)
        assert held.commit_id == self.expected[name]["log"][-1].id

    def drop(self, place: int) -> None:
        if self.expected:
            name = list(self.expected)[place % len(self.expected)]
            self.db.drop_snapshot(name)
            del self.expected[name]

    def evolve(self, name: str) -> None:
        self.count += 1
        table = self.db.get_feature_table(name)
        added = fdb.Feature(f"f{self.count}", ADDED[self.count % len(ADDED)])
        self.db.apply(replace(table, features=[added, *table.features[self.count % 2 :]]))

    def toggle(self, name: str) -> None:
        table = self.db.get_feature_table(name)
        self.db.apply(replace(table, online=not table.online))

    def recreate(self, name: str) -> None:
        self.db.delete_feature_table(name)
        self.db.apply(next(table for table in tables() if table.name == name))

    def materialize(self, name: str) -> None:
        if self.db.get_feature_table(name).online:
            self.db.materialize(name)

    def compact(self) -> None:
        self.db.compact()

    def reopen(self) -> None:
        self.db.close()
        self.db = fdb.open(self.path, durability="relaxed")

    def check(self) -> None:
        assert_sound(self.db)
        assert [held.name for held in self.db.list_snapshots()] == list(self.expected)
        for name, expected in self.expected.items():
            view = self.db.at(name)
            assert_sound(view)
            for what, value in state(view).items():
                assert value == expected[what], f"{what} at {name}"


@given(steps=STEPS, tiny=st.booleans())
def test_a_snapshot_stays_as_it_was_whatever_comes_after(steps: list[tuple[Any, ...]], tiny: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if tiny:
            tiny_limits(patch)
            small_batches(patch, 2)
            patch.setattr("featuredb.storage.snapshots._BATCH_ROWS", 2)
        story = Story(Path(folder) / "some.fdb")
        for step in steps:
            story.step(step)
        story.check()
        copy = Path(folder) / "copy.fdb"
        story.db.backup(copy)
        story.db.close()
        story.db = fdb.open(copy, durability="relaxed")
        story.check()
        while story.expected:
            story.drop(story.count)
            story.check()
        assert not entries(story.db, NS_SNAPSHOT, NS_PINNED, NS_UNDO), "all that was held is let go"
        story.db.close()


# --- each rule by name ----------------------------------------------------------------------------


@pytest.fixture
def loaded(db: fdb.Database) -> fdb.Database:
    define(db)
    db.ingest("one", data(tables()[0], [(0, 0, 0, 0, 3), (1, 0, 0, 0, 4)]))
    return db


def put(db: fdb.Database, key: int, event: int, value: int) -> None:
    db.ingest("one", data(db.get_feature_table("one"), [(key, 0, event, 0, value)]))


def online(db: fdb.Database) -> list[Any]:
    return db.get_online_features(["one:x"], {"u": KEYS["u"]}).to_dict()["x"]


def test_a_snapshot_is_a_commit_that_copies_no_rows(loaded: fdb.Database) -> None:
    before = entries(loaded, NS_SEGMENT, NS_CHUNK, NS_ONLINE)
    held = loaded.snapshot("a")
    assert (held.name, held.commit_id) == ("a", 2)
    assert loaded.log()[-1].operation == "snapshot a"
    assert loaded.log()[-1].time == held.time
    assert entries(loaded, NS_SEGMENT, NS_CHUNK, NS_ONLINE) == before
    assert not entries(loaded, NS_UNDO)
    assert loaded.list_snapshots() == [held]
    loaded.drop_snapshot("a")
    assert loaded.log()[-1].operation == "drop snapshot a"
    assert loaded.list_snapshots() == []


def test_without_snapshots_nothing_is_saved(loaded: fdb.Database) -> None:
    put(loaded, 0, 1, 2)
    loaded.snapshot("a")
    loaded.drop_snapshot("a")
    put(loaded, 0, 2, 2)
    assert not entries(loaded, NS_UNDO, NS_PINNED)


def test_a_table_that_the_newest_snapshot_lacks_saves_nothing(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    loaded.apply(fdb.FeatureTable("new", ["u"], [fdb.Feature("x", "float64")]))
    new = {"u": [1], "event_timestamp": ["2013-01-01"], "x": [1.0]}
    loaded.ingest("new", new)
    loaded.ingest("new", {**new, "x": [2.0]})
    assert not entries(loaded, NS_UNDO)
    with pytest.raises(fdb.NotFoundError):
        loaded.at("a").get_feature_table("new")


def test_an_online_value_is_saved_once_for_the_newest_snapshot(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    loaded.snapshot("b")
    for event in range(1, 4):
        put(loaded, 0, event, 2)
    assert len(entries(loaded, NS_UNDO)) == 1
    assert online(loaded.at("a")) == online(loaded.at("b")) != online(loaded)


def test_dropping_a_snapshot_passes_its_online_values_to_the_one_before(loaded: fdb.Database) -> None:
    loaded.snapshot("first")
    put(loaded, 2, 0, 3)
    loaded.snapshot("a")
    put(loaded, 0, 1, 2)
    at_b = online(loaded)
    loaded.snapshot("b")
    put(loaded, 0, 2, 4)
    put(loaded, 1, 2, 2)
    put(loaded, 2, 2, 2)
    at_a = online(loaded.at("a"))
    assert at_a == [1.5, -2.25, 1.5]
    assert online(loaded.at("b")) == at_b
    loaded.drop_snapshot("b")
    assert online(loaded.at("a")) == at_a
    assert online(loaded.at("first")) == [1.5, -2.25, None]
    assert_sound(loaded)
    loaded.drop_snapshot("a")
    loaded.drop_snapshot("first")
    assert not entries(loaded, NS_UNDO)


@pytest.mark.parametrize("delete", [True, False])
def test_online_values_of_a_table_that_is_deleted_or_taken_offline_are_kept(
    loaded: fdb.Database, delete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featuredb.storage.snapshots._BATCH_ROWS", 1)
    put(loaded, 2, 0, 2)
    before = online(loaded)
    loaded.snapshot("a")
    if delete:
        loaded.delete_feature_table("one")
    else:
        loaded.apply(replace(loaded.get_feature_table("one"), online=False))
    assert len(entries(loaded, NS_UNDO)) == 3
    assert online(loaded.at("a")) == before
    assert loaded.at("a").info()["feature_tables"]["one"]["online_keys"] == 3
    assert_sound(loaded)
    assert_sound(loaded.at("a"))


def test_a_scan_at_a_snapshot_has_each_key_once_and_none_that_came_later(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    put(loaded, 0, 1, 2)
    loaded.snapshot("b")
    put(loaded, 0, 2, 4)
    put(loaded, 2, 0, 4)
    counts = [db.info()["feature_tables"]["one"]["online_keys"] for db in (loaded.at("a"), loaded.at("b"), loaded)]
    assert counts == [2, 2, 3]


@pytest.mark.parametrize("merged", [False, True])
def test_each_snapshot_keeps_its_own_list_of_replaced_rows(
    loaded: fdb.Database, merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featuredb.offline.merge.MERGE_FANOUT", 100)

    def replaced(db: fdb.Database) -> list[Any]:
        frame = {"u": [1] * 12, "event_timestamp": (LEFT["event_timestamp"][1][0] + np.arange(12)).astype("M8[us]")}
        return db.get_historical_features(frame, ["one:x"]).to_numpy()["x"].tolist()

    loaded.ingest("one", data(tables()[0], [(0, 0, event, 0, 3) for event in range(1, 31)]))
    expected: dict[str, list[Any]] = {}
    for event, name in enumerate("abc", start=1):
        put(loaded, 0, event, 4)
        expected[name] = replaced(loaded)
        loaded.snapshot(name)
    put(loaded, 0, 4, 4)
    lists = [key for key in entries(loaded, NS_CHUNK) if key[13:17] == DEAD.to_bytes(4, "big")]
    assert len(lists) == 4, "one for each snapshot and one now"
    if merged:
        loaded.compact()
    for name in "bac":
        for held in expected:
            assert replaced(loaded.at(held)) == expected[held]
        assert_sound(loaded)
        loaded.drop_snapshot(name)
        del expected[name]
    assert_sound(loaded)
    lists = [key for key in entries(loaded, NS_CHUNK) if key[13:17] == DEAD.to_bytes(4, "big")]
    assert len(lists) == (0 if merged else 1)


def test_the_longest_key_can_be_saved(db: fdb.Database) -> None:
    db.apply([fdb.Entity("s", "string"), fdb.FeatureTable("t", ["s"], [fdb.Feature("x", "int8")])])
    key = "k" * (KEY_BYTES_MAX - 1)
    rows = {"s": [key], "event_timestamp": ["2013-01-01"], "x": [1]}
    db.ingest("t", rows)
    db.snapshot("a")
    db.ingest("t", {**rows, "x": [2]})
    assert db.at("a").online_reader(["t:x"]).get(key) == {"x": 1}
    assert db.online_reader(["t:x"]).get(key) == {"x": 2}
    assert db.at("a").online_reader(["t:x"]).get(key * 2) == {"x": None}


def test_a_snapshot_of_an_empty_file_shows_an_empty_file(db: fdb.Database) -> None:
    assert db.snapshot("a").commit_id == 0
    define(db)
    view = db.at("a")
    assert (view.log(), view.list_entities(), view.info()["commit"]) == ([], [], None)


def test_knowledge_time_at_a_snapshot_counts_its_own_commits(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    row = {"u": [1], "s": [""], "event_timestamp": ["2012-01-01"], "x": [7.0], "text": ["old"]}
    loaded.ingest("one", row)
    frame = {"u": [1], "event_timestamp": ["2012-06-01"]}
    assert loaded.get_historical_features(frame, ["one:x"], known_at="2999-01-01").to_numpy()["x"].tolist() == [7.0]
    seen = loaded.at("a").get_historical_features(frame, ["one:x"], known_at="2999-01-01")
    assert seen.to_numpy()["x"].tolist() == [None]


@pytest.mark.parametrize("name", ["", "1a", "a b", "a__b/", "x" * 200, 3])
def test_a_name_that_is_not_valid_is_refused(db: fdb.Database, name: Any) -> None:
    with pytest.raises(fdb.DefinitionError, match="snapshot: name"):
        db.snapshot(name)
    assert db.log() == []


def test_a_name_in_use_is_refused_and_an_unknown_one_not_found(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    with pytest.raises(fdb.DefinitionError, match="snapshot 'a' exists already; choose another name"):
        loaded.snapshot("a")
    for use in (loaded.drop_snapshot, loaded.at):
        with pytest.raises(fdb.NotFoundError, match="no snapshot 'b' in this file; there is: a"):
            use("b")


@pytest.mark.parametrize(
    "write",
    [
        lambda view: view.apply(fdb.Entity("new", "int64")),
        lambda view: view.delete_feature_table("one"),
        lambda view: view.delete_feature_service("none"),
        lambda view: view.ingest("one", data(tables()[0], [(0, 0, 0, 0, 1)])),
        lambda view: view.materialize(),
        lambda view: view.compact(),
        lambda view: view.snapshot("b"),
        lambda view: view.drop_snapshot("a"),
    ],
)
def test_a_view_refuses_to_write_and_names_its_snapshot(
    loaded: fdb.Database, write: Callable[[fdb.Database], object]
) -> None:
    loaded.snapshot("a")
    view = loaded.at("a")
    assert repr(view) == f"<featuredb.Database {loaded.path!r} at 'a'>"
    commits = loaded.log()
    with pytest.raises(fdb.ReadOnlyError, match=r"snapshot 'a' of .* cannot be changed; write to the database itself"):
        write(view)
    assert loaded.log() == commits


def test_a_view_is_not_backed_up_alone(loaded: fdb.Database, tmp_path: Path) -> None:
    loaded.snapshot("a")
    with pytest.raises(fdb.InputError, match="call backup"):
        loaded.at("a").backup(tmp_path / "copy.fdb")


def test_a_view_ends_with_its_snapshot_and_is_not_taken_for_one_of_the_same_name(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    view = loaded.at("a")
    reader = view.online_reader(["one:x"])
    loaded.drop_snapshot("a")
    put(loaded, 0, 3, 2)
    loaded.snapshot("a")
    for use in (view.log, lambda: reader.get(1), lambda: online(view)):
        with pytest.raises(fdb.NotFoundError, match="snapshot 'a' was dropped"):
            use()
    assert online(loaded.at("a")) == online(loaded)


def test_a_view_ends_with_its_database_and_closing_it_does_not_close_that(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    with loaded.at("a") as view:
        pass
    with pytest.raises(fdb.ClosedError):
        view.log()
    other = loaded.at("a").at("a")
    assert len(loaded.log()) == len(other.log()) + 1
    loaded.close()
    with pytest.raises(fdb.ClosedError):
        other.log()


def test_a_view_and_its_readers_keep_the_database_open(tmp_path: Path) -> None:
    with fdb.open(tmp_path / "some.fdb") as db:
        define(db)
        put(db, 0, 0, 3)
        db.snapshot("a")
    view = fdb.open(tmp_path / "some.fdb").at("a").at("a")
    gc.collect()
    assert online(view) == [1.5, None, None]
    reader = view.online_reader(["one:x"])
    del view
    gc.collect()
    assert reader.get(1) == {"x": 1.5}


def test_a_file_opened_read_only_can_be_read_at_a_snapshot(tmp_path: Path) -> None:
    with fdb.open(tmp_path / "some.fdb") as db:
        define(db)
        db.snapshot("a")
        put(db, 0, 0, 3)
    with fdb.open(tmp_path / "some.fdb", read_only=True) as db:
        assert online(db.at("a")) == [None, None, None]
        assert online(db) == [1.5, None, None]


def test_info_tells_what_a_snapshot_alone_keeps(loaded: fdb.Database) -> None:
    history = loaded.info()["feature_tables"]["one"]["bytes"]
    for name in ("a", "b"):
        loaded.snapshot(name)
    assert loaded.info()["snapshots"]["a"]["history_bytes"] == 0
    put(loaded, 0, 1, 2)
    loaded.compact()
    shared = loaded.info()["snapshots"]
    assert [shared[name]["history_bytes"] for name in "ab"] == [0, 0], "the other one keeps it too"
    assert shared["a"]["online_bytes"] == 0 < shared["b"]["online_bytes"]
    loaded.drop_snapshot("a")
    alone = loaded.info()["snapshots"]["b"]
    assert (alone["history_bytes"], alone["commit_id"]) == (history, 3)


def damaged(db: fdb.Database, change: Callable[[Any], object]) -> str:
    """What verify says after `change` has been made behind the database's back."""
    with db._env.writer():
        db._env.write(change)
    report = db.verify()
    assert not report.ok
    return str(report)


def test_verify_finds_what_a_snapshot_lacks_and_what_belongs_to_none(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    put(loaded, 0, 1, 2)
    loaded.compact()
    assert_sound(loaded)
    [undo] = entries(loaded, NS_UNDO)
    stray = undo[:1] + (9).to_bytes(6, "big") + undo[7:]
    assert "online rows are saved for number 9, no snapshot" in damaged(
        loaded, lambda txn: txn.put(stray, seal(stray, b""))
    )
    with loaded._env.read() as txn:
        row = bytes(txn.get(undo) or b"")
    bad = row[:-1] + bytes([row[-1] ^ 1])
    assert "checksum" in damaged(loaded, lambda txn: (txn.delete(stray), txn.put(undo, bad)))
    pinned = entries(loaded, NS_CHUNK)[0]
    assert "is missing" in damaged(loaded, lambda txn: (txn.put(undo, row), txn.delete(pinned)))
    record = entries(loaded, NS_SNAPSHOT)[0]
    told = damaged(loaded, lambda txn: txn.delete(record))
    assert "a manifest is held for no snapshot" in told
    assert "belongs to no live segment" in told


def test_damage_of_saved_rows_names_table_and_key_of_each(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    put(loaded, 0, 1, 2)
    put(loaded, 1, 1, 2)

    def flip(txn: Any) -> None:
        for key in saved:
            row = bytes(txn.get(key) or b"")
            txn.put(key, row[:-1] + bytes([row[-1] ^ 1]))

    saved = entries(loaded, NS_UNDO)
    with loaded._env.writer():
        loaded._env.write(flip)
    view = loaded.at("a")
    for number, key in enumerate(KEYS["u"][:2]):
        what = re.escape(f"online row of table 'one', key {key!r}, as it was saved for a snapshot: its checksum")
        with pytest.raises(fdb.CorruptionError, match=f"{what} does not match.*restore a backup"):
            view.get_online_features(["one:x"], {"u": [key]})
        problem = loaded.verify().problems[number]
        assert (problem.table, problem.key) == ("one", f"u={key!r}")


def test_a_damaged_snapshot_leaves_the_others_alone(loaded: fdb.Database) -> None:
    for name in ("a", "b", "c"):
        loaded.snapshot(name)
        put(loaded, 0, 1, len(name))

    def flip(txn: Any) -> None:
        row = bytes(txn.get(middle) or b"")
        txn.put(middle, row[:-1] + bytes([row[-1] ^ 1]))

    middle = entries(loaded, NS_SNAPSHOT)[1]
    with loaded._env.writer():
        loaded._env.write(flip)
    problems = loaded.verify().problems
    assert [problem.what.partition(":")[0] for problem in problems] == [
        f"the record of snapshot {int.from_bytes(middle[1:], 'big')} is damaged"
    ]
    for name in ("a", "c"):
        assert loaded.at(name).verify().ok
    for name in ("b", "none"):
        with pytest.raises(fdb.CorruptionError, match="the record of snapshot"):
            loaded.at(name)


# --- lineage --------------------------------------------------------------------------------------


def test_lineage_names_all_that_it_takes_to_make_it_again(loaded: fdb.Database) -> None:
    loaded.snapshot("a")
    frame = container("pandas", LEFT)
    found = loaded.at("a").get_historical_features(
        frame, ["one:x", "two:text"], known_at="2014-01-01", full_feature_names=True
    )
    lineage = found.lineage
    assert lineage.pop("file_id")
    assert len(lineage.pop("entity_df")) == 64
    assert lineage == {
        "commit_id": 2,
        "snapshot": "a",
        "features": ["one:x", "two:text"],
        "known_at": "2014-01-01T00:00:00+00:00",
        "featuredb": fdb.__version__,
    }
    assert loaded.get_historical_features(frame, ["one:x"]).lineage["snapshot"] is None


@pytest.mark.parametrize("batch_rows", [5, 1_000_000])
def test_the_hash_of_an_entity_dataframe_is_the_same_from_every_container_and_batch(
    loaded: fdb.Database, tmp_path: Path, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch, batch_rows)
    columns = {**LEFT, "label": ("int32", list(range(24)))}
    pq.write_table(container("arrow", columns), tmp_path / "left.parquet")
    frames = [container(kind, columns) for kind in CONTAINERS] + [tmp_path / "left.parquet", container("arrow", LEFT)]
    hashes = {loaded.get_historical_features(frame, ["two:x"]).lineage["entity_df"] for frame in frames}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"u": ("int64", [2, *LEFT["u"][1][1:]])},
        {"u": ("int64", [None, *LEFT["u"][1][1:]])},
        {"s": ("string", ["a", "", *LEFT["s"][1][2:]])},
        {"event_timestamp": ("timestamp", [BASE + 1, *LEFT["event_timestamp"][1][1:]])},
        {name: (dtype, values[:-1]) for name, (dtype, values) in LEFT.items()},
    ],
)
def test_the_hash_of_another_entity_dataframe_is_another(loaded: fdb.Database, changed: Columns) -> None:
    one, other = (
        loaded.get_historical_features(container("arrow", {**LEFT, **columns}), ["two:x"]).lineage["entity_df"]
        for columns in ({}, changed)
    )
    assert one != other


def test_a_null_hashes_differently_from_a_zero(loaded: fdb.Database) -> None:
    found = {
        loaded.get_historical_features({"u": [1, key], "event_timestamp": ["2013-01-01", at]}, ["one:x"]).lineage[
            "entity_df"
        ]
        for key, at in ((0, "1970-01-01"), (None, "1970-01-01"), (0, None), (None, None))
    }
    assert len(found) == 4


def test_strings_that_are_cut_elsewhere_hash_differently(loaded: fdb.Database) -> None:
    found = {
        loaded.get_historical_features(
            {"s": keys, "u": [1, 1], "event_timestamp": ["2013-01-01"] * 2}, ["two:x"]
        ).lineage["entity_df"]
        for keys in (["ab", "c"], ["a", "bc"], ["abc", ""], ["abc", None])
    }
    assert len(found) == 4


def test_a_known_at_column_is_part_of_the_lineage(loaded: fdb.Database) -> None:
    frame = {"u": [1], "event_timestamp": ["2013-01-01"], "seen": ["2013-01-02"]}
    lineages = [
        loaded.get_historical_features({**frame, "seen": [seen]}, ["one:x"], known_at="seen").lineage
        for seen in ("2013-01-02", "2013-01-02T00:00:00Z", "2013-01-03")
    ]
    assert lineages[0] == lineages[1] != lineages[2]
    assert lineages[0]["known_at"] == "seen"


@pytest.mark.parametrize("batch_rows", [5, 1_000_000])
def test_a_parquet_file_carries_its_lineage(
    loaded: fdb.Database, tmp_path: Path, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch, batch_rows)
    training = loaded.get_historical_features(container("arrow", LEFT), ["one:x"])
    training.to_parquet(tmp_path / "out.parquet")
    carried = json.loads(pq.read_metadata(tmp_path / "out.parquet").metadata[b"featuredb"])
    assert training.lineage == loaded.get_historical_features(container("dict", LEFT), ["one:x"]).lineage
    # Before pyarrow 17 metadata must be written first, when a stream's hash is not known yet.
    late = hasattr(pq.ParquetWriter, "add_key_value_metadata") or batch_rows > len(LEFT["event_timestamp"][1])
    assert carried == training.lineage | ({} if late else {"entity_df": None})


@pytest.mark.parametrize(("batch_rows", "hashed"), [(5, False), (1_000_000, True)])
def test_where_metadata_must_come_first_it_has_what_is_known_by_then(
    loaded: fdb.Database, tmp_path: Path, batch_rows: int, hashed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(pq.ParquetWriter, "add_key_value_metadata", raising=False)
    small_batches(monkeypatch, batch_rows)
    training = loaded.get_historical_features(container("arrow", LEFT), ["one:x"])
    training.to_parquet(tmp_path / "out.parquet")
    carried = json.loads(pq.read_metadata(tmp_path / "out.parquet").metadata[b"featuredb"])
    assert {**training.lineage, "entity_df": None} == {**carried, "entity_df": None}
    assert (carried["entity_df"] is not None) == hashed


def test_a_stream_that_was_written_still_has_its_lineage(loaded: fdb.Database, tmp_path: Path) -> None:
    stream = pa.RecordBatchReader.from_batches(container("arrow", LEFT).schema, container("arrow", LEFT).to_batches(5))
    training = loaded.get_historical_features(stream, ["two:x"])
    training.to_parquet(tmp_path / "out.parquet")
    expected = loaded.get_historical_features(container("arrow", LEFT), ["two:x"])
    assert training.lineage == expected.lineage
    assert plain(pq.read_table(tmp_path / "out.parquet")["x"]) == plain(expected.to_arrow()["x"])


def test_a_snapshot_keeps_max_age_and_services(loaded: fdb.Database) -> None:
    loaded.apply(fdb.FeatureService("model", ["one:x"]))
    loaded.snapshot("a")
    loaded.apply(replace(loaded.get_feature_table("one"), max_age=timedelta(microseconds=1)))
    loaded.delete_feature_service("model")
    frame = {"u": [1], "event_timestamp": ["2013-01-02"]}
    assert loaded.at("a").get_historical_features(frame, "model").to_numpy()["x"].tolist() == [1.5]
    assert loaded.get_historical_features(frame, ["one:x"]).to_numpy()["x"].tolist() == [None]
    assert loaded.at("a").get_online_features("model", {"u": [1]}).to_dict()["x"] == [1.5]
