"""The bytes of the file: a golden file that every version must read, and a reader written from FORMAT.md alone.

``golden/v1.fdb`` was made by `make_golden`, and ``golden/v1.expected.json`` by `expected_of`, which follows what
`make_golden` puts in with a dict. Neither may change as long as format version 1 is read. To make them for
a new version: ``PYTHONPATH=. python tests/test_format.py v2`` in the project's folder.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import pytest
from xxh64 import xxh64

import featuredb as fdb
from featuredb import limits

GOLDEN = Path(__file__).parent / "golden"
FORMAT_MD = Path(fdb.__file__).parent / "FORMAT.md"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_1_US, YEAR_9999_US = -62_135_596_800_000_000, 253_402_300_799_999_999
NOON_US = 1_357_041_600_000_000  # 2013-01-01 12:00
HOUR_US = 3_600_000_000

INTS = {f"{sign}int{bits}": bits for sign in ("", "u") for bits in (8, 16, 32, 64)}
RANGES = {
    name: (0, 2**bits - 1) if name[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for name, bits in INTS.items()
}
# Values of each dtype to go round, corners first; a null is put among them in `make_rows`.
VALUES: dict[str, list[Any]] = {
    "bool": [True, False],
    **{name: [low, high, 1, 7] for name, (low, high) in RANGES.items()},
    "float32": [-0.0, 1.5, float("inf"), 2.0**-126],
    "float64": [0.1, float("-inf"), -0.0, 1.7976931348623157e308],
    "string": ["", "a\x00b", "é😀", "plain"],
    "bytes": [b"", b"\x00\x01\x02\xff", b"raw"],
    "timestamp": [YEAR_1_US, YEAR_9999_US, -1, 0],
}
KEY_VALUES = {name: values for name, values in VALUES.items() if not name.startswith("float")}
ITEMS = 600

Row = dict[str, Any]


# --- what is in the golden file -----------------------------------------------------------------


def make_rows(features: dict[str, str], keys: list[Row], first: int, *, created: bool = False) -> list[Row]:
    """A row for each of `keys`: an hour apart, values going round, every fifth value null."""
    rows = []
    for number, key in enumerate(keys, start=first):
        row: Row = {**key, "event_timestamp": NOON_US + number * HOUR_US}
        if created:
            row["created_timestamp"] = row["event_timestamp"] + 5
        for place, (name, dtype) in enumerate(features.items()):
            values = VALUES[dtype]
            row[name] = None if (number + place) % 5 == 4 else values[(number + place) % len(values)]
        rows.append(row)
    return rows


EVERY = {f"f_{dtype}": dtype for dtype in VALUES}
KEYED = {f"k_{dtype}": dtype for dtype in KEY_VALUES}
PAIRS = {"amount": "float64", "note": "string", "old": "int16"}
PAIRS_LATER = {"extra": "uint8", "amount": "float64", "note": "string"}
NOTES = {"text": "string", "kind": "string", "nothing": "int8", "price": "float64"}
ENTITIES = {"user": "string", "day": "timestamp", "item": "int32", **KEYED}
TABLES: dict[str, tuple[list[str], dict[str, str]]] = {
    "every": (["item"], EVERY),
    "keyed": (list(KEYED), {"n": "int64"}),
    "pairs": (["user", "day"], PAIRS_LATER),
    "notes": (["item"], NOTES),
}


def batches() -> Iterator[tuple[str, dict[str, str], list[Row]]]:
    """What `make_golden` ingests, in order: table, its features at that time, rows."""
    items = [{"item": number} for number in (3, -1, 2**31 - 1, 0, -(2**31), 8, 9, 10)]
    yield "every", EVERY, make_rows(EVERY, items * 5, 0)
    changed = make_rows(EVERY, items[:2], 0)
    for row in changed:
        row["f_int64"] = 1234567
    late = [{**row, "event_timestamp": NOON_US - HOUR_US} for row in make_rows(EVERY, items[2:4], 50)]
    yield "every", EVERY, [*make_rows(EVERY, items, 40), *changed, *late]

    def turned(values: list[Any], by: int) -> Any:
        return values[by % len(values)]

    keys = [{f"k_{dtype}": turned(values, by) for dtype, values in KEY_VALUES.items()} for by in range(4)]
    yield "keyed", {"n": "int64"}, make_rows({"n": "int64"}, keys, 0)
    pairs = [{"user": user, "day": day} for user in ("", "a", "a\x00", "\x01", "é") for day in (-HOUR_US, 0)]
    yield "pairs", PAIRS, make_rows(PAIRS, pairs, 0, created=True)
    again = [
        {**row, "created_timestamp": row["created_timestamp"] + 1}
        for row in make_rows(PAIRS_LATER, pairs[:3], 0, created=True)
    ]
    yield "pairs", PAIRS_LATER, again
    notes = make_rows(NOTES, [{"item": number} for number in range(ITEMS)], 0)
    for number, row in enumerate(notes):
        row["text"] = None if number % 50 == 49 else f"note {number} " + "é" * (number % 3)
        row["kind"] = ("odd", "even", "")[number % 3]
        row["nothing"] = None
        row["price"] = None if number % 9 == 0 else (number * 37 % 1000 - 500) / 100
    yield "notes", NOTES, notes
    yield "keyed", {"n": "int64"}, make_rows({"n": "int64"}, keys[:2], 4)


def make_golden(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a file with every dtype, encoding, layout and kind of record; chunks are small, so that it has many.

    Only the last rows of ``keyed`` are few enough for a tail.
    """
    patch.setattr("featuredb.offline.ingest.SMALL_INGEST_ROWS_MAX", 2)
    patch.setattr("featuredb.storage.encode.CHUNK_ROWS_MAX", 256)
    patch.setattr("featuredb.storage.encode.CHUNK_BYTES_TARGET", 4096)

    def define(name: str, features: dict[str, str], **options: Any) -> fdb.FeatureTable:
        return fdb.FeatureTable(name, TABLES[name][0], [fdb.Feature(*one) for one in features.items()], **options)

    source = fdb.FileSource("pairs.parquet", created_timestamp_column="created_timestamp")
    labels = {"team": "ops"}
    with fdb.open(path) as db:
        db.apply([fdb.Entity(name, dtype, f"a {dtype}") for name, dtype in ENTITIES.items()])
        db.apply(fdb.FeatureTable("gone", ["user"], [fdb.Feature("n", "int8")]))
        db.ingest("gone", [{"user": "u", "event_timestamp": EPOCH, "n": 1}])
        pairs = define("pairs", PAIRS, max_age=timedelta(days=2), batch_source=source, labels=labels)
        db.apply([define("every", EVERY), define("keyed", {"n": "int64"}), pairs])
        db.apply(define("notes", NOTES, online=False, description="history only"))
        db.apply(fdb.FeatureService("model", ["every:f_int64", "pairs:amount"], labels, "two tables"))
        db.delete_feature_table("gone")
        for name, features, rows in batches():
            if features is PAIRS_LATER:
                db.apply(define("pairs", PAIRS_LATER, max_age=timedelta(days=2), batch_source=source, labels=labels))
            dtypes = {**features, **ENTITIES, "event_timestamp": "timestamp", "created_timestamp": "timestamp"}
            db.ingest(name, {column: [given(row[column], dtypes[column]) for row in rows] for column in rows[0]})
        assert db.verify().ok


