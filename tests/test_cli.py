"""The command line: what each command prints, as text and as JSON, and what a mistake looks like."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

import featuredb as fdb
from featuredb.cli import main
from featuredb.cli.output import age, cell, in_cli_words, plain, size
from featuredb.frames.write import ParquetWriter

NOON = "2024-05-01T12:00:00Z"


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A file with a table from a CSV source, a composite one without a source, and a service."""
    (tmp_path / "weather.csv").write_text(
        "station,at,temp,wind\n"
        "JFK,2024-05-01T12:00:00Z,9.5,3\n"
        "LGA,2024-05-01T12:30:00Z,,4\n"
        "JFK,2024-05-01T13:00:00.5Z,10.5,5\n"
    )
    source = fdb.FileSource(
        tmp_path / "weather.csv", event_timestamp_column="at", field_mapping={"station": "origin", "wind": "wind_speed"}
    )
    path = str(tmp_path / "small.fdb")
    with fdb.open(path) as db:
        db.apply(
            [
                fdb.Entity("origin", "string"),
                fdb.Entity("carrier", "string"),
                fdb.Entity("number", "int16"),
                fdb.FeatureTable(
                    "weather",
                    ["origin"],
                    [fdb.Feature("temp", "float64"), fdb.Feature("wind_speed", "int32")],
                    max_age=timedelta(hours=3),
                    batch_source=source,
                    labels={"team": "ops"},
                    description="hourly",
                ),
                fdb.FeatureTable("flight", ["carrier", "number"], [fdb.Feature("seats", "int16")]),
                fdb.FeatureService("model", ["weather:temp", "weather:wind_speed"]),
            ]
        )
        db.ingest(
            "flight",
            {"carrier": ["AA", "a,b"], "number": [1, 2], "event_timestamp": [NOON, NOON], "seats": [100, 200]},
        )
    return path


@pytest.fixture
def loaded(file: str) -> str:
    with fdb.open(file) as db:
        db.ingest("weather")
    return file


def cli_runner() -> CliRunner:
    """Keeps stderr apart from stdout, which click before 8.2 does only when asked."""
    if "mix_stderr" in inspect.signature(CliRunner).parameters:
        return CliRunner(mix_stderr=False)
    return CliRunner()


def run(*args: str | Path) -> Result:
    return cli_runner().invoke(main, list(map(str, args)))


def text(*args: str | Path) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def data(*args: str | Path):
    return json.loads(text(*args, "--json"))


