"""Runs systems, each in a process of its own, and collects what they measured."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import featuredb
from benchmarks.check import compare
from benchmarks.peers import System, all_systems
from benchmarks.report import duration
from benchmarks.workload import Workload, read_expected

_PROJECT = Path(__file__).resolve().parent.parent
_PACKAGES = ("numpy", "pandas", "polars", "duckdb", "pyarrow", "lmdb", "numba")


class BenchmarkError(Exception):
    """The benchmark cannot go on; says why."""


def in_process(action: str, folder: Path, **arguments: Any) -> Any:
    """What `benchmarks.child` returns for an action, done in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.child", action, str(folder), json.dumps(arguments)]
    done = subprocess.run(command, cwd=_PROJECT, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"{action} {arguments} failed:\n{done.stderr.strip()}")
    return json.loads((folder / "result.json").read_text())


def run(task: str, workload: Workload, repeat: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure every installed system of a task.

    Parameters
    ----------
    task : str
        join, ingest, online or all.
    workload : Workload
        Sizes of the data.
    repeat : int
        Runs of each system that count.
    say : callable
        Told of each step as it is done.

    Returns
    -------
    dict
        The results, as kept in JSON.

    Raises
    ------
    WrongAnswerError
        At the first system whose answer is not the expected one.
    BenchmarkError
        If a system fails.
    """
    systems = [system for system in all_systems() if task in ("all", system.task)]
    missing = [system for system in systems if not system.installed]
    for system in missing:
        say(f'{system.label}: left out, {system.module} is not installed (pip install "featuredb[bench]")')
    with tempfile.TemporaryDirectory(prefix="featuredb-bench-") as name:
        folder = Path(name)
        in_process("generate", folder, **asdict(workload))
        say(f"generated {workload.rows:,} rows of {workload.entities:,} entities")
        results = _measure_all([s for s in systems if s.installed], folder, repeat, say)
    return {
        "format": 1,
        "task": task,
        "machine": machine(),
        "versions": versions(),
        "workload": asdict(workload),
        "repeat": repeat,
        "results": results,
        "left_out": [{"what": system.what, "system": system.name} for system in missing],
    }


def _measure_all(systems: list[System], folder: Path, repeat: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    expected = read_expected(folder)
    prepared = set()
    results = []
    for system in systems:
        if system.prepare is not None and system.prepare not in prepared:
            in_process("prepare", folder, what=system.what, name=system.name)
            prepared.add(system.prepare)
        measured = in_process("measure", folder, what=system.what, name=system.name, repeat=repeat)
        compare(expected[system.expected or system.what], measured.pop("digests"), system.label)
        results.append({"task": system.task, "what": system.what, "system": system.name, **measured})
        say(f"{system.label}: {duration(statistics.median(measured['seconds']))}")
    return results


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of every package that takes part."""
    found = {"featuredb": featuredb.__version__, "Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
