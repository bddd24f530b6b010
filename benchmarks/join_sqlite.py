"""The join in SQLite, which has no as-of join."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.check import Answer, in_row_order
from benchmarks.peers import SQL_TYPES, Case
from benchmarks.workload import FEATURES, KEY, MAX_AGE_US, ROW, TIME

# The newest row that is young enough is looked up for each entity row, then fetched.
SQLITE_QUERY = (
    f"SELECT e.{ROW}, e.{KEY}, e.{TIME}, {', '.join(f'h.{name}' for name in FEATURES)} FROM asked.entities e "
    f"LEFT JOIN history h ON h.{KEY} = e.{KEY} AND h.{TIME} = (SELECT max(n.{TIME}) FROM history n "
    f"WHERE n.{KEY} = e.{KEY} AND n.{TIME} <= e.{TIME} AND n.{TIME} >= e.{TIME} - {MAX_AGE_US})"
)


def sqlite_rows(table: Any) -> Iterator[tuple[Any, ...]]:
    """Rows of an Arrow table as Python values, times as integers; a batch at a time, for they take much memory."""
    import pyarrow as pa

    place = table.column_names.index(TIME)
    for batch in table.set_column(place, TIME, table[TIME].cast(pa.int64())).to_batches(max_chunksize=1 << 16):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def prepare_sqlite(folder: Path) -> None:
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
        connection.executemany(f"INSERT INTO history VALUES ({places})", sqlite_rows(history))
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
        connection.executemany("INSERT INTO asked.entities VALUES (?, ?, ?)", sqlite_rows(entities))
    return connection


def load_sqlite(folder: Path) -> Case:
    import pyarrow as pa

    connection = open_sqlite(folder)

    def answer(rows: list[tuple[Any, ...]]) -> Answer:
        names = (ROW, KEY, TIME, *FEATURES)
        columns = zip(*rows, strict=True)
        return in_row_order(pa.table({name: pa.array(c) for name, c in zip(names, columns, strict=True)}))

    return Case(
        lambda: connection.execute(SQLITE_QUERY).fetchall(),
        answer,
        close=connection.close,
        files=(folder / "join.sqlite",),
    )
