"""Memory of a join beside its output, and of writing a training set that is larger than memory should be.

What counts is anonymous memory: what is resident and no page of a file, for pages of the mapped `.fdb` file are the
system's to take back. It is looked at from another process while the join runs. The allocator is told to give
back at once what is freed (glibc), so that the figures are of the join and not of the one before it.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Any

import featuredb as fdb
from benchmarks.check import Answer, WrongAnswerError, compare, digests, masked_answer
from benchmarks.join import REFERENCES, numpy_bytes, prepare_featuredb
from benchmarks.peers import Case, System
from benchmarks.workload import FEATURES, read_expected, read_workload

# The entity dataframe of to_parquet is the main one, so often.
REPEATS = 50
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 1 << 16


def _give_back_at_once() -> None:
    """Let every larger allocation be a mapping of its own, which is gone when freed."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def _load_join(folder: Path) -> Case:
    import pandas as pd

    _give_back_at_once()
    path = folder / "join.fdb"
    entities = pd.read_parquet(folder / "entities.parquet")

    def run() -> Any:
        with fdb.open(path, read_only=True) as db:
            return db.get_historical_features(entities, REFERENCES).to_numpy()

    return Case(run, masked_answer, files=(path,), output_bytes=numpy_bytes)


def _prepare_to_parquet(folder: Path) -> None:
    import pyarrow.parquet as pq

    prepare_featuredb(folder)
    entities = pq.read_table(folder / "entities.parquet")
    with pq.ParquetWriter(folder / "entities_many.parquet", entities.schema) as writer:
        for _ in range(REPEATS):
            writer.write_table(entities)


def _load_to_parquet(folder: Path) -> Case:
    _give_back_at_once()
    out = folder / "training.parquet"

    def run() -> int:
        with fdb.open(folder / "join.fdb", read_only=True) as db:
            return db.get_historical_features(str(folder / "entities_many.parquet"), REFERENCES).to_parquet(out)

    def answer(_: int) -> Answer:
        return _one_repeat(out, folder)

    rows = REPEATS * read_workload(folder).entity_rows
    return Case(run, answer, files=(out,), rows=rows)


def _one_repeat(path: Path, folder: Path) -> Answer:
    """The last repeat of the entity dataframe; `WrongAnswerError` if another has not the expected answer."""
    import pyarrow.parquet as pq

    expected, rows = read_expected(folder)["join"], read_workload(folder).entity_rows
    answer = {}
    for name in FEATURES:
        column = pq.read_table(path, columns=[name])[name]
        if len(column) != rows * REPEATS:
            raise WrongAnswerError(f"to_parquet wrote {len(column):,} rows, not {rows * REPEATS:,}")
        for repeat in range(REPEATS):
            answer[name] = column.slice(repeat * rows, rows)
            compare({name: expected[name]}, digests({name: answer[name]}), f"to_parquet, repeat {repeat},")
    return answer


SYSTEMS = (
    System(
        "join",
        "memory",
        "featuredb, to_numpy",
        "of strings, pointers count as output and the strings beside it",
        _load_join,
        prepare_featuredb,
        expected="join",
    ),
    System(
        "join",
        "to_parquet",
        "featuredb, to_parquet",
        f"from a Parquet file with the entity dataframe {REPEATS} times over to a Parquet file; one run",
        _load_to_parquet,
        _prepare_to_parquet,
        expected="join",
        once=True,
    ),
)
