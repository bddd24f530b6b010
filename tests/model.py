"""What a database should hold, as dicts of plain tables (`oracle`), and whether it does: for `test_stateful.py`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import oracle
from joins import assert_join, expected_matches, request
from strategies import POOLS, YEAR_9999_US, Case, Columns, TableCase, container, no_nan, to_datetime, to_us
from test_online import assert_reads_equal
from test_retrieval import assert_rows, expected_latest, expected_rows, references

import featuredb as fdb

BASE = 1_357_034_400_000_000
ENTITIES = {"user": "int64", "city": "string"}
KEYS: dict[str, list[Any]] = {"user": [1, 2, -3], "city": ["", "a", "é\x00"]}
UNKNOWN: dict[str, list[Any]] = {"user": [7, None], "city": ["nowhere", None]}
TABLES = {
    "clicks": (["user"], {"n": "int64", "name": "string", "vector": "float32[2]"}),
    "likes": (["user"], {"when": "timestamp", "score": "float64"}),
    "visits": (["city", "user"], {"tags": "list[string]", "seen": "bool"}),
}


def definition(name: str) -> fdb.FeatureTable:
    """A table as it is first defined."""
    entities, features = TABLES[name]
    return fdb.FeatureTable(name, entities, [fdb.Feature(f"{name}_{f}", dtype) for f, dtype in features.items()])


@dataclass(frozen=True)
class Rejected:
    """What makes a rejected row one that was there before: `repr` and reason as the report had them."""

    row: int
    column: str
    value: str | None
    reason: str


@dataclass
class Kept:
    """One feature table: its definition, its rows, and the rejected rows of each call that had any."""

    definition: fdb.FeatureTable
    rows: oracle.Table
    rejected: list[tuple[int, list[Rejected]]] = field(default_factory=list)

    def copy(self) -> Kept:
        """As it is now. Rows are replaced and never changed, so that they need no copies."""
        rows = replace(self.rows, history=list(self.rows.history), online=list(self.rows.online))
        return Kept(self.definition, rows, list(self.rejected))

    def redefine(self, after: fdb.FeatureTable) -> None:
        """Apply a definition: old rows read null for new features, and online values come and go."""
        before, self.definition = self.definition, after
        names = list(after.feature_names)
        max_age = None if after.max_age is None else after.max_age // (to_datetime(1) - to_datetime(0))
        history, online = (
            [replace(row, values={name: row.values.get(name) for name in names}) for row in rows]
            for rows in (self.rows.history, self.rows.online)
        )
        self.rows = oracle.Table(names, max_age, history, online if after.online else [])
        if after.online and not before.online:
            self.rows.materialize()

    def reject(self, commit_id: int, rows: list[Rejected], changed: bool) -> None:
        """Keep rejected rows; the same as those before, if the call has changed nothing else, are not kept twice."""
        if rows and (changed or not self.rejected or self.rejected[-1][1] != rows):
            self.rejected.append((commit_id, rows))

    def matching(self, keys: dict[str, list[Any]]) -> set[oracle.Key]:
        """The keys that have rows, and the values of one entry of `keys`."""
        wanted = list(zip(*keys.values(), strict=True))
        places = [self.definition.entities.index(name) for name in keys]
        stored = {row.key for row in [*self.rows.history, *self.rows.online]}
        return {key for key in stored if tuple(key[place] for place in places) in wanted}

    def forget(self, keys: dict[str, list[Any]]) -> None:
        """Remove every row of the keys."""
        gone = self.matching(keys)
        self.rows.history = [row for row in self.rows.history if row.key not in gone]
        self.rows.online = [row for row in self.rows.online if row.key not in gone]

    def differing(self) -> set[str]:
        """The keys, as text, whose online value is not the join at the end of time."""
        if not self.definition.online:
            return set()
        found = set()
        served = {row.key: row for row in self.rows.online}
        for key in {row.key for row in self.rows.history} | set(served):
            latest, online = self.rows.join(key, YEAR_9999_US, limited=False), served.get(key)
            same = latest is not None and online is not None and latest.order == online.order
            if not same or not oracle.same_values(latest.values, online.values):
                named = zip(self.definition.entities, key, strict=True)
                found.add(", ".join(f"{name}={value!r}" for name, value in named))
        return found


Tables = dict[str, Kept]


def data_of(
    table: fdb.FeatureTable, rows: Sequence[oracle.Row], *, created: bool, kind: str, lacking: Sequence[str] = ()
) -> tuple[Any, list[oracle.Row]]:
    """Rows as given to ``ingest`` under the names of the table's source; and as they arrive."""
    columns: Columns = {
        table.column_of(name): (ENTITIES[name], [row.key[place] for row in rows])
        for place, name in enumerate(table.entities)
    }
    columns[table.event_timestamp_column] = ("timestamp", [row.event for row in rows])
    if created:
        columns[table.created_timestamp_column or "created_timestamp"] = ("timestamp", [row.created for row in rows])
    given = [feature for feature in table.features if feature.name not in lacking]
    for feature in given:
        columns[table.column_of(feature.name)] = (feature.dtype, [row.values[feature.name] for row in rows])
    arrive = no_nan if kind == "pandas" else lambda value: value
    seen = [replace(row, values={f.name: arrive(row.values[f.name]) for f in given}) for row in rows]
    return container(kind, columns), seen


