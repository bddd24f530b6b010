"""What is stored depends on the rows alone: not on their order, their split into calls, or repeats."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from strategies import Batch, Case, TableCase, cases, container, small_batches

import featuredb as fdb

pytestmark = pytest.mark.usefixtures("both_histories")

T0 = datetime(2013, 1, 1, tzinfo=UTC)


def distinct(rows: list[oracle.Row]) -> list[oracle.Row]:
    """The last of the rows with equal key and timestamps."""
    return list({(row.key, row.event, row.created): row for row in rows}.values())


def outcome(db: fdb.Database, case: Case) -> tuple[Any, ...]:
    """What joins, also at the times of the stored rows, and online reads give, and how many rows there are."""
    columns = case.left_columns()
    rows = [(table, row) for table in case.tables for batch in table.batches for row in batch.rows]
    for name, (dtype, values) in columns.items():
        if name in case.entities:
            own = [row.key[table.entities.index(name)] for table, row in rows]
            columns[name] = (dtype, values + own)
    columns["event_timestamp"] = ("timestamp", columns["event_timestamp"][1] + [row.event for _, row in rows])
    columns["label"] = ("int32", list(range(len(case.left) + len(rows))))
    training = db.get_historical_features(container("arrow", columns), case.references, include_event_timestamps=True)
    online = db.get_online_features(
        case.references, container("arrow", {name: columns[name] for name in case.entities})
    )
    stored = [table["rows"] for table in db.info()["feature_tables"].values()]
    return repr(training.to_arrow().to_pylist()), repr(online.to_arrow().to_pylist()), stored, online.statuses


@given(case=cases(tables_max=1, created=True), data=st.data())
def test_any_permutation_any_split_and_any_part_twice_give_the_same(case: Case, data: st.DataObject) -> None:
    (table,) = case.tables
    rows = distinct([row for batch in table.batches for row in batch.rows])
    shuffled = data.draw(st.permutations(rows), label="order")
    shuffled = shuffled + data.draw(st.lists(st.sampled_from(shuffled), max_size=4) if shuffled else st.just([]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(shuffled)), max_size=6), label="cuts"))
    parts = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)]
    again = data.draw(st.sampled_from(parts), label="part given twice")
    with fdb.open(":memory:") as one, fdb.open(":memory:") as many:
        at_once = [Batch(rows, True, "arrow")]
        case.tables = [TableCase(table.name, table.entities, table.features, table.max_age, at_once)]
        case.load(one)
        many.apply(case.definitions)
        for part in [*parts, again]:
            many.ingest(table.name, table.data(Batch(part, True, "arrow"), case.entities))
        assert outcome(one, case) == outcome(many, case)
        assert many.verify().ok


@given(case=cases(tables_max=1))
def test_the_same_data_again_changes_nothing(case: Case) -> None:
    """All of it at once, as the file that it would come from."""
    (table,) = case.tables
    rows = [row for batch in table.batches if batch.created for row in batch.rows]
    with fdb.open(":memory:") as db:
        db.apply(case.definitions)
        data = table.data(Batch(rows, True, "arrow"), case.entities)
        first = db.ingest(table.name, data)
        before, commits = outcome(db, case), list(db.log())
        second = db.ingest(table.name, data)
        assert list(db.log()) == commits
        assert outcome(db, case) == before
        assert second.rows_ingested == second.online_keys_updated == 0
        assert second.rows_unchanged == first.rows_ingested
        assert second.commit_id == first.commit_id


ROWS = {
    "user": [1, 2, 1, 1, 2, 1],
    "event_timestamp": [T0 + timedelta(hours=h) for h in (0, 0, 1, 0, 0, 2)],
    "score": [1.0, 2.0, 3.0, 4.0, 2.0, None],
}


def define(db: fdb.Database, source: fdb.FileSource | None = None) -> None:
    db.apply(
        [
            fdb.Entity("user", "int64"),
            fdb.FeatureTable("t", ["user"], [fdb.Feature("score", "float64")], batch_source=source),
        ]
    )


@pytest.mark.parametrize("to", ["both", "online"])
@given(case=cases(tables_max=1, created=True), batch_rows=st.integers(1, 5), memory_rows=st.sampled_from([None, 100]))
def test_reports_commits_and_rows_do_not_depend_on_the_size_of_batches(
    to: Any, case: Case, batch_rows: int, memory_rows: int | None
) -> None:
    (table,) = case.tables
    reports: list[Any] = [[], []]
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as whole, fdb.open(":memory:") as cut:
        for place, db in enumerate((whole, cut)):
            if db is cut:
                small_batches(patch, batch_rows, memory_rows)
            db.apply(case.definitions)
            for batch in [*table.batches, *table.batches]:
                report = db.ingest(table.name, table.data(batch, case.entities), to=to)
                # Of rows that are alike, which count as repeated depends on what a batch can see.
                alike = report.rows_unchanged + report.rows_repeated
                counts = [report.rows_read, report.online_keys_updated, report.commit_id]
                # Rows that are loaded online alone are compared within a batch only: they are offered, not stored.
                reports[place].append([*counts, report.rows_ingested, alike] if to == "both" else counts)
        assert reports[0] == reports[1]
        assert to == "online" or [c.rows for c in whole.log()] == [c.rows for c in cut.log()]
        patch.undo()
        assert outcome(whole, case) == outcome(cut, case)
        assert cut.verify().ok


@pytest.mark.parametrize("batch_rows", [1, 2, 1000])
def test_the_same_file_twice_changes_nothing(
    db: fdb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    """Even if rows of the file replace one another, within one batch or from batch to batch."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(ROWS), path)
    define(db, fdb.FileSource(path))
    small_batches(monkeypatch, batch_rows)
    asked = {"user": [1, 1, 1, 2], "event_timestamp": [T0 + timedelta(hours=h) for h in (0, 1, 2, 5)]}
    first = db.ingest("t")
    commits = list(db.log())
    second = db.ingest("t")
    assert first.rows_ingested == 4
    assert first.duplicates_replaced == 2
    assert list(db.log()) == commits
    assert db.info()["feature_tables"]["t"]["rows"] == 4
    history = db.get_historical_features(asked, ["t:score"]).to_arrow()
    assert history.column("score").to_pylist() == [4.0, 3.0, None, 2.0]
    assert (second.rows_read, second.rows_ingested, second.commit_id) == (6, 0, first.commit_id)
    assert second.online_keys_updated == 0


