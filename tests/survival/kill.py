"""kill -9: at random moments, and before, in the middle of and after any write, sync or change of names.

What a process wrote stays when it is killed, so this is about commits that are cut off, and about locks and the
reader table, which the dead leave behind. Acknowledged steps are noted in a synced file beside.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from . import calls, children
from .calls import Call, Go
from .examine import examine_folder
from .results import Outcome
from .runs import Plan, Runner, emptied, expected, scratch
from .workload import small_limits

STEPS = 25
KILLS_PER_PLAN = 100
PLACES = ("before", "half", "after")


@dataclass
class Killer:
    """A handler that kills this process at the call number `at` of those on the file's folder."""

    folder: str
    at: int
    place: str
    seen: int = 0

    def __call__(self, call: Call, go: Go) -> int:
        if os.path.dirname(call.path) != self.folder:
            return go(None)
        self.seen += 1
        if self.seen != self.at:
            return go(None)
        if self.place == "half" and call.kind == "write":
            go(len(call.data) // 2)
        elif self.place == "after":
            go(None)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")


def run(count: int, seed: int) -> Outcome:
    """Kill `count` writers, half of them at random moments."""
    outcome, rng = Outcome("kill -9", seed), random.Random(seed)
    kills, plan_seed = 0, seed
    with scratch() as folder, scratch() as beside:
        while kills < count:
            known = expected(Plan.of(plan_seed, STEPS), record=True)
            calls_made = sum(event.kind not in ("begin", "done") for event in known.events)
            began = time.monotonic()
            _start(known.plan, emptied(folder), beside / "done", None)
            os.wait()
            seconds = time.monotonic() - began
            for number in range(min(KILLS_PER_PLAN, count - kills)):
                point = Killer(str(folder), rng.randint(1, calls_made), rng.choice(PLACES)) if number % 2 else None
                delay = rng.uniform(0, seconds)
                killed, done = _kill(known.plan, emptied(folder), beside / "done", point, delay)
                kills += killed
                where = f"seed {plan_seed}, " + (f"{point.place} call {point.at}" if point else f"after {delay:.4f} s")
                verdict = children.one(lambda: examine_folder(folder, known, done, min(done + 1, len(known.digests))))  # noqa: B023
                violated = isinstance(verdict, children.Died) or verdict.startswith("violation")
                # A run that ended before its kill is no case, but what it leaves must be right as well.
                if killed or violated:
                    outcome.add(verdict, f"{where}, " + (f"in step {done}" if killed else "which came after its end"))
            plan_seed += 1
    return outcome


def _kill(plan: Plan, folder: Path, side: Path, point: Killer | None, delay: float) -> tuple[bool, int]:
    """Run a plan until it is killed; whether it was, and how many steps were acknowledged."""
    side.write_bytes(b"")
    child = _start(plan, folder, side, point)
    if point is None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the writer of seed {plan.seed} failed instead of being killed")
    return os.WIFSIGNALED(status), side.read_bytes().count(b"\n")


def _start(plan: Plan, folder: Path, side: Path, point: Killer | None) -> int:
    def work() -> None:
        small_limits()
        if point is not None:
            calls.intercept(point)
        acknowledged = os.open(side, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        runner = Runner(plan, folder)
        for number, step in enumerate(plan.steps):
            runner.run(step)
            os.write(acknowledged, b"%d\n" % number)
            os.fsync(acknowledged)
        runner.close()

    return children.start(work)
