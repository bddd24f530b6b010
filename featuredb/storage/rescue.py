"""Reads what can be read of a file with damaged pages, without the engine, and writes it to a sound one.

An entry is taken if its node, and the pages of its value, are sound; where a branch is damaged, the leaves that no
branch leads to any more are found by looking at every page that is neither in use nor free. What values say is not
looked at, save the format record.

A file has the meta pages of its last two transactions, and the pages of both are there. The older one is taken only
if nothing can be found from the newer: what that removed is there again.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from featuredb import limits
from featuredb.errors import BusyError, CorruptionError, FeatureDBError, NotADatabaseError
from featuredb.limits import NS_COMMIT, NS_DEFINITION, NS_FORMAT, NS_ONLINE, NS_TAIL
from featuredb.storage import datafile
from featuredb.storage.crc import is_sealed
from featuredb.storage.engine import NEW_MAP_BYTES, write_entries
from featuredb.storage.pages import (
    BRANCH,
    LEAF,
    META_PAGES,
    NO_PAGE,
    NUMBER,
    PAGE,
    Fault,
    Key,
    MetaPage,
    PageWalk,
    Tree,
    page_faults,
)
from featuredb.storage.records import unpack

DEFINITIONS_OLDER = "definitions or log are damaged: what is missing of them was taken from the transaction before"
_DEPTH_MAX = 32
# Of these an older state helps a newer one.
_SHARED = (NS_COMMIT, NS_DEFINITION)
# Of entries of one key the first counts: a damaged one may have the key of another.
_ROWS = (NS_ONLINE, NS_TAIL)
_NAMESPACES = frozenset(value for name, value in vars(limits).items() if name.startswith("NS_"))


@dataclass(slots=True)
class Rescued:
    """What is wrong with the pages of a file.

    ``is_whole``: nothing is wrong with those of the transaction that was taken. ``is_older``: the newest transaction
    is, or may be, another.
    """

    faults: list[str] = field(default_factory=list)
    is_whole: bool = False
    is_older: bool = False


def rescue(source: str, target: str) -> Rescued:
    """Write the entries of `source` that can be read to the new file `target`.

    Raises
    ------
    BusyError
        A writer has the file open in a call.
    FileError
        There is no such file, or it cannot be read, or `target` cannot be written.
    NotADatabaseError, FormatVersionError
        It is another program's, or of a newer version.
    CorruptionError
        Nothing tells where its entries are, or none of them can be read.
    """
    datafile.check_regular(source)
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise datafile.file_error(source, error, "read") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{source}: is being written to; try again later") from error
        found = Rescued()
        entries = _entries(fd, _sound_metas(source, fd, found), found)
        write_entries(target, _ours(source, entries, found), 4 * os.fstat(fd).st_size + NEW_MAP_BYTES)
        return found
    except FeatureDBError:
        raise
    except OSError as error:
        raise datafile.file_error(source, error, "read") from error
    finally:
        os.close(fd)


def _entries(fd: int, metas: list[MetaPage], rescued: Rescued) -> Iterator[tuple[bytes, bytes]]:
    """What the newest meta page leads to. If that is nothing, or lacks some, the older one has to help.

    Every commit writes the page of the definitions anew, and without them nothing can be read. One transaction changes
    little of them, and nothing of the log; no other entry of the older state is mixed with those of the newer.
    """
    file_bytes, found = os.fstat(fd).st_size, 0
    held: set[bytes] = set()
    for meta in metas:
        # Pages beyond the end were never written and are free; each stands in a list of the file.
        pages_max = file_bytes // meta.page_bytes + file_bytes // NUMBER.size
        walk = _Rescue(fd, replace(meta, last_page=min(meta.last_page, pages_max)), file_bytes)
        if found:
            older = [entry for entry in walk.entries() if entry[0].startswith(_SHARED) and entry[0] not in held]
            if older:
                rescued.faults.append(DEFINITIONS_OLDER)
            yield from older
            return
        if walk.is_new():
            walk = _Rescue(fd, replace(meta, last_page=max(1, file_bytes // meta.page_bytes - 1)), file_bytes)
            rescued.faults.append("all pages are of the one transaction whose meta page is damaged")
            rescued.is_older = False
        elif meta is not metas[0]:
            rescued.faults.append("the newer meta page leads to no entry: the older one was used")
            rescued.is_older = True
        for key, value in walk.entries():
            found += 1
            if key.startswith(_SHARED):
                held.add(key)
            yield key, value
        faults = [*page_faults(fd, meta), *walk.notes]
        rescued.faults += faults
        rescued.is_whole = not faults and not walk.is_new()
        if found and not walk.missing:
            return


def _sound_metas(path: str, fd: int, rescued: Rescued) -> list[MetaPage]:
    """The meta pages that are in order, the newest first."""
    found: list[MetaPage] = []
    bits = range(datafile.PAGE_BYTES_MIN.bit_length() - 1, datafile.PAGE_BYTES_MAX.bit_length())
    for at in (0, *(1 << count for count in bits)):
        record = os.pread(fd, datafile.META_BYTES, at)
        meta = datafile.parse_meta(record)
        # Transactions write them in turn.
        if meta is not None and at in (0, meta.page_bytes) and meta.transaction % 2 == (at > 0):
            found.append(MetaPage(meta.transaction, meta.last_page, meta.page_bytes, record))
    if not found:
        raise CorruptionError(f"{path}: has no meta page that is in order, so that nothing of it can be salvaged")
    found.sort(key=lambda meta: -meta.transaction)
    newest = found[0].transaction
    if len(found) < META_PAGES:
        at = datafile.TRANSACTION_AT + (0 if newest % 2 else found[0].page_bytes)
        other = int.from_bytes(os.pread(fd, NUMBER.size, at), "little")
        rescued.is_older = other != newest - 1
        which = {newest - 1: "the older", newest + 1: "the newer"}.get(other, "one, perhaps the newer,")
        rescued.faults.append(f"{which} of the meta pages is damaged")
    elif found[1].transaction != newest - 1:
        rescued.is_older = True
        rescued.faults.append("the meta pages are not of two transactions in a row: one, perhaps the newer, is damaged")
    return found


def _ours(path: str, entries: Iterator[tuple[bytes, bytes]], rescued: Rescued) -> Iterator[tuple[bytes, bytes]]:
    """The entries of known kinds, with a new format record if theirs is damaged or missing.

    Raises
    ------
    NotADatabaseError, FormatVersionError
        None is of a known kind, or the record is whole and not one that this library reads.
    CorruptionError
        There is none.
    """
    known = unknown = 0
    for key, value in entries:
        if key[:1] not in _NAMESPACES or (key[:1] == NS_FORMAT and key != NS_FORMAT):
            unknown += 1
            continue
        if key == NS_FORMAT:
            try:
                unpack(key, value, "the format record")
            except CorruptionError:
                continue
            datafile.check_format(path, value)
        known += 1
        yield key, value
    if not known and not unknown:
        raise CorruptionError(f"{path}: no entry of it can be read, so that nothing can be salvaged; restore a backup")
    if not known:
        raise NotADatabaseError(f"{path}: is an LMDB file of another program, not a featuredb file; check the path")
    if unknown:
        rescued.faults.append(f"{unknown} entries are of no known kind")
        rescued.is_whole = False
    yield NS_FORMAT, datafile.encode_format(uuid.uuid4().hex, time.time_ns() // 1000)


class _Rescue(PageWalk):
    """A walk that goes on where something is damaged; ``notes`` says what could not be found, ``missing`` how much."""

    def __init__(self, fd: int, meta: MetaPage, file_bytes: int) -> None:
        super().__init__(fd, meta, file_bytes)
        self.notes: list[str] = []
        self.missing = 0

    def is_new(self) -> bool:
        """Whether the transaction is that of an empty file: then all that is in the file came with the next."""
        return self._tree(0, "free pages").root == self._tree(1, "entries").root == NO_PAGE

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry that can be read; one that stands in two pages twice."""
        free, main = self._tree(0, "free pages"), self._tree(1, "entries")
        if free.root != NO_PAGE:
            self._visit(free, free.root, 1, None, None)
        free_known = not self._found and free.counted == free.recorded
        before = len(self._found)
        if main.root != NO_PAGE:
            yield from self._below(main, main.root, 1, None, None)
        if main.root == NO_PAGE or len(self._found) > before:
            if free_known:
                for number in np.flatnonzero(~self._used & ~self._free).tolist():
                    yield from self._orphan(main, number)
            else:
                self.notes.append("the list of free pages is damaged: pages that nothing leads to were not looked at")
        recorded = main.recorded["entries"]
        self.missing = max(0, recorded - main.counted["entries"])
        if self.missing:
            self.notes.append(f"{self.missing} of {recorded} entries cannot be found")

    def _below(
        self, tree: Tree, number: int, depth: int, low: Key | None, high: Key | None
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a page and all below it, whose keys should be from `low` on and below `high`."""
        try:
            page, flags = self._read(number, "tree of entries")
            if flags not in (BRANCH, LEAF) or depth > _DEPTH_MAX:
                # Whoever it does belong to may come to it yet.
                self._used[number] = False
                raise Fault(f"page {number}, at level {depth}, is of kind {flags:#x}")
        except Fault as fault:
            self._found.append(str(fault))
            return
        if flags == LEAF:
            yield from self._leaf(tree, page, number, low, high)
            return
        children: list[tuple[Key | None, int]] = []
        for place, at in enumerate(self._places(page)):
            try:
                start, end, a, b, c = self._node(page, number, at)
            except Fault as fault:
                self._found.append(str(fault))
            else:
                children.append((page[start:end] if place else low, a | b << 16 | c << 32))
        ends = [*(key for key, _ in children[1:]), high]
        # Of a damaged page there may be no child at all.
        for (start_key, child), end_key in zip(children, ends, strict=False):
            yield from self._below(tree, child, depth + 1, start_key, end_key)

    def _orphan(self, tree: Tree, number: int) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a page that nothing leads to, if it is a leaf."""
        if number < META_PAGES or number >= self._pages or self._used[number]:
            return
        with suppress(Fault):
            page, flags = self._read(number, "pages that nothing leads to")
            if flags == LEAF:
                yield from self._leaf(tree, page, number)
            else:
                self._used[number] = False

    def _leaf(
        self, tree: Tree, page: bytes, number: int, low: Key | None = None, high: Key | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a page, save rows whose key is doubtful and which are not of it."""
        entries = list[tuple[bytes, bytes]]()
        for at in self._places(page):
            count = tree.counted["entries"]
            try:
                key, value = self._entry(tree, page, number, at)
            except Fault as fault:
                tree.counted["entries"] = count
                self._found.append(str(fault))
            else:
                if isinstance(key, bytes):
                    entries.append((key, value))
        doubtful = _out_of_order([key for key, _ in entries], low, high)
        for place, entry in enumerate(entries):
            if place in doubtful and entry[0].startswith(_ROWS) and not is_sealed(*entry):
                tree.counted["entries"] -= 1
            else:
                yield entry

    def _big_value(self, tree: Tree, number: int, size: int) -> bytes:
        super()._big_value(tree, number, size)
        return os.pread(self._fd, size, number * self._size + PAGE.size)


def _out_of_order(keys: list[bytes], low: Key | None, high: Key | None) -> set[int]:
    """Places of keys that do not ascend, both of each pair, or are not from `low` on and below `high`."""
    outside = {
        place
        for place, key in enumerate(keys)
        if (isinstance(low, bytes) and key < low) or (isinstance(high, bytes) and key >= high)
    }
    falling = {place for place in range(1, len(keys)) if keys[place - 1] >= keys[place]}
    return outside | falling | {place - 1 for place in falling}
