"""Measures one system in this process: ``python -m benchmarks.child`` with the action, folder and arguments as JSON."""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from benchmarks.check import digests
from benchmarks.peers import Case, find_system


def measure(case: Case, repeat: int) -> dict[str, Any]:
    """Time a case.

    Parameters
    ----------
    case : Case
        Loaded and ready.
    repeat : int
        Runs that count; one more goes before them.

    Returns
    -------
    dict
        ``first_seconds`` of the run that does not count, ``seconds`` of each other (with `keys`: the median
        of a call in it), ``peak_bytes`` resident while running, ``file_bytes`` and the ``digests`` of the last answer.
    """
    timed = _time_calls if case.keys is not None else _time_run
    gc.collect()
    _forget_peak()
    seconds = []
    result: Any = None
    for _ in range(repeat + 1):
        # Two results at a time would count in the peak.
        result = None
        gc.collect()
        case.before()
        taken, result = timed(case)
        seconds.append(taken)
    peak = _peak_bytes()
    return {
        "first_seconds": seconds[0],
        "seconds": seconds[1:],
        "peak_bytes": peak,
        # Blocks in use: LMDB's file has holes while it is open.
        "file_bytes": sum(os.stat(path).st_blocks * 512 for path in case.files) if case.files else None,
        "rows": case.rows,
        "digests": digests(case.answer(result)),
    }


def _time_run(case: Case) -> tuple[float, Any]:
    start = perf_counter_ns()
    result = case.run()
    return (perf_counter_ns() - start) / 1e9, result


def _time_calls(case: Case) -> tuple[float, Any]:
    assert case.keys is not None
    run, clock = case.run, perf_counter_ns
    results, times = [], []
    for key in case.keys:
        start = clock()
        result = run(key)
        times.append(clock() - start)
        results.append(result)
    return statistics.median(times) / 1e9, results


def _forget_peak() -> None:
    """Let the peak of resident memory count from now (Linux); elsewhere it counts from the start of the process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_bytes() -> int:
    """Peak of resident memory, pages of mapped files included."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _generate(folder: Path, **sizes: int) -> None:
    from benchmarks.data import generate
    from benchmarks.workload import Workload

    generate(folder, Workload(**sizes))


def _prepare(folder: Path, what: str, name: str) -> None:
    prepare = find_system(what, name).prepare
    assert prepare is not None
    prepare(folder)


def _measure(folder: Path, what: str, name: str, repeat: int) -> dict[str, Any]:
    case = find_system(what, name).load(folder)
    try:
        return measure(case, repeat)
    finally:
        case.close()


_ACTIONS: dict[str, Callable[..., Any]] = {"generate": _generate, "prepare": _prepare, "measure": _measure}


def act(action: str, folder: Path, **arguments: Any) -> Any:
    """What `action` (generate, prepare or measure) returns: None, or what is measured."""
    return _ACTIONS[action](folder, **arguments)


def main(action: str, folder: str, arguments: str) -> None:
    """Do `action` and write what it returns to ``result.json`` in the folder."""
    result = act(action, Path(folder), **json.loads(arguments))
    (Path(folder) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
