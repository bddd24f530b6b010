"""Files in and out of the system's page cache (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_PROT_READ, _MAP_SHARED = 1, 1


def drop(path: Path) -> None:
    """Ask for the pages of a file to be dropped; those that a process has mapped stay."""
    file = os.open(path, os.O_RDONLY)
    try:
        # Only clean pages can be dropped.
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def fill(path: Path) -> None:
    """Read a file, so that its pages are in the cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def resident_share(path: Path) -> float:
    """The share of a file's pages that is in the cache, by mincore."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    file = os.open(path, os.O_RDONLY)
    try:
        address = libc.mmap(None, size, _PROT_READ, _MAP_SHARED, file, 0)
    finally:
        os.close(file)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"cannot map {path}")
    try:
        if libc.mincore(address, size, states) != 0:
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
    finally:
        libc.munmap(address, size)
    return sum(state & 1 for state in bytes(states)) / pages
