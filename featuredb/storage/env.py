"""The storage engine: one LMDB environment per file and process, and the only importer of lmdb.

A file opened twice in a process shares one `Core`, counted by its handles (`Env`). A transaction announces
itself in ``Core.active`` before it looks at ``Core.stopped``; whoever sets ``stopped`` (to remap the file, or to
close it) looks at ``active`` afterwards. So the hot path takes no lock and none slips through.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any, TypeVar

import lmdb

from featuredb import limits
from featuredb.errors import (
    BusyError,
    CorruptionError,
    FeatureDBError,
    FileError,
    ForkedError,
    LimitError,
)
from featuredb.storage import datafile
from featuredb.storage.filemap import FileMap
from featuredb.storage.handle import Env, closed_error
from featuredb.storage.txn import LMDB_KEY_BYTES_MAX, ReadTxn, WriteTxn
from featuredb.storage.writelock import WriteLock

__all__ = ["Env", "ReadTxn", "WriteTxn", "open_env"]

T = TypeVar("T")

_NEW_MAP_BYTES = 1 << 20
# How long new reads are kept waiting at a time while the map is to be replaced. Then they are let through for a
# moment: what the open reads wait for may itself be waiting to read.
_GATE_SECONDS = 0.25
_PAUSE_SECONDS = 0.001
_CORRUPT = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)


class Core:
    """What the handles of one file share in a process."""

    def __init__(self, path: str, key: tuple[int, int], engine: Any, lock: WriteLock, durable: bool) -> None:
        self.path = path
        self.key = key
        self.engine = engine
        self.begin: Callable[..., Any] = engine.begin
        self.readonly: bool = engine.flags()["readonly"]
        self.durable = durable
        self.lock = lock
        self.handles = 0
        self.active: set[ReadTxn] = set()
        self.stopped = False
        self.refusal: FeatureDBError | None = None
        self.file_map = FileMap(path, key, engine.lib_version())
        self._remap_lock = threading.Lock()

    # --- transactions ------------------------------------------------------------------------

    def begin_waiting(self, txn: ReadTxn, *, write: bool) -> Any:
        """Begin `txn`, which is in ``active``, waiting and mending as needed; on failure take it out again."""
        checked = False
        try:
            while True:
                self._wait_for_gate(txn)
                try:
                    return self.begin(write=write, buffers=txn.views)
                except lmdb.MapResizedError:
                    self.active.discard(txn)
                    self._follow_growth()
                    self.active.add(txn)
                except lmdb.ReadersFullError as error:
                    if checked:
                        raise self.translated(error) from error
                    checked = True
                    self.engine.reader_check()
        except BaseException as error:
            self.active.discard(txn)
            if self.handles == 0:
                self.close_if_idle()
            if isinstance(error, lmdb.Error):
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
                        return fn(txn)
                except lmdb.MapFullError as error:
                    # A reader that was killed pins pages that could be used instead.
                    self.engine.reader_check()
                    if not self._remap(map_bytes, 2 * map_bytes):
                        raise FileError(
                            f"{self.path}: its map of {map_bytes} bytes is full and the system grants no larger one; "
                            "allow this process more address space (ulimit -v)"
                        ) from error
        except lmdb.Error as error:
            raise self.translated(error) from error

    def sync(self) -> None:
        """Make everything committed so far durable."""
        with self._translating():
            self.engine.sync(True)

    def copy(self, fd: int, compact: bool) -> None:
        """Write a snapshot to the descriptor `fd`; a read must be active, to hold the map."""
        with self._translating():
            self.engine.copyfd(fd, compact)

    def space(self) -> dict[str, int]:
        """See `Env.space`; a read must be active, to hold the map."""
        with self._translating():
            info, stat = self.engine.info(), self.engine.stat()
        live_pages = 2 + stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return {
            "file_bytes": self.lock.file_bytes(),
            "page_bytes": stat["psize"],
            "used_bytes": (info["last_pgno"] + 1) * stat["psize"],
            "free_bytes": (info["last_pgno"] + 1 - live_pages) * stat["psize"],
            "map_bytes": info["map_size"],
            "readers": info["num_readers"],
        }

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
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
                self._stop()
                self.engine.set_mapsize(wanted_bytes)
            except lmdb.Error as error:
                self.refusal = FileError(f"{self.path}: its map was lost ({error}); close and reopen it")
                raise
            finally:
                self.stopped = self.refusal is not None
        return True

    def _stop(self) -> None:
        """Close the gate and wait until no transaction of this process is active."""
        deadline = time.monotonic() + limits.WRITE_TIMEOUT_SECONDS
        self.stopped = True
        while not self.drain(_GATE_SECONDS):
            self.stopped = False
            if self._active_here() or time.monotonic() > deadline:
                whose = "this thread's own open read" if self._active_here() else "reads that stayed open"
                raise BusyError(f"{self.path}: its map must grow, but {whose} prevents it; finish the read, then retry")
            time.sleep(_GATE_SECONDS / 10)
            self.stopped = True

    # --- the end -----------------------------------------------------------------------------

    def release(self) -> None:
        """Give up one handle; with the last, wait for the reads of other threads and close."""
        with _registry_lock:
            self.handles -= 1
            last = self.handles == 0 and _registry.get(self.key) is self
        if last:
            self.drain(limits.WRITE_TIMEOUT_SECONDS)
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close the environment if no handle, transaction or writer needs it; else the last of these will."""
        with _registry_lock:
            if self.handles or _registry.get(self.key) is not self:
                return
            if not self._remap_lock.acquire(blocking=False):
                return
            try:
                self.stopped = True
                if self.active or self.lock.is_wanted():
                    self.stopped = self.refusal is not None
                    return
                self.refusal = closed_error(self.path)
                del _registry[self.key]
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
        return isinstance(error, lmdb.MapFullError)

    def translated(self, error: Exception) -> Exception:
        """The error of ours that says what the engine's `error` means; any other as it is."""
        path = self.path
        if not isinstance(error, lmdb.Error):
            return error
        if isinstance(error, _CORRUPT):
            return CorruptionError(f"{path}: is damaged ({error}); restore it from a backup")
        if isinstance(error, lmdb.BadValsizeError):
            return LimitError(
                f"{path}: a key is empty or longer than {LMDB_KEY_BYTES_MAX} bytes, or a value is too long"
            )
        if isinstance(error, lmdb.ReadersFullError):
            return BusyError(
                f"{path}: too many concurrent reads ({self.engine.max_readers()}); finish some, then retry"
            )
        if isinstance(error, lmdb.MemoryError):
            return FileError(f"{path}: out of memory ({error}); write less at a time or allow this process more memory")
        if isinstance(error, lmdb.PanicError):
            return FileError(f"{path}: an earlier write failed ({error}); close and reopen it")
        return datafile.file_error(path, error, "read or written")


