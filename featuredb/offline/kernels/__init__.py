"""The loops, compiled by numba: arrays in, `out` arrays filled. No allocation, no checks, no exceptions.

Callers validate, allocate and spread the work over threads by slicing. All kernels release the GIL.
The first call in a fresh installation compiles; the machine code is cached on disk. Kernels are compiled, not
type-checked: annotations would only repeat what the callers' arrays are.
"""

from __future__ import annotations

from featuredb.offline.kernels.gathering import gather, gather_bytes
from featuredb.offline.kernels.hashing import (
    factorize_words,
    find_bytes,
    find_words,
    insert_bytes,
    insert_words,
)
from featuredb.offline.kernels.searching import asof, find_before, find_rows
from featuredb.offline.kernels.sorting import ascending, count_codes, counting_sort, scatter_rows, sort_runs

__all__ = [
    "ascending",
    "asof",
    "count_codes",
    "counting_sort",
    "factorize_words",
    "find_before",
    "find_bytes",
    "find_rows",
    "find_words",
    "gather",
    "gather_bytes",
    "insert_bytes",
    "insert_words",
    "scatter_rows",
    "sort_runs",
]
