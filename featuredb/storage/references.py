"""Feature references resolved: which table each reads, under which name, and keyed by which columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featuredb.errors import DefinitionError, NotFoundError
from featuredb.schema import Alias, DType, FeatureService, check_aliases, split_reference

if TYPE_CHECKING:
    from featuredb.storage.registry import Registry, StoredTable


@dataclass(frozen=True, slots=True)
class TableUse:
    """A feature table as one request reads it: under its own name, or under that of an alias.

    ``columns[i]`` is the column that holds the values of the table's i-th entity.
    """

    name: str
    table: StoredTable
    columns: tuple[str, ...]

    @staticmethod
    def of(table: StoredTable) -> TableUse:
        """The table itself, keyed by its entities' names."""
        return TableUse(table.name, table, tuple(table.definition.entities))

    def role(self, column: str) -> str:
        """What a key column is to this table, for messages."""
        entity = self.table.definition.entities[self.columns.index(column)]
        return "entity" if self.name == self.table.name else f"entity {entity!r} of alias {self.name!r}"

    @property
    def keys(self) -> dict[str, str]:
        """Entity to column."""
        return dict(zip(self.table.definition.entities, self.columns, strict=True))

    @property
    def key_dtypes(self) -> dict[str, DType]:
        return dict(zip(self.columns, self.table.key_dtypes, strict=True))


def resolve(
    registry: Registry, features: str | FeatureService | Sequence[str], aliases: Mapping[str, Alias] | None
) -> list[tuple[TableUse, str]]:
    """A service, its name, or references, as (table, feature) pairs; an error lists every problem.

    `aliases` adds to the aliases of the service, and goes before them where names are equal.
    """
    named = check_aliases(aliases, "features")
    if isinstance(features, str) and ":" not in features:
        features = registry.service(features)
    if isinstance(features, FeatureService):
        named = {**features.aliases, **named}
        features = features.features
    if not isinstance(features, Iterable):
        raise DefinitionError(f"features must be a feature service or a list of 'table:feature', not {features!r}")
    asked = [features] if isinstance(features, str) else list(features)
    if not asked:
        raise DefinitionError("features: no feature was asked for; name a feature service or 'table:feature'")
    uses: dict[str, TableUse | None] = {}
    problems: list[DefinitionError | NotFoundError] = []
    for name, alias in named.items():
        uses[name] = None  # one that cannot be used is a problem once, not at each reference
        try:
            uses[name] = _aliased(registry, name, alias)
        except (DefinitionError, NotFoundError) as error:
            problems.append(error)
    resolved = []
    for reference in asked:
        try:
            table_name, feature = split_reference(reference)
            if table_name not in uses and table_name not in registry.tables and uses:
                known = ", ".join(sorted([*registry.tables, *uses]))
                raise NotFoundError(f"no feature table or alias {table_name!r}; there is: {known}")
            use = uses[table_name] if table_name in uses else TableUse.of(registry.table(table_name))
            if use is not None and feature not in use.table.feature_ids:
                raise NotFoundError(_missing_feature(use.table, feature))
            if use is not None:
                resolved.append((use, feature))
        except (DefinitionError, NotFoundError) as error:
            problems.append(error)
    problems += _clashes([use for use, _ in resolved])
    if problems:
        missing = any(isinstance(error, NotFoundError) for error in problems)
        texts = list(map(str, problems))
        text = texts[0] if len(texts) == 1 else f"{len(texts)} problems\n  - " + "\n  - ".join(texts)
        raise (NotFoundError if missing else DefinitionError)(f"features: {text}")
    twice = sorted({reference for reference in asked if asked.count(reference) > 1})
    if twice:
        raise DefinitionError(f"features: {', '.join(map(repr, twice))} is asked for more than once; ask once")
    return resolved


def _aliased(registry: Registry, name: str, alias: Alias) -> TableUse:
    if name in registry.tables:
        raise DefinitionError(f"alias {name!r}: a feature table has this name; give the alias another")
    if alias.table not in registry.tables:
        known = ", ".join(sorted(registry.tables)) or "none yet"
        raise NotFoundError(f"alias {name!r}: no feature table {alias.table!r} in this file; there is: {known}")
    table = registry.tables[alias.table]
    entities = table.definition.entities
    unknown = [entity for entity in alias.keys if entity not in entities]
    if unknown:
        raise NotFoundError(
            f"alias {name!r}: feature table {table.name!r} has no entity {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(entities)}"
        )
    return TableUse(name, table, tuple(alias.keys.get(entity, entity) for entity in entities))


def _clashes(uses: Sequence[TableUse]) -> list[DefinitionError]:
    """Columns that would have to be of two dtypes at once."""
    seen: dict[str, tuple[DType, str]] = {}
    clashes = {}
    for use in uses:
        for column, dtype in zip(use.columns, use.table.key_dtypes, strict=True):
            first, owner = seen.setdefault(column, (dtype, use.name))
            if first != dtype:
                clashes[column] = DefinitionError(
                    f"column {column!r} is a key of {owner!r} as {first} and of {use.name!r} as {dtype}; "
                    "give one of them an alias with another column"
                )
    return list(clashes.values())


def _missing_feature(table: StoredTable, feature: str) -> str:
    if feature in table.reserved:
        return f"feature {feature!r} of table {table.name!r} was removed; it has {', '.join(table.feature_ids)}"
    return f"feature table {table.name!r} has no feature {feature!r}; it has {', '.join(table.feature_ids)}"
