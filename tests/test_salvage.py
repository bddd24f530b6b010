"""Salvage: whatever is damaged, what is left is in order and as it was, and the rest is named."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pandas as pd
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
    NS_PINNED,
    NS_REJECTED,
    NS_SEGMENT,
    NS_TAIL,
)
from featuredb.recovery import OLDER
from featuredb.storage.crc import seal
from featuredb.storage.rescue import DEFINITIONS_OLDER
from featuredb.storage.segment import DATA

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


def some_keys(path: Path) -> list[bytes]:
    """Keys of all kinds: of those that begin alike, the first and the last."""
    alike: dict[bytes, list[bytes]] = {}
    for key in entries(path):
        # Chunks differ by their columns.
        alike.setdefault(key[:5] + key[13:17] if key[:1] == NS_CHUNK else key[:5], []).append(key)
    return [key for held in alike.values() for key in dict.fromkeys((held[0], held[-1]))]


def table_id(path: Path, name: str) -> bytes:
    from featuredb.storage.records import unpack

    key = NS_DEFINITION + b"t" + name.encode()
    return int(unpack(key, entries(path)[key], "")["id"]).to_bytes(4, "big")


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
    for number, key in enumerate(some_keys(master)[::3]):
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
    for number, key in enumerate(some_keys(master)[1::3]):
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


def test_online_values_loaded_apart_stay_though_their_keys_have_no_code(tmp_path: Path) -> None:
    path = tmp_path / "apart.fdb"
    with fdb.open(path) as db:
        db.apply([fdb.Entity("origin", "string"), fdb.FeatureTable("t", ["origin"], [fdb.Feature("n", "int32")])])
        db.ingest("t", {"origin": ["a", "b", "c"], "event_timestamp": [T0] * 3, "n": [1, 2, 3]}, to="online")
    assert not any(key.startswith(NS_KEY) for key in entries(path))
    whole, target = salvaged(path)
    assert not whole.lost
    target.unlink()
    damage(path, key_of(path, NS_ONLINE, 1))
    report, target = salvaged(path)
    assert "online value" in told(report)
    with fdb.open(target, read_only=True) as db:
        assert db.get_online_features(["t:n"], {"origin": ["a", "b", "c"]}).to_dict()["n"] == [1, None, 3]


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


def test_a_row_under_the_key_of_another_is_lost_alone(path: Path) -> None:
    before = rows_of(path)["tailed"]
    key = key_of(path, NS_TAIL + table_id(path, "tailed"), 1)
    with raw(path) as txn:
        value = bytes(txn.get(key))
        txn.delete(key)
        txn.put(key[:8] + bytes([key[8] ^ 1]) + key[9:], value)
    report, target = salvaged(path)
    assert "table tailed: " in told(report)
    assert len(rows_of(target)["tailed"]) == len(before) - 1
    assert rows_of(target)["tailed"] < before


def test_a_tail_that_has_a_row_of_another_time_is_not_believed(path: Path) -> None:
    before = rows_of(path)["tailed"]
    key = key_of(path, NS_TAIL + table_id(path, "tailed"), 1)
    with raw(path) as txn:
        body = bytearray(txn.get(key)[4:])
        body[-1] ^= 1
        txn.put(key, seal(key, bytes(body)))
    report, target = salvaged(path)
    assert "table tailed: " in told(report)
    # Which row it is cannot be told. The online values have the newest of each key.
    assert len(rows_of(target)["tailed"]) == 3
    assert rows_of(target)["tailed"] < before


@pytest.mark.usefixtures("a_segment_each")
def test_a_damaged_chunk_costs_only_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.storage.encode.CHUNK_ROWS_MAX", 64)
    path = tmp_path / "damaged.fdb"
    with fdb.open(path) as db:
        db.apply([fdb.Entity("origin", "string"), weather()])
        db.ingest("weather", some("a" * 1000, list(range(1000))))
    before = rows_of(path)["weather"]
    temp = 1
    column = NS_CHUNK + table_id(path, "weather") + (1).to_bytes(8, "big") + temp.to_bytes(4, "big")
    damage(path, column + (3).to_bytes(4, "big") + bytes([DATA]))
    report, target = salvaged(path)
    assert told(report).startswith("table weather, segment 1, column temp: 64 of its 1000 rows: chunk 3 (data)")
    gone = before - rows_of(target)["weather"]
    assert {row[1] for row in gone} == {str(pd.Timestamp(T0 + hour * HOUR, tz="UTC")) for hour in range(192, 256)}


def test_a_lost_key_costs_only_its_rows(path: Path) -> None:
    """Of key "b" of `origin`, its entry in the tree and its block are damaged; the others are in the tree."""
    before, space = rows_of(path), key_of(path, NS_CODE_BLOCK)[1:5]
    damage(path, NS_CODE_BLOCK + space + bytes(4))
    damage(path, NS_KEY + space + b"b\0")
    report, target = salvaged(path)
    assert told(report).startswith("key space origin: 1 entity keys or more\n")
    for table in before:
        if table != "pairs":
            assert rows_of(target)[table] == {row for row in before[table] if row[0] != "b"}, table
            assert f"table {table}" in told(report)
    assert rows_of(target)["pairs"] == before["pairs"]
    with fdb.open(target) as db:
        db.ingest("weather", some("b", [0]))
        assert db.verify().ok


def test_a_commit_that_only_an_online_row_names_is_lost_and_the_row_stays(path: Path) -> None:
    with fdb.open(path) as db:
        db.ingest("weather", some("a", [90]), to="online")
        online = db.get_online_features(["weather:temp"], {"origin": ["a"]}).to_dict()
        last = db.log()[-1].id
    before = rows_of(path)
    with raw(path) as txn:
        txn.delete(NS_COMMIT + last.to_bytes(8, "big"))
    report, target = salvaged(path)
    assert told(report) == f"what the log says of 1 commits: {last}"
    assert rows_of(target) == before
    with fdb.open(target) as db:
        assert db.get_online_features(["weather:temp"], {"origin": ["a"]}).to_dict() == online
        assert [commit.operation for commit in db.log()][-2:] == ["lost", "salvage"]


def test_of_a_tail_that_is_gone_whole_the_online_values_have_the_newest_rows(path: Path) -> None:
    before, prefix = rows_of(path), NS_TAIL + table_id(path, "tailed")
    with raw(path) as txn:
        for key in [bytes(key) for key, _ in txn.cursor() if bytes(key).startswith(prefix)]:
            txn.delete(key)
    report, target = salvaged(path)
    assert told(report) == "table tailed: rows of its history; 3 were found among its online values"
    after = rows_of(target)
    assert {row[2] for row in after["tailed"]} == {"3", "4", "5"}
    assert after | {"tailed": before["tailed"]} == before


def test_rows_that_were_not_materialized_are_offered_again_if_the_mark_of_them_is_lost(path: Path) -> None:
    with fdb.open(path) as db:
        db.ingest("tailed", {"origin": ["a"], "event_timestamp": [T0 + 90 * HOUR], "n": [90]}, to="offline")
    mark = NS_PENDING + table_id(path, "tailed")
    with raw(path) as txn:
        assert txn.delete(mark)
    damage(path, key_of(path, NS_ONLINE + table_id(path, "weather")))
    report, target = salvaged(path)
    assert report.lost == ()
    with fdb.open(target) as db:
        keys = {"origin": ["a"]}
        assert db.get_online_features(["tailed:n"], keys).to_dict()["n"] == [3]
        db.materialize(incremental=True)
        assert db.get_online_features(["tailed:n"], keys).to_dict()["n"] == [90]


@pytest.mark.parametrize("key", [b"\0", b"a key", b"z key", b"d? key"])
def test_entries_of_no_known_kind_are_left_out(path: Path, key: bytes) -> None:
    before = rows_of(path)
    with raw(path) as txn:
        txn.put(key, b"value")
    report, target = salvaged(path)
    assert report.lost == ()
    assert key.startswith(b"d") or report.damaged_pages == ("1 entries are of no known kind",)
    assert rows_of(target) == before
    assert key not in entries(target)


def test_a_commit_under_the_number_of_another_is_lost(path: Path) -> None:
    with fdb.open(path) as db:
        log = db.log()
    with raw(path) as txn:
        key = NS_COMMIT + (3).to_bytes(8, "big")
        txn.put(NS_COMMIT + (len(log) + 200).to_bytes(8, "big"), bytes(txn.get(key)))
        txn.delete(key)
    report, target = salvaged(path)
    assert told(report) == "what the log says of 1 commits: 3"
    with fdb.open(target) as db:
        assert [commit.id for commit in db.log() if commit.operation == "lost"] == [3]
        assert len(db.log()) == len(log) + 1


# --- pages ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many pages, in three levels; beside it the file before its last commit, which forgets a key."""
    path: Path = tmp_path_factory.mktemp("large") / "large.fdb"
    rows = 3_000
    with fdb.open(path) as db:
        db.apply([fdb.Entity("origin", "string"), weather()])
        for start in (0, 40):
            hours = np.arange(rows) % 40 + start
            data = some("a" * rows, hours.tolist())
            db.ingest("weather", data | {"origin": [f"{number:060d}" for number in range(rows)]})
            db.ingest("weather", some("ab", [1, 2]))
    shutil.copy(path, path.with_name("before.fdb"))
    with fdb.open(path) as db:
        db.forget([{"origin": "a"}])
    assert meta(path)[2] >= 3
    return path


