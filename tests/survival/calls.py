"""Every call of this process that writes or syncs goes through a handler, which may look, fail, or cut it short.

LMDB's calls are redirected in its offset table (`got`); those of featuredb itself are replaced in the module ``os``. It
lasts for the life of the process: only children use it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lmdb.cpython

from .got import redirect, slots

_os_write = os.write
_libc = ctypes.CDLL(None, use_errno=True)
_int, _size, _off, _pointer, _ssize = (
    ctypes.c_int,
    ctypes.c_size_t,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_ssize_t,
)


@dataclass
class Call:
    """A call of the system that is about to be made.

    Attributes
    ----------
    kind : str
        ``write``, ``sync``, ``truncate``, or a change of names: ``create``, ``link``, ``rename``, ``unlink``.
    fd : int
        The descriptor; -1 for a change of names.
    offset, data
        Of a write.
    names : tuple of str
        Of a change of names: the path, or source and target.
    length : int
        Of a truncation.
    """

    kind: str
    fd: int = -1
    offset: int = 0
    data: bytes = b""
    names: tuple[str, ...] = ()
    length: int = 0

    @property
    def path(self) -> str:
        """The file that is written or synced, or the first name."""
        return self.names[0] if self.names else os.readlink(f"/proc/self/fd/{self.fd}")

    @property
    def durable(self) -> bool:
        """Whether a write through this descriptor is a sync as well."""
        return bool(fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_DSYNC)


# What a handler is given beside the call: makes it (a write: of so many bytes at most) and returns its result.
Go = Callable[[int | None], int]
# Returns the result of the call; raises OSError to make it fail.
Handler = Callable[[Call, Go], int]
_handler: Handler = lambda call, go: go(None)  # noqa: E731
_kept: list[Any] = []


def intercept(handler: Handler) -> None:
    """Send every call through `handler` from now on."""
    global _handler
    _handler = handler
    if not _kept:
        _redirect_lmdb()
        _replace_in_os()


def _handled(call: Call, go: Go) -> int:
    """For the C side: the result, or -1 and ``errno``."""
    try:
        if call.path.endswith("-lock"):
            return go(None)
        return _handler(call, go)
    except OSError as error:
        ctypes.set_errno(error.errno or errno.EIO)
        return -1
    except BaseException:
        # ctypes would print this and go on.
        traceback.print_exc()
        os._exit(70)


# --- LMDB -------------------------------------------------------------------------------------


def _real(result: int) -> int:
    """The result of a function of libc, its error raised."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _pwrite(fd: int, buffer: int, size: int, offset: int) -> int:
    def go(size_max: int | None) -> int:
        wanted = size if size_max is None else min(size, size_max)
        return _real(_libc.pwrite(fd, _pointer(buffer), _size(wanted), _off(offset)))

    return _handled(Call("write", fd, offset, ctypes.string_at(buffer, size)), go)


def _write(fd: int, buffer: int, size: int) -> int:
    def go(size_max: int | None) -> int:
        return _os_write(fd, data[:size_max])

    data = ctypes.string_at(buffer, size)
    return _handled(Call("write", fd, os.lseek(fd, 0, os.SEEK_CUR), data), go)


def _writev(fd: int, vector: int, count: int) -> int:
    pairs = (ctypes.c_size_t * (2 * count)).from_address(vector)
    data = b"".join(ctypes.string_at(pairs[2 * i], pairs[2 * i + 1]) for i in range(count))

    def go(size_max: int | None) -> int:
        return _os_write(fd, data[:size_max])

    return _handled(Call("write", fd, os.lseek(fd, 0, os.SEEK_CUR), data), go)


def _fsync(fd: int) -> int:
    return _handled(Call("sync", fd), lambda _: _real(_libc.fsync(fd)))


def _fdatasync(fd: int) -> int:
    return _handled(Call("sync", fd), lambda _: _real(_libc.fdatasync(fd)))


def _ftruncate(fd: int, length: int) -> int:
    return _handled(Call("truncate", fd, length=length), lambda _: _real(_libc.ftruncate(fd, _off(length))))


def _msync(address: int, size: int, flags: int) -> int:
    os.write(2, b"LMDB writes through its map, which is not intercepted\n")
    os._exit(70)


_FUNCTIONS: dict[str, tuple[Callable[..., int], tuple[Any, ...]]] = {
    "pwrite": (_pwrite, (_ssize, _int, _pointer, _size, _off)),
    "write": (_write, (_ssize, _int, _pointer, _size)),
    "writev": (_writev, (_ssize, _int, _pointer, _int)),
    "fsync": (_fsync, (_int, _int)),
    "fdatasync": (_fdatasync, (_int, _int)),
    "ftruncate": (_ftruncate, (_int, _int, _off)),
    "msync": (_msync, (_int, _pointer, _size, _int)),
}


def _redirect_lmdb() -> None:
    found = slots(os.path.realpath(lmdb.cpython.__file__), _FUNCTIONS)
    missing = {"pwrite", "writev", "fdatasync"} - found.keys()
    if missing:
        raise LookupError(f"lmdb does not call {', '.join(sorted(missing))} through its table: it was built otherwise")
    for name, addresses in found.items():
        function, kinds = _FUNCTIONS[name]
        callback = ctypes.CFUNCTYPE(*kinds, use_errno=True)(function)
        _kept.append(callback)
        address = ctypes.cast(callback, _pointer).value
        assert address is not None
        redirect(addresses, address)


def _if_file(call: Call) -> Call | None:
    """The call with its offset; None for a pipe or terminal."""
    if not call.path.startswith("/") or not os.path.isfile(call.path):
        return None
    call.offset = os.lseek(call.fd, 0, os.SEEK_CUR)
    return call


# --- featuredb's own --------------------------------------------------------------------------


def _replace_in_os() -> None:
    def replace(name: str, call_of: Callable[..., Call | None]) -> None:
        real = getattr(os, name)

        def through(*arguments: Any, **named: Any) -> Any:
            call = call_of(*arguments, **named)
            if call is None or call.path.endswith("-lock"):
                return real(*arguments, **named)
            outcome: list[Any] = [None]

            def go(size_max: int | None) -> int:
                if size_max is not None:
                    outcome[0] = real(arguments[0], arguments[1][:size_max], *arguments[2:])
                else:
                    outcome[0] = real(*arguments, **named)
                return outcome[0] if isinstance(outcome[0], int) else 0

            _handler(call, go)
            return outcome[0]

        setattr(os, name, through)
        _kept.append(real)

    def created(path: Any, flags: int, *_: Any, **__: Any) -> Call | None:
        return Call("create", names=(os.fspath(path),)) if flags & os.O_CREAT else None

    for name in ("fsync", "fdatasync"):
        replace(name, lambda fd: Call("sync", fd))
    replace("write", lambda fd, data: _if_file(Call("write", fd, data=bytes(data))))
    replace("pwrite", lambda fd, data, offset: Call("write", fd, offset, bytes(data)))
    replace("ftruncate", lambda fd, length: Call("truncate", fd, length=length))
    replace("open", created)
    replace("link", lambda old, new: Call("link", names=(old, new)))
    replace("unlink", lambda path: Call("unlink", names=(os.fspath(path),)))
    for name in ("replace", "rename"):
        replace(name, lambda old, new: Call("rename", names=(os.fspath(old), os.fspath(new))))