_registry: dict[tuple[int, int], Core] = {}
_registry_lock = threading.RLock()


def open_env(
    path: str | os.PathLike[str], *, create: bool, readonly: bool, durable: bool, map_bytes: int | None = None
) -> Env:
    """Open a file, or share it if this process has it open already.

    Parameters
    ----------
    path : str or path-like
    create : bool
        Make the file if it is missing (and `readonly` is false).
    readonly : bool
        Refuse writes through this handle.
    durable : bool
        Commits through this handle survive power loss.
    map_bytes : int, optional
        Address space to begin with, `limits.MAP_SIZE_BYTES` if left out. It grows when the file does.

    Returns
    -------
    Env

    Raises
    ------
    FileError
        The path cannot be opened; `NotADatabaseError`, `FormatVersionError` and `CorruptionError` say why.

    Notes
    -----
    A read-only file whose lock file cannot be written is read without locks: it must not be written meanwhile.
    """
    path = os.path.realpath(path)
    with _registry_lock:
        if create and not readonly and not os.path.lexists(path):
            _create(path)
        core = _shared(path)
        if core is None:
            datafile.check(path, _verify)
            core = _shared(path) or _open_core(path, readonly=readonly, durable=durable, map_bytes=map_bytes)
            _registry[core.key] = core
        elif core.readonly and not readonly:
            raise FileError(f"{path}: is open read-only in this process, as it was not writable; close it first")
        core.handles += 1
    return Env(core, path, readonly=readonly, durable=durable)


