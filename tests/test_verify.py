"""Verification: files in order are found so, and every kind of damage is reported where it is."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from strategies import tiny_limits

import featuredb as fdb
from featuredb.columns import Column, Heap
from featuredb.errors import CorruptionError
from featuredb.limits import ABSENT_US, NS_CHUNK, NS_COMMIT, NS_DEFINITION, NS_FORMAT, NS_ONLINE, NS_SEGMENT
from featuredb.online.index import OnlineIndex
from featuredb.schema import DTYPES
from featuredb.storage.crc import seal
from featuredb.storage.env import Env, WriteTxn, open_env
from featuredb.storage.manifest import DEAD, read_manifest, stage_segment, write_manifest
from featuredb.storage.records import pack, unpack
from featuredb.storage.registry import StoredTable, read_registry
from featuredb.storage.segment import CODES, DATA, EVENT, read_info
from featuredb.storage.segment_writer import Rows, write_dead, write_segment
from featuredb.verify import Finding, VerifyReport

pytestmark = pytest.mark.usefixtures("segments_only")

T0 = np.datetime64("2013-01-01T00:00:00", "us")
HOUR = np.timedelta64(3600, "s")
FEATURES = {"temp": "float64", "note": "string", "wet": "bool", "seen": "timestamp"}


def weather(**options: Any) -> fdb.FeatureTable:
    return fdb.FeatureTable("weather", ["origin"], [fdb.Feature(*one) for one in FEATURES.items()], **options)


def some(origins: str, hours: list[int], temp: float = 1.5) -> dict[str, Any]:
    """Rows of `weather`: an origin is one letter."""
    rows = len(hours)
    return {
        "origin": list(origins),
        "event_timestamp": T0 + np.array(hours) * HOUR,
        "temp": [None if hour % 5 == 4 else temp + hour for hour in hours],
        "note": [f"é{hour % 3}" for hour in hours],
        "wet": [hour % 2 == 0 for hour in hours],
        "seen": T0 + np.arange(rows) * HOUR,
    }


def fill(db: fdb.Database) -> None:
    """Two segments, the first with a replaced row; composite keys; a table without online values."""
    db.apply([
        fdb.Entity("origin", "string"), fdb.Entity("day", "int64"), weather(),
        fdb.FeatureTable("pairs", ["origin", "day"], [fdb.Feature("n", "int32")]),
        fdb.FeatureTable("history", ["origin"], [fdb.Feature("n", "int32")], online=False),
        fdb.FeatureService("model", ["weather:temp"]),
    ])  # fmt: skip
    db.ingest("weather", some("abcdeabcde", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]))
    db.ingest("weather", some("afb", [5, 3, 1], temp=7.0))
    when = T0 + np.arange(3) * HOUR
    db.ingest("pairs", {"origin": list("aab"), "day": [1, 2, 1], "event_timestamp": when, "n": [1, None, 3]})
    db.ingest("history", {"origin": list("abz"), "event_timestamp": when, "n": [1, 2, 3]})


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("verify") / "master.fdb"
    with fdb.open(path) as db:
        fill(db)
        assert db.verify().ok
    return path


@pytest.fixture
def path(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(master, tmp_path / "x.fdb"))


@contextmanager
def raw(path: Path) -> Iterator[Any]:
    """The entries of a closed file, to be changed behind featuredb's back."""
    with (
        lmdb.open(str(path), subdir=False, lib_version=0, lock=False, map_size=1 << 24) as env,
        env.begin(write=True) as txn,
    ):
        yield txn


def entries(path: Path) -> dict[bytes, bytes]:
    with raw(path) as txn:
        return {bytes(key): bytes(value) for key, value in txn.cursor()}


def verified(path: Path) -> VerifyReport:
    with fdb.open(path, read_only=True) as db:
        return db.verify()


def change(path: Path, work: Callable[[WriteTxn], Any]) -> None:
    """Run `work` in a write transaction of the storage engine: checksums it writes are right."""
    env: Env = open_env(path, create=False, readonly=False, durable=False)
    try:
        with env.writer(5):
            env.write(work, durable=False)
    finally:
        env.close()


def table_of(txn: WriteTxn, name: str) -> StoredTable:
    return read_registry(txn).table(name)


