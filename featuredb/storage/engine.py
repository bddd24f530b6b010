"""LMDB itself: how its environments are opened, and what its errors mean. The only importer of lmdb."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterable
from itertools import chain
from typing import Any

import lmdb
from lmdb import Error as EngineError
from lmdb import MapFullError, MapResizedError, ReadersFullError

from featuredb import limits
from featuredb.errors import BusyError, CorruptionError, FileError, LimitError
from featuredb.storage import datafile
from featuredb.storage.txn import LMDB_KEY_BYTES_MAX

__all__ = [
    "NEW_MAP_BYTES",
    "EngineError",
    "MapFullError",
    "MapResizedError",
    "ReadersFullError",
    "create_file",
    "let_child_reopen",
    "new_engine",
    "open_files",
    "reader_table",
    "translated",
    "write_entries",
]

NEW_MAP_BYTES = 1 << 20
_BATCH_BYTES = 1 << 26
_CORRUPT = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)


def new_engine(path: str, map_bytes: int, mode: int = 0o666) -> Any:
    """The environment of a new file that no one else knows yet. Nothing is synced but by ``sync(True)``."""
    return lmdb.open(
        path, subdir=False, lib_version=0, lock=False, sync=False, map_size=map_bytes, max_dbs=0, mode=mode
    )


def write_entries(path: str, entries: Iterable[tuple[bytes, bytes]], map_bytes: int) -> None:
    """Write entries, in any order, to a new file; of those of one key the first counts."""
    engine = new_engine(path, map_bytes)
    try:
        rest = iter(entries)
        for first in rest:
            nbytes = 0
            with engine.begin(write=True) as txn:
                for key, value in chain((first,), rest):
                    txn.put(key, value, overwrite=False)
                    nbytes += len(value)
                    if nbytes >= _BATCH_BYTES:
                        break
        engine.sync(True)
    except EngineError as error:
        raise datafile.file_error(path, error, "written") from error
    finally:
        engine.close()


def create_file(path: str) -> None:
    """Make a file with nothing but its format record, unless another process is faster."""
    temporary = datafile.temporary_name(path)
    record = datafile.encode_format(uuid.uuid4().hex, time.time_ns() // 1000)
    try:
        engine = new_engine(temporary, NEW_MAP_BYTES)
        try:
            with engine.begin(write=True) as txn:
                txn.put(limits.NS_FORMAT, record)
            engine.sync(True)
        finally:
            engine.close()
        # If another process was faster, its file is opened.
        datafile.publish(temporary, path)
    except (OSError, EngineError) as error:
        raise datafile.file_error(path, error, "created") from error
    finally:
        datafile.discard(temporary)


def open_files(path: str, *, readonly: bool, durable: bool, map_bytes: int) -> tuple[Any, int]:
    """The environment at `path`, and a descriptor of its data file."""
    datafile.check_lock_file(f"{path}-lock")
    while True:
        try:
            fd, writable = os.open(path, os.O_RDWR | os.O_CLOEXEC), True
        except OSError as error:
            if not readonly:
                raise datafile.file_error(path, error, "opened for writing") from error
            fd, writable = os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
        try:
            engine = _open_engine(path, writable, readonly, durable, map_bytes)
            try:
                # Another process may have replaced the file between the two.
                if datafile.key_at(path) == datafile.key_of(fd):
                    with contextlib.suppress(EngineError):
                        engine.reader_check()
                    return engine, fd
            except BaseException:
                engine.close()
                raise
            engine.close()
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _open_engine(path: str, writable: bool, readonly: bool, durable: bool, map_bytes: int) -> Any:
    """The environment of the file at `path`; with less of a map if the system grants no more."""
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
                raise translated(path, error, "opened") from error
            del ways[0]


def reader_table(engine: Any) -> list[tuple[int, int]]:
    """Of each open read its process, and the transaction that it holds."""
    lines = (line.split() for line in engine.readers().splitlines())
    # A line has process, thread and transaction; "-" for a slot that waits to be used again.
    return [(int(line[0]), int(line[2])) for line in lines if len(line) == 3 and line[2].isdigit()]


def translated(path: str, error: Exception, done: str = "read or written") -> Exception:
    """The error of ours that says what the engine's `error` means; any other as it is."""
    if not isinstance(error, lmdb.Error):
        return error
    if isinstance(error, _CORRUPT):
        return CorruptionError(f"{path}: is damaged ({error}); restore it from a backup")
    if isinstance(error, lmdb.BadValsizeError):
        return LimitError(f"{path}: a key is empty or longer than {LMDB_KEY_BYTES_MAX} bytes, or a value is too long")
    if isinstance(error, lmdb.ReadersFullError):
        return BusyError(f"{path}: too many concurrent reads ({limits.READERS_MAX}); finish some, then retry")
    if isinstance(error, lmdb.MemoryError):
        return FileError(f"{path}: out of memory ({error}); write less at a time or allow this process more memory")
    if isinstance(error, lmdb.PanicError):
        return FileError(f"{path}: an earlier write failed ({error}); close and reopen it")
    return datafile.file_error(path, error, done)


def let_child_reopen() -> None:
    """Make lmdb forget the parent's open files: it would refuse them here, and the parent's must not be closed."""
    envid = sys.modules.get("lmdb._envid")
    original = getattr(envid, "env_keys", None)
    if original is None or hasattr(original, "per_process"):
        return

    def env_keys(path: object, subdir: bool) -> tuple[object, ...]:
        return tuple((os.getpid(), key) for key in original(path, subdir))

    env_keys.per_process = True  # type: ignore[attr-defined]
    envid.env_keys = env_keys  # type: ignore[union-attr]
