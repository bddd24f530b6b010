"""Loading the whole history from a pandas frame into a new file, durably.

The frame is in memory beforehand, in the order that the name says. The file is made and closed in the timing. featuredb
clusters rows by key and time and keeps online values and a log, whatever the order; what peers leave out stands in
their notes. The files' sizes are measured after the last run.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

import featuredb as fdb
from benchmarks.check import Answer, WrongAnswerError
from benchmarks.join import REFERENCES, TABLE, define
from benchmarks.peers import SQL_TYPES, Case, System, arrow_result, module, removed
from benchmarks.workload import FEATURES, KEY, MAX_AGE_US, TIME, history_frame, read_workload

_COLUMNS = (KEY, TIME, *FEATURES)


class _Held:
    """A frame that is in memory only around a run: the systems that run in turns do not hold one each."""

    def __init__(self, folder: Path, path: Path, file: str = "history.parquet") -> None:
        self.frame: Any = None
        self._folder, self._file = folder, file
        self._remove = removed(path)

    def before(self) -> None:
        self._remove()
        self.frame = history_frame(self._folder, self._file)

    def after(self) -> None:
        self.frame = None


def _sorted_answer(table: Any) -> Answer:
    """Every stored row in the order of key and time: systems keep them in orders of their own."""
    order = np.lexsort((table[TIME].to_numpy(), table[KEY].to_numpy()))
    return {name: table[name].take(order) for name in _COLUMNS}


# --- featuredb ----------------------------------------------------------------------------------


def _by_time(table: Any) -> Any:
    return np.argsort(table[TIME].to_numpy(), kind="stable")


def _by_key(table: Any) -> Any:
    return np.lexsort((table[TIME].to_numpy(), table[KEY].to_numpy()))


def _shuffled(table: Any) -> Any:
    return np.random.default_rng(0).permutation(len(table))


def _prepare_order(name: str, order: Callable[[Any], Any]) -> Callable[[Path], None]:
    """What writes history in another order."""

    def prepare(folder: Path) -> None:
        import pyarrow.parquet as pq

        history = pq.read_table(folder / "history.parquet")
        pq.write_table(history.take(order(history)), folder / f"history_{name}.parquet")

    return prepare


def _load_featuredb(name: str = "") -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        path = folder / f"ingest{name}.fdb"
        held = _Held(folder, path, f"history{name}.parquet")

        def run() -> None:
            with fdb.open(path) as db:
                define(db, timedelta(microseconds=MAX_AGE_US))
                db.ingest(TABLE, held.frame)

        return Case(run, lambda _: _stored(folder, path), held.before, held.after, files=(path,))

    return load


def _stored(folder: Path, path: Path) -> Answer:
    """Every row joined onto itself: if one is lost, its place has an older event timestamp."""
    keys = history_frame(folder)[[KEY, TIME]].rename(columns={TIME: "at"})
    with fdb.open(path, read_only=True) as db:
        rows = db.info()["feature_tables"][TABLE]["rows"]
        if rows != len(keys):
            raise WrongAnswerError(f"featuredb holds {rows:,} rows of {len(keys):,} ingested")
        training = db.get_historical_features(
            keys, REFERENCES, include_event_timestamps=True, event_timestamp_column="at"
        )
        table = training.to_arrow()
    return _sorted_answer(table.append_column(TIME, table[f"{TABLE}__{TIME}"]))


# --- DuckDB -------------------------------------------------------------------------------------


def _load_duckdb(order: str, file: str) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        import duckdb

        path = folder / file
        held = _Held(folder, path)

        def run() -> None:
            with duckdb.connect(str(path)) as connection:
                connection.register("frame", held.frame)
                connection.execute(f"CREATE TABLE history AS SELECT * FROM frame {order}")
                connection.execute("CHECKPOINT")

        def answer(_: Any) -> Answer:
            with duckdb.connect(str(path), read_only=True) as connection:
                return _sorted_answer(arrow_result(connection.sql("SELECT * FROM history")))

        return Case(run, answer, held.before, held.after, files=(path,))

    return load


# --- SQLite -------------------------------------------------------------------------------------


def _load_sqlite(folder: Path) -> Case:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "ingest.sqlite"
    first = pq.read_table(folder / "history.parquet").slice(0, read_workload(folder).first_rows)
    first = first.set_column(1, TIME, first[TIME].cast(pa.int64()))
    rows = list(zip(*(first[name].to_pylist() for name in _COLUMNS), strict=True))
    types = {KEY: "INTEGER", TIME: "INTEGER", **{name: SQL_TYPES[dtype] for name, dtype in FEATURES.items()}}

    def run() -> None:
        connection = sqlite3.connect(path)
        connection.execute(f"CREATE TABLE history ({', '.join(f'{name} {kind}' for name, kind in types.items())})")
        with connection:
            connection.executemany(f"INSERT INTO history VALUES ({', '.join('?' * len(types))})", rows)
        connection.close()

    def answer(_: Any) -> Answer:
        connection = sqlite3.connect(path)
        stored = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM history").fetchall()
        connection.close()
        columns = zip(*stored, strict=True)
        return _sorted_answer(pa.table({name: pa.array(c) for name, c in zip(_COLUMNS, columns, strict=True)}))

    return Case(run, answer, removed(path), files=(path,), rows=len(rows))


# --- Parquet ------------------------------------------------------------------------------------


def _load_parquet(clustered: bool, file: str) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = folder / file
        held = _Held(folder, path)

        def run() -> None:
            table = pa.Table.from_pandas(held.frame, preserve_index=False)
            if clustered:
                table = table.sort_by([(KEY, "ascending"), (TIME, "ascending")])
            with path.open("wb") as out:
                pq.write_table(table, out, compression="zstd")
                out.flush()
                os.fsync(out.fileno())

        return Case(run, lambda _: _sorted_answer(pq.read_table(path)), held.before, held.after, files=(path,))

    return load


_OURS = "history clustered by key and time, online values and log included; one durable commit"

SYSTEMS = (
    System("ingest", "ingest", "featuredb", _OURS, _load_featuredb()),
    System(
        "ingest",
        "ingest",
        "featuredb, in time order",
        _OURS,
        _load_featuredb("_time"),
        _prepare_order("time", _by_time),
    ),
    System(
        "ingest",
        "ingest",
        "featuredb, in (key, time) order",
        _OURS,
        _load_featuredb("_key"),
        _prepare_order("key", _by_key),
    ),
    System(
        "ingest",
        "ingest",
        "featuredb, shuffled",
        _OURS,
        _load_featuredb("_shuffled"),
        _prepare_order("shuffled", _shuffled),
    ),
    System(
        "ingest",
        "ingest",
        "DuckDB CREATE TABLE, CHECKPOINT",
        "rows stay in the order of arrival, no index",
        _load_duckdb("", "ingest.duckdb"),
        lacks=module("duckdb"),
    ),
    System(
        "ingest",
        "ingest",
        "DuckDB CREATE TABLE ORDER BY, CHECKPOINT",
        "rows sorted by key and time, no index",
        _load_duckdb(f"ORDER BY {KEY}, {TIME}", "ingest_sorted.duckdb"),
        lacks=module("duckdb"),
    ),
    System(
        "ingest",
        "ingest",
        "SQLite executemany",
        "the first rows only; one transaction, no index, tuples made from the frame beforehand",
        _load_sqlite,
        expected="ingest_first",
    ),
    System(
        "ingest",
        "ingest",
        "Parquet (zstd)",
        "pyarrow, rows stay in the order of arrival, fsync at the end",
        _load_parquet(clustered=False, file="ingest.parquet"),
    ),
    System(
        "ingest",
        "ingest",
        "Parquet (zstd), sorted",
        "pyarrow, rows sorted by key and time, fsync at the end",
        _load_parquet(clustered=True, file="ingest_sorted.parquet"),
    ),
)