def given(value: Any, dtype: str) -> Any:
    """A value as it is handed to featuredb."""
    return EPOCH + timedelta(microseconds=value) if dtype == "timestamp" and value is not None else value


def shown(value: Any, dtype: str) -> Any:
    """A value as JSON can hold it, exactly."""
    if value is None:
        return None
    if isinstance(value, datetime):
        return (value - EPOCH) // timedelta(microseconds=1)
    if dtype.startswith("float"):
        return float(value).hex()
    return value.hex() if dtype == "bytes" else value


def expected_of() -> dict[str, Any]:
    """Live history rows in order, and online rows by key, of each table: key values, event, created, feature values."""
    history: dict[str, dict[tuple[Any, ...], Row]] = {name: {} for name in TABLES}
    for name, _, rows in batches():
        for row in rows:
            key = tuple(row[entity] for entity in TABLES[name][0])
            history[name][key, row["event_timestamp"], row.get("created_timestamp")] = row
    tables = {}
    for name, (entities, features) in TABLES.items():
        listed = []
        for (key, event, created), row in history[name].items():
            keys = [shown(value, ENTITIES[entity]) for entity, value in zip(entities, key, strict=True)]
            listed.append([keys, event, created, [shown(row.get(one), dtype) for one, dtype in features.items()]])
        listed.sort(key=in_total_order)
        latest = {json.dumps(row[0]): row for row in listed}
        tables[name] = {"history": listed, "online": [] if name == "notes" else list(latest.values())}
    return tables


