"""Row ranges over a pool of threads. Kernels release the GIL, so plain threads are enough.

numba's ``parallel=True`` is not used: its fallback threading layer crashes when two threads call it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

ROWS_PER_THREAD_MIN = 50_000
_creating = threading.Lock()


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool_of(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=cores(), thread_name_prefix="featuredb")


def over_rows(
    rows: int,
    work: Callable[[int, int], None],
    threads: int | None = None,
    rows_per_thread_min: int = ROWS_PER_THREAD_MIN,
) -> None:
    """Call ``work(start, stop)`` for ranges that cover 0 to `rows`, in parallel when it pays.

    At most `threads` at once (None: all cores), each with `rows_per_thread_min` rows or more.
    """
    parts = min(cores() if threads is None else threads, rows // rows_per_thread_min)
    if parts <= 1:
        work(0, rows)
        return
    bounds = [rows * part // parts for part in range(parts + 1)]
    with _creating:
        pool = _pool_of(os.getpid())
    futures = [pool.submit(work, start, stop) for start, stop in pairwise(bounds[1:])]
    work(bounds[0], bounds[1])
    for future in futures:
        future.result()
