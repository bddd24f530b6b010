"""A workload on a file: all of it once to know what each step must leave, or under a handler of its calls."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

import featuredb as fdb
from featuredb import threads

from . import calls, children
from .digest import digest
from .record import Event, Recorder
from .states import Disk
from .workload import Step, perform, small_limits, steps

NAME = "main.fdb"
EVENTS = "events"


@dataclass(frozen=True)
class Plan:
    """The steps of a seed; step 0 makes the file."""

    seed: int
    steps: list[Step]
    durability: str = "full"

    @classmethod
    def of(cls, seed: int, count: int, durability: str = "full") -> Plan:
        return cls(seed, [Step("open"), *steps(seed, count)], durability)


class Runner:
    """Performs the steps of a plan on the file in a folder."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.path = plan, folder / NAME
        self.db: fdb.Database | None = None

    def open(self) -> fdb.Database:
        """The database, opened if it is not."""
        if self.db is None:
            self.db = fdb.open(self.path, durability=self.plan.durability)  # type: ignore[arg-type]
        return self.db

    def close(self) -> None:
        """Close it, if it is open."""
        held, self.db = self.db, None
        if held is not None:
            held.close()

    def run(self, step: Step) -> None:
        """Perform one step."""
        if step.kind == "reopen":
            self.close()
        db = self.open()
        if step.kind not in ("open", "reopen"):
            perform(db, step)


@dataclass
class Expected:
    """What the file says after each step of a plan, and the events of the run that found out."""

    plan: Plan
    digests: list[str]
    backups: dict[str, str]
    events: list[Event] = field(default_factory=list)


def expected(plan: Plan, *, record: bool) -> Expected:
    """Run a plan to its end in a child."""
    with scratch() as folder:
        outcome = children.one(lambda: _run_all(plan, folder, record))
        if isinstance(outcome, children.Died):
            raise RuntimeError(f"the workload of seed {plan.seed} ended by {outcome}")
        digests, backups = outcome
        raw = msgpack.unpackb((folder / EVENTS).read_bytes()) if record else []
        events = [Event(*event) for event in raw]
        if record:
            _check_recording(events, folder)
        return Expected(plan, digests, backups, events)


def _check_recording(events: list[Event], folder: Path) -> None:
    """The events, replayed, give just the files that are there: no write was missed."""
    disk = Disk()
    for event in events:
        disk.start(event)
        disk.finish(event)
    there = {path.name for path in folder.iterdir()} - {EVENTS, f"{NAME}-lock"}
    replayed = disk.now()
    wrong = [name for name in there | replayed.keys() if replayed.get(name) != _content(folder / name)]
    if wrong:
        raise RuntimeError(f"the recording is not what happened to {', '.join(sorted(wrong))}")


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _run_all(plan: Plan, folder: Path, record: bool) -> tuple[list[str], dict[str, str]]:
    small_limits()
    recorder = Recorder(str(folder))
    if record:
        calls.intercept(recorder)
    runner, digests, backups = Runner(plan, folder), list[str](), dict[str, str]()
    for number, step in enumerate(plan.steps):
        recorder.mark("begin", number)
        runner.run(step)
        recorder.mark("done", number)
        digests.append(digest(runner.open()))
        if step.kind == "backup":
            backups[step.arguments["name"]] = digests[-1]
    runner.close()
    if record:
        calls.intercept(lambda call, go: go(None))
        raw = [[e.kind, e.file, e.offset, e.data, e.durable, e.name] for e in recorder.events]
        (folder / EVENTS).write_bytes(msgpack.packb(raw))
    return digests, backups


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory if there is one, gone afterwards."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="survival-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder).resolve()


def emptied(folder: Path) -> Path:
    """The folder without its content."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def warm_up() -> None:
    """Load and compile what children need, before they are forked; leaves no thread and no open database."""
    small_limits()
    plan = Plan.of(0, 30)
    with scratch() as folder:
        runner = Runner(plan, folder)
        for step in plan.steps:
            runner.run(step)
            digest(runner.open())
        runner.open().verify()
        runner.close()
    stop_threads()


def stop_threads() -> None:
    """End the pool of this process, so that children can be forked from it; each makes its own."""
    threads._pool_of(os.getpid()).shutdown()
    threads._pool_of.cache_clear()
    if threading.active_count() > 1:
        raise RuntimeError("the workload starts threads, so that children cannot be forked from this process")