def failure(*args: str | Path) -> str:
    result = run(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    return result.stderr


# --- info, tables, log --------------------------------------------------------------------------
@pytest.mark.usefixtures("a_segment_each")
def test_info_tells_size_commit_and_rows_of_each_table(loaded: str) -> None:
    shown = text("info", loaded)
    assert "commit 3 (ingest) of 20" in shown
    assert "2 feature tables, 3 entities, 1 feature service\n" in shown
    assert "weather     3         1" in shown

    facts = data("info", loaded)
    assert facts["commit"]["id"] == 3
    assert facts["commit"]["time"].endswith("Z")
    weather = facts["feature_tables"]["weather"]
    assert (weather["rows"], weather["online_keys"]) == (3, 2)
    assert weather["event_min"] == NOON
    assert weather["event_max"] == "2024-05-01T13:00:00.500000Z"


def test_info_tells_what_readers_and_snapshots_keep(loaded: str) -> None:
    assert re.search(r"\nlive \d+\.\d KiB, free \d+\.\d KiB, pinned 0 B\n", text("info", loaded))
    with fdb.open(loaded) as db:
        db.snapshot("held")
        with db._env.read():
            db.drop_snapshot("held")
            db.snapshot("again")
            shown, facts = text("info", loaded), data("info", loaded)
        assert facts["oldest_reader"] == {"pid": os.getpid(), "age": 2}
        assert facts["pinned_bytes"] > 0
        assert f" by readers (the oldest: process {os.getpid()}, 2 transactions behind)" in shown
        assert shown.splitlines()[2].endswith(", 1 snapshot with 0 B of their own")
        # Its history is live no more.
        db.delete_feature_service("model")
        db.delete_feature_table("weather")
        assert " with 0 B of their own" not in text("info", loaded)


def test_info_of_an_empty_file_has_no_commit(tmp_path: Path) -> None:
    fdb.open(tmp_path / "new.fdb").close()
    assert "no commit yet" in text("info", tmp_path / "new.fdb")
    assert data("info", tmp_path / "new.fdb")["commit"] is None
    assert "no feature tables" in text("tables", tmp_path / "new.fdb")


def test_tables_shows_definitions(loaded: str) -> None:
    shown = text("tables", loaded)
    assert "weather: hourly\n" in shown
    assert "features  temp (float64), wind_speed (int32)\n" in shown
    assert "entities  carrier (string), number (int16)\n" in shown
    assert "max age   3 h\n" in shown
    assert "mapping: station -> origin, wind -> wind_speed\n" in shown
    assert "labels    team=ops\n" in shown
    assert "rows      3, online keys: 2\n" in shown
    assert "feature service model\n  features  weather:temp, weather:wind_speed\n" in shown

    definitions = data("tables", loaded)
    assert [entity["name"] for entity in definitions["entities"]] == ["carrier", "number", "origin"]
    weather = next(table for table in definitions["feature_tables"] if table["name"] == "weather")
    assert weather["max_age_seconds"] == 10800
    assert weather["batch_source"]["field_mapping"] == {"station": "origin", "wind": "wind_speed"}
    assert weather["rows"] == 3
    assert weather["features"][0] == {"name": "temp", "dtype": "float64", "description": ""}
    assert definitions["feature_services"][0]["features"] == ["weather:temp", "weather:wind_speed"]


def test_log_lists_commits_oldest_first(loaded: str) -> None:
    commits = data("log", loaded)
    assert [(c["id"], c["operation"], c["table"], c["rows"]) for c in commits] == [
        (1, "apply", None, 0),
        (2, "ingest", "flight", 2),
        (3, "ingest", "weather", 3),
    ]
    assert datetime.fromisoformat(commits[0]["time"]).tzinfo == UTC
    assert data("log", loaded, "--limit", "1") == commits[-1:]
    assert len(text("log", loaded, "--limit", "2").splitlines()) == 3


# --- ingest ---------------------------------------------------------------------------------------
def test_ingest_reads_the_batch_source_and_a_second_time_changes_nothing(file: str) -> None:
    shown = text("ingest", file, "weather")
    assert shown.startswith("weather: 3 rows read, 3 ingested, 2 online keys updated\ncommit 3, ")
    again = data("ingest", file, "weather")
    assert (again["rows_read"], again["rows_ingested"], again["rows_unchanged"], again["commit_id"]) == (3, 0, 3, 3)
    assert "nothing changed, no commit" in text("ingest", file, "weather")


def test_ingest_of_a_file_within_start_and_end_offline_only(file: str, tmp_path: Path) -> None:
    more = tmp_path / "more.csv"
    more.write_text("station,at,temp,wind\nJFK,2024-05-02,1,1\nJFK,2024-05-03,2,2\nJFK,2024-05-04,3,3\n")
    arguments = ("ingest", file, "weather", more, "--start", "2024-05-02", "--end", "2024-05-03", "--to", "offline")
    report = data(*arguments)
    assert (report["rows_ingested"], report["rows_outside"], report["online_keys_updated"]) == (2, 1, 0)
    assert "1 outside start and end" in text(*arguments)


def test_ingest_refuses_bad_rows_or_skips_and_reports_them(file: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("station,at,temp,wind\nJFK,yesterday,1,1\nJFK,2024-05-03,2,much\nJFK,2024-05-04,3,3\n")
    before = Path(file).read_bytes()
    message = failure("ingest", file, "weather", bad)
    assert "yesterday" in message
    assert "much" in message
    assert Path(file).read_bytes() == before

    shown = text("ingest", file, "weather", bad, "--on-error", "skip")
    assert "1 ingested" in shown
    assert "2 rejected" in shown
    assert "'yesterday'" in shown
    report = data("ingest", file, "weather", bad, "--on-error", "skip")
    assert report["rows_rejected"] == 2
    assert {(item["row"], item["column"]) for item in report["rejections"]} == {(0, "at"), (1, "wind")}


def test_ingest_without_source_or_data_says_what_to_give(file: str) -> None:
    assert "has no batch source; give DATA, or apply" in failure("ingest", file, "flight")


# --- join -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_join_writes_the_training_set(loaded: str, tmp_path: Path, suffix: str) -> None:
    entities = tmp_path / "entities.csv"
    entities.write_text("origin,event_timestamp,label\nJFK,2024-05-01T12:59:00Z,1\nLGA,2024-05-01T13:00:00Z,0\nX,,1\n")
    out = tmp_path / f"out{suffix}"
    result = data("join", loaded, entities, out, "--service", "model", "--include-event-timestamps")
    assert (result["rows"], result["out"], result["commit_id"]) == (3, str(out), 3)
    assert result["bytes"] == out.stat().st_size
    frame = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    assert list(frame.columns) == [
        "origin", "event_timestamp", "label", "temp", "wind_speed", "weather__event_timestamp",
    ]  # fmt: skip
    assert frame["temp"].fillna(-1).tolist() == [9.5, -1, -1]
    assert frame["wind_speed"].fillna(-1).tolist() == [3, 4, -1]
    assert "3 rows" in text("join", loaded, entities, out, "-f", "weather:temp")
    assert sorted(path.name for path in tmp_path.iterdir() if ".tmp" in path.name) == []


def test_join_takes_known_at_full_names_and_the_timestamp_column(loaded: str, tmp_path: Path) -> None:
    entities = tmp_path / "entities.parquet"
    moments = pd.to_datetime(["2024-05-01T14:00Z"]).astype("datetime64[us, UTC]")
    pd.DataFrame({"origin": ["JFK"], "at": moments}).to_parquet(entities)
    out = tmp_path / "out.parquet"
    common = ("join", loaded, entities, out, "-f", "weather:temp", "--event-timestamp-column", "at")
    text(*common, "--full-feature-names")
    assert pd.read_parquet(out)["weather__temp"].tolist() == [10.5]
    # Rows without a created timestamp are known from the commit that ingested them, which is long after.
    text(*common, "--known-at", "2024-06-01")
    assert pd.read_parquet(out)["temp"].isna().tolist() == [True]


def test_join_that_fails_leaves_the_output_as_it_was(loaded: str, tmp_path: Path) -> None:
    entities = tmp_path / "entities.csv"
    entities.write_text("origin,event_timestamp\nJFK,never\n")
    for name in ("out.csv", "out.parquet"):
        out = tmp_path / name
        out.write_text("mine")
        assert "'never'" in failure("join", loaded, entities, out, "--service", "model")
        assert out.read_text() == "mine"


def test_join_to_a_folder_that_is_missing_is_one_error(loaded: str, tmp_path: Path) -> None:
    entities = tmp_path / "entities.csv"
    entities.write_text(f"origin,event_timestamp\nJFK,{NOON}\n")
    for name in ("out.csv", "out.parquet"):
        assert str(tmp_path / "no" / name) in failure(
            "join", loaded, entities, tmp_path / "no" / name, "--service", "model"
        )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), ValueError("no")])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_join_that_is_broken_off_leaves_no_file(
    loaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, suffix: str
) -> None:
    entities = tmp_path / "entities.csv"
    entities.write_text(f"origin,event_timestamp\nJFK,{NOON}\n")
    before = sorted(tmp_path.iterdir())
    reached = []

    def write(_: object, path: str | None = None, **options: object) -> None:
        reached.append(Path(path).write_text("half") if path else 0)
        raise error

    monkeypatch.setattr(pd.DataFrame, "to_csv", write)
    monkeypatch.setattr(ParquetWriter, "write", lambda *_: write(None))
    result = run("join", loaded, entities, tmp_path / f"out{suffix}", "--service", "model")
    assert reached
    assert result.exit_code == 1
    assert sorted(tmp_path.iterdir()) == before


