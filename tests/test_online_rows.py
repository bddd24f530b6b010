"""Packed rows, the online index and the readers: what is written is what is read, or an error says so."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featuredb.columns import Column, Heap
from featuredb.errors import CorruptionError, InputError
from featuredb.limits import ABSENT_US, NS_ONLINE, TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from featuredb.online.index import OnlineIndex
from featuredb.online.keys import key_columns
from featuredb.online.query import OnlineQuery
from featuredb.online.reader import OnlineReader, read_rows
from featuredb.online.response import Status
from featuredb.online.row import RowLayout
from featuredb.online.row_reader import RowReader
from featuredb.schema import DTYPES, SCALAR_NAMES, Feature, FeatureTable
from featuredb.storage.env import open_env
from featuredb.storage.keys import encode_keys, sort_order
from featuredb.storage.registry import StoredTable

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- columns from plain values ------------------------------------------------------------------
def column_of(name, values):
    """A `Column` of plain values as `values_of` gives them, None for null."""
    dtype = DTYPES[name]
    valid = np.array([value is not None for value in values], dtype=np.bool_)
    heap = None
    if dtype.is_variable:
        heap = Heap.of([v.encode() if isinstance(v, str) else v for v in values if v is not None])
        data = np.zeros(len(values), dtype=dtype.numpy)
        data[valid] = np.arange(valid.sum())
    elif name == "timestamp":
        data = np.array([0 if v is None else (v - EPOCH) // timedelta(microseconds=1) for v in values], dtype="<i8")
    else:
        data = np.array([0 if value is None else value for value in values], dtype=dtype.numpy)
    return Column(dtype, data, None if valid.all() else valid, heap)


def values_of(column):
    """Plain Python values of a column, None for null."""
    if column.heap is not None:
        entries = column.heap.tolist()
        values = [entries[i] if column.valid is None or column.valid[n] else None for n, i in enumerate(column.data)]
        return [v.decode() if column.dtype.name == "string" and v is not None else v for v in values]
    values = column.data.tolist()
    if column.dtype.name == "timestamp":
        values = [EPOCH + timedelta(microseconds=value) for value in values]
    return [v if column.valid is None or column.valid[n] else None for n, v in enumerate(values)]


def value_strategy(name):
    dtype = DTYPES[name]
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        return st.integers(int(info.min), int(info.max))
    if dtype.is_float:
        return st.floats(width=int(name[5:]), allow_nan=False)
    if name == "timestamp":
        return st.integers(TIMESTAMP_MIN_US, TIMESTAMP_MAX_US).map(lambda us: EPOCH + timedelta(microseconds=us))
    return {"bool": st.booleans(), "string": st.text(max_size=8), "bytes": st.binary(max_size=8)}[name]


@st.composite
def packed_cases(draw):
    names = draw(st.lists(st.sampled_from(SCALAR_NAMES), min_size=1, max_size=18))
    rows = draw(st.integers(0, 5))
    values = [draw(st.lists(st.none() | value_strategy(name), min_size=rows, max_size=rows)) for name in names]
    return names, values, rows


# --- rows ---------------------------------------------------------------------------------------
KEYS = [b"p" + bytes(4) + f"key {n}".encode() for n in range(50)]


def pack(layout, columns, rows, event=7, created=ABSENT_US, commit=3):
    """Of rows of the keys that `KEYS` has."""
    keys = Heap.of(KEYS[:rows])
    return layout.pack_many(
        keys,
        np.full(rows, event, np.int64),
        np.full(rows, created, np.int64),
        np.full(rows, commit, np.uint64),
        columns,
    )


def unpack_one(layout, row, full_key, table="", key=None):
    """Event timestamp and every value of one row."""
    return RowReader(layout, tuple(layout.places)).read(row, full_key, table, key)


def unpack_each(layout, rows):
    return [unpack_one(layout, row, key) for row, key in zip(rows, KEYS, strict=False)]


@given(packed_cases())
def test_packed_rows_of_any_dtypes_and_nulls_are_read_back_one_by_one_and_together(case):
    names, values, rows = case
    layout = RowLayout(2, [(10 + i, DTYPES[name]) for i, name in enumerate(names)])
    columns = [column_of(name, column) for name, column in zip(names, values, strict=True)]
    buffers = pack(layout, columns, rows).tolist()
    assert unpack_each(layout, buffers) == [(7, [column[row] for column in values]) for row in range(rows)]
    event, created, commit, unpacked = layout.unpack_many([memoryview(b) for b in buffers], KEYS[:rows])
    assert [values_of(column) for column in unpacked] == values
    assert [column.dtype.name for column in unpacked] == names
    assert (event.tolist(), created.tolist(), commit.tolist()) == ([7] * rows, [ABSENT_US] * rows, [3] * rows)


def test_every_dtype_round_trips_at_its_extremes_with_nan_and_infinities_kept():
    names = [name for name in SCALAR_NAMES if DTYPES[name].is_integer]
    values = [[int(np.iinfo(name).min), int(np.iinfo(name).max)] for name in names]
    names += ["timestamp", "float32", "float64"]
    values += [[EPOCH + timedelta(microseconds=us) for us in (TIMESTAMP_MIN_US, TIMESTAMP_MAX_US)]]
    values += [[float("inf"), float("-inf")], [float("nan"), -0.0]]
    layout = RowLayout(0, [(i, DTYPES[name]) for i, name in enumerate(names)])
    buffers = pack(layout, [column_of(n, v) for n, v in zip(names, values, strict=True)], 2).tolist()
    assert repr([row for _, row in unpack_each(layout, buffers)]) == repr(
        [list(row) for row in zip(*values, strict=True)]
    )
    assert repr([values_of(column) for column in layout.unpack_many(buffers, KEYS[:2])[3]]) == repr(values)


def test_only_the_places_asked_for_are_unpacked():
    layout = RowLayout(0, [(5, DTYPES["string"]), (6, DTYPES["int8"]), (7, DTYPES["string"])])
    columns = [column_of("string", ["a", None]), column_of("int8", [1, 2]), column_of("string", ["xyz", "w"])]
    _, _, _, found = layout.unpack_many(pack(layout, columns, 2).tolist(), KEYS[:2], places=[2, 1])
    assert [values_of(column) for column in found] == [["xyz", "w"], [1, 2]]


def test_rows_that_share_a_heap_larger_than_they_are_pack_only_their_own_entries():
    heap = Heap.of([b"%d" % i for i in range(100)])
    column = Column(DTYPES["bytes"], np.array([99, 0, 7], "<i4"), np.array([True, False, True]), heap)
    layout = RowLayout(0, [(1, DTYPES["bytes"])])
    found = unpack_each(layout, pack(layout, [column], 3).tolist())
    assert [row for _, row in found] == [[b"99"], [None], [b"7"]]


@pytest.mark.parametrize("names", [("float64", "int32"), ("float64", "string", "bytes")])
def test_a_change_of_any_byte_or_of_the_length_is_detected(names):
    values = {"float64": 1.5, "int32": 7, "string": "héllo", "bytes": b"\x00\xff"}
    layout = RowLayout(1, [(i, DTYPES[name]) for i, name in enumerate(names)])
    row = pack(layout, [column_of(name, [values[name]]) for name in names], 1).tolist()[0]
    damaged = [row[:i] + bytes([row[i] ^ bit]) + row[i + 1 :] for i in range(len(row)) for bit in (1, 0x80)]
    damaged += [row[:length] for length in range(len(row))] + [row + b"\x00"]
    for bad in damaged:
        with pytest.raises(CorruptionError, match=r"table 'weather', key 'JFK'"):
            unpack_one(layout, bad, KEYS[0], "weather", "JFK")
        with pytest.raises(CorruptionError, match=r"table 'weather', key 'second'"):
            layout.unpack_many([row, bad], [KEYS[0], KEYS[0]], "weather", ["first", "second"].__getitem__)


def test_a_row_is_none_of_another_key():
    layout = RowLayout(1, [(1, DTYPES["int32"])])
    row, other = pack(layout, [column_of("int32", [7, 7])], 2).tolist()
    assert row[4:] == other[4:]
    assert unpack_one(layout, row, KEYS[0]) == unpack_one(layout, other, KEYS[1])
    with pytest.raises(CorruptionError, match=r"key 'JFK': its checksum does not match"):
        unpack_one(layout, row, KEYS[1], "weather", "JFK")
    with pytest.raises(CorruptionError, match=r"key 'second': its checksum does not match"):
        layout.unpack_many([row, row], KEYS[:2], "weather", ["first", "second"].__getitem__)


# --- the index ----------------------------------------------------------------------------------
def stored_table(name="weather", table_id=1, entities=(("origin", "string"),), features=(), max_age=None, layouts=None):
    """A table as the registry would hold it; `features` are (id, name, dtype), `layouts` default to those."""
    definition = FeatureTable(name, [e for e, _ in entities], [Feature(f, d) for _, f, d in features], max_age=max_age)
    current = tuple((i, dtype) for i, _, dtype in features)
    return StoredTable(
        id=table_id,
        space_id=1,
        definition=definition,
        key_dtypes=tuple(DTYPES[dtype] for _, dtype in entities),
        feature_ids={f: i for i, f, _ in features},
        layouts=(*(layouts or ()), current),
    )


@pytest.fixture
def env(tmp_path):
    env = open_env(str(tmp_path / "a.fdb"), create=True, readonly=False, durable=False)
    yield env
    env.close()


def put(env, table, keys, event, columns, created=None, commit=1):
    """Update the online rows; `keys` and `columns` hold plain values by name."""
    entities = [
        column_of(dtype.name, keys[n]) for n, dtype in zip(table.definition.entities, table.key_dtypes, strict=True)
    ]
    dtypes = {f.name: f.dtype for f in table.definition.features}
    given = {name: column_of(dtypes[name], values) for name, values in columns.items()}
    event = np.array(event, np.int64)
    created = np.full(len(event), ABSENT_US) if created is None else np.array(created, np.int64)
    with env.writer(10):
        return env.write(
            lambda txn: OnlineIndex(table).update(txn, encode_keys(entities), event, created, commit, given)
        )


def fetch(env, table, keys, features=None):
    entities = [
        column_of(dtype.name, keys[n]) for n, dtype in zip(table.definition.entities, table.key_dtypes, strict=True)
    ]
    with env.read() as txn:
        rows = OnlineIndex(table).read(txn, encode_keys(entities), features)
    return rows, {name: values_of(column) for name, column in rows.columns.items()}


TEMP = ((1, "temp", "float64"),)


@pytest.mark.parametrize(
    ("event", "created", "temp", "written", "left"),
    [
        (11, ABSENT_US, 2.0, 1, 2.0),  # a later event
        (9, 99, 2.0, 0, 1.0),  # an earlier event, whenever it was created
        (10, 6, 2.0, 1, 2.0),  # the same event, created later
        (10, 4, 2.0, 0, 1.0),  # the same event, created earlier
        (10, ABSENT_US, 2.0, 0, 1.0),  # absent is older than any
        (10, 5, 2.0, 1, 2.0),  # the same row with other values
        (10, 5, None, 1, None),  # the same row with a null
        (10, 5, 1.0, 0, 1.0),  # the same row again
    ],
)
def test_the_greatest_row_by_event_then_created_stays(env, event, created, temp, written, left):
    table = stored_table(features=TEMP)
    assert put(env, table, {"origin": ["JFK"]}, [10], {"temp": [1.0]}, [5]) == 1
    assert put(env, table, {"origin": ["JFK"]}, [event], {"temp": [temp]}, [created], commit=2) == written
    rows, columns = fetch(env, table, {"origin": ["JFK"]})
    assert columns["temp"] == [left]
    assert rows.commit.tolist() == [2 if written else 1]


def test_a_batch_updates_some_keys_inserts_others_and_leaves_the_rest(env):
    table = stored_table(entities=(("id", "int64"),), features=((1, "v", "int32"), (2, "s", "string")))
    assert put(env, table, {"id": [5, -1, 3]}, [10, 10, 10], {"v": [1, 2, 3], "s": ["a", "b", None]}) == 3
    written = put(env, table, {"id": [9, 3, -1, 5]}, [1, 11, 9, 10], {"v": [9, 33, 0, 1], "s": ["n", "m", "x", "a"]})
    assert written == 2
    rows, columns = fetch(env, table, {"id": [5, 3, 7, 9, 3, -1]})
    assert columns == {"v": [1, 33, None, 9, 33, 2], "s": ["a", "m", None, "n", "m", "b"]}
    assert rows.found.tolist() == [True, True, False, True, True, True]
    assert rows.event.tolist() == [10, 11, ABSENT_US, 1, 11, 10]


@pytest.mark.parametrize("other_key", [NS_ONLINE + b"\x00\x00\x00\x00", NS_ONLINE + b"\x00\x00\x00\x09"])
def test_a_first_load_is_the_same_before_and_behind_other_keys_of_the_file(env, other_key):
    with env.writer(10):
        env.write(lambda txn: txn.put(other_key, b"x"))
    table = stored_table(entities=(("id", "uint16"),), features=((1, "v", "int64"),))
    ids = np.random.default_rng(0).permutation(500).tolist()
    assert put(env, table, {"id": ids}, [1] * 500, {"v": ids}) == 500
    assert put(env, table, {"id": ids}, [1] * 500, {"v": ids}) == 0
    with env.read() as txn:
        index = OnlineIndex(table)
        [(keys, rows)] = index.scan(txn)
        assert values_of(rows.columns["v"]) == sorted(ids)
        assert keys.tolist() == sorted(keys.tolist())
        assert index.count(txn) == 500
    with env.writer(10):
        assert env.write(OnlineIndex(table).delete_all) == 500
    with env.read() as txn:
        assert index.count(txn) == 0
        assert bytes(txn.get(other_key)) == b"x"


@given(st.lists(st.binary(max_size=12), max_size=80) | st.lists(st.binary(min_size=3, max_size=3), max_size=80)
       | st.lists(st.binary(min_size=11, max_size=11), max_size=80))  # fmt: skip
def test_sort_order_is_the_order_of_bytes(keys):
    assert Heap.of(keys).take(sort_order(Heap.of(keys))).tolist() == sorted(keys)


def test_rows_of_older_layouts_read_null_for_new_features_and_lose_removed_ones(env):
    old = stored_table(features=((1, "a", "int32"), (2, "b", "string")))
    put(env, old, {"origin": ["x", "y"]}, [10, 10], {"a": [1, 2], "b": ["p", "q"]})
    new = stored_table(features=((2, "b", "string"), (3, "c", "float64")), layouts=old.layouts)
    put(env, new, {"origin": ["z", "y"]}, [10, 11], {"b": ["r", None], "c": [0.5, 1.5]})
    rows, columns = fetch(env, new, {"origin": ["z", "x", "nobody", "y"]})
    assert columns == {"b": ["r", "p", None, None], "c": [0.5, None, None, 1.5]}
    assert rows.found.tolist() == [True, True, False, True]
    query = OnlineQuery([(new, ["c", "b"], ["c", "b"])])
    with env.read(views=False) as txn:
        assert query.get(txn, "x", 0) == {"c": None, "b": "p"}
        assert query.get(txn, "z", 0) == {"c": 0.5, "b": "r"}
    with env.read() as txn:
        [(_, scanned)] = OnlineIndex(new).scan(txn)
    assert values_of(scanned.columns["b"]) == ["p", None, "r"]


def test_the_same_content_in_an_older_layout_counts_as_the_same_row(env):
    old = stored_table(features=((1, "a", "int32"),))
    put(env, old, {"origin": ["x", "y"]}, [10, 10], {"a": [1, 2]})
    new = stored_table(features=((1, "a", "int32"), (3, "c", "float64")), layouts=old.layouts)
    assert put(env, new, {"origin": ["x", "y"]}, [10, 10], {"a": [1, 2], "c": [None, 0.5]}) == 1
    assert fetch(env, new, {"origin": ["x", "y"]})[1] == {"a": [1, 2], "c": [None, 0.5]}


def test_a_damaged_row_names_its_table_and_key_in_every_read_and_blocks_its_update(env):
    table = stored_table(entities=(("id", "int64"), ("code", "string")), features=TEMP)
    put(env, table, {"id": [4], "code": ["no"]}, [10], {"temp": [1.0]})
    index = OnlineIndex(table)
    with env.read() as txn:
        [(key, value)] = [(bytes(k), bytes(v)) for k, v in txn.scan(index.prefix)]
    where = r"table 'weather', key \(4, 'no'\)"
    query = OnlineQuery([(table, ["temp"], ["temp"])])
    for bad in (b"", value[:5], value[:29], value[:4] + b"\xff\xff" + value[6:], value[:-1] + b"\x01"):
        with env.writer(10):
            env.write(lambda txn, bad=bad: txn.put(key, bad))
        with pytest.raises(CorruptionError, match=where):
            fetch(env, table, {"id": [4], "code": ["no"]})
        with env.read(views=False) as txn, pytest.raises(CorruptionError, match=where):
            query.get(txn, (4, "no"), 0)
        with env.read() as txn, pytest.raises(CorruptionError, match=where):
            list(index.scan(txn))
        with pytest.raises(CorruptionError, match=where):
            put(env, table, {"id": [4], "code": ["no"]}, [11], {"temp": [1.0]})


# --- readers ------------------------------------------------------------------------------------
NOW = datetime(2024, 1, 1, 12, tzinfo=UTC)
NOW_US = (NOW - EPOCH) // timedelta(microseconds=1)
HOUR_US = 3_600_000_000


def never():
    raise AssertionError("not to be pickled")


def reader_of(env, *selections):
    return OnlineReader(env, lambda txn: (1, OnlineQuery(selections)), lambda txn: 1, never)


def response_of(env, query, keys, now_us=NOW_US):
    with env.read() as txn:
        return read_rows(txn, query, key_columns(query.entities, keys), now_us)


def test_statuses_are_tested_in_order_and_the_max_age_itself_is_inside(env):
    table = stored_table(features=TEMP, max_age=timedelta(hours=1))
    keys = ["at", "over", "over null", "null", "future"]
    events = [NOW_US - HOUR_US, NOW_US - HOUR_US - 1, NOW_US - HOUR_US - 1, NOW_US, NOW_US + HOUR_US]
    put(env, table, {"origin": keys}, events, {"temp": [1.0, 2.0, None, None, 5.0]})
    response = response_of(env, OnlineQuery([(table, ["temp"], ["temp"])]), [*keys, "nobody", None])
    outside, missing = Status.OUTSIDE_MAX_AGE, Status.NOT_FOUND
    assert response.statuses["temp"] == [
        Status.PRESENT, outside, outside, Status.NULL_VALUE, Status.PRESENT, missing, missing
    ]  # fmt: skip
    assert all(type(status) is Status for status in response.statuses["temp"])
    assert response.to_dict() == {
        "origin": [*keys, "nobody", None],
        "temp": [1.0, None, None, None, 5.0, None, None],
    }
    expected = np.array([*events, ABSENT_US, ABSENT_US]).view("datetime64[us]")
    np.testing.assert_array_equal(response.event_timestamps["weather"], expected)
    assert np.isnat(response.event_timestamps["weather"]).tolist() == [False] * 5 + [True] * 2
    reader = reader_of(env, (table, ["temp"], ["temp"]))
    got = [reader.get(key, now=NOW)["temp"] for key in [*keys, "nobody", None]]
    assert got == response.to_dict()["temp"]


def two_tables(env):
    weather = stored_table(features=(*TEMP, (2, "wind", "int16")))
    traffic = stored_table(
        "traffic", 2, (("origin", "string"), ("hour", "int8")), ((1, "cars", "uint64"), (2, "note", "string"))
    )
    put(env, weather, {"origin": ["JFK", "LGA"]}, [1, 2], {"temp": [1.5, 2.5], "wind": [None, 3]})
    put(env, traffic, {"origin": ["JFK", "JFK"], "hour": [1, 2]}, [5, 6], {"cars": [2**64 - 1, 8], "note": ["é", None]})
    return weather, traffic


def test_one_query_reads_several_tables_in_the_order_asked(env):
    weather, traffic = two_tables(env)
    selections = [(weather, ["wind"], ["wind"]), (traffic, ["note", "cars"], ["n", "cars"]), (weather, ["temp"], ["t"])]
    query = OnlineQuery(selections)
    assert list(query.entities) == ["origin", "hour"]
    rows = [{"origin": "JFK", "hour": 1}, {"hour": 9, "origin": "LGA", "other": 0}, {"origin": "JFK", "hour": 1},
            {"origin": "JFK", "hour": None}]  # fmt: skip
    response = response_of(env, query, rows)
    assert list(response.to_dict().items()) == [
        ("origin", ["JFK", "LGA", "JFK", "JFK"]),
        ("hour", [1, 9, 1, None]),
        ("wind", [None, 3, None, None]),
        ("n", ["é", None, "é", None]),
        ("cars", [2**64 - 1, None, 2**64 - 1, None]),
        ("t", [1.5, 2.5, 1.5, 1.5]),
    ]
    assert len(response) == 4
    reader = reader_of(env, *selections)
    expected = [dict(zip(("wind", "n", "cars", "t"), row, strict=True)) for row in zip(
        *(response.to_dict()[name] for name in ("wind", "n", "cars", "t")), strict=True)]  # fmt: skip
    assert [list(reader.get(row).items()) for row in rows] == [list(row.items()) for row in expected]
    assert [reader.get((row["origin"], row["hour"])) for row in rows] == expected


def test_many_keys_may_come_in_any_container_and_repeat(env):
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    _, traffic = two_tables(env)
    reader = reader_of(env, (traffic, ["cars"], ["cars"]))
    columns = {"origin": ["JFK", "LGA", "JFK", "JFK"], "hour": [2, 2, 1, 2]}
    tuples = list(zip(*columns.values(), strict=True))
    containers = [tuples, [dict(zip(columns, row, strict=True)) for row in tuples], columns,
                  {"hour": np.array(columns["hour"]), "origin": np.array(columns["origin"])},
                  pd.DataFrame(columns), pa.table(columns), pl.DataFrame(columns)]  # fmt: skip
    for keys in containers:
        found = reader.get_many(keys)
        assert found.columns["cars"].tolist() == [8, 0, 2**64 - 1, 8]
        assert found.columns["cars"].dtype == np.uint64
        assert found.statuses["cars"].tolist() == [Status.PRESENT, Status.NOT_FOUND, Status.PRESENT, Status.PRESENT]
        assert found.statuses["cars"].dtype == np.uint8
        assert found.event_timestamps["traffic"].astype("int64").tolist() == [6, ABSENT_US, 5, 6]
        assert len(found) == 4
    assert len(reader.get_many([])) == 0


def test_an_array_of_a_single_entity_is_read_like_its_values(env):
    table = stored_table(entities=(("id", "int64"),), features=((1, "when", "timestamp"), (2, "f", "float32")))
    ids = list(range(0, 400, 2))
    put(env, table, {"id": ids}, [1] * 200, {"when": [EPOCH] * 200, "f": [i / 4 for i in ids]})
    reader = reader_of(env, (table, ["f", "when"], ["f", "when"]))
    asked = np.random.default_rng(1).integers(-5, 400, 300)
    many = reader.get_many(asked)
    single = [reader.get(key) for key in asked]
    assert [None if np.isnan(f) else f for f in many.columns["f"].tolist()] == [row["f"] for row in single]
    assert np.isnat(many.columns["when"]).tolist() == [row["when"] is None for row in single]
    assert {row["when"] for row in single} == {None, EPOCH}
    assert reader.get_many(asked.tolist()).columns["f"].tobytes() == many.columns["f"].tobytes()


def test_a_key_too_long_to_be_stored_is_not_found(env):
    table = stored_table(features=TEMP)
    put(env, table, {"origin": ["JFK"]}, [1], {"temp": [1.0]})
    reader = reader_of(env, (table, ["temp"], ["temp"]))
    assert reader.get("x" * 1000) == {"temp": None}
    assert reader.get_many(["x" * 1000, "JFK"]).statuses["temp"].tolist() == [Status.NOT_FOUND, Status.PRESENT]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([(4, "x"), ("JFK", 1)], r"'origin'.*row 0.*4"),
        ([("JFK", 1), ("JFK", "x")], r"'hour'.*row 1.*'x'"),
        ([("JFK", 300)], r"'hour'.*row 0.*300"),
        ([{"origin": "JFK", "hour": 1}, {"orign": "JFK", "hour": 1}], r"'origin'.*row 1.*missing"),
        ([("JFK", 1), ("JFK",)], r"row 1.*\(origin, hour\)"),
        (["JFK"], r"row 0, value 'JFK'.*\(origin, hour\)"),
        ({"origin": ["JFK"]}, r"'hour' is missing"),
        ({"origin": "JFK", "hour": [1]}, r"'origin'.*give a list"),
        ({"origin": ["JFK", "LGA"], "hour": [1]}, r"different lengths"),
        (np.array(["JFK"]), r"dict of arrays: origin, hour"),
        ("JFK", r"put it in a list"),
    ],
)
def test_a_key_of_the_wrong_shape_or_dtype_says_where_and_what(env, keys, message):
    _, traffic = two_tables(env)
    reader = reader_of(env, (traffic, ["cars"], ["cars"]))
    with pytest.raises(InputError, match=message):
        reader.get_many(keys)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ((4, 1), r"'origin'.*row 0.*4"),
        (("JFK", True), r"'hour'.*True"),
        ("JFK", r"'JFK' must have a value for each of origin, hour"),
        (("JFK", 1, 2), r"must have a value for each"),
        ({"origin": "JFK"}, r"no value for entity 'hour'"),
    ],
)
def test_a_single_key_of_the_wrong_shape_or_dtype_says_what(env, key, message):
    _, traffic = two_tables(env)
    with pytest.raises(InputError, match=message):
        reader_of(env, (traffic, ["cars"], ["cars"])).get(key)


def test_equal_output_names_are_refused_together_with_the_remedy(env):
    weather, traffic = two_tables(env)
    with pytest.raises(InputError, match="full_feature_names=True") as error:
        OnlineQuery([(weather, ["temp", "wind"], ["x", "hour"]), (traffic, ["cars"], ["x"])])
    assert len(error.value.problems) == 2


def test_a_prepared_reader_sees_new_rows_and_new_definitions(env):
    old = stored_table(features=TEMP)
    current = [1, old, ["temp"]]
    resolve = lambda txn: (current[0], OnlineQuery([(current[1], current[2], current[2])]))  # noqa: E731
    reader = OnlineReader(env, resolve, lambda txn: current[0], never)
    assert reader.get("JFK") == {"temp": None}
    put(env, old, {"origin": ["JFK"]}, [1], {"temp": [1.0]})
    assert reader.get("JFK") == {"temp": 1.0}
    new = stored_table(features=(*TEMP, (2, "wind", "int8")), layouts=old.layouts)
    current[:] = [2, new, ["temp", "wind"]]
    put(env, new, {"origin": ["LGA"]}, [1], {"temp": [2.0], "wind": [3]})
    assert reader.get("JFK") == {"temp": 1.0, "wind": None}
    assert reader.get_many(["LGA", "JFK"]).columns["wind"].tolist() == [3, 0]


def test_a_response_converts_to_pandas_arrow_and_numpy(env):
    weather, _ = two_tables(env)
    response = response_of(env, OnlineQuery([(weather, ["temp", "wind"], ["temp", "wind"])]), ["JFK", "nobody", "LGA"])
    frame = response.to_pandas()
    assert list(frame.columns) == ["origin", "temp", "wind"]
    assert frame["wind"].isna().tolist() == [True, True, False]
    frame.loc[0, "temp"] = 9.0
    table = response.to_arrow()
    assert table.to_pydict() == response.to_dict()
    assert table["temp"].to_pylist() == [1.5, None, 2.5]
    assert response.columns["wind"].tolist() == [None, None, 3]
    assert response.columns["origin"].tolist() == ["JFK", "nobody", "LGA"]


def test_a_first_online_read_loads_neither_pandas_nor_arrow_nor_numba(env):
    code = (
        "import sys; from featuredb.online import reader; from featuredb.storage.env import open_env\n"
        "from test_online_rows import stored_table, reader_of, TEMP\n"
        f"env = open_env({env.path!r}, create=False, readonly=False, durable=False)\n"
        "r = reader_of(env, (stored_table(features=TEMP), ['temp'], ['temp']))\n"
        "assert r.get('JFK') == {'temp': 1.0}; r.get_many(['JFK']); r.get_many([{'origin': 'x'}])\n"
        "bad = {'pandas', 'pyarrow', 'numba', 'polars'} & set(sys.modules); assert not bad, bad"
    )
    put(env, stored_table(features=TEMP), {"origin": ["JFK"]}, [1], {"temp": [1.0]})
    code = f"import sys; sys.path.insert(0, {__file__.rpartition('/')[0]!r})\n" + code
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.none() | st.integers(0, 2), st.integers(0, 2))))
def test_any_order_of_updates_leaves_what_a_dict_of_greatest_rows_holds(tmp_path_factory, updates):
    table = stored_table(entities=(("id", "int8"),), features=((1, "v", "int8"),))
    env = open_env(str(tmp_path_factory.mktemp("o") / "a.fdb"), create=True, readonly=False, durable=False)
    model: dict[int, tuple[int, int, int]] = {}
    for key, event, created, value in updates:
        created_us = ABSENT_US if created is None else created
        old = model.get(key)
        wins = old is None or ((event, created_us) >= old[:2] and (event, created_us, value) != old)
        assert put(env, table, {"id": [key]}, [event], {"v": [value]}, [created_us]) == wins
        if wins:
            model[key] = (event, created_us, value)
    rows, columns = fetch(env, table, {"id": list(range(4))})
    assert rows.found.tolist() == [key in model for key in range(4)]
    assert columns["v"] == [model[key][2] if key in model else None for key in range(4)]
    env.close()


@pytest.mark.parametrize("key", ["id", "name"])
def test_bulk_updates_in_batches_of_any_size_leave_the_greatest_rows(env, monkeypatch, key):
    monkeypatch.setattr("featuredb.online.index.BATCH_ROWS", 16)
    rng = np.random.default_rng(9)
    dtype, names = ("int64", lambda ids: ids) if key == "id" else ("string", lambda ids: [f"user {i}" for i in ids])
    table = stored_table(entities=((key, dtype),), features=((1, "v", "int32"), (2, "s", "string")))
    model: dict[int, tuple[int, int, str | None]] = {}
    for commit in range(1, 7):
        ids = rng.choice(700, 400, replace=False).tolist()
        events, values = rng.integers(0, 3, 400).tolist(), rng.integers(0, 2, 400).tolist()
        texts = [None if value else "x" * (i % 9) for i, value in zip(ids, values, strict=True)]
        fresh = {i: (event, value, text) for i, event, value, text in zip(ids, events, values, texts, strict=True)}
        winners = {i: row for i, row in fresh.items() if i not in model or (row[0] >= model[i][0] and row != model[i])}
        written = put(env, table, {key: names(ids)}, events, {"v": values, "s": texts}, commit=commit)
        assert written == len(winners)
        model |= winners
    rows, columns = fetch(env, table, {key: names(list(range(700)))})
    assert rows.found.tolist() == [i in model for i in range(700)]
    assert [columns["v"][i] for i in model] == [value for _, value, _ in model.values()]
    assert [columns["s"][i] for i in model] == [text for _, _, text in model.values()]
