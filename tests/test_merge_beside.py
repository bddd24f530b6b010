"""Merging much: others write meanwhile, and whatever they do nothing is lost, and nothing comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_processes import python

import featuredb as fdb
from featuredb.limits import MERGE_STALE_SECONDS, NS_SEGMENT
from featuredb.offline.merge_beside import Beside
from featuredb.storage import manifest

T0 = datetime(2024, 5, 1, tzinfo=UTC)
USERS = list(range(50))
FANOUT = 4
# What some batches hold: (user, day) to the value.
Rows = dict[tuple[int, int], int]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every merge is one beside others, in several parts; and every ingest makes a segment."""
    monkeypatch.setattr("featuredb.offline.merge.MERGE_LOCKED_ROWS_MAX", 0)
    monkeypatch.setattr("featuredb.offline.merge.MERGE_FANOUT", FANOUT)
    monkeypatch.setattr("featuredb.offline.merge_beside.MERGE_STAGE_BYTES", 100)
    monkeypatch.setattr("featuredb.offline.merge_beside.MERGE_PAUSE_SECONDS", 0)
    monkeypatch.setattr("featuredb.offline.ingest.SMALL_INGEST_ROWS_MAX", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.fdb"


@pytest.fixture
def db(path: Path) -> Any:
    with fdb.open(path, durability="relaxed", timeout=5) as db:
        features = [fdb.Feature("value", "int64"), fdb.Feature("text", "string")]
        db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], features)])
        yield db


def ingest(db: fdb.Database, rows: Rows) -> None:
    times = [T0 + timedelta(days=day) for _, day in rows]
    values = list(rows.values())
    data = {
        "user": [user for user, _ in rows],
        "event_timestamp": times,
        "value": values,
        "text": list(map(str, values)),
    }
    db.ingest("t", data)


def day_of_all(day: int, value: int) -> Rows:
    return {(user, day): value + user for user in USERS}


def stored(db: fdb.Database) -> Rows:
    found = db.get_historical_features(None, ["t:value", "t:text"]).to_numpy()
    assert found["text"].tolist() == list(map(str, found["value"].tolist()))
    days = [(event - T0.replace(tzinfo=None)).days for event in found["event_timestamp"].tolist()]
    return dict(zip(zip(found["user"].tolist(), days, strict=True), found["value"].tolist(), strict=True))


def segments(db: fdb.Database) -> int:
    return int(db.info()["feature_tables"]["t"]["segments"])


def staged(db: fdb.Database) -> list[tuple[int, int]]:
    with db._env.read() as txn:
        return list(manifest.staged_segments(txn))


def due(
    db: fdb.Database,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[], None],
    *,
    more: Rows | None = None,
    late: bool = False,
) -> Rows:
    """Ingest until a merge is due, and do something once after its first part, or its last; the rows ingested."""
    rows: Rows = {}
    for day in range(FANOUT - 1):
        batch = day_of_all(day, 1000 * day) | ((more or {}) if day == 0 else {})
        ingest(db, batch)
        rows |= batch
    stage, done = Beside._stage, []

    def interrupted(self: Beside, entries: Any) -> None:
        stage(self, entries)
        if not done and (not late or entries[-1][0].startswith(NS_SEGMENT)):
            done.append(True)
            meanwhile()

    monkeypatch.setattr(Beside, "_stage", interrupted)
    last = day_of_all(FANOUT - 1, 5000)
    ingest(db, last)
    assert done, "nothing was merged"
    return rows | last


