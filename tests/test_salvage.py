"""Salvage: whatever is damaged, what is left is in order and as it was, and the rest is named."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import TAILS, set_tails
from test_pages import change, meta
from test_verify import HOUR, T0, entries, fill, raw, some, weather

import featuredb as fdb
from featuredb.limits import (
    NS_CHUNK,
    NS_CODE_BLOCK,
    NS_COMMIT,
    NS_DEFINITION,
    NS_FORMAT,
    NS_KEY,
    NS_MANIFEST,
    NS_ONLINE,
    NS_PENDING,
    NS_REJECTED,
    NS_SEGMENT,
    NS_TAIL,
)

PAGE = 4096


def make(path: Path) -> None:
    """`fill` in segments, and a table whose rows are in a tail."""
    with fdb.open(path) as db:
        fill(db)
        bad = {"origin": [None, "q"], "event_timestamp": [T0, T0], "n": [1, 2]}
        db.ingest("history", bad, on_error="skip")
        db.ingest("history", {"origin": ["w"], "event_timestamp": [T0], "n": [8]}, to="offline")


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("salvage") / "master.fdb"
    with pytest.MonkeyPatch.context() as patch:
        set_tails(patch, *TAILS[0])
        make(path)
    with fdb.open(path) as db:
        db.apply(fdb.FeatureTable("tailed", ["origin"], [fdb.Feature("n", "int32")]))
        for n in range(6):
            db.ingest("tailed", {"origin": ["abc"[n % 3]], "event_timestamp": [T0 + n * HOUR], "n": [n]})
        assert db.verify().ok
        assert db.info()["feature_tables"]["weather"]["segments"] == 2
    return path


@pytest.fixture
def path(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(master, tmp_path / "damaged.fdb"))


Rows = dict[str, set[tuple[Any, ...]]]


def rows_of(path: Path) -> Rows:
    """Every row of history, by table."""
    found: Rows = {}
    with fdb.open(path, read_only=True) as db:
        for table in db.list_feature_tables():
            references = [f"{table.name}:{name}" for name in table.feature_names]
            frame = db.get_historical_features(None, references).to_pandas()
            found[table.name] = {tuple(map(str, row)) for row in frame.itertuples(index=False)}
    return found


def salvaged(path: Path) -> tuple[fdb.SalvageReport, Path]:
    """Salvage a file, which must stay as it is; the new one must be in order."""
    content, target = path.read_bytes(), path.with_name("salvaged.fdb")
    target.unlink(missing_ok=True)
    report = fdb.salvage(path, target)
    assert path.read_bytes() == content
    assert report.content.ok, report
    return report, target


def told(report: fdb.SalvageReport) -> str:
    return "\n".join(map(str, report.lost))


def damage(path: Path, key: bytes) -> None:
    with raw(path) as txn:
        value = bytes(txn.get(key))
        txn.put(key, value[:-1] + bytes([value[-1] ^ 4]) if value else b"x")


def key_of(path: Path, prefix: bytes, place: int = 0) -> bytes:
    return [key for key in entries(path) if key.startswith(prefix)][place]


def table_id(path: Path, name: str) -> bytes:
    from featuredb.storage.records import unpack

    return int(unpack(entries(path)[NS_DEFINITION + b"t" + name.encode()], "")["id"]).to_bytes(4, "big")


# --- nothing is damaged ---------------------------------------------------------------------------


def test_of_a_file_in_order_everything_is_copied_with_its_snapshots(path: Path) -> None:
    with fdb.open(path) as db:
        db.snapshot("held")
    report, target = salvaged(path)
    assert report.lost == report.damaged_pages == ()
    assert entries(target) == entries(path)


# --- entries --------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_value_costs_only_what_is_there(master: Path, tmp_path: Path) -> None:
    before = rows_of(master)
    for number, key in enumerate(entries(master)):
        path = Path(shutil.copy(master, tmp_path / f"{number}.fdb"))
        damage(path, key)
        report, target = salvaged(path)
        after = rows_of(target)
        kind = key[:1]
        if kind not in (NS_CHUNK, NS_SEGMENT, NS_TAIL, NS_MANIFEST, NS_DEFINITION):
            assert after == before, key
        remade = (NS_DEFINITION + b"#", NS_DEFINITION + b"k", NS_FORMAT, NS_ONLINE, NS_KEY, NS_CODE_BLOCK, NS_PENDING)
        assert (report.lost == ()) == key.startswith(remade), key
        for table, rows in after.items():
            assert rows <= before[table], key
        changed = {table for table in before if after.get(table) != before[table]}
        assert len(changed) <= 1, key
        assert all(table in told(report) for table in changed), (key, told(report))
        os.unlink(path)


def test_the_loss_of_any_entry_costs_only_what_is_there(master: Path, tmp_path: Path) -> None:
    before = rows_of(master)
    for number, key in enumerate(entries(master)):
        path = Path(shutil.copy(master, tmp_path / f"{number}.fdb"))
        with raw(path) as txn:
            txn.delete(key)
        report, target = salvaged(path)
        after = rows_of(target)
        changed = {table for table in before if after.get(table) != before[table]}
        assert len(changed) <= 1, key
        if key[:2] == NS_DEFINITION + b"t":
            assert "its definition is lost" in told(report)
        else:
            assert all(table in told(report) for table in changed), (key, told(report))
        os.unlink(path)


def test_a_damaged_segment_is_lost_and_named_and_its_newest_rows_are_kept_by_the_online_values(path: Path) -> None:
    before = rows_of(path)["weather"]
    damage(path, key_of(path, NS_CHUNK + table_id(path, "weather")))
    with fdb.open(path, read_only=True) as db:
        online = db.get_online_features(["weather:temp"], {"origin": list("abcdef")}).to_dict()
    report, target = salvaged(path)
    assert "table weather, segment 1" in told(report)
    after = rows_of(target)["weather"]
    assert after < before
    with fdb.open(target) as db:
        assert db.get_online_features(["weather:temp"], {"origin": list("abcdef")}).to_dict() == online
        assert [commit.operation for commit in db.log()][-1] == "salvage"
    assert len(after) >= len(online["origin"])
    with fdb.open(target) as db:
        db.ingest("weather", some("g", [50]))
        assert db.verify().ok


def test_a_damaged_online_value_is_made_anew_from_history(path: Path) -> None:
    with fdb.open(path, read_only=True) as db:
        online = db.get_online_features(["weather:temp"], {"origin": list("abcdef")}).to_dict()
    damage(path, key_of(path, NS_ONLINE + table_id(path, "weather"), 2))
    report, target = salvaged(path)
    assert report.lost == ()
    with fdb.open(target) as db:
        assert db.get_online_features(["weather:temp"], {"origin": list("abcdef")}).to_dict() == online


def test_a_key_whose_row_and_online_value_are_damaged_is_named(path: Path) -> None:
    number, before = table_id(path, "weather"), rows_of(path)
    damage(path, key_of(path, NS_CHUNK + number))
    damage(path, key_of(path, NS_ONLINE + number, 4))
    report, target = salvaged(path)
    assert "table weather, key origin='e': its online value" in told(report)
    after = rows_of(target)
    assert after["weather"] < before["weather"]
    assert after | {"weather": before["weather"]} == before


@pytest.mark.parametrize("held", [False, True])
def test_a_manifest_is_made_anew_without_the_segments_that_only_a_snapshot_holds(path: Path, held: bool) -> None:
    if held:
        with fdb.open(path) as db:
            db.snapshot("held")
            db.compact()
            assert db.info()["feature_tables"]["weather"]["segments"] == 1
    before = rows_of(path)
    damage(path, NS_MANIFEST + table_id(path, "weather"))
    report, target = salvaged(path)
    assert "table weather: its manifest" in told(report)
    assert ("snapshot 'held'" in told(report)) == held
    assert rows_of(target) == before
    with fdb.open(target) as db:
        assert db.list_snapshots() == []


def test_lost_commits_keep_the_times_of_the_others(path: Path) -> None:
    with fdb.open(path) as db:
        log = db.log()
    for number in (1, 4, len(log)):
        damage(path, NS_COMMIT + number.to_bytes(8, "big"))
    report, target = salvaged(path)
    assert f"what the log says of 3 commits: 1, 4, {len(log)}" in told(report)
    with fdb.open(target) as db:
        after = db.log()
    assert [commit.operation for commit in after] == [
        "lost" if commit.id in (1, 4, len(log)) else commit.operation for commit in log
    ] + ["salvage"]
    assert all(new == old for new, old in zip(after, log, strict=False) if new.operation != "lost")


def test_keys_are_found_in_the_tree_and_in_blocks(path: Path) -> None:
    before = rows_of(path)
    damage(path, key_of(path, NS_CODE_BLOCK))
    damage(path, key_of(path, NS_KEY, -1))
    report, target = salvaged(path)
    assert report.lost == ()
    assert rows_of(target) == before
    key = key_of(path, NS_KEY)
    damage(path, key)
    report, target = salvaged(path)
    assert "1 entity keys or more" in told(report)
    assert all(rows <= before[table] for table, rows in rows_of(target).items())


def test_a_row_under_the_key_of_another_is_not_believed(path: Path) -> None:
    before = rows_of(path)["tailed"]
    key = key_of(path, NS_TAIL + table_id(path, "tailed"), 1)
    with raw(path) as txn:
        value = bytes(txn.get(key))
        txn.delete(key)
        txn.put(key[:8] + bytes([key[8] ^ 1]) + key[9:], value)
    report, target = salvaged(path)
    assert "table tailed: " in told(report)
    # Which row it is cannot be told. The online values have the newest of each key.
    assert len(rows_of(target)["tailed"]) == 3
    assert rows_of(target)["tailed"] < before


# --- pages ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many pages, in three levels."""
    path: Path = tmp_path_factory.mktemp("large") / "large.fdb"
    rows = 12_000
    with fdb.open(path) as db:
        db.apply([fdb.Entity("origin", "string"), weather()])
        for start in (0, 40):
            hours = np.arange(rows) % 40 + start
            data = some("a" * rows, hours.tolist())
            db.ingest("weather", data | {"origin": [f"{number:05d}" for number in range(rows)]})
            db.ingest("weather", some("ab", [1, 2]))
        db.forget([{"origin": "a"}])
    assert meta(path)[2] >= 3
    return path


