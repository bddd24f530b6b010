"""Tables in: every dtype from every container, exactly or rejected; every table-like in batches."""

from __future__ import annotations

import array
import csv
import gzip
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featuredb.columns import Column
from featuredb.errors import CorruptionError, DefinitionError, InputError, MissingExtraError
from featuredb.frames import Converted, as_column, as_us, detached, open_table
from featuredb.frames.read_csv import read_typed
from featuredb.limits import REJECTIONS_KEPT_MAX, VALUE_BYTES_MAX
from featuredb.schema import DTYPES, FLOAT_NAMES, INTEGER_NAMES, Source
from featuredb.sources import FileSource, source_from_record

NAN = float("nan")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def tolist(column: Column) -> list[Any]:
    """The column as Python values; timestamps as microseconds."""
    values: list[Any]
    if column.heap is not None:
        entries = column.heap.tolist()
        if column.dtype.name == "string":
            entries = [entry.decode() for entry in entries]
        values = [entries[place] if entries else None for place in column.data]
    else:
        values = column.data.tolist()
    if column.valid is None:
        return values
    assert len(column) == 0 or not column.valid.all(), "a column without nulls has no validity"
    assert not column.data[~column.valid].any(), "zero where null"
    return [value if valid else None for value, valid in zip(values, column.valid, strict=True)]


def read(values: Any, dtype: str, *, text: bool = False) -> list[Any]:
    converted = as_column(values, DTYPES[dtype], "c", text=text)
    assert converted.problem is None
    assert converted.rejected == ()
    assert converted.column.data.dtype == DTYPES[dtype].numpy
    assert converted.column.data.flags.c_contiguous
    return tolist(converted.column)


def rejects(values: Any, dtype: str, *, text: bool = False) -> dict[int, str]:
    """Row -> "value reason" of every rejected row, which must be null in the column."""
    converted = as_column(values, DTYPES[dtype], "c", text=text)
    assert converted.problem is None
    found = {}
    for problem in converted.rejected:
        assert problem.column == "c"
        for row, value in zip(problem.rows.tolist(), problem.values, strict=True):
            assert row not in found
            found[row] = f"{value} {problem.reason}"
    assert converted.column.valid is not None
    assert not converted.column.valid[list(found)].any()
    return found


def problem_of(values: Any, dtype: str, *, text: bool = False) -> str:
    converted: Converted = as_column(values, DTYPES[dtype], "c", text=text)
    assert converted.problem is not None
    assert converted.problem.column == "c"
    assert converted.column.null_count == len(converted.column)
    return str(converted.problem)


# --- every dtype from every container ----------------------------------------------------------

SAMPLES: dict[str, list[Any]] = {
    **{name: [int(np.iinfo(name).min), 1, int(np.iinfo(name).max), 1] for name in INTEGER_NAMES},
    **{name: [-1.5, float(np.finfo(name).max), float("inf"), -1.5] for name in FLOAT_NAMES},
    "bool": [True, False, True, True],
    "string": ["", "JFK", "é\x00\U0001f6eb", "JFK"],
    "bytes": [b"", b"\xff\x00", b"key", b"key"],
    "timestamp": [
        datetime(1677, 9, 22, tzinfo=UTC),
        datetime(2024, 2, 29, 1, 2, 3, 456789, tzinfo=UTC),
        datetime(2262, 4, 11, tzinfo=UTC),
        datetime(2024, 2, 29, 1, 2, 3, 456789, tzinfo=UTC),
    ],
}
NULLABLE = {name: name.capitalize() if name[0] == "i" else "UI" + name[2:] for name in INTEGER_NAMES}
NULLABLE |= {"float32": "Float32", "float64": "Float64", "bool": "boolean", "string": "string"}


def arrow_type(dtype: str) -> Any:
    special = {"bool": pa.bool_(), "bytes": pa.binary(), "timestamp": pa.timestamp("us", tz="UTC")}
    return special.get(dtype) or pa.type_for_alias(dtype)


def numpy_array(values: list[Any], dtype: str) -> Any:
    if dtype == "string" or None in values:
        return np.array(values, dtype=object)
    if dtype == "bytes":
        return np.array(values, dtype=object)
    if dtype == "timestamp":
        return np.array([value.replace(tzinfo=None) for value in values], dtype="M8[us]")
    return np.array(values, dtype=dtype)


def masked_array(values: list[Any], dtype: str) -> Any:
    filler = next(value for value in values if value is not None)
    filled = [filler if value is None else value for value in values]
    return np.ma.MaskedArray(numpy_array(filled, dtype), mask=[value is None for value in values])


def nullable_series(values: list[Any], dtype: str) -> Any:
    return pd.Series(values, dtype=NULLABLE[dtype])


def polars_series(values: list[Any], dtype: str) -> Any:
    import polars as pl

    names = {"bool": "Boolean", "bytes": "Binary", "timestamp": "Datetime", "string": "String"}
    kind = getattr(pl, names.get(dtype) or dtype.capitalize().replace("Ui", "UI"))
    return pl.Series(values, dtype=kind("us", "UTC") if dtype == "timestamp" else kind)


def dictionary(values: list[Any], dtype: str) -> Any:
    return pa.array(values, arrow_type(dtype)).dictionary_encode()


def half(values: list[Any], dtype: str) -> Any:
    return pa.chunked_array([pa.array(values[:2], arrow_type(dtype)), pa.array(values[2:], arrow_type(dtype))])


def padded(values: list[Any], dtype: str) -> Any:
    """An Arrow array whose buffers begin before its first value."""
    filler = next(value for value in values if value is not None)
    return pa.array([filler] * 3 + values + [filler], arrow_type(dtype)).slice(3, len(values))


CONTAINERS: dict[str, Callable[[list[Any], str], Any]] = {
    "list": lambda values, dtype: values,
    "tuple": lambda values, dtype: tuple(values),
    "numpy": numpy_array,
    "numpy objects": lambda values, dtype: np.array(values, dtype=object),
    "numpy masked": masked_array,
    "pandas": lambda values, dtype: pd.Series(values, index=range(9, 9 - len(values), -1)),
    "pandas objects": lambda values, dtype: pd.Series(values, dtype=object),
    "pandas nullable": nullable_series,
    "pandas array": lambda values, dtype: pd.Series(values, dtype=object).array,
    "pandas Arrow": lambda values, dtype: pd.Series(values, dtype=pd.ArrowDtype(arrow_type(dtype))),
    "pandas categorical": lambda values, dtype: pd.Series(pd.Categorical(values)),
    "pandas Index": lambda values, dtype: pd.Index(values),
    "Arrow": lambda values, dtype: pa.array(values, arrow_type(dtype)),
    "Arrow slice": padded,
    "Arrow chunks": half,
    "Arrow dictionary": dictionary,
    "Polars": polars_series,
}
# pandas has no nullable dtype for some of ours.
PAIRS = [(one, dtype) for one in CONTAINERS for dtype in SAMPLES if one != "pandas nullable" or dtype in NULLABLE]


