"""Joins and online reads right after the file's pages were dropped from the page cache, and with all of them in it.

Every file is opened in the timing here, by peers too. Before a cold run the file is synced, its pages are dropped
(posix_fadvise), and mincore says what share of them is still in the cache, which the results keep. What lies below the
page cache, such as the memory of a disk or of the host of a virtual machine, is as it is. Programs and libraries are
warm: a run that does not count comes first.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import featuredb as fdb
from benchmarks import pagecache
from benchmarks.check import frame_answer, in_row_order, masked_answer
from benchmarks.join import REFERENCES, duckdb_query, polars_options, prepare_duckdb, prepare_featuredb
from benchmarks.online_many import (
    SQLITE_MANY,
    arrays_answer,
    duckdb_table,
    lmdb_answer,
    lmdb_columns,
    table_answer,
)
from benchmarks.online_one import (
    DUCKDB_GET,
    SQLITE_GET,
    open_duckdb,
    open_featuredb,
    open_lmdb,
    prepare_lmdb,
    prepare_sqlite,
    tuples_answer,
    unpacked_row,
    wanted_keys,
)
from benchmarks.online_one import prepare_duckdb as prepare_online_duckdb
from benchmarks.online_one import prepare_featuredb as prepare_online_featuredb
from benchmarks.peers import Case, System, arrow_result, module
from benchmarks.workload import FEATURES, KEY, MAX_AGE_US, TIME

WARM, COLD = ", warm", ", cold"


def _cached(load: Callable[[Path], Case], cold: bool) -> Callable[[Path], Case]:
    """The case with its file's pages dropped, or all read, before each run."""

    def load_cached(folder: Path) -> Case:
        case = load(folder)
        (path,) = case.files
        shares = []

        def before() -> None:
            case.before()
            (pagecache.drop if cold else pagecache.fill)(path)
            shares.append(pagecache.resident_share(path))

        def facts() -> dict[str, Any]:
            return {"resident_share_min": min(shares), "resident_share_max": max(shares)}

        return replace(case, before=before, facts=facts)

    return load_cached


# --- joins --------------------------------------------------------------------------------------


def _load_join(folder: Path) -> Case:
    import pandas as pd

    path = folder / "join.fdb"
    entities = pd.read_parquet(folder / "entities.parquet")

    def run() -> Any:
        with fdb.open(path, read_only=True) as db:
            return db.get_historical_features(entities, REFERENCES).to_numpy()

    return Case(run, masked_answer, files=(path,))


def _load_join_duckdb(folder: Path) -> Case:
    import duckdb
    import pyarrow.parquet as pq

    path = folder / "join.duckdb"
    entities = pq.read_table(folder / "entities.parquet")

    def run() -> Any:
        with duckdb.connect(str(path), read_only=True) as connection:
            connection.register("entities", entities)
            return arrow_result(connection.sql(duckdb_query()))

    return Case(run, in_row_order, files=(path,))


def _prepare_parquet(order: list[str]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "history.parquet").sort_by([(name, "ascending") for name in order])
        pq.write_table(table, folder / f"by_{order[0]}.parquet", compression="zstd")

    return prepare


def _load_join_polars(folder: Path) -> Case:
    import polars as pl

    path = folder / f"by_{KEY}.parquet"
    entities = pl.read_parquet(folder / "entities.parquet")

    def run() -> Any:
        history = pl.read_parquet(path)
        tolerance = timedelta(microseconds=MAX_AGE_US)
        left = entities.sort(KEY, TIME)
        return left.join_asof(history, on=TIME, by=KEY, tolerance=tolerance, **polars_options())

    return Case(run, lambda result: in_row_order(result.to_arrow()), files=(path,))


def _load_join_pandas(folder: Path) -> Case:
    import pandas as pd

    path = folder / f"by_{TIME}.parquet"
    entities = pd.read_parquet(folder / "entities.parquet")

    def run() -> Any:
        history = pd.read_parquet(path)
        left = entities.sort_values(TIME)
        return pd.merge_asof(left, history, on=TIME, by=KEY, tolerance=pd.Timedelta(microseconds=MAX_AGE_US))

    return Case(run, frame_answer, files=(path,))


# --- online reads -------------------------------------------------------------------------------


def _load_one(folder: Path) -> Case:
    key = int(wanted_keys(folder, "one")[0])

    def run() -> Any:
        _, db = open_featuredb(folder)
        with db:
            return db.online_reader(REFERENCES).get(key)

    def answer(row: dict[str, Any]) -> Any:
        return {name: [row[name]] for name in FEATURES}

    return Case(run, answer, files=(folder / "online.fdb",))


