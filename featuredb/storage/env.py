"""The storage engine: files are opened here, or shared with who has them open in this process."""

from __future__ import annotations

import contextlib
import os

from featuredb import limits
from featuredb.errors import FileError
from featuredb.storage import core as cores
from featuredb.storage import datafile
from featuredb.storage.core import Core
from featuredb.storage.engine import create_file, open_files
from featuredb.storage.handle import Env
from featuredb.storage.pages import file_faults
from featuredb.storage.txn import ReadTxn, WriteTxn

__all__ = ["Env", "ReadTxn", "WriteTxn", "open_env"]


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
    while True:
        _follow_at(path)
        with cores.registry_lock:
            if create and not readonly and not os.path.lexists(path):
                create_file(path)
            core = _shared(path)
            if core is None:
                record = datafile.check(path, file_faults)
                held = cores.registry.values()
                if any((one.path, one.record, one.refusal) == (path, record, None) for one in held):
                    continue  # replaced by another process since
                core = _open_core(path, record, readonly=readonly, durable=durable, map_bytes=map_bytes)
            elif core.readonly and not readonly:
                raise FileError(f"{path}: is open read-only in this process, as it was not writable; close it first")
            core.handles += 1
        return Env(core, path, readonly=readonly, durable=durable)


def _follow_at(path: str) -> None:
    """Let what this process has open at `path` go over to the file that is there now."""
    with cores.registry_lock:
        held = [core for core in cores.registry.values() if core.path == path]
    for core in held:
        # One whose file was deleted stays as it is: its users are told, and not whoever opens another file.
        with contextlib.suppress(FileError):
            core.follow(patient=True)


def _shared(path: str) -> Core | None:
    try:
        return cores.registry.get(datafile.key_at(path))
    except FileError:
        return None


def _open_core(path: str, record: bytes, *, readonly: bool, durable: bool, map_bytes: int | None) -> Core:
    map_bytes = map_bytes or limits.MAP_SIZE_BYTES
    engine, fd = open_files(path, readonly=readonly, durable=durable, map_bytes=map_bytes)
    core = Core(path, record, engine, fd, durable, map_bytes)
    cores.registry[core.key] = core
    return core
