"""Verification: every kind of damage is reported where it is, nothing else is, and nothing is raised.

The golden file, which has every kind of record, is damaged entry by entry through the engine, while it is open.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import small_batches, tiny_limits

import featuredb as fdb
from featuredb.columns import Column, Heap
from featuredb.offline.merge import live_dtypes, read_rows
from featuredb.schema import DTYPES
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.manifest import SegmentRef, read_manifest, segment_key, stage_segment, write_manifest
from featuredb.storage.records import pack, unpack
from featuredb.storage.registry import StoredTable, read_registry
from featuredb.storage.segment import Rows, SegmentCache, write_dead, write_segment
from featuredb.verify import Finding, VerifyReport

NOON = datetime(2013, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SYSTEM = {
    0xFFFFFFF0: "event_timestamp",
    0xFFFFFFF1: "created_timestamp",
    0xFFFFFFF2: "commit",
    0xFFFFFFF3: "entity codes",
    0xFFFFFFF4: "row starts",
    0xFFFFFFF5: "replaced rows",
}


@pytest.fixture
def golden(tmp_path: Path) -> Iterator[fdb.Database]:
    path = shutil.copy(Path(__file__).parent / "golden" / "v1.fdb", tmp_path / "golden.fdb")
    with fdb.open(path, durability="relaxed") as db:
        assert db.verify().ok
        yield db


def write(db: fdb.Database, change: Callable[[WriteTxn], object]) -> None:
    with db._env.writer(1):
        db._env.write(change, durable=False)


def put(db: fdb.Database, key: bytes, value: bytes | None) -> None:
    """Set an entry of the file, or remove it."""
    write(db, lambda txn: txn.delete(key) if value is None else txn.put(key, value))


def entries(db: fdb.Database, prefix: bytes = b"") -> dict[bytes, bytes]:
    with db._env.read() as txn:
        return {bytes(key): bytes(value) for key, value in txn.scan(prefix)}


def stored(db: fdb.Database, name: str) -> StoredTable:
    with db._env.read() as txn:
        return read_registry(txn).table(name)


def only(report: VerifyReport, what: str) -> Finding:
    """The one problem found, which says `what`."""
    assert len(report.problems) == 1, report
    assert what in report.problems[0].what, report
    return report.problems[0]


def places(report: VerifyReport) -> set[tuple[str | None, int | None, str | None]]:
    return {(finding.table, finding.segment, finding.column) for finding in report.problems}


# --- what is in order ---------------------------------------------------------------------------


def table(*features: tuple[str, str], **options: Any) -> list[Any]:
    return [
        fdb.Entity("user", "string"),
        fdb.FeatureTable("t", ["user"], [fdb.Feature(*feature) for feature in features], **options),
    ]


def rows(users: str, hours: int = 0, **values: Any) -> dict[str, list[Any]]:
    columns = {name: [value] * len(users) for name, value in values.items()}
    return {"user": list(users), "event_timestamp": [NOON + hours * HOUR] * len(users), **columns}


def test_a_new_file_is_in_order(db: fdb.Database) -> None:
    report = db.verify()
    assert report.ok
    assert str(report).startswith("ok: 0 tables")


def test_the_report_counts_what_was_checked(golden: fdb.Database) -> None:
    report = golden.verify()
    assert (report.tables, report.segments, report.commits) == (4, 6, 14)
    assert report.rows == 40 + 12 - 2 + 4 + 13 + 600
    assert report.chunks == len(entries(golden, b"h"))
    assert report.entity_keys == len(entries(golden, b"k"))
    assert report.online_keys == len(entries(golden, b"o"))
    assert not report.differences
    assert report.seconds > 0


def test_a_file_stays_in_order_whatever_is_done_to_it(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_limits(monkeypatch)
    small_batches(monkeypatch, 3)

    def in_order() -> None:
        report = db.verify()
        assert report.ok, report
        assert not report.differences, report

    db.apply(table(("n", "int64"), ("s", "string")))
    for step in range(9):
        db.ingest("t", rows("abcdefg"[: 2 + step % 6], step % 4, n=step, s=f"{step}"))
        in_order()
    db.apply(table(("x", "bool"), ("n", "int64")))
    in_order()
    db.ingest("t", rows("ah", 1, n=None, x=True))
    in_order()
    db.apply(table(("x", "bool"), ("n", "int64"), online=False))
    db.ingest("t", rows("ai", 9, n=1, x=True))
    in_order()
    db.apply(table(("x", "bool"), ("n", "int64")))
    in_order()
    db.compact()
    in_order()
    db.delete_feature_table("t")
    in_order()
    assert db.verify().rows == 0
    db.apply(table(("n", "string")))
    db.ingest("t", rows("az", n="new"))
    in_order()


def test_rows_loaded_apart_are_differences_and_no_problems(db: fdb.Database) -> None:
    db.apply(table(("n", "int64")))
    db.ingest("t", rows("abcd", n=1))
    db.ingest("t", rows("ae", 1, n=2), to="offline")
    db.ingest("t", rows("bf", 1, n=3), to="online")
    db.ingest("t", rows("c", n=4), to="offline")
    db.ingest("t", rows("d", n=5), to="online")
    report = db.verify()
    assert report.ok, report
    found = {finding.key: finding.what for finding in report.differences}
    assert set(found) == {f"user={user!r}" for user in "abcdef"}
    assert "older" in found["user='a'"]
    assert "newer" in found["user='b'"]
    assert "differs" in found["user='c'"]
    assert "differs" in found["user='d'"]
    assert "no online value" in found["user='e'"]
    assert "no rows of history" in found["user='f'"]
    assert "difference: table t, key user='a'" in str(report)
    db.materialize()
    assert {finding.key for finding in db.verify().differences} == {"user='b'", "user='f'"}
    assert db.verify().ok


def test_what_an_ingest_has_staged_is_no_damage(golden: fdb.Database) -> None:
    table_id = stored(golden, "every").id

    def stage(txn: WriteTxn) -> None:
        write_segment(txn, table_id, 77, live_rows(txn, golden, "every"))
        stage_segment(txn, table_id, 77)

    write(golden, stage)
    assert golden.verify().ok
    put(golden, b"g" + segment_key(table_id, 77)[1:], None)
    assert places(golden.verify()) == {("every", 77, None)}


def test_a_live_segment_that_is_staged_is_reported(golden: fdb.Database) -> None:
    table_id = stored(golden, "keyed").id
    write(golden, lambda txn: stage_segment(txn, table_id, 1))
    finding = only(golden.verify(), "staged")
    assert (finding.table, finding.segment) == ("keyed", 1)


# --- damaged bytes ------------------------------------------------------------------------------


def test_a_flipped_byte_is_reported_where_it_is(golden: fdb.Database) -> None:
    """One byte in the middle of each entry, though of entity keys and online rows only of some."""
    names = {one.id: one for one in (stored(golden, name) for name in ("every", "keyed", "pairs", "notes"))}
    seen: dict[bytes, int] = {}
    for key, value in entries(golden).items():
        kind = key[:5] if key[:1] in b"ko" else key
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] > 2 or not value:
            continue
        damaged = bytearray(value)
        damaged[len(value) // 2] ^= 0x10
        put(golden, key, bytes(damaged))
        report = golden.verify()
        put(golden, key, value)
        assert not report.ok, key
        told = str(report)
        if key[:1] in b"fhmo":
            one = names[int.from_bytes(key[1:5], "big")]
            segment = int.from_bytes(key[5:13], "big") if key[:1] in b"fh" else None
            number = int.from_bytes(key[13:17], "big") if key[:1] == b"h" else 0
            columns = {**{own: name for name, own in one.feature_ids.items()}, **SYSTEM, 0: None}
            column = columns.get(number, f"of removed feature {number}")
            assert places(report) == {(one.name, segment, column)}, report
            assert all(finding.key for finding in report.problems) or key[:1] != b"o", report
        elif key[:1] == b"c":
            assert f"commit {int.from_bytes(key[1:], 'big')} " in told
        elif key[:1] == b"d" and len(key) > 2:
            assert key[2:].decode() in told
        else:
            assert {b"a": "format record", b"b": "key space", b"d": "registry", b"k": "key space"}[key[:1]] in told
    assert golden.verify().ok


@pytest.mark.parametrize("namespace", [b"c", b"m", b"o"])
def test_every_byte_of_a_record_counts(golden: fdb.Database, namespace: bytes) -> None:
    key, value = max(entries(golden, namespace).items(), key=lambda entry: len(entry[1]))
    for place in range(len(value)):
        put(golden, key, value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :])
        assert not golden.verify().ok, place


@pytest.mark.parametrize("value", [pack(17), pack([]), pack({}), pack([1]), pack("x"), pack(None), b"", b"\x01"])
def test_a_record_of_another_shape_is_reported_and_not_raised(golden: fdb.Database, value: bytes) -> None:
    kinds = {key[:2] if key[:1] == b"d" else key[:1]: (key, held) for key, held in entries(golden).items()}
    for key, held in kinds.values():
        put(golden, key, value)
        assert not golden.verify().ok, key
        put(golden, key, held)
    assert golden.verify().ok


def test_a_missing_entry_is_reported(golden: fdb.Database) -> None:
    expected = {
        b"a": "format record is missing",
        b"b": "key space",
        b"c": "not logged",
        b"f": "is missing or damaged",
        b"h": "is missing",
        b"k": "key space",
        b"m": "belongs to no live segment",
        b"o": "it has rows of history and no online value",
        b"d#": "",
        b"de": "",
        b"dk": "",
        b"dt": "",
    }
    last = {key[:2] if key[:1] == b"d" else key[:1]: key for key in entries(golden)}
    assert {*expected, b"ds"} == set(last)
    for kind, what in expected.items():
        value = entries(golden, last[kind])[last[kind]]
        put(golden, last[kind], None)
        report = golden.verify()
        put(golden, last[kind], value)
        assert not report.ok, kind
        assert what in str(report), kind
    assert golden.verify().ok


def test_every_missing_chunk_is_reported_by_its_column(golden: fdb.Database) -> None:
    one = stored(golden, "every")
    names = {number: name for name, number in one.feature_ids.items()} | SYSTEM
    chunks = [key for key in entries(golden, b"h") if key[1:13] == segment_key(one.id, 1)[1:]]
    for key in chunks:
        put(golden, key, None)
    assert places(golden.verify()) == {("every", 1, names[int.from_bytes(key[13:17], "big")]) for key in chunks}


def test_a_gap_in_the_log_and_a_time_that_runs_backwards_are_reported(golden: fdb.Database) -> None:
    key = b"c" + (5).to_bytes(8, "big")
    record = unpack(entries(golden, key)[key], "")
    put(golden, key, pack([record[0] - 10**12, *record[1:]]))
    only(golden.verify(), "commit 5 is not later")
    put(golden, key, None)
    only(golden.verify(), "commit 5 is missing")


# --- sound checksums, wrong content -------------------------------------------------------------


def live_rows(txn: ReadTxn, db: fdb.Database, name: str, segment: int = 1) -> Rows:
    one = stored(db, name)
    ref = next(ref for ref in read_manifest(txn, one.id).segments if ref.id == segment)
    return read_rows(SegmentCache().reader(txn, one.id, ref), live_dtypes(one))


def rewrite(db: fdb.Database, name: str, change: Callable[[Rows], Rows], segment: int = 1) -> None:
    """Write a segment anew with other rows, all checksums right."""
    one = stored(db, name)

    def work(txn: WriteTxn) -> None:
        found = change(live_rows(txn, db, name, segment))
        manifest = read_manifest(txn, one.id)
        txn.delete_prefix(b"h" + segment_key(one.id, segment)[1:])
        ref = write_segment(txn, one.id, segment, found)
        kept = tuple(ref if old.id == segment else old for old in manifest.segments)
        write_manifest(txn, manifest.with_segments(kept))

    write(db, work)


def with_column(found: Rows, number: int, column: Column) -> Rows:
    return replace(found, columns={**found.columns, number: column})


def swapped(found: Rows) -> Rows:
    order = np.arange(len(found))
    order[[0, 1]] = 1, 0
    return found.take(order)


def test_rows_out_of_order_are_reported(golden: fdb.Database) -> None:
    rewrite(golden, "every", swapped)
    finding = only(golden.verify(), "rows are out of order")
    assert (finding.table, finding.segment) == ("every", 1)


def test_codes_out_of_order_are_reported(golden: fdb.Database) -> None:
    rewrite(golden, "every", lambda found: found.take(np.arange(len(found))[::-1]))
    report = golden.verify()
    assert places(report) == {("every", 1, None)}
    assert "entity index is out of order" in str(report)


def test_a_row_stored_twice_in_a_segment_is_reported(golden: fdb.Database) -> None:
    rewrite(golden, "keyed", lambda found: found.take(np.array([0, 0, 1, 2, 3])))
    assert "out of order" in only(golden.verify(), "").what


def test_a_row_stored_in_two_segments_is_reported(golden: fdb.Database) -> None:
    one = stored(golden, "keyed")

    def work(txn: WriteTxn) -> None:
        manifest = read_manifest(txn, one.id)
        ref = write_segment(txn, one.id, 2, live_rows(txn, golden, "keyed").take(slice(1, 3)))
        write_manifest(txn, manifest.with_segments((*manifest.segments, ref)))

    write(golden, work)
    finding = only(golden.verify(), "2 of its rows are also in segment 2")
    assert (finding.table, finding.segment) == ("keyed", 1)


def test_a_code_without_an_entity_key_is_reported(golden: fdb.Database) -> None:
    rewrite(golden, "keyed", lambda found: replace(found, codes=found.codes + np.int32(1)))
    finding = only(golden.verify(), "4 entity keys")
    assert (finding.table, finding.segment) == ("keyed", 1)


def test_rows_of_a_commit_to_come_are_reported(golden: fdb.Database) -> None:
    rewrite(golden, "keyed", lambda found: replace(found, commit=found.commit + 90))
    only(golden.verify(), "commit that is not logged")


def text(values: list[bytes]) -> Callable[[int], Column]:
    return lambda rows: Column(DTYPES["string"], np.arange(rows, dtype=np.int32) % len(values), None, Heap.of(values))


WRONG_VALUES: dict[str, tuple[Callable[[int], Column], str]] = {
    "f_string": (text([b"fine", b"\xff\xfe"]), "not valid UTF-8"),
    "f_bool": (lambda rows: Column(DTYPES["bool"], np.full(rows, 2, np.uint8).view(np.bool_)), "neither 0 nor 1"),
    "f_timestamp": (lambda rows: Column(DTYPES["timestamp"], np.full(rows, 1 << 61)), "outside the years"),
    "f_int8": (lambda rows: Column(DTYPES["int16"], np.zeros(rows, np.int16)), "it is stored as int16"),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_values_that_their_dtype_cannot_have_are_reported(golden: fdb.Database, name: str) -> None:
    make, what = WRONG_VALUES[name]
    number = stored(golden, "every").feature_ids[name]
    rewrite(golden, "every", lambda found: with_column(found, number, make(len(found))))
    report = golden.verify()
    assert places(report) == {("every", 1, name)}
    assert what in str(report)


def test_strings_cut_inside_a_character_are_reported(golden: fdb.Database) -> None:
    number = stored(golden, "every").feature_ids["f_string"]
    rewrite(golden, "every", lambda found: with_column(found, number, text([b"\xc3", b"\xa9"])(len(found))))
    assert only(golden.verify(), "not valid UTF-8").column == "f_string"


def redescribe(db: fdb.Database, name: str, change: Callable[[list[Any], list[Any]], object]) -> None:
    """Change the facts (zone map, columns) of a descriptor, all checksums right."""
    one = stored(db, name)

    def work(txn: WriteTxn) -> None:
        raw = txn.get(key := segment_key(one.id, 1))
        assert raw is not None
        zone, columns = unpack(raw, "")
        change(zone, columns)
        txn.put(key, packed := pack([zone, columns]))
        manifest = read_manifest(txn, one.id)
        refs = tuple(replace(ref, crc=zlib.crc32(packed)) if ref.id == 1 else ref for ref in manifest.segments)
        write_manifest(txn, manifest.with_segments(refs))

    write(db, work)


@pytest.mark.parametrize("place", range(5))
def test_a_wrong_zone_map_is_reported(golden: fdb.Database, place: int) -> None:
    redescribe(golden, "every", lambda zone, _: zone.__setitem__(place, zone[place] + 1))
    assert places(golden.verify()) == {("every", 1, None)}


def test_a_wrong_count_of_nulls_is_reported(golden: fdb.Database) -> None:
    redescribe(golden, "every", lambda _, columns: columns[5].__setitem__(4, columns[5][4] + 1))
    assert only(golden.verify(), "9 nulls, and it has 8").column == "f_bool"


@pytest.mark.parametrize("column", range(8))
@pytest.mark.parametrize("fact", [2, 3, 6])
def test_a_descriptor_that_contradicts_itself_is_reported_and_not_raised(
    golden: fdb.Database, column: int, fact: int
) -> None:
    wrong: dict[int, Any] = {2: "heap", 3: 0, 6: [[7, 9, 1, 1]]}
    redescribe(golden, "every", lambda _, columns: columns[column].__setitem__(fact, wrong[fact]))
    assert {place[:2] for place in places(golden.verify())} == {("every", 1)}


def test_a_descriptor_without_a_column_of_ours_is_reported(golden: fdb.Database) -> None:
    redescribe(golden, "every", lambda _, columns: columns.pop(0))
    assert places(golden.verify()) >= {("every", 1, None)}


@pytest.mark.parametrize("positions", [[5, 0], [3, 3], [-1, 2], [2, 10**6]])
def test_a_wrong_list_of_replaced_rows_is_reported(golden: fdb.Database, positions: list[int]) -> None:
    one = stored(golden, "every")

    def work(txn: WriteTxn) -> None:
        manifest = read_manifest(txn, one.id)
        first: SegmentRef = write_dead(txn, one.id, manifest.segments[0], np.array(positions, np.int32))
        write_manifest(txn, manifest.with_segments((first, *manifest.segments[1:])))

    write(golden, work)
    finding = only(golden.verify(), "replaced rows is out of order")
    assert (finding.table, finding.segment) == ("every", 1)


def test_codes_that_tree_and_blocks_disagree_on_are_reported(golden: fdb.Database) -> None:
    prefix = b"k" + stored(golden, "pairs").space_id.to_bytes(4, "big")
    (first, one), (second, two) = list(entries(golden, prefix).items())[:2]
    put(golden, first, two)
    assert "key space user/day" in only(golden.verify(), "").what
    put(golden, second, one)
    assert "key space user/day" in only(golden.verify(), "").what
    put(golden, first, one)
    put(golden, second, two)
    put(golden, prefix + b"zzz", struct.pack("<I", 10))
    assert "key space user/day" in only(golden.verify(), "").what


STRAYS = {
    "a descriptor": (b"f" + bytes(3) + b"\x04" + bytes(7) + b"\x09", ("every", 9)),
    "a chunk of a live segment": (b"h" + bytes(3) + b"\x04" + bytes(7) + b"\x01" + b"\x01" * 9, ("every", 1)),
    "a chunk of no table": (b"h" + bytes(3) + b"\x63" + bytes(7) + b"\x01" + b"\x01" * 9, ("number 99", 1)),
    "a manifest": (b"m" + bytes(3) + b"\x63", ("number 99", None)),
    "an online row": (b"o" + bytes(3) + b"\x63" + b"x", ("number 99", None)),
    "an online row of an offline table": (b"o" + bytes(3) + b"\x09" + b"x", ("notes", None)),
    "a key": (b"k" + bytes(3) + b"\x63" + b"x", (None, None)),
    "a block": (b"b" + bytes(3) + b"\x63" + bytes(4), (None, None)),
    "of no namespace": (b"z", (None, None)),
    "after all": (b"\xff" * 9, (None, None)),
}


@pytest.mark.parametrize("kind", STRAYS)
def test_what_belongs_to_nothing_is_reported(golden: fdb.Database, kind: str) -> None:
    key, where = STRAYS[kind]
    put(golden, key, b"x")
    finding = only(golden.verify(), "")
    assert (finding.table, finding.segment) == where


# --- online -------------------------------------------------------------------------------------


def repacked(raw: bytes) -> bytes:
    return zlib.crc32(raw[4:]).to_bytes(4, "little") + raw[4:]


def online_row(db: fdb.Database, name: str) -> tuple[bytes, bytes]:
    return next(iter(entries(db, b"o" + stored(db, name).id.to_bytes(4, "big")).items()))


@pytest.mark.parametrize(
    ("place", "what"),
    [(-1, "differs from the same row of history"), (6, ""), (20, ""), (4, "layout"), (24, "not logged")],
)
def test_an_online_row_with_other_content_and_a_right_checksum_is_reported(
    golden: fdb.Database, place: int, what: str
) -> None:
    key, raw = online_row(golden, "keyed")
    damaged = bytearray(raw)
    damaged[place] ^= 0x41
    put(golden, key, repacked(bytes(damaged)))
    report = golden.verify()
    assert not report.differences
    assert {finding.table for finding in report.problems} == {"keyed"}
    assert what in str(report)


@pytest.mark.parametrize("name", ["keyed", "pairs", "every"])
def test_an_online_row_that_is_cut_short_is_reported_with_its_key(golden: fdb.Database, name: str) -> None:
    key, raw = online_row(golden, name)
    for length in (0, 3, 20, len(raw) - 1):
        put(golden, key, repacked(raw[:length]) if length > 4 else raw[:length])
        finding = only(golden.verify(), "")
        assert finding.table == name
        assert finding.key


def test_online_rows_under_keys_that_are_none_are_reported(golden: fdb.Database) -> None:
    key, raw = online_row(golden, "pairs")
    put(golden, key[:5] + b"\xff no end", raw)
    put(golden, key[:5] + b"unknown\x00" + bytes(8), raw)
    report = golden.verify()
    assert {finding.table for finding in report.problems} == {"pairs"}
    assert len(report.problems) >= 2
    assert all(finding.key for finding in report.problems)


def test_damage_to_one_table_hides_none_of_another(golden: fdb.Database) -> None:
    for name in ("keyed", "pairs", "every"):
        key, raw = online_row(golden, name)
        put(golden, key, raw[:-1] + bytes([raw[-1] ^ 1]))
    rewrite(golden, "every", swapped)
    report = golden.verify()
    assert {finding.table for finding in report.problems} == {"keyed", "pairs", "every"}
    assert report.online_keys == len(entries(golden, b"o"))


def test_many_findings_are_counted_and_the_first_are_listed(
    golden: fdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("report", "serving"):
        monkeypatch.setattr(f"featuredb.verify.{module}.VERIFY_FINDINGS_MAX", 3)
    for key in entries(golden, b"o"):
        put(golden, key, None)
    report = golden.verify()
    assert len(report.problems) == 3
    assert report.problem_count == 8 + 4 + 10
    assert "... and 19 more problems" in str(report)
