"""Generates the workload: history, entity dataframe and keys to read, with the answers, as files in a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.check import Answer, Digests, digests
from benchmarks.workload import (
    CATEGORIES,
    DAY_US,
    DAYS,
    EDGE_SHARE,
    FEATURES,
    KEY,
    LATE_SHARE,
    LATE_US_MAX,
    MANY_KEYS,
    MAX_AGE_US,
    NULL_SHARE,
    NULLABLE,
    ROW,
    SINGLE_KEYS,
    TIME,
    UNKNOWN_SHARE,
    Workload,
)

_START_US = int(np.datetime64("2025-01-01", "us").astype(np.int64))
# Bits for the time in (entity place, time) packed into one integer: 101 days of microseconds.
_TIME_BITS = np.uint64(43)
_TIME_MASK = np.uint64((1 << 43) - 1)


@dataclass(frozen=True)
class _History:
    """Rows clustered by entity and sorted by time within it; no entity has two rows of one time."""

    packed: NDArray[np.uint64]
    known: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]
    valid: dict[str, NDArray[np.bool_]]

    @property
    def places(self) -> NDArray[np.uint64]:
        return self.packed >> _TIME_BITS

    def table(self, rows: NDArray[np.int64] | slice) -> Any:
        """Those rows as an Arrow table: key, event timestamp and features."""
        import pyarrow as pa

        packed = self.packed[rows]
        event = (packed & _TIME_MASK).astype(np.int64) + _START_US
        arrays = {KEY: pa.array(self.known[packed >> _TIME_BITS]), TIME: pa.array(event.view("M8[us]"))}
        return pa.table({**arrays, **{name: self.feature(name, rows) for name in FEATURES}})

    def feature(self, name: str, rows: NDArray[np.int64] | slice, found: NDArray[np.bool_] | None = None) -> Any:
        """Those rows of a feature as an Arrow array, null also where not `found`."""
        import pyarrow as pa

        valid = self.valid[name][rows] if name in self.valid else None
        if found is not None:
            valid = found if valid is None else valid & found
        values = pa.array(self.columns[name][rows], mask=None if valid is None else ~valid)
        return pa.array(CATEGORIES).take(values) if FEATURES[name] == "string" else values


def _columns(rng: np.random.Generator, rows: int) -> dict[str, NDArray[Any]]:
    """Feature values: decimals as well as full doubles, small and large integers, categories as their number."""
    return {
        "price": np.round(rng.gamma(2.0, 40.0, rows), 2),
        # SQLite stores -0.0 as the integer 0; adding 0.0 leaves none (float32 normals have one in some millions).
        "distance": np.round(rng.normal(0.0, 500.0, rows), 1) + 0.0,
        "temperature": rng.normal(15.0, 8.0, rows),
        "score": rng.random(rows),
        "share": rng.random(rows, dtype=np.float32),
        "weight": rng.standard_normal(rows, dtype=np.float32) + np.float32(0.0),
        "visits": rng.poisson(30.0, rows),
        # Below 2**53: pandas keeps integers that may be null as floats.
        "last_order": rng.integers(0, 1 << 40, rows),
        "active": rng.random(rows) < 0.7,
        "category": rng.integers(0, len(CATEGORIES), rows, dtype=np.int32),
    }


def _history(rng: np.random.Generator, workload: Workload, known: NDArray[np.int64]) -> _History:
    packed = rng.integers(0, workload.entities, workload.rows, dtype=np.uint64) << _TIME_BITS
    packed |= rng.integers(0, DAYS * DAY_US, workload.rows, dtype=np.uint64)
    packed.sort()
    while (equal := packed[1:] <= packed[:-1]).any():
        packed[1:][equal] = packed[:-1][equal] + np.uint64(1)
    valid = {name: rng.random(workload.rows) >= NULL_SHARE for name in NULLABLE}
    return _History(packed, known, _columns(rng, workload.rows), valid)


def _arrival_order(rng: np.random.Generator, history: _History) -> NDArray[np.int64]:
    """Rows in the order of their time, but for the late ones."""
    arrival = (history.packed & _TIME_MASK).astype(np.int64)
    late = rng.random(len(arrival)) < LATE_SHARE
    arrival[late] += rng.integers(0, LATE_US_MAX, int(late.sum()))
    return np.argsort(arrival, kind="stable")


def _entity_rows(
    rng: np.random.Generator, workload: Workload, history: _History, unknown: NDArray[np.int64]
) -> tuple[Any, NDArray[np.int64]]:
    """The entity dataframe, unsorted, and for each row its position in `history`, -1 for none."""
    import pyarrow as pa

    rows = workload.entity_rows
    place = rng.integers(0, workload.entities, rows, dtype=np.uint64)
    offset = rng.integers(0, DAYS * DAY_US, rows, dtype=np.uint64)
    edge = np.flatnonzero(rng.random(rows) < EDGE_SHARE)
    chosen = history.packed[rng.integers(0, workload.rows, len(edge))]
    place[edge] = chosen >> _TIME_BITS
    offset[edge] = (chosen & _TIME_MASK) + rng.choice(np.array([0, MAX_AGE_US, MAX_AGE_US + 1], np.uint64), len(edge))
    stranger = rng.random(rows) < UNKNOWN_SHARE
    keys = np.where(stranger, unknown[rng.integers(0, len(unknown), rows)], history.known[place])
    position = np.searchsorted(history.packed, place << _TIME_BITS | offset, side="right") - 1
    row = history.packed[position]
    hit = (position >= 0) & (row >> _TIME_BITS == place) & ~stranger
    hit &= offset.astype(np.int64) - (row & _TIME_MASK).astype(np.int64) <= MAX_AGE_US
    times = (offset.astype(np.int64) + _START_US).view("M8[us]")
    table = pa.table({ROW: pa.array(np.arange(rows)), KEY: pa.array(keys), TIME: pa.array(times)})
    return table, np.where(hit, position, -1)


def generate(folder: Path, workload: Workload) -> None:
    """Write the workload and the digests of the right answers into a folder.

    Files: ``history.parquet`` in the order of arrival, ``entities.parquet``, ``latest.parquet`` with one row
    per entity in key order, ``keys_one.npy`` and ``keys_many.npy`` to read online, ``positions.npy`` and
    ``taken/`` for the limit of a join, ``expected.json``.
    """
    import pyarrow.parquet as pq

    rng = np.random.default_rng(workload.seed)
    wanted = workload.entities + workload.entities // 20 + 1
    ids = np.unique(rng.integers(1, 1 << 40, 2 * wanted + 10))
    ids = np.sort(rng.permutation(ids)[:wanted])
    is_known = np.zeros(wanted, dtype=np.bool_)
    is_known[rng.permutation(wanted)[: workload.entities]] = True
    history = _history(rng, workload, ids[is_known])

    arrival = _arrival_order(rng, history)
    pq.write_table(history.table(arrival), folder / "history.parquet")
    entities, positions = _entity_rows(rng, workload, history, ids[~is_known])
    pq.write_table(entities, folder / "entities.parquet")
    latest = np.flatnonzero(np.append(history.places[1:] != history.places[:-1], True))
    pq.write_table(history.table(latest), folder / "latest.parquet")
    np.save(folder / "positions.npy", positions)
    for kind, arrays in (("taken", history.columns), ("taken_valid", history.valid)):
        (folder / kind).mkdir()
        for name, array in arrays.items():
            np.save(folder / kind / f"{name}.npy", array)

    expected: dict[str, Digests] = {"join": digests(_joined(history, positions))}
    for what, count in (("one", SINGLE_KEYS), ("many", MANY_KEYS)):
        read = latest[rng.integers(0, len(latest), count)]
        np.save(folder / f"keys_{what}.npy", history.known[history.places[read]])
        expected[what] = digests({name: history.feature(name, read) for name in FEATURES})
    first = np.sort(arrival[: workload.first_rows])
    for what, rows in (("ingest", slice(None)), ("ingest_first", first)):
        table = history.table(rows)
        expected[what] = digests({name: table[name] for name in table.column_names})
    (folder / "expected.json").write_text(json.dumps(expected))
    (folder / "workload.json").write_text(json.dumps(asdict(workload)))


def _joined(history: _History, positions: NDArray[np.int64]) -> Answer:
    found = positions >= 0
    return {name: history.feature(name, np.maximum(positions, 0), found) for name in FEATURES}