# --- get ------------------------------------------------------------------------------------------
def test_get_prints_values_and_statuses(loaded: str) -> None:
    now = ("--now", "2024-05-01T13:30:00Z")
    shown = text("get", loaded, "--service", "model", "origin=JFK", "origin=LGA", "origin=SFO", *now)
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["origin=JFK", "temp", "10.5", "PRESENT"],
        ["origin=JFK", "wind_speed", "5", "PRESENT"],
        ["origin=LGA", "temp", "-", "NULL_VALUE"],
        ["origin=LGA", "wind_speed", "4", "PRESENT"],
        ["origin=SFO", "temp", "-", "NOT_FOUND"],
        ["origin=SFO", "wind_speed", "-", "NOT_FOUND"],
    ]
    answer = data("get", loaded, "-f", "weather:temp", "origin=JFK", "origin=SFO", *now, "--full-feature-names")
    assert answer == {
        "values": {"origin": ["JFK", "SFO"], "weather__temp": [10.5, None]},
        "statuses": {"weather__temp": ["PRESENT", "NOT_FOUND"]},
        "event_timestamps": {"weather": ["2024-05-01T13:00:00.500000Z", None]},
    }


def test_get_measures_max_age_from_now(loaded: str) -> None:
    assert data("get", loaded, "-f", "weather:temp", "origin=JFK")["statuses"] == {"temp": ["OUTSIDE_MAX_AGE"]}


