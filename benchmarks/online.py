"""Reading the latest values: one key at a time, and many random keys in one call."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import featuredb as fdb
from benchmarks.check import Answer
from benchmarks.join import REFERENCES, TABLE, define, masked_answer
from benchmarks.peers import SQL_TYPES, Case, System, arrow_result
from benchmarks.workload import FEATURES, KEY, NULLABLE, history_frame

_LIST = ", ".join(FEATURES)


def _keys(folder: Path, what: str) -> Any:
    return np.load(folder / f"keys_{what}.npy")


def _latest(folder: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "latest.parquet")


def _latest_rows(folder: Path) -> Iterable[tuple[Any, ...]]:
    """(key, values...) as Python values."""
    latest = _latest(folder)
    return zip(*(latest[name].to_pylist() for name in (KEY, *FEATURES)), strict=True)


def _dicts_answer(rows: list[dict[str, Any]]) -> Answer:
    return {name: [row[name] for row in rows] for name in FEATURES}


def _tuples_answer(rows: list[tuple[Any, ...]]) -> Answer:
    return dict(zip(FEATURES, zip(*rows, strict=True), strict=True))


def _table_answer(table: Any) -> Answer:
    return {name: table[name] for name in FEATURES}


# --- featuredb ----------------------------------------------------------------------------------


def _prepare_featuredb(folder: Path) -> None:
    # No max age: the data is of the past. Made of all history, so that the latest rows are found here, not given.
    with fdb.open(folder / "online.fdb") as db:
        define(db, None)
        db.ingest(TABLE, history_frame(folder))


def _open(folder: Path) -> tuple[Path, fdb.Database]:
    path = folder / "online.fdb"
    return path, fdb.open(path, read_only=True)


def _load_get(folder: Path) -> Case:
    path, db = _open(folder)
    reader = db.online_reader(REFERENCES)
    return Case(reader.get, _dicts_answer, close=db.close, files=(path,), keys=_keys(folder, "one").tolist())


def _load_one_row(folder: Path) -> Case:
    path, db = _open(folder)

    def run(key: int) -> Any:
        return db.get_online_features(REFERENCES, [{KEY: key}]).to_dict()

    def answer(responses: list[dict[str, list[Any]]]) -> Answer:
        return {name: [response[name][0] for response in responses] for name in FEATURES}

    return Case(run, answer, close=db.close, files=(path,), keys=_keys(folder, "one").tolist())


def _load_get_many(folder: Path) -> Case:
    path, db = _open(folder)
    reader = db.online_reader(REFERENCES)
    keys = _keys(folder, "many")

    def answer(arrays: fdb.OnlineArrays) -> Answer:
        present = {name: arrays.statuses[name] == fdb.Status.PRESENT for name in FEATURES}
        return masked_answer({name: np.ma.MaskedArray(arrays.columns[name], ~present[name]) for name in FEATURES})

    return Case(lambda: reader.get_many(keys), answer, close=db.close, files=(path,))


def _load_many_rows(folder: Path) -> Case:
    path, db = _open(folder)
    rows = {KEY: _keys(folder, "many")}

    def run() -> Any:
        return db.get_online_features(REFERENCES, rows).columns

    return Case(run, masked_answer, close=db.close, files=(path,))


# --- Python dict --------------------------------------------------------------------------------


def _load_dict(folder: Path, what: str) -> Case:
    values = {row[0]: row[1:] for row in _latest_rows(folder)}
    keys = _keys(folder, what).tolist()
    if what == "one":
        return Case(values.__getitem__, _tuples_answer, keys=keys)
    return Case(lambda: [values[key] for key in keys], _tuples_answer)


# --- py-lmdb ------------------------------------------------------------------------------------

# Values in the order of FEATURES, then one bit per feature that is null.
_ROW = struct.Struct("<ddddffqq?8sH")
_ROW_DTYPE = np.dtype(
    [(name, {"string": "S8"}.get(dtype, dtype)) for name, dtype in FEATURES.items()] + [("nulls", "<u2")]
)
_BITS = {name: 1 << place for place, name in enumerate(FEATURES) if name in NULLABLE}
_NAMES = tuple(FEATURES)
_ZEROS = {"float64": 0.0, "float32": 0.0, "int64": 0, "bool": False, "string": ""}


def _packed(values: tuple[Any, ...]) -> bytes:
    nulls = sum(1 << place for place, value in enumerate(values) if value is None)
    filled = [_ZEROS[FEATURES[n]] if v is None else v for n, v in zip(_NAMES, values, strict=True)]
    return _ROW.pack(*filled[:-1], str(filled[-1]).encode(), nulls)


def _prepare_lmdb(folder: Path) -> None:
    import lmdb

    items = ((struct.pack(">q", row[0]), _packed(row[1:])) for row in _latest_rows(folder))
    with (
        lmdb.open(str(folder / "online.lmdb"), subdir=False, map_size=1 << 32, lib_version=0) as env,
        env.begin(write=True) as txn,
        txn.cursor() as cursor,
    ):
        cursor.putmulti(items)


def _load_lmdb(folder: Path, what: str) -> Case:
    import lmdb

    path = folder / "online.lmdb"
    env = lmdb.open(str(path), subdir=False, readonly=True, lib_version=0)
    keys = _keys(folder, what)
    encode, unpack, begin = struct.Struct(">q").pack, _ROW.unpack, env.begin

    def get(key: int) -> tuple[Any, ...]:
        with begin(buffers=True) as txn:
            row = unpack(txn.get(encode(key), b""))
        values = (*row[:9], row[9].decode())
        nulls = row[10]
        if nulls:
            return tuple(None if nulls >> place & 1 else value for place, value in enumerate(values))
        return values

    def get_many() -> Any:
        wanted = keys.astype(">i8").view("V8").tolist()
        with begin(buffers=True) as txn, txn.cursor() as cursor:
            rows = np.frombuffer(b"".join([value for _, value in cursor.getmulti(wanted)]), dtype=_ROW_DTYPE)
        nulls = rows["nulls"]
        columns: dict[str, Any] = {name: rows[name].copy() for name in _NAMES}
        for name, bit in _BITS.items():
            columns[name] = np.ma.MaskedArray(columns[name], nulls & bit != 0)
        return columns

    def answer(columns: dict[str, Any]) -> Answer:
        return masked_answer({**columns, "category": columns["category"].astype("U8").astype(object)})

    if what == "one":
        return Case(get, _tuples_answer, close=env.close, files=(path,), keys=keys.tolist())
    return Case(get_many, answer, close=env.close, files=(path,))


# --- SQLite -------------------------------------------------------------------------------------


def _prepare_sqlite(folder: Path) -> None:
    connection = sqlite3.connect(folder / "online.sqlite")
    columns = ", ".join(f"{name} {SQL_TYPES[dtype]}" for name, dtype in FEATURES.items())
    connection.execute(f"CREATE TABLE latest ({KEY} INTEGER PRIMARY KEY, {columns})")
    with connection:
        connection.executemany(f"INSERT INTO latest VALUES (?, {', '.join('?' * len(FEATURES))})", _latest_rows(folder))
    connection.close()


def _load_sqlite(folder: Path, what: str) -> Case:
    path = folder / "online.sqlite"
    connection = sqlite3.connect(path)
    execute = connection.execute
    keys = _keys(folder, what).tolist()
    one = f"SELECT {_LIST} FROM latest WHERE {KEY} = ?"
    # At 10,000 keys twice as fast as a statement per key in one transaction, or a temporary table of the keys.
    many = (
        f"SELECT {_LIST} FROM json_each(?) wanted LEFT JOIN latest ON latest.{KEY} = wanted.value ORDER BY wanted.key"
    )
    if what == "one":
        return Case(
            lambda key: execute(one, (key,)).fetchone(),
            _tuples_answer,
            close=connection.close,
            files=(path,),
            keys=keys,
        )
    return Case(
        lambda: execute(many, (json.dumps(keys),)).fetchall(), _tuples_answer, close=connection.close, files=(path,)
    )


# --- DuckDB -------------------------------------------------------------------------------------


_DUCKDB_TYPES = {"float64": "DOUBLE", "float32": "FLOAT", "int64": "BIGINT", "bool": "BOOLEAN", "string": "VARCHAR"}


def _prepare_duckdb(folder: Path) -> None:
    import duckdb

    source = str(folder / "latest.parquet").replace("'", "''")
    with duckdb.connect(str(folder / "online.duckdb")) as connection:
        columns = ", ".join(f"{name} {_DUCKDB_TYPES[dtype]}" for name, dtype in FEATURES.items())
        connection.execute(f"CREATE TABLE latest ({KEY} BIGINT PRIMARY KEY, {columns})")
        connection.execute(f"INSERT INTO latest SELECT {KEY}, {_LIST} FROM read_parquet('{source}'); CHECKPOINT")


def _load_duckdb(folder: Path, what: str) -> Case:
    import duckdb

    path = folder / "online.duckdb"
    connection = duckdb.connect(str(path), read_only=True)
    keys = _keys(folder, what)
    if what == "one":
        query = f"SELECT {_LIST} FROM latest WHERE {KEY} = ?"

        def get(key: int) -> Any:
            return connection.execute(query, [key]).fetchone()

        return Case(get, _tuples_answer, close=connection.close, files=(path,), keys=keys.tolist())
    import pyarrow as pa

    connection.register("wanted", pa.table({"place": np.arange(len(keys)), KEY: keys}))
    query = f"SELECT {_LIST} FROM wanted LEFT JOIN latest USING ({KEY}) ORDER BY place"
    return Case(lambda: arrow_result(connection.sql(query)), _table_answer, close=connection.close, files=(path,))


# --- the list -----------------------------------------------------------------------------------


def _pair(
    names: tuple[str, str],
    note: str,
    load: Callable[[Path, str], Case],
    prepare: Callable[[Path], None] | None = None,
    module: str | None = None,
) -> list[System]:
    """The two rows of a peer: one key, many keys."""

    def at(what: str) -> Callable[[Path], Case]:
        return lambda folder: load(folder, what)

    return [
        System("online", what, name, note, at(what), prepare, module)
        for what, name in zip(("one", "many"), names, strict=True)
    ]


SYSTEMS = (
    System(
        "online",
        "one",
        "featuredb, reader.get",
        "prepared reader, answer as a dict; the file holds all of history",
        _load_get,
        _prepare_featuredb,
    ),
    System(
        "online",
        "one",
        "featuredb, get_online_features",
        "answer by to_dict(); the file holds all of history",
        _load_one_row,
        _prepare_featuredb,
    ),
    System(
        "online",
        "many",
        "featuredb, reader.get_many",
        "prepared reader, keys as an array, answer as columns with statuses; the file holds all of history",
        _load_get_many,
        _prepare_featuredb,
    ),
    System(
        "online",
        "many",
        "featuredb, get_online_features",
        "keys as an array, answer as columns with masks; the file holds all of history",
        _load_many_rows,
        _prepare_featuredb,
    ),
    *_pair(
        ("Python dict", "Python dict"),
        "tuples in memory, keys as Python integers; answer as tuples",
        _load_dict,
    ),
    *_pair(
        ("py-lmdb get, struct", "py-lmdb getmulti, numpy"),
        "fixed-size rows, a transaction per call; many: answer as columns with masks, strings as bytes",
        _load_lmdb,
        _prepare_lmdb,
    ),
    *_pair(
        ("SQLite primary key", "SQLite json_each and primary key"),
        "a table with the key as INTEGER PRIMARY KEY; answer as tuples",
        _load_sqlite,
        _prepare_sqlite,
    ),
    *_pair(
        ("DuckDB primary key", "DuckDB join with the keys"),
        "table with a primary key; many: keys as an Arrow table, answer as one",
        _load_duckdb,
        _prepare_duckdb,
        "duckdb",
    ),
)
