"""The part of the `Database` facade that looks after the file: facts, checks, copies, and what is to be gone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from featuredb.errors import CorruptionError, InputError
from featuredb.paths import path_text
from featuredb.storage.env import Env, ReadTxn, open_env
from featuredb.storage.log import Commit, commits
from featuredb.storage.manifest import discard_staged
from featuredb.storage.registry import Registry, StoredTable
from featuredb.storage.segment import SegmentCache

if TYPE_CHECKING:
    from featuredb.offline.forget import ForgetReport
    from featuredb.verify import VerifyReport


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What ``compact`` did: length of the file before and after, in bytes, and wall seconds."""

    bytes_before: int
    bytes_after: int
    seconds: float


def _check_copy(path: str) -> None:
    from featuredb.verify import verify_env

    env = open_env(path, create=False, readonly=True, durable=False)
    try:
        report = verify_env(env)
    finally:
        env.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}-lock")
    if not report.ok:
        raise CorruptionError(
            f"the copy is not in order, and was thrown away: {report.problems[0]}; run verify() on the file itself"
        )


class Maintenance:
    """Methods of `Database`."""

    _env: Env
    _durable: bool
    _cache: SegmentCache
    _check_open: Callable[[], None]
    _snapshot: Callable[[], AbstractContextManager[tuple[ReadTxn, Registry]]]
    _writer: Callable[[], AbstractContextManager[None]]
    _merge: Callable[[StoredTable], None]

    def info(self) -> dict[str, Any]:
        """Facts about the file: sizes in bytes, the last commit, and for each table rows, segments and keys.

        ``used_bytes`` are ``live_bytes``, ``free_bytes`` and ``pinned_bytes``: the last would be free, were it not
        for readers of older commits. ``oldest_reader`` tells the process (``pid``) that reads the oldest commit,
        and how many transactions have been committed since (``age``); None if all read the newest. Of each of the
        ``snapshots`` it tells the bytes that no other keeps.

        Returns
        -------
        dict
            Plain values, as ``featuredb info --json`` prints them.
        """
        from featuredb.info import database_info

        with self._snapshot() as (txn, registry):
            return database_info(self._env, txn, registry, self._cache)

    def log(self) -> list[Commit]:
        """Every commit, oldest first."""
        with self._snapshot() as (txn, _):
            return list(commits(txn))

    def verify(self, level: Literal["quick", "full"] = "full") -> VerifyReport:
        """Check the whole file: pages, checksums, structure, order, and that online equals history's latest.

        The pages are checked first, without the engine, which would trust them: if any of them is damaged, the
        report says so and nothing else is read.

        Parameters
        ----------
        level : {"full", "quick"}
            ``"quick"`` reads no values: it checks pages, definitions, log, entity keys, manifests, descriptors,
            tails, and that every chunk is there and of its length, but not the checksums of chunks and online rows,
            nor order, nor that online equals history. A damaged value it does not find.

        Returns
        -------
        VerifyReport
            ``ok``, and everything found; it does not raise on damage.

        Raises
        ------
        InputError
            If `level` is neither of the two.
        BusyError
            If others commit so fast that the file's first pages cannot be read.
        """
        from featuredb.verify import verify_env

        self._check_open()
        if level not in ("quick", "full"):
            raise InputError(f"level must be 'quick' or 'full', not {level!r}")
        return verify_env(self._env, level)

    def backup(self, path: str | os.PathLike[str], *, check: bool = False) -> None:
        """Write a consistent, compacted copy to a new file while others read and write.

        It has nothing of what was replaced, deleted or forgotten before, save what a segment that has not been
        merged since holds of replaced rows. (Other backups made before a ``forget`` have what they had.)

        Parameters
        ----------
        path : str or os.PathLike
            A name that is not taken. The copy gets it once it is whole, and on disk.
        check : bool
            Verify the copy before it gets its name: as long as `verify` takes.

        Raises
        ------
        FileError
            If `path` exists or cannot be written.
        CorruptionError
            If the copy that was to be checked is not in order. There is no file at `path`.
        """
        self._check_open()
        self._env.copy(path_text(path), _check_copy if check else None)

    def forget(self, keys: Any, tables: str | Sequence[str] | None = None) -> ForgetReport:
        """Remove entities from history, online values and the dictionary of keys, in one commit.

        After a `compact` their bytes are nowhere in the file. (Backups made before have what they had.) A key that
        is ingested again starts afresh. The log tells how many rows were removed, and not of which keys.

        Parameters
        ----------
        keys : list of dicts, dict of sequences or arrays, or dataframe
            A column for each entity that is named. A table of more entities loses every row with these: with
            tables of (user) and (user, item), ``{"user": [7]}`` means all that is stored of user 7.
        tables : str or sequence of str, optional
            Only from these feature tables; the keys stay in the dictionary if others have rows of them. By default
            from all that have the entities.

        Returns
        -------
        ForgetReport
            Keys found and not found, rows and online values removed. With nothing to forget there is no commit.

        Raises
        ------
        InputError
            If a column is no entity, a value is null or of a wrong dtype, no table has the entities, or a snapshot
            holds rows of the keys. Nothing is changed.
        NotFoundError
            If there is no table of a name in `tables`.
        BusyError
            If another writer held the file for longer than the timeout.

        Notes
        -----
        Segments with rows of the keys are written anew, one at a time: the rows of one are held in memory, 33
        million at most. Of rejected rows those go that show a forgotten value in a column of its entity, as far as
        the shortened text tells; what else a rejected row shows, such as the value of a feature, does not say of
        which key it was. Keys named by some of a table's entities are looked for among all keys of the table.

        Examples
        --------
        >>> import featuredb as fdb
        >>> with fdb.open(":memory:") as db:
        ...     table = fdb.FeatureTable("t", ["user"], [fdb.Feature("x", "int64")])
        ...     _ = db.apply([fdb.Entity("user", "int64"), table])
        ...     _ = db.ingest("t", {"user": [7, 8], "event_timestamp": ["2024-05-01"] * 2, "x": [1, 2]})
        ...     report = db.forget({"user": [7, 9]})
        ...     _ = db.compact()
        ...     print(report.keys_found, report.keys_not_found, report.rows_removed)
        ...     print(db.get_online_features(["t:x"], {"user": [7, 8]}).to_dict())
        1 1 {'t': 1}
        {'user': [7, 8], 'x': [None, 2]}
        """
        from featuredb.offline.forget import forget, given_keys

        began = time.perf_counter()
        with self._snapshot() as (_, registry):
            given = given_keys(registry, keys, tables)
        with self._writer():
            report = self._env.write(lambda txn: forget(txn, self._cache, given, tables), durable=self._durable)
        for table in registry.tables.values():
            self._merge(table)
        return replace(report, seconds=time.perf_counter() - began)

    def compact(self) -> CompactReport:
        """Merge every table's segments, and write the file anew, so that what is gone is nowhere in it.

        Replaced rows go with the merging. Then every live entry is written to a new file beside this one, on
        pages that never held anything else, and that is renamed over it: its permissions are kept, of a symbolic
        link the target is replaced, and of hard links just this one. A call that fails, or a process that is
        killed, leaves the old file or the new one, whole.

        This database, its snapshot views and prepared readers go on with the new file. So do other processes
        that have the file open, with their next call. The disk must have room for both files. The old one, with
        what was forgotten, is freed when the last process that had it open has made a call or closed it, and its
        open reads have ended.

        Returns
        -------
        CompactReport

        Raises
        ------
        BusyError
            If another writer held the file for longer than the timeout, or a read of this process (such as one
            that is being streamed) stays open. Segments may have been merged.
        FileError
            If the disk is full or the folder cannot be written. Segments may have been merged.

        Examples
        --------
        >>> import featuredb as fdb
        >>> with fdb.open(":memory:") as db:
        ...     table = fdb.FeatureTable("t", ["user"], [fdb.Feature("x", "int64")])
        ...     _ = db.apply([fdb.Entity("user", "int64"), table])
        ...     for value in range(5):
        ...         _ = db.ingest("t", {"user": [1], "event_timestamp": ["2024-05-01"], "x": [value]})
        ...     report = db.compact()
        ...     report.bytes_after < report.bytes_before, db.info()["feature_tables"]["t"]["segments"]
        (True, 1)
        """
        from featuredb.offline.merge import merge_all

        began = time.perf_counter()
        with self._writer():
            # Even of a merge that goes on: it has read what may have been forgotten since.
            discard_staged(self._env, merges=True)
            with self._snapshot() as (_, registry):
                tables = list(registry.tables.values())
            before = self._env.space()["file_bytes"]
            for table in tables:
                merge_all(self._env, self._cache, table, durable=self._durable)
            self._env.rewrite()
            after = self._env.space()["file_bytes"]
        return CompactReport(before, after, time.perf_counter() - began)
