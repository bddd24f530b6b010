"""Fast paths of loading: rows that are in order already, values taken where they lie, keys numbered by parts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings

import featuredb as fdb
from featuredb import threads
from featuredb.columns import Column, Heap
from featuredb.frames import as_column
from featuredb.limits import ABSENT_US
from featuredb.offline.dictionary import number_keys
from featuredb.offline.rows import sort_rows, total_order
from featuredb.offline.search import make_query
from featuredb.schema import DTYPES
from featuredb.storage.crc import CRC_BYTES
from featuredb.storage.keys import encode_keys
from featuredb.storage.manifest import chunk_prefix, segment_key
from featuredb.storage.segment_writer import Rows, is_uniform, uniform, write_segment

pytestmark = pytest.mark.usefixtures("segments_only")

COMMIT = 7


@st.composite
def unsorted(draw: st.DrawFn) -> Rows:
    """Rows with ties and runs of all lengths, in order, nearly so, or not at all; codes close together or far apart."""
    count = draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(0, draw(st.sampled_from([1, 3, 50])), count).astype(np.int32)
    codes *= draw(st.sampled_from([1, 100_000]))
    event = rng.integers(0, draw(st.sampled_from([1, 20, 10**6])), count)
    created = uniform(ABSENT_US, count)
    if draw(st.booleans()):
        created = rng.choice([ABSENT_US, 1, 2], count)
    order = draw(st.sampled_from(["none", "time", "late", "all"]))
    if order in ("time", "late"):
        event = np.sort(event)
    if order == "late":
        event[rng.integers(0, count, 1 + count // 50)] -= 5
    if order == "all":
        places = np.lexsort((created, event, codes))
        codes, event, created = codes[places], event[places], np.array(created)[places]
    valid = rng.random(count) < 0.9
    entries = Heap.of([b"a", b"", b"b", b"a", b"c"])
    columns = {
        1: Column(DTYPES["int64"], np.where(valid, np.arange(count), 0), valid),
        2: Column(DTYPES["string"], rng.integers(0, 5, count, dtype=np.int32), None, entries),
        3: Column(DTYPES["float32[3]"], rng.random((count, 3), dtype=np.float32).view("V12").reshape(-1)),
    }
    return Rows(codes, event, created, uniform(COMMIT, count), columns)


def in_order(rows: Rows) -> list[int]:
    """Places in the total order; of equal rows the last."""
    keys = list(zip(rows.codes.tolist(), rows.event.tolist(), rows.created.tolist(), strict=True))
    last = {key: place for place, key in enumerate(keys)}
    return [last[key] for key in sorted(last)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_queries_are_sorted_alike_by_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unknown keys last, those of one key as they came: enough rows that they are counted."""
    monkeypatch.setattr("featuredb.threads.ROWS_PER_THREAD_MIN", 100)
    rng = np.random.default_rng(1)
    for codes_max in (1, 40, 9000):
        codes, times = rng.integers(-1, codes_max, 5000).astype(np.int32), rng.integers(0, 99, 5000)
        query = make_query(codes, times, threads=threads)
        assert query.sort == "rows by counting sort"
        expected = np.argsort(codes.view(np.uint32), kind="stable")
        known = int(np.count_nonzero(codes >= 0))
        assert np.array_equal(query.rows[:known], expected[:known])
        assert sorted(query.rows[known:]) == sorted(expected[known:])
        assert np.array_equal(query.codes, codes[expected[:known]])
        assert np.array_equal(query.times, times[expected[:known]])