def expected(values: list[Any]) -> list[Any]:
    return [(value - EPOCH) // timedelta(microseconds=1) if isinstance(value, datetime) else value for value in values]


def wide(container: str, dtype: str, values: list[Any]) -> bool:
    """Whether pandas itself turns integers with nulls into floats, which do not hold them exactly."""
    plain = container in ("pandas", "pandas Index", "pandas categorical")
    return plain and None in values and dtype in ("int64", "uint64")


@pytest.mark.parametrize(("container", "dtype"), PAIRS)
@pytest.mark.parametrize("nulls", ["none", "some"])
def test_every_value_is_kept_exactly(dtype: str, container: str, nulls: str) -> None:
    values = [*SAMPLES[dtype]] if nulls == "none" else [None, *SAMPLES[dtype][1:], None]
    if wide(container, dtype, values):
        values = [None, 1, 2, None]
    assert read(CONTAINERS[container](values, dtype), dtype) == expected(values)


@pytest.mark.parametrize("dtype", SAMPLES)
@pytest.mark.parametrize("container", ["list", "numpy objects", "pandas", "pandas objects", "pandas categorical"])
def test_nothing_but_nulls_fits_every_dtype(dtype: str, container: str) -> None:
    assert read(CONTAINERS[container]([None, None], dtype), dtype) == [None, None]
    assert read(pa.nulls(2), dtype) == [None, None]
    assert read(np.ma.MaskedArray([1, 2], mask=True), dtype) == [None, None]
    assert read(pa.array([None, None], pa.list_(pa.int8())), dtype) == [None, None]


@pytest.mark.parametrize(("container", "dtype"), PAIRS)
def test_no_rows_fit_every_dtype(dtype: str, container: str) -> None:
    if container == "numpy masked":
        values = np.ma.MaskedArray([], mask=[])
    elif container == "Arrow slice":
        values = pa.array([1, 2]).slice(1, 0)
    else:
        values = CONTAINERS[container]([], dtype)
    assert read(values, dtype) == []


@pytest.mark.parametrize("null", [None, pd.NA, pd.NaT, np.ma.masked, np.datetime64("NaT", "us")])
def test_every_null_is_null(null: Any) -> None:
    assert read([datetime(1970, 1, 1), null], "timestamp") == [0, None]


def test_nan_is_null_in_pandas_and_a_value_elsewhere() -> None:
    for values in (pd.Series([1.0, NAN]), pd.Series([1.0, NAN], dtype=object), pd.Index([1.0, NAN])):
        assert read(values, "float64") == [1.0, None]
        assert read(values, "int8") == [1, None]
    assert read(pd.Series(["a", NAN], dtype=object), "string") == ["a", None]
    assert read(pd.Series([True, NAN], dtype=object), "bool") == [True, None]
    assert read(pd.Series([datetime(1970, 1, 1), NAN], dtype=object), "timestamp") == [0, None]
    assert read(pd.Series([NAN, NAN]), "string") == [None, None]
    arrow = pa.array([1.0, NAN, None])
    for kept in ([1.0, NAN, None], np.ma.MaskedArray([1.0, NAN, 0], mask=[0, 0, 1]), arrow):
        for dtype in FLOAT_NAMES:
            found = read(kept, dtype)
            assert found[0] == 1.0
            assert np.isnan(found[1])
            assert found[2] is None
        assert rejects(kept, "int8") == {1: "nan is NaN, which int8 cannot hold; use None for null"}


def test_repeated_strings_are_stored_once() -> None:
    for values in (["a", "b"] * 9, pd.Series(["a", "b"] * 9), pa.array(["a", "b"] * 9), np.array(["a", "b"] * 9)):
        column = as_column(values, DTYPES["string"], "c").column
        assert column.heap is not None
        assert column.heap.tolist() == [b"a", b"b"]


def test_flat_arrays_are_not_copied() -> None:
    array = np.arange(10.0)
    assert np.shares_memory(as_column(array, DTYPES["float64"], "c").column.data, array)
    ticks = array.astype("M8[us]")
    assert np.shares_memory(as_column(ticks, DTYPES["timestamp"], "c").column.data, ticks)


def test_strided_and_big_endian_arrays_are_read() -> None:
    assert read(np.arange(6)[::2], "int64") == [0, 2, 4]
    assert read(np.arange(3, dtype=">i4"), "int8") == [0, 1, 2]
    assert read(np.arange(3, dtype=">f8"), "float64") == [0, 1, 2]
    assert read(np.arange(3).astype(">M8[s]")[::2], "timestamp") == [0, 2_000_000]
    assert read(np.array(["a", "bb"]), "string") == ["a", "bb"]
    assert read(np.array([b"a", b"bb"]), "bytes") == [b"a", b"bb"]


def test_every_arrow_layout_of_strings_and_bytes_is_read() -> None:
    assert read(pa.array(["a", None, "é"], pa.large_string()), "string") == ["a", None, "é"]
    entries = pa.array(["a", None, "é"], pa.large_string())
    codes = pa.array([2, 0, None, 1], pa.uint8())
    assert read(pa.DictionaryArray.from_arrays(codes, entries), "string") == ["é", "a", None, None]
    assert read(pa.array(["a", None, "é"], pa.string_view()), "string") == ["a", None, "é"]
    assert read(pa.array([b"a", None], pa.binary_view()), "bytes") == [b"a", None]
    assert read(pa.array([b"ab", None], pa.binary(2)), "bytes") == [b"ab", None]
    assert read(pa.array([b"ab", None], pa.large_binary()), "bytes") == [b"ab", None]


def test_chunks_with_different_dictionaries_are_joined() -> None:
    chunks = pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", None]).dictionary_encode()])
    assert read(chunks, "string") == ["a", "b", "c", None]
    assert read(pa.chunked_array([], pa.string()), "string") == []


def test_chunks_too_large_to_join_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.frames.from_arrow._JOIN_BYTES_MAX", 0)
    assert read(pa.chunked_array([["a", "b"], [None, "a"]]), "string") == ["a", "b", None, "a"]
    chunks = pa.chunked_array([[1, 2], [3, 400], [500]])
    assert rejects(chunks, "int8") == {3: "400 is out of the range of int8", 4: "500 is out of the range of int8"}
    assert "int64" in problem_of(chunks, "string")


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGER_NAMES)
def test_integers_out_of_range_are_rejected(dtype: str) -> None:
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    values = [low, low - 1, high, high + 1, 10**30]
    reason = f"is out of the range of {dtype}"
    want = {1: f"{low - 1} {reason}", 3: f"{high + 1} {reason}", 4: f"{10**30} {reason}"}
    assert rejects(values, dtype) == want
    assert rejects(np.array(values, dtype=object), dtype) == want
    if dtype.endswith(("8", "16", "32")):
        assert list(rejects(np.array(values[:4]), dtype)) == [1, 3]
        assert list(rejects(pa.array(values[:4]), dtype)) == [1, 3]
        assert list(rejects(pd.Series(values[:4], dtype="Int64"), dtype)) == [1, 3]