# --- whether a database holds what it should ------------------------------------------------------


def as_case(tables: Tables, names: Sequence[str]) -> tuple[Case, dict[str, oracle.Table]]:
    """Some of the tables in the form of `strategies`, for the comparisons of other tests."""
    chosen = []
    for name in names:
        table = tables[name].definition
        features = {feature.name: feature.dtype for feature in table.features}
        chosen.append(TableCase(name, list(table.entities), features, tables[name].rows.max_age, []))
    used = {entity for table in chosen for entity in table.entities}
    entities = {name: dtype for name, dtype in ENTITIES.items() if name in used}
    return Case(entities, chosen, [], BASE), {name: tables[name].rows for name in names}


def assert_joins(db: fdb.Database, tables: Tables, rng: random.Random) -> None:
    """Some join of all tables, with or without ``known_at``, aliases, and in any container."""
    case, rows = as_case(tables, list(tables))
    commits = [to_us(commit.time) for commit in db.log()]
    asked = replace(request(rng, case, rows, commits), service=False)
    assert_join(db, case, asked, expected_matches(rows, asked))


def assert_stored(
    db: fdb.Database, tables: Tables, names: list[str], span: tuple[int | None, int | None], latest: bool
) -> None:
    """The stored rows of tables with the same entities."""
    case, rows = as_case(tables, names)
    result = db.get_historical_features(
        None,
        references(case.tables),
        start=to_datetime(span[0]),
        end=to_datetime(span[1]),
        latest=latest,
        include_event_timestamps=True,
    ).to_arrow()
    assert_rows(result, (expected_latest if latest else expected_rows)(case.tables, rows, span, None))


def assert_online(db: fdb.Database, tables: Tables, now_us: int, kind: str) -> None:
    """Every key, some that are unknown and nulls, in every way of reading online values."""
    names = [name for name, kept in tables.items() if kept.definition.online]
    for chosen in [names, *([name] for name in names)]:
        case, rows = as_case(tables, chosen)
        keys = product(*(KEYS[name] + UNKNOWN[name] for name in case.entities))
        case.left = [(dict(zip(case.entities, key, strict=True)), None) for key in keys]
        if chosen:
            assert_reads_equal(db, case, rows, now_us, kind)


def assert_holds(db: fdb.Database, tables: Tables, rng: random.Random) -> None:
    """All of it: definitions, history, online values, rejected rows, and that the file is sound."""
    assert {table.name: table for table in db.list_feature_tables()} == {
        name: kept.definition for name, kept in tables.items()
    }
    assert_joins(db, tables, rng)
    for name in tables:
        assert_stored(db, tables, [name], (None, None), latest=False)
    assert_online(db, tables, BASE + 6, "dict")
    report = db.verify()
    assert report.ok, str(report)
    assert {(found.table, found.key) for found in report.differences} == {
        (name, key) for name, kept in tables.items() for key in kept.differing()
    }
    info = db.info()["feature_tables"]
    for name, kept in tables.items():
        assert info[name]["rows"] == len(kept.rows.history)
        assert info[name]["online_keys"] == (len(kept.rows.online) if kept.definition.online else None)


def assert_rejected(db: fdb.Database, tables: Tables) -> None:
    for name, kept in tables.items():
        assert [(row.commit_id, Rejected(row.row, row.column, row.value, row.reason)) for row in db.rejected(name)] == [
            (commit_id, row) for commit_id, rows in kept.rejected for row in rows
        ]


def some_values(table: fdb.FeatureTable, number: int) -> dict[str, Any]:
    """A value or null for each feature, chosen by a number."""
    pools = [[None, *POOLS[feature.dtype]] for feature in table.features]
    names = table.feature_names
    return {
        name: pool[(number + place) % len(pool)] for place, (name, pool) in enumerate(zip(names, pools, strict=True))
    }