@given(rows=unsorted(), threaded=st.booleans())
@settings(max_examples=300)
def test_rows_are_sorted_as_python_sorts_them(rows: Rows, threaded: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if threaded:
            patch.setattr("featuredb.threads.ROWS_PER_THREAD_MIN", 2)
        found = sort_rows(rows)
        order, replaced = total_order(rows.codes, rows.event, rows.created)
    expected = in_order(rows)
    places = np.arange(len(found)) if found.places is None else found.places
    assert places.tolist() == order[~replaced].tolist() == expected
    assert found.codes.tolist() == rows.codes[expected].tolist()
    assert found.event.tolist() == rows.event[expected].tolist()
    assert found.created.tolist() == rows.created[expected].tolist()
    assert found.commit.tolist() == [COMMIT] * len(expected)


def test_rows_in_order_are_left_where_they_are() -> None:
    rows = Rows(np.array([0, 0, 1], np.int32), np.array([1, 2, 1]), uniform(ABSENT_US, 3), uniform(1, 3), {})
    assert sort_rows(rows) is rows


@given(rows=unsorted())
@settings(max_examples=100)
def test_a_segment_has_the_same_bytes_however_its_rows_came(rows: Rows) -> None:
    """Values taken from where they lay, by several threads, against rows put in order first."""
    taken, ordered = sort_rows(rows), sort_rows(rows).gathered()
    assert ordered.places is None
    with fdb.open(":memory:") as db, db._env.writer(5), pytest.MonkeyPatch.context() as patch:
        patch.setattr("featuredb.storage.encode.CHUNK_ROWS_MAX", 32)
        patch.setattr("featuredb.storage.encode.CHUNK_BYTES_TARGET", 256)

        def work(txn: Any) -> list[dict[bytes, bytes]]:
            write_segment(txn, 1, 1, ordered)
            patch.setattr("featuredb.threads.ROWS_PER_THREAD_MIN", 2)
            write_segment(txn, 1, 2, taken)
            return [
                {bytes(key)[13:]: bytes(value) for key, value in txn.scan(chunk_prefix(1, number))}
                | {b"descriptor": bytes(txn.get(segment_key(1, number)) or b"")[CRC_BYTES:]}
                for number in (1, 2)
            ]

        one, two = db._env.write(work, durable=False)
        assert one == two


@given(rows=unsorted(), data=st.data())
def test_rows_in_place_are_those_gathered(rows: Rows, data: st.DataObject) -> None:
    found = sort_rows(rows)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found))))
    some, same = found.where(mask).gathered(), found.gathered().take(mask)
    for name in ("codes", "event", "created", "commit"):
        assert getattr(some, name).tolist() == getattr(same, name).tolist()
    assert is_uniform(some.commit) or not mask.any()
    for number, column in some.columns.items():
        assert column.data.tolist() == same.columns[number].data.tolist()


# --- keys ----------------------------------------------------------------------------------------

KEY_PARTS = {
    "int8": st.integers(-3, 3),
    "int64": st.sampled_from([0, 1, -1, 2**62, -(2**62)]),
    "string": st.sampled_from(["", "a", "a\x00", "b", "é"]),
    "bool": st.booleans(),
    "timestamp": st.integers(0, 4).map(lambda one: np.datetime64(one, "us")),
}


@given(dtypes=st.lists(st.sampled_from(list(KEY_PARTS)), min_size=1, max_size=3), data=st.data())
@settings(max_examples=200)
def test_keys_are_numbered_in_order_of_appearance(dtypes: list[str], data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.tuples(*map(KEY_PARTS.__getitem__, dtypes)), min_size=1, max_size=60))
    parts = zip(dtypes, zip(*keys, strict=True), strict=True)
    columns = [as_column(list(values), DTYPES[dtype], dtype).column for dtype, values in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featuredb.offline.dictionary._DISTINCT_MIN", 1)
        if data.draw(st.booleans(), label="threaded"):
            patch.setattr("featuredb.threads.ROWS_PER_THREAD_MIN", 2)
        numbers, firsts = number_keys(columns)
    distinct = list(dict.fromkeys(keys))
    assert numbers.tolist() == list(map(distinct.index, keys))
    assert firsts.tolist() == list(map(keys.index, distinct))
    encoded = encode_keys(columns).tolist()
    assert len(set(encoded)) == len(distinct)


# --- threads -------------------------------------------------------------------------------------


def test_results_come_in_order_and_an_error_ends_them() -> None:
    assert list(threads.in_order(lambda n=n: n * n for n in range(100))) == [n * n for n in range(100)]  # type: ignore[misc]

    def fail(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    results = threads.in_order(lambda n=n: fail(n) for n in range(100))  # type: ignore[misc]
    assert list(islice(results, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)


# --- long segments are staged --------------------------------------------------------------------


def big(path: Path, patch: pytest.MonkeyPatch) -> tuple[fdb.Database, dict[str, Any]]:
    """A database with a row, and data that is staged in many transactions before its commit."""
    db = fdb.open(path)
    db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], [fdb.Feature("x", "float64")])])
    db.ingest("t", {"user": [1], "event_timestamp": np.array([-1], "M8[us]"), "x": [0.5]})
    patch.setattr("featuredb.offline.ingest.INGEST_BATCH_ROWS", 100)
    patch.setattr("featuredb.offline.ingest.STAGE_BYTES", 1000)
    patch.setattr("featuredb.storage.encode.CHUNK_ROWS_MAX", 128)
    rows = 2000
    values = np.random.default_rng(0).random(rows)
    return db, {"user": np.arange(rows) % 7, "event_timestamp": np.arange(rows).astype("M8[us]"), "x": values}


