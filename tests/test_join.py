"""Point-in-time joins: equal to the oracle on random cases, and each sentence of the semantics by name."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from joins import CORNERS, check_joins
from strategies import (
    YEAR_9999_US,
    Case,
    as_plain,
    cases,
    container,
    no_nan,
    plain,
    rows_of,
    small_batches,
    tiny_limits,
    to_datetime,
)

import featuredb as fdb

pytestmark = pytest.mark.usefixtures("both_histories")

T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def assert_same(actual: list[Any], expected: list[Any], name: str) -> None:
    """Value by value: NaN is NaN, null is null, types and signs of zero too."""
    assert len(actual) == len(expected), name
    wrong = [row for row, pair in enumerate(zip(actual, expected, strict=True)) if not oracle.same(*pair)]
    assert not wrong, f"{name}, row {wrong[0]}: {actual[wrong[0]]!r} is not {expected[wrong[0]]!r}"


def expected_join(case: Case, tables: dict[str, oracle.Table], known: list[int | None], full: bool) -> dict[str, Any]:
    """What the oracle joins, by output name."""
    found: dict[str, Any] = {}
    for table in case.tables:
        matches = [
            tables[table.name].join(tuple(keys[name] for name in table.entities), at, known_at)
            for (keys, at), known_at in zip(case.left, known, strict=True)
        ]
        for feature in table.features:
            name = f"{table.name}__{feature}" if full else feature
            found[name] = [None if row is None else row.values[feature] for row in matches]
    return found


def joined(training: Any, names: list[str]) -> dict[str, list[Any]]:
    table = training.to_arrow()
    return {name: plain(table.column(name)) for name in names}


# --- equal to the oracle ----------------------------------------------------------------------------


def test_a_join_equals_the_oracle() -> None:
    """Of random tables and entity rows, also as of a knowledge time and by aliases; and every corner is reached."""
    reached: Counter[str] = Counter()
    check_joins(reached, settings())
    rare = {corner: reached[corner] for corner in CORNERS if reached[corner] < 5}
    assert not rare, f"of {reached['cases']} cases too few reach these corners: {rare}"


@given(case=cases(tables_max=2))
def test_every_form_of_output_holds_the_same(case: Case) -> None:
    with fdb.open(":memory:") as db:
        expected = expected_join(case, case.load(db), [None] * len(case.left), full=False)
        training = db.get_historical_features(container("pandas", case.left_columns()), case.references)
        arrays = training.to_numpy()
        frame = training.to_pandas()
        assert list(frame.columns)[-len(expected) :] == list(expected)
        for name, values in expected.items():
            assert_same(rows_of(arrays[name]), values, name)
            # A column of floats in pandas has NaN for null.
            series = list(map(as_plain, frame[name].tolist()))
            assert_same(list(map(no_nan, series)), list(map(no_nan, values)), name)


@given(case=cases(tables_max=1, most_rows=12))
@settings(max_examples=25)
def test_batches_of_any_size_give_the_same_join_and_file(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db, fdb.open(":memory:") as other:
        tables = case.load(other)
        small_batches(patch, 3)
        case.load(db)
        expected = expected_join(case, tables, [None] * len(case.left), full=False)
        frame = container("arrow", case.left_columns())
        for name, values in joined(db.get_historical_features(frame, case.references), list(expected)).items():
            assert_same(values, expected[name], name)
        target = Path(db.path).with_name("training.parquet")
        db.get_historical_features(frame, case.references).to_parquet(target)
        streamed = pq.read_table(target)
        for name, values in expected.items():
            assert_same(plain(streamed.column(name)), values, name)
        assert db.verify().ok


@given(case=cases(tables_max=2, most_rows=20), rows=st.sampled_from([(3, 3), (3, 1000), (1000, 1000)]))
def test_many_chunks_blocks_tiers_and_threads_change_nothing(case: Case, rows: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
        tiny_limits(patch)
        small_batches(patch, *rows)
        tables = case.load(db)
        for known_us in (None, case.base + 1, YEAR_9999_US):
            known = [known_us] * len(case.left)
            training = db.get_historical_features(
                container("arrow", case.left_columns()), case.references, known_at=to_datetime(known_us)
            )
            expected = expected_join(case, tables, known, full=False)
            for name, values in joined(training, list(expected)).items():
                assert_same(values, expected[name], name)
        assert db.verify().ok


# --- against pandas ---------------------------------------------------------------------------------


@pytest.mark.parametrize("max_age_us", [None, 200, 1000])
def test_a_join_equals_pandas_merge_asof(db: fdb.Database, max_age_us: int | None) -> None:
    rng = np.random.default_rng(7)
    rows, asked = 20_000, 5_000
    # merge_asof leaves open which of two rows with equal times it takes: there are none.
    times = rng.choice(10 * rows, rows, replace=False)
    history = pd.DataFrame(
        {
            "user": rng.integers(0, 300, rows),
            "event_timestamp": (times + 10**15).astype("M8[us]"),
            "score": rng.normal(size=rows),
            "clicks": rng.integers(-5, 5, rows),
        }
    )
    frame = pd.DataFrame(
        {
            "user": rng.integers(-10, 320, asked),
            "event_timestamp": (rng.integers(-100, 11 * rows, asked) + 10**15).astype("M8[us]"),
        }
    )
    age = None if max_age_us is None else timedelta(microseconds=max_age_us)
    db.apply(
        [
            fdb.Entity("user", "int64"),
            fdb.FeatureTable("t", ["user"], [fdb.Feature("score", "float64"), fdb.Feature("clicks", "int64")], age),
        ]
    )
    for part in np.array_split(np.arange(rows), 7):
        db.ingest("t", history.iloc[part])
    got = db.get_historical_features(frame, ["t:score", "t:clicks"]).to_pandas()
    order = frame["event_timestamp"].argsort(kind="stable")
    expected = pd.merge_asof(
        frame.iloc[order],
        history.sort_values("event_timestamp"),
        on="event_timestamp",
        by="user",
        tolerance=None if age is None else pd.Timedelta(age),
    )
    expected.index = frame.index[order]
    expected = expected.sort_index()
    assert expected["score"].notna().sum() > 100
    np.testing.assert_array_equal(got["score"].to_numpy(), expected["score"].to_numpy())
    np.testing.assert_array_equal(got["clicks"].astype("float64"), expected["clicks"].astype("float64"))


# --- the semantics, sentence by sentence ---------------------------------------------------------------


def define(db: fdb.Database, max_age: timedelta | None = None, name: str = "weather") -> None:
    db.apply(
        [
            fdb.Entity("origin", "string"),
            fdb.FeatureTable(
                name, ["origin"], [fdb.Feature("temp", "float64"), fdb.Feature("sky", "string")], max_age=max_age
            ),
        ]
    )


def observe(db: fdb.Database, *rows: tuple[Any, ...], table: str = "weather") -> fdb.IngestReport:
    """Rows (origin, event, temp, sky[, created])."""
    names = ["origin", "event_timestamp", "temp", "sky", "created_timestamp"]
    return db.ingest(table, [dict(zip(names, row, strict=False)) for row in rows])


def ask(db: fdb.Database, origin: Any, at: Any, **options: Any) -> list[Any]:
    frame = pd.DataFrame({"origin": [origin], "event_timestamp": [at]})
    result = db.get_historical_features(frame, ["weather:temp", "weather:sky"], **options).to_arrow()
    return [result.column(name)[0].as_py() for name in ("temp", "sky")]


def test_both_ends_of_the_max_age_are_included(db: fdb.Database) -> None:
    define(db, max_age=3 * HOUR)
    observe(db, ("JFK", T0, 1.0, "clear"))
    tick = timedelta(microseconds=1)
    assert ask(db, "JFK", T0 - tick) == [None, None]
    assert ask(db, "JFK", T0) == [1.0, "clear"]
    assert ask(db, "JFK", T0 + 3 * HOUR) == [1.0, "clear"]
    assert ask(db, "JFK", T0 + 3 * HOUR + tick) == [None, None]


def test_without_a_row_at_or_before_the_time_all_features_are_null(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"))
    assert ask(db, "LGA", T0) == [None, None]
    assert ask(db, "JFK", T0 - HOUR) == [None, None]


def test_without_a_max_age_no_row_is_too_old(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", datetime(1, 1, 1), 1.0, "clear"))
    assert ask(db, "JFK", datetime(9999, 12, 31, 23, 59, 59, 999999)) == [1.0, "clear"]


def test_the_latest_row_is_taken_whole_with_its_nulls(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"), ("JFK", T0 + HOUR, None, "rain"), ("JFK", T0 + 2 * HOUR, 3.0, None))
    assert ask(db, "JFK", T0 + HOUR) == [None, "rain"]
    assert ask(db, "JFK", T0 + 2 * HOUR) == [3.0, None]


def test_of_equal_event_timestamps_the_later_created_wins_and_an_absent_one_is_oldest(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 2.0, "b", T0 + 2 * HOUR), ("JFK", T0, 1.0, "a", T0 + HOUR))
    observe(db, ("JFK", T0, 3.0, "absent"))
    assert ask(db, "JFK", T0) == [2.0, "b"]


def test_the_same_key_and_timestamps_are_one_row_which_the_later_ingest_replaces(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "first"))
    report = observe(db, ("JFK", T0, 2.0, "second"), ("JFK", T0, 3.0, "third"))
    assert ask(db, "JFK", T0) == [3.0, "third"]
    assert report.duplicates_replaced == 2
    assert db.info()["feature_tables"]["weather"]["rows"] == 1


def test_known_at_leaves_out_what_was_created_later(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "early", T0 + HOUR), ("JFK", T0, 2.0, "revised", T0 + 5 * HOUR))
    assert ask(db, "JFK", T0, known_at=T0) == [None, None]
    assert ask(db, "JFK", T0, known_at=T0 + HOUR) == [1.0, "early"]
    assert ask(db, "JFK", T0, known_at="2013-01-01T04:59:59.999999") == [1.0, "early"]
    assert ask(db, "JFK", T0, known_at=T0 + 5 * HOUR) == [2.0, "revised"]


def test_known_at_counts_rows_without_a_created_timestamp_by_their_commit(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "first"))
    observe(db, ("JFK", T0 + HOUR, 2.0, "second"))
    times = {commit.id: commit.time for commit in db.log()}
    first, second = sorted(times)[-2:]
    late = T0 + 2 * HOUR
    assert ask(db, "JFK", late, known_at=times[first] - timedelta(microseconds=1)) == [None, None]
    assert ask(db, "JFK", late, known_at=times[first]) == [1.0, "first"]
    assert ask(db, "JFK", late, known_at=times[second]) == [2.0, "second"]


def test_known_at_may_be_a_column_of_the_entity_dataframe(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "early", T0 + HOUR), ("JFK", T0, 2.0, "revised", T0 + 5 * HOUR))
    frame = pd.DataFrame(
        {"origin": "JFK", "event_timestamp": [T0, T0, T0], "seen": [T0 + HOUR, T0 + 9 * HOUR, T0 - HOUR]}
    )
    result = db.get_historical_features(frame, ["weather:sky"], known_at="seen").to_pandas()
    assert result["sky"].tolist()[:2] == ["early", "revised"]
    assert result["sky"].isna().tolist() == [False, False, True]


def test_a_null_key_or_timestamp_matches_nothing(db: fdb.Database) -> None:
    define(db)
    observe(db, ("", T0, 1.0, "clear"), ("JFK", datetime(1, 1, 1), 2.0, "old"))
    frame = pd.DataFrame({"origin": [None, "JFK", None, ""], "event_timestamp": [T0, None, None, T0]})
    result = db.get_historical_features(frame, ["weather:temp"]).to_pandas()
    assert result["temp"].isna().tolist() == [True, True, True, False]


def test_the_result_keeps_rows_order_index_columns_and_duplicates(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"), ("LGA", T0, 2.0, "rain"))
    frame = pd.DataFrame(
        {
            "delay": pd.array([5, None, 7, 7], dtype="Int16"),
            "event_timestamp": pd.to_datetime([T0 + HOUR, T0, T0, T0]),
            "who": pd.Categorical(["x", "y", "x", "x"]),
            "origin": ["LGA", "???", "JFK", "JFK"],
        },
        index=pd.MultiIndex.from_tuples([(1, "a"), (0, "b"), (0, "b"), (5, "c")], names=["n", None]),
    )
    before = frame.copy(deep=True)
    result = db.get_historical_features(frame, ["weather:sky", "weather:temp"]).to_pandas()
    assert list(result.columns) == ["delay", "event_timestamp", "who", "origin", "sky", "temp"]
    pd.testing.assert_frame_equal(result[list(frame.columns)], before)
    pd.testing.assert_frame_equal(frame, before)
    np.testing.assert_array_equal(result["temp"], [2.0, math.nan, 1.0, 1.0])


def test_features_come_in_the_order_asked_and_under_full_names_if_asked(db: fdb.Database) -> None:
    define(db)
    define(db, name="air")
    observe(db, ("JFK", T0, 1.0, "clear"))
    observe(db, ("JFK", T0, 9.0, "smog"), table="air")
    frame = {"origin": ["JFK"], "event_timestamp": [T0]}
    result = db.get_historical_features(
        frame, ["air:temp", "weather:sky", "weather:temp"], full_feature_names=True
    ).to_arrow()
    assert result.column_names == ["origin", "event_timestamp", "air__temp", "weather__sky", "weather__temp"]
    assert [result.column(place)[0].as_py() for place in (2, 3, 4)] == [9.0, "clear", 1.0]


def test_a_feature_service_stands_for_its_references(db: fdb.Database) -> None:
    define(db)
    service = fdb.FeatureService("model", ["weather:sky", "weather:temp"])
    db.apply([service])
    observe(db, ("JFK", T0, 1.0, "clear"))
    frame = {"origin": ["JFK"], "event_timestamp": [T0]}
    for asked in ("model", service):
        result = db.get_historical_features(frame, asked).to_arrow()
        assert result.column_names == ["origin", "event_timestamp", "sky", "temp"]


def test_another_column_may_hold_the_time_of_the_entity_dataframe(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"))
    frame = {"origin": ["JFK"], "departure": [T0 + HOUR]}
    result = db.get_historical_features(frame, ["weather:sky"], event_timestamp_column="departure").to_arrow()
    assert result.column("sky").to_pylist() == ["clear"]


def test_naive_timestamps_are_utc_and_aware_ones_are_converted(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", datetime(2013, 1, 1, 12), 1.0, "noon"))
    east = timezone(timedelta(hours=5))
    assert ask(db, "JFK", datetime(2013, 1, 1, 12)) == [1.0, "noon"]
    assert ask(db, "JFK", datetime(2013, 1, 1, 17, tzinfo=east)) == [1.0, "noon"]
    assert ask(db, "JFK", datetime(2013, 1, 1, 16, 59, 59, tzinfo=east)) == [None, None]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_the_output_keeps_the_unit_and_time_zone_of_the_input(db: fdb.Database, unit: str, zone: str | None) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"))
    times = pd.Series(pd.to_datetime(["2013-01-01 06:00", None])).dt.as_unit(unit).dt.tz_localize(zone)
    frame = pd.DataFrame({"origin": ["JFK", "JFK"], "event_timestamp": times})
    training = db.get_historical_features(frame, ["weather:temp"])
    pd.testing.assert_series_equal(training.to_pandas()["event_timestamp"], times, check_names=False)
    assert training.to_arrow().schema.field("event_timestamp").type == pa.timestamp(unit, tz=zone)
    np.testing.assert_array_equal(training.to_pandas()["temp"], [1.0, math.nan])


def test_a_late_row_joins_where_it_belongs(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0 + 5 * HOUR, 5.0, "five"))
    observe(db, ("JFK", T0, 0.0, "late"))
    assert ask(db, "JFK", T0 + HOUR) == [0.0, "late"]
    assert ask(db, "JFK", T0 + 6 * HOUR) == [5.0, "five"]


def test_composite_keys_do_not_collide(db: fdb.Database) -> None:
    db.apply(
        [
            fdb.Entity("a", "string"),
            fdb.Entity("b", "string"),
            fdb.FeatureTable("pair", ["a", "b"], [fdb.Feature("n", "int64")]),
        ]
    )
    keys = [("1", "11"), ("11", "1"), ("", "111"), ("111", ""), ("1\x00", "1"), ("1", "\x001")]
    db.ingest("pair", [{"a": a, "b": b, "event_timestamp": T0, "n": n} for n, (a, b) in enumerate(keys)])
    frame = {"b": [b for _, b in keys], "event_timestamp": [T0] * len(keys), "a": [a for a, _ in keys]}
    result = db.get_historical_features(frame, ["pair:n"]).to_arrow()
    assert result.column("n").to_pylist() == list(range(len(keys)))


def test_many_small_ingests_are_merged_and_join_like_one(db: fdb.Database) -> None:
    define(db)
    rows = [(f"K{n % 7}", T0 + (n * 37 % 60) * HOUR, float(n), str(n % 3)) for n in range(60)]
    for row in rows:
        observe(db, row)
    with fdb.open(":memory:") as other:
        define(other)
        observe(other, *rows)
        frame = {
            "origin": [f"K{n % 8}" for n in range(300)],
            "event_timestamp": [T0 + (n % 61) * HOUR for n in range(300)],
        }
        results = [d.get_historical_features(frame, ["weather:temp", "weather:sky"]).to_arrow() for d in (db, other)]
    assert results[0].equals(results[1])
    assert results[0].column("temp").null_count < 100


def test_a_new_feature_reads_null_in_old_rows_and_a_removed_one_is_gone(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"))
    db.apply([fdb.FeatureTable("weather", ["origin"], [fdb.Feature("temp", "float64"), fdb.Feature("wind", "int32")])])
    db.ingest("weather", {"origin": ["JFK"], "event_timestamp": [T0 + HOUR], "temp": [2.0], "wind": [7]})
    frame = {"origin": ["JFK", "JFK"], "event_timestamp": [T0, T0 + HOUR]}
    result = db.get_historical_features(frame, ["weather:wind", "weather:temp"]).to_arrow()
    assert result.column("wind").to_pylist() == [None, 7]
    assert result.column("temp").to_pylist() == [1.0, 2.0]
    with pytest.raises(fdb.FeatureDBError, match="sky"):
        db.get_historical_features(frame, ["weather:sky"])


# --- training sets ---------------------------------------------------------------------------------------


def test_a_training_set_streams_to_parquet_in_batches(
    db: fdb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(db)
    observe(db, *[(f"K{n % 5}", T0 + n * HOUR, float(n), str(n)) for n in range(50)])
    frame = pd.DataFrame(
        {"origin": [f"K{n % 6}" for n in range(100)], "event_timestamp": [T0 + n * HOUR / 2 for n in range(100)]}
    )
    whole = db.get_historical_features(frame, ["weather:temp", "weather:sky"]).to_arrow()
    small_batches(monkeypatch, 7)
    target = tmp_path / "training.parquet"
    db.get_historical_features(frame, ["weather:temp", "weather:sky"]).to_parquet(target)
    assert pq.read_table(target).to_pylist() == whole.to_pylist()
    assert sorted(tmp_path.iterdir()) == [target]


def test_an_entity_dataframe_may_be_a_path(db: fdb.Database, tmp_path: Path) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"))
    source, target = tmp_path / "asked.parquet", tmp_path / "training.parquet"
    pq.write_table(pa.table({"origin": ["JFK", "LGA"], "event_timestamp": [T0, T0], "label": [1, 2]}), source)
    training = db.get_historical_features(source, ["weather:temp"])
    assert training.to_arrow().column("temp").to_pylist() == [1.0, None]
    training.to_parquet(target)
    assert pq.read_table(target).column("label").to_pylist() == [1, 2]


@pytest.mark.parametrize("batch_rows", [2, 100])
def test_an_entity_dataframe_from_csv_comes_back_typed(
    db: fdb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    define(db)
    observe(db, ("007", T0, 1.0, "clear"))
    source, target = tmp_path / "asked.csv", tmp_path / "training.parquet"
    source.write_text(
        "origin,event_timestamp,label,id,seen\n"
        "007,2013-01-01T00:00Z,0.5,1,2012-12-31\nNA,2013-01-01T00:00Z,,,2014-01-01\n,,2,3,\n"
    )
    whole = db.get_historical_features(source, ["weather:temp"], known_at="seen")
    frame = whole.to_pandas()
    assert frame["origin"].tolist()[:2] == ["007", "NA"]
    assert frame["origin"].isna().tolist() == [False, False, True]
    assert [str(frame[name].dtype) for name in ("event_timestamp", "label", "id", "seen")] == [
        "datetime64[us, UTC]", "float64", "Int64", "datetime64[us, UTC]",
    ]  # fmt: skip
    small_batches(monkeypatch, batch_rows)
    db.get_historical_features(source, ["weather:temp"]).to_parquet(target)
    assert pq.read_table(target).to_pydict() == {
        "origin": ["007", "NA", None],
        "event_timestamp": [T0, T0, None],
        "label": [0.5, None, 2.0],
        "id": [1, None, 3],
        "seen": ["2012-12-31", "2014-01-01", None],
        "temp": [1.0, None, None],
    }


@pytest.mark.parametrize("kind", ["pandas", "dict", "rows"])
def test_a_training_set_does_not_follow_later_changes_of_the_entity_dataframe(db: fdb.Database, kind: str) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"))
    columns: dict[str, list[Any]] = {"origin": ["JFK", "LGA"], "event_timestamp": [T0, T0]}
    rows = [{"origin": "JFK", "event_timestamp": T0}, {"origin": "LGA", "event_timestamp": T0}]
    given: Any = {"pandas": pd.DataFrame(columns), "dict": columns, "rows": rows}[kind]
    training = db.get_historical_features(given, ["weather:temp"])
    if kind == "pandas":
        given["temp"] = 7.0
        given.loc[0, "origin"] = "LGA"
    elif kind == "dict":
        given["temp"] = [7.0, 7.0]
        given["origin"].reverse()
    else:
        given.append({"origin": "JFK", "event_timestamp": T0, "temp": 7.0})
        given[0]["origin"] = "LGA"
    assert training.to_arrow().to_pydict() == {
        "origin": ["JFK", "LGA"],
        "event_timestamp": [T0, T0],
        "temp": [1.0, None],
    }


def test_tuples_of_dicts_and_any_mapping_are_entity_dataframes(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"))
    row = MappingProxyType({"origin": "JFK", "event_timestamp": T0})
    for entities in ((row,), [row], MappingProxyType({"origin": ("JFK",), "event_timestamp": [T0]})):
        training = db.get_historical_features(entities, ["weather:temp"])
        assert training.to_arrow().to_pydict() == {"origin": ["JFK"], "event_timestamp": [T0], "temp": [1.0]}
        assert training.to_pandas()["temp"].tolist() == [1.0]


def test_a_training_set_shows_what_it_is_without_being_computed(db: fdb.Database, tmp_path: Path) -> None:
    define(db)
    frame = {"origin": ["JFK"], "event_timestamp": [T0]}
    training = db.get_historical_features(frame, ["weather:sky", "weather:temp"], include_event_timestamps=True)
    shown = "<TrainingSet: 1 entity row, columns sky, temp, weather__event_timestamp; "
    assert repr(training) == shown + "not computed yet>"
    training.to_numpy()
    assert repr(training) == shown + "joined at commit 1>"
    (tmp_path / "asked.csv").write_text("origin,event_timestamp\n")
    of_file = db.get_historical_features(tmp_path / "asked.csv", ["weather:sky"])
    assert repr(of_file) == "<TrainingSet: entity rows of a file or stream, columns sky; not computed yet>"


@pytest.mark.parametrize("path", [None, 3, b"x.parquet"])
def test_a_training_set_is_not_written_to_what_is_no_path(db: fdb.Database, path: Any) -> None:
    define(db)
    training = db.get_historical_features({"origin": ["JFK"], "event_timestamp": [T0]}, ["weather:temp"])
    with pytest.raises(fdb.InputError, match=r"^path: must be a str"):
        training.to_parquet(path)


def test_a_training_set_is_computed_once_and_is_of_one_commit(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"))
    frame = {"origin": ["JFK"], "event_timestamp": [T0]}
    training = db.get_historical_features(frame, ["weather:temp"])
    before = training.to_arrow().to_pylist()
    observe(db, ("JFK", T0, 2.0, "rain"))
    assert training.to_pandas()["temp"].tolist() == [1.0]
    assert training.to_arrow().to_pylist() == before
    assert db.get_historical_features(frame, ["weather:temp"]).to_pandas()["temp"].tolist() == [2.0]


def test_an_empty_entity_dataframe_gives_an_empty_result_with_all_columns(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "clear"))
    frame = pd.DataFrame({"origin": pd.Series([], dtype=str), "event_timestamp": pd.Series([], dtype="M8[us]")})
    result = db.get_historical_features(frame, ["weather:temp", "weather:sky"]).to_arrow()
    assert result.num_rows == 0
    assert result.schema.field("temp").type == pa.float64()


def test_a_table_without_history_joins_nulls(db: fdb.Database) -> None:
    define(db)
    assert ask(db, "JFK", T0) == [None, None]
