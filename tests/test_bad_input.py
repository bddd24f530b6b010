"""Bad input: the class of the error, what its message says, all problems at once, and a file that stays as it was."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from strategies import small_batches

import featuredb as fdb
from featuredb.storage.records import pack

T0 = datetime(2013, 1, 1, tzinfo=UTC)
GOOD = {"origin": ["JFK"], "event_timestamp": [T0], "temp": [1.5], "gust": [7]}
ASKED = {"origin": ["JFK"], "event_timestamp": [T0]}
FEATURES = [fdb.Feature("temp", "float64"), fdb.Feature("gust", "int16")]


def weather(**options: Any) -> fdb.FeatureTable:
    return fdb.FeatureTable("weather", **{"entities": ["origin"], "features": FEATURES, **options})


def digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[fdb.Database]:
    """A file with a composite key, two tables that share a feature name, a service and a row."""
    with fdb.open(tmp_path / "stored.fdb") as db:
        db.apply(
            [
                fdb.Entity("origin", "string"),
                fdb.Entity("carrier", "int64"),
                weather(),
                fdb.FeatureTable("air", ["origin", "carrier"], [fdb.Feature("temp", "float32")], online=False),
                fdb.FeatureService("model", ["weather:temp"]),
            ]
        )
        db.ingest("weather", GOOD)
        yield db


def refused(db: fdb.Database, use: Callable[[fdb.Database], Any], kind: type[Exception], *parts: str) -> str:
    """Assert that the use raises with a message of all these parts, and leaves the file byte for byte."""
    before = digest(db.path)
    with pytest.raises(fdb.FeatureDBError) as caught:
        use(db)
    message = str(caught.value)
    assert type(caught.value) is kind, f"{caught.value!r}"
    for part in parts:
        assert re.search(part, message), f"{part!r} is not in: {message}"
    assert digest(db.path) == before
    return message


# --- data that is ingested -------------------------------------------------------------------------------


def changed(**columns: Any) -> dict[str, Any]:
    """Good data with these columns instead; None leaves one out."""
    return {name: values for name, values in {**GOOD, **columns}.items() if values is not None}


NANOSECOND = np.array([1, 1_000], dtype="M8[ns]")
TWICE = pd.DataFrame([[T0, "JFK", 1.0, 2.0, 3]], columns=["event_timestamp", "origin", "temp", "temp", "gust"])

INGESTS: dict[str, tuple[Any, list[str]]] = {
    "missing columns, all of them at once": (
        {"origin": ["JFK"], "temperature": [1.5]},
        ["'event_timestamp'.*missing", "'temp'.*missing", "'gust'.*missing", "'temperature'", "3 problems"],
    ),
    "a wrong dtype": (changed(temp=["warm"]), ["column 'temp'", "row 0", "'warm'", "float64", "to_numeric"]),
    "a lossy cast to an integer": (changed(gust=[1.5]), ["column 'gust'", "row 0", "1.5", "not a whole number"]),
    "a value out of range": (changed(gust=[40_000]), ["column 'gust'", "row 0", "40000", "out of the range of int16"]),
    "an integer that a float cannot hold": (
        changed(temp=[2**53 + 1]),
        ["column 'temp'", "row 0", "9007199254740993", "cannot hold exactly"],
    ),
    "a null key": (changed(origin=[None]), ["column 'origin'", "row 0", "null entity key", "leave the row out"]),
    "a key of a wrong dtype": (changed(origin=[7]), ["column 'origin'", "row 0", "string", r"astype\(str\)"]),
    "keys of a wrong dtype among other problems": (
        changed(origin=np.array([7]), gust=[1.5]),
        ["column 'origin'", "column 'gust'", "2 problems"],
    ),
    "a null timestamp": (
        changed(event_timestamp=[None]),
        ["column 'event_timestamp'", "row 0", "null event timestamp", "leave the row out"],
    ),
    "a null created timestamp": (
        changed(created_timestamp=[None]),
        ["column 'created_timestamp'", "row 0", "null created timestamp"],
    ),
    "NaT": (changed(event_timestamp=np.array(["NaT"], dtype="M8[us]")), ["'event_timestamp'", "row 0", "null event"]),
    "an unparsable timestamp": (
        changed(event_timestamp=["yesterday"]),
        ["column 'event_timestamp'", "row 0", "'yesterday'", "ISO 8601|timestamp"],
    ),
    "a timestamp of integers": (
        changed(event_timestamp=[1_357_000_000]),
        ["column 'event_timestamp'", "1357000000", "unit"],
    ),
    "a part below a microsecond": (
        changed(event_timestamp=NANOSECOND, origin=["JFK"] * 2, temp=[1.0] * 2, gust=[1] * 2),
        ["column 'event_timestamp'", "row 0", "below a microsecond", "round it first"],
    ),
    "a key that is too long": (changed(origin=["x" * 501]), ["'?origin'?", "row 0", "500 bytes", "hash"]),
    "columns of different lengths": (changed(temp=[1.0, 2.0]), ["'temp' has 2", "'origin' has 1"]),
    "a column twice": (TWICE, ["'temp'.*2 times", "rename or drop"]),
    "a list of something else": ([1, 2], ["row 0", "int, not a dict"]),
    "an object that is no table": (42, ["int", "dict of arrays"]),
    "a missing file": ("nowhere.parquet", ["no file 'nowhere.parquet'"]),
    "a file of an unknown kind": (__file__, ["not known", ".parquet"]),
    "a directory": ("/", ["'/' is a directory", "give the path"]),
}


@pytest.mark.parametrize("name", INGESTS)
def test_bad_data_is_refused(stored: fdb.Database, name: str) -> None:
    data, parts = INGESTS[name]
    refused(stored, lambda db: db.ingest("weather", data), fdb.InputError, "weather", *parts)


@pytest.mark.parametrize("batch_rows", [1, 2, 1000])
def test_every_problem_of_the_data_is_told_at_once(
    stored: fdb.Database, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    small_batches(monkeypatch, batch_rows)
    data = {
        "origin": ["JFK", None, "LGA", "EWR"],
        "event_timestamp": ["2013-01-01", "2013-01-01", "soon", "2013-01-01"],
        "temp": [1.0, 2.0, 3.0, 2**63 + 1],
        "gust": [1, 2, 99_999, 88_888],
    }
    before = stored.info()["feature_tables"], stored.log()
    with pytest.raises(fdb.InputError) as caught:
        stored.ingest("weather", data)
    found = {(problem.column, problem.row, problem.count) for problem in caught.value.problems}
    assert found == {("origin", 1, 1), ("event_timestamp", 2, 1), ("temp", 3, 1), ("gust", 2, 2)}
    assert all(f"column {problem.column!r}" in str(caught.value) for problem in caught.value.problems)
    assert (stored.info()["feature_tables"], stored.log()) == before


def test_rows_that_cannot_be_stored_may_be_skipped_and_are_reported(stored: fdb.Database) -> None:
    data = {"origin": ["JFK", None, "LGA"], "event_timestamp": [T0] * 3, "temp": [5.0, 6.0, 7.0], "gust": [1, 2, 1.5]}
    report = stored.ingest("weather", data, on_error="skip")
    assert (report.rows_rejected, report.rows_ingested) == (2, 1)
    assert {(r.row, r.column, r.value) for r in report.rejections} == {(1, "origin", "None"), (2, "gust", "1.5")}
    assert sum(report.rejected_by_reason.values()) == 2
    assert stored.online_reader(["weather:temp"]).get("JFK") == {"temp": 5.0}


def test_a_whole_column_of_a_wrong_dtype_cannot_be_skipped(stored: fdb.Database) -> None:
    data = changed(temp=np.array(["x"]))
    refused(stored, lambda db: db.ingest("weather", data, on_error="skip"), fdb.InputError, "column 'temp'")


# --- calls -----------------------------------------------------------------------------------------------

CALLS: dict[str, tuple[Callable[[fdb.Database], Any], type[Exception], list[str]]] = {
    "ingest into an unknown table": (
        lambda db: db.ingest("wether", GOOD),
        fdb.NotFoundError,
        ["no feature table 'wether'", "air, weather"],
    ),
    "ingest without data or source": (lambda db: db.ingest("weather"), fdb.InputError, ["weather", "no batch source"]),
    "ingest to nowhere": (lambda db: db.ingest("weather", GOOD, to="of"), fdb.InputError, ["to", "'of'", "offline"]),
    "ingest of an empty range": (
        lambda db: db.ingest("weather", GOOD, start=T0, end=T0 - timedelta(1)),
        fdb.InputError,
        ["start", "end"],
    ),
    "online ingest into an offline table": (
        lambda db: db.ingest("air", GOOD, to="online"),
        fdb.InputError,
        ["'air'", "online=True"],
    ),
    "materialize an unknown table": (lambda db: db.materialize(["wind"]), fdb.NotFoundError, ["'wind'", "weather"]),
    "get an unknown entity": (lambda db: db.get_entity("dest"), fdb.NotFoundError, ["'dest'", "carrier, origin"]),
    "get an unknown table": (lambda db: db.get_feature_table("x"), fdb.NotFoundError, ["'x'", "air, weather"]),
    "get an unknown service": (lambda db: db.get_feature_service("x"), fdb.NotFoundError, ["'x'", "model"]),
    "delete an unknown table": (lambda db: db.delete_feature_table("x"), fdb.NotFoundError, ["'x'", "weather"]),
    "delete an unknown service": (lambda db: db.delete_feature_service("x"), fdb.NotFoundError, ["'x'", "model"]),
    "delete a table that a service reads": (
        lambda db: db.delete_feature_table("weather"),
        fdb.DefinitionError,
        ["'weather'", "service 'model'", "delete that first"],
    ),
    "join an unknown table": (
        lambda db: db.get_historical_features(ASKED, ["wind:temp"]),
        fdb.NotFoundError,
        ["'wind'", "air, weather"],
    ),
    "join unknown features, all of them at once": (
        lambda db: db.get_historical_features(ASKED, ["weather:a", "weather:b", "air:c"]),
        fdb.NotFoundError,
        ["'a'", "'b'", "'c'", "temp, gust"],
    ),
    "join an unknown service": (
        lambda db: db.get_historical_features(ASKED, "modell"),
        fdb.NotFoundError,
        ["'modell'", "model"],
    ),
    "a malformed reference": (
        lambda db: db.get_historical_features(ASKED, ["weather.temp", "weather:", ":temp", 3]),
        fdb.DefinitionError,
        ["'weather.temp'", "'weather:'", "':temp'", "3", "'table:feature'"],
    ),
    "no feature at all": (lambda db: db.get_historical_features(ASKED, []), fdb.DefinitionError, ["no feature"]),
    "a feature asked for twice": (
        lambda db: db.get_historical_features(ASKED, ["weather:temp", "weather:temp"]),
        fdb.DefinitionError,
        ["'weather:temp'", "more than once"],
    ),
    "two features of one name": (
        lambda db: db.get_historical_features({**ASKED, "carrier": [1]}, ["weather:temp", "air:temp"]),
        fdb.InputError,
        ["'temp'", "full_feature_names=True"],
    ),
    "a feature named like a column": (
        lambda db: db.get_historical_features({**ASKED, "temp": [1]}, ["weather:temp"]),
        fdb.InputError,
        ["'temp'", "column of the entity dataframe", "full_feature_names=True"],
    ),
    "a full feature name like a column": (
        lambda db: db.get_historical_features(
            {**ASKED, "weather__temp": [1]}, ["weather:temp"], full_feature_names=True
        ),
        fdb.InputError,
        ["'weather__temp'", "rename the column"],
    ),
    "an entity dataframe without key and timestamp": (
        lambda db: db.get_historical_features({"label": [1]}, ["weather:temp"]),
        fdb.InputError,
        ["'origin'.*missing", "'event_timestamp'.*missing", "has 'label'", "event_timestamp_column"],
    ),
    "an entity dataframe with wrong dtypes": (
        lambda db: db.get_historical_features(
            {"origin": [1], "carrier": ["AA"], "event_timestamp": [5]}, ["air:temp"]
        ).to_numpy(),
        fdb.InputError,
        ["'origin'", "'carrier'", "'event_timestamp'", "3 problems"],
    ),
    "an entity dataframe with nanoseconds": (
        lambda db: db.get_historical_features(
            {"origin": ["JFK"] * 2, "event_timestamp": NANOSECOND}, ["weather:temp"]
        ).to_arrow(),
        fdb.InputError,
        ["'event_timestamp'", "row 0", "below a microsecond"],
    ),
    "a known_at that is nothing": (
        lambda db: db.get_historical_features(ASKED, ["weather:temp"], known_at="seen"),
        fdb.InputError,
        ["known_at", "'seen'", "column"],
    ),
    "online features of an unknown service": (
        lambda db: db.get_online_features("modell", [{"origin": "JFK"}]),
        fdb.NotFoundError,
        ["'modell'", "model"],
    ),
    "online features of a table that is not online": (
        lambda db: db.get_online_features(["air:temp"], [{"origin": "JFK", "carrier": 1}]),
        fdb.DefinitionError,
        ["air", "online=True"],
    ),
    "online entity rows without the entity": (
        lambda db: db.get_online_features("model", [{"dest": "JFK"}]),
        fdb.InputError,
        ["'origin'", "missing"],
    ),
    "online entity rows of a wrong dtype": (
        lambda db: db.get_online_features("model", [{"origin": 5}]),
        fdb.InputError,
        ["'origin'", "row 0", "5", "string"],
    ),
    "a now that is no time": (
        lambda db: db.get_online_features("model", [{"origin": "JFK"}], now=5),
        fdb.InputError,
        ["now", "5"],
    ),
    "a reader of unknown features": (
        lambda db: db.online_reader(["weather:x"]),
        fdb.NotFoundError,
        ["'x'", "temp, gust"],
    ),
    "a reader's key of a wrong dtype": (
        lambda db: db.online_reader("model").get(5),
        fdb.InputError,
        ["'origin'", "5", "string"],
    ),
    "apply of something else": (lambda db: db.apply([42]), fdb.DefinitionError, ["42", "Entity"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_calls_are_refused(stored: fdb.Database, name: str) -> None:
    use, kind, parts = CALLS[name]
    refused(stored, use, kind, *parts)


# --- definitions -----------------------------------------------------------------------------------------

DEFINITIONS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "an unknown column target in a field mapping": (
        lambda: weather(batch_source=fdb.FileSource("w.csv", field_mapping={"temp_f": "temperature"})),
        ["'temp_f'", "'temperature'", "gust, origin, temp"],
    ),
    "a max age of zero": (lambda: weather(max_age=timedelta(0)), ["weather", "longer than zero", "None"]),
    "a negative max age": (lambda: weather(max_age=-timedelta(1)), ["weather", "longer than zero", "None"]),
    "a max age longer than time": (lambda: weather(max_age=timedelta.max), ["longer than all of time", "None"]),
    "a max age that is a number": (lambda: weather(max_age=3600), ["timedelta", "3600"]),
    "duplicate features": (lambda: weather(features=[*FEATURES, FEATURES[0]]), ["'temp'", "more than once", "rename"]),
    "a feature named like an entity": (
        lambda: weather(features=[fdb.Feature("origin", "string")]),
        ["'origin'", "more than once"],
    ),
    "several problems at once": (
        lambda: weather(features=[], entities=[], max_age=timedelta(0)),
        ["no entity", "no feature", "longer than zero"],
    ),
    "an unknown dtype": (lambda: fdb.Feature("x", "float"), ["'x'", "'float'", "float64"]),
    "a float key": (lambda: fdb.Entity("x", "float64"), ["'x'", "float64", "int64"]),
    "a name that is none": (lambda: fdb.Entity("1 x", "int64"), ["'1 x'", "letter"]),
    "a malformed reference": (lambda: fdb.FeatureService("s", ["temp"]), ["'s'", "'temp'", "'table:feature'"]),
    "a reference given twice": (lambda: fdb.FeatureService("s", ["a:b", "a:b"]), ["'a:b'", "more than once"]),
    "a source of no known format": (lambda: fdb.FileSource("w.xlsx"), ["w.xlsx", "not known", ".parquet"]),
    "one column for both timestamps": (
        lambda: fdb.FileSource("w.csv", event_timestamp_column="t", created_timestamp_column="t"),
        ["'t'", "None"],
    ),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_bad_definitions_are_refused_when_made(name: str) -> None:
    make, parts = DEFINITIONS[name]
    with pytest.raises(fdb.DefinitionError) as caught:
        make()
    for part in parts:
        assert re.search(part, str(caught.value)), str(caught.value)


APPLIES: dict[str, tuple[Callable[[], list[Any]], list[str]]] = {
    "another dtype of a feature": (
        lambda: [weather(features=[fdb.Feature("temp", "float32")])],
        ["'temp'", "float64.*float32", "another name"],
    ),
    "other entities of a table": (
        lambda: [weather(entities=["origin", "carrier"])],
        ["'weather'", "origin.*carrier", "another name"],
    ),
    "another dtype of an entity": (lambda: [fdb.Entity("origin", "bytes")], ["'origin'", "string.*bytes"]),
    "a table of unknown entities": (
        lambda: [fdb.FeatureTable("x", ["tail", "dest"], [fdb.Feature("f", "bool")])],
        ["'tail'", "'dest'", "fdb.Entity"],
    ),
    "a service of unknown features": (
        lambda: [fdb.FeatureService("s", ["weather:humid", "wind:x"])],
        ["'s'", "'humid'", "'wind'"],
    ),
    "the same name twice": (lambda: [weather(), weather()], ["'weather'", "more than once", "once"]),
    "the removal of a feature that a service reads": (
        lambda: [weather(features=[FEATURES[1]])],
        ["'model'", "'temp'"],
    ),
    "several refusals at once": (
        lambda: [fdb.Entity("origin", "int64"), weather(features=[fdb.Feature("gust", "int8")])],
        ["'origin'", "'gust'", "int16.*int8"],
    ),
}


@pytest.mark.parametrize("name", APPLIES)
@pytest.mark.parametrize("method", ["apply", "plan"])
def test_refused_changes_of_definitions_change_nothing(stored: fdb.Database, name: str, method: str) -> None:
    objects, parts = APPLIES[name]
    valid = fdb.Entity("tailnum", "string")
    refused(stored, lambda db: getattr(db, method)([valid, *objects()]), fdb.DefinitionError, "nothing", *parts)
    assert [entity.name for entity in stored.list_entities()] == ["carrier", "origin"]


def test_the_name_of_a_removed_feature_stays_reserved(stored: fdb.Database) -> None:
    stored.apply(weather(features=[FEATURES[0]]))
    back = weather(features=[FEATURES[0], fdb.Feature("gust", "string")])
    refused(stored, lambda db: db.apply(back), fdb.DefinitionError, "'gust'", "reserved", "another name")
    refused(stored, lambda db: db.online_reader(["weather:gust"]), fdb.NotFoundError, "'gust'", "was removed")


def test_a_field_mapping_with_an_unknown_source_column_is_told_when_read(stored: fdb.Database, tmp_path: Path) -> None:
    path = tmp_path / "weather.parquet"
    pq.write_table(pa.table({"time_hour": [T0], "origin": ["JFK"], "temp": [1.0], "gust": [1]}), path)
    source = fdb.FileSource(path, event_timestamp_column="time", field_mapping={"temp_f": "temp", "apt": "origin"})
    stored.apply(weather(batch_source=source))
    refused(
        stored,
        lambda db: db.ingest("weather"),
        fdb.InputError,
        "'time'.*missing",
        "'temp_f'.*missing.*feature 'temp'",
        "'apt'.*missing.*entity 'origin'",
        "'time_hour'",
    )


# --- files -------------------------------------------------------------------------------------------------


def write_text(path: Path) -> None:
    path.write_text("origin,temp\n" * 2000)


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"a": list(range(5000))}), path)


def write_sqlite(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table t (a)")
    connection.commit()
    connection.close()


def write_lmdb(path: Path) -> None:
    with (
        lmdb.open(str(path), subdir=False, lock=False, lib_version=0, map_size=1 << 20) as env,
        env.begin(write=True) as txn,
    ):
        txn.put(b"key", b"value")


def write_newer(path: Path) -> None:
    with (
        lmdb.open(str(path), subdir=False, lock=False, lib_version=0, map_size=1 << 20) as env,
        env.begin(write=True) as txn,
    ):
        record = {"magic": "featuredb", "version": 99, "id": "0" * 32, "created_us": 0}
        txn.put(b"a", pack(b"a", record))


FILES: dict[str, tuple[Callable[[Path], object], type[Exception], list[str]]] = {
    "missing": (lambda path: None, fdb.FileError, ["no such file", "create=True"]),
    "a directory": (lambda path: path.mkdir(), fdb.FileError, ["is a directory", "give the path"]),
    "empty": (lambda path: path.touch(), fdb.FileError, ["is empty", "delete it"]),
    "text": (write_text, fdb.NotADatabaseError, ["not a featuredb file"]),
    "Parquet": (write_parquet, fdb.NotADatabaseError, ["not a featuredb file", "Parquet"]),
    "SQLite": (write_sqlite, fdb.NotADatabaseError, ["not a featuredb file", "SQLite"]),
    "another LMDB": (write_lmdb, fdb.NotADatabaseError, ["LMDB file of another program", "featuredb"]),
    "a newer format": (write_newer, fdb.FormatVersionError, ["version 99", "up to 1", "upgrade|newer"]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_path_that_is_no_database_is_refused(tmp_path: Path, name: str, read_only: bool) -> None:
    make, kind, parts = FILES[name]
    path = tmp_path / "some.fdb"
    make(path)
    before = digest(path) if path.is_file() else None
    with pytest.raises(fdb.FileError) as caught:
        fdb.open(path, create=False, read_only=read_only)
    assert type(caught.value) is kind
    for part in [re.escape(str(path)), *parts]:
        assert re.search(part, str(caught.value)), str(caught.value)
    assert (digest(path) if path.is_file() else None) == before
    assert {entry.name for entry in tmp_path.iterdir()} <= {"some.fdb"}


NO_PATHS: dict[str, Callable[[fdb.Database, str], Any]] = {
    "open": lambda _, bad: fdb.open(bad),
    "backup": lambda db, bad: db.backup(bad),
    "salvage": lambda _, bad: fdb.salvage(bad, "x"),
}


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
@pytest.mark.parametrize("what", NO_PATHS)
def test_text_that_can_be_no_path_is_refused(stored: fdb.Database, what: str, path: str) -> None:
    with pytest.raises(fdb.FileError, match=r"^(path|src) '.*' cannot be the name of a file: .*; give another"):
        NO_PATHS[what](stored, path)


WRITES: dict[str, Callable[[fdb.Database], Any]] = {
    "apply": lambda db: db.apply(fdb.Entity("x", "int64")),
    "ingest": lambda db: db.ingest("weather", changed(temp=[99.0])),
    "materialize": lambda db: db.materialize(),
    "delete_feature_table": lambda db: db.delete_feature_table("air"),
    "delete_feature_service": lambda db: db.delete_feature_service("model"),
}
READS: dict[str, Callable[[fdb.Database], Any]] = {
    "plan": lambda db: db.plan(fdb.Entity("x", "int64")),
    "get_entity": lambda db: db.get_entity("origin"),
    "list_entities": lambda db: db.list_entities(),
    "get_feature_table": lambda db: db.get_feature_table("weather"),
    "list_feature_tables": lambda db: db.list_feature_tables(),
    "get_feature_service": lambda db: db.get_feature_service("model"),
    "list_feature_services": lambda db: db.list_feature_services(),
    "get_historical_features": lambda db: db.get_historical_features(ASKED, "model").to_arrow(),
    "get_online_features": lambda db: db.get_online_features("model", [{"origin": "JFK"}]),
    "online_reader": lambda db: db.online_reader("model"),
    "info": lambda db: db.info(),
    "log": lambda db: db.log(),
    "verify": lambda db: db.verify(),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_read_only_database_refuses_to_be_written(stored: fdb.Database, name: str) -> None:
    with fdb.open(stored.path, read_only=True) as db:
        refused(db, WRITES[name], fdb.ReadOnlyError, re.escape(stored.path), "read_only")


@pytest.mark.parametrize("name", READS)
def test_a_read_only_database_is_read(stored: fdb.Database, name: str) -> None:
    with fdb.open(stored.path, read_only=True) as db:
        READS[name](db)


@pytest.mark.parametrize("name", [*WRITES, *READS])
def test_a_closed_database_refuses_every_use(stored: fdb.Database, name: str) -> None:
    stored.close()
    stored.close()
    refused(stored, {**WRITES, **READS}[name], fdb.ClosedError, re.escape(stored.path), "open it again")


def test_what_a_closed_database_gave_out_refuses_too(stored: fdb.Database) -> None:
    reader = stored.online_reader("model")
    training = stored.get_historical_features(ASKED, "model")
    done = stored.get_historical_features(ASKED, "model")
    table = done.to_arrow()
    stored.close()
    refused(stored, lambda _: reader.get("JFK"), fdb.ClosedError, "closed")
    refused(stored, lambda _: reader.get_many(["JFK"]), fdb.ClosedError, "closed")
    refused(stored, lambda _: training.to_numpy(), fdb.ClosedError, "closed")
    assert done.to_arrow().equals(table)


@pytest.mark.parametrize("argument", [{"durability": "most"}, {"read_only": True}])
def test_wrong_arguments_of_open_are_told(argument: dict[str, Any]) -> None:
    with pytest.raises(fdb.InputError, match=r"full|read-only"):
        fdb.open(":memory:", **argument)
