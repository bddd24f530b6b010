"""Online values: equal to the oracle in every way to read them, and always the join at the end of time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pandas as pd
import pytest
from hypothesis import given
from strategies import (
    CONTAINERS,
    YEAR_1_US,
    YEAR_9999_US,
    Case,
    as_plain,
    cases,
    container,
    ingest,
    tiny_limits,
    to_datetime,
)

import featuredb as fdb

pytestmark = pytest.mark.usefixtures("both_histories")

T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def keys_only(case: Case) -> dict[str, tuple[str, list[Any]]]:
    return {name: column for name, column in case.left_columns().items() if name in case.entities}


def assert_reads_equal(db: fdb.Database, case: Case, tables: dict[str, oracle.Table], now: int, kind: str) -> None:
    """`get_online_features`, `get_many` and `get` against the oracle."""
    kind = "dict" if not case.left else kind
    response = db.get_online_features(case.references, container(kind, keys_only(case)), now=to_datetime(now))
    reader = db.online_reader(case.references)
    # Entities come in the order in which the tables name them.
    entities = list(dict.fromkeys(name for table in case.tables for name in table.entities))
    asked = [tuple(keys[name] for name in entities) for keys, _ in case.left]
    arrays = reader.get_many(container("dict", keys_only(case)), now=to_datetime(now))
    values = response.to_dict()
    singles = [
        reader.get({name: as_key(case, name, keys[name]) for name in case.entities}, now=to_datetime(now))
        for keys, _ in case.left
    ]
    assert list(values) == [*entities, *(reference.partition(":")[2] for reference in case.references)]
    for table in case.tables:
        places = [entities.index(name) for name in table.entities]
        found = [tables[table.name].read(tuple(key[place] for place in places), now) for key in asked]
        events = response.event_timestamps[table.name].astype("M8[us]").view(np.int64)
        nat = np.isnat(response.event_timestamps[table.name])
        assert [None if absent else int(us) for us, absent in zip(events, nat, strict=True)] == [e for _, _, e in found]
        for feature in table.features:
            expected = [row[feature] for row, _, _ in found]
            statuses = [status[feature] for _, status, _ in found]
            assert [status.name for status in response.statuses[feature]] == statuses
            assert [fdb.Status(code).name for code in arrays.statuses[feature]] == statuses
            for name, got in (("to_dict", values[feature]), ("get", [single[feature] for single in singles])):
                pairs = zip(map(as_plain, got), expected, strict=True)
                assert all(oracle.same(*pair) for pair in pairs), (name, feature, got, expected)
            for value, code, want in zip(arrays.columns[feature], arrays.statuses[feature], expected, strict=True):
                if code == fdb.Status.PRESENT:
                    assert oracle.same(as_plain(value), want), ("get_many", feature, value, want)


def as_key(case: Case, name: str, value: Any) -> Any:
    return to_datetime(value) if case.entities[name] == "timestamp" else value


@given(case=cases(), kind=st.sampled_from(CONTAINERS), offset=st.integers(-2, 16))
def test_online_reads_equal_the_oracle(case: Case, kind: str, offset: int) -> None:
    with fdb.open(":memory:") as db:
        tables = case.load(db)
        assert_reads_equal(db, case, tables, min(max(case.base + offset, YEAR_1_US), YEAR_9999_US), kind)
        assert db.verify().ok


@given(case=cases(tables_max=2))
def test_online_values_equal_the_join_at_the_end_of_time(case: Case) -> None:
    with fdb.open(":memory:") as db:
        case.load(db)
        columns = case.left_columns()
        for name, dtype in case.entities.items():
            # All keys that were ingested, as far as they are in one table.
            seen = [row.key[t.entities.index(name)] for t in case.tables if name in t.entities
                    for batch in t.batches for row in batch.rows]  # fmt: skip
            columns[name] = (dtype, (columns[name][1] + seen)[:30])
        rows = max(len(column) for _, column in columns.values())
        for name, (dtype, column) in columns.items():
            columns[name] = (dtype, [*column, *[None] * (rows - len(column))])
        columns["event_timestamp"] = ("timestamp", [YEAR_9999_US] * rows)
        for table in case.tables:
            # At the end of time every max age has passed: the invariant is about the rows, not their age.
            db.apply([fdb.FeatureTable(table.name, table.entities, table.definition().features)])
        training = db.get_historical_features(
            container("arrow", columns), case.references, include_event_timestamps=True
        ).to_arrow()
        online = db.get_online_features(
            case.references, container("arrow", {name: columns[name] for name in case.entities})
        )
        table = online.to_arrow()
        for reference in case.references:
            feature = reference.partition(":")[2]
            pairs = zip(training.column(feature).to_pylist(), table.column(feature).to_pylist(), strict=True)
            assert all(oracle.same(*pair) for pair in pairs), feature


@given(case=cases(tables_max=1), data=st.data())
def test_offline_online_and_materialize_keep_to_the_oracle(case: Case, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
        if data.draw(st.booleans(), label="tiny limits"):
            tiny_limits(patch)
        db.apply(case.definitions)
        (table,) = case.tables
        expected = table.oracle()
        for batch in table.batches:
            to = data.draw(st.sampled_from(["both", "offline", "online"]), label="to")
            ingest(db, case, table, batch, expected, to)
            if data.draw(st.booleans(), label="materialize"):
                start, end = (
                    data.draw(st.one_of(st.none(), st.integers(0, 8).map(lambda n: case.base + n))) for _ in "se"
                )
                if start is not None and end is not None and start > end:
                    start, end = end, start
                db.materialize([table.name], start=to_datetime(start), end=to_datetime(end))
                expected.materialize(start, end)
        assert_reads_equal(db, case, {table.name: expected}, min(case.base + 9, YEAR_9999_US), "dict")


# --- by name ----------------------------------------------------------------------------------------------


def define(db: fdb.Database, max_age: timedelta | None = None, **options: Any) -> None:
    features = [fdb.Feature("temp", "float64"), fdb.Feature("sky", "string")]
    db.apply(
        [
            fdb.Entity("origin", "string"),
            fdb.FeatureTable("weather", ["origin"], features, max_age=max_age, **options),
        ]
    )


def observe(db: fdb.Database, *rows: tuple[Any, ...], **options: Any) -> fdb.IngestReport:
    names = ["origin", "event_timestamp", "temp", "sky", "created_timestamp"]
    return db.ingest("weather", [dict(zip(names, row, strict=False)) for row in rows], **options)


def skies(db: fdb.Database, *origins: str | None, **options: Any) -> list[Any]:
    rows = [{"origin": origin} for origin in origins]
    return db.get_online_features(["weather:sky"], rows, **options).to_dict()["sky"]


def test_late_data_never_overwrites_newer(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0 + HOUR, 1.0, "newer"))
    report = observe(db, ("JFK", T0, 0.0, "late"))
    assert skies(db, "JFK") == ["newer"]
    assert report.online_keys_updated == 0
    assert report.rows_ingested == 1


def test_of_equal_event_timestamps_the_later_created_is_online(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "second", T0 + 2 * HOUR))
    observe(db, ("JFK", T0, 1.0, "first", T0 + HOUR))
    observe(db, ("JFK", T0, 1.0, "absent"))
    assert skies(db, "JFK") == ["second"]


def test_the_four_statuses_are_tested_in_order(db: fdb.Database) -> None:
    define(db, max_age=HOUR)
    observe(db, ("JFK", T0, 1.0, None), ("LGA", T0 - HOUR, None, "clear"))
    tick = timedelta(microseconds=1)
    response = db.get_online_features(
        ["weather:temp", "weather:sky"], {"origin": ["JFK", "LGA", "???", None]}, now=T0 + tick
    )
    status = fdb.Status
    assert response.statuses["temp"] == [
        status.PRESENT,
        status.OUTSIDE_MAX_AGE,
        status.NOT_FOUND,
        status.NOT_FOUND,
    ]
    assert response.statuses["sky"][:2] == [status.NULL_VALUE, status.OUTSIDE_MAX_AGE]
    assert response.to_dict()["sky"] == [None, None, None, None]
    events = response.event_timestamps["weather"]
    assert events[:2].tolist() == [T0.replace(tzinfo=None), (T0 - HOUR).replace(tzinfo=None)]
    assert np.isnat(events[2:]).all()
    on_the_boundary = db.get_online_features(["weather:sky"], [{"origin": "LGA"}], now=T0)
    assert on_the_boundary.statuses["sky"] == [status.PRESENT]


def test_now_is_the_current_time_unless_given(db: fdb.Database) -> None:
    define(db, max_age=HOUR)
    current = datetime.fromtimestamp(int(time.time()), UTC)
    observe(db, ("JFK", current, 1.0, "fresh"), ("LGA", current - 2 * HOUR, 1.0, "stale"))
    assert skies(db, "JFK", "LGA") == ["fresh", None]
    assert skies(db, "JFK", "LGA", now=current - HOUR) == ["fresh", "stale"]
    assert skies(db, "JFK", "LGA", now="2200-01-01") == [None, None]


def test_one_output_per_entity_row_in_order_with_duplicates(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "a"), ("LGA", T0, 2.0, "b"))
    assert skies(db, "LGA", "???", "JFK", "LGA", None) == ["b", None, "a", "b", None]


@pytest.mark.parametrize("form", ["list", "dict", "numpy", "pandas"])
def test_every_form_of_entity_rows_gives_the_same(db: fdb.Database, form: str) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "a"))
    origins = ["JFK", "???"]
    rows: dict[str, Any] = {
        "list": [{"origin": origin} for origin in origins],
        "dict": {"origin": origins},
        "numpy": {"origin": np.array(origins)},
        "pandas": pd.DataFrame({"origin": origins, "ignored": [1, 2]}),
    }
    response = db.get_online_features(["weather:temp"], rows[form])
    assert response.to_dict() == {"origin": origins, "temp": [1.0, None]}
    assert response.to_pandas()["temp"].isna().tolist() == [False, True]
    assert response.to_arrow().column("temp").to_pylist() == [1.0, None]
    assert response.columns["temp"][0] == 1.0


def test_offline_ingest_leaves_online_values_until_materialized(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "old"))
    report = observe(db, ("JFK", T0 + HOUR, 2.0, "new"), to="offline")
    assert report.online_keys_updated == 0
    assert skies(db, "JFK") == ["old"]
    db.materialize(["weather"])
    assert skies(db, "JFK") == ["new"]


def test_online_ingest_leaves_history_alone(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "served"), to="online")
    assert skies(db, "JFK") == ["served"]
    assert db.info()["feature_tables"]["weather"]["rows"] == 0


def test_materialize_of_a_range_never_overwrites_newer(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "old"), ("LGA", T0, 1.0, "lga"), to="offline")
    observe(db, ("JFK", T0 + 5 * HOUR, 5.0, "newest"))
    db.materialize(["weather"], start=T0, end=T0 + HOUR)
    assert skies(db, "JFK", "LGA") == ["newest", "lga"]


def test_materialize_twice_changes_nothing(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "old"), to="offline")
    db.materialize()
    commits = len(list(db.log()))
    db.materialize()
    assert len(list(db.log())) == commits


def test_a_prepared_reader_sees_each_new_commit_and_definition(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "a"))
    reader = db.online_reader(["weather:temp", "weather:sky"])
    assert reader.get("JFK") == {"temp": 1.0, "sky": "a"}
    observe(db, ("JFK", T0 + HOUR, 2.0, "b"))
    assert reader.get({"origin": "JFK"}) == {"temp": 2.0, "sky": "b"}
    define(db, max_age=HOUR)
    assert reader.get("JFK") == {"temp": None, "sky": None}
    assert reader.get_many(["JFK"]).statuses["temp"].tolist() == [fdb.Status.OUTSIDE_MAX_AGE]


def test_a_reader_tells_the_order_of_a_tuple_key_and_what_it_reads(db: fdb.Database) -> None:
    db.apply([fdb.Entity(name, "string") for name in ("carrier", "dest")])
    db.apply([fdb.FeatureTable("route", ["dest", "carrier"], [fdb.Feature("n", "int64"), fdb.Feature("m", "int64")])])
    db.ingest("route", [{"dest": "ORD", "carrier": "AA", "event_timestamp": T0, "n": 1, "m": 2}])
    reader = db.online_reader(["route:m", "route:n"])
    assert reader.entities == ("dest", "carrier")
    key = {"carrier": "AA", "dest": "ORD"}
    assert reader.get(tuple(key[name] for name in reader.entities)) == {"m": 2, "n": 1}
    assert repr(reader) == "<OnlineReader: key (dest, carrier), features m, n>"


def test_old_online_rows_read_null_for_a_new_feature(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "a"), ("LGA", T0, 1.5, "b"))
    features = [fdb.Feature("wind", "int16"), fdb.Feature("temp", "float64")]
    db.apply([fdb.FeatureTable("weather", ["origin"], features)])
    db.ingest("weather", {"origin": ["LGA"], "event_timestamp": [T0 + HOUR], "wind": [3], "temp": [None]})
    response = db.get_online_features(["weather:wind", "weather:temp"], {"origin": ["JFK", "LGA"]})
    assert response.to_dict() == {"origin": ["JFK", "LGA"], "wind": [None, 3], "temp": [1.0, None]}
    assert response.statuses["wind"] == [fdb.Status.NULL_VALUE, fdb.Status.PRESENT]


def test_a_replaced_row_is_replaced_online_too(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "first"))
    report = observe(db, ("JFK", T0, 1.0, "corrected"))
    assert skies(db, "JFK") == ["corrected"]
    assert report.online_keys_updated == 1
