"""Loading the latest values of all keys into a new file in bulk, durably.

Keys are in order, as in a nightly export; frames and tuples are in memory beforehand. `materialize` starts with a file
that has history and no online values, which is copied before each run.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import featuredb as fdb
from benchmarks.check import Answer
from benchmarks.join import REFERENCES, TABLE, define
from benchmarks.online_many import arrays_answer, lmdb_answer, lmdb_columns
from benchmarks.online_one import COLUMNS, latest_rows, packed_row, tuples_answer
from benchmarks.peers import SQL_TYPES, Case, System, copied, removed
from benchmarks.workload import FEATURES, KEY, history_frame, latest_frame


def _stored(path: Path, folder: Path) -> Answer:
    """Online values of all keys."""
    keys = latest_frame(folder)[KEY].to_numpy()
    with fdb.open(path, read_only=True) as db:
        return arrays_answer(db.online_reader(REFERENCES).get_many(keys))


def _load_online(folder: Path) -> Case:
    path = folder / "load.fdb"
    frame = latest_frame(folder)

    def run() -> None:
        with fdb.open(path) as db:
            define(db, None)
            db.ingest(TABLE, frame, to="online")

    return Case(run, lambda _: _stored(path, folder), removed(path), files=(path,), rows=len(frame))


def _prepare_offline(folder: Path) -> None:
    with fdb.open(folder / "offline.fdb") as db:
        define(db, None)
        db.ingest(TABLE, history_frame(folder), to="offline")


def _load_materialize(folder: Path) -> Case:
    path = folder / "materialize.fdb"

    def before() -> None:
        removed(path)()
        copied(folder / "offline.fdb", path)

    def run() -> None:
        with fdb.open(path) as db:
            db.materialize()

    rows = len(latest_frame(folder))
    return Case(run, lambda _: _stored(path, folder), before, files=(path,), rows=rows)


def _load_lmdb(folder: Path) -> Case:
    import lmdb

    path = folder / "load.lmdb"
    keys = latest_frame(folder)[KEY].to_numpy()
    items = [
        (key, packed_row(row[1:]))
        for key, row in zip(keys.astype(">i8").view("V8").tolist(), latest_rows(folder), strict=True)
    ]

    def run() -> None:
        with (
            lmdb.open(str(path), subdir=False, map_size=1 << 32, lib_version=0) as env,
            env.begin(write=True) as txn,
            txn.cursor() as cursor,
        ):
            cursor.putmulti(items, append=True)

    def answer(_: None) -> Answer:
        with lmdb.open(str(path), subdir=False, readonly=True, lib_version=0) as env:
            return lmdb_answer(lmdb_columns(env, keys))

    return Case(run, answer, removed(path), files=(path,), rows=len(items))


def _load_sqlite(folder: Path) -> Case:
    path = folder / "load.sqlite"
    rows = list(latest_rows(folder))
    columns = ", ".join(f"{name} {SQL_TYPES[dtype]}" for name, dtype in FEATURES.items())

    def run() -> None:
        connection = sqlite3.connect(path)
        connection.execute(f"CREATE TABLE latest ({KEY} INTEGER PRIMARY KEY, {columns})")
        with connection:
            connection.executemany(f"INSERT INTO latest VALUES (?, {', '.join('?' * len(FEATURES))})", rows)
        connection.close()

    def answer(_: None) -> Answer:
        connection = sqlite3.connect(path)
        stored = connection.execute(f"SELECT {COLUMNS} FROM latest ORDER BY {KEY}").fetchall()
        connection.close()
        return tuples_answer(stored)

    return Case(run, answer, removed(path), files=(path,), rows=len(rows))


SYSTEMS = (
    System(
        "online",
        "load",
        'featuredb, ingest(to="online")',
        "from a pandas frame",
        _load_online,
        expected="latest",
        data="online",
    ),
    System(
        "online",
        "load",
        "featuredb, materialize",
        "from history in the file, two rows for each key on average",
        _load_materialize,
        _prepare_offline,
        expected="latest",
        data="online",
    ),
    System(
        "online",
        "load",
        "py-lmdb putmulti, append",
        "rows packed beforehand",
        _load_lmdb,
        expected="latest",
        data="online",
    ),
    System(
        "online",
        "load",
        "SQLite executemany",
        "a table with the key as INTEGER PRIMARY KEY; tuples made beforehand",
        _load_sqlite,
        expected="latest",
        data="online",
    ),
)
