"""Forgetting: what goes, what stays, what prevents it, and that no byte of it is left after `compact`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import hypothesis.strategies as st
import oracle
import pytest
from hypothesis import given
from strategies import (
    CONTAINERS,
    POOLS,
    YEAR_9999_US,
    Case,
    cases,
    container,
    ingest,
    rows_of,
    small_batches,
    tiny_limits,
)
from test_apart import assert_history_equals
from test_online import assert_reads_equal
from test_processes import python

import featuredb as fdb
from featuredb.columns import Heap
from featuredb.limits import KEYS_PER_BLOCK, NS_CHUNK, NS_KEY, NS_UNDO
from featuredb.offline.dictionary import TREE_LOOKUPS_MAX
from featuredb.storage.crc import CRC_BYTES

T0 = datetime(2024, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
Draw = st.DataObject


# --- against the oracle ---------------------------------------------------------------------------


@given(case=cases(tables_max=2), data=st.data())
def test_forgetting_equals_the_oracle(case: Case, data: Draw) -> None:
    """Keys by all entities of a table or some, in all tables or one, between ingests, merges and compactions."""
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
        if data.draw(st.booleans(), label="tiny limits"):
            tiny_limits(patch)
        if data.draw(st.booleans(), label="small batches"):
            small_batches(patch, data.draw(st.integers(1, 4)))
        db.apply(case.definitions)
        expected = {table.name: table.oracle() for table in case.tables}
        steps = [(table, batch) for table in case.tables for batch in table.batches]
        for table, batch in data.draw(st.permutations(steps), label="order"):
            to = data.draw(st.sampled_from(["both", "both", "offline", "online"]), label="to")
            ingest(db, case, table, batch, expected[table.name], to)
            what = data.draw(st.sampled_from(["", "forget", "forget", "compact"]), label="then")
            if what == "compact":
                db.compact()
            elif what == "forget":
                forget_some(db, case, expected, data)
                assert db.verify().ok, str(db.verify())
        assert_reads_equal(db, case, expected, min(case.base + 9, YEAR_9999_US), "dict")
        for table in case.tables:
            alone = Case({name: case.entities[name] for name in table.entities}, [table], [], case.base)
            assert_history_equals(db, alone, expected[table.name])
        db.compact()
        assert db.verify().ok
        assert_reads_equal(db, case, expected, min(case.base + 9, YEAR_9999_US), "dict")


def forget_some(db: fdb.Database, case: Case, expected: dict[str, oracle.Table], data: Draw) -> None:
    """Forget a few keys of some entities of a table, and check the report."""
    table = data.draw(st.sampled_from(case.tables), label="table")
    names = data.draw(st.permutations(table.entities), label="entities")
    names = names[: data.draw(st.integers(1, len(names)))]
    pools = [st.sampled_from(POOLS[case.entities[name]]) for name in names]
    rows = expected[table.name].history + expected[table.name].online
    stored = [tuple(row.key[table.entities.index(name)] for name in names) for row in rows]
    some = st.tuples(*pools) if not stored else st.one_of(st.tuples(*pools), st.sampled_from(stored))
    keys = data.draw(st.lists(some, max_size=3), label="keys")
    only = data.draw(st.booleans(), label="only this table")
    meant = [one for one in case.tables if (one is table if only else set(names) <= set(one.entities))]
    columns = {name: (case.entities[name], [key[place] for key in keys]) for place, name in enumerate(names)}
    kind = data.draw(st.sampled_from(CONTAINERS if keys else ["dict", "numpy", "arrow"]), label="kind")
    before = {one.name: counts(expected[one.name]) for one in meant}
    log = db.log()
    report = db.forget(container(kind, columns), tables=[table.name] if only else None)
    for one in meant:
        expected[one.name].forget(keys, [one.entities.index(name) for name in names])
    after = {one.name: counts(expected[one.name]) for one in meant}
    assert report.rows_removed == {name: before[name][0] - after[name][0] for name in before}
    assert report.online_keys_removed == {name: before[name][1] - after[name][1] for name in before}
    assert report.keys_found + report.keys_not_found == len({repr(key) for key in keys})
    if report.keys_found:
        assert [commit.operation for commit in db.log()] == [*(commit.operation for commit in log), "forget"]
        assert db.log()[-1].rows == sum(report.rows_removed.values())
    else:
        assert db.log() == log
        assert before == after


def counts(table: oracle.Table) -> tuple[int, int]:
    return len(table.history), len(table.online)


# --- by name --------------------------------------------------------------------------------------


def define(db: fdb.Database) -> None:
    text = [fdb.Feature("text", "string")]
    db.apply(
        [
            fdb.Entity("user", "string"),
            fdb.Entity("item", "int64"),
            fdb.FeatureTable("users", ["user"], text),
            fdb.FeatureTable("visits", ["user"], text),
            fdb.FeatureTable("items", ["item"], text),
            fdb.FeatureTable("clicks", ["user", "item"], text),
        ]
    )


def row(user: str, item: int = 0, day: int = 0, text: str = "") -> dict[str, Any]:
    return {"user": user, "item": item, "event_timestamp": T0 + day * DAY, "text": text}


@pytest.fixture
def loaded(db: fdb.Database) -> fdb.Database:
    define(db)
    for name in ("users", "visits", "items", "clicks"):
        db.ingest(name, [row("ann", 1), row("bob", 2), row("ann", 2, day=1)])
    return db


def online(db: fdb.Database, table: str, **keys: list[Any]) -> list[Any]:
    statuses = db.get_online_features([f"{table}:text"], keys).statuses["text"]
    return [status.name for status in statuses]


def entries(db: fdb.Database, *namespaces: bytes) -> list[tuple[bytes, bytes]]:
    with db._env.read() as txn:
        return [(bytes(key), bytes(value)) for one in namespaces for key, value in txn.scan(one)]


def rows(db: fdb.Database, table: str) -> int:
    return int(db.info()["feature_tables"][table]["rows"])


def test_a_key_goes_from_every_table_that_has_its_entity(loaded: fdb.Database) -> None:
    report = loaded.forget([{"user": "ann"}, {"user": "eve"}, {"user": "ann"}])
    assert (report.keys_found, report.keys_not_found) == (1, 1)
    assert report.rows_removed == {"users": 2, "visits": 2, "clicks": 2}
    assert report.online_keys_removed == {"users": 1, "visits": 1, "clicks": 2}
    assert report.commit_id == loaded.log()[-1].id
    assert (loaded.log()[-1].operation, loaded.log()[-1].table, loaded.log()[-1].rows) == ("forget", None, 6)
    assert online(loaded, "users", user=["ann", "bob"]) == ["NOT_FOUND", "PRESENT"]
    assert online(loaded, "clicks", user=["ann", "bob", "ann"], item=[1, 2, 2]) == ["NOT_FOUND", "PRESENT", "NOT_FOUND"]
    assert online(loaded, "items", item=[1, 2]) == ["PRESENT", "PRESENT"]
    assert {name: rows(loaded, name) for name in ("users", "visits", "items", "clicks")} == {
        "users": 1,
        "visits": 1,
        "items": 3,
        "clicks": 1,
    }
    assert loaded.info()["feature_tables"]["clicks"]["entity_keys_in_key_space"] == 1
    assert loaded.verify().ok
    assert loaded.verify().entity_keys == 1 + 1 + 2


def test_a_composite_key_is_forgotten_by_all_its_entities_or_by_any(loaded: fdb.Database) -> None:
    assert loaded.forget({"item": [2], "user": ["ann"]}).rows_removed == {"clicks": 1}
    assert rows(loaded, "clicks") == 2
    assert loaded.forget({"item": [2]}).rows_removed == {"items": 2, "clicks": 1}
    assert online(loaded, "clicks", user=["ann", "bob", "ann"], item=[1, 2, 2]) == ["PRESENT", "NOT_FOUND", "NOT_FOUND"]
    assert loaded.verify().ok


@pytest.mark.parametrize("given", [{"user": ["ann"]}, {"item": [1], "user": ["ann"]}])
def test_keys_that_have_online_values_alone_are_found(db: fdb.Database, given: dict[str, list[Any]]) -> None:
    """Also those that only a snapshot shows."""
    define(db)
    db.ingest("clicks", [row("ann", 1), row("bob", 1)], to="online")
    assert entries(db, NS_KEY) == []
    db.snapshot("held")
    db.ingest("clicks", [row("ann", 1, day=1)], to="online")
    db.delete_feature_table("clicks")
    with pytest.raises(fdb.InputError, match=r"'held' holds rows"):
        db.forget(given)
    db.drop_snapshot("held")
    define(db)
    db.ingest("clicks", [row("ann", 1), row("bob", 1)], to="online")
    report = db.forget(given)
    assert (report.keys_found, report.online_keys_removed["clicks"]) == (1, 1)
    assert online(db, "clicks", user=["ann", "bob"], item=[1, 1]) == ["NOT_FOUND", "PRESENT"]
    assert not [key for key, value in entries(db, b"") if b"ann" in key + value]
    assert db.verify().ok


def test_only_the_tables_named_lose_rows_and_the_key_stays_for_the_others(loaded: fdb.Database) -> None:
    report = loaded.forget({"user": ["ann"]}, tables=["users"])
    assert report.rows_removed == {"users": 2}
    assert loaded.log()[-1].table == "users"
    assert online(loaded, "users", user=["ann"]) == ["NOT_FOUND"]
    assert online(loaded, "visits", user=["ann"]) == ["PRESENT"]
    assert loaded.info()["feature_tables"]["users"]["entity_keys_in_key_space"] == 2
    assert loaded.verify().ok
    again = loaded.forget({"user": ["ann"]}, tables="users")
    assert (again.keys_found, again.keys_not_found, again.commit_id) == (0, 1, report.commit_id)
    loaded.forget({"user": ["ann"]}, tables="visits")
    assert loaded.info()["feature_tables"]["users"]["entity_keys_in_key_space"] == 1
    assert loaded.verify().ok


@pytest.mark.parametrize("left", ["history", "replaced row", "online"])
def test_a_key_stays_as_long_as_another_table_has_anything_of_it(db: fdb.Database, left: str) -> None:
    define(db)
    db.ingest("users", [row("ann")])
    db.ingest("visits", [row("ann"), row("bob")], to="online" if left == "online" else "offline")
    if left == "replaced row":
        db.ingest("visits", [row("ann", text="later"), *(row("bob", day=day) for day in range(20))], to="offline")
    db.forget({"user": ["ann"]}, tables=["users"])
    keys = dict(entries(db, NS_KEY))
    assert sum(key.endswith(b"ann\x00") for key in keys) == 1
    assert db.verify().ok


@pytest.mark.usefixtures("a_segment_each")
def test_segments_without_the_keys_are_not_rewritten(loaded: fdb.Database) -> None:
    loaded.ingest("users", [row("bob", day=5)])
    before = dict(entries(loaded, NS_CHUNK))
    loaded.forget({"user": ["ann"]}, tables=["users"])
    after = dict(entries(loaded, NS_CHUNK))
    assert len(set(before) & set(after)) > 0
    with loaded._env.read() as txn:
        from featuredb.storage.manifest import read_manifest
        from featuredb.storage.registry import read_registry

        numbers = [ref.id for ref in read_manifest(txn, read_registry(txn).table("users").id).segments]
    assert numbers == [3, 2]


def test_a_forgotten_key_starts_afresh(db: fdb.Database) -> None:
    define(db)
    db.ingest("users", [row("ann", text="first")])
    first = db.log()[-1].time
    db.ingest("users", [row("bob")])
    db.forget({"user": ["ann"]})
    frame = {"user": ["ann"], "event_timestamp": [T0 + DAY]}
    assert db.get_historical_features(frame, ["users:text"]).to_numpy()["text"].tolist() == [None]
    report = db.ingest("users", [row("ann", text="again")])
    assert (report.rows_ingested, report.duplicates_replaced, report.online_keys_updated) == (1, 0, 1)
    assert db.get_historical_features(frame, ["users:text"]).to_numpy()["text"].tolist() == ["again"]
    known = db.get_historical_features(frame, ["users:text"], known_at=first + timedelta(microseconds=1))
    assert known.to_numpy()["text"].tolist() == [None]
    codes = [int.from_bytes(value[4:], "little") for key, value in entries(db, NS_KEY) if key.endswith(b"ann\x00")]
    assert codes == [2], "a code is never given again"
    assert db.verify().ok


def test_nothing_to_forget_is_no_commit(loaded: fdb.Database) -> None:
    log = loaded.log()
    for keys in ({"user": ["eve"]}, {"user": []}, [], {}, {"user": ["x" * 600]}):
        report = loaded.forget(keys)
        assert (report.keys_found, report.commit_id) == (0, log[-1].id)
    assert loaded.log() == log


def test_the_log_says_how_much_and_not_what(loaded: fdb.Database) -> None:
    loaded.forget({"user": ["ann"]})
    assert not [value for _, value in entries(loaded, b"c") if b"ann" in value]


def test_rows_loaded_apart_and_pending_marks(db: fdb.Database) -> None:
    define(db)
    db.ingest("users", [row("ann"), row("bob")], to="offline")
    db.ingest("users", [row("eve")], to="online")
    assert db.forget({"user": ["ann"]}).online_keys_removed["users"] == 0
    assert db.forget({"user": ["eve"]}).rows_removed["users"] == 0
    assert online(db, "users", user=["eve"]) == ["NOT_FOUND"]
    assert db.materialize(incremental=True).keys_updated["users"] == 1
    assert online(db, "users", user=["ann", "bob", "eve"]) == ["NOT_FOUND", "PRESENT", "NOT_FOUND"]
    assert db.verify().ok
    assert not db.verify().differences


def test_keys_of_tables_that_were_deleted_go_too(loaded: fdb.Database) -> None:
    loaded.delete_feature_table("clicks")
    report = loaded.forget({"user": ["ann"], "item": [1]})
    assert (report.keys_found, report.rows_removed) == (1, {})
    assert loaded.verify().entity_keys == 2 + 2 + 2
    assert loaded.verify().ok


def test_rejected_rows_that_show_a_forgotten_key_go(db: fdb.Database) -> None:
    db.apply(
        [
            fdb.Entity("item", "int64"),
            fdb.FeatureTable(
                "items",
                ["item"],
                [fdb.Feature("n", "int8")],
                batch_source=fdb.FileSource("x.csv", field_mapping={"thing": "item"}),
            ),
        ]
    )
    moment = [T0] * 4
    bad = {"thing": ["7", None, 8.5, 9], "event_timestamp": moment, "n": [1, 1, 1, 777]}
    db.ingest("items", bad, on_error="skip")
    db.ingest("items", {"thing": [7, 8], "event_timestamp": moment[:2], "n": [1, 2]})
    shown = [(one.column, one.value) for one in db.rejected("items")]
    assert ("thing", "'7'") in shown
    db.forget({"item": [7]})
    assert [(one.column, one.value) for one in db.rejected("items")] == [one for one in shown if one[1] != "'7'"]
    assert db.verify().ok
    db.ingest("items", bad, on_error="skip")
    assert ("thing", "'7'") in [(one.column, one.value) for one in db.rejected("items")]
    log = db.log()
    assert db.forget({"item": [7]}).keys_found == 0
    assert len(db.log()) == len(log) + 1
    assert ("thing", "'7'") not in [(one.column, one.value) for one in db.rejected("items")]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "tables", "error", "words"),
    [
        ({"usr": ["ann"], "thing": [1]}, None, fdb.InputError, ["'usr'", "'thing'", "is no entity", "item, user"]),
        ({"user": ["ann", None], "item": [None, 1]}, None, fdb.InputError, ["'user'", "'item'", "is null"]),
        ({"item": ["x"]}, None, fdb.InputError, ["'item'", "int64 is needed"]),
        ([{"user": "ann"}, {"item": 1}], None, fdb.InputError, ["is missing"]),
        (["ann"], None, fdb.InputError, ["a list of dicts"]),
        ("ann", None, fdb.InputError, ["a list of dicts"]),
        ({"user": ["ann"]}, ["items", "users"], fdb.InputError, ["'items' has no entity 'user'", "it has item"]),
        ({"user": ["ann"]}, ["items", "none"], fdb.NotFoundError, ["no feature table 'none'", "'items' has no entity"]),
        ({"user": ["ann"]}, [], fdb.InputError, ["none is named"]),
        ({"user": ["ann"]}, 3, fdb.InputError, ["must be names of feature tables"]),
        ({"user": ["ann"]}, [["users"], None], fdb.InputError, ["['users'] is not the name", "None is not the name"]),
        (
            {"user": ["ann", 7, None], "item": [1, None, "x"]},
            None,
            fdb.InputError,
            ["'user', row 1", "'user', row 2", "'item', row 1", "'item', row 2", "is null", "is of type"],
        ),
        ({"user": [None], "zz": [1]}, ["none"], fdb.NotFoundError, ["'zz'", "is null", "no feature table 'none'"]),
        ({"user": ["ann"], "day": [T0]}, None, fdb.InputError, ["has the entities 'user', 'day'", "(user, item)"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_error_and_changes_nothing(
    loaded: fdb.Database, keys: Any, tables: Any, error: type[fdb.FeatureDBError], words: list[str]
) -> None:
    loaded.apply(fdb.Entity("day", "timestamp"))
    before = entries(loaded, b"")
    with pytest.raises(error) as caught:
        loaded.forget(keys, tables)
    for word in words:
        assert word in str(caught.value)
    assert entries(loaded, b"") == before


def test_a_view_and_a_read_only_database_refuse(tmp_path: Path) -> None:
    with fdb.open(tmp_path / "x.fdb") as db:
        define(db)
        db.snapshot("held")
        with pytest.raises(fdb.ReadOnlyError):
            db.at("held").forget({"user": ["ann"]})
    with fdb.open(tmp_path / "x.fdb", read_only=True) as db, pytest.raises(fdb.ReadOnlyError):
        db.forget({"user": ["ann"]})


# --- snapshots ------------------------------------------------------------------------------------


def test_snapshots_that_hold_rows_of_the_keys_prevent_it_and_are_named(loaded: fdb.Database) -> None:
    loaded.snapshot("one")
    loaded.ingest("users", [row("eve")])
    loaded.snapshot("two")
    loaded.ingest("users", [row("zoe")])
    before = entries(loaded, b"")
    with pytest.raises(fdb.InputError, match=r"snapshot 'one', 'two' holds rows of them.*drop_snapshot"):
        loaded.forget({"user": ["ann"]})
    with pytest.raises(fdb.InputError, match=r"snapshot 'two' holds"):
        loaded.forget({"user": ["eve", "zoe"]})
    assert entries(loaded, b"") == before
    loaded.forget({"user": ["zoe"]})
    assert loaded.verify().ok
    for name in ("one", "two"):
        assert loaded.at(name).verify().ok
    loaded.drop_snapshot("one")
    loaded.drop_snapshot("two")
    loaded.forget({"user": ["ann", "eve"]})
    assert rows(loaded, "users") == 1
    assert loaded.verify().ok


@pytest.mark.parametrize("held", ["history", "replaced row", "online", "deleted table"])
def test_whatever_a_snapshot_shows_prevents_it(db: fdb.Database, held: str) -> None:
    define(db)
    db.ingest("users", [row("ann"), row("bob")], to={"history": "offline", "online": "online"}.get(held, "both"))
    if held == "replaced row":
        db.ingest("users", [row("ann", text="later"), *(row("bob", day=day) for day in range(20))], to="offline")
    db.snapshot("held")
    if held == "online":
        db.ingest("users", [row("ann", day=1)], to="online")
    if held == "deleted table":
        db.delete_feature_table("users")
    with pytest.raises(fdb.InputError, match=r"'held' holds rows"):
        db.forget({"user": ["ann"]})
    if held != "deleted table":
        with pytest.raises(fdb.InputError, match=r"'held' holds rows"):
            db.forget({"user": ["ann"]}, tables=["users"])


def test_a_table_that_is_not_meant_does_not_prevent_it_and_keeps_the_key(db: fdb.Database) -> None:
    define(db)
    db.ingest("visits", [row("ann")])
    db.snapshot("held")
    db.delete_feature_table("visits")
    db.ingest("users", [row("ann"), row("bob")])
    assert db.forget({"user": ["ann"]}, tables=["users"]).rows_removed == {"users": 1}
    assert db.info()["feature_tables"]["users"]["entity_keys_in_key_space"] == 2
    assert online(db.at("held"), "visits", user=["ann"]) == ["PRESENT"]
    assert db.verify().ok


def test_a_snapshot_from_before_the_key_keeps_no_trace_of_it(db: fdb.Database) -> None:
    define(db)
    db.ingest("users", [row("bob")])
    db.snapshot("before")
    for day in range(2):
        db.ingest("users", [row("ann", day=day)])
        db.ingest("visits", [row("ann", day=day)])
        db.snapshot(f"none {day}".replace(" ", "_"))
        if day == 0:
            db.drop_snapshot("none_0")
    db.drop_snapshot("none_1")
    assert [key for key, value in entries(db, NS_UNDO) if b"ann" in key and len(value) == CRC_BYTES]
    view = db.at("before")
    frame = {"user": ["ann", "bob"], "event_timestamp": [T0 + 9 * DAY] * 2}
    before = view.get_historical_features(frame, ["users:text"]).to_numpy()["text"].tolist()
    db.forget({"user": ["ann"]})
    assert not [key for key, value in entries(db, b"") if b"ann" in key + value]
    assert view.get_historical_features(frame, ["users:text"]).to_numpy()["text"].tolist() == before
    db.ingest("users", [row("ann", day=7)])
    assert view.get_historical_features(frame, ["users:text"]).to_numpy()["text"].tolist() == before
    assert online(view, "users", user=["ann", "bob"]) == ["NOT_FOUND", "PRESENT"]
    assert db.verify().ok


@pytest.mark.parametrize("tables", [None, ["users"]])
def test_what_was_saved_for_a_table_since_deleted_goes_with_the_key(db: fdb.Database, tables: Any) -> None:
    define(db)
    db.snapshot("before")
    db.ingest("visits", [row("ann")])
    db.delete_feature_table("visits")
    db.ingest("users", [row("ann")])
    assert len({key[7:11] for key, _ in entries(db, NS_UNDO) if b"ann" in key}) == 2, "not of both tables"
    db.forget({"user": ["ann"]}, tables=tables)
    assert not [key for key, value in entries(db, b"") if b"ann" in key + value]
    assert db.verify().ok


@pytest.mark.parametrize("given", [{"user": ["ann"]}, {"item": [1], "user": ["ann"]}])
@pytest.mark.parametrize("then", ["deleted", "switched off"])
def test_a_key_of_which_only_its_absence_was_saved_leaves_no_trace(
    db: fdb.Database, given: dict[str, list[Any]], then: str
) -> None:
    """It was online alone, in a table that is gone, or online neither then nor now."""
    define(db)
    features = [fdb.Feature("text", "string")]
    table = fdb.FeatureTable("taps", ["user", "item"], features)
    without = fdb.FeatureTable("taps", ["user", "item"], features, online=False)
    db.apply(table if then == "deleted" else without)
    db.snapshot("before")
    db.apply(table)
    db.ingest("taps", [row("ann", 1)], to="online")
    if then == "deleted":
        db.delete_feature_table("taps")
    else:
        db.apply(without)
    log = db.log()
    report = db.forget(given, tables=["clicks"])
    assert not [key for key, value in entries(db, b"") if b"ann" in key + value]
    assert (report.keys_found, report.commit_id) == (1, log[-1].id + 1)
    assert len(db.log()) == len(log) + 1
    assert db.verify().ok


# --- dictionaries ---------------------------------------------------------------------------------

MANY = TREE_LOOKUPS_MAX + KEYS_PER_BLOCK


def numbers(dtype: str, first: int, stop: int) -> list[Any]:
    """Keys of a dtype: zero, whose word is that of no key at all, among them."""
    return [f"key {n}" if dtype == "string" else n for n in range(first, stop)]


def many(db: fdb.Database, dtype: str) -> None:
    db.apply([fdb.Entity("k", dtype), fdb.FeatureTable("t", ["k"], [fdb.Feature("x", "int64")])])
    db.ingest("t", {"k": numbers(dtype, 0, MANY), "event_timestamp": [T0] * MANY, "x": range(MANY)})


def joined(db: fdb.Database, dtype: str, first: int, stop: int) -> list[Any]:
    frame = {"k": numbers(dtype, first, stop), "event_timestamp": [T0 + DAY] * (stop - first)}
    return rows_of(db.get_historical_features(frame, ["t:x"]).to_numpy()["x"])


@pytest.mark.parametrize("dtype", ["uint64", "int16", "string"])
def test_a_dictionary_in_memory_follows_a_forget(db: fdb.Database, dtype: str) -> None:
    """A key that came again has a new code: a dictionary that knew the old one would find nothing."""
    many(db, dtype)
    assert joined(db, dtype, 0, MANY) == list(range(MANY))
    gone = [0, 1, 5, KEYS_PER_BLOCK - 1, KEYS_PER_BLOCK, MANY - 1]
    keys = numbers(dtype, 0, MANY)
    assert db.forget({"k": [keys[n] for n in gone]}).keys_found == len(gone)
    assert joined(db, dtype, 0, MANY) == [None if n in gone else n for n in range(MANY)]
    # Of zero the word is that of no key at all.
    back = gone[:2]
    data = {"k": [keys[n] for n in back], "event_timestamp": [T0] * 2, "x": [1000 + n for n in back]}
    assert db.ingest("t", data).rows_ingested == 2
    expected = [1000 + n if n in back else None if n in gone else n for n in range(MANY)]
    assert joined(db, dtype, 0, MANY) == expected
    stored = db.get_historical_features(None, ["t:x"]).to_numpy()
    assert sorted(stored["x"].tolist()) == sorted(value for value in expected if value is not None)
    assert db.verify().ok


def test_a_read_that_began_before_a_forget_still_finds_the_key(tmp_path: Path) -> None:
    with fdb.open(tmp_path / "x.fdb") as db:
        many(db, "int64")
        with db._snapshot() as (txn, registry):
            table = registry.table("t")
            dictionary = db._dictionary(table)
            keys = Heap.of([(n + (1 << 63)).to_bytes(8, "big") for n in range(MANY)])
            assert dictionary.lookup(txn, keys).tolist() == list(range(MANY))
            with python(FORGETS, tmp_path / "x.fdb") as forgetting:
                assert forgetting.wait(60) == 0
            with db._env.read() as later:
                after = dictionary.lookup(later, keys).tolist()
            assert after == [0, 1, 2, MANY, *range(4, MANY)]
            assert dictionary.lookup(txn, keys).tolist() == list(range(MANY))
            assert dictionary.keys(txn, dictionary.lookup(txn, keys)).tolist() == keys.tolist()


FORGETS = """
from datetime import UTC, datetime
with fdb.open(sys.argv[1]) as db:
    db.forget({"k": [3]})
    db.ingest("t", {"k": [3], "event_timestamp": [datetime(2024, 5, 1, tzinfo=UTC)], "x": [333]})
