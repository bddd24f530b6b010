"""Runs the tasks that are asked for, and says on what machine."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import featuredb
from benchmarks.lab import Lab, Result
from benchmarks.peers import System, all_systems
from benchmarks.scale import measure_scale
from benchmarks.workload import Workload

TASKS = ("join", "ingest", "online", "cold", "scale")
_PACKAGES = ("numpy", "pandas", "polars", "duckdb", "pyarrow", "lmdb", "numba", "redis", "hiredis")


def run(
    tasks: tuple[str, ...], workload: Workload, repeat: int, large_rows: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every installed system of some tasks.

    Parameters
    ----------
    tasks : tuple of str
        Of `TASKS`.
    workload : Workload
        Sizes of the data.
    repeat : int
        Runs of each system that count.
    large_rows : int, optional
        Rows of one more history, which featuredb alone joins (task scale).
    say : callable
        Told of each step as it is done.

    Returns
    -------
    dict
        For each task its results, and how, where and with what they were measured.

    Raises
    ------
    WrongAnswerError
        At the first system whose answer is not the expected one.
    BenchmarkError
        If a system fails.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="featuredb-bench-") as name:
        lab = Lab(Path(name), workload, repeat, say)
        for task in tasks:
            if task == "scale":
                results, missing = measure_scale(lab, large_rows)
            else:
                results, missing = _measure_task(lab, task)
            found[task] = {
                "command": _command(task, workload, repeat, large_rows),
                "machine": machine(),
                "versions": versions(),
                "workload": {
                    "rows": workload.rows,
                    "entities": workload.entities,
                    "entity_rows": workload.entity_rows,
                    "online_keys": workload.online_keys,
                    "seed": workload.seed,
                },
                "repeat": repeat,
                "results": results,
                "left_out": missing,
            }
    return found


def _measure_task(lab: Lab, task: str) -> tuple[list[Result], list[dict[str, str]]]:
    """Results, and the systems left out, comparison by comparison."""
    results, missing = [], []
    comparisons: dict[str, list[System]] = {}
    for system in all_systems():
        if system.task == task:
            lacking = system.lacks()
            if lacking:
                missing.append({"what": system.what, "system": system.name, "why": lacking})
                lab.say(f"{system.label}: left out, {lacking}")
            else:
                comparisons.setdefault(system.what, []).append(system)
    for systems in comparisons.values():
        results += lab.measure([(system, lab.data(system.data)) for system in systems])
    return results, missing


def _command(task: str, workload: Workload, repeat: int, large_rows: int | None) -> str:
    large = f" --large-rows {large_rows}" if task == "scale" and large_rows is not None else ""
    return (
        f"python -m benchmarks {task} --rows {workload.rows} --entities {workload.entities} "
        f"--entity-rows {workload.entity_rows} --repeat {repeat}{large}"
    )


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
