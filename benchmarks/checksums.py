"""``python -m benchmarks.checksums``: what it costs a join to check the checksums of the column chunks that it reads.

A process checks each chunk when it first touches it. So three joins of all features are timed, on the data of
`benchmarks.join`: the first of a file opened anew, opening included; the same where any checksum is taken for right,
without a look at the chunk; and the next join on the open file, where nothing is left to check. They take turns in one
process that has loaded the compiled code, but is made to forget what it has learned of the file; the page cache is
warm. Every answer is compared with the expected one.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import featuredb as fdb
from benchmarks.check import compare, digests, masked_answer
from benchmarks.join import REFERENCES
from benchmarks.process import in_process
from benchmarks.units import duration, mebibytes
from benchmarks.workload import Workload, read_expected
from featuredb.storage import remembered, segment

CHECKED, UNCHECKED, AGAIN = "first, checked", "first, unchecked", "repeated"


def _patched(function: Callable[[Any], Any]) -> AbstractContextManager[Any]:
    return mock.patch.object(segment, "checksum", function)


def _joins(folder: Path, again: bool) -> list[float]:
    """Seconds of the first join of the file, and of the one after it if wanted."""
    import pandas as pd

    entities = pd.read_parquet(folder / "entities.parquet")
    expected = read_expected(folder)["join"]
    remembered._closed.clear()
    gc.collect()
    seconds = []
    began = time.perf_counter()
    with fdb.open(folder / "join.fdb", read_only=True) as db:
        for _ in range(1 + again):
            columns = db.get_historical_features(entities, REFERENCES).to_numpy()
            seconds.append(time.perf_counter() - began)
            compare(expected, digests(masked_answer(columns)), "the join")
            del columns
            gc.collect()
            began = time.perf_counter()
    return seconds


def _chunks(folder: Path) -> tuple[list[int], list[int]]:
    """Bytes of each chunk that a first join checks, and of each that a second one does."""
    checksum, found = segment.checksum, list[int]()

    def counted(raw: memoryview) -> int:
        found.append(len(raw))
        return checksum(raw)

    with _patched(counted):
        _joins(folder, again=False)
        first = found.copy()
        found.clear()
        _joins(folder, again=True)
    return first, found[len(first) :]


def measure(folder: Path, workload: Workload, repeat: int) -> None:
    """Make the data, print the times, and what the checks are of a first join."""
    in_process("generate", folder, **asdict(workload))
    in_process("prepare", folder, what="join", name="featuredb, to_numpy")
    chunks, more = _chunks(folder)
    seconds: dict[str, list[float]] = {CHECKED: [], UNCHECKED: [], AGAIN: []}
    for turn in range(repeat):
        for kind in (CHECKED, UNCHECKED) if turn % 2 else (UNCHECKED, CHECKED):
            # What is equal to anything is equal to the checksum that a chunk should have.
            with _patched(lambda _: mock.ANY) if kind == UNCHECKED else nullcontext():
                first, *next_ones = _joins(folder, again=kind == CHECKED)
            seconds[kind].append(first)
            seconds[AGAIN] += next_ones
    print("| Join | Median | Least | Most | Checked |")
    print("|---|--:|--:|--:|--:|")
    for kind, checked in ((CHECKED, chunks), (UNCHECKED, []), (AGAIN, more)):
        shown = " | ".join(duration(value) for value in (median(seconds[kind]), min(seconds[kind]), max(seconds[kind])))
        print(f"| {kind} | {shown} | {mebibytes(sum(checked))} |")
    whole = median(seconds[CHECKED])
    cost = whole - median(seconds[UNCHECKED])
    print(f"\nChecking {len(chunks):,} chunks takes {duration(cost)}, {cost / whole:.0%} of a first join.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checksums", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of history")
    parser.add_argument("--entities", type=int, default=100_000, help="distinct entities")
    parser.add_argument("--entity-rows", type=int, default=1_000_000, help="rows that are joined onto")
    parser.add_argument("--repeat", type=int, default=21, help="runs of each join")
    given = parser.parse_args(arguments)
    workload = Workload(given.rows, given.entities, given.entity_rows)
    if problems := workload.problems():
        parser.error("; ".join(problems))
    with tempfile.TemporaryDirectory(prefix="featuredb-bench-") as folder:
        measure(Path(folder) / "main", workload, given.repeat)


if __name__ == "__main__":
    main()