def test_get_parses_composite_keys_in_any_order_and_values_with_commas(loaded: str) -> None:
    answer = data("get", loaded, "-f", "flight:seats", "carrier=AA,number=1", "number=2,carrier=a,b")
    assert answer["values"] == {"carrier": ["AA", "a,b"], "number": [1, 2], "seats": [100, 200]}


@pytest.mark.parametrize(
    "key", ["JFK", "origin=JFK", "carrier=AA", "carrier=AA,number=1,number=2", "carrier=AA;number=1"]
)
def test_get_refuses_a_key_that_does_not_name_each_entity_once(loaded: str, key: str) -> None:
    message = failure("get", loaded, "-f", "flight:seats", "carrier=AA,number=1", key)
    assert f"row 1, value '{key}'" in message
    assert "write carrier=VALUE,number=VALUE" in message


def test_get_reports_every_bad_key_together(loaded: str) -> None:
    message = failure("get", loaded, "-f", "flight:seats", "JFK", "LGA")
    assert "2 problems" in message
    message = failure("get", loaded, "-f", "flight:seats", "carrier=AA,number=1", "carrier=AA,number=99999")
    assert "column 'number', row 1, value '99999'" in message


# --- verify, backup, compact, warmup --------------------------------------------------------------
def test_verify_tells_that_the_file_is_right(loaded: str) -> None:
    assert text("verify", loaded) == f"{loaded}: ok\n"
    assert data("verify", loaded)["ok"] is True
    assert data("verify", loaded, "--level", "quick")["level"] == "quick"


