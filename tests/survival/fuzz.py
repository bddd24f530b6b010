"""Hostile files (`mutants`): `verify` looks at each in one child, and everything is read in another.

A file that `verify` finds in order is then also written to, and must be in order again.

A signal, 10 s of processor time, memory beyond bounds, an error of another kind or without a remedy: each is a
violation of `verify`, and of reads and writes of a file that `verify` finds in order; these two may raise no error at
all. What reads make of other files is counted.

A case is its number and nothing else. The first of a run is the seed, so that ``python -m tests.survival fuzz
--seed N --count 1`` is the case N of any run again.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import featuredb as fdb
from featuredb import limits

from . import children
from .mutants import PAGE_BYTES, Base, make_bases, read_bases, write_mutant
from .results import Outcome
from .runs import NAME, emptied, scratch, stop_threads

SECONDS_MAX = 10
# Beside twice the file. The first case of a child takes up to 15 MiB, in order or not: stacks of threads, memory that
# each of them sets aside, what libraries load when first called. Twice that, so that only what grows with what a file
# claims is a violation.
MEMORY_BASE_BYTES = 32 << 20
# Beyond it nothing is granted, so that a case cannot take the machine with it.
ADDRESS_SPACE_BYTES = 4 << 30
MAP_BYTES = 1 << 26
# Of files that are damaged or refused, every fourth is read: for the count alone.
OTHERS_READ = 4
ROUND, CASES_PER_CHILD = 2000, 200
UNKNOWN = "violation: no remedy"
ROWS_WRITTEN = 3


def run(count: int, seed: int) -> Outcome:
    """Cases `seed` to `seed + count - 1`."""
    outcome = Outcome("fuzzed files", seed)
    reads: Counter[str] = Counter()
    peak = 0
    with scratch() as folder, scratch() as scratched:
        make_bases(folder)
        bases = read_bases(folder)
        # Loaded and compiled here, for no case is to pay for it.
        for number, base in enumerate(bases):
            # Without the free pages at its end a file is read by other code.
            for content in (base.content, base.content[: max(base.live) + PAGE_BYTES]):
                path = emptied(scratched) / NAME
                path.write_bytes(content)
                if (found := verified(path)) != "sound" or (found := used(path)) != "written":
                    raise RuntimeError(f"sound file {number} is to be in order: {found}")
        stop_threads()

        def looked(look: Callable[[Path], str], numbers: list[int]) -> dict[int, Any]:
            # Each child has a folder of its own.
            return dict(
                children.beside(lambda number: guarded(bases, number, scratched, look), numbers, CASES_PER_CHILD)
            )

        for first in range(seed, seed + count, ROUND):
            numbers = list(range(first, min(first + ROUND, seed + count)))
            by_verify = looked(verified, numbers)
            sound = {number for number in numbers if verdict_of(by_verify[number]) == "sound"}
            by_use = looked(used, [number for number in numbers if number in sound])
            by_read = looked(read, [number for number in numbers if number not in sound and not number % OTHERS_READ])
            reads.update(verdict_of(result).partition(":")[0] for result in by_read.values())
            for number in numbers:
                outcome.add(judged(by_verify[number], by_use.get(number)), f"case {number}")
                peak = max(peak, memory_of(by_verify[number]))
    shown = ", ".join(f"{number:,} {kind}" for kind, number in sorted(reads.items()))
    outcome.note(f"reads of every {OTHERS_READ}th file that verify does not find in order: {shown or 'none'}")
    outcome.note(f"most memory that verify took beside twice the file: {peak >> 20} MiB")
    return outcome


def memory_of(result: Any) -> int:
    """What a case took beside twice the file."""
    return 0 if isinstance(result, children.Died) else int(result[1])


def verdict_of(result: Any) -> str:
    """What a child said, or how it ended."""
    return f"{result}" if isinstance(result, children.Died) else result[0]


def judged(by_verify: Any, by_use: Any) -> str:
    """The verdict on one file."""
    if isinstance(by_verify, children.Died):
        return f"violation: the process ended by {by_verify}"
    verdict = verdict_of(by_verify)
    if verdict != "sound":
        return verdict
    verdict = verdict_of(by_use)
    found = verdict.removeprefix("violation: ")
    return "sound" if verdict == "written" else f"violation: verify finds it in order, use does not: {found}"


def guarded(bases: list[Base], number: int, folder: Path, look: Callable[[Path], str]) -> tuple[str, int]:
    """What `look` says of a mutant, within limits of time and memory; and the memory beside twice the file."""
    # Two children run side by side.
    own = folder / str(os.getpid())
    own.mkdir(exist_ok=True)
    path = emptied(own) / NAME
    write_mutant(bases, number, path)
    _limit_address_space()
    # Other cases of this process leave their garbage behind.
    gc.collect(0)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_MAX)
    try:
        verdict, took = measured(path, look)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if took > MEMORY_BASE_BYTES:
        verdict = f"violation: {took >> 20} MiB of memory beside twice the file ({verdict})"
    return verdict, took


def measured(path: Path, look: Callable[[Path], str]) -> tuple[str, int]:
    """What `look` says of a file, and the memory that it took beside twice the file."""
    Path("/proc/self/clear_refs").write_text("5")
    before, size = _status("VmRSS"), path.stat().st_size
    verdict = look(path)
    return verdict, _status("VmHWM") - before - 2 * max(size, path.stat().st_size)


_limited = False


def _limit_address_space() -> None:
    global _limited
    if not _limited:
        _limited = True
        limits.MAP_SIZE_BYTES = MAP_BYTES  # type: ignore[misc]
        most = _status("VmSize") + ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _status(name: str) -> int:
    """A figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def verified(path: Path) -> str:
    """What `verify` says: ``refused``, ``damaged``, ``sound``, or a violation."""
    try:
        with fdb.open(path, read_only=True) as db:
            report = db.verify()
            str(report)
            return "sound" if report.ok else "damaged"
    except fdb.FeatureDBError as error:
        return "refused" if has_remedy(error) else f"{UNKNOWN} in {type(error).__name__}: {error}"
    except Exception as error:
        return f"violation: a bare {type(error).__name__}: {error}"