def in_total_order(row: list[Any]) -> tuple[str, int, int]:
    return json.dumps(row[0]), row[1], limits.ABSENT_US if row[2] is None else row[2]


# --- a reader written from FORMAT.md ------------------------------------------------------------

WIDTHS = {"bool": "?", "string": "<u4", "bytes": "<u4", "timestamp": "<i8",
          "float32": "<f4", "float64": "<f8",
          **{name: f"<{name[0]}{bits // 8}" for name, bits in INTS.items()}}  # fmt: skip
EVENT, CREATED, COMMIT, CODES, STARTS, DEAD = range(0xFFFFFFF0, 0xFFFFFFF6)
DATA, VALID, OFFSETS, BYTES = range(4)
ABSENT = -(1 << 63)


class TinyReader:
    """Reads a whole file with lmdb, msgpack and numpy: FORMAT.md, section by section, as code."""

    def __init__(self, path: Path) -> None:
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False, lib_version=0) as env, env.begin() as txn:
            self.entries = {bytes(key): bytes(value) for key, value in txn.cursor()}

    def under(self, prefix: bytes) -> dict[bytes, bytes]:
        return {key[len(prefix) :]: value for key, value in self.entries.items() if key.startswith(prefix)}

    def body(self, key: bytes) -> bytes:
        """What stands behind the crc of a value."""
        raw = self.entries[key]
        assert zlib.crc32(raw[4:] + key) == int.from_bytes(raw[:4], "little"), key
        return raw[4:]

    def record(self, key: bytes) -> Any:
        return msgpack.unpackb(self.body(key), raw=False)

    def definitions(self, kind: bytes) -> dict[str, Any]:
        return {name.decode(): self.record(b"d" + kind + name) for name in self.under(b"d" + kind)}

    def commits(self) -> dict[int, list[Any]]:
        return {int.from_bytes(key, "big"): self.record(b"c" + key) for key in self.under(b"c")}

    def keys(self, space: int) -> list[bytes]:
        """Key bytes by code, which the tree of keys must confirm."""
        keys: list[bytes] = []
        prefix = b"b" + struct.pack(">I", space)
        for block in sorted(self.under(prefix)):
            if block == b"":
                continue  # what was forgotten
            assert int.from_bytes(block, "big") * 512 == len(keys)
            body = self.body(prefix + block)
            (count,) = struct.unpack_from("<I", body)
            offsets = np.frombuffer(body, "<u4", count + 1, 4).tolist()
            data = body[4 + 4 * (count + 1) :]
            keys += [data[a:b] for a, b in pairwise(offsets)]
        prefix = b"k" + struct.pack(">I", space)
        tree = {key: self.body(prefix + key) for key in self.under(prefix)}
        assert tree == {key: struct.pack("<I", code) for code, key in enumerate(keys) if key}
        marker = b"b" + struct.pack(">I", space)
        generation, forgotten = self.record(marker) if marker in self.entries else (0, 0)
        assert keys.count(b"") == forgotten >= generation
        return keys

    def key_values(self, key: bytes, dtypes: list[str]) -> list[Any]:
        values: list[Any] = []
        for dtype in dtypes:
            if dtype in ("string", "bytes"):
                raw, _, key = key.partition(b"\0")
                raw = re.sub(b"\x01([\x01\x02])", lambda match: bytes([match[1][0] - 1]), raw)
                values.append(raw.decode() if dtype == "string" else raw.hex())
                continue
            width = np.dtype(WIDTHS[dtype]).itemsize
            word, key = int.from_bytes(key[:width], "big"), key[width:]
            signed = dtype == "timestamp" or dtype.startswith("int")
            values.append(word - (1 << 8 * width - 1) if signed else bool(word) if dtype == "bool" else word)
        assert key == b""
        return values

    def segment(self, table: int, ref: list[int]) -> Segment:
        number, crc, rows, version, dead_count, dead_checksum = ref
        key = struct.pack(">IQ", table, number)
        assert zlib.crc32(self.entries[b"f" + key]) == crc
        zone, columns = self.record(b"f" + key)
        assert zone[0] == rows
        dead = []
        if dead_count:
            raw = self.entries[b"h" + key + struct.pack(">IIB", DEAD, version, DATA)]
            assert (len(raw), xxh64(raw)) == (4 * dead_count, dead_checksum)
            dead = np.frombuffer(raw, "<i4").tolist()
        return Segment(self, b"h" + key, zone, {column[0]: column[1:] for column in columns}, dead)

    def row(self, table: dict[str, Any], key: bytes) -> tuple[int, int, int, dict[int, Any]]:
        """A packed row, online or of a tail."""
        self.body(key)
        raw = self.entries[key]
        _, version, event, created, commit = struct.unpack_from("<IHqqQ", raw)
        layout = table["layouts"][version]
        at = 30 + (len(layout) + 7) // 8
        nulls = int.from_bytes(raw[30:at], "little")
        end = at + sum(np.dtype(WIDTHS[dtype]).itemsize for _, dtype in layout)
        values: dict[int, Any] = {}
        for place, (feature, dtype) in enumerate(layout):
            value = np.frombuffer(raw, WIDTHS[dtype], 1, at)[0]
            at += np.dtype(WIDTHS[dtype]).itemsize
            if dtype in ("string", "bytes"):
                size = int(value)
                value, end = raw[end : end + size], end + size
            values[feature] = None if nulls >> place & 1 else plain(value, dtype)
        assert end == len(raw)
        return event, created, commit, values

    def tail(self, table: dict[str, Any], keys: list[Any]) -> list[list[Any]]:
        """The rows of the tail, as `tables` has them."""
        prefix = b"o" + struct.pack(">I", table["id"])
        entries = self.under(prefix)
        if not entries:
            return []
        del entries[b""]
        count, nbytes, commit, marks = self.record(prefix)
        assert (count, nbytes) == (len(entries), sum(map(len, entries.values())))
        found = []
        for key, raw in entries.items():
            marks ^= int.from_bytes(raw[:4], "little")
            code, event, created = struct.unpack(">IQQ", key)
            times = event - (1 << 63), created - (1 << 63)
            *stored, of_commit, values = self.row(table, prefix + key)
            assert (*times,) == (*stored,)
            assert of_commit <= commit
            row = [values.get(feature) for feature, *_ in table["features"]]
            found.append([keys[code], times[0], none_if_absent(times[1]), row])
        assert marks == 0
        return found

    def tables(self) -> dict[str, Any]:
        """What `expected_of` gives."""
        out = {}
        for name, table in self.definitions(b"t").items():
            keys = [self.key_values(key, table["key_dtypes"]) if key else None for key in self.keys(table["space"])]
            history = []
            _, refs = self.record(b"m" + struct.pack(">I", table["id"]))
            for ref in refs:
                segment = self.segment(table["id"], ref)
                columns = [segment.feature(feature, dtype) for feature, _, dtype, _ in table["features"]]
                codes, event, created = segment.codes(), segment.system(EVENT), segment.system(CREATED)
                for row in set(range(segment.rows)) - set(segment.dead):
                    values = [column[row] for column in columns]
                    history.append([keys[codes[row]], event[row], none_if_absent(created[row]), values])
            history += self.tail(table, keys)
            online = []
            prefix = b"p" + struct.pack(">I", table["id"])
            for key in self.under(prefix):
                event_us, created_us, _, values_by_id = self.row(table, prefix + key)
                values = [values_by_id.get(feature) for feature, *_ in table["features"]]
                online.append([self.key_values(key, table["key_dtypes"]), event_us, none_if_absent(created_us), values])
            out[name] = {
                "history": sorted(history, key=in_total_order),
                "online": sorted(online, key=in_total_order),
            }
        return out