def test_verify_exits_with_1_when_the_file_is_damaged(loaded: str) -> None:
    raw = bytearray(Path(loaded).read_bytes())
    value = np.float64(10.5).tobytes()  # online: history is packed
    place = raw.find(value)
    assert place > 0
    while place >= 0:
        raw[place] ^= 1
        place = raw.find(value, place + 1)
    Path(loaded).write_bytes(raw)
    result = run("verify", loaded)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "weather" in result.stderr
    result = run("verify", loaded, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False


def test_backup_makes_a_copy_and_replaces_nothing(loaded: str, tmp_path: Path) -> None:
    dest = tmp_path / "copy.fdb"
    assert data("backup", loaded, dest) == {"path": str(dest), "bytes": dest.stat().st_size}
    assert data("log", dest) == data("log", loaded)
    assert "exists" in failure("backup", loaded, dest)
    assert str(tmp_path / "second.fdb") in text("backup", loaded, tmp_path / "second.fdb", "--check")


def test_salvage_tells_what_is_there_and_what_is_lost(loaded: str, tmp_path: Path) -> None:
    assert text("salvage", loaded, tmp_path / "whole.fdb").count("\n") == 1
    content = bytearray(Path(loaded).read_bytes())
    newest = max((0, 4096), key=lambda at: int.from_bytes(content[at + 144 : at + 152], "little"))
    content[newest + 16] ^= 1
    Path(loaded).write_bytes(content)
    shown = text("salvage", loaded, tmp_path / "rest.fdb")
    assert "  - damaged: the newer of the meta pages is damaged" in shown
    assert "  - older: what a later commit added is missing, and what it removed is there again" in shown
    assert "exists already" in failure("salvage", loaded, tmp_path / "rest.fdb")
    assert data("salvage", loaded, tmp_path / "other.fdb")["content"]["ok"] is True


@pytest.mark.usefixtures("a_segment_each")
def test_compact_merges_segments_and_drops_replaced_rows(loaded: str) -> None:
    with fdb.open(loaded) as db:
        row = {"station": ["JFK"], "at": [NOON], "temp": [8.0], "wind": [1]}
        db.ingest("weather", row)
    sums = data("compact", loaded)
    assert sums["segments"]["after"] == 2
    assert sums["replaced_rows"]["after"] == 0
    assert data("info", loaded)["feature_tables"]["weather"]["rows"] == 3
    assert sums["file_bytes"]["after"] == os.path.getsize(loaded) < sums["file_bytes"]["before"]
    assert "segments" in text("compact", loaded)


def test_forget_removes_keys_once_it_is_confirmed(loaded: str) -> None:
    assert run("forget", loaded, "origin=JFK").exit_code == 1
    assert data("info", loaded)["feature_tables"]["weather"]["rows"] == 3
    report = data("forget", loaded, "origin=JFK", "origin=EWR", "--yes", "--json")
    assert (report["keys_found"], report["keys_not_found"]) == (1, 1)
    assert report["rows_removed"] == {"weather": 2}
    assert data("log", loaded)[-1]["operation"] == "forget"
    shown = text("forget", loaded, "carrier=a,b,number=2", "--table", "flight", "--yes")
    assert shown == f"{loaded}: 1 key found, 0 not found, 1 row and 1 online value removed\n"
    assert "'weather' has no entity 'carrier'" in failure("forget", loaded, "carrier=AA", "--table", "weather", "--yes")
    message = failure("forget", loaded, "carrier=AA", "number=1", "--yes")
    assert "is not a key of the entities of the first; write carrier=VALUE" in message
    assert "number" in failure("forget", loaded, "nothing", "--yes")
    assert "origin" in failure("forget", loaded, "nothing=1", "--yes")


def test_snapshots_are_made_listed_read_and_dropped(loaded: str, tmp_path: Path) -> None:
    assert text("snapshots", loaded) == f"{loaded}: no snapshots\n"
    assert text("snapshot", loaded, "before") == "before: holds commit 3\n"
    late = {"station": ["JFK"], "at": ["2024-05-01T14:00:00Z"], "temp": [11.5], "wind": [6]}
    with fdb.open(loaded) as db:
        db.ingest("weather", late)
    get = ("get", loaded, "-f", "weather:temp", "--now", NOON, "origin=JFK")
    assert "11.5" in text(*get)
    assert "10.5" in text(*get, "--at", "before")
    (tmp_path / "left.csv").write_text("origin,event_timestamp\nJFK,2024-05-01T15:00:00Z\n")
    out = tmp_path / "out.csv"
    text("join", loaded, tmp_path / "left.csv", out, "-f", "weather:temp", "--at", "before")
    assert out.read_text().splitlines()[1].endswith(",10.5")
    [listed] = json.loads(text("snapshots", loaded, "--json"))
    assert (listed["name"], listed["commit_id"]) == ("before", 3)
    assert listed["online_bytes"] > 0
    assert "before" in text("snapshots", loaded)
    again = run("snapshot", loaded, "before")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert text("drop-snapshot", loaded, "before") == "before: dropped\n"
    gone = run(*get, "--at", "before")
    assert gone.exit_code == 1
    assert "no snapshot 'before'" in gone.stderr


def test_partial_data_is_refused_naming_the_option_that_fills_it(loaded: str, tmp_path: Path) -> None:
    (tmp_path / "temps.csv").write_text("station,at,temp\nJFK,2024-05-01T14:00:00Z,11.5\n")
    assert "or --partial to fill it from the row before" in failure("ingest", loaded, "weather", tmp_path / "temps.csv")
    assert "filled from the row before: wind_speed" in text(
        "ingest", loaded, "weather", tmp_path / "temps.csv", "--partial"
    )
    shown = data("get", loaded, "-f", "weather:wind_speed", "origin=JFK", "--now", "2024-05-01T14:00:00Z")
    assert "5" in json.dumps(shown)


def test_warmup_compiles_the_kernels() -> None:
    assert data("warmup")["kernels"] > 0


# --- mistakes -------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["info", "tables", "log", "verify", "compact"])
def test_a_file_that_does_not_exist_is_one_line_on_stderr(tmp_path: Path, command: str) -> None:
    message = failure(command, tmp_path / "nope.fdb")
    assert "nope.fdb" in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_messages_name_the_options_of_the_command_line(loaded: str, tmp_path: Path) -> None:
    entities, out = tmp_path / "entities.csv", tmp_path / "out.csv"
    entities.write_text(f"origin,at,temp\nJFK,{NOON},1\n")
    join = ("join", loaded, entities, out, "--service", "model")
    message = failure("join", loaded, entities, out, "-f", "weather:wind_speed")
    assert "name it with --event-timestamp-column" in message
    join = (*join, "--event-timestamp-column", "at")
    assert "; pass --full-feature-names" in failure(*join)
    message = failure(*join, "--full-feature-names", "--known-at", "lately")
    assert message.startswith("error: --known-at: 'lately' is neither a column")
    get = ("get", loaded, "-f", "weather:temp", "origin=JFK")
    assert failure(*get, "--now", "soon").startswith("error: --now: value 'soon'")
    ingest = ("ingest", loaded, "weather")
    assert failure(*ingest, "--start", "soon").startswith("error: --start: value 'soon'")
    assert failure(*ingest, "--start", "2024-02-01", "--end", "2024-01-01").startswith("error: --start (2024-02-01) is")


def test_a_file_that_is_missing_or_empty_is_told_without_python(tmp_path: Path) -> None:
    (tmp_path / "empty.fdb").touch()
    assert failure("info", tmp_path / "nope.fdb").endswith("nope.fdb: no such file; check the path\n")
    assert "empty.fdb: is empty; delete it" in failure("info", tmp_path / "empty.fdb")
    for name in ("nope.fdb", "empty.fdb"):
        assert "create=" not in failure("compact", tmp_path / name)


def test_names_in_the_data_are_not_taken_for_options() -> None:
    assert in_cli_words("column 'known_at': is null") == "column 'known_at': is null"
    assert in_cli_words("keys: column 'now': wrong") == "keys: column 'now': wrong"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["info", "FILE"], ["tables", "FILE", "--json"], ["--help"], ["info", "--help"]])
