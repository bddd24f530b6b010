"""The facade: arguments, life of a database, what a failing or interrupted call leaves behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import featuredb as fdb
from featuredb.offline import merge as merging

DAY = "2024-01-01"


def table(feature: str = "float64", key: str = "string", **options: Any) -> list[Any]:
    return [fdb.Entity("k", key), fdb.FeatureTable("t", ["k"], [fdb.Feature("v", feature)], **options)]


def new(**options: Any) -> fdb.Database:
    db = fdb.open(":memory:")
    db.apply(table(**options))
    return db


def row(value: Any = 1.0, key: Any = "a", day: str = DAY) -> dict[str, list[Any]]:
    return {"k": [key], "event_timestamp": [day], "v": [value]}


# --- sources --------------------------------------------------------------------------------------
def test_a_source_given_as_data_names_its_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    times = {"event_timestamp": [pd.Timestamp("2024-01-01")], "ts": [pd.Timestamp("2024-01-05")]}
    pd.DataFrame({"k": ["a"], "v": [1.0], "other": [2.0], **times}).to_parquet(path)
    db = new()
    db.ingest("t", fdb.FileSource(path, event_timestamp_column="ts", field_mapping={"other": "v"}))
    online = db.get_online_features("t:v", [{"k": "a"}])
    assert online.to_dict()["v"] == [2.0]
    assert online.event_timestamps["t"].tolist() == [pd.Timestamp("2024-01-05").to_pydatetime()]


def test_no_rows_and_no_columns_are_nothing_to_load() -> None:
    db = new()
    report = db.ingest("t", [])
    assert (report.rows_read, report.commit_id) == (0, 1)
    assert [commit.operation for commit in db.log()] == ["apply"]


# --- arguments ------------------------------------------------------------------------------------
BAD_CALLS: dict[str, Callable[[fdb.Database], object]] = {
    "features None": lambda db: db.get_historical_features(row(), None),
    "features number": lambda db: db.online_reader(5),
    "features nested": lambda db: db.get_online_features([["t:v"]], [{"k": "a"}]),
    "features None online": lambda db: db.get_online_features(None, [{"k": "a"}]),
    "apply None": lambda db: db.apply(None),
    "apply a class": lambda db: db.apply(fdb.Entity),
    "plan None": lambda db: db.plan(None),
    "materialize a number": lambda db: db.materialize(3),
    "backup None": lambda db: db.backup(None),
    "open None": lambda db: fdb.open(None),
    "open bytes": lambda db: fdb.open(b"x.fdb"),
    "timeout text": lambda db: fdb.open(":memory:", timeout="5"),
    "timeout NaN": lambda db: fdb.open(":memory:", timeout=float("nan")),
    "durability": lambda db: fdb.open(":memory:", durability="none"),
    "no features": lambda db: fdb.FeatureTable("c", None, None),
    "max age of nanoseconds": lambda db: fdb.FeatureTable(
        "c", ["k"], [fdb.Feature("v", "int8")], max_age=pd.Timedelta(nanoseconds=1500)
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_an_argument_of_the_wrong_type_is_one_error_of_ours(name: str) -> None:
    db = new()
    with pytest.raises(fdb.FeatureDBError) as error:
        BAD_CALLS[name](db)
    assert len(str(error.value)) > 20
    assert len(db.log()) == 1


def test_features_may_come_from_a_generator() -> None:
    db = new()
    db.ingest("t", row())
    found = db.get_historical_features({"k": ["a"], "event_timestamp": [DAY]}, (name for name in ["t:v"]))
    assert found.to_numpy()["v"].tolist() == [1.0]
    assert db.get_online_features((name for name in ["t:v"]), [{"k": "a"}]).to_dict()["v"] == [1.0]


def test_a_column_of_a_wrong_type_is_one_problem() -> None:
    with pytest.raises(fdb.InputError) as error:
        new().ingest("t", {"k": ["a", "b"], "event_timestamp": [1, 2], "v": [1.0, 2.0]})
    assert [problem.column for problem in error.value.problems] == ["event_timestamp"]


def test_a_key_in_the_index_is_told_to_be_reset() -> None:
    frame = pd.DataFrame(row()).set_index("k")
    with pytest.raises(fdb.InputError, match=r"reset_index"):
        new().ingest("t", frame)
    with pytest.raises(fdb.InputError, match=r"reset_index"):
        new().get_historical_features(frame.drop(columns="v"), ["t:v"])


def test_a_training_set_notices_that_its_table_has_other_entities_now() -> None:
    db = new()
    training = db.get_historical_features({"k": ["a"], "event_timestamp": [DAY]}, ["t:v"])
    db.delete_feature_table("t")
    db.apply([fdb.Entity("j", "int64"), fdb.FeatureTable("t", ["j"], [fdb.Feature("v", "string")])])
    with pytest.raises(fdb.InputError, match="'j'"):
        training.to_numpy()


# --- life -----------------------------------------------------------------------------------------
def test_databases_in_memory_need_not_be_closed() -> None:
    kept = [fdb.open(":memory:") for _ in range(200)]
    folders = [os.path.dirname(db.path) for db in kept]
    assert all(map(os.path.isdir, folders))
    del kept
    gc.collect()
    assert not any(map(os.path.exists, folders))


def test_a_forked_child_leaves_its_parents_database_alone() -> None:
    db = new()
    db.ingest("t", row())
    child = os.fork()
    if child == 0:
        db.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.path.exists(db.path)
    db.ingest("t", row(2.0, day="2024-01-02"))
    assert db.get_online_features("t:v", [{"k": "a"}]).to_dict()["v"] == [2.0]


def test_a_reader_and_a_training_set_keep_their_database_open() -> None:
    db = new()
    db.ingest("t", row())
    reader = db.online_reader("t:v")
    training = db.get_historical_features({"k": ["a"], "event_timestamp": [DAY]}, ["t:v"])
    del db
    gc.collect()
    assert reader.get("a") == {"v": 1.0}
    assert training.to_numpy()["v"].tolist() == [1.0]


# --- merging --------------------------------------------------------------------------------------
@pytest.mark.usefixtures("a_segment_each")
def test_a_merge_that_fails_does_not_deny_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    db = new()
    for day in range(1, 4):
        db.ingest("t", row(float(day), day=f"2024-01-0{day}"))

    def full(*_: object) -> None:
        raise fdb.FileError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(merging, "_merge_round", full)
        report = db.ingest("t", row(4.0, day="2024-01-04"))
    assert (report.rows_ingested, report.commit_id) == (1, db.log()[-1].id)
    assert db.info()["feature_tables"]["t"]["segments"] == 4
    db.ingest("t", row(5.0, day="2024-01-05"))
    assert db.info()["feature_tables"]["t"]["segments"] == 1
    assert db.verify().ok


def test_compact_drops_the_values_of_removed_features() -> None:
    db = fdb.open(":memory:")
    both = [fdb.Feature("v", "float64"), fdb.Feature("w", "float64")]
    db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], both)])
    rows = 2000
    times = np.full(rows, np.datetime64("2024-01-01", "us"))
    values = np.random.default_rng(0).random((2, rows))
    db.ingest("t", {"k": np.arange(rows), "event_timestamp": times, "v": values[0], "w": values[1]})
    db.apply(fdb.FeatureTable("t", ["k"], both[:1], max_age=timedelta(days=1)))
    before = db.info()["feature_tables"]["t"]["bytes"]
    db.compact()
    assert before - db.info()["feature_tables"]["t"]["bytes"] >= 8 * rows
    assert db.verify().ok


# --- known_at -------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [63, 64, 65, 4095, 4096, 4097, 20_000])
def test_known_at_steps_over_long_runs_of_rows_not_yet_known(rows: int) -> None:
    rng = np.random.default_rng(rows)
    start = np.datetime64("2024-01-01", "us")
    event = start + np.arange(rows) * np.timedelta64(1, "s")
    # Most of the history was filled in late: few rows are known early.
    known = rng.random(rows) < 3 / rows
    created = np.where(known, event, start + np.timedelta64(365, "D"))
    db = new(key="int64")
    db.ingest("t", {"k": np.ones(rows, int), "event_timestamp": event, "created_timestamp": created,
                    "v": np.arange(rows) * 1.0})  # fmt: skip
    asked = rng.integers(0, rows, 300)
    left = {"k": np.ones(300, int), "event_timestamp": event[asked]}
    found = db.get_historical_features(left, ["t:v"], known_at=start + np.timedelta64(30, "D"))
    last = np.maximum.accumulate(np.where(known, np.arange(rows), -1))[asked]
    expected = [None if place < 0 else float(place) for place in last]
    assert found.to_numpy()["v"].tolist() == expected


def test_rows_replaced_in_long_runs_are_stepped_over() -> None:
    rows = 10_000
    event = np.datetime64("2024-01-01", "us") + np.arange(rows) * np.timedelta64(1, "s")
    db = new(key="int64")
    data = {"k": np.ones(rows, int), "event_timestamp": event, "v": np.arange(rows) * 1.0}
    db.ingest("t", data)
    late = {name: values[rows - 2000 :] for name, values in data.items()}
    db.ingest("t", late | {"v": -late["v"]})
    assert db.info()["feature_tables"]["t"]["replaced_rows"] == 2000
    left = {"k": np.ones(rows, int), "event_timestamp": event}
    found = db.get_historical_features(left, ["t:v"]).to_numpy()["v"]
    assert np.array_equal(found, np.where(np.arange(rows) < rows - 2000, data["v"], -data["v"]))


@pytest.mark.parametrize("place", [0, 62, 63, 64, 127, 128, 4094, 4095, 4096, 8191, 8192])
def test_the_one_row_known_by_then_is_found_wherever_it_is(place: int) -> None:
    rows = 9000
    start = np.datetime64("2024-01-01", "us")
    event = start + np.arange(rows) * np.timedelta64(1, "s")
    created = np.full(rows, start + np.timedelta64(365, "D"))
    created[place] = event[place]
    db = new(key="int64")
    columns = {"k": np.ones(rows, int), "event_timestamp": event, "created_timestamp": created}
    db.ingest("t", columns | {"v": np.arange(rows) * 1.0})
    asked = np.arange(place, rows, 7)
    left = {"k": np.ones(len(asked), int), "event_timestamp": event[asked]}
    found = db.get_historical_features(left, ["t:v"], known_at=start + np.timedelta64(30, "D")).to_numpy()["v"]
    assert found.tolist() == [float(place)] * len(asked)


@pytest.mark.usefixtures("a_segment_each")
def test_a_replaced_row_is_known_from_the_commit_that_replaced_it() -> None:
    db = new()
    # Enough rows that the segment with the replaced one is not merged away at once.
    keys = list("abcdefghij")
    db.ingest("t", {"k": keys, "event_timestamp": [DAY] * 10, "v": [1.0] * 10})
    between = db.log()[-1].time
    db.ingest("t", row(2.0))
    assert db.info()["feature_tables"]["t"]["replaced_rows"] == 1
    left = {"k": ["a", "b"], "event_timestamp": [DAY] * 2}
    assert db.get_historical_features(left, ["t:v"], known_at=between).to_numpy()["v"].tolist() == [None, 1.0]
    now = db.log()[-1].time
    assert db.get_historical_features(left, ["t:v"], known_at=now).to_numpy()["v"].tolist() == [2.0, 1.0]
