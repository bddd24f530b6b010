"""The registry: definitions in the file, and what a change of them may do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from itertools import starmap
from typing import Any, TypeVar

from featuredb.errors import DefinitionError, NotFoundError
from featuredb.limits import (
    BATCH_BYTES_TARGET,
    FEATURES_PER_TABLE_MAX,
    LAYOUTS_MAX,
    NS_DEFINITION,
    ROW_BYTES_MAX,
    TABLES_MAX,
)
from featuredb.schema import DTYPES, Alias, Definition, DType, Entity, Feature, FeatureService, FeatureTable
from featuredb.sources import source_from_record
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.moving import STATE_KEY
from featuredb.storage.records import COUNTER_MAX, decode, pack, text, whole
from featuredb.storage.references import TableUse, resolve

# Numbers of tables, key spaces and features are keys of four bytes, and others are counted on from them.
_NUMBER_MAX = 2_000_000_000
D = TypeVar("D")

_ENTITY, _TABLE, _SERVICE, _SPACE = (NS_DEFINITION + kind for kind in (b"e", b"t", b"s", b"k"))


@dataclass(frozen=True)
class StoredTable:
    """A feature table with the ids that stand for it in the file.

    ``layouts[v]`` lists (feature id, dtype name) of version ``v`` of the packed online row; the last one
    is current. ``reserved`` holds the names of removed features.
    """

    id: int
    space_id: int
    definition: FeatureTable
    key_dtypes: tuple[DType, ...]
    feature_ids: Mapping[str, int]
    layouts: tuple[tuple[tuple[int, str], ...], ...]
    reserved: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.definition.name

    @cached_property
    def dtypes(self) -> dict[str, DType]:
        """Dtype of each feature."""
        return {feature.name: DTYPES[feature.dtype] for feature in self.definition.features}

    def rows_within(self, rows_max: int) -> int:
        """`rows_max`, or fewer if the vectors of so many rows would take more memory than a batch may."""
        width = sum(dtype.numpy.itemsize for dtype in self.dtypes.values() if dtype.is_vector)
        return max(1, min(rows_max, BATCH_BYTES_TARGET // max(width, 1)))

    def dtype_of(self, feature: str) -> DType:
        return self.dtypes[feature]


@dataclass(frozen=True, slots=True)
class Change:
    """What ``apply`` does to one definition: ``action`` is create, update or unchanged."""

    kind: str
    name: str
    action: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.action} {self.kind} {self.name}"
        return f"{text}: {'; '.join(self.details)}" if self.details else text


@dataclass(frozen=True)
class Registry:
    """Every definition of a file at one commit.

    ``version`` rises with each change, so that whoever holds resolved definitions can tell they are old.
    """

    version: int = 0
    next_id: int = 1
    entities: Mapping[str, Entity] = field(default_factory=dict)
    tables: Mapping[str, StoredTable] = field(default_factory=dict)
    services: Mapping[str, FeatureService] = field(default_factory=dict)
    spaces: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def entity(self, name: str) -> Entity:
        return _find(self.entities, name, "entity")

    def table(self, name: str) -> StoredTable:
        return _find(self.tables, name, "feature table")

    def service(self, name: str) -> FeatureService:
        return _find(self.services, name, "feature service")

    def references(
        self, features: str | FeatureService | Sequence[str], aliases: Mapping[str, Alias] | None = None
    ) -> list[tuple[TableUse, str]]:
        """Resolve a service, its name, or a list of ``"table:feature"`` and ``"alias:feature"``."""
        return resolve(self, features, aliases)


def _find(definitions: Mapping[str, D], name: object, kind: str) -> D:
    if isinstance(name, str) and name in definitions:
        return definitions[name]
    known = ", ".join(sorted(definitions)) or "none yet"
    raise NotFoundError(f"no {kind} {name!r} in this file; there is: {known}")


# --- records ----------------------------------------------------------------------------------


def _table_record(table: StoredTable) -> dict[str, Any]:
    definition = table.definition
    source = definition.batch_source
    return {
        "id": table.id,
        "space": table.space_id,
        "entities": list(definition.entities),
        "key_dtypes": [dtype.name for dtype in table.key_dtypes],
        "features": [[table.feature_ids[f.name], f.name, f.dtype, f.description] for f in definition.features],
        "max_age_us": definition.max_age_us,
        "source": None if source is None else source.to_record(),
        "labels": dict(definition.labels),
        "description": definition.description,
        "online": definition.online,
        "layouts": [[list(column) for column in layout] for layout in table.layouts],
        "reserved": list(table.reserved),
    }


def _table_of(name: str, record: Mapping[str, Any]) -> StoredTable:
    max_age_us = record["max_age_us"]
    layouts = tuple(map(_layout_of, record["layouts"]))
    whole(len(layouts), 1, LAYOUTS_MAX)
    definition = FeatureTable(
        name,
        record["entities"],
        [Feature(feature, dtype, text) for _, feature, dtype, text in record["features"]],
        max_age=None if max_age_us is None else timedelta(microseconds=max_age_us),
        batch_source=None if record["source"] is None else source_from_record(record["source"]),
        labels=record["labels"],
        description=record["description"],
        online=record["online"],
    )
    return StoredTable(
        whole(record["id"], 0, _NUMBER_MAX),
        whole(record["space"], 0, _NUMBER_MAX),
        definition,
        tuple(DTYPES[dtype] for dtype in record["key_dtypes"]),
        {feature: whole(number, 0, _NUMBER_MAX) for number, feature, _, _ in record["features"]},
        layouts,
        tuple(map(text, record["reserved"])),
    )


def _layout_of(record: Iterable[Any]) -> tuple[tuple[int, str], ...]:
    layout = tuple((whole(number, 0, _NUMBER_MAX), DTYPES[dtype]) for number, dtype in record)
    # As of the features that it was made for.
    whole(len(layout), 1, FEATURES_PER_TABLE_MAX)
    whole(sum(dtype.numpy.itemsize for _, dtype in layout), 1, ROW_BYTES_MAX)
    return tuple((number, dtype.name) for number, dtype in layout)


def registry_state(txn: ReadTxn) -> bytes:
    """A mark of the definitions in this transaction: it differs after every change of them."""
    raw = txn.get(STATE_KEY)
    return b"" if raw is None else bytes(raw)


def _service_of(name: str, record: Mapping[str, Any]) -> FeatureService:
    # Services stored before there were aliases have none.
    aliases = {alias: Alias(table, keys) for alias, (table, keys) in record.get("aliases", {}).items()}
    return FeatureService(name, record["features"], record["labels"], record["description"], aliases)


# The second byte of the key of a definition.
KINDS = {b"e": "entity", b"t": "feature table", b"s": "feature service", b"k": "key space"}
_MAKERS: dict[bytes, Callable[[str, Any], Any]] = {
    b"e": lambda name, record: Entity(name, **record),
    b"t": _table_of,
    b"s": _service_of,
    b"k": lambda _, number: whole(number, 0, _NUMBER_MAX),
}


def definition_of(key: bytes | memoryview, raw: bytes | memoryview) -> tuple[str, Any]:
    """The name in the key of a definition, and what its record stands for: of a key space the number."""
    kind, raw_name = bytes(key[1:2]), bytes(key[2:])
    name = raw_name.decode(errors="backslashreplace")
    what = f"the definition of {KINDS[kind]} {name!r}"
    return name, decode(key, raw, what, lambda record: _MAKERS[kind](raw_name.decode(), record))


def read_registry(txn: ReadTxn) -> Registry:
    """Every definition of the file."""
    raw = txn.get(STATE_KEY)
    if raw is None:
        return Registry()
    # What may follow says that the file is about to be replaced, see `storage.moving`.
    facts = decode(STATE_KEY, raw, "the registry's state", _state_of)

    def found(prefix: bytes) -> dict[str, Any]:
        return dict(starmap(definition_of, txn.scan(prefix)))

    spaces = {tuple(name.split("/")): number for name, number in found(_SPACE).items()}
    return Registry(*facts, found(_ENTITY), found(_TABLE), found(_SERVICE), spaces)


def _state_of(record: Any) -> tuple[int, int]:
    return whole(record[0], 0, COUNTER_MAX), whole(record[1], 0, _NUMBER_MAX)


def write_registry(txn: WriteTxn, old: Registry, new: Registry) -> None:
    """Store what differs between `old`, which the file holds, and `new`; the version rises by one."""
    kinds: list[tuple[bytes, Mapping[str, Any], Mapping[str, Any], Any]] = [
        (_ENTITY, old.entities, new.entities, _entity_record),
        (_TABLE, old.tables, new.tables, _table_record),
        (_SERVICE, old.services, new.services, _service_record),
    ]
    for prefix, before, after, record in kinds:
        for name in before.keys() - after.keys():
            txn.delete(prefix + name.encode())
        for name, definition in after.items():
            if before.get(name) != definition:
                key = prefix + name.encode()
                txn.put(key, pack(key, record(definition)))
    for entities, number in new.spaces.items():
        key = _SPACE + "/".join(entities).encode()
        txn.put(key, pack(key, number))
    txn.put(STATE_KEY, pack(STATE_KEY, [old.version + 1, new.next_id]))


def _entity_record(entity: Entity) -> dict[str, Any]:
    return {"dtype": entity.dtype, "description": entity.description, "labels": dict(entity.labels)}


def _service_record(service: FeatureService) -> dict[str, Any]:
    return {
        "features": list(service.features),
        "labels": dict(service.labels),
        "description": service.description,
        "aliases": {name: [alias.table, dict(alias.keys)] for name, alias in service.aliases.items()},
    }


# --- changes ----------------------------------------------------------------------------------


def apply_changes(registry: Registry, objects: Definition | Iterable[Definition]) -> tuple[Registry, list[Change]]:
    """The registry after applying `objects`, and what changes; a `DefinitionError` lists every refusal."""
    definitions = listed(objects)
    problems: list[str] = []
    changes: list[Change] = []
    seen: set[tuple[type, str]] = set()
    for definition in definitions:
        if not isinstance(definition, Entity | FeatureTable | FeatureService):
            raise DefinitionError(f"apply takes Entity, FeatureTable and FeatureService objects, not {definition!r}")
        if (type(definition), definition.name) in seen:
            problems.append(f"{_kind(definition)} {definition.name!r} is given more than once; give it once")
        seen.add((type(definition), definition.name))
    # Entities first, services last: each kind may use what the same call defines.
    for kind in (Entity, FeatureTable, FeatureService):
        for definition in definitions:
            if isinstance(definition, kind):
                try:
                    registry, change = _apply_one(registry, definition)
                    changes.append(change)
                except DefinitionError as error:
                    problems.append(str(error))
    if not problems:
        problems.extend(_dangling(registry))
    if problems:
        raise DefinitionError("nothing was applied: " + "; ".join(problems))
    return registry, changes


def listed(objects: Definition | Iterable[Definition]) -> list[Definition]:
    """The definitions given, one or several, as a list."""
    if isinstance(objects, Entity | FeatureTable | FeatureService):
        return [objects]
    if not isinstance(objects, Iterable):
        raise DefinitionError(f"apply takes Entity, FeatureTable and FeatureService objects, not {objects!r}")
    return list(objects)


def _kind(definition: Definition) -> str:
    return {Entity: "entity", FeatureTable: "feature table", FeatureService: "feature service"}[type(definition)]


def _apply_one(registry: Registry, definition: Definition) -> tuple[Registry, Change]:
    if isinstance(definition, Entity):
        return _apply_entity(registry, definition)
    if isinstance(definition, FeatureTable):
        return _apply_table(registry, definition)
    services = {**registry.services, definition.name: definition}
    return replace(registry, services=services), _change(
        definition, registry.services.get(definition.name), "features", "aliases"
    )


def _change(definition: Definition, stored: Definition | None, *names: str) -> Change:
    kind = _kind(definition)
    if stored is None:
        return Change(kind, definition.name, "create")
    if stored == definition:
        return Change(kind, definition.name, "unchanged")
    details = [
        f"{name}: {getattr(stored, name)!r} -> {getattr(definition, name)!r}"
        for name in (*names, "labels", "description")
        if getattr(stored, name) != getattr(definition, name)
    ]
    return Change(kind, definition.name, "update", tuple(details))


def _apply_entity(registry: Registry, entity: Entity) -> tuple[Registry, Change]:
    stored = registry.entities.get(entity.name)
    if stored is not None and stored.dtype != entity.dtype:
        raise DefinitionError(
            f"entity {entity.name!r}: its dtype is {stored.dtype} and cannot become {entity.dtype}, for stored keys "
            "have that dtype; define an entity of another name"
        )
    return replace(registry, entities={**registry.entities, entity.name: entity}), _change(entity, stored)


def _apply_table(registry: Registry, table: FeatureTable) -> tuple[Registry, Change]:
    unknown = [name for name in table.entities if name not in registry.entities]
    if unknown:
        raise DefinitionError(
            f"feature table {table.name!r}: no entity {', '.join(map(repr, unknown))} is defined; "
            "add an fdb.Entity for it to the same apply call"
        )
    stored = registry.tables.get(table.name)
    if stored is None:
        return _create_table(registry, table)
    problems = list(_refusals(stored, table))
    if problems:
        raise DefinitionError(f"feature table {table.name!r}: " + "; ".join(problems))
    ids = dict(stored.feature_ids)
    next_feature = max(number for layout in stored.layouts for number, _ in layout) + 1
    for name in table.feature_names:
        if name not in ids:
            ids[name] = next_feature
            next_feature += 1
    removed = [name for name in stored.definition.feature_names if name not in table.feature_names]
    layout = tuple((ids[feature.name], feature.dtype) for feature in table.features)
    layouts = stored.layouts if layout == stored.layouts[-1] else (*stored.layouts, layout)
    if len(layouts) > LAYOUTS_MAX:
        raise DefinitionError(
            f"feature table {table.name!r}: its features have changed {LAYOUTS_MAX - 1} times, the most; define a "
            "table of another name"
        )
    updated = replace(
        stored,
        definition=table,
        feature_ids={name: ids[name] for name in table.feature_names},
        layouts=layouts,
        reserved=(*stored.reserved, *removed),
    )
    change = _table_change(stored.definition, table)
    return replace(registry, tables={**registry.tables, table.name: updated}), change


def _create_table(registry: Registry, table: FeatureTable) -> tuple[Registry, Change]:
    if len(registry.tables) >= TABLES_MAX:
        raise DefinitionError(
            f"feature table {table.name!r}: the file already holds {TABLES_MAX} tables, the most; delete one that is "
            "not needed, or use another file"
        )
    next_id, spaces = registry.next_id, dict(registry.spaces)
    entities = tuple(table.entities)
    if entities not in spaces:
        spaces[entities] = next_id
        next_id += 1
    ids = {name: number for number, name in enumerate(table.feature_names, start=1)}
    key_dtypes = tuple(DTYPES[registry.entities[name].dtype] for name in entities)
    layout = tuple((ids[feature.name], feature.dtype) for feature in table.features)
    stored = StoredTable(next_id, spaces[entities], table, key_dtypes, ids, (layout,))
    tables = {**registry.tables, table.name: stored}
    return replace(registry, tables=tables, spaces=spaces, next_id=next_id + 1), _change(table, None)


def _refusals(stored: StoredTable, table: FeatureTable) -> Iterable[str]:
    if tuple(table.entities) != tuple(stored.definition.entities):
        yield (
            f"its entities are {list(stored.definition.entities)} and cannot become {list(table.entities)}, for stored "
            "rows are keyed by them; define a table of another name"
        )
    dtypes = {feature.name: feature.dtype for feature in stored.definition.features}
    for feature in table.features:
        if feature.name in dtypes and dtypes[feature.name] != feature.dtype:
            yield (
                f"feature {feature.name!r} is {dtypes[feature.name]} and cannot become {feature.dtype}, for stored "
                "values have that dtype; add a feature of another name"
            )
        if feature.name in stored.reserved:
            yield f"feature {feature.name!r} was removed and its name stays reserved; use another name"


def _table_change(stored: FeatureTable, table: FeatureTable) -> Change:
    change = _change(table, stored, "max_age", "batch_source", "online")
    details = [f"add feature {name}" for name in table.feature_names if name not in stored.feature_names]
    details += [f"remove feature {name}" for name in stored.feature_names if name not in table.feature_names]
    if change.action == "update" and not details and stored.features != table.features:
        details.append("features: order or descriptions")
    return replace(change, details=(*details, *change.details))


def _dangling(registry: Registry) -> Iterable[str]:
    """Services whose references would not resolve."""
    for service in registry.services.values():
        try:
            registry.references(service)
        except (DefinitionError, NotFoundError) as error:
            yield f"feature service {service.name!r}: {error}; apply a service without it, or delete the service"


def delete_table(registry: Registry, name: str) -> Registry:
    """The registry without the feature table `name`; refused while a service reads it."""
    registry.table(name)
    users = [service.name for service in registry.services.values() if name in service.tables]
    if users:
        raise DefinitionError(
            f"feature table {name!r} is read by feature service {', '.join(map(repr, users))}; delete that first"
        )
    return replace(registry, tables={key: table for key, table in registry.tables.items() if key != name})


def delete_service(registry: Registry, name: str) -> Registry:
    """The registry without the feature service `name`."""
    registry.service(name)
    return replace(registry, services={key: value for key, value in registry.services.items() if key != name})
