"""The handle on an open file that the rest of featuredb works with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

from featuredb import limits
from featuredb.errors import BusyError, ClosedError, FeatureDBError, ReadOnlyError
from featuredb.storage.moving import settle
from featuredb.storage.rewrite import rewrite, write_copy
from featuredb.storage.txn import ReadTxn, WriteTxn

if TYPE_CHECKING:
    from featuredb.storage.core import Core

T = TypeVar("T")

# Two commits between the begin of a read and a look at the meta pages are rare, and so are files that are replaced.
_LOOKS_MAX = 100
_FAULTY_LOOKS = 3


class Env:
    """A handle on an open file, from `open_env`. Safe to use from several threads.

    Attributes
    ----------
    path : str
        The file's real path.
    """

    def __init__(self, core: Core, path: str, *, readonly: bool, durable: bool) -> None:
        self.path = path
        self._core: Core | None = core
        self._readonly = readonly
        self._durable = durable

    def read(self, views: bool = True) -> ReadTxn:
        """A snapshot of the file: ``with env.read() as txn``; its values are views, or copies."""
        if self._core is None:
            raise closed_error(self.path)
        return ReadTxn(self._core, views)

    @contextlib.contextmanager
    def writer(self, timeout_seconds: float = limits.WRITE_TIMEOUT_SECONDS) -> Iterator[None]:
        """Hold the file's one write lock, across threads and processes. Not reentrant.

        Raises
        ------
        BusyError
            Another writer held it for `timeout_seconds`, or this thread holds it already.
        ReadOnlyError
            The file was opened read-only.
        """
        core = self._writable()
        try:
            core.acquire(timeout_seconds)
            try:
                yield
            finally:
                core.lock.release()
        finally:
            if core.handles == 0:
                core.close_if_idle()

    def write(self, fn: Callable[[WriteTxn], T], *, durable: bool = True) -> T:
        """Run ``fn(txn)`` and commit, or on an exception change nothing. `writer` must be held.

        Parameters
        ----------
        fn : callable
            May be run again from its start, after the map has grown.
        durable : bool
            Whether the commit must survive power loss if the handle is durable.

        Returns
        -------
        object
            What `fn` returned.

        Raises
        ------
        FileError
            The disk is full, or the map cannot grow.
        """
        core = self._locked()
        self._refuse_inside_write(core)
        result = core.commit(fn)
        if durable and self._durable and not core.durable:
            core.sync()
        return result

    def copy(self, path: str, check: Callable[[str], None] | None = None) -> None:
        """Write a snapshot to the new file `path`, without free pages or anything that was removed.

        Before it gets that name `check` may look at it under another, and raise.

        Raises
        ------
        FileError
            `path` exists, or its folder does not, or the disk is full.
        """
        self._refuse_inside_write(self.core)
        write_copy(self, path, check)

    def rewrite(self) -> None:
        """Put such a copy in the place of the file, under all who have it open. `writer` must be held.

        Handles of this process go on with the new file, those of others with their next call. Until then, and until
        the reads that they have open end, the old file takes up space beside it.

        Raises
        ------
        BusyError
            A read of this process stays open.
        FileError
            The disk is full, or the folder cannot be written. Nothing has changed.
        """
        self._refuse_inside_write(self._locked())
        rewrite(self)

    def space(self) -> dict[str, Any]:
        """Bytes of the file, its pages and its map, how many reader slots there are, and the oldest reader.

        ``used_bytes`` is the sum of ``live_bytes``, ``free_bytes`` (pages that are free for reuse, and the few that
        list them) and ``pinned_bytes`` (pages that would be free, were it not for readers of older commits).
        ``oldest_reader`` has the process that reads the oldest commit, and its age in transactions; None if
        all read the newest one. Readers that were killed are not counted: looking frees what they held.
        """
        core = self.core
        with self.read() as txn:
            return core.space(txn.id())

    def page_faults(self) -> list[str]:
        """What is wrong with the pages of the file, found without the engine; if anything, it is not safe to read.

        Raises
        ------
        BusyError
            Others commit faster than the file's first pages can be read.
        """
        core = self.core
        # What is seen once, while others write, may be a page that is being written just then; damage is seen again.
        before: list[str] = []
        faulty = 0
        for _ in range(_LOOKS_MAX):
            with self.read() as txn:
                key, faults = core.key, core.page_faults(txn.id())
                if faults == []:
                    # Now the engine may look whether another file has taken this one's place.
                    settle(txn)
            if faults is not None and core.key == key:
                faulty += bool(faults)
                if not faults or faults == before or faulty == _FAULTY_LOOKS:
                    return faults
                before = faults
        raise BusyError(f"{self.path}: is written to too often to be verified; try again later")

    def close(self) -> None:
        """Release the handle; the last one waits for reads of other threads, then closes the file. Idempotent."""
        core, self._core = self._core, None
        if core is not None:
            core.release()

    def _locked(self) -> Core:
        core = self._writable()
        if core.lock.owner != get_ident():
            raise FeatureDBError(f"{self.path}: write() needs the write lock; call it inside `with env.writer():`")
        return core

    @property
    def core(self) -> Core:
        """What the handles of the file share, if this one may be used."""
        core = self._core
        if core is None:
            raise closed_error(self.path)
        refused = core.refused()
        if refused is not None:
            raise refused
        return core

    def _writable(self) -> Core:
        core = self.core
        if self._readonly or core.readonly:
            raise ReadOnlyError(f"{self.path}: is open read-only; open it without read_only to write")
        return core

    def _refuse_inside_write(self, core: Core) -> None:
        here = get_ident()
        if any(isinstance(txn, WriteTxn) and txn.thread == here for txn in list(core.active)):
            raise FeatureDBError(f"{self.path}: called from inside write(); let that write end first")


def closed_error(path: str) -> ClosedError:
    """What a use after `Env.close` raises."""
    return ClosedError(f"{path}: was closed; open it again")
