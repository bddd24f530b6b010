"""Rows of history: entities, times and feature values, and which row a point-in-time join finds, by numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.check import Answer
from benchmarks.workload import (
    CATEGORIES,
    EDGE_SHARE,
    FEATURES,
    KEY,
    LATE_SHARE,
    LATE_US_MAX,
    MAX_AGE_US,
    NULL_SHARE,
    NULLABLE,
    ROW,
    SPAN_US,
    TIME,
    UNKNOWN_SHARE,
    Workload,
)

_START_US = int(np.datetime64("2025-01-01", "us").astype(np.int64))
# Bits for the time in (entity place, time) packed into one integer: 101 days of microseconds.
_TIME_BITS = np.uint64(43)
_TIME_MASK = np.uint64((1 << 43) - 1)

Places = NDArray[np.uint64]


class Entities:
    """The entities of a workload, and keys that no entity has.

    Attributes
    ----------
    known, unknown : ndarray of int64
        Keys in ascending order, those of entities and others. An entity's place is that of its key in `known`.
    """

    def __init__(self, rng: np.random.Generator, workload: Workload) -> None:
        wanted = workload.entities + workload.entities // 20 + 1
        ids = np.unique(rng.integers(1, 1 << 40, 2 * wanted + 10))
        ids = np.sort(rng.permutation(ids)[:wanted])
        is_known = np.zeros(wanted, dtype=np.bool_)
        is_known[rng.permutation(wanted)[: workload.entities]] = True
        self.known, self.unknown = ids[is_known], ids[~is_known]
        self._shares: NDArray[np.float64] | None = None
        if workload.zipf:
            shares = np.cumsum(1.0 / np.arange(1, workload.entities + 1))
            self._shares = shares / shares[-1]
            # Popular entities are not neighbours.
            self._by_rank = rng.permutation(workload.entities).astype(np.uint64)

    def draw(self, rng: np.random.Generator, rows: int) -> Places:
        """Places of entities at random, by their popularity."""
        if self._shares is None:
            return rng.integers(0, len(self.known), rows, dtype=np.uint64)
        return self._by_rank[np.searchsorted(self._shares, rng.random(rows), side="right")]


@dataclass(frozen=True)
class History:
    """Rows clustered by entity and sorted by time within it; no entity has two rows of one time."""

    packed: NDArray[np.uint64]
    known: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]
    valid: dict[str, NDArray[np.bool_]]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Times in microseconds since the start of history."""
        return (self.packed & _TIME_MASK).astype(np.int64)

    def latest(self) -> NDArray[np.int64]:
        """The last row of each entity that has any."""
        places = self.packed >> _TIME_BITS
        return np.flatnonzero(np.append(places[1:] != places[:-1], True))

    def keys(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entity keys of rows."""
        found: NDArray[np.int64] = self.known[self.packed[rows] >> _TIME_BITS]
        return found

    def table(self, rows: NDArray[np.int64] | slice) -> Any:
        """Those rows as an Arrow table: key, event timestamp and features."""
        import pyarrow as pa

        packed = self.packed[rows]
        event = (packed & _TIME_MASK).astype(np.int64) + _START_US
        arrays = {KEY: pa.array(self.known[packed >> _TIME_BITS]), TIME: pa.array(event.view("M8[us]"))}
        return pa.table({**arrays, **{name: self.feature(name, rows) for name in FEATURES}})

    def feature(self, name: str, rows: NDArray[np.int64] | slice, found: NDArray[np.bool_] | None = None) -> Any:
        """Those rows of a feature as an Arrow array, null also where not `found`."""
        valid = self.valid[name][rows] if name in self.valid else None
        return feature_array(name, self.columns[name][rows], valid, found)

    def joined(self, positions: NDArray[np.int64]) -> Answer:
        """Features at the positions that a join finds, null where they are negative."""
        return {name: self.feature(name, np.maximum(positions, 0), positions >= 0) for name in FEATURES}


def feature_array(
    name: str, values: NDArray[Any], valid: NDArray[np.bool_] | None, found: NDArray[np.bool_] | None
) -> Any:
    """Generated values of a feature as an Arrow array, null where not `valid` or not `found`."""
    import pyarrow as pa

    if found is not None:
        valid = found if valid is None else valid & found
    column = pa.array(values, mask=None if valid is None else ~valid)
    return pa.array(CATEGORIES).take(column) if FEATURES[name] == "string" else column


def make_history(
    rng: np.random.Generator, entities: Entities, places: Places, begin_us: int = 0, end_us: int = SPAN_US
) -> History:
    """A row for each of `places`, at a random time from `begin_us` to before `end_us`."""
    rows = len(places)
    packed = places << _TIME_BITS
    packed |= rng.integers(begin_us, end_us, rows, dtype=np.uint64)
    packed.sort()
    while (equal := packed[1:] <= packed[:-1]).any():
        packed[1:][equal] = packed[:-1][equal] + np.uint64(1)
    valid = {name: rng.random(rows) >= NULL_SHARE for name in NULLABLE}
    return History(packed, entities.known, _columns(rng, rows), valid)


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


def arrival_times(rng: np.random.Generator, history: History) -> NDArray[np.int64]:
    """When each row arrives: at its own time, but for the late ones."""
    arrival = history.offsets
    late = rng.random(len(arrival)) < LATE_SHARE
    arrival[late] += rng.integers(0, LATE_US_MAX, int(late.sum()))
    return arrival


@dataclass(frozen=True)
class EntityRows:
    """The entity dataframe, unsorted: places of entities, times, and whether the key is of no entity instead."""

    places: Places
    times: NDArray[np.uint64]
    stranger: NDArray[np.bool_]
    keys: NDArray[np.int64]

    def table(self) -> Any:
        """As an Arrow table: row number, key and event timestamp."""
        import pyarrow as pa

        times = (self.times.astype(np.int64) + _START_US).view("M8[us]")
        return pa.table({ROW: pa.array(np.arange(len(times))), KEY: pa.array(self.keys), TIME: pa.array(times)})

    def positions_in(self, packed: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The row of clustered history that each row is joined to, -1 for none."""
        position = np.searchsorted(packed, self.places << _TIME_BITS | self.times, side="right") - 1
        row = packed[position]
        hit = (position >= 0) & (row >> _TIME_BITS == self.places) & ~self.stranger
        hit &= self.times.astype(np.int64) - (row & _TIME_MASK).astype(np.int64) <= MAX_AGE_US
        return np.where(hit, position, -1)


def make_entity_rows(rng: np.random.Generator, entities: Entities, rows: int, packed: NDArray[np.uint64]) -> EntityRows:
    """Random entities and times, some of them at the edges of a row of `packed`."""
    places = entities.draw(rng, rows)
    times = rng.integers(0, SPAN_US, rows, dtype=np.uint64)
    edge = np.flatnonzero(rng.random(rows) < EDGE_SHARE)
    chosen = packed[rng.integers(0, len(packed), len(edge))]
    places[edge] = chosen >> _TIME_BITS
    times[edge] = (chosen & _TIME_MASK) + rng.choice(np.array([0, MAX_AGE_US, MAX_AGE_US + 1], np.uint64), len(edge))
    stranger = rng.random(rows) < UNKNOWN_SHARE
    unknown = entities.unknown
    keys = np.where(stranger, unknown[rng.integers(0, len(unknown), rows)], entities.known[places])
    return EntityRows(places, times, stranger, keys)
