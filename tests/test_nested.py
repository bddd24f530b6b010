"""Every dtype through every door: the same values back from every container, by every way, and after reopening."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from strategies import (
    ARROW_TYPES,
    CONTAINERS,
    NESTED,
    POOLS,
    SCALARS,
    YEAR_1_US,
    YEAR_9999_US,
    as_plain,
    container,
    item_and_length,
    no_nan,
    rows_of,
    tiny_limits,
)

import featuredb as fdb
from featuredb import nested
from featuredb.cli import main
from featuredb.columns import Column, Heap
from featuredb.errors import CorruptionError
from featuredb.frames import as_column
from featuredb.frames.arrays import to_arrow_array, to_numpy, to_pylist
from featuredb.frames.parquet import writes_null_vectors
from featuredb.limits import ROW_BYTES_MAX, VALUE_BYTES_MAX, VECTOR_LENGTH_MAX
from featuredb.schema import DTYPES
from featuredb.verify.values import value_faults

pytestmark = pytest.mark.usefixtures("both_histories")

NAN = float("nan")


def scalars(dtype: str) -> st.SearchStrategy[Any]:
    """Any value of a scalar dtype, its corners more often."""
    info = DTYPES[dtype]
    if info.is_integer:
        bounds = np.iinfo(dtype)
        anything: st.SearchStrategy[Any] = st.integers(int(bounds.min), int(bounds.max))
    elif info.is_float:
        anything = st.floats(width=int(dtype[5:]))  # type: ignore[arg-type]
    else:
        anything = {
            "bool": st.booleans(),
            "string": st.text(max_size=6),
            "bytes": st.binary(max_size=6),
            "timestamp": st.integers(YEAR_1_US, YEAR_9999_US),
        }[dtype]
    return st.sampled_from(POOLS[dtype]) | anything


def anything(dtype: str) -> st.SearchStrategy[Any]:
    """Any value of any dtype."""
    if dtype in SCALARS:
        return scalars(dtype)
    item, length = item_and_length(dtype)
    return st.lists(scalars(item), min_size=max(length, 0), max_size=5 if length < 0 else length)


@st.composite
def columns(draw: st.DrawFn) -> dict[str, tuple[str, list[Any]]]:
    """Features of some dtypes, and as many values for each, nulls among them."""
    dtypes = draw(st.lists(st.sampled_from([*SCALARS, *NESTED]), min_size=1, max_size=4))
    rows = draw(st.integers(1, 7))
    return {
        f"f{place}": (dtype, draw(st.lists(st.none() | anything(dtype), min_size=rows, max_size=rows)))
        for place, dtype in enumerate(dtypes)
    }


def assert_same(actual: list[Any], expected: list[Any], what: str) -> None:
    assert len(actual) == len(expected), what
    for row, pair in enumerate(zip(actual, expected, strict=True)):
        assert oracle.same(*pair), f"{what}, row {row}: {pair[0]!r} is not {pair[1]!r}"


def assert_stored(db: fdb.Database, expected: dict[str, list[Any]], stage: str) -> None:
    """History and online values, in every form, of a table ``t`` with the keys 0, 1, ..."""
    names = list(expected)
    references = [f"t:{name}" for name in names]
    rows = len(expected[names[0]])
    left = {"k": np.arange(rows), "event_timestamp": np.full(rows, 100, dtype="M8[us]")}
    training = db.get_historical_features(left, references)
    table, arrays, frame = training.to_arrow(), training.to_numpy(), training.to_pandas()
    table.validate(full=True)
    response = db.get_online_features(references, {"k": list(range(rows))})
    values, online, pandas = response.to_dict(), response.to_arrow(), response.to_pandas()
    reader = db.online_reader(references)
    many = reader.get_many(list(range(rows)))
    singles = [reader.get(key) for key in range(rows)]
    for name, wanted in expected.items():
        missing = [value is None for value in wanted]
        held = np.ma.MaskedArray(many.columns[name], mask=False)
        for what, actual in {
            "to_arrow": list(map(as_plain, table.column(name).to_pylist())),
            "to_numpy": rows_of(arrays[name]),
            "to_dict": list(map(as_plain, values[name])),
            "online to_arrow": list(map(as_plain, online.column(name).to_pylist())),
            "get": [as_plain(single[name]) for single in singles],
            "get_many": [None if null else v for v, null in zip(rows_of(held), missing, strict=True)],
        }.items():
            assert_same(actual, wanted, f"{stage}, {what} of {name}")
        for what, result in (("to_pandas", frame), ("online to_pandas", pandas)):
            actual = [no_nan(as_plain(value)) for value in result[name].tolist()]
            assert_same(actual, list(map(no_nan, wanted)), f"{stage}, {what} of {name}")


@given(given_columns=columns(), kind=st.sampled_from(CONTAINERS), tiny=st.booleans())
def test_values_of_any_dtype_come_back_from_history_and_online_merged_and_reopened(
    given_columns: dict[str, tuple[str, list[Any]]], kind: str, tiny: bool
) -> None:
    expected = {name: values for name, (_, values) in given_columns.items()}
    if kind == "pandas":
        expected = {name: list(map(no_nan, values)) for name, values in expected.items()}
    rows = len(expected["f0"])
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
        if tiny:
            tiny_limits(patch)
        features = [fdb.Feature(name, dtype) for name, (dtype, _) in given_columns.items()]
        db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], features)])
        # An older segment with the rows in another order, so that there is something to merge.
        turned = {name: (dtype, values[::-1]) for name, (dtype, values) in given_columns.items()}
        for event, content in ((1, turned), (2, given_columns)):
            keys = {"k": ("int64", list(range(rows))), "event_timestamp": ("timestamp", [event] * rows)}
            db.ingest("t", container(kind, keys | content))
        assert_stored(db, expected, "as ingested")
        again = db.ingest("t", container(kind, keys | given_columns))
        assert (again.rows_ingested, again.rows_unchanged) == (0, rows)
        db.compact()
        assert db.verify().ok
        assert not db.verify().differences
        copy = Path(db.path).with_name("copy.fdb")
        db.backup(copy)
        with fdb.open(copy, read_only=True) as reopened:
            assert_stored(reopened, expected, "reopened")
            assert reopened.get_feature_table("t").features == tuple(features)


@given(st.lists(st.none() | anything("float32[5]"), min_size=1, max_size=30), st.data())
@settings(max_examples=30)
def test_a_join_of_embeddings_equals_the_oracle(stored: list[Any], data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.integers(0, 3), min_size=len(stored), max_size=len(stored)))
    times = data.draw(st.lists(st.integers(0, 9), min_size=len(stored), max_size=len(stored)))
    asked = data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 12)), min_size=1, max_size=20))
    table = oracle.Table(["v"], max_age=4)
    found = [oracle.Row((key,), at, None, {"v": v}) for key, at, v in zip(keys, times, stored, strict=True)]
    table.ingest(found)
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
        tiny_limits(patch)
        age = timedelta(microseconds=4)
        db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("v", "float32[5]")], age)])
        db.ingest("t", {"k": keys, "event_timestamp": np.array(times, dtype="M8[us]"), "v": stored})
        left = {"k": [key for key, _ in asked], "event_timestamp": np.array([at for _, at in asked], dtype="M8[us]")}
        joined = db.get_historical_features(left, ["t:v"]).to_numpy()["v"]
        matches = [table.join((key,), at) for key, at in asked]
        assert joined.shape == (len(asked), 5)
        assert_same(rows_of(joined), [match and match.values["v"] for match in matches], "v")


# --- one copy -----------------------------------------------------------------------------------------
def embeddings(db: fdb.Database, values: Any, dtype: str = "float32[384]") -> None:
    db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("v", dtype)])])
    db.ingest("t", {"k": np.arange(len(values)), "event_timestamp": np.full(len(values), 1, "M8[us]"), "v": values})


def test_embeddings_come_back_as_one_contiguous_two_dimensional_array(db: fdb.Database) -> None:
    values = np.random.default_rng(3).standard_normal((5000, 384), dtype=np.float32)
    embeddings(db, values)
    order = np.random.default_rng(4).permutation(5000)
    left = {"k": order, "event_timestamp": np.full(5000, 9, dtype="M8[us]")}
    joined = db.get_historical_features(left, ["t:v"]).to_numpy()["v"]
    many = db.online_reader(["t:v"]).get_many(order).columns["v"]
    for found in (joined, many):
        assert type(found) is np.ndarray
        assert (found.shape, found.dtype, found.flags.c_contiguous) == ((5000, 384), np.dtype("f4"), True)
        np.testing.assert_array_equal(found, values[order])
    one = db.online_reader(["t:v"]).get(7)["v"]
    assert isinstance(one, np.ndarray)
    np.testing.assert_array_equal(one, values[7])
    assert db.info()["feature_tables"]["t"]["features"] == {"v": "float32[384]"}


def test_a_vector_column_shares_memory_with_the_array_it_comes_from_and_goes_to() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = as_column(values, DTYPES["float32[3]"], "v").column
    arrow = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 3)
    assert np.shares_memory(column.data, values)
    assert np.shares_memory(to_numpy(column), values)
    assert to_arrow_array(column).flatten().buffers()[1].address == values.ctypes.data
    sliced = as_column(arrow.slice(1, 2), DTYPES["float32[3]"], "v").column
    assert sliced.data.ctypes.data == arrow.values.buffers()[1].address + 12
    assert to_pylist(sliced) == values[1:3].tolist()


@pytest.mark.parametrize("dtype", ["int8[3]", "float32[3]", "float64[5]", "timestamp[2]", "bool[7]"])
def test_small_chunks_anywhere_in_the_file_give_the_same_vectors(
    db: fdb.Database, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_limits(monkeypatch)
    item, length = item_and_length(dtype)
    values = (np.arange(40 * length).reshape(40, length) % 120).astype("M8[us]" if item == "timestamp" else item)
    embeddings(db, values, dtype)
    left = {"k": np.arange(40)[::-1], "event_timestamp": np.full(40, 9, dtype="M8[us]")}
    np.testing.assert_array_equal(db.get_historical_features(left, ["t:v"]).to_numpy()["v"], values[::-1])
    np.testing.assert_array_equal(db.online_reader(["t:v"]).get_many(np.arange(40)).columns["v"], values)
    assert db.verify().ok


def test_wide_rows_are_ingested_and_merged_in_batches_of_bounded_memory(
    db: fdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featuredb.storage.registry.BATCH_BYTES_TARGET", 10 * 384 * 4)
    monkeypatch.setattr("featuredb.online.index.BATCH_BYTES_TARGET", 3 * 16 * 1600)
    values = np.arange(25 * 384, dtype=np.float32).reshape(25, 384)
    embeddings(db, values)
    assert db.info()["feature_tables"]["t"]["segments"] == 3
    db.compact()
    assert db.info()["feature_tables"]["t"]["segments"] == 3
    np.testing.assert_array_equal(db.online_reader(["t:v"]).get_many(np.arange(25)).columns["v"], values)
    assert db.verify().ok


def test_a_training_set_with_lists_and_vectors_is_written_to_parquet(db: fdb.Database, tmp_path: Path) -> None:
    features = [fdb.Feature("v", "float32[2]"), fdb.Feature("tags", "list[string]")]
    db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], features)])
    rows = {"k": [1, 2, 3], "event_timestamp": np.full(3, 1, "M8[us]")}
    db.ingest("t", rows | {"v": [[1, 2], None, [NAN, 4]], "tags": [["a", ""], [], None]})
    left = {"k": [3, 2, 1, 0], "event_timestamp": np.full(4, 1, "M8[us]")}
    db.get_historical_features(left, ["t:v", "t:tags"]).to_parquet(tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.field("v").type == pa.list_(pa.float32(), 2 if writes_null_vectors() else -1)
    assert repr(written.column("v").to_pylist()) == "[[nan, 4.0], None, [1.0, 2.0], None]"
    assert written.column("tags").to_pylist() == [None, [], ["a", ""], None]


# --- what comes in ------------------------------------------------------------------------------------
def arrow_forms(dtype: str, values: list[Any]) -> dict[str, Any]:
    """The values as Arrow arrays of every layout, some with more before and after them."""
    kind = ARROW_TYPES[dtype]
    more = [values[0]] * 3 + values + [None]
    item = kind.value_type
    plain = pa.array(values, kind)
    # Polars 1.0 makes integers of the timestamps in vectors.
    polars = pa.array(values, pa.list_(item)) if dtype.startswith("timestamp[") else plain
    return {
        "plain": plain,
        "slice": pa.array(more, kind).slice(3, len(values)),
        "large slice": pa.array(more, pa.large_list(item)).slice(3, len(values)),
        "list slice": pa.array(more, pa.list_(item)).slice(3, len(values)),
        "chunks": pa.chunked_array([plain.slice(0, 2), plain.slice(2, 0), plain.slice(2)]),
        "items in a dictionary": _dictionary_items(values, item),
        "pandas Arrow": pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([plain]))),
        "Polars": pl.from_arrow(polars),
        "Polars slice": pl.from_arrow(pa.array(more, polars.type)).slice(3, len(values)),
    }


def _dictionary_items(values: list[Any], item: Any) -> Any:
    flat = pa.array([element for value in values for element in value or []], item).dictionary_encode()
    lengths = np.cumsum([0, *(len(value or []) for value in values)])
    offsets = pa.array([None if v is None else int(o) for v, o in zip([*values, []], lengths, strict=True)], pa.int32())
    return pa.ListArray.from_arrays(offsets, flat)


@pytest.mark.parametrize("dtype", [name for name in NESTED if "bool" not in name])
def test_every_arrow_and_polars_layout_gives_the_same(dtype: str) -> None:
    values = [POOLS[dtype][-1], None, POOLS[dtype][1], *POOLS[dtype][:2]]
    for form, given_values in arrow_forms(dtype, values).items():
        converted = as_column(given_values, DTYPES[dtype], "c")
        assert (converted.problem, converted.rejected) == (None, ()), form
        assert_same(list(map(as_plain, to_pylist(converted.column))), values, form)


def test_what_lies_under_an_arrow_null_is_not_looked_at() -> None:
    flat = pa.array([1, 2, 900, None, 5, 6])
    fixed = pa.Array.from_buffers(pa.list_(pa.int64(), 2), 3, [pa.py_buffer(b"\x05")], children=[flat])
    offsets = pa.py_buffer(np.array([0, 2, 4, 6], dtype=np.int32))
    listed = pa.Array.from_buffers(pa.list_(pa.int64()), 3, [pa.py_buffer(b"\x05"), offsets], children=[flat])
    for values, dtype in ((fixed, "int8[2]"), (listed, "list[int8]"), (listed, "int8[2]")):
        converted = as_column(values, DTYPES[dtype], "c")
        assert converted.rejected == ()
        assert to_pylist(converted.column) == [[1, 2], None, [5, 6]]


SEQUENCES: dict[str, Callable[[], Any]] = {
    "lists": lambda: [[1.0, 2.0], None, [3.0, 4.0]],
    "tuples and lists": lambda: [(1, 2), None, [3, 4.0]],
    "arrays": lambda: [np.array([1.0, 2.0]), None, np.array([3, 4])],
    "arrays of one dtype": lambda: [np.array([1, 2], "f4"), None, np.array([3, 4], "f4")],
    "an object array": lambda: np.array([np.array([1.0, 2.0]), None, np.array([3.0, 4.0])], dtype=object),
    "a masked matrix": lambda: np.ma.MaskedArray([[1, 2], [7, 7], [3, 4]], [[0, 0], [1, 1], [0, 0]]),
    "a pandas column": lambda: pd.Series([[1.0, 2.0], np.nan, np.array([3, 4])]),
    "pandas Series": lambda: [pd.Series([1, 2]), None, pd.Series([3.0, 4.0], index=[9, 8])],
    "Polars objects": lambda: pl.Series([(1, 2), None, (3, 4)], dtype=pl.Object),
    "masked arrays": lambda: [np.ma.MaskedArray([1, 2]), None, np.ma.MaskedArray([3, 4])],
}


@pytest.mark.parametrize("dtype", ["float32[2]", "list[float64]", "int8[2]", "list[uint16]"])
@pytest.mark.parametrize("form", SEQUENCES)
def test_rows_may_be_any_sequence(form: str, dtype: str) -> None:
    converted = as_column(SEQUENCES[form](), DTYPES[dtype], "c")
    assert (converted.problem, converted.rejected) == (None, ())
    assert to_pylist(converted.column) == [[1, 2], None, [3, 4]]


def test_a_matrix_that_is_not_contiguous_is_read_as_it_is_seen() -> None:
    values = np.arange(12).reshape(3, 4)
    for matrix in (values.T, values[:, ::-1], values[::2], np.asfortranarray(values)):
        column = as_column(matrix, DTYPES[f"int64[{matrix.shape[1]}]"], "c").column
        assert to_pylist(column) == matrix.tolist()
        assert to_pylist(as_column(matrix, DTYPES["list[int64]"], "c").column) == matrix.tolist()


def test_empty_lists_empty_strings_nan_and_null_are_four_different_things(db: fdb.Database) -> None:
    features = [fdb.Feature("l", "list[string]"), fdb.Feature("s", "string"), fdb.Feature("f", "float64")]
    db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], features)])
    values = {"l": [[], [""], None], "s": ["", "\x00", None], "f": [NAN, 0.0, None]}
    db.ingest("t", pa.table({"k": [0, 1, 2], "event_timestamp": pa.array([1] * 3, pa.timestamp("us"))} | values))
    assert_stored(db, values, "as ingested")
    statuses = db.get_online_features(["t:l", "t:s", "t:f"], {"k": [0, 1, 2, 3]}).statuses
    for name in values:
        assert [status.name for status in statuses[name]] == ["PRESENT", "PRESENT", "NULL_VALUE", "NOT_FOUND"]


# --- what is refused ----------------------------------------------------------------------------------
REJECTED: dict[str, tuple[str, Any, str]] = {
    "a null element": ("float64[2]", [1.0, None], "value [1.0, None]: has a null element"),
    "a null in a list": ("list[string]", ["a", None], "value ['a', None]: has a null element"),
    "another length": ("int8[2]", [1, 2, 3], "value [1, 2, 3] (3 elements): has another number of elements than 2"),
    "no element": ("int8[2]", [], "value [] (0 elements): has another number of elements than 2"),
    "out of range": ("list[int8]", [1, 128], "value 128 (element 1): has an element that is out of the range of int8"),
    "a fraction": ("int8[2]", [1, 2.5], "value 2.5 (element 1): has an element that is not a whole number"),
    "a NaN of integers": ("list[int8]", [NAN], "value nan (element 0): has an element that is NaN"),
    "text": ("float32[2]", [1, "x"], "value 'x' (element 1): has an element that is of type str"),
    "a scalar": ("float32[2]", 3, "value 3: is of type int, but float32[2] is needed; give an array of 2 elements"),
    "a string": ("list[string]", "ab", "value 'ab': is of type str, but list[string] is needed; give a list"),
    "a dict": ("list[int8]", {1: 2}, "value {1: 2}: is of type dict"),
    "a matrix": ("int8[2]", np.zeros((1, 2)), "is an array of other than one dimension"),
    "masked": ("int8[2]", np.ma.MaskedArray([1, 2], [0, 1]), "has a null element"),
    "a surrogate": ("list[string]", ["a", "\ud800"], "(element 1): has an element that is not valid Unicode"),
    "beyond the years": ("timestamp[1]", np.array(["10000-01-01"], "M8[s]"), "is outside the years"),
    "nanoseconds": ("list[timestamp]", np.array([1], "M8[ns]"), "has a part below a microsecond"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_a_row_with_an_element_that_cannot_be_kept_is_rejected_and_the_others_are_not(
    db: fdb.Database, case: str
) -> None:
    dtype, wrong, message = REJECTED[case]
    embeddings(db, [], dtype)
    data = [
        {"k": key, "event_timestamp": "2020-01-01", "v": value}
        for key, value in enumerate([good(dtype), wrong, None, good(dtype)])
    ]
    with pytest.raises(fdb.InputError) as raised:
        db.ingest("t", data)
    assert "column 'v', row 1, value" in str(raised.value)
    assert message in str(raised.value)
    report = db.ingest("t", data, on_error="skip")
    assert (report.rows_ingested, report.rows_rejected, report.rejections[0].row) == (3, 1, 1)


def good(dtype: str) -> Any:
    """A value that the dtype holds."""
    item, length = item_and_length(dtype)
    return np.zeros(length, dtype="M8[us]") if item == "timestamp" and length > 0 else [1] * max(length, 0)


def test_each_bad_row_is_reported_once_and_all_problems_together(db: fdb.Database) -> None:
    embeddings(db, [], "int8[2]")
    values = [[1, None, 900], [900, 901], [None, 900], [1, 2], 5]
    with pytest.raises(fdb.InputError) as raised:
        db.ingest("t", {"k": range(5), "event_timestamp": ["2020-01-01"] * 5, "v": values})
    assert sorted((problem.row, problem.count) for problem in raised.value.problems) == [(0, 1), (1, 2), (4, 1)]


WHOLE: dict[str, tuple[str, Any, str]] = {
    "a matrix of another width": ("float32[3]", np.zeros((2, 4)), "has 4 elements in each row, but float32[3]"),
    "an Arrow list of another size": (
        "float32[3]",
        pa.array([[1.0] * 4] * 2, pa.list_(pa.float32(), 4)),
        "has 4 elements in each row, but float32[3] is needed; give 3",
    ),
    "scalars": ("float32[3]", np.zeros(2), "row 0, value 0.0: is of type float64, but float32[3] is needed"),
    "three dimensions": ("float32[3]", np.zeros((2, 3, 1)), "is a numpy array of 3 dimensions"),
    "text for numbers": ("list[int8]", [["a"], ["b"]], "row 0, value 'a': has an element that is of type str"),
    "Arrow numbers": ("list[int8]", pa.array([1, 2]), "row 0, value 1: is of type int64, but list[int8] is needed"),
    "Arrow text": ("int8[2]", pa.array(["a", "b"]), "row 0, value 'a': is of type str, but int8[2] is needed"),
    "lists of lists": ("list[int8]", [[[1]], [[2]]], "has an element that is of type list"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_column_of_another_kind_is_one_problem(case: str) -> None:
    dtype, values, message = WHOLE[case]
    converted = as_column(values, DTYPES[dtype], "v")
    assert converted.problem is not None
    assert message in str(converted.problem)
    assert len(converted.column) == converted.column.null_count == 2


def test_lists_given_for_a_scalar_are_one_problem() -> None:
    for values in ([[1], [2]], pa.array([[1], [2]]), np.zeros((2, 2))):
        assert as_column(values, DTYPES["int8"], "v").problem is not None


def test_text_files_cannot_hold_lists(db: fdb.Database, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('k,event_timestamp,v\n1,2020-01-01,\n2,2020-01-01,"[1, 2]"\n')
    embeddings(db, [], "list[int8]")
    with pytest.raises(fdb.InputError, match=r"row 1, value '\[1, 2\]': a text file cannot hold list\[int8\]; load it"):
        db.ingest("t", path)


def test_the_command_line_joins_lists_into_parquet_and_refuses_csv(db: fdb.Database, tmp_path: Path) -> None:
    embeddings(db, np.ones((2, 3), dtype=np.float32), "float32[3]")
    left = tmp_path / "left.csv"
    left.write_text("k,event_timestamp\n1,2020-01-01\n")
    refused = CliRunner().invoke(main, ["join", db.path, str(left), str(tmp_path / "o.csv"), "-f", "t:v"])
    assert refused.exit_code == 1
    assert "column 'v': is float32[3], which a CSV file cannot hold; write a .parquet file" in refused.output
    done = CliRunner().invoke(main, ["join", db.path, str(left), str(tmp_path / "o.parquet"), "-f", "t:v"])
    assert done.exit_code == 0, done.output
    assert pq.read_table(tmp_path / "o.parquet").column("v").to_pylist() == [[1.0, 1.0, 1.0]]
    shown = CliRunner().invoke(main, ["get", db.path, "k=1", "-f", "t:v"])
    assert "[1.0, 1.0, 1.0]" in shown.output


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float32[0]", "from 1 to 65,536"),
        ("float32[03]", "from 1 to 65,536"),
        (f"float32[{VECTOR_LENGTH_MAX + 1}]", "from 1 to 65,536"),
        ("float32[-1]", "from 1 to 65,536"),
        ("string[3]", r"use list\[string\]"),
        ("list[list[int8]]", "the elements of a list must be one of"),
        ("list[float32[3]]", "the elements of a list must be one of"),
        ("list[text]", "the elements of a list must be one of"),
        ("list[]", "the elements of a list must be one of"),
        ("text[3]", "unknown dtype"),
        ("float32[3", "unknown dtype"),
    ],
)
def test_a_dtype_that_is_none_is_refused_with_what_is_allowed(dtype: str, message: str) -> None:
    with pytest.raises(fdb.DefinitionError, match=message):
        fdb.Feature("x", dtype)


@pytest.mark.parametrize("dtype", ["list[int64]", "int64[2]"])
def test_a_list_or_vector_cannot_be_a_key(dtype: str) -> None:
    with pytest.raises(fdb.DefinitionError, match="a key cannot be of dtype"):
        fdb.Entity("x", dtype)


def test_the_dtype_of_a_vector_cannot_change(db: fdb.Database) -> None:
    embeddings(db, [], "float32[3]")
    with pytest.raises(fdb.DefinitionError, match=r"float32\[3\]"):
        db.apply([fdb.FeatureTable("t", ["k"], [fdb.Feature("v", "float32[4]")])])


def test_rows_and_lists_have_limits() -> None:
    wide = [fdb.Feature(f"v{place}", f"float64[{VECTOR_LENGTH_MAX}]") for place in range(33)]
    with pytest.raises(fdb.DefinitionError, match=f"at most {ROW_BYTES_MAX}, so split the table"):
        fdb.FeatureTable("t", ["k"], wide)
    long = np.zeros(VALUE_BYTES_MAX + 1, dtype=np.int8)
    converted = as_column([long[:-1], long], DTYPES["list[int8]"], "v")
    assert [(bad.reason, bad.rows.tolist()) for bad in converted.rejected] == [
        (f"takes more than {VALUE_BYTES_MAX} bytes; store where it is instead", [1])
    ]


# --- bytes --------------------------------------------------------------------------------------------
def test_a_list_of_strings_is_its_count_their_lengths_and_their_bytes() -> None:
    column = as_column([["é", "", "ab"], [], None], DTYPES["list[string]"], "v").column
    assert column.heap is not None
    assert column.heap.tolist()[:2] == [struct.pack("<4I", 3, 2, 0, 2) + "éab".encode(), struct.pack("<I", 0)]


def test_a_list_of_numbers_is_their_bytes() -> None:
    column = as_column([[1, -2], [], None], DTYPES["list[int16]"], "v").column
    assert column.heap is not None
    assert column.heap.tolist()[:2] == [struct.pack("<2h", 1, -2), b""]


@pytest.mark.parametrize(
    ("dtype", "raw"),
    [
        ("list[string]", b"\x01\x00"),
        ("list[string]", struct.pack("<I", 2**31)),
        ("list[string]", struct.pack("<2I", 1, 5) + b"abc"),
        ("list[bytes]", struct.pack("<2I", 1, 1) + b"abc"),
        ("list[int32]", b"\x00" * 6),
    ],
)
def test_an_entry_that_is_no_list_is_damage(dtype: str, raw: bytes) -> None:
    column = Column(DTYPES[dtype], np.zeros(1, dtype=np.int32), None, Heap.of([raw]))
    with pytest.raises(CorruptionError, match="does not fit its length"):
        nested.elements(column)
    with pytest.raises(ValueError, match=r"length|multiple"):
        nested.list_decoder(DTYPES[dtype])(raw)


@pytest.mark.parametrize(
    ("dtype", "raw", "fault"),
    [
        ("list[string]", struct.pack("<2I", 1, 1) + b"\xff", "not valid UTF-8"),
        ("list[string]", struct.pack("<2I", 1, 9), "does not fit its length"),
        ("list[bool]", b"\x01\x02", "neither 0 nor 1"),
        ("bool[2]", b"\x01\x02", "neither 0 nor 1"),
        ("timestamp[1]", b"\xff" * 7 + b"\x7f", "outside the years"),
    ],
)
def test_verify_looks_at_the_elements(dtype: str, raw: bytes, fault: str) -> None:
    kind = DTYPES[dtype]
    data = np.zeros(1, dtype=np.int32) if kind.is_list else np.frombuffer(raw, kind.numpy)
    column = Column(kind, data, None, Heap.of([raw]) if kind.is_list else None)
    assert [fault in found for found in value_faults(column)] == [True]
