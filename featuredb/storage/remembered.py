"""What a process has learned of a file: shared by all who have it open, and kept a while after it was closed.

So opening a file again is cheap: its chunks need not be checked again, nor its entity keys hashed. That holds only as
long as it is the very same file: device, inode, size and time of the last write. As file systems note times in steps,
a write just before the file was closed might share its time with one after that: such a file is not remembered.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from featuredb.limits import FILES_REMEMBERED_MAX, REMEMBERED_BYTES_MAX
from featuredb.storage.segment import SegmentCache

_TIME_STEP_MAX_NS = 2_000_000_000


@dataclass(eq=False)
class Knowledge:
    """Descriptors, checked chunks, and dictionaries of entity keys by the number of their key space."""

    file: tuple[int, int] | None = None
    cache: SegmentCache = field(default_factory=SegmentCache)
    dictionaries: dict[int, Any] = field(default_factory=dict)
    users: int = 1


_lock = threading.Lock()
_open: dict[tuple[int, int], Knowledge] = {}
# Of closed files, by what they were then; the last one closed comes last.
_closed: dict[tuple[int, int, int, int], Knowledge] = {}


def learn(path: str) -> Knowledge:
    """What is known of the file that was just opened; `leave` must follow."""
    at = os.stat(path)
    file = (at.st_dev, at.st_ino)
    with _lock:
        known = _open.get(file)
        if known is not None:
            known.users += 1
            return known
        known = _closed.pop((*file, at.st_size, at.st_mtime_ns), None) or Knowledge()
        known.file, known.users = file, 1
        _open[file] = known
        return known


def leave(path: str, known: Knowledge) -> None:
    """Whoever called `learn` closes the file."""
    with _lock:
        known.users -= 1
        if known.users or known.file is None:
            return
        _open.pop(known.file, None)
        try:
            at = os.stat(path)
        except OSError:
            return
        settled = time.time_ns() - at.st_mtime_ns > _TIME_STEP_MAX_NS
        if not settled or known.file != (at.st_dev, at.st_ino):
            return
        for space in [space for space, one in known.dictionaries.items() if one.nbytes > REMEMBERED_BYTES_MAX]:
            del known.dictionaries[space]
        _closed[*known.file, at.st_size, at.st_mtime_ns] = known
        while len(_closed) > FILES_REMEMBERED_MAX:
            del _closed[next(iter(_closed))]