def _shared(path: str) -> Core | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return _registry.get((found.st_dev, found.st_ino))


def _create(path: str) -> None:
    temporary = datafile.temporary_name(path)
    record = datafile.encode_format(uuid.uuid4().hex, time.time_ns() // 1000)
    try:
        engine = lmdb.open(
            temporary, subdir=False, lib_version=0, lock=False, map_size=_NEW_MAP_BYTES, max_dbs=0, mode=0o666
        )
        try:
            with engine.begin(write=True) as txn:
                txn.put(limits.NS_FORMAT, record)
        finally:
            engine.close()
        # If another process was faster, its file is opened.
        datafile.publish(temporary, path)
    except (OSError, lmdb.Error) as error:
        raise datafile.file_error(path, error, "created") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _open_core(path: str, *, readonly: bool, durable: bool, map_bytes: int | None) -> Core:
    try:
        fd, writable = os.open(path, os.O_RDWR | os.O_CLOEXEC), True
    except OSError as error:
        if not readonly:
            raise datafile.file_error(path, error, "opened for writing") from error
        fd, writable = os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    try:
        engine = _open_engine(path, writable, readonly, durable, map_bytes or limits.MAP_SIZE_BYTES)
        with contextlib.suppress(lmdb.Error):
            engine.reader_check()
        found = os.fstat(fd)
        return Core(path, (found.st_dev, found.st_ino), engine, WriteLock(path, fd), durable)
    except BaseException:
        os.close(fd)
        raise


def _open_engine(path: str, writable: bool, readonly: bool, durable: bool, map_bytes: int) -> Any:
    # A file that can be written is opened so even for a reader: a later writer of this process must share it.
    ways = [{"readonly": False, "lock": True}] if writable else []
    if readonly:
        ways += [{"readonly": True, "lock": True}, {"readonly": True, "lock": False}]
    while True:
        try:
            return lmdb.open(
                path,
                subdir=False,
                create=False,
                lib_version=0,
                sync=True,
                metasync=durable,
                map_size=map_bytes,
                max_readers=limits.READERS_MAX,
                max_dbs=0,
                max_spare_txns=16,
                mode=0o666,
                **ways[0],
            )
        except lmdb.MemoryError as error:
            map_bytes //= 2
            if map_bytes < limits.MAP_SIZE_MIN_BYTES:
                raise datafile.file_error(
                    path, error, "mapped; allow this process more address space (ulimit -v)"
                ) from error
        except lmdb.Error as error:
            if "already open" in str(error):
                raise FileError(
                    f"{path}: its lock file is in use in this process, by a file since deleted or by other code; "
                    "close that first"
                ) from error
            if error.code not in datafile.NOT_ALLOWED or len(ways) == 1:
                raise datafile.file_error(path, error, "opened") from error
            del ways[0]


def _verify(path: str) -> list[str]:
    from lmdb import verify

    try:
        return list(verify.verify(path, subdir=False))
    except verify.VerifyError as error:
        return [str(error)]


def _before_fork() -> None:
    # So that the child finds the registry whole.
    _registry_lock.acquire()


def _after_fork_in_parent() -> None:
    _registry_lock.release()


def _after_fork_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    inherited = list(_registry.values())
    _registry.clear()
    for core in inherited:
        core.abandon()
    if inherited:
        _let_child_reopen()


def _let_child_reopen() -> None:
    """Make lmdb forget the parent's open files: it would refuse them here, and the parent's must not be closed."""
    envid = sys.modules.get("lmdb._envid")
    original = getattr(envid, "env_keys", None)
    if original is None or hasattr(original, "per_process"):
        return

    def env_keys(path: object, subdir: bool) -> tuple[object, ...]:
        return tuple((os.getpid(), key) for key in original(path, subdir))

    env_keys.per_process = True  # type: ignore[attr-defined]
    envid.env_keys = env_keys  # type: ignore[union-attr]


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
