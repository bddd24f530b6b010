"""Point-in-time joins: every feature onto the unsorted entity dataframe, with a max age.

In the timing of featuredb: opening the file, planning, joining and building the result. Peers have their history
in memory or their file open beforehand, the pages warm. What each has done to its data first stands in its note.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

import featuredb as fdb
from benchmarks.check import Answer, frame_answer, in_row_order, masked_answer
from benchmarks.data import taken_answer
from benchmarks.join_sqlite import load_sqlite, prepare_sqlite
from benchmarks.peers import Case, System, arrow_result, module
from benchmarks.workload import FEATURES, KEY, MAX_AGE_US, ROW, TIME, history_frame

TABLE = "activity"
REFERENCES = [f"{TABLE}:{name}" for name in FEATURES]


def define(db: fdb.Database, max_age: timedelta | None) -> None:
    """The workload's feature table."""
    features = [fdb.Feature(name, dtype) for name, dtype in FEATURES.items()]
    db.apply([fdb.Entity(KEY, dtype="int64"), fdb.FeatureTable(TABLE, [KEY], features, max_age=max_age)])


# --- featuredb ----------------------------------------------------------------------------------


def prepare_featuredb(folder: Path) -> None:
    """Ingest history into ``join.fdb``, unless it is there."""
    path = folder / "join.fdb"
    if path.exists():
        return
    with fdb.open(path) as db:
        define(db, timedelta(microseconds=MAX_AGE_US))
        db.ingest(TABLE, history_frame(folder))


def numpy_bytes(columns: dict[str, Any]) -> int:
    """Bytes of arrays, masks included; of strings only the pointers."""
    return sum(np.ma.getdata(column).nbytes + np.ma.getmask(column).nbytes for column in columns.values())


def _load_featuredb(
    convert: Callable[[Any], Any], answer: Callable[[Any], Answer], **options: Any
) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        import pandas as pd

        path = folder / "join.fdb"
        entities = pd.read_parquet(folder / "entities.parquet")

        def run() -> Any:
            with fdb.open(path, read_only=True) as db:
                return convert(db.get_historical_features(entities, REFERENCES, **options))

        return Case(run, answer, files=(path,))

    return load


# --- the limit ----------------------------------------------------------------------------------


def _load_take(folder: Path) -> Case:
    positions = np.load(folder / "positions.npy")
    places = np.maximum(positions, 0)
    history = {name: np.load(folder / "taken" / f"{name}.npy") for name in FEATURES}

    def run() -> Any:
        return {name: np.take(values, places) for name, values in history.items()}

    return Case(run, lambda taken: taken_answer(folder, positions, taken))


# --- pandas -------------------------------------------------------------------------------------


def _load_pandas(sorted_entities: bool) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        import pandas as pd

        history = pd.read_parquet(folder / "history.parquet").sort_values(TIME, ignore_index=True)
        history = history.astype({"category": "category"})
        entities = pd.read_parquet(folder / "entities.parquet")
        if sorted_entities:
            entities = entities.sort_values(TIME, ignore_index=True)
        tolerance = pd.Timedelta(microseconds=MAX_AGE_US)

        def run() -> Any:
            left = entities if sorted_entities else entities.sort_values(TIME)
            return pd.merge_asof(left, history, on=TIME, by=KEY, tolerance=tolerance)

        return Case(run, frame_answer)

    return load


# --- Polars -------------------------------------------------------------------------------------


def polars_options() -> dict[str, Any]:
    """Polars cannot check sortedness within groups, and newer versions warn of that unless told not to try."""
    import polars as pl

    known = signature(pl.DataFrame.join_asof).parameters
    return {"check_sortedness": False} if "check_sortedness" in known else {}


def _load_polars(sorted_entities: bool) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        import polars as pl

        history = pl.read_parquet(folder / "history.parquet").sort(KEY, TIME)
        entities = pl.read_parquet(folder / "entities.parquet")
        if sorted_entities:
            entities = entities.sort(KEY, TIME)
        tolerance = timedelta(microseconds=MAX_AGE_US)
        unchecked = polars_options()

        def run() -> Any:
            left = entities if sorted_entities else entities.sort(KEY, TIME)
            return left.join_asof(history, on=TIME, by=KEY, tolerance=tolerance, **unchecked)

        return Case(run, lambda result: in_row_order(result.to_arrow()))

    return load


