"""The targets: what each must reach, what it aims at, and whether the kept results do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.join_memory import REPEATS
from benchmarks.join_variants import SEGMENTS
from benchmarks.kept import Figure, Kept
from benchmarks.measures import (
    NUMPY,
    PANDAS,
    Measure,
    after_fsync,
    extra_memory,
    file_size,
    large,
    peak,
    rate,
    ratio,
    seconds,
    segments,
)
from benchmarks.units import duration, gigabytes, rows_a_second
from benchmarks.workload import MANY_KEYS, PARTS, SMALL_ROWS


@dataclass(frozen=True)
class Unit:
    """How a figure is written, and whether more of it is better."""

    write: Callable[[float], str]
    more: bool = False

    def bound(self, value: float) -> str:
        return f"{'≥' if self.more else '≤'} {self.write(value)}"

    def reached(self, value: float, bound: float) -> bool:
        return value >= bound if self.more else value <= bound


def _times(value: float) -> str:
    return f"{value:.2f} ×" if value < 10 else f"{value:.1f} ×"


RATIO = Unit(_times)
SPEEDUP = Unit(_times, more=True)
SECONDS = Unit(duration)
PERCENT = Unit(lambda value: f"{100 * value:.0f} %")
BYTES = Unit(gigabytes)
RATE = Unit(rows_a_second, more=True)


@dataclass(frozen=True)
class Check:
    """A figure and its bound; without a measure it is that of the other check of the target."""

    bound: float
    unit: Unit | None = None
    measure: Measure | None = None


@dataclass(frozen=True)
class Target:
    """A line of the table.

    Attributes
    ----------
    what : str
        May hold ``{}``, which the size that was measured replaces.
    unit, measure : Unit, callable
        Of the figure.
    must, aim : float or Check, optional
        Bounds; a `Check` where one is on another figure.
    size : callable, optional
        From the results to what replaces ``{}``.
    """

    what: str
    unit: Unit
    measure: Measure
    must: float | None = None
    aim: float | Check | None = None
    size: Callable[[Kept], str] | None = None

    def row(self, kept: Kept) -> tuple[str, str, str, str, str]:
        """What, must, aim, measured and met, as text."""
        what = self.what if self.size is None else self.what.format(self.size(kept))
        found = self.measure(kept)
        aim = self.aim if isinstance(self.aim, Check) else None if self.aim is None else Check(self.aim)
        unit = self.unit if aim is None or aim.unit is None else aim.unit
        aimed = found if aim is None or aim.measure is None else aim.measure(kept)
        must_text = "" if self.must is None else self.unit.bound(self.must)
        aim_text = "" if aim is None else unit.bound(aim.bound)
        if found is None or aimed is None:
            return what, must_text, aim_text, "", "not measured"
        measured = _measured(found, self.unit) + ("" if aimed is found else f"; {_measured(aimed, unit)}")
        if self.must is not None and not self.unit.reached(found.value, self.must):
            return what, must_text, aim_text, measured, "no"
        if aim is not None and unit.reached(aimed.value, aim.bound):
            return what, must_text, aim_text, measured, "aim"
        met = "" if self.must is None and aim is None else "must" if self.must is not None else "no"
        return what, must_text, aim_text, measured, met


def _measured(found: Figure, unit: Unit) -> str:
    if found.least == found.most:
        return unit.write(found.value)
    return f"{unit.write(found.value)} ({unit.write(found.least)} – {unit.write(found.most)})"


# --- the targets --------------------------------------------------------------------------------


def _size(what: str, name: str) -> Callable[[Kept], str]:
    """A size of the workload of a comparison."""

    def size(kept: Kept) -> str:
        workload = kept.workload(what)
        return "?" if workload is None else f"{workload[name]:,}"

    return size


def _parquet_rows(kept: Kept) -> str:
    workload = kept.workload("to_parquet")
    return "?" if workload is None else f"{workload['entity_rows'] * REPEATS:,}"


def _large_sizes(kept: Kept) -> str:
    both = kept.comparison("large")
    return f"N = {both[1]['history_rows']:,} against {both[0]['history_rows']:,}" if both else "N = ? against ?"


_PANDAS = "pandas merge_asof, history sorted", "pandas merge_asof, both sorted"
_POLARS = "Polars join_asof, history sorted", "Polars join_asof, both sorted"
_GET, _ONE_ROW = "featuredb, reader.get", "featuredb, get_online_features"
_GET_MANY, _TWO_THREADS = "featuredb, reader.get_many, one thread", "featuredb, reader.get_many, two threads"
_ONLINE_KEYS = _size("many", "online_keys")
_GB = 1e9

TARGETS = (
    Target(
        "Join to numpy columns over numpy.take (limit)", RATIO, ratio("join", NUMPY, "numpy.take (limit)"), 1.6, 0.9
    ),
    Target("pandas merge_asof over featuredb, history pre-sorted", SPEEDUP, ratio("join", _PANDAS[0], NUMPY), 4, 7),
    Target(
        "pandas merge_asof over featuredb, both sides pre-sorted", SPEEDUP, ratio("join", _PANDAS[1], NUMPY), 2.5, 4.5
    ),
    Target("Polars join_asof over featuredb, history pre-sorted", SPEEDUP, ratio("join", _POLARS[0], NUMPY), 6, 10),
    Target(
        "Polars join_asof over featuredb, both sides pre-sorted", SPEEDUP, ratio("join", _POLARS[1], NUMPY), 2.1, 3.8
    ),
    Target(
        "DuckDB ASOF JOIN over featuredb, history clustered", SPEEDUP, ratio("join", "DuckDB ASOF JOIN", NUMPY), 10, 18
    ),
    Target("to_pandas over to_numpy", RATIO, ratio("join", PANDAS, NUMPY), 1.15),
    Target("Join with string keys over int64", RATIO, ratio("keys", "string keys", "int64 keys"), 2, 1.4),
    Target(
        "Join with composite string + int64 keys over int64",
        RATIO,
        ratio("keys", "composite string + int64 keys", "int64 keys"),
        2,
        1.4,
    ),
    Target("Join with Zipf popularity over uniform", RATIO, ratio("keys", "int64 keys, Zipf popularity", "int64 keys")),
    Target("Join with {}, same M", RATIO, large, 1.6, 1.3, _large_sizes),
    Target(
        f"Join of {SMALL_ROWS:,} entity rows on N = {{}}, repeated",
        SECONDS,
        seconds("small", "featuredb"),
        3e-3,
        1e-3,
        _size("small", "rows"),
    ),
    Target(
        f"Join of {PARTS} tables over {PARTS} single joins",
        RATIO,
        ratio("tables", f"{PARTS} tables in one join", f"{PARTS} joins of one table"),
        0.7,
        0.5,
    ),
    Target(f"Join on {SEGMENTS} unmerged overlapping segments over one", RATIO, segments, 2, 1.3),
    Target("Extra memory of a join over its output", PERCENT, extra_memory, 0.5, 0.25),
    Target(
        "to_parquet with M = {}, resident memory",
        BYTES,
        peak("to_parquet", "featuredb, to_parquet"),
        1.5 * _GB,
        _GB,
        _parquet_rows,
    ),
    Target(
        "DuckDB's unsorted table over ingest, same frame",
        SPEEDUP,
        ratio("ingest", "DuckDB CREATE TABLE, CHECKPOINT", "featuredb"),
        1,
        1.6,
    ),
    Target(
        "Ingest in order of arrival over time order",
        SPEEDUP,
        ratio("ingest", "featuredb", "featuredb, in time order"),
        2,
        4,
    ),
    Target(
        "Ingest in order of arrival over (key, time) order",
        SPEEDUP,
        ratio("ingest", "featuredb", "featuredb, in (key, time) order"),
        2,
        4,
    ),
    Target("File size over the smaller of DuckDB", RATIO, file_size("DuckDB"), 1.5, 1),
    Target("File size over the smaller of zstd Parquet", RATIO, file_size("Parquet"), None, 1),
    Target(
        "One key, prepared reader, p50, over py-lmdb get",
        RATIO,
        ratio("one", _GET, "py-lmdb get"),
        3,
        Check(3e-6, SECONDS, seconds("one", _GET)),
    ),
    Target("get_online_features, one row, p50", SECONDS, seconds("one", _ONE_ROW), 20e-6, 8e-6),
    Target(
        f"py-lmdb getmulti + numpy over get_many, {MANY_KEYS:,} random keys of {{}}, one thread",
        SPEEDUP,
        ratio("many", "py-lmdb getmulti, numpy", _GET_MANY),
        3,
        5,
        _ONLINE_KEYS,
    ),
    Target("Python dict of tuples over get_many", SPEEDUP, ratio("many", "Python dict", _GET_MANY), None, 1),
    Target("get_many, one thread over two", SPEEDUP, ratio("many", _GET_MANY, _TWO_THREADS), 1.6, 1.9),
    Target(
        "SQLite primary key over get_many", SPEEDUP, ratio("many", "SQLite json_each and primary key", _GET_MANY), 8
    ),
    Target("Redis pipeline over get_many", SPEEDUP, ratio("many", "Redis pipeline of GET", _GET_MANY), 20),
    Target(
        'Latest values in bulk, ingest(to="online")', RATE, rate("load", 'featuredb, ingest(to="online")'), 1e6, 2e6
    ),
    Target("Latest values in bulk, materialize", RATE, rate("load", "featuredb, materialize"), 1e6, 2e6),
    Target(
        'One-row ingest, durability="relaxed"',
        SECONDS,
        seconds("write", 'featuredb, durability="relaxed"'),
        60e-6,
        30e-6,
    ),
    Target(
        'One-row ingest, durability="full", less an fsync',
        SECONDS,
        after_fsync('featuredb, durability="full"'),
        100e-6,
        30e-6,
    ),
    Target(
        "Process start to first online value, over raw lmdb",
        RATIO,
        ratio("start", _GET, "py-lmdb get, struct"),
        3,
        Check(0.1, SECONDS, seconds("start", _GET)),
    ),
    Target("First join of a new process, kernels cached", SECONDS, seconds("first", "kernels cached"), 1, 0.5),
    Target("First join, kernels never compiled", SECONDS, seconds("first", "kernels never compiled"), 12, 6),
)


def targets_table(kept: Kept) -> list[str]:
    """Markdown lines."""
    lines = ["| What | Must | Aim | Measured | Met |", "|---|--:|--:|--:|---|"]
    return lines + ["| " + " | ".join(target.row(kept)) + " |" for target in TARGETS]
