"""Several writers and many readers of one file, of which some process or other is killed all the time.

Six writers ingest little and much, load late, materialize, forget, make snapshots and compact. Each of eight readers
looks at one commit after another, or at a snapshot, and checks that online values are the newest of history, and what
holds in every commit (`shared_file`). One more holds a commit for long, and checks that it stays as it is. Every
second or so one of them gets SIGKILL, and another takes its place; one writer and one reader live for the whole time.
A case is a key that was read online and offline in one transaction. In the end the file must pass `verify` and
have every commit that was acknowledged; in long runs its size and the memory of the two must have levelled off.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import featuredb as fdb

from . import children
from .onecommit import at_one_commit
from .results import Outcome
from .runs import scratch, stop_threads
from .shared_file import WRITERS, Violation, check, content, make, opened

READERS = 8
# The first of each kind is never killed, so that the memory of a process can be followed.
SURVIVORS = ("small", "reader 0")
# Writers each of whose calls is a commit.
ALWAYS_COMMIT = ("small", "small too", "large")
KILL_SECONDS = (0.2, 1.5)
SAMPLE_SECONDS = 0.5
HOLD_SECONDS_MAX = 30.0
READ_PAUSE_SECONDS_MAX = 0.2
CHECKS_PER_COMMIT = 3
AT_SNAPSHOT_SHARE = 0.1
# Without any progress for so long, a process hangs.
STILL_SECONDS_MAX = 300.0
# Shorter runs are over before anything levels off.
LEVEL_SECONDS_MIN = 600
LEVEL_GROWTH_MAX = 1.5
KEYS, COMMITS, HOLDS, ACKNOWLEDGED, STEPS = range(5)
FILE_NAME = "shared.fdb"


@dataclass
class Crowd:
    """The processes, and what they count in memory that they share."""

    folder: Path
    seed: int
    counts: Any
    stop: Any
    pids: dict[str, int] = field(default_factory=dict)
    started: int = 0

    @classmethod
    def of(cls, folder: Path, seed: int) -> Crowd:
        jobs = len(_jobs())
        memory = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE * jobs), dtype=np.int64)
        return cls(folder, seed, memory[8 : 8 + 8 * jobs].reshape(jobs, 8), memory[:1])

    @property
    def path(self) -> Path:
        return self.folder / FILE_NAME

    @property
    def violations(self) -> Path:
        return self.folder / "violations"

    def start(self, name: str) -> None:
        """Begin the job `name` in a process of its own."""
        job, mine = _jobs()[name], self.counts[list(_jobs()).index(name)]
        self.started += 1
        rng = random.Random(f"{self.seed} {self.started}")

        def work() -> None:
            try:
                with opened(self.path) as db:
                    for _ in job(db, rng, mine):
                        mine[STEPS] += 1
                        if self.stop[0]:
                            return
            except BaseException as error:
                told = str(error) if isinstance(error, Violation) else traceback.format_exc()
                with self.violations.open("a") as file:
                    file.write(f"{name}: {told}".replace("\n", " | ") + "\n")

        self.pids[name] = children.start(work)

    def kill(self, name: str) -> None:
        pid = self.pids.pop(name)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


Job = Callable[[fdb.Database, random.Random, Any], Iterator[None]]


def _jobs() -> dict[str, Job]:
    readers: dict[str, Job] = {f"reader {number}": _read for number in range(READERS)}
    return {name: _writing(work) for name, work in WRITERS.items()} | readers | {"long reader": _read_long}


def _writing(work: Callable[[fdb.Database, random.Random], Iterator[None]]) -> Job:
    def run(db: fdb.Database, rng: random.Random, mine: Any) -> Iterator[None]:
        for _ in work(db, rng):
            mine[ACKNOWLEDGED] += 1
            yield

    return run


def _read(db: fdb.Database, rng: random.Random, mine: Any) -> Iterator[None]:
    view, held = at_one_commit(db)
    before = held.commit()
    while True:
        held.hold()
        if held.commit() < before:
            raise Violation(f"commit {held.commit()} was read after {before}")
        before = held.commit()
        at = _snapshot(view, rng) if rng.random() < AT_SNAPSHOT_SHARE else view
        for _ in range(CHECKS_PER_COMMIT):
            mine[KEYS] += check(at, rng)
        mine[COMMITS] += 1
        held.let_go()
        yield
        # So that writers are not starved.
        time.sleep(rng.uniform(0, READ_PAUSE_SECONDS_MAX))


def _snapshot(view: fdb.Database, rng: random.Random) -> fdb.Database:
    held = view.list_snapshots()
    return view.at(rng.choice(held).name) if held else view


def _read_long(db: fdb.Database, rng: random.Random, mine: Any) -> Iterator[None]:
    view, held = at_one_commit(db)
    while True:
        held.hold()
        before, until = content(view), time.monotonic() + rng.uniform(1, HOLD_SECONDS_MAX)
        while time.monotonic() < until:
            mine[KEYS] += check(view, rng)
            yield
            time.sleep(0.1)
        if content(view) != before:
            raise Violation(f"commit {held.commit()} did not stay as it was")
        held.let_go()
        mine[HOLDS] += 1
        yield


# --- the run ----------------------------------------------------------------------------------


@dataclass
class Sample:
    """What the file and the two that are never killed take at a moment, in bytes."""

    file: int
    writer: int
    reader: int


def run(seconds: int, seed: int) -> Outcome:
    """Let the crowd work for so many seconds."""
    outcome = Outcome("processes", seed)
    with scratch() as folder:
        crowd = Crowd.of(folder, seed)
        make(crowd.path)
        _rehearse(crowd.path)
        for name in _jobs():
            crowd.start(name)
        kills, samples = _disturb(crowd, seconds, outcome)
        crowd.stop[0] = 1
        _wait(crowd, outcome)
        for line in crowd.violations.read_text().splitlines() if crowd.violations.exists() else ():
            outcome.add(f"violation: {line}", f"{seconds} seconds")
        totals = crowd.counts.sum(axis=0).tolist()
        certain = [number for number, name in enumerate(_jobs()) if name in ALWAYS_COMMIT]
        _examine(crowd.path, int(crowd.counts[certain, ACKNOWLEDGED].sum()), outcome)
    outcome.counts["agree"] += totals[KEYS]
    outcome.notes.append(
        f"{totals[KEYS]:,} keys checked in {totals[COMMITS]:,} commits and {totals[HOLDS]:,} held for long, "
        f"{totals[ACKNOWLEDGED]:,} calls that wrote, {kills:,} kills"
    )
    _level(samples, seconds, outcome)
    return outcome


def _rehearse(path: Path) -> None:
    """Do a little of everything, so that what must be compiled is before the processes are forked."""
    rng = random.Random(0)
    with opened(path) as db:
        for work in WRITERS.values():
            writing = work(db, rng)
            for _ in range(4):
                next(writing)
        for _ in range(50):
            check(db, rng)
        content(db)
    stop_threads()


def _disturb(crowd: Crowd, seconds: int, outcome: Outcome) -> tuple[int, list[Sample]]:
    """Kill and replace until time is up; how many were killed, and what the rest took meanwhile."""
    rng = random.Random(crowd.seed)
    kills, samples = 0, list[Sample]()
    end = time.monotonic() + seconds
    next_kill = time.monotonic() + rng.uniform(*KILL_SECONDS)
    next_sample = time.monotonic()
    seen, moved = crowd.counts[:, STEPS].copy(), np.full(len(crowd.counts), time.monotonic())
    while (now := time.monotonic()) < end and not crowd.violations.exists():
        if now >= next_sample:
            memory = (_anonymous_bytes(crowd.pids[name]) for name in SURVIVORS)
            samples.append(Sample(crowd.path.stat().st_size, *memory))
            next_sample = now + SAMPLE_SECONDS
        if now >= next_kill:
            victim = rng.choice([name for name in crowd.pids if name not in SURVIVORS])
            crowd.kill(victim)
            crowd.start(victim)
            kills += 1
            next_kill = now + rng.uniform(*KILL_SECONDS)
        moved[crowd.counts[:, STEPS] != seen] = now
        seen = crowd.counts[:, STEPS].copy()
        for name, since in zip(_jobs(), moved.tolist(), strict=True):
            if now - since > STILL_SECONDS_MAX:
                outcome.add("violation: made no progress", name)
                return kills, samples
        time.sleep(0.05)
    return kills, samples


def _wait(crowd: Crowd, outcome: Outcome) -> None:
    deadline = time.monotonic() + STILL_SECONDS_MAX
    for name, pid in crowd.pids.items():
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                ended = os.waitpid(pid, 0)
                break
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(ended[1])
        if code:
            outcome.add(f"violation: ended with {code}", name)


def _anonymous_bytes(pid: int) -> int:
    """Memory of a process that is its own, without the file that it has mapped."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _examine(path: Path, acknowledged: int, outcome: Outcome) -> None:
    with fdb.open(path, create=False) as db:
        report = db.verify()
        commits = sum(commit.table in ("small", "large") and commit.rows > 0 for commit in db.log())
    if not report.ok:
        outcome.add(f"violation: {report}", "in the end")
    if commits < acknowledged:
        outcome.add(f"violation: {commits} commits of {acknowledged} that were acknowledged", "in the end")


def _level(samples: list[Sample], seconds: int, outcome: Outcome) -> None:
    """Note the most of each quarter; in long runs the last must not be more than the second."""
    parts = [part for part in np.array_split(np.arange(len(samples)), 4) if len(part)]
    for name in ("file", "writer", "reader"):
        greatest = [max(getattr(samples[at], name) for at in part) for part in parts]
        shown = ", ".join(f"{nbytes / 2**20:.1f}" for nbytes in greatest)
        outcome.notes.append(f"{name}, most in each quarter: {shown} MiB")
        if seconds >= LEVEL_SECONDS_MIN and greatest[-1] > LEVEL_GROWTH_MAX * greatest[1]:
            outcome.add(f"violation: it grew: {shown} MiB", name)
