"""The loops of batched online reads and writes, compiled by numba: arrays in, `out` arrays filled.

Callers validate, allocate and spread the work over threads by slicing. All kernels release the GIL. What they read of
the file is not trusted: `locate` checks every offset before it is used, and says where it could not.
"""

from __future__ import annotations

from featuredb.online.kernels.checking import BAD, READ, checksum
from featuredb.online.kernels.rows import LOSES, OTHER_LAYOUT, WINS, compare, copy_spans, decode, distinct
from featuredb.online.kernels.walking import ABSENT, UNSETTLED, locate

__all__ = [
    "ABSENT",
    "BAD",
    "LOSES",
    "OTHER_LAYOUT",
    "READ",
    "UNSETTLED",
    "WINS",
    "checksum",
    "compare",
    "copy_spans",
    "decode",
    "distinct",
    "locate",
]
