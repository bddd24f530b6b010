"""Reading the latest values of many random keys in one call; files and readers as in `benchmarks.online_one`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import featuredb as fdb
from benchmarks.check import Answer, masked_answer
from benchmarks.join import REFERENCES
from benchmarks.online_one import (
    COLUMNS,
    ROW,
    latest_rows,
    open_duckdb,
    open_featuredb,
    open_lmdb,
    open_sqlite,
    packed_row,
    prepare_duckdb,
    prepare_featuredb,
    prepare_lmdb,
    prepare_sqlite,
    tuples_answer,
    unpacked_row,
    wanted_keys,
)
from benchmarks.online_redis import RedisServer, load_rows
from benchmarks.peers import Case, System, arrow_result, module, program
from benchmarks.workload import FEATURES, KEY, MANY_KEYS, NULLABLE


def arrays_answer(arrays: fdb.OnlineArrays) -> Answer:
    """Columns and statuses of a reader."""
    present = {name: arrays.statuses[name] == fdb.Status.PRESENT for name in FEATURES}
    return masked_answer({name: np.ma.MaskedArray(arrays.columns[name], ~present[name]) for name in FEATURES})


def _load_get_many(threads: int) -> Any:
    def load(folder: Path) -> Case:
        path, db = open_featuredb(folder)
        get_many = db.online_reader(REFERENCES).get_many
        keys = wanted_keys(folder, "many")
        return Case(lambda: get_many(keys, threads=threads), arrays_answer, close=db.close, files=(path,))

    return load


def _load_rows(folder: Path) -> Case:
    path, db = open_featuredb(folder)
    rows = {KEY: wanted_keys(folder, "many")}

    def run() -> Any:
        return db.get_online_features(REFERENCES, rows).columns

    return Case(run, masked_answer, close=db.close, files=(path,))


def _load_dict(folder: Path) -> Case:
    values = {row[0]: row[1:] for row in latest_rows(folder)}
    keys = wanted_keys(folder, "many").tolist()
    return Case(lambda: [values[key] for key in keys], tuples_answer)


# --- py-lmdb ------------------------------------------------------------------------------------

_DTYPE = np.dtype([(name, {"string": "S8"}.get(dtype, dtype)) for name, dtype in FEATURES.items()] + [("nulls", "<u2")])
assert _DTYPE.itemsize == ROW.size
_BITS = {name: 1 << place for place, name in enumerate(FEATURES) if name in NULLABLE}


def lmdb_columns(env: Any, keys: Any) -> dict[str, Any]:
    """Rows of an environment decoded into columns, masked where null."""
    wanted = keys.astype(">i8").view("V8").tolist()
    with env.begin(buffers=True) as txn, txn.cursor() as cursor:
        rows = np.frombuffer(b"".join([value for _, value in cursor.getmulti(wanted)]), dtype=_DTYPE)
    nulls = rows["nulls"]
    columns: dict[str, Any] = {name: rows[name].copy() for name in FEATURES}
    for name, bit in _BITS.items():
        columns[name] = np.ma.MaskedArray(columns[name], nulls & bit != 0)
    return columns


def lmdb_answer(columns: dict[str, Any]) -> Answer:
    """Those columns, with strings for bytes."""
    return masked_answer({**columns, "category": columns["category"].astype("U8").astype(object)})


def _load_lmdb(folder: Path) -> Case:
    path, env = open_lmdb(folder)
    keys = wanted_keys(folder, "many")
    return Case(lambda: lmdb_columns(env, keys), lmdb_answer, close=env.close, files=(path,))


# --- SQLite and DuckDB --------------------------------------------------------------------------

# At 10,000 keys twice as fast as a statement per key in one transaction, or a temporary table of the keys.
SQLITE_MANY = (
    f"SELECT {COLUMNS} FROM json_each(?) wanted LEFT JOIN latest ON latest.{KEY} = wanted.value ORDER BY wanted.key"
)
DUCKDB_MANY = f"SELECT {COLUMNS} FROM wanted LEFT JOIN latest USING ({KEY}) ORDER BY place"


def _load_sqlite(folder: Path) -> Case:
    path, connection = open_sqlite(folder)
    keys = wanted_keys(folder, "many").tolist()

    def run() -> Any:
        return connection.execute(SQLITE_MANY, (json.dumps(keys),)).fetchall()

    return Case(run, tuples_answer, close=connection.close, files=(path,))


def duckdb_table(connection: Any, keys: Any) -> Any:
    """Rows of a connection's table as an Arrow table in the order of keys, which are given as one."""
    import pyarrow as pa

    connection.register("wanted", pa.table({"place": np.arange(len(keys)), KEY: keys}))
    return arrow_result(connection.sql(DUCKDB_MANY))