def _load_many(folder: Path) -> Case:
    keys = wanted_keys(folder, "many")

    def run() -> Any:
        _, db = open_featuredb(folder)
        with db:
            return db.online_reader(REFERENCES).get_many(keys)

    return Case(run, arrays_answer, files=(folder / "online.fdb",))


def _load_one_lmdb(folder: Path) -> Case:
    key = int(wanted_keys(folder, "one")[0]).to_bytes(8, "big")

    def run() -> Any:
        _, env = open_lmdb(folder)
        with env, env.begin(buffers=True) as txn:
            return unpacked_row(txn.get(key))

    return Case(run, lambda row: tuples_answer([row]), files=(folder / "online.lmdb",))


def _load_many_lmdb(folder: Path) -> Case:
    keys = wanted_keys(folder, "many")

    def run() -> Any:
        _, env = open_lmdb(folder)
        with env:
            return lmdb_columns(env, keys)

    return Case(run, lmdb_answer, files=(folder / "online.lmdb",))


def _load_sqlite(what: str) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        path = folder / "online.sqlite"
        keys = wanted_keys(folder, what).tolist()
        query, values = (SQLITE_GET, keys[0]) if what == "one" else (SQLITE_MANY, json.dumps(keys))

        def run() -> Any:
            connection = sqlite3.connect(path)
            rows = connection.execute(query, (values,)).fetchall()
            connection.close()
            return rows

        return Case(run, tuples_answer, files=(path,))

    return load


def _load_duckdb(what: str) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        keys = wanted_keys(folder, what)

        def run() -> Any:
            _, connection = open_duckdb(folder)
            with connection:
                if what == "one":
                    return connection.execute(DUCKDB_GET, [int(keys[0])]).fetchall()
                return duckdb_table(connection, keys)

        answer: Callable[[Any], Any] = tuples_answer if what == "one" else table_answer
        return Case(run, answer, files=(folder / "online.duckdb",))

    return load


# --- the list -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """A task of which every system is measured warm and cold."""

    what: str
    expected: str
    data: str

    def systems(
        self,
        name: str,
        note: str,
        load: Callable[[Path], Case],
        prepare: Callable[[Path], None],
        lacks: Callable[[], str] = str,
    ) -> list[System]:
        return [
            System("cold", self.what, f"{name}{cache}", note, _cached(load, cache == COLD), prepare, lacks,
                   self.expected, self.data)
            for cache in (WARM, COLD)
        ]  # fmt: skip


_JOIN = _Kind("cold_join", "join", "main")
_ONE = _Kind("cold_one", "start", "online")
_MANY = _Kind("cold_many", "many", "online")

SYSTEMS = (
    *_JOIN.systems("featuredb", "to_numpy", _load_join, prepare_featuredb),
    *_JOIN.systems("DuckDB ASOF JOIN", "own file, clustered", _load_join_duckdb, prepare_duckdb, module("duckdb")),
    *_JOIN.systems(
        "Polars join_asof, Parquet",
        "zstd, sorted by key and time; read whole; entity rows sorted in the timing",
        _load_join_polars,
        _prepare_parquet([KEY, TIME]),
        module("polars"),
    ),
    *_JOIN.systems(
        "pandas merge_asof, Parquet",
        "zstd, sorted by time; read whole; entity rows sorted in the timing",
        _load_join_pandas,
        _prepare_parquet([TIME]),
    ),
    *_ONE.systems("featuredb", "reader prepared, one get", _load_one, prepare_online_featuredb),
    *_ONE.systems("py-lmdb", "get and struct", _load_one_lmdb, prepare_lmdb),
    *_ONE.systems("SQLite", "primary key", _load_sqlite("one"), prepare_sqlite),
    *_ONE.systems("DuckDB", "primary key", _load_duckdb("one"), prepare_online_duckdb, module("duckdb")),
    *_MANY.systems("featuredb", "reader prepared, get_many", _load_many, prepare_online_featuredb),
    *_MANY.systems("py-lmdb", "getmulti and numpy", _load_many_lmdb, prepare_lmdb),
    *_MANY.systems("SQLite", "json_each and primary key", _load_sqlite("many"), prepare_sqlite),
    *_MANY.systems("DuckDB", "join with the keys", _load_duckdb("many"), prepare_online_duckdb, module("duckdb")),
)
