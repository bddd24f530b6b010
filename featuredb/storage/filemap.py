"""The pages of the data file as one array, for walks over many keys that need no call of the engine.

The file is mapped once more, read-only and just as long as it is. The engine's own map is longer than the file and
its address is not told; of ours every index can be checked against its length, so nothing the file says leads outside.
While a transaction is open the engine reuses no page of its tree, so what is found from its root is the snapshot.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featuredb.storage.datafile import DATA_VERSION, MAGIC, META_PAGE, PAGE_BYTES_MAX, PAGE_BYTES_MIN

_PLATFORMS = ("linux", "darwin")  # a map shows at once what was written to the file
_ENGINE = (0, 9)
# Page number, flags; then magic, data version; map address and size, the free list's record; then the main tree's
# flags, depth, branch, leaf and overflow pages, entries and root; last page and transaction.
_META = struct.Struct("<Q2xH4xII16x48x4xHHQQQQQQQ")
_STATISTICS = ("depth", "branch_pages", "leaf_pages", "overflow_pages", "entries")


@dataclass(frozen=True, slots=True)
class Tree:
    """The main tree of one transaction: `pages` are the bytes of the file, of which the first `page_count` count."""

    pages: NDArray[np.uint8]
    page_bytes: int
    page_count: int
    root: int
    depth: int


class FileMap:
    """A read-only map of the file `key` (device, inode) at `path`, made when first asked for and when the file grew."""

    def __init__(self, path: str, key: tuple[int, int], engine_version: tuple[int, int, int]) -> None:
        self._path = path
        self._key = key
        self._known = sys.platform in _PLATFORMS and engine_version[:2] == _ENGINE
        self._pages: NDArray[np.uint8] | None = None

    def tree(self, number: int, stat: Mapping[str, int]) -> Tree | None:
        """The tree that LMDB's commit `number` left, of which `stat` tells; None if it cannot be known for certain."""
        if not self._known:
            return None
        page_bytes = stat["psize"]
        if not PAGE_BYTES_MIN <= page_bytes <= PAGE_BYTES_MAX or page_bytes & (page_bytes - 1):
            return None
        pages = self._pages
        if pages is None or len(pages) < 2 * page_bytes:
            pages = self._map()
        if pages is None or len(pages) < 2 * page_bytes:
            return None
        # Commit n writes meta page n % 2 over commit n - 2. As long as the other one, read afterwards, is not of a
        # later commit, no writer can have begun to overwrite ours.
        slot = number & 1
        meta, other = (_META.unpack(pages[at * page_bytes :][: _META.size].tobytes()) for at in (slot, 1 - slot))
        page, flags, magic, version, tree_flags, *statistics, root, last_page, transaction = meta
        if (page, flags, magic, version, tree_flags) != (slot, META_PAGE, MAGIC, DATA_VERSION, 0):
            return None
        if transaction != number or other[-1] >= number or statistics != [stat[name] for name in _STATISTICS]:
            return None
        if (last_page + 1) * page_bytes > len(pages):
            pages = self._map()
            if pages is None or (last_page + 1) * page_bytes > len(pages):
                return None
        return Tree(pages, page_bytes, last_page + 1, root, stat["depth"]) if root <= last_page else None

    def _map(self) -> NDArray[np.uint8] | None:
        """A new map of the whole file, the old one is let go of; None if that file is not there any more."""
        pages = None
        try:
            # A descriptor of its own: one that shares the write lock's would keep that lock in a forked child.
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                if (found.st_dev, found.st_ino) == self._key:
                    pages = np.frombuffer(mmap.mmap(fd, 0, prot=mmap.PROT_READ), dtype=np.uint8)
            finally:
                os.close(fd)
        except (OSError, ValueError):
            pages = None
        self._pages = pages
        return pages