def pages(path: Path, kind: int) -> list[int]:
    content = path.read_bytes()
    found = range(2, len(content) // PAGE)
    return [at for at in found if struct.unpack_from("<QHH", content, at * PAGE) == (at, 0, kind)]


def heaps(path: Path) -> dict[int, bytes]:
    """Of each leaf, by where it is, the part with entries: what is before may be left of others."""
    content = path.read_bytes()
    found = {at * PAGE: struct.unpack_from("<H", content, at * PAGE + 14)[0] for at in pages(path, 2)}
    return {at: content[at + high : at + PAGE] for at, high in found.items()}


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


def newest_meta(path: Path) -> int:
    return meta(path)[0]


def older_meta(path: Path) -> int:
    return PAGE - meta(path)[0]


def test_without_the_newest_meta_page_the_state_is_that_of_the_commit_before(large: Path, tmp_path: Path) -> None:
    """The last commit forgot a key: its rows are there again, and the report says so."""
    path = Path(shutil.copy(large, tmp_path / "damaged.fdb"))
    change(path, newest_meta(path) + 16, "<I", 0)
    with pytest.raises(fdb.FeatureDBError):
        fdb.open(path)
    report, target = salvaged(path)
    before = large.with_name("before.fdb")
    assert rows_of(target) == rows_of(before) != rows_of(large)
    with fdb.open(before, read_only=True) as db:
        assert report.commit_id == db.log()[-1].id
    assert report.is_older
    assert report.lost == ()
    assert report.damaged_pages == ("the newer of the meta pages is damaged",)
    assert f"state after commit {report.commit_id}, an older one: {OLDER}" in str(report)


def test_without_the_older_meta_page_nothing_is_missing(large: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(large, tmp_path / "damaged.fdb"))
    change(path, older_meta(path) + 16, "<I", 0)
    report, target = salvaged(path)
    assert rows_of(target) == rows_of(large)
    assert report.damaged_pages == ("the older of the meta pages is damaged",)
    assert not report.is_older
    assert "older one" not in str(report)


def test_without_the_older_meta_page_snapshots_are_kept_too(path: Path) -> None:
    with fdb.open(path) as db:
        db.snapshot("held")
    before = entries(path)
    change(path, older_meta(path) + 16, "<I", 0)
    report, target = salvaged(path)
    assert report.lost == ()
    assert entries(target) == before


def test_segments_that_only_a_snapshot_held_are_no_loss_of_history(path: Path) -> None:
    with fdb.open(path) as db:
        db.snapshot("held")
        db.ingest("weather", some("a", [20]))
        db.compact()
    before = rows_of(path)
    damage(path, key_of(path, NS_PINNED + table_id(path, "weather")))
    report, target = salvaged(path)
    assert told(report) == "snapshot 'held'"
    assert rows_of(target) == before


def test_a_row_whose_key_became_that_of_another_is_not_believed(path: Path) -> None:
    """The row was loaded online, so that history knows nothing of it; so was its neighbour, which is whole."""
    keys = {"origin": list("bdc")}
    with fdb.open(path) as db:
        db.ingest("weather", some("bc", [90, 90]), to="online")
        before = db.get_online_features(["weather:temp"], keys, now=T0 + 91 * HOUR).to_dict()["temp"]
    content, key = path.read_bytes(), NS_ONLINE + table_id(path, "weather")
    row = key + b"b\0" + entries(path)[key + b"b\0"]
    (at,) = [at for at, heap in heaps(path).items() if row in heap and key + b"d\0" in heap]
    place = content.index(key + b"b\0", at + struct.unpack_from("<H", content, at + 14)[0])
    change(path, place + len(key), "<c", b"d")
    report, target = salvaged(path)
    assert f"page {at // PAGE}: a key is out of order" in report.damaged_pages
    with fdb.open(target) as db:
        after = db.get_online_features(["weather:temp"], keys, now=T0 + 91 * HOUR).to_dict()["temp"]
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_where_it_cannot_be_told_which_meta_page_is_damaged_the_state_may_be_an_older_one(path: Path) -> None:
    at = older_meta(path)
    with open(path, "r+b") as stream:
        stream.seek(at)
        stream.write(bytes(PAGE))
    report, _ = salvaged(path)
    assert report.damaged_pages == ("one, perhaps the newer, of the meta pages is damaged",)
    assert report.is_older


def test_without_meta_pages_there_is_no_way_to_the_rest(path: Path, tmp_path: Path) -> None:
    for at in (0, PAGE):
        change(path, at + 16, "<I", 0)
    with pytest.raises(fdb.CorruptionError, match="nothing of it can be salvaged"):
        fdb.salvage(path, tmp_path / "none.fdb")
    assert [file.name for file in tmp_path.iterdir()] == ["damaged.fdb"]


def test_a_file_written_at_once_needs_no_meta_page(path: Path, tmp_path: Path) -> None:
    """As a backup is, and a compacted file: its other meta page is of an empty one."""
    with fdb.open(path) as db:
        db.backup(tmp_path / "backup.fdb")
    backup = tmp_path / "backup.fdb"
    change(backup, newest_meta(backup) + 16, "<I", 0)
    report, target = salvaged(backup)
    assert rows_of(target) == rows_of(path)
    assert report.lost == ()
    assert not report.is_older


def test_if_the_newer_root_leads_nowhere_the_older_one_is_used(path: Path) -> None:
    before = rows_of(path)
    with fdb.open(path) as db:
        db.ingest("tailed", {"origin": ["z"], "event_timestamp": [T0], "n": [9]})
    at = newest_meta(path)
    # Neither entries nor free pages can be found from there.
    change(path, at + 80, "<Q", 1 << 40)
    change(path, at + 128, "<Q", 1 << 40)
    report, target = salvaged(path)
    assert "the newer meta page leads to no entry: the older one was used" in report.damaged_pages
    assert report.is_older
    assert rows_of(target) == before


def test_definitions_that_are_damaged_are_those_of_the_transaction_before(path: Path) -> None:
    before = rows_of(path)
    with fdb.open(path) as db:
        db.apply(fdb.FeatureTable("later", ["origin"], [fdb.Feature("n", "int32")]))
    (at,) = [at for at, heap in heaps(path).items() if NS_DEFINITION + b"tlater" in heap]
    assert NS_DEFINITION + b"thistory" in heaps(path)[at]
    change(path, at, "<Q", 1)
    report, target = salvaged(path)
    assert DEFINITIONS_OLDER in report.damaged_pages
    assert "entries cannot be found" in str(report)
    assert rows_of(target) == before


# --- refusals -------------------------------------------------------------------------------------


def foreign(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(8000))


def of_another_program(path: Path) -> None:
    path.unlink()
    with lmdb.open(str(path), subdir=False, lib_version=0, lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"zebra", b"value")
        txn.put(b"\0key", b"value")


def of_another_program_with_our_key(path: Path) -> None:
    path.unlink()
    with lmdb.open(str(path), subdir=False, lib_version=0, lock=False) as env, env.begin(write=True) as txn:
        txn.put(NS_FORMAT, b"value")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "foreign": (foreign, "nothing of it can be salvaged"),
    "another": (of_another_program, "of another program"),
    "an empty name of ours": (of_another_program_with_our_key, "nothing can be salvaged"),
    "nothing but meta pages": (
        lambda path: path.write_bytes(path.read_bytes()[: 2 * PAGE + 100]),
        "nothing can be salvaged",
    ),
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


def test_rejected_rows_that_can_be_read_are_kept(path: Path) -> None:
    with fdb.open(path) as db:
        for n in range(3):
            bad = {"origin": ["q"] * n + [None], "event_timestamp": [T0] * (n + 1), "n": [2] * (n + 1)}
            db.ingest("history", bad, on_error="skip")
        before = db.rejected("history")
    damage(path, key_of(path, NS_REJECTED, 1))
    report, target = salvaged(path)
    assert told(report) == "table history: some of its rejected rows"
    with fdb.open(target, read_only=True) as db:
        assert db.rejected("history") == [*before[:1], *before[2:]]
