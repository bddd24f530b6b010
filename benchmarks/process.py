"""Processes of their own for every system, and what memory they take."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns
from types import MappingProxyType, TracebackType
from typing import IO, Any

PROJECT = Path(__file__).resolve().parent.parent
# Between two looks at the memory of a process.
_SAMPLE_SECONDS = 0.0005


class BenchmarkError(Exception):
    """The benchmark cannot go on; says why."""


def _start(action: str, folder: Path, arguments: dict[str, Any], errors: IO[bytes]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.child", action, str(folder), json.dumps(arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=PROJECT, stdin=pipe, stdout=pipe, stderr=errors, text=True, bufsize=1)


def _failure(what: str, errors: IO[bytes]) -> BenchmarkError:
    errors.seek(0)
    return BenchmarkError(f"{what} failed:\n{errors.read().decode(errors='replace').strip()}")


def in_process(action: str, folder: Path, **arguments: Any) -> None:
    """Have `benchmarks.child` do an action in a process of its own."""
    with tempfile.TemporaryFile() as errors:
        with _start(action, folder, arguments, errors) as process:
            process.communicate()
        if process.returncode != 0:
            raise _failure(f"{action} {arguments}", errors)


class Child:
    """A system loaded in a process of its own, which stays until closed.

    Attributes
    ----------
    pid : int
        Of the process.
    """

    def __init__(self, folder: Path, what: str, name: str) -> None:
        self._label = f"{what}: {name}"
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        self._process = _start("measure", folder, {"what": what, "name": name}, self._errors)
        self.pid: int = self._answer()

    def ask(self, question: str) -> Any:
        """What the method of `benchmarks.child.Measured` returns."""
        assert self._process.stdin is not None
        # If it has died, there is no answer either, but its errors.
        with suppress(BrokenPipeError):
            self._process.stdin.write(question + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            failure = _failure(self._label, self._errors)
            self.close()
            raise failure
        return json.loads(line)

    def close(self) -> None:
        """End the process; closing twice is allowed."""
        if not self._errors.closed:
            with self._errors:
                self._process.communicate()


def timed_process(arguments: list[str], variables: Mapping[str, str] = MappingProxyType({})) -> tuple[float, str]:
    """Seconds from the start of a Python process to the first line it prints, and that line.

    Modules are kept compiled, as those of an installed package are, even if this process was told otherwise.
    """
    environment = {**os.environ, **variables}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, *arguments]
    with tempfile.TemporaryFile() as errors:
        start = perf_counter_ns()
        with subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = (perf_counter_ns() - start) / 1e9
            process.stdout.read()
        if process.returncode != 0:
            raise _failure(" ".join(arguments), errors)
    return seconds, line.rstrip("\n")


# --- memory -------------------------------------------------------------------------------------


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process without pages of files (Linux); 0 elsewhere."""
    return _status_bytes(pid, "RssAnon:")


def _status_bytes(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return 0


class AnonymousPeak:
    """Context in which the anonymous memory of a process is looked at again and again, by a thread of this one.

    Attributes
    ----------
    peak_bytes : int
        The most that was seen.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes(self._pid))
            if self._end.wait(_SAMPLE_SECONDS):
                return

    def __enter__(self) -> AnonymousPeak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()


def forget_peak() -> None:
    """Let the peak of resident memory count from now (Linux); elsewhere it counts from the start of the process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Peak of resident memory of this process, pages of mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status_bytes(os.getpid(), "VmHWM:") or (peak if sys.platform == "darwin" else peak * 1024)
