"""The part of the `Database` facade that holds commits, and reads at them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from featuredb.storage.env import Env, WriteTxn
from featuredb.storage.moving import settle
from featuredb.storage.registry import StoredTable, read_registry
from featuredb.storage.segment import SegmentCache
from featuredb.storage.snapshots import (
    Snapshot,
    SnapshotEnv,
    create_snapshot,
    drop_snapshot,
    find_snapshot,
    snapshots,
)

if TYPE_CHECKING:
    from featuredb.database import Database
    from featuredb.offline.dictionary import KeyDictionary


class Snapshots:
    """Methods of `Database`."""

    _env: Env
    _durable: bool
    _check_open: Callable[[], None]
    _writer: Callable[[], AbstractContextManager[None]]
    _merge: Callable[[StoredTable], None]
    _timeout: float
    _in_memory: bool
    _cache: SegmentCache
    _dictionaries: dict[int, KeyDictionary]

    def snapshot(self, name: str) -> Snapshot:
        """Hold the current commit under a name, so that it can be read until ``drop_snapshot``.

        Nothing is copied but the definitions. While it is held, the history it has stays in the file, and
        online values that are overwritten are kept once. The snapshot itself is one commit of the log.

        Parameters
        ----------
        name : str
            A letter or ``_`` first, then letters, digits, ``_ . -``.

        Returns
        -------
        Snapshot
            Its ``name``, the ``commit_id`` that it holds, and its ``time``.

        Raises
        ------
        DefinitionError
            If the name is not valid, or there is a snapshot of that name.

        Examples
        --------
        >>> import featuredb as fdb
        >>> with fdb.open(":memory:") as db:
        ...     _ = db.apply(fdb.Entity("city", "string"))
        ...     _ = db.snapshot("before")
        ...     _ = db.apply(fdb.Entity("user", "int64"))
        ...     [entity.name for entity in db.at("before").list_entities()]
        ['city']
        """

        from featuredb.offline.tail import flush_tail

        def work(txn: WriteTxn) -> tuple[Snapshot, list[StoredTable]]:
            tables = list(read_registry(txn).tables.values())
            # A snapshot holds segments.
            for table in tables:
                flush_tail(txn, table)
            return create_snapshot(txn, name, [table.id for table in tables]), tables

        with self._writer():
            snapshot, tables = self._env.write(work, durable=self._durable)
        for table in tables:
            self._merge(table)
        return snapshot

    def list_snapshots(self) -> list[Snapshot]:
        """Every snapshot, oldest first."""
        self._check_open()
        with self._env.read() as txn:
            settle(txn)
            return snapshots(txn)

    def drop_snapshot(self, name: str) -> None:
        """Let go of a snapshot, a commit: what only it held is removed.

        Raises
        ------
        NotFoundError
            If there is none of that name.
        """
        with self._writer():
            self._env.write(lambda txn: drop_snapshot(txn, name), durable=self._durable)

    def at(self, name: str) -> Database:
        """A view of definitions, log, history and online values as they were at a snapshot.

        It has the methods of a `Database`; those that write raise `ReadOnlyError`. It needs no closing, and
        is of no use once this database is closed or the snapshot dropped. Max ages of online values
        are still measured from ``now``.

        Raises
        ------
        NotFoundError
            If there is no such snapshot; also from every call on the view once it was dropped.
        """
        from featuredb.database import Database

        self._check_open()
        with self._env.read() as txn:
            settle(txn)
            snapshot, definitions = find_snapshot(txn, name)
        base, owner = (self._env.base, self._env.owner) if isinstance(self._env, SnapshotEnv) else (self._env, self)
        env = SnapshotEnv(base, owner, snapshot, definitions)
        view = Database(env, read_only=False, durable=self._durable, timeout=self._timeout, folder=None)
        # Segments and entity keys are the same ones, so what is known of them is shared.
        view._cache, view._dictionaries = self._cache, self._dictionaries
        view._in_memory = self._in_memory
        return view
