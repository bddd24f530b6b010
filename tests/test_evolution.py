"""Definitions change on a table that has many segments and is held by old snapshots. (At random: test_stateful.py.)"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from strategies import tiny_limits

import featuredb as fdb

pytestmark = pytest.mark.usefixtures("segments_only")

T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
KEYS = ["a", "b", "c"]
FIRST = fdb.FeatureTable("t", ["k"], [fdb.Feature("x", "int64"), fdb.Feature("y", "string")], labels={"team": "ops"})


@pytest.fixture
def many(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> fdb.Database:
    """Table ``t`` with a segment for each of 6 hours; in hour h, key k has x = 10 h + its place, and y = str(x)."""
    tiny_limits(monkeypatch)
    monkeypatch.setattr("featuredb.offline.merge.MERGE_FANOUT", 100)
    db.apply([fdb.Entity("k", "string"), FIRST])
    for hour in range(6):
        load(db, hour)
    assert db.info()["feature_tables"]["t"]["segments"] == 6
    return db


def load(db: fdb.Database, hour: int, **more: list[Any]) -> None:
    numbers = [10 * hour + place for place in range(len(KEYS))]
    columns = {"x": numbers, "y": list(map(str, numbers)), **more}
    names = db.get_feature_table("t").feature_names
    data = {name: columns[name] for name in names}
    db.ingest("t", {"k": KEYS, "event_timestamp": [T0 + hour * HOUR] * len(KEYS), **data})


def history(db: fdb.Database, name: str) -> list[Any]:
    """Of key b, in each of the hours."""
    asked = {"k": ["b"] * 8, "event_timestamp": [T0 + hour * HOUR for hour in range(8)]}
    return db.get_historical_features(asked, [f"t:{name}"]).to_arrow()[name].to_pylist()


def online(db: fdb.Database, name: str, hour: int = 0) -> list[Any]:
    return db.get_online_features([f"t:{name}"], {"k": KEYS}, now=T0 + hour * HOUR).to_dict()[name]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_new_feature_is_null_in_every_old_row_and_old_snapshots_do_not_have_it(
    many: fdb.Database, compacted: bool
) -> None:
    many.snapshot("old")
    many.apply(replace(FIRST, features=[fdb.Feature("new", "float32[2]"), *FIRST.features]))
    load(many, 6, new=[[1.0, 2.0]] * 3)
    if compacted:
        many.compact()
    assert history(many, "new") == [None] * 6 + [[1.0, 2.0]] * 2
    assert history(many, "x") == [1, 11, 21, 31, 41, 51, 61, 61]
    assert online(many, "new") == [[1.0, 2.0]] * 3
    old = many.at("old")
    assert old.get_feature_table("t") == FIRST
    assert history(old, "x") == [1, 11, 21, 31, 41, 51, 51, 51]
    assert online(old, "y") == ["50", "51", "52"]
    with pytest.raises(fdb.NotFoundError, match="'new'"):
        history(old, "new")
    assert many.verify().ok


@pytest.mark.parametrize("compacted", [False, True])
def test_a_removed_feature_is_gone_but_for_old_snapshots_and_its_name_stays_reserved(
    many: fdb.Database, compacted: bool
) -> None:
    many.snapshot("old")
    many.apply(replace(FIRST, features=FIRST.features[:1]))
    load(many, 6)
    if compacted:
        many.compact()
    assert history(many, "x") == [1, 11, 21, 31, 41, 51, 61, 61]
    for read in (history, online):
        with pytest.raises(fdb.NotFoundError, match=r"'y'.*removed"):
            read(many, "y")
    with pytest.raises(fdb.DefinitionError, match=r"'y'.*reserved"):
        many.apply(FIRST)
    old = many.at("old")
    assert history(old, "y") == ["1", "11", "21", "31", "41", "51", "51", "51"]
    assert online(old, "y") == ["50", "51", "52"]
    assert many.verify().ok


def test_the_max_age_changes_for_all_rows_and_not_in_old_snapshots(many: fdb.Database) -> None:
    many.snapshot("old")
    many.apply(replace(FIRST, max_age=HOUR))
    assert history(many, "x") == [1, 11, 21, 31, 41, 51, 51, None]
    assert online(many, "x", hour=7) == [None] * 3
    assert history(many.at("old"), "x")[-1] == 51
    assert online(many.at("old"), "x", hour=7) == [50, 51, 52]
    many.snapshot("limited")
    many.apply(FIRST)
    assert history(many, "x")[-1] == 51
    assert history(many.at("limited"), "x")[-1] is None


def test_source_labels_and_description_change_without_a_change_of_rows(many: fdb.Database, tmp_path: Any) -> None:
    source = fdb.FileSource(tmp_path / "t.parquet", "at", field_mapping={"key": "k"})
    changed = replace(FIRST, batch_source=source, labels={"team": "ml"}, description="of ml")
    many.snapshot("old")
    before = history(many, "x"), online(many, "x")
    many.apply(changed)
    assert many.get_feature_table("t") == changed
    assert many.at("old").get_feature_table("t") == FIRST
    assert (history(many, "x"), online(many, "x")) == before
    pq.write_table(pa.table({"key": ["b"], "at": [T0 + 6 * HOUR], "x": [61], "y": ["61"]}), source.path)
    assert many.ingest("t").rows_ingested == 1
    assert history(many, "x")[-1] == 61
    assert many.verify().ok
