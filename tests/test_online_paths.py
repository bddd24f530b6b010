"""Three ways to read online values: key by key, columns of few rows, compiled columns of many. All give the same."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import YEAR_1_US, YEAR_9999_US, Case, as_plain, cases, container, to_datetime
from test_online import keys_only
from test_online_rows import column_of, put, stored_table, value_strategy, values_of

import featuredb as fdb
from featuredb.columns import Column
from featuredb.frames.arrays import to_pylist
from featuredb.online import decode, few, index, kernels
from featuredb.online.index import OnlineIndex, OnlineRows
from featuredb.schema import SCALAR_NAMES
from featuredb.storage.crc import crc_tables, seal
from featuredb.storage.env import Env, ReadTxn, open_env
from featuredb.storage.keys import encode_keys
from featuredb.storage.registry import StoredTable


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Env]:
    env = open_env(str(tmp_path / "a.fdb"), create=True, readonly=False, durable=False)
    yield env
    env.close()


def general(table: StoredTable, txn: ReadTxn, keys: Any, names: list[str]) -> OnlineRows:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "COMPILED_KEYS_MIN", 1 << 60)
        return OnlineIndex(table).read(txn, keys, names)


def compiled(table: StoredTable, txn: ReadTxn, keys: Any, names: list[str], threads: int | None = None) -> OnlineRows:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "COMPILED_KEYS_MIN", 0)
        patch.setattr(decode, "_ROWS_PER_THREAD_MIN", 3)
        patch.setattr(decode, "_BLOCK_ROWS", 2)
        return OnlineIndex(table).read(txn, keys, names, threads)


def assert_same(one: OnlineRows, other: OnlineRows) -> None:
    for name in ("found", "event", "created", "commit"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert list(one.columns) == list(other.columns)
    for name, column in one.columns.items():
        twin = other.columns[name]
        assert column.dtype == twin.dtype
        assert (column.valid is None) == (twin.valid is None), name
        assert repr(values_of(column)) == repr(values_of(twin)), name
        if not column.dtype.is_variable:
            # What stands where there is a null is part of the promise of `OnlineArrays`.
            assert column.data.tobytes() == twin.data.tobytes(), name


@st.composite
def stored_cases(draw: st.DrawFn) -> tuple[list[str], int, list[list[Any]], list[list[Any]], list[int], list[int]]:
    """dtypes, how many of them the older layout has, values of older and newer rows, features asked for, keys."""
    names = draw(st.lists(st.sampled_from(SCALAR_NAMES), min_size=1, max_size=12))
    old = draw(st.integers(1, len(names)))
    rows = draw(st.integers(0, 8)), draw(st.integers(0, 8))
    values = [
        [draw(st.lists(st.none() | value_strategy(name), min_size=count, max_size=count)) for name in names]
        for count in rows
    ]
    asked = draw(st.lists(st.integers(0, len(names) - 1), min_size=1, max_size=8, unique=True))
    keys = draw(st.lists(st.integers(-1, 17), max_size=30))
    return names, old, values[0], values[1], asked, keys


def _keys(keys: list[int]) -> Any:
    return encode_keys([column_of("int64", keys)])


@given(stored_cases(), st.sampled_from([None, 1, 2, 3]))
def test_compiled_reads_equal_general_ones_for_any_dtypes_nulls_layouts_and_threads(
    tmp_path_factory: pytest.TempPathFactory, case: Any, threads: int | None
) -> None:
    names, old, before, after, asked, keys = case
    env = open_env(str(tmp_path_factory.mktemp("p") / "a.fdb"), create=True, readonly=False, durable=False)
    features = tuple((number + 1, f"f{number}", name) for number, name in enumerate(names))
    entities = (("id", "int64"),)
    first = stored_table(entities=entities, features=features[:old])
    # The newer layout has the features in another order, and the older one's behind the rest.
    second = stored_table(entities=entities, features=features[::-1], layouts=first.layouts)
    for table, values, start in ((first, before, 0), (second, after, 9)):
        count = len(values[0])
        kept = {name: values[number - 1] for number, name, _ in features if name in table.feature_ids}
        put(env, table, {"id": list(range(start, start + count))}, [start + i for i in range(count)], kept)
    wanted = [f"f{number}" for number in asked]
    with env.read() as txn:
        expected = general(second, txn, _keys(keys), wanted)
        assert_same(compiled(second, txn, _keys(keys), wanted, threads), expected)

    def work(txn: Any) -> None:
        # Of a key that sorts behind all asked for: from here on nothing can be walked.
        txn.put(OnlineIndex(second).prefix + b"\xff" * 9, b"")
        assert_same(compiled(second, txn, _keys(keys), wanted, threads), expected)

    with env.writer(10):
        env.write(work)
    env.close()


def test_vectors_and_lists_are_read_alike(env: Env) -> None:
    features = [("v", "float32[3]"), ("w", "int16[5]"), ("l", "list[string]"), ("t", "timestamp[2]")]
    with fdb.open(":memory:") as db:
        db.apply(
            [fdb.Entity("id", "int64"), fdb.FeatureTable("t", ["id"], [fdb.Feature(*feature) for feature in features])]
        )
        count = 50
        columns: dict[str, Any] = {
            "v": [None if i % 7 == 3 else [i, i + 0.5, -i] for i in range(count)],
            "w": [None if i % 5 == 3 else [i] * 5 for i in range(count)],
            "l": [None if i % 3 == 1 else ["é" * (i % 4), "x"][: i % 3] for i in range(count)],
            "t": [["2013-01-01", "2013-01-02"]] * count,
        }
        db.ingest("t", {"id": list(range(count)), "event_timestamp": ["2013-01-01"] * count, **columns})
        names = [name for name, _ in features]
        with db._snapshot() as (txn, registry):
            table = registry.table("t")
            keys = _keys([*range(-3, count + 3), *range(count)])
            one, other = general(table, txn, keys, names), compiled(table, txn, keys, names, 2)
            for name in names:
                assert repr(to_pylist(one.columns[name])) == repr(to_pylist(other.columns[name]))
                if not one.columns[name].dtype.is_variable:
                    assert one.columns[name].data.tobytes() == other.columns[name].data.tobytes()


def test_a_damaged_row_is_named_and_never_returned(env: Env) -> None:
    table = stored_table(entities=(("id", "int64"),), features=((1, "temp", "float64"), (2, "sky", "string")))
    ids = list(range(100))
    put(env, table, {"id": ids}, [1] * 100, {"temp": [float(i) for i in ids], "sky": ["clear"] * 100})
    key = OnlineIndex(table).prefix + _keys([41]).tolist()[0]
    with env.read() as txn:
        value = bytes(txn.get(key) or b"")
    flipped = [value[:i] + bytes([value[i] ^ 1]) + value[i + 1 :] for i in range(len(value))]
    for bad in (b"", value[:5], value[:29], value[:-1], value + b"\0", *flipped):
        with env.writer(10):
            env.write(lambda txn, bad=bad: txn.put(key, bad))
        with env.read() as txn:
            for read in (general, compiled):
                with pytest.raises(fdb.CorruptionError, match=r"table 'weather', key 41\b"):
                    read(table, txn, _keys(ids), ["temp", "sky"])


def test_rows_under_the_keys_of_others_are_damaged(env: Env) -> None:
    table = stored_table(entities=(("id", "int64"),), features=((1, "a", "int64"),))
    put(env, table, {"id": [1, 2]}, [1, 1], {"a": [5, 5]})
    one, other = (OnlineIndex(table).prefix + key for key in _keys([1, 2]).tolist())
    with env.writer(10):
        env.write(lambda txn: txn.put(other, bytes(txn.get(one) or b"")))
    with env.read() as txn:
        for read in (general, compiled):
            with pytest.raises(fdb.CorruptionError, match=r"key 2: its checksum does not match"):
                read(table, txn, _keys([1, 2]), ["a"])
    with pytest.raises(fdb.CorruptionError, match=r"key 2: its checksum does not match"):
        put(env, table, {"id": [2]}, [2], {"a": [6]})


def test_rows_whose_lengths_do_not_add_up_are_damaged_though_their_checksum_is_right(env: Env) -> None:
    table = stored_table(entities=(("id", "int64"),), features=((1, "a", "string"), (2, "b", "bytes")))
    put(env, table, {"id": [1]}, [1], {"a": ["xyz"], "b": [b"pq"]})
    key = OnlineIndex(table).prefix + _keys([1]).tolist()[0]
    with env.read() as txn:
        row = bytes(txn.get(key) or b"")[4:]
    for body in (row + b"\0", row[:-1], row[:29], row[:27] + b"\xff\xff\xff\xff" + row[31:], row[:1] + b"\7" + row[2:]):
        bad = seal(key, body)
        with env.writer(10):
            env.write(lambda txn, bad=bad: txn.put(key, bad))
        with env.read() as txn:
            for read in (general, compiled):
                with pytest.raises(fdb.CorruptionError, match=r"table 'weather', key 1\b"):
                    read(table, txn, _keys([1]), ["a", "b"])


def test_the_compiled_checksum_is_that_of_zlib() -> None:
    import zlib

    tables = crc_tables().reshape(8, 256)
    for zeros in range(8):
        for byte in (0, 1, 77, 255):
            # Without the first and last inversion, of which zlib's are made.
            expected = zlib.crc32(bytes([byte]) + bytes(zeros)) ^ zlib.crc32(bytes(zeros + 1))
            assert tables[zeros, byte] == expected


# --- few rows -----------------------------------------------------------------------------------------


def responses(db: fdb.Database, case: Case, rows: list[dict[str, Any]], now: Any) -> Iterator[fdb.OnlineResponse]:
    """Of the same entity rows: read row by row where that can be, and as columns."""
    yield db.get_online_features(case.references, rows, now=now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featuredb.database.FEW_ROWS_MAX", -1)
        yield db.get_online_features(case.references, rows, now=now)


@given(case=cases(), offset=st.integers(-2, 16))
def test_few_rows_read_one_by_one_equal_columns(case: Case, offset: int) -> None:
    with fdb.open(":memory:") as db:
        case.load(db)
        now = to_datetime(min(max(case.base + offset, YEAR_1_US), YEAR_9999_US))
        rows = container("rows", keys_only(case)) if case.left else []
        one, other = responses(db, case, rows, now)
        assert len(one) == len(other)
        assert repr(one) == repr(other)
        for name, values in other.to_dict().items():
            assert repr(list(map(as_plain, one.to_dict()[name]))) == repr(list(map(as_plain, values))), name
        assert one.statuses == other.statuses
        assert list(one.event_timestamps) == list(other.event_timestamps)
        for table, events in other.event_timestamps.items():
            np.testing.assert_array_equal(one.event_timestamps[table], events)
        assert one.to_arrow().equals(other.to_arrow()) or "nan" in repr(other.to_dict())


def weather(db: fdb.Database, count: int) -> None:
    features = [fdb.Feature("temp", "float64"), fdb.Feature("sky", "string")]
    db.apply([fdb.Entity("id", "int64"), fdb.FeatureTable("weather", ["id"], features)])
    sky = [None if i % 10 == 0 else f"sky {i % 5}" for i in range(count)]
    times = ["2013-01-01"] * count
    db.ingest("weather", {"id": list(range(count)), "event_timestamp": times, "temp": np.arange(count) / 2, "sky": sky})


REFERENCES = ["weather:temp", "weather:sky"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": 3}, {"id": None}],
        [{"id": 3}, {"id": np.int16(4)}],
        [{"id": 3}, {"id": 4.0}],
        [{"id": 3, "other": object()}],
        [{"id": 1 << 70}],
        [{"id": True}],
        [{"identity": 3}],
        [3],
        [(3,)],
        [],
    ],
)
def test_what_is_no_plain_key_is_read_or_refused_as_in_columns(db: fdb.Database, rows: list[Any]) -> None:
    weather(db, 10)

    def outcome(read: Callable[[], fdb.OnlineResponse]) -> object:
        try:
            return read().to_dict()
        except fdb.FeatureDBError as error:
            return str(error)

    found = outcome(lambda: db.get_online_features(REFERENCES, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featuredb.database.FEW_ROWS_MAX", -1)
        assert found == outcome(lambda: db.get_online_features(REFERENCES, rows))


def test_few_rows_end_with_their_max_age(db: fdb.Database) -> None:
    table = fdb.FeatureTable("t", ["id"], [fdb.Feature("n", "int64")], max_age=timedelta(microseconds=5))
    db.apply([fdb.Entity("id", "int64"), table])
    moment = datetime(2013, 1, 1, tzinfo=UTC)
    db.ingest("t", [{"id": 1, "event_timestamp": moment, "n": 7}])
    for age_us, value in ((-1, 7), (5, 7), (6, None)):
        now = moment + timedelta(microseconds=age_us)
        assert db.get_online_features(["t:n"], [{"id": 1}], now=now).to_dict() == {"id": [1], "n": [value]}


def test_few_rows_are_of_the_commit_they_were_read_at(db: fdb.Database) -> None:
    weather(db, 3)
    response = db.get_online_features(REFERENCES, [{"id": 1}, {"id": 7}])
    db.ingest("weather", [{"id": 1, "event_timestamp": "2014-01-01", "temp": 9.0, "sky": "later"}])
    assert response.columns["sky"].tolist() == ["sky 1", None]
    assert response.to_dict() == {"id": [1, 7], "temp": [0.5, None], "sky": ["sky 1", None]}
    response.to_dict()["temp"].clear()
    assert response.to_dict()["temp"] == [0.5, None]


def test_few_rows_are_read_row_by_row(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    weather(db, 3)
    monkeypatch.setattr("featuredb.database.read_rows", None)
    assert few.FEW_ROWS_MAX > 1
    assert db.get_online_features(REFERENCES, [{"id": 1}]).to_dict() == {"id": [1], "temp": [0.5], "sky": ["sky 1"]}


# --- threads, snapshots, what is loaded ---------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, -1, True, 1.0, "2"])
def test_threads_must_be_a_positive_integer(db: fdb.Database, threads: Any) -> None:
    weather(db, 3)
    reader = db.online_reader(REFERENCES)
    for read in (
        lambda: reader.get_many([1], threads=threads),
        lambda: db.get_online_features(REFERENCES, {"id": [1]}, threads=threads),
    ):
        with pytest.raises(fdb.InputError, match=rf"threads must be an int of at least 1, or None .*; not {threads!r}"):
            read()


def test_any_number_of_threads_and_of_callers_reads_the_same(db: fdb.Database) -> None:
    weather(db, 20_000)
    reader = db.online_reader(REFERENCES)
    keys = np.random.default_rng(2).integers(-50, 20_050, 12_000)
    expected = db.get_online_features(REFERENCES, {"id": keys}, threads=1).to_dict()
    results: list[Any] = []

    def call(threads: int | None) -> None:
        arrays = reader.get_many(keys, threads=threads)
        response = db.get_online_features(REFERENCES, {"id": keys}, threads=threads)
        results.append((arrays.columns["sky"].tolist(), response.to_dict()))

    callers = [threading.Thread(target=call, args=(threads,)) for threads in (None, 1, 2, 3, 8, None)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 6
    for sky, values in results:
        assert sky == expected["sky"]
        assert values == expected


def test_as_many_threads_as_asked_for_take_part(db: fdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    weather(db, 100)
    reader = db.online_reader(REFERENCES)
    ranges: list[int] = []
    locate = kernels.locate
    monkeypatch.setattr(kernels, "locate", lambda *given: (ranges.append(len(given[-1])), locate(*given)))
    monkeypatch.setattr(decode, "_ROWS_PER_THREAD_MIN", 10)
    for threads, parts in ((1, [100]), (3, [33, 33, 34]), (50, [10] * 10)):
        ranges.clear()
        reader.get_many(np.arange(100), threads=threads)
        assert sorted(ranges) == parts


def test_a_snapshot_is_walked_until_a_row_of_its_tables_was_saved(db: fdb.Database) -> None:
    weather(db, 200)
    db.apply([fdb.FeatureTable("other", ["id"], [fdb.Feature("n", "int8")])])
    db.snapshot("before")
    view = db.at("before")
    keys = {"id": list(range(250))}
    expected = db.get_online_features(REFERENCES, keys).to_dict()

    def is_walked() -> bool:
        with view._snapshot() as (txn, registry):
            return txn.tree(OnlineIndex(registry.table("weather")).prefix) is not None

    db.ingest("other", {"id": [1], "event_timestamp": ["2013-01-01"], "n": [1]})
    assert is_walked()
    assert view.get_online_features(REFERENCES, keys).to_dict() == expected
    db.ingest("weather", {"id": [5, 240], "event_timestamp": ["2014-01-01"] * 2, "temp": [0.0, 0.0], "sky": ["", ""]})
    assert not is_walked()
    assert view.get_online_features(REFERENCES, keys).to_dict() == expected
    assert db.get_online_features(REFERENCES, keys).to_dict() != expected


def test_compiled_code_is_loaded_for_large_batches_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "a.fdb")
    with fdb.open(path) as db:
        weather(db, 5)
    code = (
        "import sys, featuredb as fdb; from featuredb.online.index import LOADING_KEYS_MIN as many\n"
        f"db = fdb.open({path!r}); reader = db.online_reader(['weather:temp'])\n"
        "few = reader.get_many(list(range(many - 1)))\n"
        "assert 'numba' not in sys.modules\n"
        "rows = reader.get_many(list(range(many)))\n"
        "assert 'numba' in sys.modules\n"
        "assert rows.columns['temp'][:-1].tobytes() == few.columns['temp'].tobytes()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_columns_of_the_compiled_path_hold_distinct_strings(db: fdb.Database) -> None:
    weather(db, 1000)
    with db._snapshot() as (txn, registry):
        table = registry.table("weather")
        column: Column = OnlineIndex(table).read(txn, _keys(list(range(1000))), ["sky"], 1).columns["sky"]
    assert column.heap is not None
    assert sorted(column.heap.tolist()) == [b"sky %d" % i for i in range(5)]