def read(path: Path) -> str:
    """What reading everything gives: ``read``, ``refused``, or ``bare`` with the error."""
    try:
        with fdb.open(path, read_only=True) as db:
            read_all(db)
    except fdb.FeatureDBError as error:
        return f"refused: {error}" if has_remedy(error) else f"no remedy: {type(error).__name__}: {error}"
    except Exception as error:
        return f"bare: {type(error).__name__}: {error}"
    return "read"


def used(path: Path) -> str:
    """What use of a sound file gives: ``written``, or what is wrong."""
    verdict = read(path)
    if verdict != "read":
        return f"reading: {verdict}"
    try:
        with fdb.open(path) as db:
            write_all(db)
    except fdb.FeatureDBError as error:
        return f"writing: {type(error).__name__}: {error}"
    except Exception as error:
        return f"writing: bare: {type(error).__name__}: {error}"
    verdict = verified(path)
    return "written" if verdict == "sound" else f"written, then {verdict}"


def has_remedy(error: Exception) -> bool:
    """Whether a message says what to do."""
    return "; " in str(error)


def read_all(db: fdb.Database) -> None:
    """Call whatever reads, on all there is."""
    db.info()
    db.list_entities()
    for view in (db, *(db.at(snapshot.name) for snapshot in db.list_snapshots())):
        view.log()
        for table in view.list_feature_tables():
            _read_table(view, table, whole=view is db)
        for service in view.list_feature_services():
            keys = {name: [None] for name in _columns_of(view, service)}
            view.get_historical_features({**keys, "event_timestamp": ["2013-01-05"]}, service.name).to_numpy()
    for table in db.list_feature_tables():
        db.rejected(table.name)


def _columns_of(db: fdb.Database, service: fdb.FeatureService) -> list[str]:
    """The columns that a feature service is joined by."""
    columns = []
    for name in service.tables:
        columns += db.get_feature_table(name).entities
    return [*columns, *(column for alias in service.aliases.values() for column in alias.keys.values())]


def _read_table(db: fdb.Database, table: fdb.FeatureTable, whole: bool) -> None:
    """Every way to read a table; of one at a snapshot, which is read alike, just the shortest."""
    references = [f"{table.name}:{name}" for name in table.feature_names]
    names: dict[str, Any] = {"event_timestamp_column": "t", "full_feature_names": True}
    stored = db.get_historical_features(None, references, latest=not whole, **names).to_numpy()
    keys = {name: stored[name] for name in table.entities}
    rows = len(stored["t"])
    if whole:
        db.get_historical_features(None, references, latest=True, end="2013-01-03", **names).to_numpy()
        frame = {**keys, "t": stored["t"]}
        db.get_historical_features(frame, references, known_at="2023-12-01", **names).to_numpy()
    if not table.online or not rows:
        return
    few = [{name: values[row] for name, values in keys.items()} for row in range(min(rows, 3))]
    db.get_online_features(references, few, now="2013-01-05", full_feature_names=True).to_dict()
    if whole:
        # So many that they are read by compiled code.
        many = {name: np.resize(values, max(rows, 80)) for name, values in keys.items()}
        db.get_online_features(references, many, now="2013-01-05", full_feature_names=True).to_dict()
        db.online_reader(references, full_feature_names=True).get(few[0])


def write_all(db: fdb.Database) -> None:
    """Write to all there is, with a snapshot that holds what was there, and write the file anew."""
    db.apply(fdb.Entity("written", "int64"))
    db.snapshot("written")
    for table in db.list_feature_tables():
        _write_table(db, table)
    db.materialize()
    db.compact()


def _write_table(db: fdb.Database, table: fdb.FeatureTable) -> None:
    """Newer rows of keys that a table has: with the values before them, the newest of nulls, and one replaced."""
    stored = db.get_historical_features(None, [f"{table.name}:{table.feature_names[0]}"], latest=True).to_numpy()
    keys = {table.column_of(name): stored[name][:ROWS_WRITTEN].tolist() for name in table.entities}
    times = [name for name in (table.event_timestamp_column, table.created_timestamp_column) if name is not None]
    features = [table.column_of(name) for name in table.feature_names]
    for row in zip(*keys.values(), strict=True):
        key = dict(zip(keys, row, strict=True))
        first, second = (key | dict.fromkeys(times, datetime(2014, 1, day, tzinfo=UTC)) for day in (1, 2))
        db.ingest(table.name, [first | {features[0]: None}], partial=True)
        # Appended by code of its own, for it is the newest of its key.
        db.ingest(table.name, [second | dict.fromkeys(features)])
        db.ingest(table.name, [first | dict.fromkeys(features)])
