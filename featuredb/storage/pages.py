"""Proves the structure of a file's pages without the engine, which trusts them: a wrong one may end the process.

Both trees of a transaction, its entries and its free pages, are walked with plain ``pread``: every page is in the
file, says its own number and kind, and is reached once; its nodes are inside it; keys ascend, also from page to
page; values of several pages are whole; what the meta page counts is what is there; and each page is in use or
free, never both. What values say is not looked at. The layout is LMDB 0.9's, as in `storage.datafile`.

``lmdb.verify`` does the same, but does not see that the end of a value of several pages is beyond the end of the file.
Each page of a tree is read once, and of a value that fills pages of its own the first one; memory is two bytes for
each page of the file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featuredb.errors import CorruptionError
from featuredb.storage.datafile import META_BYTES

META_PAGES = 2
_TREES_AT = 40
BRANCH, LEAF, OVERFLOW = 0x01, 0x02, 0x04
_BIG_VALUE = 0x01
NO_PAGE = (1 << 64) - 1
_KEY_BYTES_MAX = 511
_FAULTS_MAX = 20

_TREE = struct.Struct("<IHHQQQQQ")
PAGE = struct.Struct("<QHHHH")
NODE = struct.Struct("<HHHH")
NUMBER = struct.Struct("<Q")


Key = bytes | int


@dataclass
class Tree:
    """What the meta page says of a tree, and what a walk counts."""

    name: str
    depth: int
    root: int
    recorded: dict[str, int]
    counted: dict[str, int]
    last: Key | None = None


@dataclass(frozen=True)
class MetaPage:
    """Where the trees of one transaction start."""

    transaction: int
    last_page: int
    page_bytes: int
    record: bytes

    @property
    def live_pages(self) -> int:
        """Pages in use, but for those that list free ones."""
        _, _, _, branch, leaf, overflow, _, _ = _TREE.unpack_from(self.record, _TREES_AT + _TREE.size)
        return int(META_PAGES + branch + leaf + overflow)


def meta_pages(fd: int) -> list[MetaPage]:
    """Both, the newest first, of a file whose meta pages `datafile.check` has found in order."""
    found = []
    page_bytes = _TREE.unpack_from(os.pread(fd, META_BYTES, 0), _TREES_AT)[0]
    for page in range(META_PAGES):
        record = os.pread(fd, META_BYTES, page * page_bytes)
        last_page, transaction = struct.unpack_from("<QQ", record, META_BYTES - 16)
        found.append(MetaPage(transaction, last_page, page_bytes, record))
    return sorted(found, key=lambda meta: -meta.transaction)


def file_faults(path: str) -> list[str]:
    """What is wrong with the pages of the newest transaction of a file that no one writes; the first 20."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return page_faults(fd, meta_pages(fd)[0])
    finally:
        os.close(fd)


def page_faults(fd: int, meta: MetaPage) -> list[str]:
    """What is wrong with the pages of a transaction, which a reader must hold if others write; the first 20."""
    file_bytes = os.fstat(fd).st_size
    # Pages that were never written are free, and each stands in a list of the file.
    if meta.last_page >= file_bytes // meta.page_bytes + file_bytes // NUMBER.size:
        return [f"the file should have {meta.last_page + 1} pages, and has {file_bytes} bytes"]
    return PageWalk(fd, meta, file_bytes).faults()


def freed_pages(fd: int, meta: MetaPage) -> dict[int, int]:
    """How many pages each transaction freed that are not in use again. A reader must hold this one or one before it.

    Raises
    ------
    CorruptionError
        The lists of free pages are damaged.
    """
    return PageWalk(fd, meta, os.fstat(fd).st_size).freed()


class Fault(Exception):
    """What is wrong with one page or node; what it leads to is not visited."""


