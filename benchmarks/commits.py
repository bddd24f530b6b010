"""``python -m benchmarks.commits``: how long small commits take while another process writes much to the same file.

One row is ingested at a time, each time in a commit of its own, and each call is timed: alone, beside a process that
merges all segments of a large table again and again, and beside one that ingests batches into it. There is one writer
at a time, so a small commit waits for whoever holds the write lock.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

import featuredb as fdb
from benchmarks.process import PROJECT

T0 = datetime(2024, 1, 1, tzinfo=UTC)
KEYS = 100_000
# As long as a writer waits at most: longer than any of the others writes.
TIMEOUT_SECONDS = 600.0
BESIDE = ("nothing", "merging", "ingests")
FEATURES = [f"f{number}" for number in range(5)]


def _define(db: fdb.Database) -> None:
    features = [fdb.Feature(name, "float64") for name in FEATURES]
    tables = [fdb.FeatureTable(name, ["user"], features) for name in ("small", "large")]
    db.apply([fdb.Entity("user", "int64"), *tables])


def _load(db: fdb.Database, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    micros = rng.integers(0, 10**12, rows).astype("timedelta64[us]")
    data = {"user": rng.integers(0, KEYS, rows), "event_timestamp": np.datetime64("2023-01-01") + micros}
    db.ingest("large", data | {name: rng.random(rows) for name in FEATURES})


def write_much(path: str, kind: str, rows: int) -> None:
    """What the other process does, until it is killed."""
    from featuredb.offline import merge

    with fdb.open(path, timeout=TIMEOUT_SECONDS) as db:
        if kind == "merging":
            # All segments are then of one size, so that a few ingests make a merge of all of them due.
            merge._TIER_ROWS_MIN = 4 * rows
        seed = 1
        while True:
            _load(db, rows // 100 if kind == "merging" else rows, seed)
            print(seed, flush=True)
            seed += 1


def _seconds(path: Path, seconds: float) -> list[float]:
    """How long each of the small commits of so many seconds took."""
    found, number, end = list[float](), 0, time.perf_counter() + seconds
    with fdb.open(path, timeout=TIMEOUT_SECONDS) as db:
        first = (time.time_ns() - 1_700_000_000_000_000_000) // 1_000_000
        while (began := time.perf_counter()) < end:
            event = T0 + timedelta(milliseconds=first + number)
            db.ingest("small", [{"user": number % 1000, "event_timestamp": event} | dict.fromkeys(FEATURES, 1.0)])
            found.append(time.perf_counter() - began)
            number += 1
    return found


def measure(folder: Path, rows: int, seconds: float) -> None:
    """Print the latencies beside each of `BESIDE`."""
    path = folder / "commits.fdb"
    with fdb.open(path) as db:
        _define(db)
        _load(db, rows, 0)
    print("| Beside | Small commits | p50 | p99 | Longest | Others' commits |")
    print("|---|--:|--:|--:|--:|--:|")
    for kind in BESIDE:
        other = None
        if kind != "nothing":
            command = [sys.executable, "-m", "benchmarks.commits", "--write", str(path), kind, str(rows)]
            other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
            assert other.stdout is not None
            other.stdout.readline()
        found = _seconds(path, seconds)
        commits = 0
        if other is not None:
            other.kill()
            commits = len(other.communicate()[0].splitlines())
        p50, p99 = np.percentile(found, [50, 99])
        shown = " | ".join(f"{1000 * value:,.2f} ms" for value in (p50, p99, max(found)))
        print(f"| {kind} | {len(found):,} | {shown} | {commits:,} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commits", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the large table, and of a large ingest")
    parser.add_argument("--seconds", type=float, default=20.0, help="of small commits beside each")
    parser.add_argument("--write", nargs=3, metavar=("FILE", "KIND", "ROWS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.write:
        write_much(given.write[0], given.write[1], int(given.write[2]))
    with tempfile.TemporaryDirectory(prefix="featuredb-bench-") as folder:
        measure(Path(folder), given.rows, given.seconds)


if __name__ == "__main__":
    main()
