"""Loading the whole history, unsorted, from a pandas frame into a new file, durably."""

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
from benchmarks.peers import SQL_TYPES, Case, System, arrow_result
from benchmarks.workload import FEATURES, KEY, MAX_AGE_US, TIME, history_frame, read_workload

_COLUMNS = (KEY, TIME, *FEATURES)


def _removed(path: Path) -> Callable[[], None]:
    """What makes a run start without the files of the one before."""

    def remove() -> None:
        for suffix in ("", "-lock", "-journal", ".wal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    return remove


def _sorted_answer(table: Any) -> Answer:
    """Every stored row in the order of key and time: systems keep them in orders of their own."""
    order = np.lexsort((table[TIME].to_numpy(), table[KEY].to_numpy()))
    return {name: table[name].take(order) for name in _COLUMNS}


def _load_featuredb(folder: Path) -> Case:
    path = folder / "ingest.fdb"
    frame = history_frame(folder)

    def run() -> None:
        with fdb.open(path) as db:
            define(db, timedelta(microseconds=MAX_AGE_US))
            db.ingest(TABLE, frame)

    def answer(_: Any) -> Answer:
        # Every row joined onto itself: if one is lost, its place has an older event timestamp.
        keys = frame[[KEY, TIME]].rename(columns={TIME: "at"})
        with fdb.open(path, read_only=True) as db:
            rows = db.info()["feature_tables"][TABLE]["rows"]
            if rows != len(frame):
                raise WrongAnswerError(f"featuredb holds {rows:,} rows of {len(frame):,} ingested")
            training = db.get_historical_features(
                keys, REFERENCES, include_event_timestamps=True, event_timestamp_column="at"
            )
            table = training.to_arrow()
        return _sorted_answer(table.append_column(TIME, table[f"{TABLE}__{TIME}"]))

    return Case(run, answer, _removed(path), files=(path,))


def _load_duckdb(folder: Path) -> Case:
    import duckdb

    path = folder / "ingest.duckdb"
    frame = history_frame(folder)

    def run() -> None:
        with duckdb.connect(str(path)) as connection:
            connection.register("frame", frame)
            connection.execute("CREATE TABLE history AS SELECT * FROM frame")
            connection.execute("CHECKPOINT")

    def answer(_: Any) -> Answer:
        with duckdb.connect(str(path), read_only=True) as connection:
            return _sorted_answer(arrow_result(connection.sql("SELECT * FROM history")))

    return Case(run, answer, _removed(path), files=(path,))


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

    return Case(run, answer, _removed(path), files=(path,), rows=len(rows))


def _load_parquet(folder: Path) -> Case:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "ingest.parquet"
    frame = history_frame(folder)

    def run() -> None:
        with path.open("wb") as file:
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())

    return Case(run, lambda _: _sorted_answer(pq.read_table(path)), _removed(path), files=(path,))


SYSTEMS = (
    System(
        "ingest",
        "ingest",
        "featuredb",
        "history clustered by key and time, online values and log included; one durable commit",
        _load_featuredb,
    ),
    System(
        "ingest",
        "ingest",
        "DuckDB CREATE TABLE, CHECKPOINT",
        "rows stay in the order of arrival, no index",
        _load_duckdb,
        module="duckdb",
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
        _load_parquet,
    ),
)
