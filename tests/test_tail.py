"""Small ingests: their rows are kept in the tail of a table, and read with its segments."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from strategies import Case, cases, set_tails

import featuredb as fdb
from featuredb import limits
from featuredb.offline.append import Appender
from featuredb.storage.manifest import read_manifest
from featuredb.storage.moving import mark
from featuredb.storage.tail import read_tail

T0 = datetime(2013, 1, 1, tzinfo=UTC)


class NoOffset(tzinfo):
    """A time zone that does not know its offset, so that datetimes with it are as naive ones."""

    def utcoffset(self, _: datetime | None) -> None:
        return None


def define(db: fdb.Database, **options: Any) -> None:
    features = [fdb.Feature("n", "int64"), fdb.Feature("text", "string")]
    db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], features, **options)])


def rows(*numbers: int, first: int = 0) -> list[dict[str, Any]]:
    """A row for each user, a second apart."""
    return [
        {"user": user, "event_timestamp": T0 + timedelta(seconds=second), "n": second, "text": f"at {second}"}
        for second, user in enumerate(numbers, start=first)
    ]


def shape(db: fdb.Database, table: str = "t") -> tuple[int, int]:
    """Segments, and rows in the tail."""
    facts = db.info()["feature_tables"][table]
    return facts["segments"], facts["rows_in_tail"]


def history(db: fdb.Database, table: str = "t", **options: Any) -> list[dict[str, Any]]:
    features = [f"{table}:{one.name}" for one in db.get_feature_table(table).features]
    found: list[dict[str, Any]] = db.get_historical_features(None, features, **options).to_arrow().to_pylist()
    return found


def stored(db: fdb.Database) -> dict[bytes, bytes]:
    """Every entry but those that name the file or the time."""
    with db._env.read() as txn:
        entries = {bytes(key): bytes(value) for key, value in txn.scan(b"")}
    return {key: value for key, value in entries.items() if key[:1] not in (limits.NS_FORMAT, limits.NS_COMMIT)}


def test_small_ingests_make_no_segment_and_are_seen_at_once(db: fdb.Database) -> None:
    define(db)
    for second in range(20):
        db.ingest("t", rows(second % 3, first=second))
        db.ingest("t", {name: [value] for name, value in rows(7, first=second)[0].items()})
        assert shape(db) == (0, 2 * second + 2)
        assert len(history(db)) == 2 * second + 2
        asked = {"user": [second % 3, 7], "event_timestamp": [T0 + timedelta(seconds=second)] * 2}
        found = db.get_historical_features(asked, ["t:n"]).to_arrow().to_pydict()["n"]
        assert found == [second, second]
        assert db.get_online_features(["t:n"], {"user": [second % 3, 7]}).to_dict()["n"] == [second, second]
    db.ingest("t", {name: [row[name] for row in rows(*range(300))] for name in rows(0)[0]})
    # Four of them are there already.
    assert shape(db) == (0, 336)
    assert db.verify().ok


def test_a_long_tail_becomes_a_segment(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    set_tails(monkeypatch, 100, 10)
    define(db)
    shapes = []
    for second in range(21):
        db.ingest("t", rows(1, first=second))
        shapes.append(shape(db))
    assert shapes[8:10] == [(0, 9), (1, 0)]
    assert shapes[-1] == (2, 1)
    assert [row["n"] for row in history(db)] == list(range(21))
    assert [commit.rows for commit in db.log() if commit.operation == "ingest"] == [1] * 21
    assert db.verify().ok


def test_a_tail_of_many_bytes_becomes_a_segment(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.storage.tail.TAIL_BYTES_MAX", 5000)
    define(db)
    for second in range(5):
        db.ingest("t", [rows(1, first=second)[0] | {"text": "x" * 2000}])
    assert shape(db) == (1, 2)
    assert len(history(db)) == 5


def test_few_rows_of_many_bytes_make_a_segment(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long value may stand in many rows."""
    monkeypatch.setattr("featuredb.offline.ingest.SMALL_INGEST_BYTES_MAX", 5000)
    define(db)
    many = {"user": list(range(9)), "event_timestamp": [T0] * 9, "n": [1] * 9, "text": ["x" * 1000] * 9}
    db.ingest("t", many)
    assert shape(db) == (1, 0)
    db.ingest("t", {name: values[:3] for name, values in many.items()} | {"n": [2] * 3})
    assert shape(db) == (1, 3)


