"""Reading the latest values of one key at a time, of as many keys as the online data has; each call is timed.

Every system's file is open and its statement or reader prepared beforehand. featuredb's file holds the history too, of
which the latest rows were found when it was loaded; peers were given just these. `benchmarks.online_many` shares
what is here.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import featuredb as fdb
from benchmarks.check import Answer
from benchmarks.join import REFERENCES, TABLE, define
from benchmarks.online_redis import RedisServer, load_rows
from benchmarks.peers import SQL_TYPES, Case, System, module, program
from benchmarks.workload import FEATURES, KEY, history_frame

COLUMNS = ", ".join(FEATURES)


def wanted_keys(folder: Path, what: str) -> Any:
    """Keys to read: ``one`` or ``many``."""
    return np.load(folder / f"keys_{what}.npy")


def latest_rows(folder: Path) -> Iterable[tuple[Any, ...]]:
    """(key, values...) of every key, as Python values."""
    import pyarrow.parquet as pq

    latest = pq.read_table(folder / "latest.parquet")
    return zip(*(latest[name].to_pylist() for name in (KEY, *FEATURES)), strict=True)


def tuples_answer(rows: list[tuple[Any, ...]]) -> Answer:
    """Rows of values."""
    return dict(zip(FEATURES, zip(*rows, strict=True), strict=True))


# --- featuredb ----------------------------------------------------------------------------------


def prepare_featuredb(folder: Path) -> None:
    """Ingest all of history into ``online.fdb``; without a max age, for it is of the past."""
    with fdb.open(folder / "online.fdb") as db:
        define(db, None)
        db.ingest(TABLE, history_frame(folder))


def open_featuredb(folder: Path) -> tuple[Path, fdb.Database]:
    """The prepared file and its database."""
    path = folder / "online.fdb"
    return path, fdb.open(path, read_only=True)


def _load_get(folder: Path) -> Case:
    path, db = open_featuredb(folder)
    reader = db.online_reader(REFERENCES)

    def answer(rows: list[dict[str, Any]]) -> Answer:
        return {name: [row[name] for row in rows] for name in FEATURES}

    return Case(reader.get, answer, close=db.close, files=(path,), keys=wanted_keys(folder, "one").tolist())


def _load_one_row(folder: Path) -> Case:
    path, db = open_featuredb(folder)

    def run(key: int) -> Any:
        return db.get_online_features(REFERENCES, [{KEY: key}]).to_dict()

    def answer(responses: list[dict[str, list[Any]]]) -> Answer:
        return {name: [response[name][0] for response in responses] for name in FEATURES}

    return Case(run, answer, close=db.close, files=(path,), keys=wanted_keys(folder, "one").tolist())


# --- Python dict --------------------------------------------------------------------------------


def _load_dict(folder: Path) -> Case:
    values = {row[0]: row[1:] for row in latest_rows(folder)}
    return Case(values.__getitem__, tuples_answer, keys=wanted_keys(folder, "one").tolist())


# --- py-lmdb ------------------------------------------------------------------------------------

# Values in the order of FEATURES, then one bit per feature that is null.
ROW = struct.Struct("<ddddffqq?8sH")
_KEY = struct.Struct(">q")
_ZEROS = {"float64": 0.0, "float32": 0.0, "int64": 0, "bool": False, "string": ""}


def packed_row(values: tuple[Any, ...]) -> bytes:
    """Values in `ROW`."""
    nulls = sum(1 << place for place, value in enumerate(values) if value is None)
    filled = [_ZEROS[FEATURES[n]] if v is None else v for n, v in zip(FEATURES, values, strict=True)]
    return ROW.pack(*filled[:-1], str(filled[-1]).encode(), nulls)


def unpacked_row(row: Any) -> tuple[Any, ...]:
    """What `packed_row` was given."""
    fields = ROW.unpack(row)
    values = (*fields[:9], fields[9].rstrip(b"\0").decode())
    nulls = fields[10]
    if nulls:
        return tuple(None if nulls >> place & 1 else value for place, value in enumerate(values))
    return values


def prepare_lmdb(folder: Path) -> None:
    """Put packed rows into ``online.lmdb``."""
    import lmdb

    items = ((_KEY.pack(row[0]), packed_row(row[1:])) for row in latest_rows(folder))
    with (
        lmdb.open(str(folder / "online.lmdb"), subdir=False, map_size=1 << 32, lib_version=0) as env,
        env.begin(write=True) as txn,
        txn.cursor() as cursor,
    ):
        cursor.putmulti(items, append=True)


def open_lmdb(folder: Path) -> tuple[Path, Any]:
    """The prepared file and its environment."""
    import lmdb

    path = folder / "online.lmdb"
    return path, lmdb.open(str(path), subdir=False, readonly=True, lib_version=0)


def _load_lmdb(decode: bool) -> Any:
    def load(folder: Path) -> Case:
        path, env = open_lmdb(folder)
        encode, begin = _KEY.pack, env.begin

        def get_bytes(key: int) -> Any:
            with begin() as txn:
                return txn.get(encode(key))

        def get(key: int) -> tuple[Any, ...]:
            with begin(buffers=True) as txn:
                return unpacked_row(txn.get(encode(key), b""))

        def bytes_answer(rows: list[bytes]) -> Answer:
            return tuples_answer([unpacked_row(row) for row in rows])

        keys = wanted_keys(folder, "one").tolist()
        run, answer = (get, tuples_answer) if decode else (get_bytes, bytes_answer)
        return Case(run, answer, close=env.close, files=(path,), keys=keys)

    return load


# --- SQLite -------------------------------------------------------------------------------------


def prepare_sqlite(folder: Path) -> None:
    """A table of latest values in ``online.sqlite``."""
    connection = sqlite3.connect(folder / "online.sqlite")
    columns = ", ".join(f"{name} {SQL_TYPES[dtype]}" for name, dtype in FEATURES.items())
    connection.execute(f"CREATE TABLE latest ({KEY} INTEGER PRIMARY KEY, {columns})")
    with connection:
        connection.executemany(f"INSERT INTO latest VALUES (?, {', '.join('?' * len(FEATURES))})", latest_rows(folder))
    connection.close()


SQLITE_GET = f"SELECT {COLUMNS} FROM latest WHERE {KEY} = ?"


def open_sqlite(folder: Path) -> tuple[Path, sqlite3.Connection]:
    """The prepared file, mapped and its pages held."""
    path = folder / "online.sqlite"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA mmap_size = {2 * path.stat().st_size}")
    connection.execute(f"PRAGMA cache_size = -{2 * path.stat().st_size // 1024}")
    return path, connection


def _load_sqlite(folder: Path) -> Case:
    path, connection = open_sqlite(folder)
    execute = connection.execute

    def get(key: int) -> Any:
        return execute(SQLITE_GET, (key,)).fetchone()

    keys = wanted_keys(folder, "one").tolist()
    return Case(get, tuples_answer, close=connection.close, files=(path,), keys=keys)


# --- DuckDB -------------------------------------------------------------------------------------


_DUCKDB_TYPES = {"float64": "DOUBLE", "float32": "FLOAT", "int64": "BIGINT", "bool": "BOOLEAN", "string": "VARCHAR"}
DUCKDB_GET = SQLITE_GET


def prepare_duckdb(folder: Path) -> None:
    """A table of latest values in ``online.duckdb``."""
    import duckdb

    source = str(folder / "latest.parquet").replace("'", "''")
    with duckdb.connect(str(folder / "online.duckdb")) as connection:
        columns = ", ".join(f"{name} {_DUCKDB_TYPES[dtype]}" for name, dtype in FEATURES.items())
        connection.execute(f"CREATE TABLE latest ({KEY} BIGINT PRIMARY KEY, {columns})")
        connection.execute(f"INSERT INTO latest SELECT {KEY}, {COLUMNS} FROM read_parquet('{source}'); CHECKPOINT")


def open_duckdb(folder: Path) -> tuple[Path, Any]:
    """The prepared file and a connection."""
    import duckdb

    path = folder / "online.duckdb"
    return path, duckdb.connect(str(path), read_only=True)


def _load_duckdb(folder: Path) -> Case:
    path, connection = open_duckdb(folder)

    def get(key: int) -> Any:
        return connection.execute(DUCKDB_GET, [key]).fetchone()

    keys = wanted_keys(folder, "one").tolist()
    return Case(get, tuples_answer, close=connection.close, files=(path,), keys=keys)


# --- Redis --------------------------------------------------------------------------------------


def _load_redis(folder: Path) -> Case:
    server = RedisServer(folder)
    load_rows(server.client, ((row[0], packed_row(row[1:])) for row in latest_rows(folder)))
    get = server.client.get

    def run(key: int) -> tuple[Any, ...]:
        return unpacked_row(get(_KEY.pack(key)))

    return Case(run, tuples_answer, close=server.close, keys=wanted_keys(folder, "one").tolist())


SYSTEMS = (
    System(
        "online",
        "one",
        "featuredb, reader.get",
        "prepared reader, answer as a dict",
        _load_get,
        prepare_featuredb,
        data="online",
    ),
    System(
        "online",
        "one",
        "featuredb, get_online_features",
        "answer by to_dict()",
        _load_one_row,
        prepare_featuredb,
        data="online",
    ),
    System(
        "online",
        "one",
        "Python dict",
        "tuples in memory, keys as Python integers; answer as a tuple",
        _load_dict,
        data="online",
    ),
    System(
        "online",
        "one",
        "py-lmdb get",
        "fixed-size rows, a transaction for each; answer as the bytes that are stored, not decoded",
        _load_lmdb(decode=False),
        prepare_lmdb,
        data="online",
    ),
    System(
        "online",
        "one",
        "py-lmdb get, struct",
        "the same, decoded to a tuple",
        _load_lmdb(decode=True),
        prepare_lmdb,
        data="online",
    ),
    System(
        "online",
        "one",
        "SQLite primary key",
        "a table with the key as INTEGER PRIMARY KEY, mapped; answer as a tuple",
        _load_sqlite,
        prepare_sqlite,
        data="online",
    ),
    System(
        "online",
        "one",
        "DuckDB primary key",
        "a table with a primary key; answer as a tuple",
        _load_duckdb,
        prepare_duckdb,
        lacks=module("duckdb"),
        data="online",
    ),
    System(
        "online",
        "one",
        "Redis GET",
        "a server on a local socket, started for this, saving nothing; packed rows, decoded to a tuple; hiredis",
        _load_redis,
        lacks=program("redis-server", "redis"),
        data="online",
    ),
)
