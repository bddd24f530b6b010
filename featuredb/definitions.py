"""The part of the `Database` facade that creates, changes, reads and deletes definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from featuredb.online.index import OnlineIndex
from featuredb.schema import Definition, Entity, FeatureService, FeatureTable
from featuredb.storage.env import Env, ReadTxn, WriteTxn
from featuredb.storage.log import append_commit
from featuredb.storage.manifest import drop_table
from featuredb.storage.pending import clear_pending
from featuredb.storage.registry import (
    Change,
    Registry,
    StoredTable,
    apply_changes,
    delete_service,
    delete_table,
    listed,
    read_registry,
    write_registry,
)
from featuredb.storage.rejected import clear_rejected
from featuredb.storage.segment import SegmentCache
from featuredb.storage.tail import drop_tail

if TYPE_CHECKING:
    from featuredb.offline.dictionary import KeyDictionary


class Definitions:
    """Methods of `Database`."""

    _env: Env
    _durable: bool
    _cache: SegmentCache
    _snapshot: Callable[[], AbstractContextManager[tuple[ReadTxn, Registry]]]
    _writer: Callable[[], AbstractContextManager[None]]
    _dictionary: Callable[[StoredTable], KeyDictionary]

    def plan(self, objects: Definition | Iterable[Definition]) -> list[Change]:
        """What ``apply(objects)`` would change; raises what it would raise, and changes nothing."""
        with self._snapshot() as (_, registry):
            return apply_changes(registry, objects)[1]

    def apply(self, objects: Definition | Iterable[Definition]) -> list[Change]:
        """Create or change definitions, all of them or none.

        Allowed are new features (old rows read null), removed features (the name stays reserved), and
        any max age, source, labels or description. A source is not touched.

        Parameters
        ----------
        objects : Entity, FeatureTable, FeatureService, or an iterable of them
            In any order; each may use what the same call defines.

        Returns
        -------
        list of Change
            One for each object; ``action`` is create, update or unchanged.

        Raises
        ------
        DefinitionError
            Lists everything that is refused: a changed dtype, changed entities of a table, unknown
            entities, references that do not resolve.
        """
        objects = listed(objects)

        def work(txn: WriteTxn) -> list[Change]:
            old = read_registry(txn)
            new, changes = apply_changes(old, objects)
            if all(change.action == "unchanged" for change in changes):
                return changes
            self._commit_registry(txn, old, new, "apply", None)
            for name, before in old.tables.items():
                self._follow_online(txn, before, new.tables[name])
            return changes

        with self._writer():
            return self._env.write(work, durable=self._durable)

    def _follow_online(self, txn: WriteTxn, before: StoredTable, after: StoredTable) -> None:
        """Drop or fill a table's online values when its `online` has changed."""
        if before.definition.online and not after.definition.online:
            OnlineIndex(before).delete_all(txn)
            clear_pending(txn, before.id)
        elif after.definition.online and not before.definition.online:
            from featuredb.offline.materialize import materialize

            materialize(txn, self._cache, self._dictionary, after, None, None)

    def _commit_registry(self, txn: WriteTxn, old: Registry, new: Registry, operation: str, table: str | None) -> None:
        write_registry(txn, old, new)
        append_commit(txn, operation, table, 0)

    def get_entity(self, name: str) -> Entity:
        """The entity `name`; `NotFoundError` names those there are."""
        with self._snapshot() as (_, registry):
            return registry.entity(name)

    def list_entities(self) -> list[Entity]:
        """Every entity, by name."""
        with self._snapshot() as (_, registry):
            return [registry.entities[name] for name in sorted(registry.entities)]

    def get_feature_table(self, name: str) -> FeatureTable:
        """The feature table `name`; `NotFoundError` names those there are."""
        with self._snapshot() as (_, registry):
            return registry.table(name).definition

    def list_feature_tables(self) -> list[FeatureTable]:
        """Every feature table, by name."""
        with self._snapshot() as (_, registry):
            return [registry.tables[name].definition for name in sorted(registry.tables)]

    def delete_feature_table(self, name: str) -> None:
        """Delete a feature table with its history, online values and rejected rows.

        Raises
        ------
        NotFoundError
            If there is none of that name.
        DefinitionError
            If a feature service reads it.
        """

        def work(txn: WriteTxn) -> None:
            old = read_registry(txn)
            table = old.table(name)
            new = delete_table(old, name)
            drop_table(txn, table.id)
            drop_tail(txn, table.id)
            OnlineIndex(table).delete_all(txn)
            clear_pending(txn, table.id)
            clear_rejected(txn, table.id)
            self._commit_registry(txn, old, new, "delete table", name)

        with self._writer():
            self._env.write(work, durable=self._durable)

    def get_feature_service(self, name: str) -> FeatureService:
        """The feature service `name`; `NotFoundError` names those there are."""
        with self._snapshot() as (_, registry):
            return registry.service(name)

    def list_feature_services(self) -> list[FeatureService]:
        """Every feature service, by name."""
        with self._snapshot() as (_, registry):
            return [registry.services[name] for name in sorted(registry.services)]

    def delete_feature_service(self, name: str) -> None:
        """Delete a feature service; `NotFoundError` if there is none of that name."""

        def work(txn: WriteTxn) -> None:
            old = read_registry(txn)
            self._commit_registry(txn, old, delete_service(old, name), "delete service", None)

        with self._writer():
            self._env.write(work, durable=self._durable)
