"""featuredb's join when one thing differs: dtype of keys, popularity of entities, few rows, many tables, segments.

As in `benchmarks.join`, the file is opened in the timing; only the small entity dataframe is joined on a
database that stays open.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import featuredb as fdb
from benchmarks.check import Answer, masked_answer
from benchmarks.data import part_of
from benchmarks.join import REFERENCES, TABLE, prepare_featuredb
from benchmarks.peers import Case, System
from benchmarks.workload import FEATURES, KEY, MAX_AGE_US, PART_FEATURES, PARTS, SMALL_ROWS, TIME, history_frame

SEGMENTS = 10
# A small join takes some milliseconds at most: a run is so many.
_SMALL_CALLS = 20
_MAX_AGE = timedelta(microseconds=MAX_AGE_US)
_REGIONS = 50


def _define(db: fdb.Database, tables: dict[str, list[str]], keys: dict[str, str]) -> None:
    """Feature tables with some of the features, all with the same entities."""
    entities = [fdb.Entity(name, dtype=dtype) for name, dtype in keys.items()]
    db.apply(
        [
            *entities,
            *(
                fdb.FeatureTable(
                    table, list(keys), [fdb.Feature(name, FEATURES[name]) for name in features], max_age=_MAX_AGE
                )
                for table, features in tables.items()
            ),
        ]
    )


def _entities(folder: Path) -> Any:
    import pandas as pd

    return pd.read_parquet(folder / "entities.parquet")


def _load(
    file: str,
    references: list[str] = REFERENCES,
    change: Callable[[Any], Any] = lambda frame: frame,
    answer: Callable[[Any], Answer] = masked_answer,
    **options: Any,
) -> Callable[[Path], Case]:
    """A join on the file of that name, opened in the timing, after `change` of the entity dataframe."""

    def load(folder: Path) -> Case:
        path = folder / file
        entities = change(_entities(folder))

        def run() -> Any:
            with fdb.open(path, read_only=True) as db:
                return db.get_historical_features(entities, references, **options).to_numpy()

        return Case(run, answer, files=(path,), facts=lambda: {"segments": _segments(path)})

    return load


def _segments(path: Path) -> int:
    """Segments of all tables of a file."""
    with fdb.open(path, read_only=True) as db:
        return sum(int(table["segments"]) for table in db.info()["feature_tables"].values())


# --- other keys ---------------------------------------------------------------------------------


def _string_keys(frame: Any) -> Any:
    """Keys as strings of 18 characters."""
    ids, places = np.unique(frame[KEY].to_numpy(), return_inverse=True)
    names = np.array([f"user_{number:013d}" for number in ids.tolist()], dtype=object)
    return frame.assign(**{KEY: names[places]})


def _composite_keys(frame: Any) -> Any:
    """A string before the number: a region, of which there are few."""
    names = np.array([f"region_{number:02d}" for number in range(_REGIONS)], dtype=object)
    return frame.assign(region=names[frame[KEY].to_numpy() % _REGIONS])


def _prepare_keys(file: str, change: Callable[[Any], Any], keys: dict[str, str]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        with fdb.open(folder / file) as db:
            _define(db, {TABLE: list(FEATURES)}, keys)
            db.ingest(TABLE, change(history_frame(folder)))

    return prepare


# --- small --------------------------------------------------------------------------------------


def _load_small(folder: Path) -> Case:
    db = fdb.open(folder / "join.fdb", read_only=True)
    entities = _entities(folder).head(SMALL_ROWS)

    def run(_: int) -> Any:
        return db.get_historical_features(entities, REFERENCES).to_numpy()

    return Case(run, lambda results: masked_answer(results[-1]), close=db.close, keys=list(range(_SMALL_CALLS)))


# --- many tables --------------------------------------------------------------------------------

_TABLES = [part_of("", part) for part in range(PARTS)]
_OUTPUTS = [part_of(f"__{name}", part) for part in range(PARTS) for name in PART_FEATURES]


def _prepare_tables(folder: Path) -> None:
    with fdb.open(folder / "tables.fdb") as db:
        _define(db, {table: list(PART_FEATURES) for table in _TABLES}, {KEY: "int64"})
        frame = history_frame(folder)[[KEY, TIME, *PART_FEATURES]]
        for part, table in enumerate(_TABLES):
            db.ingest(table, frame.iloc[part::PARTS].reset_index(drop=True))


def _tables_answer(columns: Any) -> Answer:
    return masked_answer(columns, _OUTPUTS)


def _load_single_joins(folder: Path) -> Case:
    path = folder / "tables.fdb"
    entities = _entities(folder)

    def run() -> Any:
        columns: dict[str, Any] = {}
        with fdb.open(path, read_only=True) as db:
            for table in _TABLES:
                references = [f"{table}:{name}" for name in PART_FEATURES]
                training = db.get_historical_features(entities, references, full_feature_names=True)
                columns |= training.to_numpy()
        return columns

    return Case(run, _tables_answer, files=(path,))


# --- segments -----------------------------------------------------------------------------------


def _prepare_segments(folder: Path) -> None:
    frame = history_frame(folder)
    # There is no public way to keep segments from being merged, and none is wanted.
    with mock.patch("featuredb.offline.merge.merge"), fdb.open(folder / "segments.fdb") as db:
        _define(db, {TABLE: list(FEATURES)}, {KEY: "int64"})
        for number in range(SEGMENTS):
            db.ingest(TABLE, frame.iloc[number::SEGMENTS].reset_index(drop=True))


_STRING, _COMPOSITE = {KEY: "string"}, {"region": "string", KEY: "int64"}

SYSTEMS = (
    System(
        "join",
        "keys",
        "int64 keys",
        "the join as above, in turns with those below",
        _load("join.fdb"),
        prepare_featuredb,
        expected="join",
    ),
    System(
        "join",
        "keys",
        "string keys",
        "the same keys as strings of 18 characters",
        _load("join_string.fdb", change=_string_keys),
        _prepare_keys("join_string.fdb", _string_keys, _STRING),
        expected="join",
    ),
    System(
        "join",
        "keys",
        "composite string + int64 keys",
        f"one of {_REGIONS} strings before the same keys",
        _load("join_composite.fdb", change=_composite_keys),
        _prepare_keys("join_composite.fdb", _composite_keys, _COMPOSITE),
        expected="join",
    ),
    System(
        "join",
        "keys",
        "int64 keys, Zipf popularity",
        "of history and entity rows, the entity of rank r has a share in proportion to 1 / r",
        _load("join.fdb"),
        prepare_featuredb,
        expected="join",
        data="zipf",
    ),
    System(
        "join",
        "small",
        "featuredb",
        f"the first {SMALL_ROWS:,} entity rows, again and again on a database that stays open; median of a call",
        _load_small,
        prepare_featuredb,
    ),
    System(
        "join",
        "tables",
        f"{PARTS} tables in one join",
        f"history dealt out to {PARTS} tables of {len(PART_FEATURES)} features",
        _load(
            "tables.fdb",
            [f"{table}:{name}" for table in _TABLES for name in PART_FEATURES],
            answer=_tables_answer,
            full_feature_names=True,
        ),
        _prepare_tables,
    ),
    System(
        "join",
        "tables",
        f"{PARTS} joins of one table",
        "the same tables one after the other; the file is opened once",
        _load_single_joins,
        _prepare_tables,
    ),
    System(
        "join",
        "segments",
        "one segment",
        "the join as above, in turns with that below",
        _load("join.fdb"),
        prepare_featuredb,
        expected="join",
    ),
    System(
        "join",
        "segments",
        f"{SEGMENTS} overlapping segments",
        f"history dealt out to {SEGMENTS} ingests, each over the whole time; merging was switched off meanwhile",
        _load("segments.fdb"),
        _prepare_segments,
        expected="join",
    ),
)
