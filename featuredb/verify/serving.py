"""Checks of the online values: each is whole, and is the latest row of its key's history.

A key may differ from history only because the user loaded the two apart. The log tells: a row of history
that online lacks was loaded by ``ingest offline``, an online row that history lacks by ``ingest online``, or perhaps
by a commit whose record was lost before the file was salvaged. Any other deviation is damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.errors import CorruptionError
from featuredb.limits import VERIFY_FINDINGS_MAX
from featuredb.online.index import BATCH_ROWS, OnlineIndex, OnlineRows
from featuredb.storage.keys import decode_keys
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.log import LOST
from featuredb.storage.pending import pending_since
from featuredb.storage.registry import StoredTable
from featuredb.verify.report import Check
from featuredb.verify.values import value_faults

_OFFLINE, _ONLINE = ("ingest offline",), ("ingest online", LOST)


@dataclass
class _History:
    """The latest row of each code of a table; ``served`` marks those that have an online value."""

    codes: NDArray[np.int32]
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    commit: NDArray[np.uint64]
    columns: dict[str, Column]
    served: NDArray[np.bool_]

    def places(self, codes: NDArray[np.int32]) -> NDArray[np.int64]:
        """Where each code is in ``codes``, -1 if it is not."""
        if not len(self.codes):
            return np.full(len(codes), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[at] == codes, at, -1)


def check_pending(check: Check, table: StoredTable) -> None:
    """The mark of what incremental materialize has before it is of a logged commit."""
    since = pending_since(check.txn, table.id)
    if since is None:
        return
    if not table.definition.online:
        check.problem("it has rows to materialize, and is defined as offline only", table=table.name)
    if not 1 <= since <= check.last_commit:
        check.problem(f"its rows to materialize begin with commit {since}, which is not logged", table=table.name)


def check_online(check: Check, table: StoredTable, *, sound: bool) -> None:
    """Check the online values of a table, against its history if that is `sound`."""
    index, space = OnlineIndex(table), KeySpace(table.space_id)
    if not table.definition.online:
        if next(check.txn.scan(index.prefix), None) is not None:
            check.problem("it has online values, and is defined as offline only", table=table.name)
        return
    if check.level == "quick":
        check.online_keys += sum(1 for _ in check.txn.scan(index.prefix))
        return
    comparer = _Comparer(check, table) if sound and table.space_id in check.key_counts else None
    for keys, rows, damaged in batches(check, table, index):
        if key_faults(table, keys):
            for key in keys.tolist():
                for fault in key_faults(table, Heap.of([key])):
                    check.problem(f"online: {fault}", table=table.name, key=key_text(table, key))
        for name, column in rows.columns.items():
            for fault in value_faults(column):
                check.problem(f"online: {fault}", table=table.name, column=name)
        if len(rows.commit) and int(rows.commit.max()) > check.last_commit:
            check.problem("an online row is of a commit that is not logged", table=table.name)
        if comparer is not None:
            comparer.compare(keys, rows, space.lookup(check.txn, keys.tolist()))
            comparer.skip(space.lookup(check.txn, damaged))
    if comparer is not None:
        comparer.finish(space)


def key_faults(table: StoredTable, keys: Heap) -> list[str]:
    """What is wrong with online keys, which may be in no dictionary."""
    try:
        columns = decode_keys(keys, table.key_dtypes)
    except CorruptionError as error:
        return [str(error)]
    named = zip(table.definition.entities, columns, strict=True)
    return [f"entity {entity}: {fault}" for entity, column in named for fault in value_faults(column)]


def batches(check: Check, table: StoredTable, index: OnlineIndex) -> Iterator[tuple[Heap, OnlineRows, list[bytes]]]:
    """Online rows in key order, a batch at a time, and the keys of those that are damaged."""
    entries = check.txn.scan(index.prefix)
    while batch := list(islice(entries, BATCH_ROWS)):
        keys = [bytes(key[len(index.prefix) :]) for key, _ in batch]
        check.online_keys += len(keys)
        damaged: list[bytes] = []
        try:
            rows = index.read(check.txn, Heap.of(keys))
        except CorruptionError:
            damaged = [key for key in keys if not _readable(check, table, index, key)]
            keys = sorted(set(keys) - set(damaged))
            rows = index.read(check.txn, Heap.of(keys))
        yield Heap.of(keys), rows, damaged


def _readable(check: Check, table: StoredTable, index: OnlineIndex, key: bytes) -> bool:
    """Whether the row of one key can be decoded; a problem if not."""
    before = check.problem_count
    with check.guarded(table=table.name, key=key_text(table, key)):
        index.read(check.txn, Heap.of([key]))
    return check.problem_count == before


class _Comparer:
    """Compares batches of online rows with the latest rows of history."""

    def __init__(self, check: Check, table: StoredTable) -> None:
        self._check = check
        self._table = table
        self._history = _read_history(check, table)
        self._logged = np.array(list(check.operations), dtype=np.uint64)
        self._operations = np.array(list(check.operations.values()), dtype=np.str_)

    def _loaded_by(self, commits: NDArray[np.uint64], operations: tuple[str, ...]) -> NDArray[np.bool_]:
        """Whether commits are of these operations; one whose log record is damaged may be."""
        logged = np.isin(commits, self._logged)
        return ~logged | np.isin(commits, self._logged[np.isin(self._operations, operations)])

    def _tell(self, what: str, keys: Heap, apart: NDArray[np.bool_]) -> None:
        """Report `keys`, as a difference where they were loaded `apart`, else as a problem."""
        for key in keys.take(np.flatnonzero(apart)).tolist():
            self._check.difference(what, table=self._table.name, key=key_text(self._table, key))
        places = np.flatnonzero(~apart)
        listed = keys.take(places[:VERIFY_FINDINGS_MAX]).tolist()
        for key in listed:
            self._check.problem(what, table=self._table.name, key=key_text(self._table, key))
        if len(places) > len(listed):
            self._check.problem(what, table=self._table.name, count=len(places) - len(listed))

    def skip(self, codes: NDArray[np.int32]) -> None:
        """Codes whose online row is damaged: it is there, and was reported."""
        places = self._history.places(codes)
        self._history.served[places[places >= 0]] = True

    def compare(self, keys: Heap, rows: OnlineRows, codes: NDArray[np.int32]) -> None:
        """One batch, with the code of each key (-1 if unknown)."""
        from featuredb.offline.rows import same_rows

        history = self._history
        places = history.places(codes)
        commit = rows.commit
        self.skip(codes)
        alone = np.flatnonzero(places < 0)
        what = "it has an online value and no rows of history"
        self._tell(what, keys.take(alone), self._loaded_by(commit[alone], _ONLINE))
        both = np.flatnonzero(places >= 0)
        at = places[both]
        same_event = rows.event[both] == history.event[at]
        tied = same_event & (rows.created[both] == history.created[at])
        newer = (rows.event[both] > history.event[at]) | (same_event & (rows.created[both] > history.created[at]))
        ahead, behind = both[newer], both[~newer & ~tied]
        what = "its online value is newer than its history"
        self._tell(what, keys.take(ahead), self._loaded_by(commit[ahead], _ONLINE))
        what = "its online value is older than its latest row of history"
        self._tell(what, keys.take(behind), self._loaded_by(history.commit[places[behind]], _OFFLINE))
        pair, at = both[tied], at[tied]
        same = same_rows(
            {number: rows.columns[name].take(pair) for name, number in self._table.feature_ids.items()},
            {number: history.columns[name].take(at) for name, number in self._table.feature_ids.items()},
            len(pair),
        )
        pair, at = pair[~same], at[~same]
        online, offline = commit[pair], history.commit[at]
        apart = (self._loaded_by(offline, _OFFLINE) & (offline > online)) | (
            self._loaded_by(online, _ONLINE) & (online > offline)
        )
        self._tell("its online value differs from the same row of history", keys.take(pair), apart)

    def finish(self, space: KeySpace) -> None:
        """What history has and online lacks."""
        missing = np.flatnonzero(~self._history.served)
        if len(missing):
            keys = Heap.of([key for block in space.blocks(self._check.txn) for key in block.tolist()])
            apart = self._loaded_by(self._history.commit[missing], _OFFLINE)
            self._tell("it has rows of history and no online value", keys.take(self._history.codes[missing]), apart)


def _read_history(check: Check, table: StoredTable) -> _History:
    from featuredb.offline.gather import Gatherer
    from featuredb.offline.materialize import latest, latest_columns

    codes, found = latest(check.txn, check.cache, table, None, None)
    commit = Gatherer(found).commits().astype(np.uint64)
    served = np.zeros(len(codes), dtype=np.bool_)
    return _History(codes, found.event, found.created, commit, latest_columns(table, found), served)


def key_text(table: StoredTable, key: bytes) -> str:
    """An entity key as text."""
    from featuredb.frames.arrays import to_pylist

    try:
        values = [to_pylist(column)[0] for column in decode_keys(Heap.of([key]), table.key_dtypes)]
    except (CorruptionError, ValueError):
        return key.hex()
    return ", ".join(f"{name}={value!r}" for name, value in zip(table.definition.entities, values, strict=True))
