"""A database as it is at one commit, for as many calls as are wanted: all of them read in the same transactions."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType

import featuredb as fdb
from featuredb.storage.env import Env, ReadTxn
from featuredb.storage.moving import STATE_KEY, is_marked, settle

_PAUSE_SECONDS = 0.001


class _Borrowed(ReadTxn):
    """A transaction that somebody else began and will end."""

    __slots__ = ()

    def __init__(self, txn: ReadTxn) -> None:
        self._core, self._txn, self.thread, self.views = txn._core, txn._txn, txn.thread, txn.views

    def __enter__(self) -> _Borrowed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


class OneCommit(Env):
    """A handle whose reads are those of `hold`, until `let_go`."""

    def __init__(self, base: Env) -> None:
        self.path = base.path
        self._base = base
        self._open = ExitStack()
        self._txns: dict[bool, ReadTxn] = {}

    def hold(self) -> None:
        """Begin to read the newest commit, in both kinds of transactions: with views, and with copies."""
        while True:
            self.let_go()
            first = self._open.enter_context(self._base.read(True))
            settle(first)
            second = self._open.enter_context(self._base.read(False))
            # A marked file is about to be replaced: whoever reads it looks for another at every call.
            if first.id() == second.id() and not is_marked(first.get(STATE_KEY)):
                self._txns = {True: first, False: second}
                return
            self.let_go()
            time.sleep(_PAUSE_SECONDS)

    def let_go(self) -> None:
        """End the transactions."""
        self._txns = {}
        self._open.close()

    def commit(self) -> int:
        """Number of the commit that is held; in one process it grows."""
        return self._txns[True].id()

    def read(self, views: bool = True) -> ReadTxn:
        return _Borrowed(self._txns[views])

    def close(self) -> None:
        self.let_go()


def at_one_commit(db: fdb.Database) -> tuple[fdb.Database, OneCommit]:
    """A database that reads what the second holds."""
    held = OneCommit(db._env)
    held.hold()
    return fdb.Database(held, read_only=True, durable=False, timeout=0.0, folder=None), held
