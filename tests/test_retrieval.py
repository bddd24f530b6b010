"""Retrieval without an entity dataframe: every stored row of a time range, or the latest of each key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from strategies import YEAR_1_US, YEAR_9999_US, Case, TableCase, cases, plain, small_batches, tiny_limits, to_datetime
from strategies import to_us as us_of

import featuredb as fdb

pytestmark = pytest.mark.usefixtures("both_histories")

T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
Expected = dict[str, list[Any]]


def alike(case: Case) -> list[TableCase]:
    """Tables of the case that have the entities of the first."""
    return [table for table in case.tables if table.entities == case.tables[0].entities]


def references(tables: list[TableCase]) -> list[str]:
    return [f"{table.name}:{feature}" for table in tables for feature in table.features]


def expected_rows(
    chosen: list[TableCase], tables: dict[str, oracle.Table], span: tuple[int | None, int | None], known: int | None
) -> Expected:
    """What the definition says: rows of one table as they are; of several, each key and time joined."""
    stored = [row for table in chosen for row in tables[table.name].stored(*span, known)]
    if len(chosen) == 1:
        joined = [(row.key, row.event, [row]) for row in stored]
    else:
        moments = sorted({(row.key, row.event) for row in stored})
        joined = [(key, at, [tables[t.name].join(key, at, known) for t in chosen]) for key, at in moments]
    return columns_of(chosen, tables, joined)


def expected_latest(
    chosen: list[TableCase], tables: dict[str, oracle.Table], span: tuple[int | None, int | None], known: int | None
) -> Expected:
    """One row a key: of each table its greatest row in the range."""
    stored = [tables[table.name].stored(*span, known) for table in chosen]
    joined = []
    for key in sorted({row.key for rows in stored for row in rows}):
        found = [
            max((row for row in rows if row.key == key), key=lambda row: row.order, default=None) for rows in stored
        ]
        joined.append((key, max(row.event for row in found if row), found))
    return columns_of(chosen, tables, joined)


def columns_of(chosen: list[TableCase], tables: dict[str, oracle.Table], joined: list[Any]) -> Expected:
    columns = {name: [key[place] for key, _, _ in joined] for place, name in enumerate(chosen[0].entities)}
    columns["event_timestamp"] = [event for _, event, _ in joined]
    history = tables[chosen[0].name].history
    if len(chosen) == 1 and any(row.created is not None for row in history):
        columns["created_timestamp"] = [row.created for _, _, (row,) in joined]
    for place, table in enumerate(chosen):
        for feature in table.features:
            columns[feature] = [None if rows[place] is None else rows[place].values[feature] for _, _, rows in joined]
    for place, table in enumerate(chosen):
        columns[f"{table.name}__event_timestamp"] = [rows[place] and rows[place].event for _, _, rows in joined]
    return columns


def assert_rows(result: Any, expected: Expected) -> None:
    assert result.column_names == list(expected)
    for name, values in expected.items():
        got = plain(result.column(name))
        assert len(got) == len(values), (name, got, values)
        assert all(map(oracle.same, got, values)), (name, got, values)


spans = st.tuples(*[st.one_of(st.none(), st.integers(-1, 9))] * 2).map(
    lambda pair: pair if None in pair or pair[0] <= pair[1] else pair[::-1]
)


def moment(us: int) -> int:
    return min(max(us, YEAR_1_US), YEAR_9999_US)


# --- equal to the oracle ----------------------------------------------------------------------------


@given(
    case=cases(tables_max=3, most_left=0), span=spans, known=st.one_of(st.none(), st.integers(-1, 5)), data=st.data()
)
@pytest.mark.parametrize("latest", [False, True])
def test_retrieval_equals_the_oracle(
    latest: bool, case: Case, span: tuple[Any, Any], known: int | None, data: st.DataObject
) -> None:
    span = tuple(None if offset is None else moment(case.base + offset) for offset in span)
    expected_of = expected_latest if latest else expected_rows
    with fdb.open(":memory:") as db:
        tables = case.load(db)
        commits = [us_of(commit.time) for commit in db.log()]
        known_us = None if known is None else data.draw(st.sampled_from([moment(case.base + known), *commits]))
        for chosen in ([case.tables[0]], alike(case)):
            training = db.get_historical_features(
                None,
                references(chosen),
                start=to_datetime(span[0]),
                end=to_datetime(span[1]),
                latest=latest,
                known_at=to_datetime(known_us),
                include_event_timestamps=True,
            )
            assert_rows(training.to_arrow(), expected_of(chosen, tables, span, known_us))


@given(case=cases(tables_max=2, most_rows=20, most_left=0), rows=st.sampled_from([1, 3, 1000]), latest=st.booleans())
def test_batches_chunks_and_many_segments_change_nothing(case: Case, rows: int, latest: bool) -> None:
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
        tiny_limits(patch)
        patch.setattr("featuredb.offline.merge.DEAD_SHARE_MAX", 1.0)  # replaced rows stay in their segments
        small_batches(patch, rows)
        tables = case.load(db)
        chosen = alike(case)
        expected = (expected_latest if latest else expected_rows)(chosen, tables, (None, None), None)
        asked: dict[str, Any] = {"features": references(chosen), "latest": latest, "include_event_timestamps": True}
        assert_rows(db.get_historical_features(None, **asked).to_arrow(), expected)
        target = Path(db.path).with_name("rows.parquet")
        assert db.get_historical_features(None, **asked).to_parquet(target) == len(expected["event_timestamp"])
        assert_rows(pq.read_table(target), expected)


@given(case=cases(tables_max=1, most_left=0))
def test_the_latest_rows_without_an_end_are_the_online_values(case: Case) -> None:
    with fdb.open(":memory:") as db:
        case.load(db)
        # Online reads honour the max age, and the values here are from before 1970 to after 2262.
        table = case.tables[0]
        db.apply([fdb.FeatureTable(table.name, table.entities, table.definition().features)])
        latest = db.get_historical_features(None, case.references, latest=True).to_arrow()
        online = db.get_online_features(case.references, latest.select(table.entities)).to_arrow()
        for feature in table.features:
            assert all(map(oracle.same, plain(latest.column(feature)), plain(online.column(feature))))
        assert latest.num_rows == db.info()["feature_tables"][table.name]["online_keys"]


# --- by name ----------------------------------------------------------------------------------------


def define(db: fdb.Database, *names: str, max_age: timedelta | None = None) -> None:
    db.apply([fdb.Entity("city", "string")])
    db.apply([fdb.FeatureTable(name, ["city"], [fdb.Feature(f"{name}_x", "int64")], max_age) for name in names])


def put(db: fdb.Database, table: str, *rows: tuple[Any, ...]) -> None:
    """Rows (city, event, x[, created])."""
    names = ["city", "event_timestamp", f"{table}_x", "created_timestamp"]
    db.ingest(table, [dict(zip(names, row, strict=False)) for row in rows])


def rows_of(training: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in training.to_arrow().to_pylist()]


def test_rows_come_by_key_then_event_then_created_whatever_their_arrival(db: fdb.Database) -> None:
    define(db, "a")
    put(db, "a", ("Rome", T0, 1, T0 + HOUR), ("Oslo", T0, 3, T0 + 2 * HOUR))
    put(db, "a", ("Oslo", T0 + HOUR, 2), ("Rome", T0 - HOUR, 4), ("Oslo", T0, 6))
    put(db, "a", ("Oslo", T0, 5, T0 + HOUR))
    assert rows_of(db.get_historical_features(None, ["a:a_x"])) == [
        ("Oslo", T0, None, 6),
        ("Oslo", T0, T0 + HOUR, 5),
        ("Oslo", T0, T0 + 2 * HOUR, 3),
        ("Oslo", T0 + HOUR, None, 2),
        ("Rome", T0 - HOUR, None, 4),
        ("Rome", T0, T0 + HOUR, 1),
    ]


def test_start_and_end_are_included_and_open_when_left_out(db: fdb.Database) -> None:
    define(db, "a")
    put(db, "a", *[("Oslo", T0 + n * HOUR, n) for n in range(5)])

    def found(**options: Any) -> list[int]:
        return db.get_historical_features(None, ["a:a_x"], **options).to_numpy()["a_x"].tolist()

    assert found() == [0, 1, 2, 3, 4]
    assert found(start=T0 + HOUR, end=T0 + 3 * HOUR) == [1, 2, 3]
    assert found(start=T0 + 4 * HOUR) == [4]
    assert found(end=T0 - timedelta(microseconds=1)) == []
    assert found(latest=True, end=T0 + 3 * HOUR) == [3]
    assert found(latest=True, start=T0 + 5 * HOUR) == []


def test_a_replaced_row_is_not_retrieved(db: fdb.Database) -> None:
    define(db, "a")
    # Few enough are replaced for the segment to keep them, marked as dead.
    put(db, "a", *[("Oslo", T0 + n * HOUR, n) for n in range(10)])
    put(db, "a", ("Oslo", T0 + 4 * HOUR, 40))
    put(db, "a", ("Oslo", T0 + 9 * HOUR, 90))
    training = db.get_historical_features(None, ["a:a_x"])
    assert training.to_numpy()["a_x"].tolist() == [0, 1, 2, 3, 40, 5, 6, 7, 8, 90]
    assert db.get_historical_features(None, ["a:a_x"], latest=True).to_numpy()["a_x"].tolist() == [90]


def test_several_tables_give_each_key_and_time_that_any_has_and_join_within_the_max_age(db: fdb.Database) -> None:
    define(db, "a", "b", max_age=2 * HOUR)
    put(db, "a", ("Oslo", T0, 1), ("Rome", T0, 2))
    put(db, "b", ("Oslo", T0 + 2 * HOUR, 3), ("Oslo", T0 + 3 * HOUR, 4))
    assert rows_of(db.get_historical_features(None, ["a:a_x", "b:b_x"], start=T0)) == [
        ("Oslo", T0, 1, None),
        ("Oslo", T0 + 2 * HOUR, 1, 3),
        ("Oslo", T0 + 3 * HOUR, None, 4),
        ("Rome", T0, 2, None),
    ]
    # The range chooses the rows, not what is joined onto them.
    assert rows_of(db.get_historical_features(None, ["a:a_x", "b:b_x"], start=T0 + HOUR))[0] == (
        "Oslo", T0 + 2 * HOUR, 1, 3,
    )  # fmt: skip


def test_the_latest_of_several_tables_is_each_tables_latest_whatever_its_age(db: fdb.Database) -> None:
    define(db, "a", "b", max_age=HOUR)
    put(db, "a", ("Oslo", T0, 1), ("Rome", T0, 2))
    put(db, "b", ("Oslo", T0 + 9 * HOUR, 3))
    training = db.get_historical_features(None, ["a:a_x", "b:b_x"], latest=True, include_event_timestamps=True)
    assert rows_of(training) == [("Oslo", T0 + 9 * HOUR, 1, 3, T0, T0 + 9 * HOUR), ("Rome", T0, 2, None, T0, None)]


def test_known_at_leaves_out_rows_that_came_later(db: fdb.Database) -> None:
    define(db, "a")
    put(db, "a", ("Oslo", T0, 1, T0 + HOUR), ("Oslo", T0, 2, T0 + 2 * HOUR))
    put(db, "a", ("Oslo", T0 - HOUR, 3))  # a backfill of today
    assert rows_of(db.get_historical_features(None, ["a:a_x"], known_at=T0 + HOUR)) == [("Oslo", T0, T0 + HOUR, 1)]
    assert len(rows_of(db.get_historical_features(None, ["a:a_x"], known_at=db.log()[-1].time))) == 3


def test_every_form_of_output_holds_the_same(db: fdb.Database, tmp_path: Path) -> None:
    define(db, "a")
    put(db, "a", ("Oslo", T0, 1, T0 + HOUR))
    put(db, "a", ("Rome", T0, None))
    training = db.get_historical_features(None, ["a:a_x"], event_timestamp_column="at")
    frame, arrays = training.to_pandas(), training.to_numpy()
    assert list(frame.columns) == list(arrays) == ["city", "at", "created_timestamp", "a_x"]
    assert str(frame["at"].dtype) == "datetime64[us, UTC]"
    assert frame["a_x"].tolist() == [1, pd.NA]
    assert arrays["city"].tolist() == ["Oslo", "Rome"]
    assert arrays["at"].dtype == np.dtype("M8[us]")
    assert arrays["created_timestamp"].tolist() == [(T0 + HOUR).replace(tzinfo=None), None]
    frame.loc[0, "a_x"] = 7
    assert training.to_pandas().equals(training.to_df())
    assert training.to_pandas()["a_x"].tolist() == [1, pd.NA]
    assert training.to_parquet(tmp_path / "rows.parquet") == 2
    assert pq.read_table(tmp_path / "rows.parquet").equals(training.to_arrow())


def test_it_is_computed_once_and_is_of_one_commit(db: fdb.Database, tmp_path: Path) -> None:
    define(db, "a")
    put(db, "a", ("Oslo", T0, 1))
    training = db.get_historical_features(None, iter(["a:a_x"]))
    assert repr(training) == "<TrainingSet: stored rows, columns a_x; not computed yet>"
    put(db, "a", ("Oslo", T0 + HOUR, 2))
    assert training.commit_id == db.log()[-1].id
    put(db, "a", ("Oslo", T0 + 2 * HOUR, 3))
    assert training.to_numpy()["a_x"].tolist() == [1, 2]
    assert training.commit_id == db.log()[-2].id
    streamed = db.get_historical_features(None, ["a:a_x"])
    streamed.to_parquet(tmp_path / "rows.parquet")
    assert streamed.commit_id == db.log()[-1].id


@pytest.mark.parametrize("latest", [False, True])
def test_tables_without_rows_give_no_rows_and_all_columns(db: fdb.Database, latest: bool) -> None:
    define(db, "a", "b")
    result = db.get_historical_features(None, ["a:a_x", "b:b_x"], latest=latest).to_arrow()
    assert (result.num_rows, result.column_names) == (0, ["city", "event_timestamp", "a_x", "b_x"])
    assert len(db.get_historical_features(None, ["a:a_x"], latest=latest).to_pandas()) == 0


def test_a_feature_service_and_an_alias_name_the_columns(db: fdb.Database) -> None:
    define(db, "a")
    db.apply(fdb.FeatureService("s", ["other:a_x"], aliases={"other": fdb.Alias("a", {"city": "town"})}))
    put(db, "a", ("Oslo", T0, 1))
    result = db.get_historical_features(None, "s", full_feature_names=True).to_arrow()
    assert result.column_names == ["town", "event_timestamp", "other__a_x"]


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "start with an entity dataframe": ({"entity_df": {"city": []}, "start": T0}, ["start", "entity dataframe", "None"]),
    "latest with an entity dataframe": ({"entity_df": {"city": []}, "latest": True}, ["latest", "entity dataframe"]),
    "end before start": ({"start": T0, "end": T0 - HOUR}, ["start", "after end"]),
    "known_at as a column": ({"known_at": "seen"}, ["known_at", "'seen'", "timestamp"]),
    "other entities": ({"features": ["a:a_x", "pair:p"]}, ["'a' has city", "'pair' has city, day", "one by one"]),
    "a feature named like a key": (
        {"features": ["odd:x"], "event_timestamp_column": "x"},
        ["'x'", "full_feature_names"],
    ),
    "a time column named like a key": ({"event_timestamp_column": "city"}, ["'city'", "event_timestamp_column"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_retrieved_is_refused_with_the_remedy(db: fdb.Database, name: str) -> None:
    define(db, "a")
    db.apply(
        [
            fdb.Entity("day", "int32"),
            fdb.FeatureTable("pair", ["city", "day"], [fdb.Feature("p", "int8")]),
            fdb.FeatureTable("odd", ["city"], [fdb.Feature("x", "int8")]),
        ]
    )
    options, words = REFUSED[name]
    with pytest.raises(fdb.InputError) as error:
        db.get_historical_features(**{"entity_df": None, "features": ["a:a_x"], **options})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_repr_of_stored_rows_says_what_they_are() -> None:
    with fdb.open(":memory:") as db:
        db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("v", "int64")])])
        stored = db.get_historical_features(None, ["t:v"], latest=True)
        assert repr(stored) == "<TrainingSet: latest rows, columns v; not computed yet>"
        assert stored.lineage["latest"] is True
        assert repr(stored) == "<TrainingSet: latest rows, columns v; read at commit 1>"