"""


def test_a_forget_in_another_process_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.fdb"
    with fdb.open(path) as db:
        many(db, "int64")
        assert joined(db, "int64", 0, MANY) == list(range(MANY))
        with python(FORGETS, path) as other:
            assert other.wait(60) == 0
        expected = [333 if n == 3 else n for n in range(MANY)]
        assert joined(db, "int64", 0, MANY) == expected
        db.compact()
        assert joined(db, "int64", 0, MANY) == expected
        assert db.ingest("t", {"k": [3], "event_timestamp": [T0], "x": [334]}).duplicates_replaced == 1


def test_an_older_snapshot_view_reads_on_across_a_forget(db: fdb.Database) -> None:
    many(db, "int64")
    db.snapshot("older")
    extra = {"k": [MANY, MANY + 1], "event_timestamp": [T0] * 2, "x": [1, 2]}
    db.ingest("t", extra)
    view = db.at("older")
    for _ in range(2):
        assert joined(view, "int64", 0, MANY + 2) == [*range(MANY), None, None]
        assert joined(db, "int64", 0, MANY + 2) == [*range(MANY), 1, 2]
        db.forget({"k": [MANY]})
        assert joined(view, "int64", 0, MANY + 2) == [*range(MANY), None, None]
        assert joined(db, "int64", 0, MANY + 2) == [*range(MANY), None, 2]
        db.ingest("t", extra)
    assert db.verify().ok
    assert db.at("older").verify().ok


def test_what_is_not_forgotten_stays_as_it_was() -> None:
    """Small segments share pages: what a forget has read of one moves while it writes the next."""
    features = [fdb.Feature("amount", "int64"), fdb.Feature("note", "string")]
    for rows in range(40, 68):
        random = Random(rows)
        with fdb.open(":memory:") as db:
            db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], features)])
            users = list(range(rows))
            amounts = [random.randrange(1000) for _ in users]
            notes = ["n" * random.randrange(60) for _ in users]
            db.ingest("t", {"user": users, "event_timestamp": [T0] * rows, "amount": amounts, "note": notes})
            gone = random.randrange(rows)
            db.forget({"user": [gone]})
            stored = db.get_historical_features(None, ["t:amount", "t:note"]).to_numpy()
            for name, values in (("user", users), ("amount", amounts), ("note", notes)):
                assert stored[name].tolist() == values[:gone] + values[gone + 1 :]
            assert db.verify().ok


# --- bytes ----------------------------------------------------------------------------------------

USER = "q7Zx-marker-user"
ITEM = 0x5A17C0DE5EEDF00D
WORDS = {"text": "w9Kj-marker-text", "low": "p3Vn-marker-low", "blob": b"\xfe\xedb1ob-marker"}


def marked_rows(user: str, item: int, words: dict[str, Any], day: int = 0) -> list[dict[str, Any]]:
    tags = [words["text"] + "-tag"]
    return [
        {"user": user, "item": item, "event_timestamp": T0 + (day + n) * DAY, "tags": tags, **words} for n in (0, 1)
    ]


def marks() -> list[bytes]:
    """What must be found before, and nowhere after: as text, as a number in keys and in values, in any column."""
    return [
        USER.encode(),
        (ITEM ^ (1 << 63)).to_bytes(8, "big"),
        WORDS["text"].encode(),
        WORDS["low"].encode(),
        WORDS["blob"],
        (WORDS["text"] + "-tag").encode(),
    ]


def everything_of(path: Path) -> bytes:
    """Every byte of every file in the folder."""
    return b"".join(one.read_bytes() for one in sorted(path.parent.iterdir()) if one.is_file())


@pytest.mark.parametrize("replaced", [False, True])
def test_no_byte_is_left_after_compact(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "x.fdb"
    features = [
        fdb.Feature("text", "string"),
        fdb.Feature("low", "string"),
        fdb.Feature("blob", "bytes"),
        fdb.Feature("tags", "list[string]"),
    ]
    with fdb.open(path) as db:
        db.apply([fdb.Entity("user", "string"), fdb.Entity("item", "int64")])
        for name, entities in {"users": ["user"], "items": ["item"], "both": ["user", "item"]}.items():
            db.apply(fdb.FeatureTable(name, entities, features))
            for first in range(0, 900, 300):
                others = [
                    one
                    for n in range(first, first + 300)
                    for one in marked_rows(f"user {n}", n, {"text": f"text {n}", "low": "low", "blob": b"b%d" % n})
                ]
                db.ingest(name, [*others, *marked_rows(USER, ITEM, WORDS, day=first)])
            if replaced:
                same = {"text": "other", "low": "low", "blob": b""}
                db.ingest(name, [one for day in (0, 300, 600) for one in marked_rows(USER, ITEM, same, day=day)])
        raw = everything_of(path)
        assert all(mark in raw for mark in marks())
        db.forget({"user": [USER]})
        db.forget({"item": [ITEM]})
        live = b"".join(key + value for key, value in entries(db, b""))
        assert not [mark for mark in marks() if mark in live]
        backup = tmp_path / "backups"
        backup.mkdir()
        db.backup(backup / "copy.fdb")
        assert not [mark for mark in marks() if mark in everything_of(backup / "copy.fdb")]
        before = path.stat().st_size
        db.compact()
        assert path.stat().st_size < before
        raw = everything_of(path)
        assert not [mark for mark in marks() if mark in raw]
        assert b"text 899" in raw
        assert db.verify().ok
        # Nor does what this process still had in memory reach the file later.
        db.ingest("users", marked_rows("user 1", 1, {"text": "new", "low": "low", "blob": b""}, day=50))
        assert not [mark for mark in marks() if mark in everything_of(path)]
    assert not [mark for mark in marks() if mark in everything_of(path)]