# --- DuckDB -------------------------------------------------------------------------------------


def prepare_duckdb(folder: Path) -> None:
    import duckdb

    with duckdb.connect(str(folder / "join.duckdb")) as connection:
        source = str(folder / "history.parquet").replace("'", "''")
        connection.execute(
            f"CREATE TABLE history AS SELECT * FROM read_parquet('{source}') ORDER BY {KEY}, {TIME}; CHECKPOINT"
        )


def duckdb_query() -> str:
    """The join of ``entities`` and ``history``."""
    young = f"h.{TIME} >= e.{TIME} - to_microseconds({MAX_AGE_US})"
    columns = ", ".join(f"CASE WHEN {young} THEN h.{name} END AS {name}" for name in FEATURES)
    return (
        f"SELECT e.{ROW}, e.{KEY}, e.{TIME}, {columns} FROM entities e "
        f"ASOF LEFT JOIN history h ON e.{KEY} = h.{KEY} AND e.{TIME} >= h.{TIME}"
    )


def _load_duckdb(folder: Path) -> Case:
    import duckdb
    import pyarrow.parquet as pq

    path = folder / "join.duckdb"
    connection = duckdb.connect(str(path), read_only=True)
    connection.register("entities", pq.read_table(folder / "entities.parquet"))
    query = duckdb_query()
    return Case(lambda: arrow_result(connection.sql(query)), in_row_order, close=connection.close, files=(path,))


# Files that systems make of the history, and ways of featuredb that differ in the form of the answer alone.
FILES = ("join.fdb", "join.duckdb", "join.sqlite")
FORMS = ("featuredb, to_pandas", "featuredb, to_numpy, one thread")

_OWN_FILE = "file opened, planned and read in the timing; entity rows unsorted, answer in their order"
_SORTED_LEFT = "entity dataframe pre-sorted as well; answer in that order"

SYSTEMS = (
    System(
        "join",
        "join",
        "featuredb, to_numpy",
        _OWN_FILE,
        _load_featuredb(lambda training: training.to_numpy(), masked_answer),
        prepare_featuredb,
    ),
    System(
        "join",
        "join",
        "featuredb, to_pandas",
        _OWN_FILE,
        _load_featuredb(lambda training: training.to_pandas(), frame_answer),
        prepare_featuredb,
    ),
    System(
        "join",
        "join",
        "featuredb, to_numpy, one thread",
        _OWN_FILE,
        _load_featuredb(lambda training: training.to_numpy(), masked_answer, threads=1),
        prepare_featuredb,
    ),
    System(
        "join",
        "join",
        "numpy.take (limit)",
        "no join: the columns in memory are only gathered at positions known beforehand, strings as numbers, "
        "nulls left out",
        _load_take,
    ),
    System(
        "join",
        "join",
        "pandas merge_asof, history sorted",
        "history in memory, sorted by time, strings as a category; entity rows sorted so in the timing and left so",
        _load_pandas(sorted_entities=False),
    ),
    System(
        "join",
        "join",
        "pandas merge_asof, both sorted",
        f"history in memory, sorted by time, strings as a category; {_SORTED_LEFT}",
        _load_pandas(sorted_entities=True),
    ),
    System(
        "join",
        "join",
        "Polars join_asof, history sorted",
        "history in memory, sorted by key and time; entity rows sorted so in the timing, answer in that order",
        _load_polars(sorted_entities=False),
        lacks=module("polars"),
    ),
    System(
        "join",
        "join",
        "Polars join_asof, both sorted",
        f"history in memory, sorted by key and time; {_SORTED_LEFT}",
        _load_polars(sorted_entities=True),
        lacks=module("polars"),
    ),
    System(
        "join",
        "join",
        "DuckDB ASOF JOIN",
        "own file, clustered by key and time, opened beforehand; entity rows as an Arrow table, answer as one in "
        "DuckDB's order",
        _load_duckdb,
        prepare_duckdb,
        lacks=module("duckdb"),
    ),
    System(
        "join",
        "join",
        "SQLite primary key, max() per row",
        "own file, a WITHOUT ROWID table with the key and time as PRIMARY KEY, opened beforehand, mapped; entity rows "
        "unsorted, in a table in memory; answer as tuples",
        load_sqlite,
        prepare_sqlite,
    ),
)