def test_a_longer_ingest_makes_a_segment_of_the_tail_first(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    set_tails(monkeypatch, 3, 100)
    define(db)
    db.ingest("t", rows(1, 2))
    report = db.ingest("t", rows(1, 2, 3, 4))  # the first two once more
    assert (report.rows_unchanged, report.rows_ingested) == (2, 2)
    assert shape(db) == (2, 0)
    late = rows(1, 2, 3, 4)
    late[0]["n"] = -1
    assert db.ingest("t", late).duplicates_replaced == 1
    assert [row["n"] for row in history(db)] == [-1, 1, 2, 3]
    assert db.verify().ok


def test_a_replaced_row_of_the_tail_is_overwritten(db: fdb.Database) -> None:
    define(db)
    db.ingest("t", rows(1, 2))
    again = rows(1, 2)
    again[0]["n"] = 5
    report = db.ingest("t", again)
    assert (report.duplicates_replaced, report.rows_unchanged, report.online_keys_updated) == (1, 1, 1)
    assert shape(db) == (0, 2)
    commits = db.log()
    assert not db.ingest("t", again).committed
    assert db.log() == commits
    assert [row["n"] for row in history(db)] == [5, 1]
    assert db.verify().ok


def test_a_row_of_a_segment_is_replaced_by_one_in_the_tail_and_back(
    db: fdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tails(monkeypatch, 0, 1)
    define(db)
    db.ingest("t", rows(1, 2))
    set_tails(monkeypatch, 10, 10)
    other = rows(1)
    other[0]["n"] = 9
    db.ingest("t", other)
    assert shape(db) == (1, 1)
    assert [row["n"] for row in history(db)] == [9, 1]
    assert db.ingest("t", rows(1)).duplicates_replaced == 1
    assert [row["n"] for row in history(db)] == [0, 1]
    db.compact()
    assert shape(db) == (1, 0)
    assert [row["n"] for row in history(db)] == [0, 1]
    assert db.verify().ok


def test_a_snapshot_holds_the_tail_and_not_what_comes_after(db: fdb.Database) -> None:
    define(db)
    db.ingest("t", rows(1, 2))
    before = history(db)
    db.snapshot("before")
    assert shape(db) == (1, 0)
    db.ingest("t", rows(1, first=5))
    assert history(db.at("before")) == before
    assert len(history(db)) == 3
    assert shape(db.at("before")) == (1, 0)


def test_rows_of_older_layouts_are_read_with_the_features_of_now(db: fdb.Database) -> None:
    define(db)
    db.ingest("t", rows(1))
    features = [fdb.Feature("more", "list[string]"), fdb.Feature("n", "int64")]
    db.apply(fdb.FeatureTable("t", ["user"], features))
    db.ingest("t", [{"user": 1, "event_timestamp": T0 + timedelta(seconds=1), "n": 1, "more": ["a", ""]}])
    assert [(row["n"], row["more"]) for row in history(db)] == [(0, None), (1, ["a", ""])]
    assert shape(db) == (0, 2)
    db.compact()
    assert [(row["n"], row["more"]) for row in history(db)] == [(0, None), (1, ["a", ""])]
    assert db.verify().ok


def test_a_deleted_table_leaves_no_tail(db: fdb.Database) -> None:
    define(db)
    db.ingest("t", rows(1))
    db.delete_feature_table("t")
    with db._env.read() as txn:
        assert not list(txn.scan(limits.NS_TAIL))
    assert db.verify().ok


def test_a_table_that_is_not_online_has_a_tail_too(db: fdb.Database) -> None:
    define(db, online=False)
    db.ingest("t", rows(1, 2))
    assert shape(db) == (0, 2)
    assert [row["n"] for row in history(db)] == [0, 1]


def test_readers_of_one_file_see_each_others_tails(tmp_path: Path) -> None:
    with fdb.open(tmp_path / "x.fdb") as writer, fdb.open(tmp_path / "x.fdb", read_only=True) as reader:
        define(writer)
        for second in range(5):
            writer.ingest("t", rows(1, first=second))
            assert [row["n"] for row in history(reader)] == list(range(second + 1))


def test_a_damaged_tail_is_refused(db: fdb.Database) -> None:
    define(db)
    db.ingest("t", rows(1, 2))
    with db._env.read() as txn:
        number = next(iter(db._registry(txn).tables.values())).id
        entries = [(bytes(key), bytes(raw)) for key, raw in txn.scan(limits.NS_TAIL) if len(key) > 5]
    (key, raw), (other, _) = entries
    assert int.from_bytes(key[1:5], "big") == number
    flipped = raw[:-1] + bytes([raw[-1] ^ 1])
    moved = key[:5] + b"\0\0\0\7" + key[9:]
    for gone, put in ((key, (key, flipped)), (key, (moved, raw)), (other, None), (other, (other, raw))):
        with db._env.writer():

            def damage(txn: Any, gone: bytes = gone, put: Any = put) -> None:
                for name, value in entries:
                    txn.put(name, value)
                txn.delete(moved)
                txn.delete(gone)
                if put is not None:
                    txn.put(*put)

            db._env.write(damage)
        db._cache.tails.clear()
        with pytest.raises(fdb.CorruptionError, match="tail"):
            history(db)
        report = db.verify()
        assert not report.ok
        assert {(one.table, one.column) for one in report.problems} == {("t", "tail")}


def test_a_damaged_tail_is_not_taken_for_one_without_the_key(db: fdb.Database) -> None:
    define(db)
    db.ingest("t", rows(1, 2))
    with db._env.read() as txn:
        key, raw = next((bytes(key), bytes(raw)) for key, raw in txn.scan(limits.NS_TAIL) if len(key) > 5)

    def move(txn: Any) -> None:
        txn.delete(key)
        # To the key of the other user's.
        txn.put(key[:8] + b"\1" + key[9:], raw)

    with db._env.writer():
        db._env.write(move, durable=False)
    before = stored(db)
    with pytest.raises(fdb.CorruptionError, match=r"tail of .* damaged.*backup"):
        db.forget({"user": [1]})
    assert stored(db) == before


@pytest.mark.parametrize("as_columns", [False, True])
def test_after_a_damaged_block_of_keys_no_code_is_given_again(db: fdb.Database, as_columns: bool) -> None:
    define(db)
    db.ingest("t", rows(1, 2))
    with db._env.read() as txn:
        [(key, raw)] = [(bytes(key), bytes(raw)) for key, raw in txn.scan(limits.NS_CODE_BLOCK)]
    assert raw[4] == 2  # of two keys none is left
    with db._env.writer():
        db._env.write(lambda txn: txn.put(key, raw[:4] + b"\0" + raw[5:]), durable=False)
    before = stored(db)
    [row] = rows(3)
    with pytest.raises(fdb.CorruptionError, match=r"block 0 of key space .* is damaged.*backup"):
        db.ingest("t", {name: [value] for name, value in row.items()} if as_columns else [row])
    assert stored(db) == before


# --- rows appended without arrays ---------------------------------------------------------------


def both_ways(db: fdb.Database, other: fdb.Database, given: list[Any], patch: pytest.MonkeyPatch) -> None:
    """Ingest as it is, and into another database by the general path."""
    for name, data in given:
        report = db.ingest(name, data)
        with patch.context() as inner:
            inner.setattr("featuredb.offline.append.APPENDED_ROWS_MAX", 0)
            general = other.ingest(name, data)
        assert {**vars_of(report), "seconds": 0} == {**vars_of(general), "seconds": 0}
        assert stored(db) == stored(other)


def vars_of(report: Any) -> dict[str, Any]:
    return {name: getattr(report, name) for name in report.__slots__}


@given(case=cases(tables_max=2, wide=True), cut=st.integers(1, 3))
def test_appending_commits_the_bytes_of_the_general_path(case: Case, cut: int) -> None:
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db, fdb.open(":memory:") as other:
        for one in (db, other):
            one.apply(case.definitions)
        for table in case.tables:
            for batch in table.batches:
                batch.kind = "rows"
                listed = table.data(batch, case.entities) if batch.rows else []
                parts = [listed[start : start + cut] for start in range(0, len(listed), cut)]
                both_ways(db, other, [(table.name, part) for part in parts], patch)


PLAIN: dict[str, list[Any]] = {
    "bool": [True, np.True_, 1, None],
    "int8": [-128, 128, 1.0, True, "1", np.int8(3), None],
    "uint64": [2**64 - 1, -1, 2**64, None],
    "float32": [0.1, 1, 2**24 + 1, 1e300, float("nan"), -0.0, "x", np.float32(0.1), True, None],
    "float64": [0.1, 1, 2**53 + 1, float("inf"), 10**400, None],
    "string": ["é", "", "\ud800", b"x", 1, "x" * 9, None],
    "bytes": [b"", b"\0", "x", bytearray(b"y"), "x" * 9, None],
    "timestamp": [
        *(T0, T0.replace(tzinfo=None), datetime.min, "2013-01-01", 5, np.datetime64("2013"), None),
        *(pd.Timestamp(np.datetime64("20000-01-01", "s")), datetime(2013, 1, 1, tzinfo=NoOffset())),
        *(pd.Timestamp(T0), pd.Timestamp(T0).tz_convert("Asia/Tokyo"), pd.Timestamp(5), pd.Timestamp(5000), pd.NaT),
    ],
    "list[int8]": [[1, 2], [], [300], (1,), np.arange(2, dtype=np.int8), None],
    "float32[2]": [[1.0, 2.0], np.ones(2, np.float32), np.ones(3, np.float32), np.ones(2), None],
    "timestamp[1]": [[T0], np.array([5], "M8[us]"), np.array([5]), None],
}


def outcome(db: fdb.Database, data: list[Any], monkeypatch: pytest.MonkeyPatch, *, short: bool) -> str:
    """Rows ingested, or the error; by appending where that will do, or not."""
    monkeypatch.setattr("featuredb.offline.append.APPENDED_ROWS_MAX", 64 if short else 0)
    try:
        return str(db.ingest("t", data).rows_ingested)
    except fdb.FeatureDBError as error:
        return repr(error)


@pytest.mark.parametrize("dtype", PLAIN)
def test_every_value_is_taken_or_refused_as_by_the_general_path(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fdb.open(":memory:") as db, fdb.open(":memory:") as other:
        for one in (db, other):
            one.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("x", dtype)])])
        for second, value in enumerate(PLAIN[dtype]):
            data = [{"k": 1, "event_timestamp": T0 + timedelta(seconds=second), "x": value}]
            outcomes = [outcome(one, data, monkeypatch, short=one is db) for one in (other, db)]
            assert outcomes[0] == outcomes[1], value
            assert stored(db) == stored(other), value


