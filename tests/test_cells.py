"""Columns read where they lie, by address: the same values as decoding whole chunks gives, of every encoding."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from strategies import tiny_limits
from test_packing import bits, columns, written

import featuredb as fdb
from featuredb.columns import Column, Heap, vectors
from featuredb.errors import CorruptionError
from featuredb.limits import ABSENT_US, NEVER_US
from featuredb.offline import kernels
from featuredb.offline.gather import Gatherer
from featuredb.offline.kernels import searching
from featuredb.offline.kernels.words import unpacked
from featuredb.offline.search import Found
from featuredb.schema import DTYPES
from featuredb.storage import kernels as storage_kernels
from featuredb.storage.env import WriteTxn
from featuredb.storage.manifest import chunk_prefix
from featuredb.storage.registry import read_registry
from featuredb.storage.segment import SegmentReader, frozen, words_of

HOUR_US = 3_600_000_000


@pytest.mark.parametrize("width", range(1, 65))
def test_integers_of_any_width_are_read_at_any_position(width: int) -> None:
    values = np.random.default_rng(width).integers(0, (1 << width) - 1, 300, dtype=np.uint64, endpoint=True)
    words = np.zeros(words_of(300, width), dtype=np.uint64)
    storage_kernels.pack(frozen(values), np.zeros(0, np.bool_), np.uint64(0), width, words)
    addresses = np.array([words.__array_interface__["data"][0]], dtype=np.uint64)
    mask = -1 if width == 64 else (1 << width) - 1
    for align in (-1, -8) if width in (8, 16, 32, 64) else (-1,):
        found = [unpacked(addresses, 0, 62, width, mask, align, place) % (1 << 64) for place in range(300)]
        assert found == values.tolist()


def gathered(reader: SegmentReader, positions: NDArray[np.int32], column: Column, nan: bool = False) -> Column:
    """The column at positions, -1 for nothing, by address."""
    rows = len(positions)
    no_times = np.zeros(0, dtype=np.int64)
    found = Found([reader], np.arange(rows), np.zeros(rows, dtype=np.int32), positions, no_times, no_times)
    return Gatherer(found).features([(1, column.dtype)], nan=nan)[0]


def assert_gathered(column: Column, positions: NDArray[np.int32], found: Column) -> None:
    valid = np.ones(len(column), np.bool_) if column.valid is None else column.valid
    expected = (positions >= 0) & valid[positions]
    assert (np.ones(len(positions), np.bool_) if found.valid is None else found.valid).tolist() == expected.tolist()
    assert found.data.dtype == column.dtype.numpy
    if column.heap is None:
        assert bits(found.data[expected]) == bits(column.data[positions[expected]])
        assert not any(bits(found.data[~expected]))
        return
    assert found.heap is not None
    entries, wanted = found.heap.tolist(), column.heap.tolist()
    assert [entries[place] for place in found.data[expected]] == [
        wanted[place] for place in column.data[positions[expected]]
    ]


@given(column=columns(), small=st.booleans(), data=st.data())
@settings(max_examples=300)
def test_scalars_gathered_by_address_are_those_that_were_written(
    column: Column, small: bool, data: st.DataObject
) -> None:
    positions = data.draw(
        st.lists(st.integers(-1, len(column) - 1), max_size=60).map(lambda all_: np.array(all_, "i4"))
    )
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db, db._env.writer(5):
        patch.setattr("featuredb.storage.packing.PACKED_SAVING_MIN", data.draw(st.sampled_from([-1000, 2])))
        if small:
            tiny_limits(patch)

        def work(txn: WriteTxn) -> None:
            assert_gathered(column, positions, gathered(written(txn, column), positions, column))

        db._env.write(work, durable=False)


@pytest.mark.parametrize("kind", ["dictionary", "heap", "one entry", "vectors"])
@pytest.mark.parametrize("nulls", [False, True])
def test_other_columns_gathered_by_address_are_those_that_were_written(kind: str, nulls: bool) -> None:
    rng = np.random.default_rng(7)
    rows = 500
    valid = rng.random(rows) < 0.8 if nulls else None
    if kind == "vectors":
        dtype = DTYPES["int16[3]"]
        column = Column(dtype, vectors(dtype, rng.integers(-9, 9, 3 * rows)), None)
    else:
        entries = {"dictionary": 40, "heap": rows, "one entry": 1}[kind]
        heap = Heap.of([b"x" * (place % 7) + str(place).encode() for place in range(entries)])
        places = rng.permutation(rows) % entries
        column = Column(DTYPES["string"], places.astype(np.int32), None, heap)
    if valid is not None:
        column = Column(column.dtype, np.where(valid, column.data, np.zeros(1, column.data.dtype)), valid, column.heap)
    positions = np.append(rng.integers(0, rows, 800), [-1, -1]).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db, db._env.writer(5):
        patch.setattr("featuredb.storage.encode.CHUNK_ROWS_MAX", 64)

        def work(txn: WriteTxn) -> None:
            reader = written(txn, column)
            encoding = {"one entry": "dictionary", "vectors": "plain"}.get(kind, kind)
            assert reader.info.columns[1].encoding == encoding
            assert_gathered(column, positions, gathered(reader, positions, column))

        db._env.write(work, durable=False)


@pytest.mark.parametrize("data", [[1.25, 2.5, 7.0], [1 / 3, 2.5, 7.0]], ids=["packed", "plain"])
def test_nan_stands_for_null_where_that_is_asked_for(data: list[float]) -> None:
    column = Column(DTYPES["float64"], np.array(data), np.array([True, False, True]))
    positions = np.array([0, 1, -1, 2], dtype=np.int32)
    with fdb.open(":memory:") as db, db._env.writer(5):

        def work(txn: WriteTxn) -> None:
            found = gathered(written(txn, column), positions, column, nan=True)
            assert found.filled
            assert np.array_equal(found.data, [data[0], np.nan, np.nan, data[2]], equal_nan=True)

        db._env.write(work, durable=False)


def big_table(db: fdb.Database, rows: int = 3000) -> dict[str, Any]:
    features = [fdb.Feature("x", "float64"), fdb.Feature("n", "int64"), fdb.Feature("s", "string")]
    db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], features)])
    rng = np.random.default_rng(3)
    data = {
        "k": np.sort(rng.integers(0, 50, rows)),
        "event_timestamp": (np.arange(rows) * HOUR_US).view("M8[us]"),
        "x": rng.random(rows),
        "n": rng.integers(0, 9, rows),
        "s": rng.choice(["a", "b"], rows).tolist(),
    }
    db.ingest("t", data)
    return data


def test_only_chunks_that_are_touched_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.storage.encode.CHUNK_ROWS_MAX", 256)
    with fdb.open(":memory:") as db:
        data = big_table(db)

        def damage(txn: WriteTxn) -> None:
            key = (
                chunk_prefix(read_registry(txn).tables["t"].id, 1)
                + (1).to_bytes(4, "big")
                + (5).to_bytes(4, "big")
                + b"\x00"
            )
            raw = txn.get(key)
            assert raw is not None
            txn.put(key, bytes(raw[:-1]) + bytes([raw[-1] ^ 1]))

        with db._env.writer(5):
            db._env.write(damage, durable=False)
        untouched, touched = data["k"][0], data["k"][5 * 256 + 3]
        last = data["event_timestamp"][-1:]
        first = db.get_historical_features({"k": [untouched], "event_timestamp": last}, ["t:x", "t:n"])
        assert first.to_numpy()["x"].tolist() == [data["x"][data["k"] == untouched][-1]]
        other = db.get_historical_features(
            {"k": [touched], "event_timestamp": [data["event_timestamp"][5 * 256 + 3]]}, ["t:x"]
        )
        with pytest.raises(CorruptionError, match="checksum does not match"):
            other.to_numpy()


def test_a_chunk_is_where_it_is_now_after_each_commit() -> None:
    """Small chunks move when others are written; what was known of their place must not outlive the commit."""
    with fdb.open(":memory:") as db:
        db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("n", "int64")])])
        left = {"k": list(range(40)), "event_timestamp": [np.datetime64(10**15, "us")] * 40}
        for commit in range(1, 60):
            data = {"k": list(range(commit % 41)), "event_timestamp": [np.datetime64(commit, "us")] * (commit % 41)}
            db.ingest("t", {**data, "n": [commit * 1000 + key for key in data["k"]]})
            found = [db.get_historical_features(left, ["t:n"]).to_numpy()["n"].tolist() for _ in range(2)]
            newest = [max((c for c in range(1, commit + 1) if key < c % 41), default=None) for key in range(40)]
            assert found[0] == found[1] == [None if c is None else c * 1000 + key for key, c in enumerate(newest)]


def test_a_slice_that_goes_over_many_chunks_is_searched_whole() -> None:
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
        patch.setattr("featuredb.storage.encode.CHUNK_ROWS_MAX", 8)
        db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("n", "int64")])])
        rows = 100
        db.ingest(
            "t", {"k": [7] * rows, "event_timestamp": (np.arange(rows) * 10).view("M8[us]"), "n": np.arange(rows)}
        )
        asked = np.arange(0, 10 * rows + 20, 3)
        found = db.get_historical_features({"k": [7] * len(asked), "event_timestamp": asked.view("M8[us]")}, ["t:n"])
        assert found.to_numpy()["n"].tolist() == np.minimum(asked // 10, rows - 1).tolist()


def find_slices(
    codes: list[int],
    times: list[int],
    best: list[int],
    zone: list[int],
    columns_of: dict[str, list[int]],
) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The queries that a segment of these codes and starts may answer, with their slices, and the chunks marked."""
    arrays = [np.array(values, dtype=np.int32) for values in columns_of.values()]
    addresses = np.array([array.__array_interface__["data"][0] for array in arrays], dtype=np.uint64)
    plain = [-1, 62, 32, (1 << 32) - 1, 0, -8]
    cells = np.array([[0, *plain], [1, *plain], [0, -1, 3, 0, 0, 0, -1]], dtype=np.int64)
    queries, slices = np.empty(len(codes), dtype=np.int32), np.empty((len(codes), 2), dtype=np.int32)
    marks = np.zeros(6, dtype=np.bool_)
    count = kernels.find_slices(
        frozen(np.array(codes, dtype=np.int32)),
        frozen(np.array(times)),
        10,
        np.array(best, dtype=np.int64),
        frozen(cells),
        frozen(addresses),
        frozen(np.array(zone)),
        queries,
        slices,
        marks,
    )
    found = zip(queries[:count].tolist(), slices[:count, 0].tolist(), slices[:count, 1].tolist(), strict=True)
    return list(found), np.flatnonzero(marks).tolist()