def test_a_call_that_dies_while_its_segment_is_staged_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, data = big(tmp_path / "x.fdb", monkeypatch)
    before = db.info()["feature_tables"]["t"], list(db.log())
    writes, write = 0, type(db._env).write

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes >= 8:
            raise KeyboardInterrupt
        return write(*args, **options)

    monkeypatch.setattr(type(db._env), "write", dying)
    with pytest.raises(KeyboardInterrupt):
        db.ingest("t", data)
    monkeypatch.setattr(type(db._env), "write", write)
    found = db.info()["feature_tables"]["t"], list(db.log())
    # Keys may have been added; they have no rows.
    keys = {"entity_keys_in_key_space": 7}
    assert (found[0] | keys, found[1]) == (before[0] | keys, before[1])
    assert db.verify().ok
    with db._env.read() as txn:
        assert any(True for _ in txn.scan(b"g"))
    assert db.ingest("t", data).rows_ingested == 2000
    with db._env.read() as txn:
        assert not any(True for _ in txn.scan(b"g"))
    assert db.info()["feature_tables"]["t"]["rows"] == 2001
    assert db.verify().ok
    db.close()


def test_a_reader_sees_nothing_of_a_segment_that_is_being_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, data = big(tmp_path / "x.fdb", monkeypatch)
    seen, write = [], type(db._env).write

    def watching(*args: Any, **options: Any) -> Any:
        result = write(*args, **options)
        seen.append(db.info()["feature_tables"]["t"]["rows"])
        return result

    monkeypatch.setattr(type(db._env), "write", watching)
    assert db.ingest("t", data).committed
    assert len(seen) > 10
    assert seen == [1] * (len(seen) - 1) + [2001]
    db.close()


def test_a_segment_tells_nothing_of_rows_that_it_does_not_hold() -> None:
    """Neither the value of an unchanged row nor that of a repeated one: they may be forgotten where they are stored."""
    with fdb.open(":memory:") as db:
        features = [fdb.Feature("name", "string"), fdb.Feature("n", "int64"), fdb.Feature("x", "float64")]
        db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], features, online=False)])
        count = 300
        rows = {
            "user": np.arange(count),
            "event_timestamp": np.zeros(count, "M8[us]"),
            "name": ["secret", *("same" for _ in range(count - 1))],
            "n": np.where(np.arange(count) == 0, -(10**12) - 7, np.arange(count)),
            "x": np.where(np.arange(count) == 0, -54321.75, 0.5),
        }
        db.ingest("t", {name: values[:1] for name, values in rows.items()})
        assert db.ingest("t", rows).rows_unchanged == 1
        with db._env.read() as txn:
            stored = {bytes(key): bytes(value) for key, value in txn.scan(b"")}
    second = [value for key, value in stored.items() if key[:1] in b"fh" and key[12] == 2]
    first = [value for key, value in stored.items() if key[:1] in b"fh" and key[12] == 1]
    for value in (b"secret", msgpack.packb(-(10**12) - 7), msgpack.packb(-5432175)):
        assert any(value in raw for raw in first)
        assert not any(value in raw for raw in second)
