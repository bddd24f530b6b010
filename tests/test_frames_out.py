"""Tables out: every dtype to numpy, Python, pandas and Arrow; the caller's frame; Parquet."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featuredb.columns import Column, Heap, null_column
from featuredb.errors import FileError, InputError, MissingExtraError
from featuredb.frames import arrays
from featuredb.frames.write import (
    EntityFrame,
    ParquetWriter,
    arrow_type,
    to_arrow_array,
    to_numpy,
    to_pandas_array,
    to_pylist,
)
from featuredb.limits import ABSENT_US, TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from featuredb.schema import DTYPES, FLOAT_NAMES, INTEGER_NAMES, SCALAR_NAMES

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STRINGS = ["", "é", "x\x00", "x", "日本"]
PANDAS_NULLABLE = {name: name.replace("i", "I", 1).replace("u", "U", 1) for name in INTEGER_NAMES}


def extremes(name: str) -> list[object]:
    """Five values, the extremes of the dtype among them."""
    if name == "bool":
        return [True, False, False, True, True]
    if name == "string":
        return list(STRINGS)
    if name == "bytes":
        return [b"", b"\xff\x00", b"\x00", b"a", b"a\x00"]
    if name == "timestamp":
        first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        return [first, last, EPOCH, EPOCH.replace(microsecond=1), datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC)]
    if name in FLOAT_NAMES:
        info = np.finfo(name)
        return [float(info.max), float(info.min), float("inf"), float(info.tiny), -0.0]
    info = np.iinfo(name)
    return [int(info.max), int(info.min), 0, 1, int(info.max) - 1]


def column_of(name: str, values: list[object]) -> Column:
    """A column of Python values, None for null; strings in a heap of its own order."""
    dtype = DTYPES[name]
    valid = np.array([value is not None for value in values], dtype=np.bool_)
    kept = [value for value in values if value is not None]
    data = np.zeros(len(values), dtype=dtype.numpy)
    heap = None
    if dtype.is_variable:
        raw = [value.encode() if isinstance(value, str) else value for value in kept]
        distinct = sorted(set(raw))
        data[valid] = [distinct.index(value) for value in raw]
        heap = Heap.of(distinct)
    elif name == "timestamp":
        data[valid] = [round((value - EPOCH) // (EPOCH.resolution)) for value in kept]
    else:
        data[valid] = kept
    return Column(dtype, data, None if valid.all() else valid, heap)


def shapes(name: str) -> dict[str, list[object]]:
    values = extremes(name)
    return {"full": values, "some": [values[0], None, *values[1:], None], "nulls": [None, None], "empty": []}


CASES = [(name, shape) for name in SCALAR_NAMES for shape in ("full", "some", "nulls", "empty")]
each_case = pytest.mark.parametrize(("name", "shape"), CASES)


def as_utc(value: np.datetime64) -> datetime:
    return value.item().replace(tzinfo=UTC)


# --- one column -------------------------------------------------------------------------------
@each_case
def test_python_values_come_back_as_they_were(name: str, shape: str) -> None:
    values = shapes(name)[shape]
    out = to_pylist(column_of(name, values))
    assert out == values
    assert list(map(type, out)) == list(map(type, values))
    assert all(value.tzinfo is UTC for value in out if isinstance(value, datetime))


@each_case
def test_numpy_is_plain_without_nulls_and_masked_with(name: str, shape: str) -> None:
    values = shapes(name)[shape]
    out = to_numpy(column_of(name, values))
    expected = {"string": "O", "bytes": "O", "timestamp": "M8[us]"}.get(name, name)
    assert out.dtype == np.dtype(expected)
    assert isinstance(out, np.ma.MaskedArray) == (None in values)
    mask = np.ma.getmaskarray(out).tolist()
    assert mask == [value is None for value in values]
    kept = [value for value, masked in zip(np.ma.getdata(out), mask, strict=True) if not masked]
    assert [as_utc(v) if name == "timestamp" else v for v in kept] == [value for value in values if value is not None]


@pytest.mark.parametrize("name", SCALAR_NAMES)
def test_numpy_data_under_the_mask_is_the_missing_value_of_the_dtype(name: str) -> None:
    out = to_numpy(column_of(name, [None, *extremes(name)]))
    assert isinstance(out, np.ma.MaskedArray)
    value = out.data[0]
    if name in FLOAT_NAMES or name == "timestamp":
        assert value != value
    elif name in ("string", "bytes"):
        assert value is None
    else:
        assert value == 0


def test_a_validity_that_is_all_true_counts_as_no_nulls() -> None:
    column = Column(DTYPES["int64"], np.arange(3), np.ones(3, np.bool_))
    assert not isinstance(to_numpy(column), np.ma.MaskedArray)
    assert to_pandas_array(column).dtype == np.int64
    assert to_arrow_array(column).null_count == 0


def test_nan_is_a_value_and_null_is_null_where_the_container_can_tell_them_apart() -> None:
    column = column_of("float64", [1.0, float("nan"), None])
    masked = to_numpy(column)
    assert np.ma.getmaskarray(masked).tolist() == [False, False, True]
    arrow = to_arrow_array(column)
    assert arrow.null_count == 1
    assert np.isnan(arrow[1].as_py())
    assert np.isnan(to_pylist(column)[1])
    assert to_pylist(column)[2] is None
    assert np.isnan(to_pandas_array(column)).tolist() == [False, True, True]


def test_an_absent_timestamp_is_null_though_no_validity_says_so() -> None:
    column = Column(DTYPES["timestamp"], np.array([ABSENT_US, 0], dtype=np.int64))
    assert to_pylist(column) == [None, EPOCH]
    assert np.ma.getmaskarray(to_numpy(column)).tolist() == [True, False]
    assert to_arrow_array(column).to_pylist() == [None, EPOCH]
    assert pd.isna(to_pandas_array(column)).tolist() == [True, False]


@each_case
def test_pandas_arrays_keep_values_exact(name: str, shape: str) -> None:
    values = shapes(name)[shape]
    series = pd.Series(to_pandas_array(column_of(name, values)))
    if name == "timestamp":
        expected = "datetime64[us, UTC]"
    elif name == "string":
        expected = str(pd.Series([""]).dtype)
    elif name == "bytes":
        expected = "object"
    elif None in values and name not in FLOAT_NAMES:
        expected = "boolean" if name == "bool" else PANDAS_NULLABLE[name]
    else:
        expected = name
    assert str(series.dtype) == expected
    assert series.isna().tolist() == [value is None for value in values]
    kept = series[series.notna()].tolist()
    assert [v.to_pydatetime() if name == "timestamp" else v for v in kept] == [v for v in values if v is not None]


@pytest.mark.parametrize("name", ["bool", *INTEGER_NAMES, *FLOAT_NAMES])
def test_numbers_without_nulls_share_memory_with_numpy_and_pandas(name: str) -> None:
    column = column_of(name, extremes(name))
    assert np.shares_memory(to_numpy(column), column.data)
    assert np.shares_memory(to_pandas_array(column), column.data)


@pytest.mark.parametrize("name", [*INTEGER_NAMES, *FLOAT_NAMES, "timestamp"])
def test_fixed_width_values_share_memory_with_arrow(name: str) -> None:
    column = column_of(name, [None, *extremes(name)])
    assert to_arrow_array(column).buffers()[1].address == column.data.ctypes.data


@pytest.mark.parametrize("storage", ["python", "pyarrow"])
def test_strings_follow_the_string_dtype_pandas_is_set_to(storage: str) -> None:
    column = column_of("string", ["b", None, "a", "b"])
    # pandas 3 always infers str, and warns when told to.
    infer = [] if pd.Series([""]).dtype != object else ["future.infer_string", True]
    with pd.option_context("mode.string_storage", storage, *infer):
        wanted = pd.Series(["b", None, "a", "b"])
        series = pd.Series(to_pandas_array(column), copy=False)
        pd.testing.assert_series_equal(series, wanted)


def test_strings_are_decoded_once_per_distinct_value() -> None:
    rows = np.arange(1000, dtype=np.int32) % 2
    out = to_numpy(Column(DTYPES["string"], rows, None, Heap.of([b"one", b"two"])))
    assert len(set(map(id, out))) == 2
    assert out[:3].tolist() == ["one", "two", "one"]


def test_a_heap_larger_than_the_rows_is_cut_to_what_they_use() -> None:
    heap = Heap.of([b"\xff not utf-8", b"b", b"a"])
    column = Column(DTYPES["string"], np.array([2, 1], dtype=np.int32), None, heap)
    assert to_pylist(column) == ["a", "b"]


@each_case
def test_arrow_arrays_equal_what_arrow_makes_of_the_python_values(name: str, shape: str) -> None:
    values = shapes(name)[shape]
    array = to_arrow_array(column_of(name, values))
    array.validate(full=True)
    assert array.type == arrow_type(DTYPES[name])
    assert array.equals(pa.array(values, type=array.type))


@pytest.mark.parametrize(("name", "kind"), [("string", "string"), ("bytes", "binary"), ("bool", "bool")])
def test_arrow_types_are_the_ordinary_ones(name: str, kind: str) -> None:
    assert str(arrow_type(DTYPES[name])) == kind


def test_a_part_of_a_heap_is_read_without_the_rest() -> None:
    """Of 1 TiB, which is not there."""
    data = np.broadcast_to(np.frombuffer(b"x", dtype=np.uint8), 1 << 40)
    heap = Heap(np.array([0, 1 << 39, (1 << 39) + 2, (1 << 39) + 5, 1 << 40]), data)
    assert heap.part(1, 3).tolist() == [b"xx", b"xxx"]
    assert heap.part(2, 3).tolist() == [b"xxx"]
    assert heap.part(1, 1).tolist() == []
    assert Heap.concat([heap.part(1, 3), Heap.of([b"a"]), heap.part(2, 3)]).tolist() == [b"xx", b"xxx", b"a", b"xxx"]


def test_a_null_column_of_variable_width_has_an_empty_heap() -> None:
    column = null_column(DTYPES["string"], 3)
    assert to_pylist(column) == [None] * 3
    assert to_arrow_array(column).null_count == 3
    assert pd.isna(to_pandas_array(column)).all()


@pytest.mark.parametrize("name", ["string", "bytes"])
def test_more_bytes_than_32_bit_offsets_hold_become_chunks_of_the_same_type(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = shapes(name)["some"] * 3
    monkeypatch.setattr(arrays, "_ARROW_BYTES_MAX", 7)
    array = to_arrow_array(column_of(name, values))
    assert isinstance(array, pa.ChunkedArray)
    assert array.num_chunks > 1
    assert array.type == arrow_type(DTYPES[name])
    assert array.to_pylist() == values
    assert max(sum(len(v.as_buffer()) for v in chunk if v.is_valid) for chunk in array.chunks) <= 7


def test_timestamps_at_the_ends_of_the_range_survive() -> None:
    ends = np.array([TIMESTAMP_MIN_US, TIMESTAMP_MAX_US], dtype=np.int64)
    column = Column(DTYPES["timestamp"], ends)
    assert to_pandas_array(column).asi8.tolist() == ends.tolist()
    assert to_arrow_array(column).cast(pa.int64()).to_pylist() == ends.tolist()


# --- the caller's frame -----------------------------------------------------------------------
FEATURES = {
    "temp": column_of("float64", [1.5, None, 3.5]),
    "count": column_of("int64", [2**53 + 1, None, -1]),
    "place": column_of("string", ["a", None, "é"]),
}


def plain_frame(index: object = None) -> pd.DataFrame:
    return pd.DataFrame({"key": [3, 1, 3], "label": ["x", None, "z"]}, index=index)


INDEXES = {
    "default": None,
    "duplicates": [7, 7, 7],
    "strings": ["b", "a", "b"],
    "times": pd.DatetimeIndex(["2024-01-02", "2024-01-01", "2024-01-01"], tz="Asia/Tokyo", name="at"),
    "multi": pd.MultiIndex.from_tuples([(1, "a"), (1, "a"), (0, "b")], names=["n", None]),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_pandas_rows_index_and_columns_are_untouched_and_features_follow(kind: str) -> None:
    frame = plain_frame(INDEXES[kind])
    frame["group"] = pd.Categorical(["u", "v", "u"], categories=["v", "u", "w"])
    frame["seen"] = pd.array([1, None, 3], dtype="Int8")
    frame["object"] = pd.Series([[1], {"a": 2}, None], index=frame.index, dtype=object)
    frame["at_ns"] = np.array(["2024-01-01T00:00:00.123456789"] * 3, dtype="M8[ns]")
    frame.attrs = {"origin": "here"}
    before = frame.copy(deep=True)
    out = EntityFrame(frame).to_pandas(FEATURES)
    assert list(out.columns) == [*before.columns, "temp", "count", "place"]
    pd.testing.assert_frame_equal(out[list(before.columns)], before)
    pd.testing.assert_frame_equal(frame, before)
    assert out.attrs == {"origin": "here"}
    assert out["count"].tolist() == [2**53 + 1, pd.NA, -1]
    assert out["temp"].isna().tolist() == [False, True, False]


def test_columns_keep_their_name_and_their_own_labels() -> None:
    frame = pd.DataFrame({0: [1, 2, 3], "b": [4, 5, 6]})
    frame.columns.name = "field"
    out = EntityFrame(frame).to_pandas(FEATURES)
    assert list(out.columns) == [0, "b", "temp", "count", "place"]
    assert out.columns.name == "field"


@pytest.mark.parametrize("wide", [1, 150])
def test_writing_to_the_result_changes_neither_the_frame_nor_the_columns(wide: int) -> None:
    frame = pd.DataFrame({"key": [1, 2]})
    columns = {f"f{i}": column_of("int64", [10, 20]) for i in range(wide)}
    columns["n"] = column_of("float64", [0.5, 1.5])
    entities = EntityFrame(frame)
    out = entities.to_pandas(columns)
    out.loc[0, "key"] = 99
    out.loc[0, "f0"] = 99
    out.iloc[1, out.columns.get_loc("n")] = 99
    assert frame["key"].tolist() == [1, 2]
    assert columns["f0"].data.tolist() == [10, 20]
    assert columns["n"].data.tolist() == [0.5, 1.5]
    again = entities.to_pandas(columns)
    assert again[["key", "f0", "n"]].to_numpy().tolist() == [[1, 10, 0.5], [2, 20, 1.5]]


def test_hundreds_of_features_leave_no_performance_warning_to_the_caller() -> None:
    out = EntityFrame(pd.DataFrame({"key": [1]})).to_pandas({f"f{i}": column_of("int8", [i % 100]) for i in range(300)})
    out["more"] = 1  # warnings are errors
    assert out.shape == (1, 302)
    assert out["f299"].tolist() == [99]


def test_no_feature_columns_give_a_copy() -> None:
    frame = plain_frame()
    out = EntityFrame(frame).to_pandas({})
    pd.testing.assert_frame_equal(out, frame)
    assert out is not frame


def test_a_frame_of_no_rows_gives_a_typed_result_of_no_rows() -> None:
    columns = {name: column_of(name, []) for name in SCALAR_NAMES}
    entities = EntityFrame(plain_frame().iloc[:0])
    out = entities.to_pandas(columns)
    assert out.shape == (0, 2 + len(columns))
    assert str(out["timestamp"].dtype) == "datetime64[us, UTC]"
    table = entities.to_arrow(columns)
    assert table.num_rows == 0
    assert [table.schema.field(name).type for name in columns] == [arrow_type(DTYPES[name]) for name in columns]


def test_a_subclass_of_the_pandas_frame_stays_one() -> None:
    class Mine(pd.DataFrame):
        @property
        def _constructor(self) -> type:
            return Mine

    assert type(EntityFrame(Mine({"key": [1, 2, 3]})).to_pandas(FEATURES)) is Mine


def natives() -> dict[str, object]:
    ids, names = [2**53 + 1, None, 3], ["a", None, "c"]
    out: dict[str, object] = {
        "arrow": pa.table({"id": ids, "name": names}),
        "batch": pa.record_batch({"id": pa.array(ids), "name": pa.array(names)}),
        "lists": {"id": ids, "name": names},
        "rows": [{"id": ids[0], "name": "a"}, {"name": None}, {"id": 3, "name": "c"}],
        "tuple of rows": ({"id": ids[0], "name": "a"}, MappingProxyType({"name": None}), {"id": 3, "name": "c"}),
        "mapping": MappingProxyType({"id": ids, "name": names}),
        "masked": {"id": np.ma.array([2**53 + 1, 0, 3], mask=[0, 1, 0]), "name": np.array(names, object)},
        "series": {"id": pd.Series(ids, dtype="Int64", index=[9, 8, 7]), "name": pd.Series(names, index=[1, 1, 1])},
        "arrow arrays": {"id": pa.array(ids), "name": pa.chunked_array([names])},
    }
    try:
        import polars as pl
    except ImportError:
        return out
    out["polars"] = pl.DataFrame({"id": ids, "name": names})
    out["polars series"] = {"id": pl.Series(ids), "name": pl.Series(names)}
    return out


@pytest.mark.parametrize("kind", natives())
def test_any_frame_gives_pandas_with_exact_integers_and_arrow(kind: str) -> None:
    entities = EntityFrame(natives()[kind])
    out = entities.to_pandas(FEATURES)
    assert list(out.columns) == ["id", "name", "temp", "count", "place"]
    assert list(out.index) == [0, 1, 2]
    assert str(out["id"].dtype) == "Int64"
    assert out["id"].tolist() == [2**53 + 1, pd.NA, 3]
    assert out["name"].isna().tolist() == [False, True, False]
    table = entities.to_arrow(FEATURES)
    assert table.column_names == ["id", "name", "temp", "count", "place"]
    assert table["id"].to_pylist() == [2**53 + 1, None, 3]
    assert table["name"].to_pylist() == ["a", None, "c"]
    assert table["place"].to_pylist() == ["a", None, "é"]
    assert entities.to_numpy(FEATURES).keys() == FEATURES.keys()


@pytest.mark.parametrize("kind", [*natives(), "pandas"])
def test_slices_are_the_parts_of_the_whole_with_one_schema(kind: str) -> None:
    native = natives().get(kind, plain_frame(["x", "y", "z"]))
    whole = EntityFrame(native)
    parts = [whole.slice(0, 2), whole.slice(2, 3), whole.slice(3, 3)]
    rows = [slice(0, 2), slice(2, 3), slice(3, 3)]
    columns = [{name: column.take(part) for name, column in FEATURES.items()} for part in rows]
    tables = [part.to_arrow(some) for part, some in zip(parts, columns, strict=True)]
    assert tables[0].schema == tables[1].schema == tables[2].schema
    assert pa.concat_tables(tables).to_pylist() == whole.to_arrow(FEATURES).to_pylist()
    frames = [part.to_pandas(some) for part, some in zip(parts, columns, strict=True)]
    assert [len(frame) for frame in frames] == [2, 1, 0]
    assert frames[1].index.tolist() == whole.to_pandas(FEATURES).index.tolist()[2:]


def test_slices_of_slices_count_from_their_own_start() -> None:
    inner = EntityFrame({"key": list(range(10))}).slice(2, 8).slice(1, 3)
    columns = {"f": column_of("int64", [0, 0])}
    assert inner.to_pandas(columns)["key"].tolist() == [3, 4]
    assert inner.to_arrow(columns)["key"].to_pylist() == [3, 4]


def test_an_object_column_that_starts_with_nulls_has_one_arrow_type_in_all_slices() -> None:
    frame = pd.DataFrame({"note": pd.Series([None, None, "late"], dtype=object)})
    whole = EntityFrame(frame)
    assert whole.slice(0, 2).to_arrow({}).schema == whole.slice(2, 3).to_arrow({}).schema


def test_nan_in_a_dict_of_arrays_stays_nan_in_arrow() -> None:
    column = EntityFrame({"x": np.array([1.0, np.nan])}).to_arrow({})["x"]
    assert column.null_count == 0
    assert np.isnan(column[1].as_py())


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([1, 2], dtype=">i4"), "int32"),
        (np.array(["2024-01-01T05", "NaT"], dtype="M8[h]"), "timestamp[s]"),
        (np.array(["a", "b"]), "string"),
        (np.array(["a", "b"], dtype=np.dtypes.StringDType()), "string"),
        (range(2), "int64"),
        ((True, None), "bool"),
    ],
)
def test_arrays_of_every_kind_in_a_dict_reach_pandas_and_arrow(values: object, kind: str) -> None:
    entities = EntityFrame({"x": values})
    table = entities.to_arrow({})
    assert str(table["x"].type) == kind
    frame = entities.to_pandas({"f": column_of("bool", [True, False])})
    shown = [None if pd.isna(value) else value for value in frame["x"].tolist()]
    assert shown == table["x"].to_pylist()


def test_an_unnamed_index_is_left_out_of_arrow_and_named_levels_come_first() -> None:
    assert EntityFrame(plain_frame(["p", "q", "r"])).to_arrow(FEATURES).column_names[0] == "key"
    table = EntityFrame(plain_frame(INDEXES["multi"])).to_arrow(FEATURES)
    assert table.column_names == ["n", "key", "label", "temp", "count", "place"]
    assert table["n"].to_pylist() == [1, 1, 0]


def test_an_index_level_named_like_a_column_is_an_error_that_names_it() -> None:
    frame = plain_frame(pd.Index([1, 2, 3], name="key"))
    with pytest.raises(InputError, match=r"'key'.*rename"):
        EntityFrame(frame).to_arrow(FEATURES)


@pytest.mark.parametrize("kind", ["pandas", "dict"])
def test_all_columns_that_arrow_cannot_hold_are_named_together(kind: str) -> None:
    values = {"fine": [1, 2], "mixed": ["a", 1], "other": [object(), 2]}
    native = pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in values.items()}) if kind == "pandas" else values
    with pytest.raises(InputError) as caught:
        EntityFrame(native).to_arrow({})
    assert [problem.column for problem in caught.value.problems] == ["mixed", "other"]


def test_what_is_no_table_is_refused_by_type() -> None:
    with pytest.raises(InputError, match=r"cannot be a int.*dict of arrays"):
        EntityFrame(3)


def test_without_pyarrow_arrow_output_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (
        lambda: to_arrow_array(FEATURES["temp"]),
        lambda: EntityFrame({"a": [1]}).to_arrow({}),
        lambda: ParquetWriter(tmp_path / "x.parquet"),
    ):
        with pytest.raises(MissingExtraError, match=r'pip install "featuredb\[arrow\]"'):
            call()


def test_numpy_and_python_values_load_neither_pandas_nor_arrow() -> None:
    code = (
        "import sys, numpy as np\n"
        "from featuredb.columns import Column, Heap\n"
        "from featuredb.frames.write import to_numpy, to_pylist, EntityFrame\n"
        "from featuredb.schema import DTYPES\n"
        "c = Column(DTYPES['string'], np.zeros(2, np.int32), np.array([True, False]), Heap.of([b'a']))\n"
        "assert to_pylist(c) == ['a', None]; EntityFrame({'a': [1]}).to_numpy({'c': c})\n"
        "print([m for m in ('pandas', 'pyarrow', 'numba') if m in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert run.stdout.strip() == "[]"


# --- Parquet ----------------------------------------------------------------------------------
def test_streamed_batches_are_one_parquet_file_with_one_schema(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    whole = EntityFrame(pd.DataFrame({"key": range(6), "note": [None, None, "a", "b", "c", None]}))
    column = column_of("int32", [1, 2, 3, None, 5, None])
    with ParquetWriter(path) as writer:
        for start in (0, 3):
            rows = slice(start, start + 3)
            writer.write(whole.slice(start, start + 3).to_arrow({"f": column.take(rows)}))
        assert not path.exists()
    table = pq.read_table(path)
    assert table["f"].type == pa.int32()
    assert table["f"].to_pylist() == [1, 2, 3, None, 5, None]
    assert table["note"].to_pylist() == [None, None, "a", "b", "c", None]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert [file.name for file in tmp_path.iterdir()] == ["out.parquet"]


def test_a_pandas_frame_reads_back_from_parquet_with_its_dtypes(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "seen": pd.array([1, None], dtype="Int8"),
            "group": pd.Categorical(["b", "a"], categories=["b", "a"]),
            "at": pd.to_datetime(["2024-01-01", "2024-01-02"]).tz_localize("Asia/Tokyo"),
        }
    )
    with ParquetWriter(tmp_path / "x.parquet") as writer:
        writer.write(EntityFrame(frame).to_arrow({"f": column_of("float32", [1.0, 2.0])}))
    back = pd.read_parquet(tmp_path / "x.parquet")
    pd.testing.assert_frame_equal(back[["seen", "group", "at"]], frame)
    assert back["f"].dtype == np.float32


def test_a_batch_of_another_type_is_cast_to_the_first(tmp_path: Path) -> None:
    with ParquetWriter(tmp_path / "x.parquet") as writer:
        writer.write(pa.table({"a": pa.array([1], pa.int64()), "s": pa.array(["x"], pa.large_string())}))
        writer.write(pa.table({"a": pa.array([2], pa.int8()), "s": pa.array([None], pa.null())}))
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == [{"a": 1, "s": "x"}, {"a": 2, "s": None}]


def test_batches_that_cannot_be_cast_name_every_column_and_leave_no_file(tmp_path: Path) -> None:
    def write() -> None:
        with ParquetWriter(tmp_path / "x.parquet") as writer:
            writer.write(pa.table({"a": [1], "b": pa.nulls(1), "c": [1]}))
            writer.write(pa.table({"a": [0.5], "b": ["x"], "c": [2]}))

    with pytest.raises(InputError, match="rows from 1 on") as caught:
        write()
    assert [problem.column for problem in caught.value.problems] == ["a", "b"]
    assert "only nulls in the rows before" in caught.value.problems[1].reason
    assert list(tmp_path.iterdir()) == []


def test_batches_of_other_columns_are_refused(tmp_path: Path) -> None:
    with ParquetWriter(tmp_path / "x.parquet") as writer:
        writer.write(pa.table({"a": [1]}))
        with pytest.raises(InputError, match="columns b, the rows before a"):
            writer.write(pa.table({"b": [1]}))


def test_a_failure_midway_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"old")

    def fail() -> None:
        with ParquetWriter(path) as writer:
            writer.write(pa.table({"a": [1]}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_wrote_nothing_makes_no_file(tmp_path: Path) -> None:
    with ParquetWriter(tmp_path / "x.parquet"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_and_aborting_after_keep_the_file(tmp_path: Path) -> None:
    writer = ParquetWriter(tmp_path / "x.parquet")
    writer.write(pa.table({"a": [1]}))
    writer.close()
    writer.close()
    writer.abort()
    assert pq.read_table(tmp_path / "x.parquet")["a"].to_pylist() == [1]


def test_a_missing_folder_and_a_directory_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="check that the folder exists"):
        ParquetWriter(tmp_path / "none" / "x.parquet")
    with pytest.raises(FileError, match="is a directory"):
        ParquetWriter(tmp_path)


@pytest.mark.parametrize("path", [None, 3, b"x.parquet", ["x"], "a\0b.parquet", "\ud800.parquet"])
def test_what_is_no_path_is_refused(path: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^path: "):
        ParquetWriter(path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_parquet_cannot_hold_is_an_error_without_a_file(tmp_path: Path) -> None:
    table = pa.table({"m": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    writer = ParquetWriter(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="Parquet cannot hold"):
        writer.write(table)
    writer.abort()
    assert list(tmp_path.iterdir()) == []
