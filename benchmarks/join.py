"""Point-in-time joins: every feature onto the unsorted entity dataframe, with a max age."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

import featuredb as fdb
from benchmarks.check import Answer
from benchmarks.peers import SQL_TYPES, Case, System, arrow_result
from benchmarks.workload import CATEGORIES, FEATURES, KEY, MAX_AGE_US, ROW, TIME, history_frame

TABLE = "activity"
REFERENCES = [f"{TABLE}:{name}" for name in FEATURES]


def define(db: fdb.Database, max_age: timedelta | None) -> None:
    """The workload's feature table."""
    features = [fdb.Feature(name, dtype) for name, dtype in FEATURES.items()]
    db.apply([fdb.Entity(KEY, dtype="int64"), fdb.FeatureTable(TABLE, [KEY], features, max_age=max_age)])


def _in_row_order(table: Any) -> Answer:
    """Features of an Arrow table, sorted back into the order of the entity dataframe by its row numbers."""
    order = np.argsort(table[ROW].to_numpy())
    return {name: table[name].take(order) for name in FEATURES}


def _frame_answer(frame: Any) -> Answer:
    import pyarrow as pa

    return _in_row_order(pa.table({name: pa.array(frame[name], from_pandas=True) for name in (ROW, *FEATURES)}))


def masked_answer(columns: Any) -> Answer:
    """Features held as numpy arrays, masked where null."""
    import pyarrow as pa

    return {
        name: pa.array(np.ma.getdata(columns[name]), mask=np.ma.getmaskarray(columns[name]), from_pandas=False)
        for name in FEATURES
    }


# --- featuredb ----------------------------------------------------------------------------------


def _prepare_featuredb(folder: Path) -> None:
    with fdb.open(folder / "join.fdb") as db:
        define(db, timedelta(microseconds=MAX_AGE_US))
        db.ingest(TABLE, history_frame(folder))


def _load_featuredb(convert: Callable[[Any], Any], answer: Callable[[Any], Answer]) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        import pandas as pd

        path = folder / "join.fdb"
        entities = pd.read_parquet(folder / "entities.parquet")

        def run() -> Any:
            with fdb.open(path, read_only=True) as db:
                return convert(db.get_historical_features(entities, REFERENCES))

        return Case(run, answer, files=(path,))

    return load


# --- the limit ----------------------------------------------------------------------------------


def _load_take(folder: Path) -> Case:
    import pyarrow as pa

    positions = np.load(folder / "positions.npy")
    found = positions >= 0
    places = np.maximum(positions, 0)
    history = {name: np.load(folder / "taken" / f"{name}.npy") for name in FEATURES}

    def run() -> Any:
        return {name: np.take(values, places) for name, values in history.items()}

    def answer(taken: Any) -> Answer:
        columns = {}
        for name, values in taken.items():
            path = folder / "taken_valid" / f"{name}.npy"
            valid = found & np.load(path)[places] if path.exists() else found
            column = pa.array(values, mask=~valid)
            columns[name] = pa.array(CATEGORIES).take(column) if FEATURES[name] == "string" else column
        return columns

    return Case(run, answer)


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

        return Case(run, _frame_answer)

    return load


# --- Polars -------------------------------------------------------------------------------------


def _load_polars(sorted_entities: bool) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        import polars as pl

        history = pl.read_parquet(folder / "history.parquet").sort(KEY, TIME)
        entities = pl.read_parquet(folder / "entities.parquet")
        if sorted_entities:
            entities = entities.sort(KEY, TIME)
        tolerance = timedelta(microseconds=MAX_AGE_US)
        # Polars cannot check sortedness within groups, and newer versions warn of that unless told not to try.
        known = signature(pl.DataFrame.join_asof).parameters
        unchecked: dict[str, Any] = {"check_sortedness": False} if "check_sortedness" in known else {}

        def run() -> Any:
            left = entities if sorted_entities else entities.sort(KEY, TIME)
            return left.join_asof(history, on=TIME, by=KEY, tolerance=tolerance, **unchecked)

        return Case(run, lambda result: _in_row_order(result.to_arrow()))

    return load


# --- DuckDB -------------------------------------------------------------------------------------


def _prepare_duckdb(folder: Path) -> None:
    import duckdb

    with duckdb.connect(str(folder / "join.duckdb")) as connection:
        source = str(folder / "history.parquet").replace("'", "''")
        connection.execute(
            f"CREATE TABLE history AS SELECT * FROM read_parquet('{source}') ORDER BY {KEY}, {TIME}; CHECKPOINT"
        )


def _load_duckdb(folder: Path) -> Case:
    import duckdb
    import pyarrow.parquet as pq

    path = folder / "join.duckdb"
    connection = duckdb.connect(str(path), read_only=True)
    connection.register("entities", pq.read_table(folder / "entities.parquet"))
    young = f"h.{TIME} >= e.{TIME} - to_microseconds({MAX_AGE_US})"
    columns = ", ".join(f"CASE WHEN {young} THEN h.{name} END AS {name}" for name in FEATURES)
    query = (
        f"SELECT e.{ROW}, e.{KEY}, e.{TIME}, {columns} FROM entities e "
        f"ASOF LEFT JOIN history h ON e.{KEY} = h.{KEY} AND e.{TIME} >= h.{TIME}"
    )
    return Case(lambda: arrow_result(connection.sql(query)), _in_row_order, close=connection.close, files=(path,))