def table_answer(table: Any) -> Answer:
    """An Arrow table in the order of keys."""
    return {name: table[name] for name in FEATURES}


def _load_duckdb(folder: Path) -> Case:
    path, connection = open_duckdb(folder)
    keys = wanted_keys(folder, "many")
    return Case(lambda: duckdb_table(connection, keys), table_answer, close=connection.close, files=(path,))


# --- Redis --------------------------------------------------------------------------------------


def _load_redis(pipelined: bool) -> Any:
    def load(folder: Path) -> Case:
        server = RedisServer(folder)
        load_rows(server.client, ((row[0], packed_row(row[1:])) for row in latest_rows(folder)))
        keys = wanted_keys(folder, "many").astype(">i8").view("V8").tolist()

        def pipeline() -> list[bytes]:
            with server.client.pipeline(transaction=False) as commands:
                for key in keys:
                    commands.get(key)
                rows: list[bytes] = commands.execute()
            return rows

        def mget() -> list[bytes]:
            rows: list[bytes] = server.client.mget(keys)
            return rows

        def answer(rows: list[bytes]) -> Answer:
            return tuples_answer([unpacked_row(row) for row in rows])

        return Case(pipeline if pipelined else mget, answer, close=server.close)

    return load


_REDIS = program("redis-server", "redis")
_REDIS_NOTE = (
    "a server on a local socket, started for this, saving nothing; answer as packed rows, not decoded; hiredis"
)

SYSTEMS = (
    System(
        "online",
        "many",
        "featuredb, reader.get_many, one thread",
        "prepared reader, keys as an array, answer as columns with statuses",
        _load_get_many(1),
        prepare_featuredb,
        data="online",
    ),
    System(
        "online",
        "many",
        "featuredb, reader.get_many, two threads",
        "prepared reader, keys as an array, answer as columns with statuses",
        _load_get_many(2),
        prepare_featuredb,
        data="online",
    ),
    System(
        "online",
        "many",
        "featuredb, get_online_features",
        "keys as an array, answer as columns with masks",
        _load_rows,
        prepare_featuredb,
        data="online",
    ),
    System(
        "online",
        "many",
        "Python dict",
        f"{MANY_KEYS:,} look-ups of tuples in memory, keys as Python integers; answer as tuples",
        _load_dict,
        data="online",
    ),
    System(
        "online",
        "many",
        "py-lmdb getmulti, numpy",
        "fixed-size rows; answer as columns with masks, strings as bytes",
        _load_lmdb,
        prepare_lmdb,
        data="online",
    ),
    System(
        "online",
        "many",
        "SQLite json_each and primary key",
        "a table with the key as INTEGER PRIMARY KEY, mapped; answer as tuples",
        _load_sqlite,
        prepare_sqlite,
        data="online",
    ),
    System(
        "online",
        "many",
        "DuckDB join with the keys",
        "a table with a primary key; keys as an Arrow table, answer as one",
        _load_duckdb,
        prepare_duckdb,
        lacks=module("duckdb"),
        data="online",
    ),
    System(
        "online", "many", "Redis pipeline of GET", _REDIS_NOTE, _load_redis(pipelined=True), lacks=_REDIS, data="online"
    ),
    System("online", "many", "Redis MGET", _REDIS_NOTE, _load_redis(pipelined=False), lacks=_REDIS, data="online"),
)