class PageWalk:
    def __init__(self, fd: int, meta: MetaPage, file_bytes: int) -> None:
        self._fd, self._meta, self._size = fd, meta, meta.page_bytes
        self._pages = min(file_bytes // self._size, meta.last_page + 1)
        self._used = np.zeros(meta.last_page + 1, dtype=np.bool_)
        self._free = np.zeros(meta.last_page + 1, dtype=np.bool_)
        self._found: list[str] = []
        self._freed: dict[int, int] = {}

    def freed(self) -> dict[int, int]:
        tree = self._tree(0, "free pages")
        if tree.root != NO_PAGE:
            self._visit(tree, tree.root, 1, None, None)
        if self._found:
            raise CorruptionError(f"the list of free pages is damaged: {self._found[0]}; restore a backup")
        return self._freed

    def faults(self) -> list[str]:
        free, main = (self._tree(place, name) for place, name in enumerate(("free pages", "entries")))
        for tree in (free, main):
            if tree.root != NO_PAGE:
                self._visit(tree, tree.root, 1, None, None)
            if not self._found and tree.counted != tree.recorded:
                self._found.append(f"the tree of {tree.name} has {tree.counted}, and should have {tree.recorded}")
        if not self._found:
            self._check_cover()
        return self._found[:_FAULTS_MAX]

    def _tree(self, place: int, name: str) -> Tree:
        fields = _TREE.unpack_from(self._meta.record, _TREES_AT + place * _TREE.size)
        _, _, depth, branch, leaf, overflow, entries, root = fields
        recorded = {"branch pages": branch, "leaf pages": leaf, "overflow pages": overflow, "entries": entries}
        return Tree(name, depth, root, recorded, dict.fromkeys(recorded, 0))

    def _visit(self, tree: Tree, number: int, depth: int, low: Key | None, high: Key | None) -> None:
        """Check a page and all below it, whose keys are from `low` on and below `high`."""
        if len(self._found) >= _FAULTS_MAX:
            return
        try:
            page, flags = self._read(number, f"tree of {tree.name}")
            if depth > tree.depth or flags != (LEAF if depth == tree.depth else BRANCH):
                raise Fault(f"page {number}, at level {depth} of {tree.depth}, is of kind {flags:#x}")
            (begin,) = struct.unpack_from("<H", page, 14)
            # The engine puts the next node below it.
            if begin != min(self._places(page)):
                raise Fault(f"page {number} says that its nodes begin at {begin}, and they do not")
            if flags == LEAF:
                tree.counted["leaf pages"] += 1
                for at in self._places(page):
                    key, value = self._entry(tree, page, number, at)
                    self._check_order(tree, key, number, low, high)
                    if tree.name == "free pages":
                        self._list_free(key, value)
                return
            tree.counted["branch pages"] += 1
            children = list(self._children(tree, page, number, low))
        except Fault as fault:
            self._found.append(str(fault))
            return
        for (start, child), (end, _) in zip(children, [*children[1:], (high, 0)], strict=True):
            self._visit(tree, child, depth + 1, start, end)

    # --- pages and nodes ----------------------------------------------------------------------

    def _read(self, number: int, where: str, pages: int = 1) -> tuple[bytes, int]:
        """The first page of `pages`, which are then in use, and its flags."""
        if not META_PAGES <= number <= self._meta.last_page:
            raise Fault(f"{where}: page {number} is none of the {self._meta.last_page + 1} of the file")
        if number + pages > self._pages:
            raise Fault(f"{where}: page {number + pages - 1} is beyond the end of the file")
        if self._used[number : number + pages].any():
            raise Fault(f"{where}: page {number} is in use twice")
        page = os.pread(self._fd, self._size, number * self._size)
        own, _, flags, low, high = PAGE.unpack_from(page) if len(page) == self._size else (-1, 0, 0, 0, 0)
        if own != number:
            raise Fault(f"{where}: page {number} says that it is page {own}")
        if pages > 1 or flags == OVERFLOW:
            if flags != OVERFLOW or low | high << 16 != pages:
                raise Fault(f"{where}: page {number} does not begin a value of {pages} pages")
        elif not (PAGE.size < low <= high <= self._size and low % 2 == 0):
            raise Fault(f"{where}: page {number} has its nodes between {low} and {high}")
        self._used[number : number + pages] = True
        return page, flags

    def _places(self, page: bytes) -> tuple[int, ...]:
        """Where in a page its nodes begin, in the order of their keys."""
        (low,) = struct.unpack_from("<H", page, 12)
        return struct.unpack_from(f"<{(low - PAGE.size) // 2}H", page, PAGE.size)

    def _node(self, page: bytes, number: int, at: int) -> tuple[int, int, int, int, int]:
        """Where the key of a node begins and ends, and the three numbers of its head."""
        (high,) = struct.unpack_from("<H", page, 14)
        if not high <= at <= self._size - NODE.size:
            raise Fault(f"page {number}: a node at {at} is outside it")
        a, b, c, key_bytes = NODE.unpack_from(page, at)
        start = at + NODE.size
        if start + key_bytes > self._size:
            raise Fault(f"page {number}: the key at {at} is cut off")
        return start, start + key_bytes, a, b, c

    def _children(self, tree: Tree, page: bytes, number: int, low: Key | None) -> Iterator[tuple[Key | None, int]]:
        """The least key of each child, and its page; the first one's key is not stored."""
        for place, at in enumerate(self._places(page)):
            start, end, a, b, c = self._node(page, number, at)
            key = low if place == 0 else self._key(tree, page[start:end], number)
            yield key, a | b << 16 | c << 32

    def _entry(self, tree: Tree, page: bytes, number: int, at: int) -> tuple[Key, bytes]:
        """The key of a node, and its value if that is in the page or one of free pages."""
        start, end, a, b, flags = self._node(page, number, at)
        size = a | b << 16
        tree.counted["entries"] += 1
        if flags == _BIG_VALUE and end + NUMBER.size <= self._size:
            value = self._big_value(tree, NUMBER.unpack_from(page, end)[0], size)
        elif flags == 0 and end + size <= self._size:
            value = page[end : end + size]
        else:
            raise Fault(f"page {number}: the value at {end}, of {size} bytes and kind {flags}, is not inside it")
        return self._key(tree, page[start:end], number), value

    def _big_value(self, tree: Tree, number: int, size: int) -> bytes:
        pages = (PAGE.size + size - 1) // self._size + 1
        _, flags = self._read(number, f"a value of the tree of {tree.name}", pages)
        if flags != OVERFLOW:
            raise Fault(f"page {number} does not begin a value")
        tree.counted["overflow pages"] += pages
        return os.pread(self._fd, size, number * self._size + PAGE.size) if tree.name == "free pages" else b""

    def _key(self, tree: Tree, key: bytes, number: int) -> Key:
        if tree.name == "free pages":
            if len(key) != NUMBER.size:
                raise Fault(f"page {number}: a transaction's number has {len(key)} bytes")
            return int(NUMBER.unpack(key)[0])
        if not 0 < len(key) <= _KEY_BYTES_MAX:
            raise Fault(f"page {number}: a key has {len(key)} bytes")
        return key

    # --- over pages ---------------------------------------------------------------------------

    def _check_order(self, tree: Tree, key: Key, number: int, low: Key | None, high: Key | None) -> None:
        # Keys of one tree are of one type.
        after = tree.last is None or tree.last < key  # type: ignore[operator]
        if not after or (low is not None and key < low) or (high is not None and key >= high):  # type: ignore[operator]
            raise Fault(f"page {number}: a key is out of order")
        tree.last = key

    def _list_free(self, transaction: Key, value: bytes) -> None:
        numbers = np.frombuffer(value, dtype="<u8") if len(value) % 8 == 0 else np.zeros(0, dtype="<u8")
        if not len(numbers) or numbers[0] != len(numbers) - 1:
            raise Fault(f"the free pages of transaction {transaction!r} are not a list")
        if not 1 <= int(transaction) <= self._meta.transaction:
            raise Fault(f"pages are free since transaction {transaction!r}, which was none")
        numbers = numbers[1:]
        if len(numbers) and (numbers[-1] < META_PAGES or numbers[0] > self._meta.last_page):
            raise Fault(f"a free page of transaction {transaction!r} is none of the file")
        if np.any(numbers[1:] >= numbers[:-1]) or self._free[numbers].any():
            raise Fault(f"a free page of transaction {transaction!r} is listed twice, or out of order")
        self._free[numbers] = True
        self._freed[int(transaction)] = len(numbers)

    def _check_cover(self) -> None:
        used, free = self._used[META_PAGES:], self._free[META_PAGES:]
        for wrong, what in ((used & free, "in use and free at once"), (~used & ~free, "neither in use nor free")):
            if wrong.any():
                first = int(np.argmax(wrong)) + META_PAGES
                self._found.append(f"{np.count_nonzero(wrong)} pages are {what}, the first is page {first}")