def test_signed_and_unsigned_64_bit_integers_do_not_wrap() -> None:
    assert rejects(np.array([2**63, 1], dtype="u8"), "int64") == {0: f"{2**63} is out of the range of int64"}
    assert rejects(np.array([-1, 1]), "uint64") == {0: "-1 is out of the range of uint64"}
    assert read([np.int64(1), np.uint64(2**63)], "uint64") == [1, 2**63]
    assert list(rejects([np.int64(-1), np.uint64(2**63)], "uint64")) == [0]


def test_whole_floats_become_integers_and_others_are_rejected() -> None:
    values = np.array([1.0, -0.0, 1.5, np.inf, 2.0**63, -(2.0**63)])
    found = rejects(values, "int64")
    assert found == {
        2: "1.5 is not a whole number",
        3: "inf is out of the range of int64",
        4: f"{2.0**63} is out of the range of int64",
    }
    assert as_column(values, DTYPES["int64"], "c").column.data.tolist() == [1, 0, 0, 0, 0, -(2**63)]
    assert list(rejects(np.array([255.0, 256.0, -1.0], dtype="f4"), "uint8")) == [1, 2]
    assert read(np.array([1, 2], dtype="f2"), "int8") == [1, 2]
    assert read([1, 2.0, None], "int16") == [1, 2, None]


@pytest.mark.parametrize(("dtype", "digits"), [("float64", 53), ("float32", 24)])
def test_integers_that_a_float_cannot_hold_are_rejected(dtype: str, digits: int) -> None:
    values = [2**digits, 2**digits + 1, -(2**digits) - 1, 2**62]
    assert list(rejects(values, dtype)) == [1, 2]
    assert list(rejects(np.array(values), dtype)) == [1, 2]
    assert rejects([2**63 - 1, 1], dtype) == {0: f"{2**63 - 1} is an integer that {dtype} cannot hold exactly"}
    assert rejects(np.array([2**64 - 1, 1], dtype="u8"), dtype).keys() == {0}
    assert read([2**70, 1], dtype) == [2.0**70, 1.0]
    assert list(rejects([2**digits, 2**70 + 1, 10**400], dtype)) == [2, 1]


def test_float32_rounds_but_does_not_overflow() -> None:
    assert read([0.1, float("inf"), 1e-60], "float32") == [float(np.float32(0.1)), float("inf"), 0.0]
    assert rejects(np.array([1e39, 1.0]), "float32") == {0: "1e+39 is out of the range of float32"}


# --- strings and bytes -------------------------------------------------------------------------


def test_text_that_is_no_unicode_is_rejected() -> None:
    assert rejects(["a", "\ud800"], "string") == {1: "'\\ud800' is not valid Unicode: it holds a lone surrogate"}
    raw = pa.array([b"ok", b"\xff", None, b"\xff"])
    broken = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    assert rejects(broken, "string") == {1: "b'\\xff' is not valid UTF-8", 3: "b'\\xff' is not valid UTF-8"}


def test_values_that_are_too_long_are_rejected() -> None:
    long = "x" * (VALUE_BYTES_MAX + 1)
    for values in (["a", long], pa.array(["a", long])):
        (found,) = rejects(values, "string").values()
        assert f"is longer than {VALUE_BYTES_MAX} bytes" in found
        assert len(found) < 200
    assert len(read([b"x" * VALUE_BYTES_MAX], "bytes")[0]) == VALUE_BYTES_MAX


def test_every_kind_of_bytes_is_read() -> None:
    assert read([b"a", bytearray(b"b"), memoryview(b"c"), np.bytes_(b"d"), None], "bytes") == [
        b"a", b"b", b"c", b"d", None
    ]  # fmt: skip


def test_only_used_categories_count() -> None:
    unused = pd.Series(pd.Categorical([1, None], categories=[1, 300]))
    assert read(unused, "int8") == [1, None]
    numbers = pd.Series(pd.Categorical([300, 1, None, 300]))
    assert rejects(numbers, "int8").keys() == {0, 3}
    assert "row 1, value 'x'" in problem_of(pd.Series(pd.Categorical([None, "x"])), "int8")


# --- timestamps --------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "25s", "2M", "10ns"])
def test_datetimes_of_every_unit_are_scaled(unit: str) -> None:
    values = np.array([0, 800, -800]).view(f"M8[{unit}]")
    if unit in ("ns", "10ns"):
        values = np.array([0, 1000, -1000]).view(f"M8[{unit}]")
    assert read(values, "timestamp") == values.astype("M8[us]").view("i8").tolist()
    assert read(np.array(["NaT", 0], dtype=f"M8[{unit}]"), "timestamp") == [None, 0]


def test_datetimes_finer_than_nanoseconds_are_scaled() -> None:
    assert read(np.array([10**6, -(10**6)]).view("M8[ps]"), "timestamp") == [1, -1]
    assert rejects(np.array([10**6, 1000]).view("M8[ps]"), "timestamp").keys() == {1}
    assert read(np.array([10**12]).view("M8[as]"), "timestamp") == [1]


@pytest.mark.parametrize("unit", ["Y", "M", "W", "D", "h", "s", "ms", "us", "25s"])
def test_datetimes_outside_years_1_to_9999_are_rejected(unit: str) -> None:
    edge = np.array(["0001-01-01", "9999-12-31"], dtype="M8[us]").astype(f"M8[{unit}]")
    inside = edge[edge >= np.datetime64("0001-01-01", "D")] if unit in ("W", "25s") else edge
    assert len(read(inside, "timestamp")) == len(inside)
    far = np.array([2**62, -(2**62), 0]).view(f"M8[{unit}]")
    found = rejects(far, "timestamp")
    assert found.keys() == {0, 1}
    assert found[0].endswith("is outside the years 1 to 9999; leave the row out")
    beyond = edge[1] + np.timedelta64(1, "W" if unit in ("W", "D", "h", "s", "ms", "us", "25s") else unit)
    assert rejects(np.array([beyond, 0], dtype=edge.dtype), "timestamp").keys() == {0}