# --- SQLite -------------------------------------------------------------------------------------

# SQLite has no as-of join: the newest row that is young enough is looked up for each entity row, then fetched.
SQLITE_QUERY = (
    f"SELECT e.{ROW}, e.{KEY}, e.{TIME}, {', '.join(f'h.{name}' for name in FEATURES)} FROM asked.entities e "
    f"LEFT JOIN history h ON h.{KEY} = e.{KEY} AND h.{TIME} = (SELECT max(n.{TIME}) FROM history n "
    f"WHERE n.{KEY} = e.{KEY} AND n.{TIME} <= e.{TIME} AND n.{TIME} >= e.{TIME} - {MAX_AGE_US})"
)


def _sqlite_rows(table: Any) -> Iterator[tuple[Any, ...]]:
    """Rows of an Arrow table as Python values, times as integers; a batch at a time, for they take much memory."""
    import pyarrow as pa

    place = table.column_names.index(TIME)
    for batch in table.set_column(place, TIME, table[TIME].cast(pa.int64())).to_batches(max_chunksize=1 << 16):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _prepare_sqlite(folder: Path) -> None:
    import pyarrow.parquet as pq

    # Rows put in the order of the key leave full pages behind.
    history = pq.read_table(folder / "history.parquet").sort_by([(KEY, "ascending"), (TIME, "ascending")])
    columns = ", ".join(f"{name} {SQL_TYPES[dtype]}" for name, dtype in FEATURES.items())
    connection = sqlite3.connect(folder / "join.sqlite")
    connection.execute(
        f"CREATE TABLE history ({KEY} INTEGER, {TIME} INTEGER, {columns}, PRIMARY KEY ({KEY}, {TIME})) WITHOUT ROWID"
    )
    with connection:
        places = ", ".join("?" * len(history.column_names))
        connection.executemany(f"INSERT INTO history VALUES ({places})", _sqlite_rows(history))
    connection.close()


def open_sqlite(folder: Path) -> sqlite3.Connection:
    """The prepared file, with the entity rows in memory."""
    import pyarrow.parquet as pq

    path = folder / "join.sqlite"
    connection = sqlite3.connect(path)
    # The whole file fits.
    connection.execute(f"PRAGMA mmap_size = {2 * path.stat().st_size}")
    connection.execute(f"PRAGMA cache_size = -{2 * path.stat().st_size // 1024}")
    connection.execute("ATTACH ':memory:' AS asked")
    connection.execute(f"CREATE TABLE asked.entities ({ROW} INTEGER PRIMARY KEY, {KEY} INTEGER, {TIME} INTEGER)")
    with connection:
        entities = pq.read_table(folder / "entities.parquet")
        connection.executemany("INSERT INTO asked.entities VALUES (?, ?, ?)", _sqlite_rows(entities))
    return connection


def _load_sqlite(folder: Path) -> Case:
    import pyarrow as pa

    connection = open_sqlite(folder)

    def answer(rows: list[tuple[Any, ...]]) -> Answer:
        names = (ROW, KEY, TIME, *FEATURES)
        columns = zip(*rows, strict=True)
        return _in_row_order(pa.table({name: pa.array(c) for name, c in zip(names, columns, strict=True)}))

    return Case(
        lambda: connection.execute(SQLITE_QUERY).fetchall(),
        answer,
        close=connection.close,
        files=(folder / "join.sqlite",),
    )


_OWN_FILE = "file opened, planned and read in the timing; entity rows unsorted, answer in their order"
_SORTED_LEFT = "entity dataframe pre-sorted as well; answer in that order"

SYSTEMS = (
    System(
        "join",
        "join",
        "featuredb, to_numpy",
        _OWN_FILE,
        _load_featuredb(lambda training: training.to_numpy(), masked_answer),
        _prepare_featuredb,
    ),
    System(
        "join",
        "join",
        "featuredb, to_pandas",
        _OWN_FILE,
        _load_featuredb(lambda training: training.to_pandas(), _frame_answer),
        _prepare_featuredb,
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
        module="polars",
    ),
    System(
        "join",
        "join",
        "Polars join_asof, both sorted",
        f"history in memory, sorted by key and time; {_SORTED_LEFT}",
        _load_polars(sorted_entities=True),
        module="polars",
    ),
    System(
        "join",
        "join",
        "DuckDB ASOF JOIN",
        "own file, clustered by key and time, opened beforehand; entity rows as an Arrow table, answer as one in "
        "DuckDB's order",
        _load_duckdb,
        _prepare_duckdb,
        "duckdb",
    ),
    System(
        "join",
        "join",
        "SQLite primary key, max() per row",
        "own file, a WITHOUT ROWID table with the key and time as PRIMARY KEY, opened beforehand, mapped; entity rows "
        "unsorted, in a table in memory; answer as tuples",
        _load_sqlite,
        _prepare_sqlite,
    ),
)