def test_rows_that_are_replaced_meanwhile_stay_replaced(
    db: fdb.Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some before, so that the lists of replaced rows of the merged segments are not empty.
    changed = {(3, 0): 7, (4, 2): 8, (49, 1): 9}
    new = {(3, 77): 1, (60, 0): 2}
    with fdb.open(path) as other:
        rows = due(db, monkeypatch, lambda: ingest(other, changed | new))
    assert stored(db) == rows | changed | new
    assert segments(db) == 2
    assert staged(db) == []
    assert db.verify().ok
    # And once more, in the new segment.
    ingest(db, {(3, 0): 70, (5, 0): 71})
    assert stored(db) == rows | changed | new | {(3, 0): 70, (5, 0): 71}
    assert db.verify().ok


def test_a_writer_in_another_process_does_not_wait_for_a_merge(
    db: fdb.Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
with fdb.open(sys.argv[1], timeout=0) as db:
    db.ingest("t", [{"user": 1, "event_timestamp": "2030-01-01", "value": 1, "text": "1"}])
"""

    def meanwhile() -> None:
        with python(code, path) as process:
            assert process.wait() == 0

    rows = due(db, monkeypatch, meanwhile)
    day = (datetime(2030, 1, 1, tzinfo=UTC) - T0).days
    assert stored(db) == rows | {(1, day): 1}
    assert db.verify().ok


def test_what_is_forgotten_meanwhile_does_not_come_back(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = due(db, monkeypatch, lambda: db.forget({"user": [3, 4]}) and None)
    expected = {at: value for at, value in rows.items() if at[0] not in (3, 4)}
    assert stored(db) == expected
    assert staged(db) == []
    assert db.verify().ok
    # The next ingest merges.
    ingest(db, {(7, 70): 1})
    assert stored(db) == expected | {(7, 70): 1}
    assert segments(db) <= 2


def test_compact_meanwhile_leaves_nothing_of_what_was_forgotten(
    db: fdb.Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile() -> None:
        db.forget({"user": [99]})
        assert staged(db), "nothing was being merged"
        assert b"123456789123" in path.read_bytes()
        db.compact()
        assert b"123456789123" not in path.read_bytes()

    gone = {(99, 0): 123_456_789_123}
    rows = due(db, monkeypatch, meanwhile, more=gone, late=True)
    assert stored(db) == {at: value for at, value in rows.items() if at not in gone}
    assert (staged(db), segments(db)) == ([], 1)
    assert b"123456789123" not in path.read_bytes()
    assert db.verify().ok


def test_a_table_that_is_deleted_meanwhile_stays_deleted(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    due(db, monkeypatch, lambda: db.delete_feature_table("t"))
    assert db.list_feature_tables() == []
    assert staged(db) == []
    assert db.verify().ok


def test_a_snapshot_made_meanwhile_keeps_what_it_shows(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Rows] = []

    def meanwhile() -> None:
        ingest(db, {(3, 0): 7})
        db.snapshot("s")
        shown.append(stored(db))
        ingest(db, {(3, 0): 8})

    rows = due(db, monkeypatch, meanwhile)
    assert stored(db.at("s")) == shown[0] == rows | {(3, 0): 7}
    assert stored(db) == rows | {(3, 0): 8}
    db.drop_snapshot("s")
    assert stored(db) == rows | {(3, 0): 8}
    assert db.verify().ok


def test_only_one_merges_a_table_at_a_time(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def meanwhile() -> None:
        ingest(db, {(1, 100): 1})
        counts.append(len(staged(db)))

    rows = due(db, monkeypatch, meanwhile)
    assert counts == [1]
    assert stored(db) == rows | {(1, 100): 1}


def pass_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a merge that has not written since is taken for dead."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + (MERGE_STALE_SECONDS + 1) * 10**9)


class Killed(BaseException):
    """As if the process had ended: nothing is cleared up."""


def test_what_a_dead_merge_has_staged_is_removed_after_a_while(
    db: fdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> None:
        monkeypatch.setattr("featuredb.offline.merge_beside.drop_staged", lambda *_: None)
        raise Killed

    with pytest.raises(Killed):
        due(db, monkeypatch, killed)
    before = stored(db)
    assert len(before) == FANOUT * len(USERS)
    assert len(staged(db)) == 1
    assert db.verify().ok
    ingest(db, {(1, 100): 1})
    assert len(staged(db)) == 1, "it may be alive"
    pass_time(monkeypatch)
    ingest(db, {(2, 100): 2})
    assert staged(db) == []
    assert stored(db) == before | {(1, 100): 1, (2, 100): 2}
    assert db.verify().ok
    assert segments(db) <= 3


def test_a_merge_that_was_slow_finds_its_segment_removed(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile() -> None:
        pass_time(monkeypatch)
        db.apply(fdb.Entity("other", "int64"))
        assert staged(db) == []

    rows = due(db, monkeypatch, meanwhile)
    assert staged(db) == []
    assert stored(db) == rows
    assert db.verify().ok


def test_a_merge_that_fails_removes_what_it_staged(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise fdb.FileError("the disk is full; make room")

    rows = due(db, monkeypatch, full)
    assert stored(db) == rows
    assert (staged(db), segments(db)) == ([], FANOUT)
    assert db.verify().ok