def test_a_part_below_a_microsecond_is_rejected_never_rounded() -> None:
    ticks = np.array([1000, 1001, -1, -1000], dtype="M8[ns]")
    for values in (ticks, pd.Series(ticks), pd.Series(ticks).dt.tz_localize("UTC"), pa.array(ticks), list(ticks)):
        found = rejects(values, "timestamp")
        assert found.keys() == {1, 2}
        assert "has a part below a microsecond; round it first" in found[1]
    assert rejects([pd.Timestamp(1), pd.Timestamp(1000)], "timestamp").keys() == {0}
    texts = ["2024-01-01T00:00:00.0000001", "2024-01-01T00:00:00.000001000", "2024-01-01 00:00:00,1234567+00:00"]
    assert rejects(texts, "timestamp").keys() == {0, 2}


def test_naive_is_utc_and_aware_is_converted() -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    noon = 43_200_000_000
    local = [datetime(1970, 1, 1, 17, 30, tzinfo=zone), datetime(1970, 1, 1, 12)]
    assert read(local, "timestamp") == [noon, noon]
    assert read(local[:1], "timestamp") == [noon]
    assert read([pd.Timestamp(local[0]), pd.Timestamp(local[1])], "timestamp") == [noon, noon]
    series = pd.Series(pd.to_datetime(["1970-01-01 12:00"])).dt.tz_localize("UTC")
    for unit in ("s", "ms", "us", "ns"):
        assert read(series.dt.as_unit(unit).dt.tz_convert("Asia/Kolkata"), "timestamp") == [noon]
        zoned = pa.array([noon], pa.timestamp("us", tz="America/New_York")).cast(pa.timestamp(unit, tz="Asia/Tokyo"))
        assert read(zoned, "timestamp") == [noon]


def test_aware_datetimes_at_the_edge_of_time_are_rejected() -> None:
    east, west = timezone(timedelta(hours=1)), timezone(timedelta(hours=-1))
    edges = [datetime(1, 1, 1, tzinfo=east), datetime.max.replace(tzinfo=west), datetime.min, datetime.max]
    assert rejects(edges, "timestamp").keys() == {0, 1}


def test_dates_and_datetimes_and_text_mix() -> None:
    mixed = [date(1970, 1, 2), datetime(1970, 1, 2), np.datetime64("1970-01-02"), np.datetime64(86400, "s")]
    mixed += [pd.Timestamp("1970-01-02", tz="UTC"), "1970-01-02"]
    assert read(mixed, "timestamp") == [86_400_000_000] * 6
    assert read(pa.array([date(1970, 1, 2)]), "timestamp") == [86_400_000_000]
    assert read(pa.array([86_400_000], pa.date64()), "timestamp") == [86_400_000_000]


ISO = {
    "1970-01-01": 0,
    "19700101": 0,
    "1970-W01-4": 0,
    "1970-01-01T00:00:01Z": 1_000_000,
    "1970-01-01 00:00:01": 1_000_000,
    "1970-01-01T01:00:01+01:00": 1_000_000,
    "1970-01-01T01:00:01.5+0100": 1_500_000,
    "1970-01-01T00:00": 0,
    "1970-01-01T00:00:00.000001": 1,
    "1970-01-01T00:00:00,000001000": 1,
    " 1969-12-31T23:59:59.999999 ": -1,
}


@pytest.mark.parametrize("container", ["list", "pandas", "Arrow", "Arrow dictionary", "pandas categorical"])
def test_iso_8601_text_is_parsed(container: str) -> None:
    texts = [*ISO, None]
    assert read(CONTAINERS[container](texts, "string"), "timestamp") == [*ISO.values(), None]
    assert read(texts, "timestamp", text=True) == [*ISO.values(), None]


@pytest.mark.parametrize(
    "wrong",
    [
        "yesterday",
        "",
        "2024",
        "2024-13-01",
        "2024-02-30",
        "1612111000000",
        "2024-01-01x10:00",
        "01/02/2024",
        "NaT",
        "now",
    ],
)
def test_other_text_is_no_timestamp(wrong: str) -> None:
    for values in (["1970-01-01", wrong], pa.array(["1970-01-01", wrong])):
        reason = "is not an ISO 8601 timestamp such as 2024-05-01T12:30:00Z"
        assert rejects(values, "timestamp") == {1: f"{wrong!r} {reason}"}


# --- wrong types -------------------------------------------------------------------------------

WRONG: list[tuple[Any, str, str]] = [
    ([True], "int8", "row 0, value True: is of type bool, but int8 is needed; convert it, for example with .astype"),
    (np.array([True]), "float64", "is of type bool, but float64"),
    (["1"], "int64", "value '1': is of type str, but int64 is needed; convert it to numbers"),
    (pd.Series(["1"]), "float32", "convert it to numbers, for example with pandas.to_numeric(values)"),
    ([0, 1], "bool", "value 0: is of type int, but bool is needed; convert it to True and False"),
    (["true"], "bool", ".map({'true': True, 'false': False})"),
    (np.array([1.0]), "bool", "is of type float64, but bool"),
    ([1], "string", "is of type int, but string is needed; convert it to str, for example with .astype(str)"),
    ([b"a"], "string", "decode it, for example with .str.decode('utf-8')"),
    (pa.array([b"a"]), "string", "decode it"),
    (["a"], "bytes", "is of type str, but bytes is needed; convert it to bytes"),
    (pa.array([None, "a"]), "bytes", "row 1, value 'a'"),
    ([1], "timestamp", "pandas.to_datetime(values, unit=...), as the unit of integers is not known"),
    (np.array([1]), "timestamp", "the unit of integers is not known"),
    (pd.Series([1, None], dtype="Int64"), "timestamp", "is of type Int64"),
    (np.array([1.5]), "timestamp", "convert it to datetimes"),
    (np.array([1], "m8[s]"), "int64", "is of type timedelta64[s]"),
    ([np.timedelta64(1, "s")], "int64", "is of type timedelta64"),
    (np.array(["2024"], "M8[s]"), "int64", "value 2024-01-01T00:00:00: is of type datetime64[s]"),
    (pd.Series([pd.Period("2024")]), "timestamp", "Period"),
    ([Decimal(1)], "float64", "is of type Decimal"),
    (pa.array([None, [1]]), "int8", "row 1, value [1]: is of type list<"),
    (pa.array([Decimal("1.5")]), "float64", "is of type decimal128(2, 1)"),
    (np.array([1j]), "float64", "is of type complex128"),
    (np.zeros((2, 2)), "float64", "is a numpy array of 2 dimensions, not a sequence of values; give a list"),
    (np.array(1.0), "float64", "is a numpy array of 0 dimensions"),
    (np.zeros(2, dtype="i4,i4"), "int32", "but int32 is needed"),
    (pd.DataFrame({"a": [1]}), "int8", "is a pandas DataFrame, not a sequence"),
    (pd.Timestamp(0), "timestamp", "is a pandas Timestamp, not a sequence"),
    (pa.scalar(1), "int8", "is a pyarrow Int64Scalar, not a sequence"),
    ("abc", "string", "is of type str, not a sequence"),
    (5, "int8", "is of type int, not a sequence"),
    ({"a"}, "string", "is of type set, not a sequence"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "dtype", "message"), WRONG)