def pages(path: Path, kind: int) -> list[int]:
    content = path.read_bytes()
    found = range(2, len(content) // PAGE)
    return [at for at in found if struct.unpack_from("<QHH", content, at * PAGE) == (at, 0, kind)]


def test_with_damaged_branches_every_leaf_is_found(large: Path, tmp_path: Path) -> None:
    """All that is free stays gone: the leaves that are left of old transactions are not taken for those."""
    path = Path(shutil.copy(large, tmp_path / "damaged.fdb"))
    for page in pages(path, 1):
        change(path, page * PAGE, "<Q", 1)
    report, target = salvaged(path)
    assert any("says that it is page 1" in fault for fault in report.damaged_pages)
    assert report.lost == ()
    after = entries(target)
    last = max(key for key in after if key[:1] == NS_COMMIT)
    assert {key: value for key, value in after.items() if key != last and key != NS_DEFINITION + b"#"} == {
        key: value for key, value in entries(large).items() if key != NS_DEFINITION + b"#"
    }
    assert rows_of(target) == rows_of(large)


def test_random_damage_of_pages_leaves_rows_that_were_there(large: Path, tmp_path: Path) -> None:
    before, size, outcomes = rows_of(large), large.stat().st_size, set()
    for seed in range(12):
        rng = random.Random(seed)
        path = Path(shutil.copy(large, tmp_path / "damaged.fdb"))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(2 * PAGE, size - 512)
            with open(path, "r+b") as stream:
                stream.seek(at)
                stream.write(rng.randbytes(512))
        if seed % 4 == 0:
            os.truncate(path, rng.randrange(size // 2, size))
        report, target = salvaged(path)
        after = rows_of(target)
        assert report.damaged_pages or report.lost or after == before, seed
        outcomes.add(bool(report.lost))
        assert all(rows <= before[table] for table, rows in after.items()), seed
        if after != before:
            assert report.lost, seed
        target.unlink()
    assert True in outcomes


def test_one_meta_page_is_enough(large: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(large, tmp_path / "damaged.fdb"))
    newest = meta(path)[0]
    change(path, newest + 16, "<I", 0)
    with pytest.raises(fdb.FeatureDBError):
        fdb.open(path)
    report, target = salvaged(path)
    assert "a meta page is damaged" in report.damaged_pages[0]
    assert all(rows <= rows_of(large)[table] for table, rows in rows_of(target).items())
    change(path, (PAGE if newest == 0 else 0) + 16, "<I", 0)
    with pytest.raises(fdb.CorruptionError, match="nothing of it can be salvaged"):
        fdb.salvage(path, tmp_path / "none.fdb")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["damaged.fdb", "salvaged.fdb", "salvaged.fdb-lock"]


# --- refusals -------------------------------------------------------------------------------------


def foreign(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(8000))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "foreign": (foreign, "nothing of it can be salvaged"),
    "target": (lambda path: path.with_name("target.fdb").write_bytes(b"mine"), "exists already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_changes_nothing(path: Path, case: str) -> None:
    prepare, message = REFUSED[case]
    prepare(path)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(fdb.FileError, match=message):
        fdb.salvage(path, path.with_name("target.fdb"))
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_file_that_is_written_to_is_not_salvaged(path: Path) -> None:
    with fdb.open(path) as db, db._env.writer(1), pytest.raises(fdb.BusyError, match="is being written to"):
        fdb.salvage(path, path.with_name("target.fdb"))


def test_rejected_rows_that_cannot_be_read_are_named(path: Path) -> None:
    damage(path, key_of(path, NS_REJECTED))
    assert "table history: its rejected rows" in told(salvaged(path)[0])
