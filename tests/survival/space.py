"""Real shortage, without interception: a limit on the size of files, a small file system, too little address space.

A step fails for want of room; with room again it must succeed, and in between the content is old or new.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

import featuredb as fdb

from . import children
from .digest import digest
from .results import Outcome
from .runs import NAME, Expected, Plan, Runner, emptied, expected, scratch
from .workload import T0, USERS, VECTOR_LENGTH, small_limits

STEPS = 25
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
VECTOR_ROWS = 2000


def run(count: int, seed: int) -> list[Outcome]:
    """`count` plans under each kind of shortage."""
    outcomes = [Outcome("full disk: limit on file size", seed), Outcome("full disk: small file system", seed)]
    memory = Outcome("too little address space", seed)
    for number in range(seed, seed + count):
        known = expected(Plan.of(number, STEPS), record=False)
        with scratch() as folder:
            for outcome, function in zip(outcomes, (under_size_limit, on_small_file_system), strict=True):
                _take(outcome, children.one(lambda: function(known, emptied(folder), number)), number)  # noqa: B023
            _take(memory, children.one(lambda: in_little_memory(emptied(folder), number)), number)  # noqa: B023
    return [*outcomes, memory]


def _take(outcome: Outcome, found: Any, seed: int) -> None:
    if isinstance(found, children.Died):
        outcome.add(found, f"seed {seed}")
    elif found == "not allowed":
        outcome.note("this system lets no small file system be mounted without root: not run")
    else:
        for verdict in found:
            outcome.add(verdict, f"seed {seed}")


def under_size_limit(known: Expected, folder: Path, seed: int) -> list[str]:
    """Before each step the file may grow by less and less: a write beyond fails with EFBIG."""
    rng = random.Random(seed)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def shrink() -> None:
        path = folder / NAME
        size = path.stat().st_size if path.exists() else 0
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (max(size, 1) + rng.randrange(3) * 4096 - rng.randrange(2) * 512, hard)
        )

    return _steps(known, folder, shrink, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)))


def on_small_file_system(known: Expected, folder: Path, seed: int) -> list[str] | str:
    """In a tmpfs that another file fills up before each step, to the last page or nearly."""
    if not _mount(folder, 1 << 20):
        return "not allowed"
    rng = random.Random(seed)
    filler = folder / "filler"

    def fill() -> None:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        filler.write_bytes(bytes(max(0, free - rng.randrange(4) * 4096)))

    return _steps(known, folder, fill, lambda: filler.unlink(missing_ok=True))


def _mount(folder: Path, size_bytes: int) -> bool:
    """Mount a tmpfs on the folder, for this process alone; as another user id 0, which needs no root."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    options = f"size={size_bytes}".encode()
    return not libc.mount(b"none", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(0), options)


def _steps(known: Expected, folder: Path, tighten: Callable[[], None], loosen: Callable[[], None]) -> list[str]:
    """The verdict on each step that failed."""
    small_limits()
    runner, verdicts = Runner(known.plan, folder), list[str]()
    for number, step in enumerate(known.plan.steps):
        before = known.digests[number - 1] if number else None
        tighten()
        try:
            runner.run(step)
        except fdb.FeatureDBError as error:
            if "; " not in str(error):
                return [*verdicts, f"violation: step {number} {step}: no remedy in {type(error).__name__}: {error}"]
            # Reading must work while there is no room.
            found = before if runner.db is None else digest(runner.db)
            loosen()
            if found not in (before, known.digests[number]):
                return [*verdicts, f"violation: step {number} {step}: neither old nor new: {found}"]
            if found == before:
                runner.run(step)
            verdicts.append("failed, then succeeded")
        loosen()
        if digest(runner.open()) != known.digests[number] or not runner.open().verify().ok:
            return [*verdicts, f"violation: step {number} {step}: its content is not what it should be"]
    runner.close()
    return verdicts or ["unharmed"]


def in_little_memory(folder: Path, seed: int) -> list[str]:
    """Ingest more and more with an address space that the file outgrows."""
    small_limits(VECTOR_ROWS)
    rng = random.Random(seed)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + rng.randrange(180, 400) * (1 << 20), hard))
    acknowledged, verdicts = 0, list[str]()
    with fdb.open(folder / NAME, durability="relaxed") as db:
        db.apply(
            [
                fdb.Entity("user", "string"),
                fdb.FeatureTable("wide", ["user"], [fdb.Feature("vector", f"float64[{VECTOR_LENGTH}]")]),
            ]
        )
        for number in range(1, 60):
            try:
                db.ingest("wide", _wide(number), to="offline")
                acknowledged = number
            except Exception as error:
                name = type(error).__name__
                if not isinstance(error, fdb.FeatureDBError):
                    return [f"violation: ingest {number}: a bare {name}: {error}"]
                if "; " not in str(error):
                    return [f"violation: ingest {number}: no remedy in {name}: {error}"]
                verdicts.append(f"{name}, then succeeded")
                break
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if len(db.log()) != acknowledged + 1:
            return [f"violation: {len(db.log()) - 1} commits of {acknowledged} acknowledged"]
        db.ingest("wide", _wide(100), to="offline")
        report = db.verify()
        if not report.ok:
            return [f"violation: {report}"]
    return verdicts or ["unharmed"]


def _wide(number: int) -> dict[str, Any]:
    users = [f"{USERS[0]} {row}" for row in range(VECTOR_ROWS)]
    vectors = np.full((VECTOR_ROWS, VECTOR_LENGTH), float(number))
    return {"user": users, "event_timestamp": [T0 + timedelta(minutes=number)] * VECTOR_ROWS, "vector": vectors}
