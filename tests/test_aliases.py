"""Join-key aliases: one table in several roles, offline and online, from a service or given with the request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click.testing
import oracle
import pytest
from hypothesis import given
from strategies import Case, cases, container, plain, to_datetime

import featuredb as fdb
from featuredb.cli import main
from featuredb.storage import registry
from featuredb.storage.segment import SegmentCache

pytestmark = pytest.mark.usefixtures("segments_only")

T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALIASES = {
    "origin_weather": fdb.Alias("weather", {"airport": "origin_id"}),
    "dest_weather": fdb.Alias("weather", {"airport": "dest_id"}),
}
BOTH = ["origin_weather:temp", "dest_weather:temp"]


@pytest.fixture
def weather(db: fdb.Database) -> fdb.Database:
    """Two airports with their weather."""
    define(db)
    return db


def define(db: fdb.Database) -> None:
    db.apply(
        [
            fdb.Entity("airport", "string"),
            fdb.Entity("day", "int32"),
            fdb.FeatureTable("weather", ["airport"], [fdb.Feature("temp", "float64")], max_age=3 * HOUR),
            fdb.FeatureTable("news", ["airport", "day"], [fdb.Feature("score", "int8")]),
        ]
    )
    rows = {"airport": ["JFK", "LAX"], "event_timestamp": [T0, T0 + HOUR], "temp": [1.0, 2.0]}
    db.ingest("weather", rows)


def flights() -> dict[str, list[Any]]:
    return {
        "origin_id": ["JFK", "LAX", "JFK", None],
        "dest_id": ["LAX", "JFK", "SFO", "JFK"],
        "event_timestamp": [T0, T0 + HOUR, T0 + 3 * HOUR, T0],
    }


# --- equal to the oracle ----------------------------------------------------------------------------


@given(case=cases(tables_max=2))
def test_each_table_in_two_roles_equals_the_oracle_offline_and_online(case: Case) -> None:
    """Role ``a`` has the keys of each row, role ``b`` those of the rows in reverse; the first entity is renamed."""
    aliases = {
        f"{table.name}_{role}": fdb.Alias(table.name, {table.entities[0]: f"{table.entities[0]}_{role}"})
        for table in case.tables
        for role in "ab"
    }
    asked = [f"{table.name}_{role}:{feature}" for table in case.tables for role in "ab" for feature in table.features]
    columns = case.left_columns()
    for name in case.entities:
        dtype, values = columns[name]
        columns[f"{name}_a"], columns[f"{name}_b"] = (dtype, values), (dtype, values[::-1])
    now = case.base + 4
    with fdb.open(":memory:") as db:
        tables = case.load(db)
        training = db.get_historical_features(
            container("arrow", columns), asked, aliases=aliases, full_feature_names=True, include_event_timestamps=True
        ).to_arrow()
        keys = container("arrow", {name: column for name, column in columns.items() if name != "event_timestamp"})
        options: dict[str, Any] = {"aliases": aliases, "full_feature_names": True}
        online = db.get_online_features(asked, keys, now=to_datetime(now), **options)
        reader = db.online_reader(asked, **options)
        arrays = reader.get_many(keys, now=to_datetime(now))
        singles = [reader.get(row, now=to_datetime(now)) for row in keys.to_pylist()]
        for table in case.tables:
            for role in "ab":
                renamed = [f"{table.entities[0]}_{role}", *table.entities[1:]]
                asked_keys = list(zip(*(columns[name][1] for name in renamed), strict=True))
                joined = [tables[table.name].join(key, at) for key, (_, at) in zip(asked_keys, case.left, strict=True)]
                read = [tables[table.name].read(key, now) for key in asked_keys]
                use = f"{table.name}_{role}"
                assert plain(training.column(f"{use}__event_timestamp")) == [row and row.event for row in joined]
                events = online.event_timestamps[use].astype("M8[us]").tolist()
                assert [at and at.replace(tzinfo=UTC) for at in events] == [to_datetime(at) for _, _, at in read]
                for feature in table.features:
                    name = f"{use}__{feature}"
                    want = [row and row.values[feature] for row in joined]
                    assert all(map(oracle.same, plain(training.column(name)), want)), name
                    want = [values[feature] for values, _, _ in read]
                    assert all(map(oracle.same, plain(online.to_arrow().column(name)), want)), name
                    got = [row[name].tolist() if hasattr(row[name], "tolist") else row[name] for row in singles]
                    assert all(map(oracle.same, got, online.to_dict()[name])), name
                    statuses = [status[feature] for _, status, _ in read]
                    assert [fdb.Status(code).name for code in arrays.statuses[name]] == statuses


# --- by name ----------------------------------------------------------------------------------------


def test_a_service_with_aliases_joins_one_table_twice(weather: fdb.Database) -> None:
    service = fdb.FeatureService("delay", BOTH, aliases=ALIASES)
    weather.apply(service)
    for asked in ("delay", service):
        result = weather.get_historical_features(flights(), asked, full_feature_names=True).to_arrow()
        assert result.column_names[3:] == ["origin_weather__temp", "dest_weather__temp"]
        assert result.column(3).to_pylist() == [1.0, 2.0, 1.0, None]
        assert result.column(4).to_pylist() == [None, 1.0, None, 1.0]


def test_the_table_itself_and_an_alias_go_together(weather: fdb.Database) -> None:
    frame = {"airport": ["JFK"], "dest_id": ["LAX"], "event_timestamp": [T0 + HOUR]}
    result = weather.get_historical_features(
        frame, ["weather:temp", "dest_weather:temp"], aliases=ALIASES, full_feature_names=True
    ).to_numpy()
    assert {name: column.tolist() for name, column in result.items()} == {
        "weather__temp": [1.0],
        "dest_weather__temp": [2.0],
    }


def test_online_reads_take_keys_by_column_in_every_form(weather: fdb.Database) -> None:
    weather.apply(fdb.FeatureService("delay", BOTH, aliases=ALIASES))
    row = {"origin_id": "JFK", "dest_id": "LAX"}
    want = {"origin_weather__temp": 1.0, "dest_weather__temp": 2.0}
    now = T0 + HOUR
    response = weather.get_online_features("delay", [row], now=now, full_feature_names=True)
    assert response.to_dict() == {"origin_id": ["JFK"], "dest_id": ["LAX"], **{k: [v] for k, v in want.items()}}
    assert list(response.event_timestamps) == ["origin_weather", "dest_weather"]
    reader = weather.online_reader("delay", full_feature_names=True)
    assert reader.get(row, now=now) == reader.get(("JFK", "LAX"), now=now) == want
    assert reader.get({**row, "origin_id": None}, now=now) == {**want, "origin_weather__temp": None}
    for keys in ([row], [("JFK", "LAX")], {"origin_id": ["JFK"], "dest_id": ["LAX"]}):
        columns = reader.get_many(keys, now=now).columns
        assert {name: values.tolist() for name, values in columns.items()} == {k: [v] for k, v in want.items()}


def test_aliases_of_the_request_add_to_the_services_and_go_before_them(weather: fdb.Database) -> None:
    weather.apply(fdb.FeatureService("delay", BOTH, aliases=ALIASES))
    other = {"dest_weather": fdb.Alias("weather", {"airport": "goal"})}
    row = {"origin_id": "JFK", "goal": "LAX"}
    options: dict[str, Any] = {"aliases": other, "full_feature_names": True}
    online = weather.get_online_features("delay", [row], now=T0 + HOUR, **options).to_dict()
    assert (online["origin_weather__temp"], online["dest_weather__temp"]) == ([1.0], [2.0])
    # Not the query held for the same names and other aliases.
    assert (
        "dest_id"
        in weather.get_online_features(
            "delay", [{"origin_id": "JFK", "dest_id": "LAX"}], full_feature_names=True
        ).to_dict()
    )
    frame = {"origin_id": ["JFK"], "goal": ["LAX"], "event_timestamp": [T0 + HOUR]}
    joined = weather.get_historical_features(frame, "delay", **options).to_numpy()
    assert joined["dest_weather__temp"].tolist() == [2.0]


def test_one_of_several_entities_may_be_renamed(weather: fdb.Database) -> None:
    weather.ingest("news", {"airport": ["JFK"], "day": [3], "event_timestamp": [T0], "score": [9]})
    aliases = {"dest_news": fdb.Alias("news", {"airport": "dest_id"})}
    frame = {"day": [3, 4], "dest_id": ["JFK", "JFK"], "event_timestamp": [T0, T0]}
    result = weather.get_historical_features(frame, ["dest_news:score"], aliases=aliases).to_arrow()
    assert result.column("score").to_pylist() == [9, None]


def test_both_entities_may_be_one_column(db: fdb.Database) -> None:
    db.apply([fdb.Entity("a", "int64"), fdb.Entity("b", "int64")])
    db.apply(fdb.FeatureTable("pair", ["a", "b"], [fdb.Feature("n", "int64")]))
    db.ingest("pair", {"a": [1, 1], "b": [1, 2], "event_timestamp": [T0, T0], "n": [11, 12]})
    aliases = {"self": fdb.Alias("pair", {"a": "x", "b": "x"})}
    frame = {"x": [1, 2], "event_timestamp": [T0, T0]}
    training = db.get_historical_features(frame, ["self:n"], aliases=aliases)
    assert training.to_arrow().column("n").to_pylist() == [11, None]
    reader = db.online_reader(["self:n"], aliases=aliases)
    assert (reader.get(1), reader.get(2)) == ({"n": 11}, {"n": None})


def test_two_roles_share_the_dictionary_and_the_segments(
    weather: fdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    reader = SegmentCache.reader

    def counted(self: SegmentCache, *args: Any) -> Any:
        opened.append(args[1:])
        return reader(self, *args)

    monkeypatch.setattr(SegmentCache, "reader", counted)
    weather.get_historical_features(flights(), BOTH, aliases=ALIASES, full_feature_names=True).to_numpy()
    assert len(opened) == weather.info()["feature_tables"]["weather"]["segments"] == 1
    assert len(weather._dictionaries) == 1


def test_aliases_are_as_they_were_when_asked_and_part_of_the_lineage(weather: fdb.Database) -> None:
    given = dict(ALIASES)
    swapped = {"origin_weather": ALIASES["dest_weather"], "dest_weather": ALIASES["origin_weather"]}
    training, other = (
        weather.get_historical_features(flights(), BOTH, aliases=aliases, full_feature_names=True)
        for aliases in (given, swapped)
    )
    reader = weather.online_reader(BOTH, aliases=given, full_feature_names=True)
    given.clear()
    weather.apply(fdb.Entity("unrelated", "int8"))  # so that the reader resolves its names again
    row = {"origin_id": "JFK", "dest_id": "LAX"}
    assert reader.get(row, now=T0 + HOUR) == {"origin_weather__temp": 1.0, "dest_weather__temp": 2.0}
    assert training.to_numpy()["origin_weather__temp"].tolist() == [1.0, 2.0, 1.0, None]
    assert training.lineage["aliases"]["origin_weather"] == {"table": "weather", "keys": {"airport": "origin_id"}}
    assert training.lineage != other.lineage


def test_aliases_are_stored_with_the_service_and_change_with_it(tmp_path: Path) -> None:
    path = tmp_path / "f.fdb"
    service = fdb.FeatureService("delay", BOTH, aliases=ALIASES)
    with fdb.open(path) as db:
        define(db)
        db.apply(service)
    with fdb.open(path) as db:
        assert db.get_feature_service("delay") == service
        assert [change.action for change in db.apply(service)] == ["unchanged"]
        changed = {**ALIASES, "dest_weather": fdb.Alias("weather", {"airport": "goal"})}
        (change,) = db.apply(fdb.FeatureService("delay", BOTH, aliases=changed))
        assert change.action == "update"
        assert "goal" in str(change)
        assert db.get_feature_service("delay").aliases == changed


def test_a_service_stored_before_there_were_aliases_is_read(weather: fdb.Database) -> None:
    record = registry._service_record

    def old(service: fdb.FeatureService) -> dict[str, Any]:
        return {name: value for name, value in record(service).items() if name != "aliases"}

    service = fdb.FeatureService("plain", ["weather:temp"], description="old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_service_record", old)
        weather.apply(service)
    assert weather.get_feature_service("plain") == service


def test_a_table_that_a_service_reads_by_an_alias_stays(weather: fdb.Database) -> None:
    weather.apply(fdb.FeatureService("delay", BOTH, aliases=ALIASES))
    with pytest.raises(fdb.DefinitionError, match="'weather' is read by feature service 'delay'"):
        weather.delete_feature_table("weather")
    with pytest.raises(fdb.DefinitionError, match=r"'delay'.*'origin_weather'.*has this name"):
        weather.apply(fdb.FeatureTable("origin_weather", ["airport"], [fdb.Feature("temp", "float64")]))


def test_the_command_line_reads_a_service_with_aliases(tmp_path: Path) -> None:
    path = str(tmp_path / "f.fdb")
    with fdb.open(path) as db:
        define(db)
        db.apply(fdb.FeatureService("delay", BOTH, aliases=ALIASES))
    arguments = ["get", path, "--service", "delay", "--full-feature-names", "--now", "2013-01-01T01:00"]
    shown = click.testing.CliRunner().invoke(main, [*arguments, "origin_id=JFK,dest_id=LAX"])
    assert shown.exit_code == 0, shown.output
    assert [line.split()[1:3] for line in shown.output.splitlines()[1:]] == [
        ["origin_weather__temp", "1"],
        ["dest_weather__temp", "2"],
    ]
    asked, out = tmp_path / "flights.csv", tmp_path / "out.csv"
    asked.write_text("origin_id,dest_id,event_timestamp\nJFK,LAX,2013-01-01T01:00\n")
    arguments = ["join", path, str(asked), str(out), "--service", "delay", "--full-feature-names"]
    joined = click.testing.CliRunner().invoke(main, arguments)
    assert joined.exit_code == 0, joined.output
    assert out.read_text().splitlines()[1].endswith("1.0,2.0")
    assert (
        "origin_weather: weather by airport=origin_id"
        in click.testing.CliRunner().invoke(main, ["tables", path]).output
    )


# --- refusals ---------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "an unknown table": (
        {"x": fdb.Alias("wether", {"airport": "a"})},
        fdb.NotFoundError,
        ["'x'", "'wether'", "weather"],
    ),
    "an unknown entity": (
        {"x": fdb.Alias("weather", {"airprt": "a"})},
        fdb.NotFoundError,
        ["'x'", "'weather' has no entity 'airprt'", "it has airport"],
    ),
    "the name of a table": (
        {"x": fdb.Alias("weather", {"airport": "a"}), "news": fdb.Alias("weather", {"airport": "a"})},
        fdb.DefinitionError,
        ["'news'", "feature table has this name", "give the alias another"],
    ),
    "a reference to nothing": ({}, fdb.NotFoundError, ["'x'"]),
    "a reference to no alias": ({"y": fdb.Alias("weather", {"airport": "a"})}, fdb.NotFoundError, ["alias 'x'", "y"]),
    "no alias": ({"x": "weather"}, fdb.DefinitionError, ["'x'", "fdb.Alias", "'weather'"]),
    "no mapping": (["x"], fdb.DefinitionError, ["aliases must map"]),
    "no name": ({"x:y": fdb.Alias("weather", {"airport": "a"})}, fdb.DefinitionError, ["'x:y'", "not valid"]),
    "a column of two dtypes": (
        {"x": fdb.Alias("news", {"airport": "day"})},
        fdb.DefinitionError,
        ["'day'", "string", "int32", "another column"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_an_alias_that_cannot_be_used_is_refused_everywhere(weather: fdb.Database, name: str) -> None:
    aliases, kind, words = BAD[name]
    feature = "score" if name == "a column of two dtypes" else "temp"
    frame = {"a": ["JFK"], "day": [1], "event_timestamp": [T0]}
    calls: list[Any] = [
        lambda: weather.get_historical_features(frame, [f"x:{feature}"], aliases=aliases),
        lambda: weather.get_historical_features(None, [f"x:{feature}"], aliases=aliases),
        lambda: weather.get_online_features([f"x:{feature}"], frame, aliases=aliases),
        lambda: weather.online_reader([f"x:{feature}"], aliases=aliases),
    ]
    for call in calls:
        with pytest.raises(kind) as error:
            call()
        assert all(word in str(error.value) for word in words), str(error.value)
    with pytest.raises(fdb.DefinitionError):
        weather.apply(fdb.FeatureService("s", [f"x:{feature}"], aliases=aliases))
    assert weather.list_feature_services() == []


def test_all_problems_of_aliases_and_references_are_reported_together(weather: fdb.Database) -> None:
    aliases = {"x": fdb.Alias("nope", {"airport": "a"}), "y": fdb.Alias("weather", {"zip": "a"})}
    with pytest.raises(fdb.NotFoundError) as error:
        weather.get_historical_features(flights(), ["x:temp", "y:temp", "weather:wind"], aliases=aliases)
    message = str(error.value)
    assert all(word in message for word in ("'nope'", "'zip'", "'wind'"))
    assert message.count("'x'") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("weather", {}), "keys is empty"),
        (("weather", ["airport"]), "keys must map"),
        (("weather", {"airport": 1}), "keys must map"),
        (("weather", {"airport": ""}), "keys must map"),
        (("1weather", {"airport": "a"}), "'1weather' is not valid"),
    ],
)
def test_a_malformed_alias_is_refused_when_made(arguments: tuple[Any, Any], words: str) -> None:
    with pytest.raises(fdb.DefinitionError, match=words):
        fdb.Alias(*arguments)


def test_equal_names_without_full_feature_names_are_refused_with_the_remedy(weather: fdb.Database) -> None:
    with pytest.raises(fdb.InputError, match="full_feature_names=True"):
        weather.get_historical_features(flights(), BOTH, aliases=ALIASES)
    with pytest.raises(fdb.InputError, match="full_feature_names=True"):
        weather.get_online_features(BOTH, flights(), aliases=ALIASES)


def test_a_column_that_an_alias_needs_and_the_dataframe_lacks_is_named_with_its_role(weather: fdb.Database) -> None:
    frame = {"origin_id": ["JFK"], "event_timestamp": [T0]}
    with pytest.raises(fdb.InputError, match=r"'dest_id'.*missing.*entity 'airport' of alias 'dest_weather'"):
        weather.get_historical_features(frame, BOTH, aliases=ALIASES, full_feature_names=True)
    with pytest.raises(fdb.InputError, match="'dest_id' is missing"):
        weather.get_online_features(BOTH, frame, aliases=ALIASES, full_feature_names=True)
