"""Offline and online loaded apart: what is served is the newest row of all that was offered, in whatever order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import oracle
import pytest
from hypothesis import given
from strategies import (
    YEAR_9999_US,
    Batch,
    Case,
    TableCase,
    cases,
    container,
    plain,
    small_batches,
    tiny_limits,
    to_datetime,
    to_us,
)
from test_online import assert_reads_equal

import featuredb as fdb

pytestmark = pytest.mark.usefixtures("both_histories")

T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
Draw = st.DataObject


def load(db: fdb.Database, case: Case, batch: Batch, to: str, lacking: list[str]) -> tuple[list[oracle.Row], int]:
    """Ingest a batch without some features; the rows as they were given, and the time of the commit."""
    (table,) = case.tables
    given_features = {name: dtype for name, dtype in table.features.items() if name not in lacking}
    part = TableCase(table.name, table.entities, given_features, table.max_age, [])
    rows = [
        oracle.Row(row.key, row.event, row.created, {name: row.values[name] for name in given_features})
        for row in batch.rows
    ]
    some = Batch(rows, batch.created, batch.kind)
    report = db.ingest(table.name, part.data(some, case.entities), to=to, partial=bool(lacking))
    assert set(report.features_filled) == set(lacking)
    return part.seen(some), to_us(db.log()[report.commit_id - 1].time)


def assert_history_equals(db: fdb.Database, case: Case, expected: oracle.Table) -> None:
    """A join at every stored row, and at the end of time."""
    (table,) = case.tables
    asked = [(row.key, at) for row in expected.history for at in (row.event, YEAR_9999_US)]
    columns = {
        name: (case.entities[name], [key[place] for key, _ in asked]) for place, name in enumerate(table.entities)
    }
    columns["event_timestamp"] = ("timestamp", [at for _, at in asked])
    joined = db.get_historical_features(container("arrow", columns), case.references).to_arrow()
    found = [expected.join(*one) for one in asked]
    for feature in table.features:
        values = plain(joined.column(feature))
        wanted = [None if row is None else row.values[feature] for row in found]
        assert all(map(oracle.same, values, wanted)), (feature, values, wanted)
    assert db.info()["feature_tables"][table.name]["rows"] == len(expected.history)


@given(case=cases(tables_max=1), data=st.data())
def test_any_mix_of_loads_keeps_to_the_oracle(case: Case, data: Draw) -> None:
    """Partial rows, both sides apart, ranges, incremental and full materialize, merges: history and online."""
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
        if data.draw(st.booleans(), label="tiny limits"):
            tiny_limits(patch)
        if data.draw(st.booleans(), label="small batches"):
            small_batches(patch, data.draw(st.integers(1, 4)))
        db.apply(case.definitions)
        (table,) = case.tables
        expected = table.oracle()
        for batch in table.batches:
            to = data.draw(st.sampled_from(["both", "offline", "online"]), label="to")
            lacking = data.draw(st.lists(st.sampled_from(list(table.features)), unique=True), label="lacking")
            lacking = lacking[: len(table.features) - 1]
            rows, commit_us = load(db, case, batch, to, lacking)
            expected.ingest(expected.fill(rows, to), commit_us, to)
            step = data.draw(st.sampled_from(["", "range", "incremental", "full", "compact"]), label="then")
            if step == "range":
                start, end = sorted(data.draw(st.tuples(st.integers(0, 8), st.integers(0, 8))))
                start, end = case.base + start, case.base + end
                db.materialize([table.name], start=to_datetime(start), end=to_datetime(end))
                expected.materialize(start, end)
            elif step in ("incremental", "full"):
                db.materialize(incremental=step == "incremental")
                expected.materialize()
            elif step == "compact":
                db.compact()
        assert_reads_equal(db, case, {table.name: expected}, min(case.base + 9, YEAR_9999_US), "dict")
        assert_history_equals(db, case, expected)
        assert db.verify().ok
        db.materialize(incremental=True)
        expected.materialize()
        assert_reads_equal(db, case, {table.name: expected}, min(case.base + 9, YEAR_9999_US), "dict")
        assert db.materialize().keys_updated == {table.name: 0}


# --- by name --------------------------------------------------------------------------------------


def define(db: fdb.Database, **options: Any) -> None:
    features = [fdb.Feature("temp", "float64"), fdb.Feature("sky", "string")]
    db.apply([fdb.Entity("origin", "string"), fdb.FeatureTable("weather", ["origin"], features, **options)])


def observe(db: fdb.Database, *rows: tuple[Any, ...], **options: Any) -> fdb.IngestReport:
    names = ["origin", "event_timestamp", "temp", "sky", "created_timestamp"]
    return db.ingest("weather", [dict(zip(names, row, strict=False)) for row in rows], **options)


def skies(db: fdb.Database, *origins: str) -> list[Any]:
    return db.get_online_features(["weather:sky"], {"origin": list(origins)}).to_dict()["sky"]


def test_incremental_goes_by_commits_so_it_misses_no_late_row(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0 + 5 * HOUR, 1.0, "first"), to="offline")
    assert db.materialize(incremental=True).keys_updated == {"weather": 1}
    # Older than all that was materialized: a watermark of event timestamps would pass it by.
    observe(db, ("LGA", T0, 1.0, "late"), ("JFK", T0, 1.0, "late"), to="offline")
    assert db.materialize(incremental=True).keys_updated == {"weather": 1}
    assert skies(db, "JFK", "LGA") == ["first", "late"]
    assert not db.verify().differences


def test_incremental_finds_rows_that_a_merge_has_moved(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "a"), ("EWR", T0, 1.0, "c"))
    observe(db, ("LGA", T0, 1.0, "b"), to="offline")
    db.compact()
    assert db.info()["feature_tables"]["weather"]["segments"] == 1
    assert db.materialize("weather", incremental=True).keys_updated == {"weather": 1}
    assert skies(db, "JFK", "LGA", "EWR") == ["a", "b", "c"]


def test_incremental_covers_every_commit_since_the_last(db: fdb.Database) -> None:
    define(db)
    for origin in ("JFK", "LGA", "EWR"):
        observe(db, (origin, T0, 1.0, origin), to="offline")
    assert db.materialize(incremental=True).keys_updated == {"weather": 3}
    assert skies(db, "JFK", "LGA", "EWR") == ["JFK", "LGA", "EWR"]


def test_incremental_with_nothing_new_is_no_commit(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "a"))
    before = db.log()
    report = db.materialize(incremental=True)
    assert (report.keys_updated, report.commit_id) == ({"weather": 0}, before[-1].id)
    assert db.log() == before


def test_incremental_offers_what_a_range_has_left_out(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "a"), ("LGA", T0 + HOUR, 1.0, "b"), to="offline")
    db.materialize("weather", start=T0, end=T0)
    assert skies(db, "JFK", "LGA") == ["a", None]
    db.materialize("weather", incremental=True)
    assert skies(db, "JFK", "LGA") == ["a", "b"]


def test_incremental_takes_no_range(db: fdb.Database) -> None:
    define(db)
    with pytest.raises(fdb.InputError, match="leave them out"):
        db.materialize("weather", start=T0, incremental=True)


def test_the_mark_of_incremental_outlives_the_process(tmp_path: Path) -> None:
    with fdb.open(tmp_path / "f.fdb") as db:
        define(db)
        observe(db, ("JFK", T0, 1.0, "a"), to="offline")
    with fdb.open(tmp_path / "f.fdb") as db:
        assert db.materialize(incremental=True).keys_updated == {"weather": 1}
    with fdb.open(tmp_path / "f.fdb") as db:
        assert db.materialize(incremental=True).keys_updated == {"weather": 0}


def test_of_one_row_loaded_apart_twice_the_later_commit_is_served(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "history"), to="offline")
    observe(db, ("JFK", T0, 1.0, "corrected online"), to="online")
    db.materialize()
    assert skies(db, "JFK") == ["corrected online"]
    observe(db, ("JFK", T0, 1.0, "corrected offline"), to="offline")
    assert skies(db, "JFK") == ["corrected online"]
    db.materialize(incremental=True)
    assert skies(db, "JFK") == ["corrected offline"]
    assert not db.verify().differences


def test_a_correction_offline_is_a_difference_and_no_damage(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "first"))
    observe(db, ("JFK", T0, 1.0, "corrected"), to="offline")
    report = db.verify()
    assert report.ok
    assert [difference.key for difference in report.differences] == ["origin='JFK'"]
    db.materialize(incremental=True)
    assert not db.verify().differences


def test_verify_lists_each_key_that_was_loaded_apart(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "same"), ("LGA", T0, 1.0, "behind"))
    observe(db, ("LGA", T0 + HOUR, 2.0, "ahead"), ("EWR", T0, 1.0, "unserved"), to="offline")
    observe(db, ("BOS", T0, 1.0, "no history"), to="online")
    report = db.verify()
    assert report.ok
    assert sorted(str(difference.key) for difference in report.differences) == [
        "origin='BOS'",
        "origin='EWR'",
        "origin='LGA'",
    ]


# --- tables that are not kept online --------------------------------------------------------------


def test_a_table_with_online_false_keeps_no_online_rows_and_refuses_reads(db: fdb.Database) -> None:
    define(db, online=False)
    report = observe(db, ("JFK", T0, 1.0, "a"))
    assert (report.rows_ingested, report.online_keys_updated) == (1, 0)
    assert db.info()["feature_tables"]["weather"]["online_keys"] is None
    for use in (
        lambda: db.get_online_features(["weather:sky"], {"origin": ["JFK"]}),
        lambda: db.online_reader(["weather:sky"]).get("JFK"),
        lambda: observe(db, ("JFK", T0, 1.0, "a"), to="online"),
        lambda: db.materialize("weather"),
        lambda: db.materialize("weather", incremental=True),
    ):
        with pytest.raises(fdb.FeatureDBError, match=r"weather'? is not kept online; define it with online=True"):
            use()
    assert db.materialize().keys_updated == {}
    assert db.verify().ok
    assert not db.verify().differences


def test_switching_online_off_empties_and_on_fills(db: fdb.Database) -> None:
    define(db)
    observe(db, ("JFK", T0, 1.0, "a"))
    observe(db, ("LGA", T0, 1.0, "b"), to="offline")
    define(db, online=False)
    assert db.info()["feature_tables"]["weather"]["online_keys"] is None
    assert db.verify().ok
    observe(db, ("JFK", T0 + HOUR, 1.0, "c"))
    define(db, online=True)
    assert skies(db, "JFK", "LGA") == ["c", "b"]
    assert db.materialize(incremental=True).keys_updated == {"weather": 0}
    assert not db.verify().differences