def test_slices_are_those_of_the_codes_and_every_chunk_of_them_is_marked() -> None:
    columns_of = {"codes": [2, 3, 7, 9], "starts": [0, 7, 17, 40, 44]}
    codes = [0, 3, 3, 4, 9, 12]
    found, marked = find_slices(codes, [50] * 6, [], [44, 4, 45, 60], columns_of)
    assert found == [(1, 7, 17), (2, 7, 17), (4, 40, 44)]
    assert marked == [0, 1, 2, 5]
    # A file that says otherwise is not read beyond its rows.
    found, _ = find_slices(codes, [50] * 6, [], [9, 4, 45, 60], columns_of)
    assert found == [(1, 7, 9), (2, 7, 9)]


def test_queries_that_no_row_of_a_segment_can_answer_are_left_out_and_mark_nothing() -> None:
    """Its events are from 100 to 200, and a row may be 10 older than the query."""
    columns_of = {"codes": [3], "starts": [0, 8]}
    times = [99, 100, 210, 211, 150, 150]
    best = [*([ABSENT_US] * 4), 200, 201]
    zone = [8, 1, 100, 200]
    for before, answered in ((best, [1, 2, 4]), ([], [1, 2, 4, 5])):
        found, marked = find_slices([3] * 6, times, before, zone, columns_of)
        assert found == [(query, 0, 8) for query in answered]
        assert marked == [0]
    assert find_slices([3], [99], [], zone, columns_of) == ([], [])


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_rows_are_split_by_segment_in_their_order(rows: int) -> None:
    rng = np.random.default_rng(rows)
    segments, positions = rng.integers(-1, 5, rows).astype(np.int32), rng.integers(0, 99, rows).astype(np.int32)
    numbers = rng.permutation(rows)
    stops, split, split_numbers = np.zeros(6, dtype=np.int64), np.empty_like(positions), np.empty_like(numbers)
    kernels.split_by_segment(frozen(segments), frozen(positions), frozen(numbers), stops, split, split_numbers)
    own = np.maximum(segments, 0)
    order = np.argsort(own, kind="stable")
    assert stops.tolist() == np.cumsum(np.bincount(own, minlength=6)).tolist()
    assert split.tolist() == positions[order].tolist()
    assert split_numbers.tolist() == numbers[order].tolist()


def test_the_absent_created_timestamp_is_that_of_the_limits() -> None:
    assert (searching.ABSENT, searching.NEVER) == (ABSENT_US, NEVER_US)
