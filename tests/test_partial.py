"""Partial rows: features that the data lacks come from the stored row before. (At random: test_apart.py.)"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from strategies import small_batches

import featuredb as fdb
from featuredb.limits import ABSENT_US
from featuredb.offline import kernels

pytestmark = pytest.mark.usefixtures("both_histories")

T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def weather(db: fdb.Database) -> fdb.Database:
    features = [fdb.Feature("temp", "float64"), fdb.Feature("sky", "string")]
    db.apply([fdb.Entity("origin", "string"), fdb.FeatureTable("weather", ["origin"], features, max_age=HOUR)])
    return db


def row(event: datetime, created: datetime | None = None, **values: Any) -> list[dict[str, Any]]:
    made = {} if created is None else {"created_timestamp": created}
    return [{"origin": "JFK", "event_timestamp": event, **made, **values}]


def at(db: fdb.Database, moment: datetime) -> tuple[Any, Any]:
    """The row of JFK at a moment."""
    asked = {"origin": ["JFK"], "event_timestamp": [moment]}
    found = db.get_historical_features(asked, ["weather:temp", "weather:sky"]).to_arrow().to_pylist()[0]
    return found["temp"], found["sky"]


def test_without_partial_data_that_lacks_features_is_refused_with_the_remedy(weather: fdb.Database) -> None:
    with pytest.raises(fdb.InputError, match=r"'sky'.*missing.*partial=True"):
        weather.ingest("weather", row(T0, temp=1.0))
    assert len(weather.log()) == 1


def test_keys_times_and_at_least_one_feature_are_needed_even_so(weather: fdb.Database) -> None:
    with pytest.raises(fdb.InputError, match=r"'temp'.*missing") as caught:
        weather.ingest("weather", row(T0), partial=True)
    assert "partial=True" not in str(caught.value)
    with pytest.raises(fdb.InputError, match=r"'event_timestamp'.*missing"):
        weather.ingest("weather", [{"origin": "JFK", "temp": 1.0}], partial=True)


def test_the_row_before_fills_whatever_its_age_and_later_ones_do_not(weather: fdb.Database) -> None:
    weather.ingest("weather", row(T0, temp=1.0, sky="before") + row(T0 + 9 * HOUR, temp=9.0, sky="after"))
    report = weather.ingest("weather", row(T0 + 8 * HOUR, temp=8.0), partial=True)
    assert report.features_filled == ("sky",)
    assert at(weather, T0 + 8 * HOUR) == (8.0, "before")
    assert at(weather, T0 + 9 * HOUR) == (9.0, "after")


def test_without_a_row_before_the_features_are_null(weather: fdb.Database) -> None:
    weather.ingest("weather", row(T0 + HOUR, temp=1.0, sky="after"))
    weather.ingest("weather", row(T0, temp=2.0), partial=True)
    assert at(weather, T0) == (2.0, None)


def test_of_equal_event_timestamps_the_created_timestamp_says_which_is_before(weather: fdb.Database) -> None:
    for hours in (3, 1, 5):
        weather.ingest("weather", row(T0, T0 + hours * HOUR, temp=1.0, sky=f"created {hours}"))
    weather.ingest("weather", row(T0, T0 + 4 * HOUR, temp=4.0), partial=True)
    history = weather.get_historical_features(
        {"origin": ["JFK"], "event_timestamp": [T0]}, ["weather:temp", "weather:sky"], known_at=T0 + 4 * HOUR
    )
    assert history.to_arrow().to_pylist()[0]["sky"] == "created 3"
    assert at(weather, T0) == (1.0, "created 5")


def test_a_row_that_replaces_one_is_filled_from_just_that(weather: fdb.Database) -> None:
    weather.ingest("weather", row(T0 - HOUR, temp=0.0, sky="older") + row(T0, temp=1.0, sky="itself"))
    report = weather.ingest("weather", row(T0, temp=2.0), partial=True)
    assert report.duplicates_replaced == 1
    assert at(weather, T0) == (2.0, "itself")
    again = weather.ingest("weather", row(T0, temp=2.0), partial=True)
    assert (again.rows_unchanged, again.committed) == (1, False)


def test_a_replaced_row_fills_nothing(weather: fdb.Database) -> None:
    weather.ingest("weather", row(T0, temp=1.0, sky="wrong"))
    weather.ingest("weather", row(T0, temp=1.0, sky="right"))
    weather.ingest("weather", row(T0 + HOUR, temp=2.0), partial=True)
    assert at(weather, T0 + HOUR) == (2.0, "right")


@pytest.mark.parametrize("seed", range(20))
def test_the_kernel_finds_the_greatest_live_row_up_to_each(seed: int) -> None:
    """Against a scan, over several chunks with dead rows."""
    random = np.random.default_rng(seed)
    stored = sorted(set(zip(*(random.integers(0, most, 40).tolist() for most in (4, 3, 4)), strict=True)))
    dead = random.random(len(stored)) < 0.4
    asked = sorted(zip(*(random.integers(0, most, 30).tolist() for most in (5, 4, 5)), strict=True))
    codes, event, created = (np.array(column) for column in zip(*stored, strict=True))
    segment_codes, starts = np.unique(codes, return_index=True)
    starts = np.append(starts, len(stored)).astype(np.int32)
    queries = [np.array(column) for column in zip(*asked, strict=True)]
    best = [np.full(30, ABSENT_US), np.full(30, ABSENT_US), np.full(30, -1, np.int32), np.zeros(30, np.int32)]
    for first in range(0, len(stored), 7):
        part = slice(first, first + 7)
        kernels.find_before(
            queries[0].astype(np.int32), queries[1], queries[2], segment_codes.astype(np.int32), starts, first,
            event[part], created[part], dead[part], 0, *best,
        )  # fmt: skip
    for place, query in enumerate(asked):
        alive = [n for n, row in enumerate(stored) if row[0] == query[0] and row <= query and not dead[n]]
        assert best[2][place] == (0 if alive else -1)
        assert not alive or best[3][place] == max(alive)


def test_a_null_that_was_given_stays_null_and_a_stored_null_fills_as_null(weather: fdb.Database) -> None:
    weather.ingest("weather", row(T0, temp=1.0, sky="a") + row(T0 + HOUR, temp=1.0, sky=None))
    weather.ingest("weather", row(T0 + 2 * HOUR, temp=None), partial=True)
    assert at(weather, T0 + 2 * HOUR) == (None, None)


def test_the_size_of_batches_makes_no_difference(weather: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    weather.ingest("weather", row(T0, temp=0.0, sky="stored"))
    small_batches(monkeypatch, 1)
    rows = row(T0 + 2 * HOUR, temp=2.0) + row(T0 + HOUR, temp=1.0) + row(T0, temp=3.0) + row(T0, temp=4.0)
    report = weather.ingest("weather", rows, partial=True)
    assert (report.rows_ingested, report.rows_repeated) == (3, 1)
    assert [at(weather, T0 + hours * HOUR) for hours in range(3)] == [(4.0, "stored"), (1.0, "stored"), (2.0, "stored")]


def test_a_partial_row_is_served_as_it_is_stored(weather: fdb.Database) -> None:
    weather.ingest("weather", row(T0, temp=1.0, sky="a"))
    weather.ingest("weather", row(T0 + HOUR, temp=2.0), partial=True)
    assert weather.online_reader(["weather:temp", "weather:sky"]).get("JFK", now=T0 + HOUR) == {
        "temp": 2.0,
        "sky": "a",
    }
    assert not weather.verify().differences


def test_with_to_online_the_online_row_fills(weather: fdb.Database) -> None:
    weather.ingest("weather", row(T0, temp=1.0, sky="history"), to="offline")
    weather.ingest("weather", row(T0, temp=1.0, sky="online"), to="online")
    weather.ingest("weather", row(T0 + HOUR, temp=2.0), to="online", partial=True)
    reader = weather.online_reader(["weather:temp", "weather:sky"])
    assert reader.get("JFK", now=T0 + HOUR) == {"temp": 2.0, "sky": "online"}
    weather.ingest("weather", [{"origin": "LGA", "event_timestamp": T0, "sky": "new"}], to="online", partial=True)
    assert reader.get("LGA", now=T0) == {"temp": None, "sky": "new"}
    late = weather.ingest("weather", row(T0, temp=0.0), to="online", partial=True)
    assert late.online_keys_updated == 0
    assert reader.get("JFK", now=T0 + HOUR) == {"temp": 2.0, "sky": "online"}


def test_a_feature_added_later_fills_as_null_from_older_segments(weather: fdb.Database) -> None:
    weather.ingest("weather", row(T0, temp=1.0, sky="a"))
    features = [fdb.Feature("temp", "float64"), fdb.Feature("sky", "string"), fdb.Feature("gust", "int16")]
    weather.apply(fdb.FeatureTable("weather", ["origin"], features))
    report = weather.ingest("weather", row(T0 + HOUR, temp=2.0), partial=True)
    assert report.features_filled == ("sky", "gust")
    assert at(weather, T0 + HOUR) == (2.0, "a")
    assert weather.verify().ok


def test_columns_have_the_names_of_the_source(db: fdb.Database) -> None:
    source = fdb.FileSource("w.csv", event_timestamp_column="at", field_mapping={"temp_f": "temp"})
    features = [fdb.Feature("temp", "float64"), fdb.Feature("sky", "string")]
    db.apply([fdb.Entity("origin", "string"), fdb.FeatureTable("weather", ["origin"], features, batch_source=source)])
    rows = {"origin": ["JFK"], "at": [T0], "temp_f": [39.0]}
    with pytest.raises(fdb.InputError, match=r"'sky'.*missing"):
        db.ingest("weather", rows)
    assert db.ingest("weather", rows, partial=True).features_filled == ("sky",)
    assert at(db, T0) == (39.0, None)
