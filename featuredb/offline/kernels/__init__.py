"""The loops, compiled by numba: arrays in, `out` arrays filled. No allocation, no checks, no exceptions.

Callers validate, allocate and spread the work over threads by slicing. All kernels release the GIL.
The first call in a fresh installation compiles; the machine code is cached on disk. Kernels are compiled, not
type-checked: annotations would only repeat what the callers' arrays are.
"""

from __future__ import annotations

from featuredb.offline.kernels.encoding import escaped_lengths, put_escaped, put_words
from featuredb.offline.kernels.gathering import gather, gather_bytes, gather_decimals, mark_chunks, split_by_segment
from featuredb.offline.kernels.hashing import (
    factorize_words,
    find_bytes,
    find_words,
    insert_bytes,
    insert_words,
)
from featuredb.offline.kernels.searching import asof, block_minima, find_before, find_rows, find_slices
from featuredb.offline.kernels.sorting import (
    ascending,
    count_codes,
    counts_to_starts,
    place_by_code,
    scatter_rows,
    sort_runs,
)

__all__ = [
    "ascending",
    "asof",
    "block_minima",
    "count_codes",
    "counts_to_starts",
    "escaped_lengths",
    "factorize_words",
    "find_before",
    "find_bytes",
    "find_rows",
    "find_slices",
    "find_words",
    "gather",
    "gather_bytes",
    "gather_decimals",
    "insert_bytes",
    "insert_words",
    "mark_chunks",
    "place_by_code",
    "put_escaped",
    "put_words",
    "scatter_rows",
    "sort_runs",
    "split_by_segment",
]
