"""Rejected rows: kept in the file by the commit of their ingest, and read back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from strategies import small_batches

import featuredb as fdb
from featuredb.cli import main

pytestmark = pytest.mark.usefixtures("both_histories")

T0 = datetime(2013, 1, 1, tzinfo=UTC)


@pytest.fixture
def gusts(db: fdb.Database) -> fdb.Database:
    define(db)
    return db


def define(db: fdb.Database) -> None:
    db.apply([fdb.Entity("origin", "string"), fdb.FeatureTable("gusts", ["origin"], [fdb.Feature("gust", "int16")])])


def data(*rows: tuple[Any, Any]) -> dict[str, list[Any]]:
    return {"origin": [r[0] for r in rows], "event_timestamp": [T0] * len(rows), "gust": [r[1] for r in rows]}


GOOD, NO_KEY, TOO_BIG = ("JFK", 7), (None, 1), ("LGA", 40_000)


def numbers(db: fdb.Database) -> list[tuple[int, int]]:
    return [(row.commit_id, row.row) for row in db.rejected("gusts")]


def test_rejected_rows_are_read_back_as_reported(tmp_path: Path) -> None:
    with fdb.open(tmp_path / "f.fdb") as db:
        define(db)
        report = db.ingest("gusts", data(GOOD, NO_KEY, TOO_BIG, (None, 40_000)), on_error="skip")
        kept = db.rejected("gusts")
    assert [(row.row, row.column, row.value, row.reason) for row in kept] == [
        (row.row, row.column, row.value, row.reason) for row in report.rejections
    ]
    assert {row.commit_id for row in kept} == {report.commit_id}
    assert sorted((row.row, row.column) for row in kept) == [(1, "origin"), (2, "gust"), (3, "gust"), (3, "origin")]
    assert {row.value for row in kept} == {"None", "40000"}
    with fdb.open(tmp_path / "f.fdb", read_only=True) as db:
        assert db.rejected("gusts") == kept
        assert db.verify().ok


def test_with_on_error_raise_nothing_is_kept(gusts: fdb.Database) -> None:
    with pytest.raises(fdb.InputError):
        gusts.ingest("gusts", data(NO_KEY))
    assert gusts.rejected("gusts") == []


def test_a_call_of_rejected_rows_alone_is_a_commit_of_no_rows(gusts: fdb.Database) -> None:
    report = gusts.ingest("gusts", data(NO_KEY), on_error="skip")
    assert (report.rows_ingested, report.committed) == (0, True)
    last = gusts.log()[-1]
    assert (last.id, last.operation, last.table, last.rows) == (report.commit_id, "ingest", "gusts", 0)
    assert numbers(gusts) == [(last.id, 0)]
    assert gusts.info()["feature_tables"]["gusts"]["rows"] == 0
    assert gusts.verify().ok


def test_the_same_data_again_changes_nothing(gusts: fdb.Database) -> None:
    gusts.ingest("gusts", data(GOOD, NO_KEY), on_error="skip")
    before = gusts.log(), gusts.rejected("gusts")
    report = gusts.ingest("gusts", data(GOOD, NO_KEY), on_error="skip")
    assert (gusts.log(), gusts.rejected("gusts")) == before
    assert not report.committed
    assert report.commit_id == before[0][-1].id


@pytest.mark.parametrize("other", [(NO_KEY, NO_KEY), (TOO_BIG,), (GOOD, NO_KEY)])
def test_other_rejected_rows_than_the_last_are_a_commit(gusts: fdb.Database, other: tuple[Any, ...]) -> None:
    gusts.ingest("gusts", data(NO_KEY, GOOD), on_error="skip")
    assert gusts.ingest("gusts", data(*other), on_error="skip").committed
    assert len(gusts.rejected("gusts")) == 1 + sum(row is not GOOD for row in other)


def test_rejected_rows_alone_are_kept_when_batches_cancel_out(
    gusts: fdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gusts.ingest("gusts", data(GOOD))
    small_batches(monkeypatch, 1)
    report = gusts.ingest("gusts", data(("JFK", 8), NO_KEY, GOOD), on_error="skip")
    assert (report.rows_ingested, report.rows_rejected, report.committed) == (0, 1, True)
    assert numbers(gusts) == [(report.commit_id, 1)]
    assert gusts.get_online_features(["gusts:gust"], {"origin": ["JFK"]}).to_dict()["gust"] == [7]
    assert gusts.info()["feature_tables"]["gusts"]["segments"] == 1
    assert gusts.verify().ok


def test_the_newest_are_kept(gusts: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.storage.rejected.REJECTED_ROWS_MAX", 3)
    for _ in range(2):
        gusts.ingest("gusts", data(NO_KEY, TOO_BIG), on_error="skip")
        gusts.ingest("gusts", data(TOO_BIG), on_error="skip")
    assert numbers(gusts) == [(4, 0), (4, 1), (5, 0)] or numbers(gusts) == [(4, 1), (4, 0), (5, 0)]
    gusts.ingest("gusts", data(*[NO_KEY] * 5), on_error="skip")
    assert numbers(gusts) == [(6, 2), (6, 3), (6, 4)]
    assert gusts.verify().ok


def test_a_call_keeps_the_first_thousand(gusts: fdb.Database) -> None:
    report = gusts.ingest("gusts", data(*[NO_KEY] * 1001), on_error="skip")
    assert report.rows_rejected == 1001
    assert [row.row for row in gusts.rejected("gusts")] == list(range(1000))


def test_deleting_the_table_deletes_them(gusts: fdb.Database) -> None:
    gusts.ingest("gusts", data(NO_KEY, GOOD), on_error="skip", to="offline")
    gusts.delete_feature_table("gusts")
    assert gusts.verify().ok
    with pytest.raises(fdb.NotFoundError, match="gusts"):
        gusts.rejected("gusts")
    define(gusts)
    assert gusts.rejected("gusts") == []


def test_verify_finds_what_is_wrong_with_them(gusts: fdb.Database) -> None:
    from featuredb.storage.pending import note_pending
    from featuredb.storage.rejected import RejectedRow, add_rejected

    add = [RejectedRow(99, 0, "origin", None, "made up")]
    with gusts._env.writer(1):
        gusts._env.write(lambda txn: (add_rejected(txn, 2, add), note_pending(txn, 2, 99), note_pending(txn, 77, 1)))
        gusts._env.write(lambda txn: txn.put(b"j" + (2).to_bytes(4, "big") + (8).to_bytes(8, "big"), b"broken"))
    found = " ".join(map(str, gusts.verify().problems))
    assert "rejected row 8" in found
    assert "begin with commit 99" in found
    assert "number 77" in found
    with gusts._env.writer(1):
        gusts._env.write(lambda txn: txn.delete(b"j" + (2).to_bytes(4, "big") + (8).to_bytes(8, "big")))
    assert "a rejected row is of a commit that is not logged" in " ".join(map(str, gusts.verify().problems))


def test_the_command_line_shows_them(tmp_path: Path) -> None:
    path = str(tmp_path / "f.fdb")
    with fdb.open(path) as db:
        define(db)
    csv = tmp_path / "rows.csv"
    csv.write_text("origin,event_timestamp,gust\nJFK,2013-01-01,40000\n")
    shown = CliRunner().invoke(main, ["rejected", path, "gusts"])
    assert (shown.exit_code, shown.output) == (0, "gusts: no rejected rows\n")
    done = CliRunner().invoke(main, ["ingest", path, "gusts", str(csv), "--on-error", "skip"])
    assert "commit 2" in done.output
    shown = CliRunner().invoke(main, ["rejected", path, "gusts"])
    assert "40000" in shown.output
    assert "out of the range of int16" in shown.output
    (row,) = json.loads(CliRunner().invoke(main, ["rejected", path, "gusts", "--json"]).output)
    assert (row["commit_id"], row["row"], row["column"]) == (2, 0, "gust")
