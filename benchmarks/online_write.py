"""Ingests of one row into a file that has all keys: history and online values, a commit for each; each call is timed.

What the file system takes is measured in turns with them: 4 KiB written to a file that has them already, and fsync.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import featuredb as fdb
from benchmarks.check import Answer
from benchmarks.join import REFERENCES, TABLE
from benchmarks.online_many import arrays_answer
from benchmarks.online_one import prepare_featuredb, prepare_lmdb, wanted_keys
from benchmarks.peers import Case, System, copied
from benchmarks.workload import KEY, TIME, WRITES, as_users_hold_it

_BLOCK_BYTES = 4096


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Rows to write: what is known of some keys already."""
    import pandas as pd
    import pyarrow.parquet as pq

    latest = pq.read_table(folder / "latest.parquet")
    rows = dict(zip(latest[KEY].to_pylist(), range(len(latest)), strict=True))
    places = [rows[key] for key in wanted_keys(folder, "one")[:WRITES].tolist()]
    taken = as_users_hold_it(latest.take(places).to_pandas()).astype(object)
    return list(taken.where(pd.notna(taken), None).to_dict("records"))


def _load_featuredb(durability: str) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        rows = _rows(folder)
        path = folder / f"write_{durability}.fdb"
        copied(folder / "online.fdb", path)
        db = fdb.open(path, durability=durability)  # type: ignore[arg-type]
        last = max(row[TIME] for row in rows)
        seconds: Iterator[int] = count(1)

        def run(row: dict[str, Any]) -> None:
            # Never a row that is there already: each is a second newer than the one before.
            db.ingest(TABLE, [{**row, TIME: last + timedelta(seconds=next(seconds))}])

        def answer(_: Any) -> Answer:
            return arrays_answer(db.online_reader(REFERENCES).get_many([row[KEY] for row in rows]))

        return Case(run, answer, close=db.close, files=(path,), keys=rows)

    return load


def _load_lmdb(folder: Path) -> Case:
    import lmdb

    path = folder / "write.lmdb"
    copied(folder / "online.lmdb", path)
    env = lmdb.open(str(path), subdir=False, map_size=1 << 32, lib_version=0)

    def answer(results: list[bool]) -> Answer:
        assert all(results)
        return {}

    def run(key: int) -> bool:
        with env.begin(write=True) as txn:
            stored: bool = txn.put(key.to_bytes(8, "big"), bytes(64))
        return stored

    return Case(run, answer, close=env.close, files=(path,), keys=list(range(WRITES)))


def _load_fsync(folder: Path) -> Case:
    path = folder / "write.bytes"
    path.write_bytes(bytes(_BLOCK_BYTES * WRITES))
    file = os.open(path, os.O_WRONLY)
    os.fsync(file)
    block = os.urandom(_BLOCK_BYTES)

    def run(number: int) -> None:
        os.pwrite(file, block, number * _BLOCK_BYTES)
        os.fsync(file)

    return Case(run, lambda _: {}, close=lambda: os.close(file), files=(path,), keys=list(range(WRITES)))


SYSTEMS = (
    System(
        "online",
        "write",
        'featuredb, durability="relaxed"',
        "a list of one dict",
        _load_featuredb("relaxed"),
        prepare_featuredb,
        data="online",
    ),
    System(
        "online",
        "write",
        'featuredb, durability="full"',
        "a list of one dict",
        _load_featuredb("full"),
        prepare_featuredb,
        data="online",
    ),
    System(
        "online",
        "write",
        "py-lmdb put, durable",
        "a transaction for each, 64 bytes",
        _load_lmdb,
        prepare_lmdb,
        expected="nothing",
        data="online",
    ),
    System(
        "online",
        "write",
        "write 4 KiB, fsync",
        "no system: what the disk takes",
        _load_fsync,
        expected="nothing",
        data="online",
    ),
)
