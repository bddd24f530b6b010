"""The repair of a file whose pages are sound, step by step, and what its steps share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.errors import CorruptionError
from featuredb.limits import NS_PINNED, NS_SEGMENT, NS_SNAPSHOT, NS_STAGED, NS_UNDO
from featuredb.storage.env import WriteTxn
from featuredb.storage.log import append_commit
from featuredb.storage.manifest import pinned_manifests, staged_segments
from featuredb.storage.records import unpack
from featuredb.storage.registry import Registry, StoredTable
from featuredb.verify.report import Check, Finding
from featuredb.verify.strays import heads

# Rows may be of any commit until the log is repaired, which goes by what commits they are of.
_ANY_COMMIT = (1 << 63) - 1


@dataclass
class Repair:
    """A repair under way.

    Attributes
    ----------
    staged : set of (int, int)
        Table and number of segments that no commit named yet.
    held : set of (int, int or None)
        Of those that snapshots hold, live or not; with None a table of which they hold what cannot be told.
    key_counts, forgotten
        As in `Check`, of the key spaces once they are in order.
    operations : dict of int to str
        Operation of each commit, once the log is in order.
    tables_lost : set of int
        Tables that have lost rows of history.
    """

    txn: WriteTxn
    lost: list[Finding] = field(default_factory=list)
    registry: Registry = field(default_factory=Registry)
    staged: set[tuple[int, int]] = field(default_factory=set)
    held: set[tuple[int, int | None]] = field(default_factory=set)
    key_counts: dict[int, int] = field(default_factory=dict)
    forgotten: dict[int, Any] = field(default_factory=dict)
    operations: dict[int, str] = field(default_factory=dict)
    tables_lost: set[int] = field(default_factory=set)

    def lose(self, what: str, **where: Any) -> None:
        """Note what is lost."""
        self.lost.append(Finding(what, **where))

    def check(self, level: str = "full") -> Check:
        """A fresh check, which knows what is in order so far."""
        return Check(
            self.txn,
            level,
            registry=self.registry,
            operations=self.operations,
            last_commit=max(self.operations, default=_ANY_COMMIT),
            key_counts=self.key_counts,
            forgotten=self.forgotten,
        )

    def has_key(self, table: StoredTable, codes: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Whether each code stands for an entity key."""
        space = table.space_id
        return (codes >= 0) & (codes < self.key_counts.get(space, 0)) & ~np.isin(codes, self.forgotten.get(space, ()))

    @property
    def last_commit(self) -> int:
        return max(self.operations, default=0)


def repair(txn: WriteTxn) -> tuple[int, list[Finding]]:
    """Take out what is damaged, and make what follows from the rest anew; the last commit before, and what is lost."""
    from featuredb.recovery.definitions import repair_definitions, repair_keys, repair_log
    from featuredb.recovery.history import drop_strays, repair_history
    from featuredb.recovery.online import repair_online, repair_rest

    work = Repair(txn)
    _drop_snapshots(work)
    repair_definitions(work)
    repair_keys(work)
    tables = list(work.registry.tables.values())
    for table in tables:
        repair_history(work, table)
    drop_strays(work)
    repair_log(work)
    for table in tables:
        repair_online(work, table)
        repair_rest(work, table)
    append_commit(txn, "salvage", None, 0)
    return work.last_commit, work.lost


def _drop_snapshots(work: Repair) -> None:
    """Let go of snapshots, and of what is staged: what they hold would have to be whole."""
    txn = work.txn
    work.staged = set(staged_segments(txn))
    check = work.check()
    for head in heads(txn, NS_PINNED, 4):
        table_id = int.from_bytes(head, "big")
        try:
            work.held |= {(table_id, ref.id) for _, held in pinned_manifests(txn, table_id) for ref in held.segments}
        except CorruptionError:
            work.held.add((table_id, None))
    for key, raw in txn.scan(NS_SNAPSHOT):
        name = f"number {int.from_bytes(key[1:], 'big')}"
        with check.guarded():
            name = repr(unpack(key, raw, "a snapshot")[0])
        work.lose(f"snapshot {name}")
    for namespace in (NS_STAGED, NS_PINNED, NS_SNAPSHOT, NS_UNDO):
        txn.delete_prefix(namespace)


def descriptors(work: Repair, table_id: int) -> list[int]:
    """Numbers of the segments of a table that have a descriptor and were named by a manifest, perhaps a snapshot's."""
    prefix = NS_SEGMENT + table_id.to_bytes(4, "big")
    numbers = [int.from_bytes(key[5:], "big") for key, _ in work.txn.scan(prefix) if len(key) == 13]
    return [number for number in numbers if (table_id, number) not in work.staged]