def test_a_full_output_device_is_one_line_and_exit_code_1(loaded: str, arguments: list[str]) -> None:
    code = "from featuredb.cli import main; main(prog_name='featuredb')"
    command = [sys.executable, "-c", code, *(loaded if argument == "FILE" else argument for argument in arguments)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "error: cannot write the output: No space left on device\n"
    assert done.returncode == 1


def test_unknown_names_are_errors_that_list_the_known(loaded: str) -> None:
    assert "flight, weather" in failure("ingest", loaded, "wether")
    assert "flight, weather" in failure("get", loaded, "-f", "wether:temp", "origin=JFK")
    assert "temp, wind_speed" in failure("get", loaded, "-f", "weather:tmp", "origin=JFK")
    assert "model" in failure("get", loaded, "--service", "modle", "origin=JFK")
    assert "table:feature" in failure("get", loaded, "-f", "temp", "origin=JFK")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("info",),
        ("info", "f.fdb", "--jason"),
        ("get", "f.fdb", "--service", "s"),
        ("get", "f.fdb", "origin=JFK"),
        ("get", "f.fdb", "--service", "s", "-f", "t:f", "origin=JFK"),
        ("join", "f.fdb", "in.csv", "out.xlsx", "--service", "s"),
        ("ingest", "f.fdb", "t", "--to", "moon"),
        ("log", "f.fdb", "--limit", "0"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_every_command_has_help_and_all_that_print_data_take_json() -> None:
    listed = text("--help")
    for name, command in main.commands.items():
        assert name in listed
        assert "--json" in text(name, "--help"), name
        assert command.help
    expected = {"info", "tables", "ingest", "join", "get", "log", "verify", "backup", "compact", "demo", "warmup"}
    expected |= {"rejected", "snapshot", "snapshots", "drop-snapshot", "forget", "salvage"}
    assert set(main.commands) == expected
    assert fdb.__version__ in text("--version")


# --- form -----------------------------------------------------------------------------------------
def test_starting_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys; import featuredb.cli; "
        "print(sorted({'pandas', 'pyarrow', 'numba', 'polars', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_piped_output_has_no_colours_and_no_folded_lines(loaded: str) -> None:
    key = "origin=" + "x" * 300
    shown = text("get", loaded, "--service", "model", key)
    assert "\x1b" not in shown
    assert [line.startswith(key) for line in shown.splitlines()] == [False, True, True]


def test_values_from_data_cannot_control_the_terminal() -> None:
    assert cell("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert cell(None) == "-"
    assert cell(0.1) == "0.1"


def test_json_values_are_plain() -> None:
    moment = datetime(2024, 1, 1, 13, tzinfo=UTC)
    given = {
        "time": moment, "naive": np.datetime64("2024-01-01T13:00", "us"), "nat": np.datetime64("NaT", "s"),
        "floats": [float("nan"), float("inf"), -float("inf"), 1.5], "bytes": b"\x00\xff", "status": fdb.Status.PRESENT,
        "array": np.array([1, 2], dtype=np.int8), "age": timedelta(minutes=1),
    }  # fmt: skip
    assert plain(given) == {
        "time": "2024-01-01T13:00:00Z", "naive": "2024-01-01T13:00:00Z", "nat": None,
        "floats": ["NaN", "Infinity", "-Infinity", 1.5], "bytes": "AP8=", "status": "PRESENT",
        "array": [1, 2], "age": 60.0,
    }  # fmt: skip


def test_figures_for_people() -> None:
    assert [age(s) for s in (None, 604800, 10800, 90, 60, 0.5)] == ["none", "7 d", "3 h", "90 s", "1 min", "0.5 s"]
    assert [size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3,072.0 GiB",
    ]