def test_a_column_of_a_wrong_type_is_one_problem(values: Any, dtype: str, message: str) -> None:
    assert message in problem_of(values, dtype)


def test_single_values_of_a_wrong_type_are_rejected_rows_that_name_it() -> None:
    found = rejects([1, "x", None, True, 2.0], "int8")
    assert found == {
        1: "'x' is of type str, but int8 is needed; convert it to numbers, for example with pandas.to_numeric(values)",
        3: "True is of type bool, but int8 is needed; convert it, for example with .astype('int8')",
    }
    assert rejects(["a", 1, NAN], "string").keys() == {1, 2}
    assert rejects(pd.Series(["a", 1, NAN], dtype=object), "string").keys() == {1}
    assert rejects([True, 1], "bool").keys() == {1}
    assert rejects([b"a", "a"], "bytes").keys() == {1}
    assert rejects(["2024-01-01", 7], "timestamp").keys() == {1}


def test_all_rejected_rows_are_told_but_few_values_shown() -> None:
    rows = REJECTIONS_KEPT_MAX + 5
    (problem,) = as_column(np.full(rows, 300), DTYPES["int8"], "c").rejected
    assert problem.rows.tolist() == list(range(rows))
    assert problem.values == ("300",) * REJECTIONS_KEPT_MAX


def test_other_sequences_are_read() -> None:
    assert read(range(3), "int8") == [0, 1, 2]
    import array
    from collections import deque

    assert read(array.array("d", [1.5]), "float64") == [1.5]
    assert read(deque(["a"]), "string") == ["a"]

    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.arange(2)

    assert read(Tensor(), "int8") == [0, 1]


