"""What a process has open: one LMDB environment per file.

A file opened twice in a process shares one `Core`, counted by its handles (`Env`). A transaction announces
itself in ``Core.active`` before it looks at ``Core.stopped``; whoever sets ``stopped`` (to remap the file, to go over
to another that has taken its place, or to close it) looks at ``active`` afterwards. So the hot path takes no lock
and none slips through.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from threading import get_ident
from typing import Any, TypeVar

from featuredb import limits
from featuredb.errors import BusyError, FeatureDBError, FileError, ForkedError
from featuredb.storage import datafile
from featuredb.storage.engine import (
    NEW_MAP_BYTES,
    EngineError,
    MapFullError,
    MapResizedError,
    ReadersFullError,
    let_child_reopen,
    new_engine,
    open_files,
    reader_table,
    translated,
)
from featuredb.storage.filemap import FileMap
from featuredb.storage.handle import closed_error
from featuredb.storage.pages import file_faults, freed_pages, meta_pages, page_faults
from featuredb.storage.txn import Bytes, ReadTxn, WriteTxn
from featuredb.storage.writelock import WriteLock

T = TypeVar("T")

# How long new reads are kept waiting at a time while the map is to be replaced. Then they are let through for a
# moment: what the open reads wait for may itself be waiting to read.
_GATE_SECONDS = 0.25
_PAUSE_SECONDS = 0.001
_IDS_OF_A_FILE = 1 << 48


class Core:
    """What the handles of one file share in a process."""

    def __init__(self, path: str, record: bytes, engine: Any, fd: int, durable: bool, map_bytes: int) -> None:
        self.path = path
        self.record = record
        self.durable = durable
        self.lock = WriteLock(path, fd)
        self._map_bytes = map_bytes
        # Added to the engine's numbers of snapshots: a file takes over the last number of the one that it replaces.
        self.ids_before = 0
        # Of the file, when this process last wrote to it.
        self._pages_seen = 0
        self._take(engine)
        self.handles = 0
        self.active: set[ReadTxn] = set()
        self.stopped = False
        self.refusal: FeatureDBError | None = None
        self._remap_lock = threading.Lock()

    def _take(self, engine: Any) -> None:
        self.engine = engine
        self.begin: Callable[..., Any] = engine.begin
        self.readonly: bool = engine.flags()["readonly"]
        self.key = self.lock.file_key()
        self.file_map = FileMap(self.path, self.key, engine.lib_version())

    # --- transactions ------------------------------------------------------------------------

    def begin_waiting(self, txn: ReadTxn, *, write: bool) -> Any:
        """Begin `txn`, which is in ``active``, waiting and mending as needed; on failure take it out again."""
        checked = False
        try:
            while True:
                self._wait_for_gate(txn)
                try:
                    return self.begin(write=write, buffers=txn.views)
                except MapResizedError:
                    self.active.discard(txn)
                    self._follow_growth()
                    self.active.add(txn)
                except ReadersFullError as error:
                    if checked:
                        raise self.translated(error) from error
                    checked = True
                    self.engine.reader_check()
        except BaseException as error:
            self.active.discard(txn)
            if self.handles == 0:
                self.close_if_idle()
            if isinstance(error, EngineError):
                raise self.translated(error) from error
            raise

    def _wait_for_gate(self, txn: ReadTxn) -> None:
        while self.stopped:
            refused = self.refused()
            if refused is not None:
                raise refused
            self.active.discard(txn)
            if self._active_here():
                # The gate waits for this thread's outer transaction, so the inner one must pass.
                self.active.add(txn)
                return
            time.sleep(_PAUSE_SECONDS)
            self.active.add(txn)

    def _active_here(self) -> bool:
        here = get_ident()
        return any(txn.thread == here for txn in list(self.active))

    def drain(self, timeout_seconds: float) -> bool:
        """Wait until no transaction of this process is active; False if this thread has one, or time is up."""
        deadline = time.monotonic() + timeout_seconds
        while self.active:
            if self._active_here() or time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_SECONDS)
        return True

    def commit(self, fn: Callable[[WriteTxn], T]) -> T:
        """Run `fn` in a write transaction, again whenever the map had to grow."""
        try:
            while True:
                map_bytes = self.engine.info()["map_size"]
                try:
                    with WriteTxn(self) as txn:
                        result = fn(txn)
                    self._free_what_the_dead_hold()
                    return result
                except MapFullError as error:
                    # A reader that was killed pins pages that could be used instead.
                    self.engine.reader_check()
                    if not self._remap(map_bytes, 2 * map_bytes):
                        raise FileError(
                            f"{self.path}: its map of {map_bytes} bytes is full and the system grants no larger one; "
                            "allow this process more address space (ulimit -v)"
                        ) from error
        except EngineError as error:
            raise self.translated(error) from error

    def _free_what_the_dead_hold(self) -> None:
        """If the file has grown, see whether that is for a reader that was killed: its pages can be used instead."""
        pages: int = self.engine.info()["last_pgno"]
        if pages > self._pages_seen:
            self.engine.reader_check()
        self._pages_seen = pages

    def acquire(self, timeout_seconds: float) -> None:
        """Take the write lock of the file that is at the path, whichever that is by then."""
        while True:
            self.lock.acquire(timeout_seconds)
            try:
                if not self.follow(patient=True):
                    return
            except BaseException:
                self.lock.release()
                raise
            self.lock.release()

    def last_transaction(self) -> int:
        """Number of the last transaction that was committed. The write lock must be held."""
        return int(self.engine.info()["last_txnid"])

    def sync(self) -> None:
        """Make everything committed so far durable."""
        with self._translating():
            self.engine.sync(True)

    def write_clean(self, path: str, batches: Iterable[Iterable[tuple[Bytes, Bytes]]], mode: int = 0o666) -> int:
        """Write entries, in the order of their keys, to a new file; the number of its last transaction.

        Every page of it is new, so that it has no byte of any other entry. A read must be active, to hold the map.
        What the engine raises is for the caller to translate, who knows what the file is for.
        """
        engine = None
        try:
            engine = new_engine(path, 2 * self.lock.file_bytes() + NEW_MAP_BYTES, mode)
            for batch in batches:
                with engine.begin(write=True) as target:
                    target.cursor().putmulti(batch, append=True)
            engine.sync(True)
            return int(engine.info()["last_txnid"])
        finally:
            if engine is not None:
                engine.close()

    def space(self, transaction: int) -> dict[str, Any]:
        """See `Env.space`; a read of id `transaction` must be active."""
        with self._translating():
            self.engine.reader_check()
            info, readers = self.engine.info(), reader_table(self.engine)
        # What a reader holds, and whatever was freed since it began, no writer uses again.
        metas = meta_pages(self.lock.fd)
        meta = next((meta for meta in metas if meta.transaction == transaction - self.ids_before), metas[0])
        age, pid = max(((meta.transaction - began, pid) for pid, began in readers), default=(0, 0))
        freed = freed_pages(self.lock.fd, meta) if age > 0 else {}
        pinned_pages = sum(count for number, count in freed.items() if number >= meta.transaction - age)
        used_pages, size = meta.last_page + 1, meta.page_bytes
        return {
            "file_bytes": self.lock.file_bytes(),
            "page_bytes": size,
            "used_bytes": used_pages * size,
            "live_bytes": meta.live_pages * size,
            "free_bytes": (used_pages - meta.live_pages - pinned_pages) * size,
            "pinned_bytes": pinned_pages * size,
            "map_bytes": info["map_size"],
            "readers": info["num_readers"],
            "oldest_reader": {"pid": pid, "age": age} if age > 0 else None,
        }

    def page_faults(self, transaction: int) -> list[str] | None:
        """What is wrong with the pages that a reader of id `transaction` holds; None if two commits came after it."""
        fd, wanted = self.lock.fd, transaction - self.ids_before
        # The lock file, by which readers tell the last transaction, is that of the file at the path. In one that
        # was replaced they have the meta page of that number's parity, and no one writes it any more.
        replaced = datafile.key_at(self.path) != self.key
        for meta in meta_pages(fd):
            if meta.transaction == wanted or (replaced and (meta.transaction - wanted) % 2 == 0):
                return page_faults(fd, meta)
        return None

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except EngineError as error:
            raise self.translated(error) from error

    # --- the map -----------------------------------------------------------------------------

    def _follow_growth(self) -> None:
        """Another process has made the file longer than our map."""
        map_bytes = self.engine.info()["map_size"]
        needed = -(-self.lock.file_bytes() // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        if not self._remap(map_bytes, 2 * max(map_bytes, needed)) and not self._remap(map_bytes, needed):
            raise FileError(
                f"{self.path}: has grown to {needed} bytes, and the system grants no map of that size; "
                "allow this process more address space (ulimit -v)"
            )

    def _remap(self, seen_bytes: int, wanted_bytes: int) -> bool:
        """Replace the map by one of `wanted_bytes` unless another thread did; False if there is no room."""
        with self._remap_lock:
            if self.engine.info()["map_size"] != seen_bytes:
                return True
            # The engine gives up the old map before it asks for the new: ask in its place first.
            try:
                mmap.mmap(-1, wanted_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ).close()
            except (OSError, ValueError, OverflowError):
                return False
            try:
                self._stop("its map must grow")
                self.engine.set_mapsize(wanted_bytes)
            except EngineError as error:
                self.refusal = FileError(f"{self.path}: its map was lost ({error}); close and reopen it")
                raise
            finally:
                self.stopped = self.refusal is not None
        return True

    def _stop(self, what: str) -> None:
        """Close the gate and wait until no transaction of this process is active."""
        deadline = time.monotonic() + limits.WRITE_TIMEOUT_SECONDS
        self.stopped = True
        while not self.drain(_GATE_SECONDS):
            self.stopped = False
            if self._active_here() or time.monotonic() > deadline:
                whose = "this thread's own open read" if self._active_here() else "reads that stayed open"
                raise BusyError(f"{self.path}: {what}, but {whose} prevents it; finish the read, then retry")
            time.sleep(_GATE_SECONDS / 10)
            self.stopped = True

    # --- another file at the path --------------------------------------------------------------

    def replace(self, temporary: str, fd: int) -> None:
        """Put the file `temporary`, of descriptor `fd`, in the place of this one and go over to it.

        The write lock must be held, of both files. On an error nothing has changed.
        """
        with self._remap_lock:
            try:
                self._stop("its file is to be replaced")
                datafile.replace(temporary, self.path)
                self._reopen(fd)
            finally:
                self.stopped = self.refusal is not None

    def follow(self, *, patient: bool) -> bool:
        """Go over to the file that is at the path now, if that is another; whether it was.

        A writer is `patient` and waits for the reads of this process. A reader looks at what it has if others
        do not end soon, and tries again in its next call.

        Raises
        ------
        FileError
            There is no file at the path any more, or a foreign or older one.
        """
        if datafile.key_at(self.path) == self.key or (not patient and self._active_here()):
            return False
        with self._remap_lock:
            refused = self.refused()
            if refused is not None:
                raise refused
            if datafile.key_at(self.path) == self.key:
                return False
            if datafile.check(self.path, file_faults) != self.record:
                raise _replaced_error(self.path)
            try:
                if patient:
                    self._stop("another process has replaced it")
                else:
                    self.stopped = True
                    if not self.drain(_GATE_SECONDS):
                        return False
                self._reopen(None)
            finally:
                self.stopped = self.refusal is not None
        return True

    def _reopen(self, fd: int | None) -> None:
        """Go over to the file at the path; `fd` is a descriptor of it that is to be kept. The gate is closed."""
        with self.engine.begin() as txn:
            cursor = txn.cursor()
            found = cursor.prev() if cursor.set_range(limits.NS_DEFINITION) else cursor.last()
            last = (cursor.key(), cursor.value()) if found and cursor.key().startswith(limits.NS_COMMIT) else None
        before = self.key
        self.ids_before += _IDS_OF_A_FILE
        # LMDB's locks belong to a process and the lock file, which stays: the two cannot be open at once.
        self.engine.close()
        try:
            engine, own = open_files(self.path, readonly=True, durable=self.durable, map_bytes=self._map_bytes)
            self.lock.move(own if fd is None else fd)
            os.close(own)
            self._take(engine)
            with registry_lock:
                if registry.pop(before, None) is self:
                    registry[self.key] = self
            with engine.begin() as txn:
                if last is not None and txn.get(last[0]) != last[1]:
                    raise _replaced_error(self.path)
        except BaseException as error:
            self.refusal = FileError(f"{self.path}: could not be opened again ({error}); close and reopen it")
            raise

    # --- the end -----------------------------------------------------------------------------

    def release(self) -> None:
        """Give up one handle; with the last, wait for the reads of other threads and close."""
        with registry_lock:
            self.handles -= 1
            last = self.handles == 0 and registry.get(self.key) is self
        if last:
            self.drain(limits.WRITE_TIMEOUT_SECONDS)
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close the environment if no handle, transaction or writer needs it; else the last of these will."""
        with registry_lock:
            if self.handles or registry.get(self.key) is not self:
                return
            if not self._remap_lock.acquire(blocking=False):
                return
            try:
                self.stopped = True
                if self.active or self.lock.is_wanted():
                    self.stopped = self.refusal is not None
                    return
                self.refusal = closed_error(self.path)
                del registry[self.key]
                self.engine.close()
                self.lock.close()
            finally:
                self._remap_lock.release()

    def abandon(self) -> None:
        """In a forked child: use nothing of the parent's again, and free nothing either.

        Closing or collecting the environment would clear the parent's slots in the shared reader table, and
        so let its pages be overwritten while it reads them.
        """
        self.refusal = ForkedError(
            f"{self.path}: was opened before this process was forked; open it in the child process itself"
        )
        self.stopped = True
        for txn in self.active:
            txn.abandon()
        self.active = set()
        self.lock.close()
        if sys.implementation.name == "cpython":
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.engine))

    # --- errors ------------------------------------------------------------------------------

    def refused(self) -> FeatureDBError | None:
        """The error to raise if this may not be used any more."""
        return None if self.refusal is None else type(self.refusal)(str(self.refusal))

    def is_map_full(self, error: Exception) -> bool:
        """Whether a larger map would mend `error`."""
        return isinstance(error, MapFullError)

    def translated(self, error: Exception) -> Exception:
        """The error of ours that says what the engine's `error` means; any other as it is."""
        return translated(self.path, error)


# The files that this process has open. A fork gives the child another lock, so it is looked up in this module.
registry: dict[tuple[int, int], Core] = {}
registry_lock = threading.RLock()


def _replaced_error(path: str) -> FileError:
    return FileError(f"{path}: holds another file than the one that was opened; close it and open it again")


def _before_fork() -> None:
    # So that the child finds the registry whole.
    registry_lock.acquire()


def _after_fork_in_parent() -> None:
    registry_lock.release()


def _after_fork_in_child() -> None:
    global registry_lock
    registry_lock = threading.RLock()
    inherited = list(registry.values())
    registry.clear()
    for core in inherited:
        core.abandon()
    if inherited:
        let_child_reopen()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
