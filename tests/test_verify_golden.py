"""Damage to the golden file, which has every kind of record: reported where it is, nothing else, and not raised.

It is damaged entry by entry through the engine, while it is open. `test_verify` has the contradictions one by one.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featuredb as fdb
from featuredb.offline.rows import live_dtypes
from featuredb.offline.segments import read_rows
from featuredb.storage.crc import seal
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.manifest import read_manifest, segment_key, write_manifest
from featuredb.storage.records import pack, unpack
from featuredb.storage.registry import StoredTable, read_registry
from featuredb.storage.segment import SegmentCache
from featuredb.storage.segment_writer import Rows, write_segment
from featuredb.verify import Finding, VerifyReport

pytestmark = pytest.mark.usefixtures("segments_only")

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


def test_the_report_counts_what_was_checked(golden: fdb.Database) -> None:
    report = golden.verify()
    assert (report.tables, report.segments, report.commits) == (4, 6, 15)
    assert report.rows == 40 + 12 - 2 + 4 + 2 + 13 + 600
    assert report.chunks == len(entries(golden, b"h"))
    assert report.entity_keys == len(entries(golden, b"k"))
    assert report.online_keys == len(entries(golden, b"p"))
    assert not report.differences
    assert report.seconds > 0


# --- damaged bytes ------------------------------------------------------------------------------


def test_a_flipped_byte_is_reported_where_it_is(golden: fdb.Database) -> None:
    """One byte in the middle of each entry, though of entity keys and online rows only of some."""
    names = {one.id: one for one in (stored(golden, name) for name in ("every", "keyed", "pairs", "notes"))}
    seen: dict[bytes, int] = {}
    for key, value in entries(golden).items():
        kind = key[:5] if key[:1] in b"kp" else key
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
        if key[:1] in b"fhmop":
            one = names[int.from_bytes(key[1:5], "big")]
            segment = int.from_bytes(key[5:13], "big") if key[:1] in b"fh" else None
            number = int.from_bytes(key[13:17], "big") if key[:1] == b"h" else 0
            columns = {**{own: name for name, own in one.feature_ids.items()}, **SYSTEM, 0: None}
            column = columns.get(number, f"of removed feature {number}")
            column = "tail" if key[:1] == b"o" else column
            assert places(report) == {(one.name, segment, column)}, report
            assert all(finding.key for finding in report.problems) or key[:1] != b"p", report
        elif key[:1] == b"c":
            assert f"commit {int.from_bytes(key[1:], 'big')} " in told
        elif key[:1] == b"d" and len(key) > 2:
            assert key[2:].decode() in told
        else:
            assert {b"a": "format record", b"b": "key space", b"d": "registry", b"k": "key space"}[key[:1]] in told
    assert golden.verify().ok


@pytest.mark.parametrize("namespace", [b"c", b"m", b"o", b"p"])
def test_every_byte_of_a_record_counts(golden: fdb.Database, namespace: bytes) -> None:
    key, value = max(entries(golden, namespace).items(), key=lambda entry: len(entry[1]))
    for place in range(len(value)):
        put(golden, key, value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :])
        assert not golden.verify().ok, place


@pytest.mark.parametrize("value", [17, [], {}, [1], "x", None, b"", b"\x01"])
def test_a_record_of_another_shape_is_reported_and_not_raised(golden: fdb.Database, value: Any) -> None:
    kinds = {key[:2] if key[:1] == b"d" else key[:1]: (key, held) for key, held in entries(golden).items()}
    for key, held in kinds.values():
        put(golden, key, value if isinstance(value, bytes) else pack(key, value))
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
        b"o": "its rows are not those that its head counts",
        b"p": "it has rows of history and no online value",
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


# --- sound checksums, wrong content -------------------------------------------------------------


def live_rows(txn: ReadTxn, db: fdb.Database, name: str, segment: int = 1) -> Rows:
    one = stored(db, name)
    ref = next(ref for ref in read_manifest(txn, one.id).segments if ref.id == segment)
    return read_rows([SegmentCache().reader(txn, one.id, ref)], live_dtypes(one))


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


def swapped(found: Rows) -> Rows:
    order = np.arange(len(found))
    order[[0, 1]] = 1, 0
    return found.take(order)


def test_rows_out_of_order_are_reported(golden: fdb.Database) -> None:
    rewrite(golden, "every", swapped)
    finding = only(golden.verify(), "rows are out of order")
    assert (finding.table, finding.segment) == ("every", 1)


def redescribe(db: fdb.Database, name: str, change: Callable[[list[Any], list[Any]], object]) -> None:
    """Change the facts (zone map, columns) of a descriptor, all checksums right."""
    one = stored(db, name)

    def work(txn: WriteTxn) -> None:
        raw = txn.get(key := segment_key(one.id, 1))
        assert raw is not None
        zone, columns = unpack(key, raw, "")
        change(zone, columns)
        txn.put(key, packed := pack(key, [zone, columns]))
        manifest = read_manifest(txn, one.id)
        refs = tuple(replace(ref, crc=zlib.crc32(packed)) if ref.id == 1 else ref for ref in manifest.segments)
        write_manifest(txn, manifest.with_segments(refs))

    write(db, work)


@pytest.mark.parametrize("place", range(5))
def test_a_wrong_zone_map_is_reported(golden: fdb.Database, place: int) -> None:
    redescribe(golden, "every", lambda zone, _: zone.__setitem__(place, zone[place] + 1))
    assert places(golden.verify()) == {("every", 1, None)}


@pytest.mark.parametrize("column", range(8))
@pytest.mark.parametrize("fact", [2, 3, 5, 6, 7, 8])
def test_a_descriptor_that_contradicts_itself_is_reported_and_not_raised(
    golden: fdb.Database, column: int, fact: int
) -> None:
    wrong: dict[int, Any] = {2: "heap", 3: 0, 5: 66, 6: 1 << 63, 7: -1, 8: [[7, 9, 1, 1]]}
    redescribe(golden, "every", lambda _, columns: columns[column].__setitem__(fact, wrong[fact]))
    assert {place[:2] for place in places(golden.verify())} == {("every", 1)}


def test_a_descriptor_without_a_column_of_ours_is_reported(golden: fdb.Database) -> None:
    redescribe(golden, "every", lambda _, columns: columns.pop(0))
    assert places(golden.verify()) >= {("every", 1, None)}


STRAYS = {
    "a descriptor": (b"f" + bytes(3) + b"\x04" + bytes(7) + b"\x09", ("every", 9)),
    "a chunk of a live segment": (b"h" + bytes(3) + b"\x04" + bytes(7) + b"\x01" + b"\x01" * 9, ("every", 1)),
    "a chunk of no table": (b"h" + bytes(3) + b"\x63" + bytes(7) + b"\x01" + b"\x01" * 9, ("number 99", 1)),
    "a manifest": (b"m" + bytes(3) + b"\x63", ("number 99", None)),
    "an online row": (b"p" + bytes(3) + b"\x63" + b"x", ("number 99", None)),
    "an online row of an offline table": (b"p" + bytes(3) + b"\x09" + b"x", ("notes", None)),
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


def test_an_entry_among_the_rows_of_a_tail_that_is_none_is_reported(golden: fdb.Database) -> None:
    head = b"o" + stored(golden, "keyed").id.to_bytes(4, "big")
    for key in (head + b"\xff\xff", head + b"\0"):
        put(golden, key, b"x")
        assert "is no key of a row" in str(golden.verify())
        write(golden, lambda txn: txn.delete(key))  # noqa: B023
    assert golden.verify().ok


# --- online -------------------------------------------------------------------------------------


def online_row(db: fdb.Database, name: str) -> tuple[bytes, bytes]:
    return next(iter(entries(db, b"p" + stored(db, name).id.to_bytes(4, "big")).items()))


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
    put(golden, key, seal(key, bytes(damaged[4:])))
    report = golden.verify()
    assert not report.differences
    assert {finding.table for finding in report.problems} == {"keyed"}
    assert what in str(report)


@pytest.mark.parametrize("name", ["keyed", "pairs", "every"])
def test_an_online_row_that_is_cut_short_is_reported_with_its_key(golden: fdb.Database, name: str) -> None:
    key, raw = online_row(golden, name)
    for length in (0, 3, 20, len(raw) - 1):
        put(golden, key, seal(key, raw[4:length]) if length > 4 else raw[:length])
        finding = only(golden.verify(), "")
        assert finding.table == name
        assert finding.key


def test_online_rows_under_keys_that_are_none_are_reported(golden: fdb.Database) -> None:
    key, raw = online_row(golden, "pairs")
    for other in (key[:5] + b"\xff no end", key[:5] + b"unknown\x00" + bytes(8)):
        put(golden, other, seal(other, raw[4:]))
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
    assert report.online_keys == len(entries(golden, b"p"))


@pytest.mark.parametrize("code", [b"\xff" * 4, b"", b"\x00" * 5])
def test_a_code_that_cannot_be_one_is_refused_where_it_is_read(golden: fdb.Database, code: bytes) -> None:
    one = stored(golden, "keyed")
    key = next(iter(entries(golden, b"k" + one.space_id.to_bytes(4, "big"))))
    put(golden, key, code)
    with (
        pytest.raises(fdb.CorruptionError, match=f"a code of key space {one.space_id} is damaged"),
        golden._env.read() as txn,
    ):
        KeySpace(one.space_id).lookup(txn, [key[5:]])
    assert "key space" in str(golden.verify())