def test_timestamps_are_taken_or_refused_as_by_the_general_path(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [*PLAIN["timestamp"], datetime.max, np.datetime64("2014", "us"), np.datetime64("NaT", "us")]
    with fdb.open(":memory:") as db, fdb.open(":memory:") as other:
        for one in (db, other):
            one.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("x", "int8")])])
        for name in ("event_timestamp", "created_timestamp"):
            for number, moment in enumerate(moments):
                data = [{"k": number, "event_timestamp": T0, "created_timestamp": T0, "x": number, name: moment}]
                outcomes = [outcome(one, data, monkeypatch, short=one is db) for one in (other, db)]
                assert outcomes[0] == outcomes[1], moment
                assert stored(db) == stored(other), moment


@pytest.mark.parametrize("dtype", ["int64", "string", "bytes", "bool", "timestamp"])
def test_every_key_is_taken_or_refused_as_by_the_general_path(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [1, True, np.True_, 7.0, "7", "k", b"k", "x" * 500, None, T0, T0.replace(tzinfo=None), "2013-01-01", 2**63]
    with fdb.open(":memory:") as db, fdb.open(":memory:") as other:
        for one in (db, other):
            one.apply([fdb.Entity("k", dtype), fdb.FeatureTable("t", ["k"], [fdb.Feature("x", "int8")])])
        for second, key in enumerate(keys):
            data = [{"k": key, "event_timestamp": T0 + timedelta(seconds=second), "x": 1}]
            outcomes = [outcome(one, data, monkeypatch, short=one is db) for one in (other, db)]
            assert outcomes[0] == outcomes[1], key
            assert stored(db) == stored(other), key


def appended(db: fdb.Database, data: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> bool:
    """Whether an ingest took the short way to its end."""
    done = []
    short = Appender._append
    with monkeypatch.context() as patch:

        def spy(self: Any, txn: Any, given: Any) -> Any:
            found = short(self, txn, given)
            done.append(True)
            return found

        patch.setattr(Appender, "_append", spy)
        db.ingest("t", data, **options)
    return bool(done)


def test_only_rows_that_are_the_newest_of_their_keys_are_appended(
    db: fdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(db)
    assert appended(db, rows(1, 2), monkeypatch)
    assert appended(db, rows(1, 3, first=2), monkeypatch)
    assert not appended(db, rows(1, first=2), monkeypatch)  # the same once more
    assert not appended(db, rows(1, first=1), monkeypatch)  # late
    assert not appended(db, [*rows(1, first=9), *rows(1, first=8)], monkeypatch)
    assert not appended(db, rows(1, first=20), monkeypatch, to="offline")
    assert not appended(db, rows(1, first=21), monkeypatch)  # the one before is not online yet
    db.materialize(["t"], incremental=True)
    assert appended(db, rows(1, first=22), monkeypatch)
    assert not appended(db, rows(1, first=23), monkeypatch, start=T0)
    assert not appended(db, rows(1, first=24), monkeypatch, partial=True)
    assert not appended(db, rows(*[1] * 65, first=30), monkeypatch)
    assert [row["n"] for row in history(db) if row["user"] == 1] == [0, 1, 2, 8, 9, 20, 21, 22, 23, 24, *range(30, 95)]
    assert db.verify().ok


def test_definitions_that_change_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fdb.open(tmp_path / "x.fdb") as db, fdb.open(tmp_path / "x.fdb") as other:
        define(db)
        db.ingest("t", rows(1))
        other.apply(fdb.FeatureTable("t", ["user"], [fdb.Feature("n", "int64"), fdb.Feature("k", "int8")]))
        with pytest.raises(fdb.InputError, match="k"):
            db.ingest("t", rows(1, first=1))
        data = [rows(1, first=1)[0] | {"k": 3}]
        assert appended(db, data, monkeypatch)
        assert [(row["n"], row["k"]) for row in history(other)] == [(0, None), (1, 3)]


@pytest.mark.parametrize("name", [5, None, ("a",)])
def test_a_column_name_that_is_no_text_is_refused(db: fdb.Database, name: Any) -> None:
    define(db)
    with pytest.raises(fdb.InputError, match="column name"):
        db.ingest("t", [rows(1)[0] | {name: 1}])


def test_rows_of_many_bytes_are_not_appended(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    define(db)
    monkeypatch.setattr("featuredb.offline.append.SMALL_INGEST_BYTES_MAX", 5000)
    assert not appended(db, [rows(1)[0] | {"text": "x" * 5000}], monkeypatch)
    assert appended(db, [rows(1, first=1)[0] | {"text": "x" * 4000}], monkeypatch)


def test_scalars_of_numpy_are_appended(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    define(db)
    row = {"user": np.int64(1), "event_timestamp": np.datetime64("2013-01-01", "us"), "n": np.int64(-3), "text": "a"}
    assert appended(db, [row], monkeypatch)
    assert [row["n"] for row in history(db)] == [-3]


def test_snapshots_and_forgetting_leave_few_segments(db: fdb.Database) -> None:
    define(db)
    for second in range(60):
        db.ingest("t", rows(second % 3, 7, first=second))
        db.snapshot(f"s{second}")
        db.drop_snapshot(f"s{second}")
        db.forget({"user": [7]})
    assert shape(db)[0] <= 6
    assert [row["n"] for row in history(db)] == sorted(range(60), key=lambda second: (second % 3, second))
    assert db.verify().ok


def test_forgetting_a_key_without_rows_changes_nothing(db: fdb.Database) -> None:
    define(db)
    db.ingest("t", rows(1, 2))
    before, commits = stored(db), db.log()
    assert db.forget({"user": [77]}).keys_found == 0
    assert (stored(db), db.log()) == (before, commits)
    assert db.forget({"user": [2]}).rows_removed == {"t": 1}
    assert shape(db) == (1, 0)


def test_a_mark_that_a_killed_compact_left_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fdb.open(tmp_path / "x.fdb") as db:
        define(db)
        with db._env.writer():
            db._env.write(mark)
    with fdb.open(tmp_path / "x.fdb") as db:
        assert not appended(db, rows(1), monkeypatch)
        assert appended(db, rows(1, first=1), monkeypatch)


def test_of_deleted_tables_nothing_is_kept_in_memory(db: fdb.Database) -> None:
    for _ in range(3):
        define(db)
        db.ingest("t", rows(1))
        assert len(history(db)) == 1
        assert db._cache.tails
        db.delete_feature_table("t")
    assert not db._cache.tails
    assert len(db._appenders) == 1


def test_a_merge_that_fails_does_not_deny_what_was_appended(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    set_tails(monkeypatch, 10, 2)
    define(db)

    def fail(*_: Any, **__: Any) -> None:
        raise fdb.FileError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("featuredb.offline.merge.flush_tail", fail)
        for second in range(3):
            assert db.ingest("t", rows(1, first=second)).committed
        assert shape(db) == (0, 3)
    db.ingest("t", rows(1, first=3))
    assert shape(db) == (1, 0)


def test_appending_loads_no_compiler(tmp_path: Path) -> None:
    code = f"""
import sys
from datetime import UTC, datetime
import featuredb as fdb
with fdb.open({str(tmp_path / "x.fdb")!r}) as db:
    db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("x", "float64")])])
    for second in range(10):
        db.ingest("t", [{{"k": 1, "event_timestamp": datetime(2013, 1, 1, 0, 0, second), "x": 0.5}}])
assert not {{"numba", "pandas", "pyarrow"}} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_manifest_and_tail_are_in_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is in the tail or in a segment, in every transaction."""
    set_tails(monkeypatch, 10, 4)
    counts = []
    with fdb.open(tmp_path / "x.fdb") as db, fdb.open(tmp_path / "x.fdb", read_only=True) as reader:
        define(db)
        for second in range(40):
            db.ingest("t", rows(1, first=second))
            with reader._snapshot() as (txn, registry):
                number = registry.table("t").id
                counts.append(read_manifest(txn, number).rows + read_tail(txn, number).rows)
    assert counts == list(range(1, 41))
