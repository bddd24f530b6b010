"""One writer at a time, across the threads and the processes that have a file open."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time

from featuredb.errors import BusyError, ClosedError, FileError
from featuredb.storage.datafile import key_of

_PAUSE_MIN_SECONDS = 0.0005
_PAUSE_MAX_SECONDS = 0.01


class WriteLock:
    """A thread lock and, behind it, ``flock`` on a descriptor of the data file.

    The kernel drops an ``flock`` when its process dies, and LMDB takes no locks on the data file, so neither
    disturbs the other. (Its lock file must not be touched: closing any descriptor of it drops LMDB's own locks.)

    Parameters
    ----------
    path : str
        For messages.
    fd : int
        A private descriptor of the data file; closed by `close`.
    """

    __slots__ = ("_fd", "_lock", "_path", "owner")

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._lock = threading.Lock()
        self.owner: int | None = None
        """Identifier of the thread that holds the lock."""

    def acquire(self, timeout_seconds: float) -> None:
        """Take the lock, or raise `BusyError` after `timeout_seconds`."""
        if self.owner == threading.get_ident():
            raise BusyError(f"{self._path}: this thread is writing already; finish that write before the next")
        deadline = time.monotonic() + timeout_seconds
        if not self._lock.acquire(timeout=min(max(timeout_seconds, 0.0), threading.TIMEOUT_MAX)):
            raise self._busy(timeout_seconds, "another thread of this process")
        try:
            self._acquire_file(timeout_seconds, deadline)
        except BaseException:
            self._lock.release()
            raise
        self.owner = threading.get_ident()

    def release(self) -> None:
        """Give the lock back; in a forked child, which never held it, nothing."""
        if self._fd < 0:
            return
        self.owner = None
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._lock.release()

    def is_wanted(self) -> bool:
        """Whether a thread of this process holds the lock, or waits for another process to release it."""
        return self._lock.locked()

    def file_bytes(self) -> int:
        """The data file's length now."""
        return os.fstat(self._fd).st_size

    def file_key(self) -> tuple[int, int]:
        """Which data file it is, see `datafile.key_of`."""
        return key_of(self._fd)

    def move(self, fd: int) -> None:
        """Go over to another data file; a lock on its descriptor `fd` stays, that on the one before is dropped.

        The number of the descriptor stays the same, for another thread may be trying to lock it just now.
        """
        os.dup2(fd, self._fd, inheritable=False)

    def close(self) -> None:
        """Close the descriptor. In a forked child this leaves the parent's lock alone."""
        os.close(self._fd)
        self._fd = -1

    def _acquire_file(self, timeout_seconds: float, deadline: float) -> None:
        pause = _PAUSE_MIN_SECONDS
        while True:
            if self._fd < 0:
                raise ClosedError(f"{self._path}: was closed; open it again")
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise FileError(
                        f"{self._path}: its file system cannot lock files ({error.strerror}); put it on a local disk"
                    ) from error
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._busy(timeout_seconds, "another process")
            time.sleep(min(pause, left))
            pause = min(pause * 2, _PAUSE_MAX_SECONDS)

    def _busy(self, timeout_seconds: float, holder: str) -> BusyError:
        return BusyError(
            f"{self._path}: {holder} is writing and did not finish within {timeout_seconds:g} seconds; "
            "try again later or wait longer"
        )