def rewrite(prefix: bytes, edit: Callable[[Any], Any], place: int = 0) -> Callable[[WriteTxn], None]:
    """Change the record of the `place`-th key with a prefix, and its checksum with it."""

    def work(txn: WriteTxn) -> None:
        key, value = list(txn.scan(prefix))[place]
        key, record = bytes(key), unpack(key, value, "record")
        txn.put(key, pack(key, edit(record)))

    return work


def found(report: VerifyReport, what: str) -> Finding:
    """The problem whose text holds `what`."""
    matching = [problem for problem in report.problems if what in problem.what]
    assert matching, f"{what!r} is not among: {report}"
    return matching[0]


# --- every single entry -------------------------------------------------------------------------


def outcome(path: Path) -> VerifyReport | CorruptionError:
    try:
        return verified(path)
    except CorruptionError as error:
        return error


def test_a_flipped_bit_in_any_value_of_the_file_is_reported(master: Path, tmp_path: Path) -> None:
    for number, (key, value) in enumerate(entries(master).items()):
        for place in {0, len(value) // 2, len(value) - 1}:
            path = Path(shutil.copy(master, tmp_path / f"{number}.fdb"))
            flipped = bytearray(value)
            flipped[place] ^= 4
            with raw(path) as txn:
                txn.put(key, bytes(flipped))
            damaged = outcome(path)
            if key == NS_FORMAT:
                assert isinstance(damaged, CorruptionError)
            else:
                assert isinstance(damaged, VerifyReport), key
                assert not damaged.ok, (key, place)
            path.unlink()


def test_the_loss_of_any_entry_is_reported(master: Path, tmp_path: Path) -> None:
    for number, key in enumerate(entries(master)):
        if key in (NS_FORMAT, NS_DEFINITION + b"smodel"):
            continue  # without the first it is not a featuredb file; nothing refers to a service
        path = Path(shutil.copy(master, tmp_path / f"{number}.fdb"))
        with raw(path) as txn:
            txn.delete(key)
        assert not verified(path).ok, key
        path.unlink()


@pytest.mark.parametrize("namespace", b"bcdfghkmoz")
def test_an_entry_that_belongs_to_nothing_is_reported(path: Path, namespace: int) -> None:
    with raw(path) as txn:
        txn.put(bytes([namespace]) + b"\xff\xff\xff\xfe" + b"\0" * 17, b"value")
    report = verified(path)
    assert not report.ok
    assert len(report.problems) == 1, report


def test_keys_of_no_proper_length_end_the_check_and_are_reported(path: Path) -> None:
    with raw(path) as txn:
        for namespace in b"bcfghkmo":
            txn.put(bytes([namespace]), b"")
            txn.put(bytes([namespace, 255]), b"")
    assert not verified(path).ok


def test_empty_values_are_reported_and_not_raised(master: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(master, tmp_path / "x.fdb"))
    with raw(path) as txn:
        for key in entries(master):
            if key != NS_FORMAT:
                txn.put(key, b"")
    assert not verified(path).ok


# --- where it is --------------------------------------------------------------------------------


def chunk_key(txn: WriteTxn, table: str, column: str, segment: int = 1, part: int = DATA) -> bytes:
    stored = table_of(txn, table)
    number = stored.feature_ids.get(column) or {"event": EVENT, "codes": CODES}[column]
    return b"h" + struct.pack(">IQIIB", stored.id, segment, number, 0, part)


@pytest.mark.parametrize(("column", "name"), [("temp", "temp"), ("note", "note"), ("event", "event_timestamp"),
                                              ("codes", "entity codes")])  # fmt: skip
@pytest.mark.parametrize("damage", ["is missing", "checksum does not match", "bytes instead of"])
def test_a_chunk_is_reported_by_table_segment_and_column(path: Path, column: str, name: str, damage: str) -> None:
    def work(txn: WriteTxn) -> None:
        key = chunk_key(txn, "weather", column)
        value = bytes(txn.get(key) or b"")
        if damage == "is missing":
            txn.delete(key)
        elif damage == "bytes instead of":
            txn.put(key, value + b"\0")
        else:
            txn.put(key, bytes([value[0] ^ 1]) + value[1:])

    change(path, work)
    report = verified(path)
    problem = found(report, damage)
    assert (problem.table, problem.segment, problem.column) == ("weather", 1, name)
    assert f"table weather, segment 1, column {name}" in str(report)


def test_damage_of_one_table_does_not_hide_that_of_another(path: Path) -> None:
    def work(txn: WriteTxn) -> None:
        for table, column in (("weather", "temp"), ("pairs", "n")):
            txn.delete(chunk_key(txn, table, column))

    change(path, work)
    assert {problem.table for problem in verified(path).problems} == {"weather", "pairs"}


def test_records_damaged_after_opening_are_reported(path: Path) -> None:
    with fdb.open(path) as db:
        assert db.verify().ok
        for prefix in (NS_DEFINITION + b"t", NS_COMMIT, NS_SEGMENT):

            def damage(txn: WriteTxn, prefix: bytes = prefix) -> None:
                key, value = next(iter(txn.scan(prefix)))
                txn.put(bytes(key), bytes(value[:-1]) + bytes([value[-1] ^ 1]))

            with db._env.writer(5):
                db._env.write(damage, durable=False)
            assert not db.verify().ok
            with db._env.writer(5):
                db._env.write(damage, durable=False)  # the same bit again: whole once more
            assert db.verify().ok


# --- content that contradicts itself under right checksums ---------------------------------------


START = int(T0.astype(np.int64))


def rows_of(codes: list[int], moments: list[int], **changes: Any) -> Rows:
    """Rows of `weather` at moments (microseconds) before any other of the file."""
    count = len(codes)
    columns = {
        1: Column(DTYPES["float64"], np.full(count, 0.5)),
        2: Column(DTYPES["string"], np.zeros(count, np.int32), None, Heap.of([b"x"])),
        3: Column(DTYPES["bool"], np.ones(count, np.bool_)),
        4: Column(DTYPES["timestamp"], np.zeros(count, np.int64)),
    }
    columns.update(changes.pop("columns", {}))
    made = Rows(
        np.array(codes, np.int32),
        START - 10**12 + np.array(moments, np.int64),
        np.full(count, ABSENT_US, np.int64),
        np.full(count, 2, np.int64),
        columns,
    )
    return replace(made, **changes)


def add_segment(rows: Rows, edit: Callable[[WriteTxn, StoredTable, Any], Any] | None = None) -> Callable[..., None]:
    """Write `rows`, whatever they are, as one more segment of `weather`."""

    def work(txn: WriteTxn) -> None:
        table = table_of(txn, "weather")
        manifest = read_manifest(txn, table.id)
        ref = write_segment(txn, table.id, manifest.next_segment_id, rows)
        if edit is not None:
            ref = edit(txn, table, ref)
        write_manifest(txn, manifest.with_segments((*manifest.segments, ref)))

    return work


def other_descriptor(change_zone: Callable[[list[Any]], None]) -> Callable[..., Any]:
    """An edit that changes the descriptor of the segment, and its checksum in the manifest."""

    def edit(txn: WriteTxn, table: StoredTable, ref: Any) -> Any:
        key = NS_SEGMENT + struct.pack(">IQ", table.id, ref.id)
        record = unpack(key, txn.get(key) or b"", "descriptor")
        change_zone(record)
        txn.put(key, raw := pack(key, record))
        return replace(ref, crc=zlib.crc32(raw))

    return edit


def set_at(*places: int, value: Any) -> Callable[[list[Any]], None]:
    def change_record(record: list[Any]) -> None:
        for place in places[:-1]:
            record = record[place]
        record[places[-1]] = value

    return change_record


BAD_BOOL = Column(DTYPES["bool"], np.array([0, 7], np.uint8).view(np.bool_))
BAD_TEXT = Column(DTYPES["string"], np.array([0, 1], np.int32), None, Heap.of([b"\xc3", b"\xa9"]))
BAD_TIME = Column(DTYPES["timestamp"], np.array([0, 1 << 62], np.int64))
WRONG_DTYPE = Column(DTYPES["float32"], np.zeros(2, np.float32))

SEGMENTS: dict[str, tuple[Callable[..., None], str | None]] = {
    "its rows are out of order": (add_segment(rows_of([0, 0], [5, 3])), None),
    "rows are out of order": (add_segment(rows_of([0, 0], [5, 5])), None),
    "its entity index is out of order": (add_segment(rows_of([1, 0], [5, 5])), None),
    "code 99": (add_segment(rows_of([0, 99], [5, 5])), None),
    "a commit that is not logged": (add_segment(rows_of([0], [5], commit=np.array([77]))), None),
    "outside the years": (add_segment(rows_of([0], [5], event=np.array([1 << 62]))), None),
    "1 of its rows are also in segment 3": (add_segment(rows_of([0], [5], event=np.array([START]))), None),
    "the times of its zone map": (add_segment(rows_of([0], [5]), other_descriptor(set_at(0, 1, value=START))), None),
    "the codes of its zone map": (add_segment(rows_of([0], [5]), other_descriptor(set_at(0, 4, value=3))), None),
    "its descriptor has 9 rows": (add_segment(rows_of([0], [5]), other_descriptor(set_at(0, 0, value=9))), None),
    "counts 1 nulls": (add_segment(rows_of([0], [5]), other_descriptor(set_at(1, 5, 4, value=1))), "temp"),
    "its chunks are not those": (
        add_segment(rows_of([0], [5]), other_descriptor(set_at(1, 5, 8, value=[[0, 0, 8, 1]]))),
        "temp",
    ),
    "exponent are (65, 5, 1)": (add_segment(rows_of([0], [5]), other_descriptor(set_at(1, 5, 5, value=65))), "temp"),
    "exponent are (0, 5, 16)": (add_segment(rows_of([0], [5]), other_descriptor(set_at(1, 5, 7, value=16))), "temp"),
    "exponent are (0, 1, 1)": (add_segment(rows_of([0], [5]), other_descriptor(set_at(1, 7, 7, value=1))), "wet"),
    "exponent are (0, 1, 0)": (add_segment(rows_of([0], [5]), other_descriptor(set_at(1, 6, 6, value=1))), "note"),
    "out of the range of its dtype": (
        add_segment(rows_of([0], [5]), other_descriptor(set_at(1, 7, 6, value=2))),
        "wet",
    ),
    "its encoding is 'zip'": (add_segment(rows_of([0], [5]), other_descriptor(set_at(1, 5, 2, value="zip"))), "temp"),
    "replaced rows is out of order": (
        add_segment(
            rows_of([0, 1], [5, 5]), lambda txn, table, ref: write_dead(txn, table.id, ref, np.array([1, 0], np.int32))
        ),
        "replaced rows",
    ),
    "range": (
        add_segment(
            rows_of([0, 1], [5, 5]), lambda txn, table, ref: write_dead(txn, table.id, ref, np.array([2], np.int32))
        ),
        "replaced rows",
    ),
    "neither 0 nor 1": (add_segment(rows_of([0, 1], [5, 5], columns={3: BAD_BOOL})), "wet"),
    "begins or ends inside a character": (add_segment(rows_of([0, 1], [5, 5], columns={2: BAD_TEXT})), "note"),
    "a timestamp is outside": (add_segment(rows_of([0, 1], [5, 5], columns={4: BAD_TIME})), "seen"),
    "stored as float32": (add_segment(rows_of([0, 1], [5, 5], columns={1: WRONG_DTYPE})), "temp"),
    "it is staged and in its manifest": (
        add_segment(rows_of([0], [5]), lambda txn, table, ref: stage_segment(txn, table.id, ref.id) or ref),
        None,
    ),
}


@pytest.mark.parametrize("what", SEGMENTS)
def test_a_segment_that_contradicts_itself_is_reported(path: Path, what: str) -> None:
    work, column = SEGMENTS[what]
    change(path, work)
    problem = found(verified(path), what)
    assert problem.table == "weather"
    assert problem.segment in (1, 3)
    assert problem.column == column


def test_a_segment_written_in_order_is_no_problem(path: Path) -> None:
    # What the cases above differ from.
    change(path, add_segment(rows_of([0, 1], [5, 5])))
    report = verified(path)
    assert report.ok, report


RECORDS: dict[str, tuple[bytes, Callable[[Any], Any], int]] = {
    "commit 2 is not later": (NS_COMMIT, lambda record: [0, *record[1:]], 1),
    "has an unknown shape: not enough values": (NS_COMMIT, lambda record: record[:2], 1),
    "is not keyed by the key space": (NS_DEFINITION + b"thistory", lambda record: {**record, "space": 3}, 0),
    "its last row layout": (NS_DEFINITION + b"tpairs", lambda record: {**record, "layouts": [[[1, "int64"]]]}, 0),
    "would be given out again": (NS_DEFINITION + b"#", lambda record: [record[0], 1], 0),
    "KeyError": (NS_DEFINITION + b"tweather", lambda record: {}, 0),
    "belongs to no live segment": (b"m", lambda record: [record[0], record[1][:1]], 0),
    "names a segment twice": (b"m", lambda record: [record[0], [*record[1], record[1][0]]], 0),
    "would give a segment's number": (b"m", lambda record: [1, record[1]], 0),
    "has an unknown shape": (b"m", lambda record: [record[0], [[1]]], 0),
    "feature service": (NS_DEFINITION + b"smodel", lambda record: {**record, "features": ["weather:none"]}, 0),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_contradicts_others_is_reported(path: Path, what: str) -> None:
    prefix, edit, place = RECORDS[what]
    change(path, rewrite(prefix, edit, place))
    report = verified(path)
    assert what in str(report), report
    assert not report.ok


def test_codes_that_are_swapped_between_keys_are_reported(path: Path) -> None:
    with raw(path) as txn:
        keys = [bytes(key) for key in txn.cursor().iternext(values=False) if bytes(key[:1]) == b"k"]
        codes = [bytes(txn.get(key)[4:]) for key in keys[:2]]
        for key, code in zip(keys[:2], reversed(codes), strict=True):
            txn.put(key, seal(key, code))
    found(verified(path), "keys of tree and blocks differ, the first at code 0")


def test_a_key_that_is_not_text_is_reported(path: Path) -> None:
    def work(txn: WriteTxn) -> None:
        # Both views of the key, with a right checksum.
        body = struct.pack("<IIIIIIIII", 7, 0, 2, 4, 6, 8, 10, 12, 14) + b"a\0b\0c\0d\0e\0f\0\xff\0"
        space = read_registry(txn).spaces[("origin",)]
        prefix = struct.pack(">I", space)
        txn.put(block := b"b" + prefix + bytes(4), seal(block, body))
        txn.delete(b"k" + prefix + b"z\0")
        txn.put(name := b"k" + prefix + b"\xff\0", seal(name, struct.pack("<I", 6)))

    change(path, work)
    found(verified(path), "entity origin: a string is not valid UTF-8")


# --- online = history ---------------------------------------------------------------------------


def online(edit: Callable[[OnlineIndex, WriteTxn, Heap], Any], key: bytes = b"a\0") -> Callable[[WriteTxn], None]:
    def work(txn: WriteTxn) -> None:
        edit(OnlineIndex(table_of(txn, "weather")), txn, Heap.of([key]))

    return work


def with_value(index: OnlineIndex, txn: WriteTxn, keys: Heap, *, hours: int = 0, commit: int | None = None) -> None:
    """Write the stored row of `keys` again with another value, moved by some hours, under a right checksum."""
    rows = index.read(txn, keys)
    columns = {**rows.columns, "temp": Column(DTYPES["float64"], np.array([-99.0]))}
    for key in keys.tolist():
        txn.delete(index.prefix + key)
    event = rows.event + hours * int(HOUR / np.timedelta64(1, "us"))
    index.update(txn, keys, event, rows.created, commit or int(rows.commit[0]), columns)


ONLINE: dict[str, Callable[[WriteTxn], None]] = {
    "differs from the same row of history": online(with_value),
    "newer than its history": online(lambda *given: with_value(*given, hours=1)),
    "older than its latest row": online(lambda *given: with_value(*given, hours=-1)),
    "rows of history and no online value": online(lambda index, txn, keys: txn.delete(index.prefix + b"a\0")),
}


@pytest.mark.parametrize("what", ONLINE)
def test_an_online_row_changed_under_a_right_checksum_is_a_problem(path: Path, what: str) -> None:
    change(path, ONLINE[what])
    report = verified(path)
    assert [(one.table, one.key) for one in report.problems] == [("weather", "origin='a'")]
    assert what in report.problems[0].what


def test_an_online_row_of_a_key_without_history_is_a_problem(path: Path) -> None:
    def work(txn: WriteTxn) -> None:
        index = OnlineIndex(table_of(txn, "weather"))
        row = bytes(txn.get(index.prefix + b"a\0") or b"")
        txn.put(name := index.prefix + b"z\0", seal(name, row[4:]))

    change(path, work)
    problem = found(verified(path), "no rows of history")
    assert problem.key == "origin='z'"


@pytest.mark.parametrize(
    ("key", "what"), [(b"\xff\0", "entity origin: a string is not valid UTF-8"), (b"y", "an entity key has no end")]
)
def test_a_key_of_an_online_row_loaded_apart_that_is_none_is_a_problem(path: Path, key: bytes, what: str) -> None:
    """The dictionary of keys has none such, that its damage could be told by."""
    with fdb.open(path) as db:
        db.ingest("weather", some("y", [20]), to="online")

    def work(txn: WriteTxn) -> None:
        index = OnlineIndex(table_of(txn, "weather"))
        value = bytes(txn.get(index.prefix + b"y\0") or b"")
        txn.delete(index.prefix + b"y\0")
        txn.put(index.prefix + key, seal(index.prefix + key, value[4:]))

    change(path, work)
    problem = found(verified(path), what)
    assert (problem.table, problem.key) == ("weather", key.hex())


def test_an_online_row_of_a_commit_to_come_is_a_problem(path: Path) -> None:
    change(path, online(lambda *given: with_value(*given, commit=1000)))
    found(verified(path), "of a commit that is not logged")


def test_each_damaged_online_row_is_named_and_the_others_are_compared(path: Path) -> None:
    def work(txn: WriteTxn) -> None:
        index = OnlineIndex(table_of(txn, "weather"))
        for key in (b"b\0", b"d\0"):
            value = bytes(txn.get(index.prefix + key) or b"")
            txn.put(index.prefix + key, value[:-1] + bytes([value[-1] ^ 1]))
        with_value(index, txn, Heap.of([b"a\0"]))

    change(path, work)
    report = verified(path)
    assert [problem.key for problem in report.problems] == ["origin='b'", "origin='d'", "origin='a'"]
    assert report.online_keys == 6 + 3


def test_damaged_online_rows_are_found_where_history_is_damaged_too(path: Path) -> None:
    def work(txn: WriteTxn) -> None:
        index = OnlineIndex(table_of(txn, "weather"))
        txn.put(index.prefix + b"b\0", b"short")
        txn.delete(chunk_key(txn, "weather", "temp"))

    change(path, work)
    assert {(problem.column, problem.key) for problem in verified(path).problems} == {
        ("temp", None),
        (None, "origin='b'"),
    }


def test_online_rows_of_a_table_kept_offline_are_a_problem(path: Path) -> None:
    def work(txn: WriteTxn) -> None:
        value = bytes(next(iter(txn.scan(NS_ONLINE)))[1])
        txn.put(OnlineIndex(table_of(txn, "history")).prefix + b"a\0", value)

    change(path, work)
    assert found(verified(path), "defined as offline only").table == "history"


@pytest.fixture
def loaded(db: fdb.Database) -> fdb.Database:
    fill(db)
    return db


def differences(db: fdb.Database) -> list[str]:
    report = db.verify()
    assert report.ok, report
    assert report.difference_count == len(report.differences)
    return sorted(map(str, report.differences))


def test_rows_loaded_offline_only_are_differences_until_materialized(loaded: fdb.Database) -> None:
    loaded.ingest("weather", some("ay", [20, 20]), to="offline")
    loaded.ingest("weather", some("b", [6], temp=-5.0), to="offline")
    assert differences(loaded) == [
        "table weather, key origin='a': its online value is older than its latest row of history",
        "table weather, key origin='b': its online value differs from the same row of history",
        "table weather, key origin='y': it has rows of history and no online value",
    ]
    loaded.materialize("weather")
    assert differences(loaded) == []


def test_rows_loaded_online_only_are_differences(loaded: fdb.Database) -> None:
    loaded.ingest("weather", some("ay", [20, 20]), to="online")
    loaded.ingest("weather", some("b", [6], temp=-5.0), to="online")
    assert differences(loaded) == [
        "table weather, key origin='a': its online value is newer than its history",
        "table weather, key origin='b': its online value differs from the same row of history",
        "table weather, key origin='y': it has an online value and no rows of history",
    ]
    loaded.ingest("weather", some("ayb", [20, 20, 6], temp=-5.0))
    assert differences(loaded) == []


def test_a_damaged_log_record_does_not_turn_differences_into_problems(path: Path) -> None:
    with fdb.open(path) as db:
        db.ingest("weather", some("ay", [20, 20]), to="offline")
        last = db.log()[-1].id
    with raw(path) as txn:
        txn.put(NS_COMMIT + struct.pack(">Q", last), b"junkjunk")
    report = verified(path)
    assert [problem.what for problem in report.problems] == [
        f"the record of commit {last} is damaged: its checksum does not match; restore the file from a backup"
    ]
    assert report.difference_count == 2


# --- files in order -----------------------------------------------------------------------------


def test_a_file_in_order_is_ok_after_everything_that_can_be_done_to_it(loaded: fdb.Database, tmp_path: Path) -> None:
    def in_order() -> VerifyReport:
        assert differences(loaded) == []
        return loaded.verify()

    report = in_order()
    assert (report.tables, report.segments, report.commits) == (3, 4, len(loaded.log()))
    assert (report.rows, report.entity_keys, report.online_keys) == (11 + 3 + 3, 7 + 3, 6 + 3)
    for turn in range(5):  # enough to merge
        loaded.ingest("weather", some("abc", [30 + turn, 2, 31 + turn], temp=turn))
        in_order()
    with_extra = [fdb.Feature(*one) for one in {**FEATURES, "extra": "int8"}.items() if one[0] != "note"]
    loaded.apply(replace(weather(), features=with_extra))
    in_order()
    loaded.ingest("weather", {**some("ab", [50, 2]), "extra": [1, None]})
    in_order()
    loaded.apply(replace(weather(), features=with_extra, online=False))
    assert in_order().online_keys == 3
    loaded.ingest("weather", {**some("cg", [50, 2]), "extra": [1, None]})
    loaded.apply(replace(weather(max_age=timedelta(days=1)), features=with_extra))
    assert in_order().online_keys == 7 + 3
    loaded.compact()
    in_order()
    loaded.delete_feature_table("pairs")
    in_order()
    loaded.backup(tmp_path / "copy.fdb")
    assert verified(tmp_path / "copy.fdb").ok


def test_an_empty_file_is_ok(db: fdb.Database) -> None:
    report = db.verify()
    assert report.ok
    assert str(report).startswith("ok: 0 tables")


def test_segments_that_a_killed_ingest_staged_are_no_damage(path: Path) -> None:
    def work(txn: WriteTxn) -> None:
        table = table_of(txn, "weather")
        write_segment(txn, table.id, 9, rows_of([0], [5]))
        stage_segment(txn, table.id, 9)

    change(path, work)
    report = verified(path)
    assert report.ok, report
    assert report.segments == 4


def test_tiny_chunks_and_blocks_are_verified_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_limits(monkeypatch)
    with fdb.open(tmp_path / "x.fdb") as db:
        fill(db)
        db.ingest("weather", some("abcdefgh" * 4, list(range(32))))
        assert differences(db) == []
        with db._env.read() as txn:
            table = read_registry(txn).table("weather")
            ref = read_manifest(txn, table.id).segments[-1]
            chunks = read_info(txn, table.id, ref).columns[1].chunks
    last = max(chunk for chunk, _ in chunks)
    assert last > 1
    with raw(tmp_path / "x.fdb") as txn:
        txn.delete(b"h" + struct.pack(">IQIIB", table.id, ref.id, 1, last, DATA))
    assert found(verified(tmp_path / "x.fdb"), f"chunk {last} (data) is missing").column == "temp"


def test_every_difference_is_listed_and_the_text_shows_the_first(
    loaded: fdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("report", "serving"):
        monkeypatch.setattr(f"featuredb.verify.{name}.VERIFY_FINDINGS_MAX", 2)
    loaded.ingest("weather", some("uvwxy", [20] * 5), to="offline")
    report = loaded.verify()
    assert (len(report.differences), report.difference_count) == (5, 5)
    assert str(report).endswith("... and 3 more differences")


# --- quick ----------------------------------------------------------------------------------------


def is_dead_list(key: bytes) -> bool:
    return key[:1] == NS_CHUNK and key[13:17] == DEAD.to_bytes(4, "big")


def quick(path: Path) -> VerifyReport:
    with fdb.open(path, read_only=True) as db:
        return db.verify("quick")


def test_quick_counts_what_full_counts(path: Path) -> None:
    report, full = quick(path), verified(path)
    assert report.ok
    assert replace(report, seconds=0.0, level="full") == replace(full, seconds=0.0)
    assert str(report).startswith("ok (quick): ")


def test_quick_finds_a_flipped_bit_in_all_but_values_and_full_in_these_too(master: Path, tmp_path: Path) -> None:
    for number, (key, value) in enumerate(entries(master).items()):
        path = Path(shutil.copy(master, tmp_path / f"{number}.fdb"))
        with raw(path) as txn:
            txn.put(key, bytes([value[0] ^ 4]) + value[1:])
        if key != NS_FORMAT:
            unread = key[:1] == NS_ONLINE or (key[:1] == NS_CHUNK and not is_dead_list(key))
            assert quick(path).ok == unread, key
            assert not verified(path).ok
        path.unlink()


def test_quick_finds_the_loss_of_all_but_online_rows_and_of_the_last_commit(master: Path, tmp_path: Path) -> None:
    for number, (key, value) in enumerate(entries(master).items()):
        if key in (NS_FORMAT, NS_DEFINITION + b"smodel"):
            continue
        path = Path(shutil.copy(master, tmp_path / f"{number}.fdb"))
        with raw(path) as txn:
            txn.delete(key)
        # Which commits there must be only rows tell.
        unseen = key[:1] == NS_ONLINE or key == NS_COMMIT + (5).to_bytes(8, "big")
        assert quick(path).ok == unseen, key
        if key[:1] == NS_CHUNK:
            with raw(path) as txn:
                txn.put(key, value[:-1])
            found(quick(path), f"has {len(value) - 1} bytes instead of {len(value)}" if not is_dead_list(key) else "")
        path.unlink()


def test_quick_reads_no_chunk_but_lists_of_replaced_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featuredb.storage import segment

    real, read = segment.checksum, list[int]()
    monkeypatch.setattr(segment, "checksum", lambda raw: read.append(len(raw)) or real(raw))
    lists = [len(value) for key, value in entries(path).items() if is_dead_list(key)]
    assert quick(path).ok
    assert read == lists != []
    assert verified(path).ok
    assert len(read) > 2 * len(lists)


def test_a_level_of_no_kind_is_refused(path: Path) -> None:
    with fdb.open(path) as db, pytest.raises(fdb.InputError, match="'quick' or 'full'"):
        db.verify("deep")  # type: ignore[arg-type]


# --- backup ---------------------------------------------------------------------------------------


def test_a_checked_backup_is_as_the_file_and_leaves_nothing_beside_it(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    folder.mkdir()
    with fdb.open(path) as db:
        db.backup(folder / "copy.fdb", check=True)
    assert [file.name for file in folder.iterdir()] == ["copy.fdb"]
    assert entries(folder / "copy.fdb") == entries(path)


def test_a_backup_that_is_not_in_order_gets_no_name(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    folder.mkdir()
    key = next(key for key in entries(path) if key[:1] == NS_CHUNK)
    with raw(path) as txn:
        txn.put(key, b"")
    with fdb.open(path) as db:
        with pytest.raises(CorruptionError, match=r"has 0 bytes .*run verify\(\)"):
            db.backup(folder / "copy.fdb", check=True)
        assert list(folder.iterdir()) == []
        # Unchecked, it is the copy of a file that is not in order.
        db.backup(folder / "copy.fdb")
    assert entries(folder / "copy.fdb") == entries(path)