def test_the_later_of_two_ingests_replaces_whatever_the_size_of_batches(
    db: fdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(db)
    small_batches(monkeypatch, 1)
    db.ingest("t", ROWS)
    db.ingest("t", {**ROWS, "score": [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]})
    asked = {"user": [1, 1, 1, 2], "event_timestamp": [T0 + timedelta(hours=h) for h in (0, 1, 2, 5)]}
    history = db.get_historical_features(asked, ["t:score"]).to_arrow()
    assert history.column("score").to_pylist() == [40.0, 30.0, 60.0, 50.0]
    assert db.get_online_features(["t:score"], {"user": [1, 2]}).to_dict()["score"] == [60.0, 50.0]


def test_a_report_counts_every_row_once(db: fdb.Database) -> None:
    define(db)
    db.ingest("t", {name: values[:1] for name, values in ROWS.items()})
    data = {
        "user": [*ROWS["user"], None, 5],
        "event_timestamp": [*ROWS["event_timestamp"], T0, T0 + timedelta(days=9)],
        "score": [*ROWS["score"], 1.0, 1.0],
    }
    report = db.ingest("t", data, on_error="skip", end=T0 + timedelta(days=1))
    assert report.rows_read == 8
    assert report.rows_rejected == 1
    assert report.rows_outside == 1
    counts = (report.rows_ingested, report.rows_unchanged, report.rows_repeated, report.rows_outside)
    assert sum(counts) + report.rows_rejected == report.rows_read
    assert [(r.row, r.column) for r in report.rejections] == [(6, "user")]


def test_start_and_end_are_both_included(db: fdb.Database) -> None:
    define(db)
    hour = timedelta(hours=1)
    report = db.ingest("t", ROWS, start=T0 + hour, end=T0 + 2 * hour)
    assert (report.rows_ingested, report.rows_outside) == (2, 4)
