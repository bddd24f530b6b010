"""Does its work in this process: ``python -m benchmarks.child`` with what to do, a folder and arguments as JSON.

``generate`` and ``prepare`` end when done. ``measure`` loads a system, and then answers, a line of JSON for a line,
what it is asked by `benchmarks.process.Child`: the names of the methods of `Measured`.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from benchmarks.check import Digests, digests
from benchmarks.peers import find_system
from benchmarks.process import anonymous_bytes, forget_peak, peak_bytes


class Measured:
    """A loaded system; the methods are what can be asked of it."""

    def __init__(self, folder: Path, what: str, name: str) -> None:
        self.pid = os.getpid()
        self._case = find_system(what, name).load(folder)
        self._result: Any = None

    def ask(self, question: str) -> Any:
        """What the method of that name returns."""
        return getattr(self, question)()

    def run(self) -> float:
        """Seconds of a run; with keys the median of its calls. The result is held until the next question."""
        self._result = None
        self._case.before()
        if self._case.keys is not None:
            taken, self._result = self._calls(self._case.keys)
        elif self._case.own_clock:
            taken, self._result = self._case.run()
        else:
            start = perf_counter_ns()
            self._result = self._case.run()
            taken = (perf_counter_ns() - start) / 1e9
        self._case.after()
        return taken

    def _calls(self, keys: list[Any]) -> tuple[float, list[Any]]:
        run, clock = self._case.run, perf_counter_ns
        results, times = [], []
        for key in keys:
            start = clock()
            result = run(key)
            times.append(clock() - start)
            results.append(result)
        return statistics.median(times) / 1e9, results

    def digests(self) -> Digests:
        """Digests of the answer of the last run."""
        return digests(self._case.answer(self._result))

    def rest(self) -> int:
        """Let the result of the last run go; returns the anonymous memory left, in bytes."""
        # Two results at a time would count in the peak.
        self._result = None
        gc.collect()
        forget_peak()
        return anonymous_bytes(self.pid)

    def sizes(self) -> dict[str, Any]:
        """Of the last run: peak of resident memory, bytes of the output and of the files; and other facts."""
        case = self._case
        return {
            "peak_bytes": peak_bytes(),
            "output_bytes": None if case.output_bytes is None else case.output_bytes(self._result),
            # Blocks in use: LMDB's file has holes while it is open.
            "file_bytes": sum(os.stat(path).st_blocks * 512 for path in case.files) if case.files else None,
            "rows": case.rows,
            **case.facts(),
        }

    def close(self) -> None:
        """Close files and stop servers."""
        self._result = None
        self._case.close()


def _serve(folder: Path, what: str, name: str) -> None:
    # Nothing that a system prints may get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    measured = Measured(folder, what, name)
    try:
        print(json.dumps(measured.pid), file=answers)
        for question in sys.stdin:
            print(json.dumps(measured.ask(question.strip())), file=answers)
    finally:
        measured.close()


def act(action: str, folder: Path, **arguments: Any) -> None:
    """Do `action`: generate data, or prepare a system's files."""
    if action == "generate":
        from benchmarks.data import generate
        from benchmarks.workload import Workload

        generate(folder, Workload(**arguments))
    elif action == "large":
        from benchmarks.large import generate_large
        from benchmarks.workload import Workload

        generate_large(folder, Workload(**arguments))
    elif action == "take_first":
        from benchmarks.data import take_first

        take_first(folder, Path(arguments["into"]), arguments["entity_rows"])
    elif action == "prepare":
        prepare = find_system(**arguments).prepare
        assert prepare is not None
        prepare(folder)
    else:
        _serve(folder, **arguments)


if __name__ == "__main__":
    act(sys.argv[1], Path(sys.argv[2]), **json.loads(sys.argv[3]))
