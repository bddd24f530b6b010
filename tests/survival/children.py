"""Runs checks in child processes, so that a signal, a hang or an exit is an outcome and not the end.

Children are forked from this process, which therefore must have no threads and no open database.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import Any, TypeVar

T = TypeVar("T")

BATCH = 40
# Long, for these children may be the last that a busy machine runs.
HANG_SECONDS = 300.0


class Died(Exception):
    """How a child ended before it returned a result."""


def each(function: Callable[[T], Any], items: Iterable[T], batch: int = BATCH) -> Iterator[tuple[T, Any]]:
    """Call `function` on each item, many to a child; its result (of JSON), or `Died` if the child ended in it."""
    source = iter(items)
    while held := list(islice(source, batch)):
        at = 0
        while at < len(held):
            for outcome in _in_child(function, held[at:]):
                yield held[at], outcome
                at += 1


def beside(function: Callable[[T], Any], items: Sequence[T], batch: int = BATCH) -> Iterator[tuple[T, Any]]:
    """As `each`, in two children side by side: one goes on while what the other found is waited for."""
    halves = [each(function, items[half::2], batch) for half in (0, 1)]
    return (pair for both in zip_longest(*halves) for pair in both if pair is not None)


def one(function: Callable[[], Any]) -> Any:
    """Call `function` in a child; its result, or `Died`."""
    return next(_in_child(lambda _: function(), [None]))


def start(function: Callable[[], Any]) -> int:
    """Begin `function` in a child of its own; the process id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def _in_child(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Results in order; the last one may be `Died`."""
    reading, writing = os.pipe()

    def work() -> None:
        os.close(reading)
        for item in items:
            os.write(writing, json.dumps(function(item)).encode() + b"\n")

    child = start(work)
    os.close(writing)
    try:
        for count, line in enumerate(_lines(reading), start=1):
            yield json.loads(line)
            if count == len(items):
                return
        ending, child = _ending(child), 0
        yield Died(ending)
    except TimeoutError:
        yield Died(f"hung for {HANG_SECONDS:g} seconds")
    finally:
        os.close(reading)
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _lines(fd: int) -> Iterator[bytes]:
    held, deadline = b"", time.monotonic() + HANG_SECONDS
    while True:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        read = os.read(fd, 1 << 16)
        if not read:
            return
        held += read
        *whole, held = held.split(b"\n")
        yield from whole
        deadline = time.monotonic() + HANG_SECONDS


def _ending(child: int) -> str:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