class Segment:
    """One segment of `TinyReader`."""

    def __init__(
        self, reader: TinyReader, prefix: bytes, zone: list[int], columns: dict[int, list[Any]], dead: list[int]
    ) -> None:
        self.reader, self.prefix, self.columns, self.dead = reader, prefix, columns, dead
        self.rows, *self.zone = zone

    def raw(self, column: int, chunk: int, part: int) -> bytes | None:
        refs = {(one, which): (size, checksum) for one, which, size, checksum in self.columns[column][-1]}
        if (chunk, part) not in refs:
            return None
        raw = self.reader.entries[self.prefix + struct.pack(">IIB", column, chunk, part)]
        assert (len(raw), xxh64(raw)) == refs[chunk, part]
        return raw

    def array(self, column: int, chunk: int, part: int, dtype: str) -> np.ndarray[Any, Any]:
        raw = self.raw(column, chunk, part)
        assert raw is not None
        return np.frombuffer(raw, dtype)

    def chunks(self, column: int) -> range:
        return range(-(-self.rows // self.columns[column][2]))

    def integers(self, column: int, chunk: int) -> list[int]:
        """The packed integers of a chunk, modulo 2**64."""
        _, _, chunk_rows, _, width, base, _, _ = self.columns[column]
        rows = min(chunk_rows, self.rows - chunk * chunk_rows)
        stream = 0
        if width:
            raw = self.raw(column, chunk, DATA)
            assert raw is not None
            assert len(raw) == 8 * ((rows * width + 63) // 64 + 1)
            stream = int.from_bytes(raw, "little")
            assert stream < 1 << rows * width
        return [((stream >> row * width) % (1 << width) + base) % (1 << 64) for row in range(rows)]

    def scalars(self, column: int, chunk: int) -> list[Any]:
        """The values of a plain or packed chunk, whatever stands under nulls."""
        dtype, encoding, _, _, _, _, exponent, _ = self.columns[column]
        if encoding == "plain":
            return list(self.array(column, chunk, DATA, WIDTHS[dtype]))
        assert encoding == "packed"
        integers = self.integers(column, chunk)
        if dtype == "uint64":
            return [np.uint64(one) for one in integers]
        signed = [one - (1 << 64) if one >> 63 else one for one in integers]
        if dtype.startswith("float"):
            return [np.dtype(WIDTHS[dtype]).type(one / 10.0**exponent) for one in signed]
        return [np.dtype(WIDTHS[dtype]).type(one) for one in signed]

    def system(self, column: int) -> list[int]:
        if column in (CODES, STARTS):
            chunks = range(len(self.columns[column][-1]))
            return [value for chunk in chunks for value in self.array(column, chunk, DATA, "<i4").tolist()]
        return [int(value) for chunk in self.chunks(column) for value in self.scalars(column, chunk)]

    def codes(self) -> list[int]:
        codes, starts = self.system(CODES), self.system(STARTS)
        assert codes == sorted(set(codes))
        assert len(starts) == len(codes) + 1
        found = [code for code, a, b in zip(codes, starts[:-1], starts[1:], strict=True) for _ in range(a, b)]
        rows = list(zip(found, self.system(EVENT), self.system(CREATED), strict=True))
        assert rows == sorted(set(rows))
        event = self.system(EVENT)
        assert self.zone == [min(event), max(event), min(codes), max(codes)]
        return found

    def feature(self, column: int, dtype: str) -> list[Any]:
        if column not in self.columns or self.columns[column][1] == "null":
            return [None] * self.rows
        stored, encoding, chunk_rows, null_count, *_ = self.columns[column]
        assert stored == dtype
        values: list[Any] = []
        for chunk in self.chunks(column):
            rows = min(chunk_rows, self.rows - chunk * chunk_rows)
            if encoding in ("plain", "packed"):
                part = self.scalars(column, chunk)
            else:
                heap = 0 if encoding == "dictionary" else chunk
                offsets = self.array(column, heap, OFFSETS, "<u4").tolist()
                data = self.array(column, heap, BYTES, "u1").tobytes()
                part = [data[a:b] for a, b in pairwise(offsets)]
            if encoding == "dictionary":
                part = [part[number] for number in self.integers(column, chunk)]
            assert len(part) == rows
            bits = self.raw(column, chunk, VALID)
            valid = [bits is None or bool(bits[row // 8] >> row % 8 & 1) for row in range(rows)]
            values += [plain(value, dtype) if is_valid else None for value, is_valid in zip(part, valid, strict=True)]
        assert values.count(None) == null_count
        return values


def plain(value: Any, dtype: str) -> Any:
    """A stored value as JSON holds it in the expectations."""
    if dtype in ("string", "bytes"):
        return value.decode() if dtype == "string" else value.hex()
    return float(value).hex() if dtype.startswith("float") else value.item()


def none_if_absent(created_us: int) -> int | None:
    return None if created_us == ABSENT else created_us


# --- tests --------------------------------------------------------------------------------------


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the golden file, as opening may make a lock file beside it."""
    return Path(shutil.copy(GOLDEN / "v1.fdb", tmp_path / "golden.fdb"))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "v1.expected.json").read_text())
    return found


def test_the_golden_file_verifies_and_holds_every_kind_of_record(golden: Path) -> None:
    entries = TinyReader(golden).entries
    assert golden.stat().st_size < 200_000
    with fdb.open(golden, read_only=True) as db:
        report = db.verify()
        assert report.ok, report
        assert not report.differences
        assert {table.name for table in db.list_feature_tables()} == set(TABLES)
        assert db.get_feature_service("model").features == ("every:f_int64", "pairs:amount")
        assert db.get_feature_table("pairs").max_age == timedelta(days=2)
    # Only while an ingest runs; since the golden file was made.
    absent = {limits.NS_STAGED, limits.NS_REJECTED, limits.NS_PENDING}
    namespaces = {value for name, value in vars(limits).items() if name.startswith("NS_")}
    held = {limits.NS_SNAPSHOT, limits.NS_PINNED, limits.NS_UNDO}  # only while there are snapshots
    assert {key[:1] for key in entries} == namespaces - absent - held


def test_featuredb_reads_the_golden_file_as_expected(golden: Path, expected: dict[str, Any]) -> None:
    with fdb.open(golden, read_only=True) as db:
        for name, (entities, features) in TABLES.items():
            references = [f"{name}:{feature}" for feature in features]
            newest = {(json.dumps(row[0]), row[1]): row for row in expected[name]["history"]}
            rows = list(newest.values())
            asked = {"event_timestamp": [given(row[1], "timestamp") for row in rows]}
            asked |= {one: [of_json(row[0][i], ENTITIES[one]) for row in rows] for i, one in enumerate(entities)}
            found = db.get_historical_features(asked, references).to_arrow().select(list(features)).to_pylist()
            assert [[shown(row[one], dtype) for one, dtype in features.items()] for row in found] == [
                r[3] for r in rows
            ]
            if name != "notes":
                rows = expected[name]["online"]
                keys = [{one: of_json(row[0][i], ENTITIES[one]) for i, one in enumerate(entities)} for row in rows]
                online = db.get_online_features(references, keys, now=EPOCH).to_dict()
                for place, (feature, dtype) in enumerate(features.items()):
                    assert [shown(value, dtype) for value in online[feature]] == [row[3][place] for row in rows]


def of_json(value: Any, dtype: str) -> Any:
    return bytes.fromhex(value) if dtype == "bytes" else given(value, dtype)


def test_a_reader_written_from_the_specification_reads_the_golden_file(golden: Path, expected: dict[str, Any]) -> None:
    reader = TinyReader(golden)
    assert reader.tables() == expected
    record = reader.record(b"a")
    assert (record["magic"], record["version"]) == ("featuredb", 1)
    commits = reader.commits()
    assert list(commits) == list(range(1, len(commits) + 1))
    assert [commits[number][1] for number in commits].count("ingest") == 1 + len(list(batches()))
    assert list(reader.definitions(b"e")) == sorted(ENTITIES)


def test_the_golden_file_has_every_encoding(golden: Path) -> None:
    reader = TinyReader(golden)
    columns = [column for key in reader.under(b"f") for column in reader.record(b"f" + key)[1]]
    assert {column[2] for column in columns} == {"packed", "plain", "null", "dictionary", "heap"}
    assert {column[5] > 0 for column in columns if column[2] == "packed"} == {True, False}
    assert any(column[7] for column in columns), "no column of decimals"
    assert {part for column in columns for _, part, _, _ in column[-1]} == {DATA, VALID, OFFSETS, BYTES}
    assert max(chunk for column in columns for chunk, *_ in column[-1]) >= 2
    table = reader.definitions(b"t")["pairs"]
    versions = {
        struct.unpack_from("<H", raw, 4)[0] for raw in reader.under(b"p" + struct.pack(">I", table["id"])).values()
    }
    assert versions == {0, 1}
    manifests = [reader.record(b"m" + key) for key in reader.under(b"m")]
    assert {len(refs) for _, refs in manifests} == {1, 2}
    assert any(ref[4] for _, refs in manifests for ref in refs), "no segment has replaced rows"


def test_what_is_written_today_is_what_the_specification_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any]
) -> None:
    make_golden(tmp_path / "fresh.fdb", monkeypatch)
    assert TinyReader(tmp_path / "fresh.fdb").tables() == expected
    assert expected == expected_of()


def test_a_forgotten_key_is_as_the_specification_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any]
) -> None:
    path = tmp_path / "fresh.fdb"
    make_golden(path, monkeypatch)
    users, items = ["a", "é"], [0, 3, ITEMS - 1]
    with fdb.open(path) as db:
        db.forget({"user": users})
        db.forget({"item": items}, tables=["notes"])
        db.forget({"item": items})
        db.compact()
    for name, place, gone in (("pairs", 0, users), ("every", 0, items), ("notes", 0, items)):
        for kind in ("history", "online"):
            expected[name][kind] = [row for row in expected[name][kind] if row[0][place] not in gone]
    reader = TinyReader(path)
    assert reader.tables() == expected
    assert [reader.record(b"b" + key) for key in reader.under(b"b") if len(key) == 4] == [[2, 3], [1, 4]]
    assert len(reader.record(b"d#")) == 2
    assert [commit[1] for commit in reader.commits().values()].count("forget") == 3


@pytest.mark.parametrize("name", [name for name in vars(limits) if name.startswith("NS_")])
def test_the_specification_names_every_namespace(name: str) -> None:
    assert re.search(
        rf"^\| `{getattr(limits, name).decode()}` .*\| `{name}` ", FORMAT_MD.read_text(encoding="utf-8"), re.MULTILINE
    )


def test_the_specification_names_every_bound_on_what_is_stored() -> None:
    text = FORMAT_MD.read_text(encoding="utf-8")
    for name in (
        "KEY_BYTES_MAX",
        "KEYS_PER_BLOCK",
        "ENTITIES_MAX",
        "SEGMENT_ROWS_MAX",
        "CHUNK_BYTES_MAX",
        "REJECTED_ROWS_MAX",
    ):
        assert f"{getattr(limits, name):,}" in text, name
    for value in (limits.TIMESTAMP_MIN_US, limits.TIMESTAMP_MAX_US, limits.ABSENT_US):
        assert str(value) in text


def examples() -> list[tuple[bytes, bytes]]:
    """Keys and values of the examples in FORMAT.md: lines of bytes in hex, after ``key`` and ``value``."""
    found = []
    for block in re.findall(r"^```hex\n(.*?)^```", FORMAT_MD.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        # What follows two spaces explains the bytes.
        lines = [line.split("  ")[0] for line in block.splitlines()]
        key, _, value = " ".join(lines).removeprefix("key ").partition(" value ")
        found.append((bytes.fromhex(key), bytes.fromhex(value)))
    return found


def test_every_example_of_the_specification_is_in_the_golden_file(golden: Path) -> None:
    entries = TinyReader(golden).entries
    shown_of = {key[:1] for key, _ in examples()}
    assert shown_of == {key[:1] for key in entries}
    for key, value in examples():
        assert entries[key] == value, key


if __name__ == "__main__":
    version = sys.argv[1]
    GOLDEN.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        make_golden(GOLDEN / f"{version}.fdb", patch)
    (GOLDEN / f"{version}.fdb-lock").unlink(missing_ok=True)
    lines = json.dumps(expected_of(), ensure_ascii=True).replace("]], [[", "]],\n[[")
    (GOLDEN / f"{version}.expected.json").write_text(lines + "\n")
