"""Row ranges over a pool of threads. Kernels release the GIL, so plain threads are enough.

numba's ``parallel=True`` is not used: its fallback threading layer crashes when two threads call it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache, partial
from itertools import pairwise
from typing import TypeVar

from featuredb.errors import InputError

T = TypeVar("T")

ROWS_PER_THREAD_MIN = 50_000
# As long as one takes to write their results to disk, the threads that make them need not wait.
TASKS_AHEAD = 32
_creating = threading.Lock()


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: object) -> int | None:
    """`threads` as given by a caller: an int of at least 1, or None."""
    if threads is None or (isinstance(threads, int) and not isinstance(threads, bool) and threads >= 1):
        return threads
    raise InputError(f"threads must be an int of at least 1, or None for one for each core; not {threads!r}")


@lru_cache(maxsize=1)
def _pool_of(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=cores(), thread_name_prefix="featuredb")


def ranges(rows: int, threads: int | None = None, rows_per_thread_min: int | None = None) -> list[tuple[int, int]]:
    """0 to `rows` cut for as many threads as pay: at most `threads`, or one for each core if that is None."""
    parts = max(1, min(threads or cores(), rows // (rows_per_thread_min or ROWS_PER_THREAD_MIN)))
    return list(pairwise(rows * part // parts for part in range(parts + 1)))


def over_rows(
    rows: int, work: Callable[[int, int], None], threads: int | None = None, rows_per_thread_min: int | None = None
) -> None:
    """Call ``work(start, stop)`` for ranges that cover 0 to `rows`, in parallel when it pays (see `ranges`)."""
    _together([partial(work, start, stop) for start, stop in ranges(rows, threads, rows_per_thread_min)])


def over_items(items: Sequence[T], work: Callable[[T], None], threads: int | None = None) -> None:
    """Call ``work(item)`` for each item, in parallel. For items that each take long enough."""
    parts = max(1, min(threads or cores(), len(items)))
    waiting = iter(items)  # next() is atomic, so each thread takes the next item that nobody has

    def some() -> None:
        for item in waiting:
            work(item)

    _together([some] * parts)


def in_order(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of the tasks, in their order. Other threads are up to `TASKS_AHEAD` ahead of the caller."""
    pool = _pool()
    ahead: deque[Future[T]] = deque()
    try:
        for task in tasks:
            ahead.append(pool.submit(task))
            if len(ahead) > TASKS_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()
        wait(ahead)


def _pool() -> ThreadPoolExecutor:
    with _creating:
        return _pool_of(os.getpid())


def _together(tasks: Sequence[Callable[[], None]]) -> None:
    """Run all, the first in this thread. Waits for every one, and raises what one raised."""
    if len(tasks) == 1:
        tasks[0]()
        return
    futures = [_pool().submit(task) for task in tasks[1:]]
    try:
        tasks[0]()
    finally:
        wait(futures)
    for future in futures:
        future.result()
