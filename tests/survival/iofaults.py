"""Faults of I/O: writes and syncs that fail or are cut short, again and again, for as long as a step lasts.

After a failure the step is tried again, as a user would once there is space: the content must be old or new
before, and new afterwards. Every error must be a `FeatureDBError` that says what to do.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import featuredb as fdb

from . import calls, children
from .calls import Call, Go
from .digest import digest
from .results import Outcome
from .runs import Expected, Plan, Runner, emptied, expected, scratch
from .workload import Step, small_limits

STEPS = 40
KINDS = ("EIO", "ENOSPC", "short write")


@dataclass
class Saboteur:
    """A handler that lets some calls pass, then makes one fail, or each one until it is told to stop."""

    folder: str
    rng: random.Random
    passing: int = 0
    kind: str = "EIO"
    lasting: bool = False
    failed: list[str] = field(default_factory=list)
    armed: bool = False

    def arm(self) -> None:
        """Choose the next failure."""
        self.failed = []
        self.armed, self.passing = True, self.rng.randint(0, 8)
        self.kind, self.lasting = self.rng.choice(KINDS), self.rng.random() < 0.5

    def __call__(self, call: Call, go: Go) -> int:
        ours = self.folder in (os.path.dirname(call.path), call.path)
        if not self.armed or not ours or call.kind == "unlink":
            return go(None)
        if self.passing:
            self.passing -= 1
            return go(None)
        self.failed.append(call.kind)
        self.armed = self.lasting
        if call.kind == "write" and self.kind == "short write":
            return go(len(call.data) // 2)
        code = errno.EIO if self.kind == "short write" else getattr(errno, self.kind)
        raise OSError(code, os.strerror(code))


def run(count: int, seed: int) -> Outcome:
    """Let `count` steps fail."""
    outcome, plan_seed, left = Outcome("faults of I/O", seed), seed, count
    reopened = 0
    while left > 0:
        known = expected(Plan.of(plan_seed, STEPS), record=False)
        with scratch() as folder:
            found = children.one(lambda: _run(known, emptied(folder), plan_seed))  # noqa: B023
        if isinstance(found, children.Died):
            outcome.add(found, f"seed {plan_seed}")
            left -= 1
        else:
            for verdict, where in found["verdicts"][:left]:
                outcome.add(verdict, f"seed {plan_seed}, {where}")
            left -= len(found["verdicts"])
            reopened += found["reopened"]
            if not found["verdicts"]:
                raise RuntimeError(f"no step of seed {plan_seed} failed")
        plan_seed += 1
    outcome.note(f"{reopened} times the database had to be closed and opened again before it could be written")
    return outcome


def _run(known: Expected, folder: Path, seed: int) -> dict[str, Any]:
    small_limits()
    saboteur = Saboteur(str(folder), random.Random(seed))
    calls.intercept(saboteur)
    runner, verdicts, counts = Runner(known.plan, folder), list[tuple[str, str]](), Counter[str]()
    for number, step in enumerate(known.plan.steps):
        saboteur.arm()
        verdict = attempt(runner, step, known, number, saboteur, counts)
        if saboteur.failed:
            where = f"step {number} {step}, {saboteur.kind} in {saboteur.failed[0]}{' and on' * saboteur.lasting}"
            verdicts.append((verdict, where))
        saboteur.armed = False
        if verdict.startswith("violation"):
            break
    runner.close()
    return {"verdicts": verdicts, "reopened": counts["reopened"]}


def attempt(runner: Runner, step: Step, known: Expected, number: int, saboteur: Saboteur, counts: Counter[str]) -> str:
    """Perform a step that may fail, and again until it does not; what came of it."""
    before = known.digests[number - 1] if number else None
    try:
        runner.run(step)
        outcome = "unharmed"
    except fdb.FeatureDBError as error:
        if "; " not in str(error):
            return f"violation: no remedy in {type(error).__name__}: {error}"
        outcome = "failed"
    except Exception as error:
        return f"violation: a bare {type(error).__module__}.{type(error).__name__}: {error}"
    saboteur.armed = False
    if outcome == "failed":
        found = None if runner.db is None else digest(_usable(runner, counts))
        if found is not None and found not in (before, known.digests[number]):
            return f"violation: after the failure the content is {found}, neither {before} nor {known.digests[number]}"
        if found != known.digests[number] or step.kind in ("backup", "compact"):
            try:
                runner.run(step)
            except Exception as error:
                return f"violation: the next write fails too: {type(error).__name__}: {error}"
    # Also a step that succeeded may have left the database so: merging comes after the commit.
    db = _usable(runner, counts)
    if digest(db) != known.digests[number]:
        return f"violation: in the end the content is {digest(db)}, not {known.digests[number]}"
    report = db.verify()
    return outcome if report.ok else f"violation: {report}"


def _usable(runner: Runner, counts: Counter[str]) -> fdb.Database:
    """The database, opened again if its last error asks for that."""
    try:
        runner.open().log()
    except fdb.FileError as error:
        if "close and reopen it" not in str(error):
            raise
        counts["reopened"] += 1
        runner.close()
    return runner.open()
