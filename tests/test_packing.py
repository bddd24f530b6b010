"""Packed columns: what is read is what was written, bit for bit, and no byte outside is touched."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from strategies import tiny_limits
from xxh64 import xxh64

import featuredb as fdb
from featuredb.columns import Column, Heap, concat
from featuredb.errors import CorruptionError
from featuredb.frames.arrays import to_pylist
from featuredb.schema import DTYPES
from featuredb.storage import kernels
from featuredb.storage.env import WriteTxn
from featuredb.storage.manifest import chunk_prefix, read_manifest, segment_key, write_manifest
from featuredb.storage.packing import choose
from featuredb.storage.records import pack, unpack
from featuredb.storage.registry import read_registry
from featuredb.storage.segment import DATA, SegmentCache, SegmentReader, checksum, frozen, words_of
from featuredb.storage.segment_writer import Rows, write_segment

pytestmark = pytest.mark.usefixtures("segments_only")

SCALARS = [name for name, dtype in DTYPES.items() if not dtype.is_variable and not dtype.is_vector]
WORD = (1 << 64) - 1


# --- the kernels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_xxh64_gives_the_values_known_for_it(data: bytes, expected: int) -> None:
    assert checksum(data) == xxh64(data) == expected


@given(data=st.binary(max_size=200), start=st.integers(0, 7))
def test_the_checksum_is_xxh64_wherever_the_bytes_lie(data: bytes, start: int) -> None:
    assert checksum(memoryview(bytes(start) + data)[start:]) == xxh64(data)


@st.composite
def packed_words(draw: st.DrawFn) -> tuple[NDArray[np.uint64], int, int]:
    """Values, the width that they fit and their base."""
    width = draw(st.integers(1, 64))
    offsets = draw(st.lists(st.one_of(st.integers(0, (1 << width) - 1), st.just((1 << width) - 1)), max_size=150))
    base = draw(st.integers(0, WORD))
    return np.array([(base + one) & WORD for one in offsets], dtype=np.uint64), width, base


@given(given=packed_words(), data=st.data())
def test_packed_integers_of_any_width_are_those_of_the_specification(given: Any, data: st.DataObject) -> None:
    values, width, base = given
    valid = data.draw(st.one_of(st.just(np.zeros(0, np.bool_)), npst.arrays(np.bool_, len(values))))
    stored = [(one - base) % (1 << 64) if not len(valid) or valid[i] else 0 for i, one in enumerate(values.tolist())]
    words = np.zeros(words_of(len(values), width), dtype=np.uint64)
    kernels.pack(values, valid, np.uint64(base), width, words)
    assert int.from_bytes(words.tobytes(), "little") == sum(one << width * i for i, one in enumerate(stored))
    found = np.empty(len(values), dtype=np.uint64)
    kernels.unpack(frozen(words), np.uint64(base), width, found)
    assert found.tolist() == [(base + one) & WORD for one in stored]


@pytest.mark.parametrize("width", range(1, 65))
def test_nothing_outside_is_read_or_written(width: int) -> None:
    # Guards beside the words: what is written there or read from there would show.
    rows = 130
    size = words_of(rows, width)
    values = np.full(rows, (1 << width) - 1, dtype=np.uint64)
    guarded = np.full(size + 16, 0x5A5A5A5A5A5A5A5A, dtype=np.uint64)
    guarded[8:-8] = 0
    kernels.pack(values, np.zeros(0, np.bool_), np.uint64(0), width, guarded[8:-8])
    assert np.all(guarded[:8] == guarded[0])
    assert np.all(guarded[-8:] == guarded[0])
    assert guarded[-9] == 0
    found = []
    for guard in (0, WORD):
        guarded[:8] = guarded[-8:] = guard
        out = np.empty(rows, dtype=np.uint64)
        kernels.unpack(guarded[8:-8], np.uint64(0), width, out)
        found.append(out)
    assert np.array_equal(found[0], values)
    assert np.array_equal(found[1], values)


# --- columns -------------------------------------------------------------------------------------


def bits(values: NDArray[Any]) -> list[int]:
    return [int.from_bytes(one.tobytes(), "little") for one in values]


@st.composite
def columns(draw: st.DrawFn) -> Column:
    dtype = DTYPES[draw(st.sampled_from(SCALARS))]
    rows = draw(st.integers(1, 40))
    if dtype.numpy.kind == "f":
        exponent = draw(st.integers(0, 16))
        decimals = st.integers(-(2**53), 2**53).map(lambda one: float(np.dtype(dtype.numpy).type(one / 10**exponent)))
        odd = st.sampled_from([0.0, -0.0, 0.1, float("nan"), float("inf"), float("-inf"), 2.0**-126, 1e15 / 8])
        several = draw(st.sampled_from([decimals, odd, st.one_of(decimals, odd), st.just(-12.25)]))
        data = np.array(draw(st.lists(several, min_size=rows, max_size=rows)), dtype=dtype.numpy)
    elif dtype.numpy.kind == "b":
        data = draw(npst.arrays(np.bool_, rows))
    else:
        info = np.iinfo(dtype.numpy)
        low = draw(st.integers(int(info.min), int(info.max)))
        high = draw(st.one_of(st.integers(low, min(low + 100, int(info.max))), st.integers(low, int(info.max))))
        data = np.array(draw(st.lists(st.integers(low, high), min_size=rows, max_size=rows)), dtype=dtype.numpy)
    valid = draw(st.one_of(st.none(), npst.arrays(np.bool_, rows)))
    return Column(dtype, data, None if valid is None or valid.all() else valid)


def written(txn: WriteTxn, column: Column) -> SegmentReader:
    rows = len(column)
    times = np.arange(rows, dtype=np.int64)
    codes, created, commit = np.zeros(rows, np.int32), np.full(rows, -(1 << 63)), np.ones(rows, np.int64)
    ref = write_segment(txn, 1, 1, Rows(codes, times, created, commit, {1: column}))
    return SegmentCache().reader(txn, 1, ref)


@given(column=columns(), small=st.booleans())
@settings(max_examples=300)
def test_a_column_of_any_scalar_dtype_is_read_as_it_was_written(column: Column, small: bool) -> None:
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db, db._env.writer(5):
        patch.setattr("featuredb.storage.packing.PACKED_SAVING_MIN", -1000)
        if small:
            tiny_limits(patch)

        def work(txn: WriteTxn) -> None:
            reader = written(txn, column)
            found = concat(reader.feature_parts(1, column.dtype))
            assert found.data.dtype == column.data.dtype
            assert (found.valid is None) == (column.valid is None)
            present = slice(None)
            if found.valid is not None and column.valid is not None:
                assert found.valid.tolist() == column.valid.tolist()
                assert reader.info.columns[1].encoding in ("plain", "null") or not np.any(found.data[~found.valid])
                present = column.valid  # type: ignore[assignment]
            assert bits(found.data[present]) == bits(column.data[present])

        db._env.write(work, durable=False)


@given(column=columns())
@settings(max_examples=300)
def test_the_frame_is_as_narrow_as_the_values(column: Column) -> None:
    present = column.data if column.valid is None else column.data[column.valid]
    if not len(present):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featuredb.storage.packing.PACKED_SAVING_MIN", -1000)
        packing = choose(column)
    if column.dtype.numpy.kind != "f":
        values = [int(one) for one in present]
        assert packing is not None
        assert (packing.width, packing.base % (1 << 64)) == (
            (max(values) - min(values)).bit_length(),
            min(values) % (1 << 64),
        )
    else:
        exponents = [exponent for exponent in range(16) if decimals_of(present, exponent) is not None]
        assert (packing is None) == (not exponents)
        if packing is not None:
            integers = decimals_of(present, exponents[0])
            assert integers is not None
            width = (max(integers) - min(integers)).bit_length()
            assert (packing.exponent, packing.base, packing.width) == (exponents[0], min(integers), width)


def decimals_of(values: NDArray[Any], exponent: int) -> list[int] | None:
    """The integers whose quotients by 10**exponent are just these values, None if there are none."""
    integers = []
    for value in values:
        scaled = float(np.rint(np.float64(value) * 10.0**exponent))
        if not abs(scaled) < 2**51:
            return None
        integers.append(int(scaled))
    quotients = np.array([integer / 10.0**exponent for integer in integers]).astype(values.dtype)
    if bits(quotients) != bits(values):
        return None
    return integers


def test_a_null_does_not_widen_the_frame() -> None:
    data = np.full(100, 10**15)
    data[:2] = 0, 10**15 + 1
    packing = choose(Column(DTYPES["int64"], data, np.arange(100) > 0))
    assert packing is not None
    assert (packing.width, packing.base) == (1, 10**15)


@pytest.mark.parametrize("late", [0.001, float("nan"), -0.0, 2.0**52, 1 / 3])
def test_a_value_that_is_no_decimal_is_kept_wherever_it_stands(late: float) -> None:
    # Not in the sample that is tried first.
    values = np.round(np.arange(100_000) * 0.01 + 1, 2)
    values[77_777] = late
    with fdb.open(":memory:") as db, db._env.writer(5):

        def work(txn: WriteTxn) -> tuple[list[int], str]:
            reader = written(txn, Column(DTYPES["float64"], values))
            return bits(concat(reader.feature_parts(1, DTYPES["float64"])).data), reader.info.columns[1].encoding

        found, encoding = db._env.write(work, durable=False)
    assert found == bits(values)
    assert encoding == ("packed" if late == 0.001 else "plain")


@pytest.mark.parametrize("words", [False, True])
def test_what_a_writer_has_read_stays_as_it_was_whatever_it_writes(words: bool) -> None:
    """Entries of a page move with what is written to it, as when a segment is written anew after a tail was."""
    values = np.random.default_rng(1).random(100)
    column = Column(DTYPES["float64"], values)
    if words:
        heap = Heap.of([b"red" * 20, b"green" * 20, b"blue" * 20])
        column = Column(DTYPES["string"], np.arange(100, dtype=np.int32) % 3, None, heap)
    with fdb.open(":memory:") as db, db._env.writer(5):

        def work(txn: WriteTxn) -> tuple[list[object], list[object]]:
            reader = written(txn, column)
            found = concat(reader.feature_parts(1, column.dtype))
            before = to_pylist(found)
            txn.delete_prefix(chunk_prefix(1, 1))
            for number in range(100):
                txn.put(segment_key(2, number), bytes([number]) * 90)
            return before, to_pylist(found)

        before, after = db._env.write(work, durable=False)
    assert before == to_pylist(column)
    assert after == before


def stored(values: NDArray[Any], dtype: str) -> tuple[str, int]:
    """Encoding and bytes of a column of 100,000 rows."""
    with fdb.open(":memory:") as db, db._env.writer(5):
        column = db._env.write(lambda txn: written(txn, Column(DTYPES[dtype], values)).info.columns[1], durable=False)
    return column.encoding, column.nbytes


def test_columns_are_packed_where_that_is_smaller() -> None:
    rng = np.random.default_rng(0)
    rows = 100_000
    assert stored(rng.integers(0, 100, rows), "int64") == ("packed", 8 * (7 * rows // 64 + 2))
    assert stored(np.full(rows, 5), "int64") == ("packed", 0)
    assert stored(rng.random(rows) < 0.5, "bool") == ("packed", 8 * (rows // 64 + 2))
    assert stored(np.round(rng.random(rows) * 10, 2), "float64") == ("packed", 8 * (10 * rows // 64 + 1))
    assert stored(np.round(rng.random(rows) * 10, 2).astype(np.float32), "float32")[0] == "packed"
    assert stored(rng.random(rows), "float64") == ("plain", 8 * rows)
    assert stored(rng.integers(0, 255, rows, dtype=np.uint8), "uint8") == ("plain", rows)


def test_info_tells_encodings_and_bits() -> None:
    rows = 10_000
    with fdb.open(":memory:") as db:
        features = [fdb.Feature("n", "int64"), fdb.Feature("x", "float64"), fdb.Feature("none", "int8")]
        db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], features)])
        assert db.info()["feature_tables"]["t"]["encodings"]["n"] == {"encodings": [], "bits_per_value": None}
        data = {"user": np.arange(rows), "event_timestamp": np.zeros(rows, "M8[us]"), "n": np.arange(rows) % 16}
        db.ingest("t", data | {"x": np.random.default_rng(0).random(rows), "none": [None] * rows})
        found = db.info()["feature_tables"]["t"]["encodings"]
    assert found == {
        "n": {"encodings": ["packed"], "bits_per_value": 4 + 64 / rows},
        "x": {"encodings": ["plain"], "bits_per_value": 64.0},
        "none": {"encodings": ["null"], "bits_per_value": 0.0},
    }


# --- damage --------------------------------------------------------------------------------------


def packed_table(db: fdb.Database) -> None:
    db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], [fdb.Feature("n", "int8")])])
    times = np.arange(100).astype("M8[us]")
    db.ingest("t", {"user": np.zeros(100, int), "event_timestamp": times, "n": np.arange(100) % 16 + 112})
    assert db.info()["feature_tables"]["t"]["encodings"]["n"]["encodings"] == ["packed"]


def with_words(db: fdb.Database, change: Callable[[NDArray[np.uint64]], NDArray[np.uint64]]) -> None:
    """Change the words of the only chunk of `n`, all checksums right."""

    def work(txn: WriteTxn) -> None:
        table = read_registry(txn).table("t").id
        key = chunk_prefix(table, 1) + struct.pack(">IIB", 1, 0, DATA)
        words = change(np.frombuffer(txn.get(key) or b"", np.uint64).copy())
        txn.put(key, words.tobytes())
        zone, columns = unpack(segment_key(table, 1), txn.get(segment_key(table, 1)) or b"", "descriptor")
        next(column for column in columns if column[0] == 1)[-1] = [[0, DATA, words.nbytes, xxh64(words.tobytes())]]
        txn.put(segment_key(table, 1), descriptor := pack(segment_key(table, 1), [zone, columns]))
        manifest = read_manifest(txn, table)
        write_manifest(txn, manifest.with_segments((replace(manifest.segments[0], crc=zlib.crc32(descriptor)),)))

    with db._env.writer(5):
        db._env.write(work, durable=False)


def set_bit(words: NDArray[np.uint64], bit: int) -> NDArray[np.uint64]:
    words[bit >> 6] |= np.uint64(1 << (bit & 63))
    return words


@pytest.mark.parametrize(
    ("change", "what"),
    [
        # 100 values of 4 bits: 400 bits in 7 words, and one more.
        (lambda words: set_bit(words, 400), "bits behind its last packed value are set"),
        (lambda words: set_bit(words, 447), "bits behind its last packed value are set"),
        (lambda words: set_bit(words, 448), "bits behind its last packed value are set"),
        (lambda words: words[:-1], "a chunk has 7 values instead of 8"),
        (lambda words: np.append(words, words[-1:]), "a chunk has 9 values instead of 8"),
    ],
)
def test_verify_reports_what_is_wrong_with_packed_values_under_right_checksums(change: Any, what: str) -> None:
    with fdb.open(":memory:") as db:
        packed_table(db)
        with_words(db, lambda words: words)
        assert db.verify().ok
        with_words(db, change)
        problem = next(problem for problem in db.verify().problems if problem.column == "n")
        assert what in problem.what


def test_a_chunk_that_is_too_short_is_refused_when_it_is_read() -> None:
    with fdb.open(":memory:") as db:
        packed_table(db)
        with_words(db, lambda words: words[:-1])
        left = {"user": [0], "event_timestamp": [np.datetime64(99, "us")]}
        with pytest.raises(CorruptionError, match="a chunk has 7 values instead of 8"):
            db.get_historical_features(left, ["t:n"]).to_numpy()


def test_a_signalling_nan_is_stored_as_it_is_without_a_warning(db: fdb.Database) -> None:
    db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("x", "float32")])])
    values = np.array([0x7F800001, 0x3FC00000], dtype="u4").view("f4")
    times = ["2024-01-01", "2024-01-01"]
    db.ingest("t", {"k": [1, 2], "event_timestamp": times, "x": values})
    joined = db.get_historical_features({"k": [1, 2], "event_timestamp": times}, ["t:x"]).to_numpy()["x"]
    assert joined.view("u4").tolist() == values.view("u4").tolist()


def test_what_a_write_transaction_has_read_stays_when_it_writes(tmp_path: Any) -> None:
    """Small chunks share pages, and move in those that the transaction has written to."""
    rows = 40
    text = Column(
        DTYPES["string"], np.arange(rows, dtype=np.int32), None, Heap.of([b"%d" % row * 9 for row in range(rows)])
    )
    event = np.arange(rows, dtype=np.int64)
    given = Rows(np.zeros(rows, dtype=np.int32), event, event, event, {1: text})

    def work(txn: WriteTxn) -> None:
        refs = [write_segment(txn, 1, number, given) for number in (1, 3)]
        heap = SegmentCache().reader(txn, 1, refs[1]).dictionary(1)
        before = heap.data.tobytes()
        # Before it and behind it.
        for number in (2, 4):
            write_segment(txn, 1, number, given)
            assert heap.data.tobytes() == before

    with fdb.open(tmp_path / "x.fdb") as db, db._env.writer(1):
        db._env.write(work)