def test_lists_need_neither_pandas_nor_arrow() -> None:
    script = (
        "import sys; from featuredb.frames import as_column, open_table; from featuredb.schema import DTYPES\n"
        "cases = [([1, None], 'int64'), (['a', None], 'string'), (['2024-01-01'], 'timestamp'), ([1.5], 'float64')]\n"
        "for v, t in cases: assert as_column(v, DTYPES[t], 'c').problem is None\n"
        "for frame in open_table([{'a': 1}], 'rows').batches(): frame.column('a')\n"
        "print([m for m in ('pandas', 'pyarrow', 'polars', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- text files --------------------------------------------------------------------------------


def test_text_is_parsed_exactly() -> None:
    for dtype in INTEGER_NAMES:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        assert read([str(low), f" {high} ", None, "+1", "2.0", "3."], dtype, text=True) == [low, high, None, 1, 2, 3]
    assert read(["1e3", "-inf", " .5 ", None, "1."], "float64", text=True) == [1000.0, float("-inf"), 0.5, None, 1.0]
    assert np.isnan(read(["nan"], "float32", text=True)[0])
    assert read(["true", "FALSE", " True", None], "bool", text=True) == [True, False, True, None]
    assert read(["1", " x", None], "string", text=True) == ["1", " x", None]
    assert read(["é", None], "bytes", text=True) == ["é".encode(), None]
    assert read(pd.Series(["1", None]), "int8", text=True) == [1, None]
    assert read(pa.array(["1", None]), "int8", text=True) == [1, None]
    assert read(np.array(["1", "2"]), "int8", text=True) == [1, 2]


@pytest.mark.parametrize(
    ("dtype", "wrong"),
    [
        *(("int64", text) for text in ("1_0", "1.5", "x", "1e3", "nan", "٣", ".0", "0x1", "1 2", "1" * 5000)),
        *(("float64", text) for text in ("1_0", "x", "1,5", "٣", "--1", "0x1", "e5")),
        *(("bool", text) for text in ("1", "0", "yes", "t")),
    ],
)
def test_text_that_cannot_be_parsed_is_rejected(dtype: str, wrong: str) -> None:
    good = "true" if dtype == "bool" else "7"
    found = rejects([good, wrong, None, good], dtype, text=True)
    assert found.keys() == {1}
    assert "is neither true nor false" in found[1] if dtype == "bool" else f"cannot be read as {dtype}" in found[1]
    assert as_column([good, wrong], DTYPES[dtype], "c", text=True).column.data[0]


def test_numbers_in_text_out_of_range_are_rejected() -> None:
    assert rejects(["128", "-128"], "int8", text=True) == {0: "'128' is out of the range of int8"}
    assert rejects([str(2**64), "1"], "uint64", text=True).keys() == {0}
    assert rejects(["1e999", "inf", "bad", "1e308"], "float64", text=True).keys() == {0, 2}
    assert rejects(["1e39", "1"], "float32", text=True).keys() == {0}


# --- one timestamp -----------------------------------------------------------------------------


def test_one_timestamp_of_every_kind() -> None:
    for value in (datetime(1970, 1, 2), date(1970, 1, 2), np.datetime64("1970-01-02"), pd.Timestamp("1970-01-02")):
        assert as_us(value, "now") == 86_400_000_000
    assert as_us("1970-01-02T00:00:00Z", "now") == 86_400_000_000


@pytest.mark.parametrize("wrong", [5, 1.5, None, pd.NaT, np.datetime64("NaT", "us"), "x", pd.Timestamp(1), [1], True])
def test_anything_else_is_no_timestamp(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^known_at: value "):
        as_us(wrong, "known_at")


# --- tables ------------------------------------------------------------------------------------

WANT = {"k": ["a", "b", None, "d", "e"], "v": [1, 2, 3, None, 5]}
DTYPE = {"k": "string", "v": "int64"}


def arrow_table() -> Any:
    return pa.table({"k": pa.array(WANT["k"], pa.string()), "v": pa.array(WANT["v"], pa.int64())})


def polars_frame() -> Any:
    import polars as pl

    return pl.DataFrame(WANT)


class Stream:
    """An object of which nothing is known but that it exports Arrow."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return arrow_table().__arrow_c_stream__(requested_schema)


TABLES: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(WANT, index=[0.5, 1, 0, 0, 2]),
    "Arrow table": arrow_table,
    "Arrow batch": lambda: arrow_table().to_batches()[0],
    "Arrow reader": lambda: arrow_table().to_reader(max_chunksize=2),
    "Arrow stream": Stream,
    "Polars": polars_frame,
    "Polars lazy": lambda: polars_frame().lazy(),
    "dict of lists": lambda: dict(WANT),
    "dict of mixed": lambda: {"k": pd.Series(WANT["k"], index=[0.5, 1, 0, 0, 2]), "v": pa.array(WANT["v"])},
    "list of dicts": lambda: [
        OrderedDict(k="a", v=1), {"v": 2, "k": "b"}, {"v": 3}, {"k": "d", "v": None}, {"k": "e", "v": 5}
    ],
}  # fmt: skip


def collect(data: Any, **options: Any) -> tuple[dict[str, list[Any]], list[int]]:
    table = open_table(data, "test data")
    found: dict[str, list[Any]] = {}
    sizes: list[int] = []
    for frame in table.batches(**options):
        assert frame.start == sum(sizes)
        sizes.append(frame.rows)
        for name in frame.names:
            found.setdefault(name, []).extend(read(frame.column(name), DTYPE[name], text=frame.text))
    return found, sizes


def refusal(data: Any, columns: list[str] | None = None, batch_rows: int = 100) -> str:
    with pytest.raises(InputError) as caught:
        list(open_table(data, "ingest of 'w'").batches(columns, batch_rows))
    assert str(caught.value).startswith("ingest of 'w'")
    return str(caught.value)


@pytest.mark.parametrize("kind", TABLES)
def test_every_table_is_read_whole_and_in_batches(kind: str) -> None:
    make = TABLES[kind]
    assert collect(make()) == (WANT, [5])
    assert collect(make(), batch_rows=2) == (WANT, [2, 2, 1])
    assert collect(make(), columns=["v", "v"]) == ({"v": WANT["v"]}, [5])


@pytest.mark.parametrize("kind", TABLES)
def test_what_is_known_of_a_table_before_it_is_read(kind: str) -> None:
    data = TABLES[kind]()
    table = open_table(data, "test data")
    assert table.names == ["k", "v"]
    assert table.rows == (None if kind in ("Arrow reader", "Arrow stream") else 5)
    assert not table.is_path
    if kind in ("Arrow reader", "Arrow stream"):
        assert table.native is None
    elif kind in ("Arrow batch", "Polars lazy"):
        assert len(table.native) == 5
    else:
        assert table.native is data


def test_a_missing_column_is_named_with_those_there_are() -> None:
    frame = pd.DataFrame({"a": [1]}, index=pd.Index([1], name="k"))
    assert refusal(frame, ["x", "a", "k"]) == (
        "ingest of 'w': 2 problems\n  - column 'x': is missing; the columns are a\n"
        "  - column 'k': is missing; it is an index: call reset_index() first"
    )
    assert "there are no columns" in refusal([], ["a"])


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame({"k": [], "v": []}),
        arrow_table().slice(0, 0),
        arrow_table().slice(0, 0).to_reader(),
        {"k": [], "v": []},
    ],
)
def test_an_empty_table_keeps_its_names(data: Any) -> None:
    assert collect(data) == ({"k": [], "v": []}, [0])


def spoil(data: Any) -> None:
    """Everything that the owner of a table may do to it."""
    if isinstance(data, pd.DataFrame):
        data.loc[data.index[0], "k"] = "changed"
        data["late"] = 1
        del data["v"]
        data.index.name = "renamed"
        return
    if hasattr(data, "clone"):
        data[0, "k"] = "changed"
        data.insert_column(0, data.get_column("v").alias("late"))
        return
    if isinstance(data, dict):
        for values in data.values():
            values[0] = values[1]
            if isinstance(values, list | array.array):
                values.append(values[1])
        data["late"] = data.pop("k")
        return
    data[0].update(k="changed", late=1)
    if isinstance(data, list):
        data.append({"k": "late"})


OWNED: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(WANT),
    "Polars": polars_frame,
    "dict of lists": lambda: {name: list(values) for name, values in WANT.items()},
    "dict of arrays": lambda: {"k": np.array(WANT["k"], dtype=object), "v": np.ma.masked_equal([1, 2, 3, -1, 5], -1)},
    "dict of series": lambda: {"k": pd.Series(WANT["k"]), "v": pd.array(WANT["v"], dtype="Int64")},
    "dict of buffers": lambda: {"k": list(WANT["k"]), "v": array.array("q", [1, 2, 3, 4, 5])},
    "dict of Polars": lambda: {name: polars_frame().get_column(name) for name in WANT},
    "list of dicts": lambda: [dict(zip(WANT, row, strict=True)) for row in zip(*WANT.values(), strict=True)],
    "tuple of dicts": lambda: tuple(dict(zip(WANT, row, strict=True)) for row in zip(*WANT.values(), strict=True)),
}


@pytest.mark.parametrize("kind", OWNED)
def test_a_detached_table_does_not_follow_its_owner(kind: str) -> None:
    want = collect(OWNED[kind]())
    data = OWNED[kind]()
    kept = detached(open_table(data, "rows"))
    spoil(data)
    (frame,) = kept.batches()
    assert {name: read(frame.column(name), DTYPE[name]) for name in kept.names} == want[0]
    assert (kept.rows, kept.names, kept.describe) == (5, ["k", "v"], "rows")
    assert getattr(getattr(kept.native, "index", None), "name", None) is None


@pytest.mark.parametrize("kind", ["Arrow table", "Arrow stream"])
def test_a_detached_arrow_table_is_not_copied(kind: str) -> None:
    table = open_table(TABLES[kind](), "rows")
    assert detached(table).native is table.native


def test_mappings_and_tuples_of_mappings_are_tables() -> None:
    rows = tuple(MappingProxyType({"k": k, "v": v}) for k, v in zip(WANT["k"], WANT["v"], strict=True))
    for data in (MappingProxyType(WANT), rows):
        for table in (open_table(data, "rows"), detached(open_table(data, "rows"))):
            (frame,) = table.batches()
            assert {name: read(frame.column(name), DTYPE[name]) for name in frame.names} == WANT


def test_a_reader_is_read_once() -> None:
    table = open_table(arrow_table().to_reader(), "rows")
    list(table.batches())
    with pytest.raises(InputError, match="can be read only once"):
        list(table.batches())
    again = open_table(Stream(), "rows")
    assert [sum(frame.rows for frame in again.batches()) for _ in range(2)] == [5, 5]


BAD_TABLES: list[tuple[Any, str]] = [
    ((row for row in [{"a": 1}]), "generator is not a table; give a pandas, Polars or PyArrow table"),
    (5, "int is not a table"),
    (None, "NoneType is not a table"),
    (pd.DataFrame, "the class DataFrame is not a table"),
    (np.zeros((2, 2)), "numpy.ndarray is not a table"),
    (pd.Series([1]), "a pandas Series is one column, not a table"),
    (pa.array([1]), "a pyarrow Int64Array is one column"),
    (pa.chunked_array([[1]]), "a pyarrow ChunkedArray is one column"),
    ([{"a": 1}, 3, "x"], "row 1, value 3: is of type int, not a dict"),
    ([{1: 2}], "the column name 1 is of type int, not str"),
    ({1: [2]}, "the column name 1 is of type int, not str"),
    ({"a": [1], "b": [1, 2]}, "columns differ in length: 'a' has 1, 'b' has 2"),
    ({"a": 1}, "column 'a': is of type int, not a sequence; for one row, give a list of one dict"),
    ({"a": "xyz"}, "column 'a': is of type str, not a sequence"),
    ({"a": np.array(1)}, "column 'a': is of type ndarray, not a sequence"),
    (pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"]), "column 'a': stands 2 times"),
    (pa.table([[1], [2]], names=["a", "a"]), "column 'a': stands 2 times"),
    (pa.table([[1], [2]], names=["a", "a"]).to_reader(), "column 'a': stands 2 times"),
]


@pytest.mark.parametrize(("data", "message"), BAD_TABLES)
def test_what_is_no_table_is_refused_with_what_is(data: Any, message: str) -> None:
    assert message in refusal(data)


def test_labels_that_are_no_names_are_left_to_their_frame() -> None:
    frame = pd.DataFrame([[1, 2]], columns=["a", 7])
    assert open_table(frame, "rows").names == ["a"]


def test_all_problems_of_a_dict_are_told_together() -> None:
    told = refusal({"a": 1, "b": [1], 3: [1], "c": [1, 2]})
    assert "3 problems" in told


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    class Opaque:
        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            raise AssertionError

    with pytest.raises(MissingExtraError, match=r'pip install "featuredb\[arrow\]"'):
        open_table(Opaque(), "rows")


# --- files -------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pq.write_table(arrow_table(), path, row_group_size=2)
    return path


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_parquet_is_streamed_by_batches(parquet: Path) -> None:
    table = open_table(parquet, "rows")
    assert (table.names, table.rows, table.is_path, table.native) == (["k", "v"], 5, True, None)
    found, sizes = collect(str(parquet), batch_rows=2)
    assert found == WANT
    assert max(sizes) <= 2
    assert collect(parquet, columns=["v"])[0] == {"v": WANT["v"]}
    (frame,) = table.batches(["v"])
    assert frame.native.column_names == ["v"]


def test_parquet_is_read_under_either_suffix_and_when_empty(tmp_path: Path) -> None:
    path = tmp_path / "NONE.PQ"
    pq.write_table(arrow_table().slice(0, 0), path)
    assert collect(path) == ({"k": [], "v": []}, [0])


CSV = 'k,v\na,1\nb,2\n"",3\nd,\ne,5\n'


def test_csv_is_read_by_batches_and_empty_is_null(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", CSV)
    table = open_table(path, "rows")
    assert (table.names, table.rows, table.is_path, table.text) == (["k", "v"], None, True, True)
    assert collect(path, batch_rows=2) == (WANT, [2, 2, 1])
    assert collect(path, columns=["v"]) == ({"v": WANT["v"]}, [5])


def test_csv_with_zip_gzip_crlf_and_a_byte_order_mark(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "rows.csv.gz", "wt") as file:
        file.write(CSV)
    with zipfile.ZipFile(tmp_path / "rows.csv.zip", "w") as archive:
        archive.writestr("rows.csv", CSV)
    write(tmp_path / "crlf.csv", CSV.replace("\n", "\r\n"))
    write(tmp_path / "bom.csv", "\ufeff" + CSV)
    for name in ("rows.csv.gz", "rows.csv.zip", "crlf.csv", "bom.csv"):
        assert collect(tmp_path / name) == (WANT, [5])


def test_csv_keeps_text_that_looks_like_null_or_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "k,v\nNA,1\n007,\nnull,9223372036854775807\n")
    assert collect(path)[0] == {"k": ["NA", "007", "null"], "v": [1, None, 2**63 - 1]}


def test_csv_with_only_a_header(tmp_path: Path) -> None:
    assert collect(write(tmp_path / "header.csv", "k,v\n")) == ({"k": [], "v": []}, [0])


def test_csv_rows_that_are_too_short_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    text = 'k,v\n\n"a\n\nb",\n   \nb,"x,y"\nc\nd,4\ne\n'
    message = r"row 2: has 1 field, but the header has 2; write a comma .* \(2 rows\)"
    with gzip.open(tmp_path / "short.csv.gz", "wt") as file:
        file.write(text)
    with zipfile.ZipFile(tmp_path / "short.csv.zip", "w") as archive:
        archive.writestr("short.csv", text)
    write(tmp_path / "short.csv", text)
    for name in ("short.csv", "short.csv.gz", "short.csv.zip"):
        for batch_rows in (1, 10):
            assert re.search(f"{name}': {message}", refusal(tmp_path / name, batch_rows=batch_rows))


def test_csv_with_empty_last_fields_blank_lines_and_long_fields_is_no_shorter_than_its_header(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "x" * 200_000
    path = write(tmp_path / "rows.csv", f'k,v\r\n{long},\r\n\r\n"a\r\n\r\nb",2\r\n,\r\n')
    assert collect(path)[0] == {"k": [long, "a\r\n\r\nb", None], "v": [None, 2, None]}
    assert collect(write(tmp_path / "one.csv", "k\na\n\nb\n"))[0]["k"] == ["a", "b"]
    assert csv.field_size_limit() == limit


TYPED_CSV = (
    "code,at,big,flag,ratio,note,whole,huge,none\n"
    "007,2024-05-01,9007199254740993,True,1.5,NA,1,18446744073709551615,\n"
    ",2024-05-01T12:00+02:00,,,,,2,,\n"
    "x,,3,False,2,nan,3,1,\n"
)


def test_a_csv_file_is_read_whole_with_typed_columns_and_exact_nulls(tmp_path: Path) -> None:
    given = open_table(write(tmp_path / "rows.csv", TYPED_CSV), "rows")
    table = read_typed(given, {"code": DTYPES["string"], "at": DTYPES["timestamp"]})
    frame = table.native
    assert (table.rows, table.names, table.text) == (3, given.names, False)
    text = str(pd.Series(["a"]).dtype)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        "code": text, "at": "datetime64[us, UTC]", "big": "Int64", "flag": "boolean", "ratio": "float64",
        "note": text, "whole": "int64", "huge": "UInt64", "none": "float64",
    }  # fmt: skip
    found = {name: [None if pd.isna(value) else value for value in frame[name].tolist()] for name in frame}
    assert found == {
        "code": ["007", None, "x"],
        "at": [datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 1, 10, tzinfo=UTC), None],
        "big": [2**53 + 1, None, 3], "flag": [True, None, False], "ratio": [1.5, None, 2.0],
        "note": ["NA", None, "nan"], "whole": [1, 2, 3], "huge": [2**64 - 1, None, 1], "none": [None, None, None],
    }  # fmt: skip


def test_a_csv_file_of_a_header_alone_has_typed_key_columns(tmp_path: Path) -> None:
    given = open_table(write(tmp_path / "rows.csv", "code,at,label\n"), "rows")
    frame = read_typed(given, {"code": DTYPES["int64"], "at": DTYPES["timestamp"]}).native
    assert [str(frame[name].dtype) for name in ("code", "at")] == ["int64", "datetime64[us, UTC]"]
    assert frame.shape == (0, 3)


def test_all_wrong_values_of_a_typed_csv_file_are_told_together(tmp_path: Path) -> None:
    given = open_table(write(tmp_path / "rows.csv", "n,at\n1,2024-01-01\nx,never\n"), "rows")
    with pytest.raises(InputError, match=r"^rows: file .*2 problems") as caught:
        read_typed(given, {"n": DTYPES["int64"], "at": DTYPES["timestamp"]})
    assert [(p.column, p.row, p.value) for p in caught.value.problems] == [("n", 1, "'x'"), ("at", 1, "'never'")]


@pytest.mark.parametrize(
    ("text", "message"),
    [("n,m\n1,\n2\n", "row 1: has 1 field"), ("n,m\n1,2,3\n", "more fields"), ("n,m\n1,2\n1,2,3\n", "line 3")],
)
def test_a_typed_csv_file_must_have_rows_as_long_as_its_header(tmp_path: Path, text: str, message: str) -> None:
    given = open_table(write(tmp_path / "rows.csv", text), "rows")
    with pytest.raises(InputError, match=message):
        read_typed(given, {"n": DTYPES["int64"]})


BAD_FILES = {
    "short.csv": (b"k,v\na,1\nb\n", "file 'short.csv': row 1: has 1 field, but the header has 2"),
    "long.csv": (b"k,v\na,1,2\n", "the rows have more fields than the header"),
    "later.csv": (b"k,v\na,1\na,1,2\n", "Expected 2 fields in line 3, saw 3"),
    "quote.csv": (b'k,v\n"a,1\n', "cannot be read"),
    "latin.csv": (b"k\n\xe9\n", "'utf-8' codec can't decode"),
    "twice.csv": (b"k,k\n1,2\n", "column 'k': stands 2 times"),
    "blank.csv": (b"\n\n", "No columns to parse"),
    "empty.csv": (b"", "is empty"),
    "empty.parquet": (b"", "is empty"),
    "text.parquet": (b"k,v\n" * 100, "file 'text.parquet': cannot be read"),
    "no.csv.gz": (b"k,v\n", "cannot be read"),
    "no.csv.zip": (b"k,v\n", "cannot be read"),
    "rows.json": (b"{}", "the format of 'rows.json' is not known; its name must end in .parquet, .pq, .csv"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_told_why(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert message in refusal(name)


def test_missing_files_and_directories_are_told(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.csv")
    assert "must end in" in refusal(tmp_path / "none.txt")
    assert "is a directory" in refusal(tmp_path)


def test_a_damaged_parquet_page_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"v": list(range(10_000))}), path, compression="zstd")
    raw = bytearray(path.read_bytes())
    raw[4:2000] = bytes(1996)
    path.write_bytes(raw)
    assert "cannot be read" in refusal(path)


# --- sources -----------------------------------------------------------------------------------


def test_a_file_source_opens_its_file_and_survives_storage(parquet: Path) -> None:
    source = FileSource(parquet, event_timestamp_column="t", field_mapping={"kk": "k"})  # type: ignore[arg-type]
    assert isinstance(source, Source)
    assert source.path == str(parquet)
    assert collect(source) == (WANT, [5])
    assert source_from_record(source.to_record()) == source
    assert source.to_record()["type"] == "file"


def test_a_relative_path_is_of_the_working_directory(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FileSource(parquet.name)
    with pytest.raises(InputError, match="there is no file"):
        source.open()
    monkeypatch.chdir(parquet.parent)
    assert source.open().rows == 5


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ({"path": 3}, ["path must be a str or a pathlib.Path"]),
        ({"path": b"x.csv"}, ["path must be a str"]),
        ({"path": "x.json", "event_timestamp_column": ""}, ["its name must end in", "event_timestamp_column must be"]),
        ({"path": "x.csv", "created_timestamp_column": 3}, ["created_timestamp_column must be the name of a column"]),
        ({"path": "x.csv", "created_timestamp_column": "event_timestamp"}, ["cannot both be column 'event_timestamp'"]),
        ({"path": "x.csv", "field_mapping": {"a": 1}}, ["field_mapping must map"]),
        ({"path": "x.csv", "field_mapping": ["a"]}, ["field_mapping must map"]),
    ],
)
def test_a_file_source_checks_its_arguments(arguments: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(DefinitionError) as caught:
        FileSource(**arguments)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("record", [{"type": "kafka"}, {"type": "file"}, {}, None, {"type": ["file"]}])
def test_a_stored_source_that_is_not_known_is_told(record: Any) -> None:
    with pytest.raises(CorruptionError, match="a stored source"):
        source_from_record(record)
