"""Random point-in-time joins against the oracle, and which corners they reach.

``python tests/joins.py`` is the long run: it joins until there are 100,000 cases and prints the seed, the
number of cases, the corners and the time it took. A case is one call of ``get_historical_features``, with
entity rows and options of its own, compared with the oracle value by value. `CASES_PER_DATABASE` of them
share a database, so that most of the time goes into joins and not into loading.
"""

from __future__ import annotations

import argparse
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import oracle
import pytest
from hypothesis import HealthCheck, given, seed, settings
from strategies import (
    CONTAINERS,
    KEY_DTYPES,
    POOLS,
    TAILS,
    YEAR_1_US,
    YEAR_9999_US,
    Case,
    Columns,
    TableCase,
    cases,
    container,
    plain,
    set_tails,
    small_batches,
    tiny_limits,
    to_datetime,
    to_us,
)

import featuredb as fdb
from featuredb.limits import DEAD_SHARE_MAX
from featuredb.storage.manifest import read_manifest
from featuredb.storage.tail import read_tail

CASES_PER_DATABASE = 10
YEAR_2262_US = 9_223_372_036_854_775  # where nanoseconds end
# Everything that random joins must reach; `corners` says when one is.
CORNERS = (
    "equal event timestamps",
    "equal created timestamps",
    "no created timestamp",
    "no created timestamp beside one",
    "a replaced row",
    "a replaced row that is still in its segment",
    "at the event timestamp",
    "1 us before the event timestamp",
    "1 us after the event timestamp",
    "at the max age",
    "1 us within the max age",
    "1 us past the max age",
    "a key that the file does not know",
    "a null key",
    "a null timestamp",
    "a null value",
    "an entity row twice",
    "entity rows out of order",
    "no entity rows",
    "one entity row",
    "a table without data",
    "several tables",
    "several segments with overlapping times",
    "rows in a tail alone",
    "rows in a tail beside segments",
    "a composite key",
    "before 1970",
    "after 2262",
    "known_at",
    "known_at, by column",
    "known_at, a row left out by its commit",
    "known_at, a row left out by its created timestamp",
    "known_at, an earlier row found",
    "aliases",
    "a feature service",
    "a feature service with aliases",
    *(f"entity rows from {kind}" for kind in CONTAINERS),
    *(f"a key of {dtype}" for dtype in KEY_DTYPES),
    *(f"a value of {dtype}" for dtype in POOLS),
)


@dataclass(frozen=True)
class Use:
    """A table as a join reads it: by its own name and keys, or by those of an alias."""

    name: str
    table: TableCase
    columns: list[str]


@dataclass(frozen=True)
class Request:
    """One join: its entity dataframe and its options."""

    columns: Columns
    uses: list[Use]
    kind: str
    roles: bool
    service: bool
    full_names: bool
    known: list[int] | None
    known_by_column: bool

    @property
    def times(self) -> list[int | None]:
        return self.columns["event_timestamp"][1]

    def keys(self, use: Use) -> list[oracle.Key]:
        return list(zip(*(self.columns[name][1] for name in use.columns), strict=True))


@dataclass(frozen=True)
class Match:
    """What the oracle joins onto one entity row from one table."""

    use: Use
    key: oracle.Key
    at: int | None
    known_us: int | None
    row: oracle.Row | None


def aliases_of(case: Case) -> dict[str, fdb.Alias]:
    """Each table in two roles, in which another column stands for its first entity."""
    return {
        f"{table.name}_{role}": fdb.Alias(table.name, {table.entities[0]: f"{table.entities[0]}_{role}"})
        for table in case.tables
        for role in "ab"
    }


def references_of(case: Case) -> list[str]:
    """The features of each table in both roles."""
    return [f"{table.name}_{role}:{name}" for table in case.tables for role in "ab" for name in table.features]


def services_of(case: Case) -> list[fdb.FeatureService]:
    return [
        fdb.FeatureService("plain", case.references),
        fdb.FeatureService("roles", references_of(case), aliases=aliases_of(case)),
    ]


def clamped(us: int) -> int:
    return min(max(us, YEAR_1_US), YEAR_9999_US)


def entity_rows(rng: random.Random, case: Case, tables: dict[str, oracle.Table]) -> list[tuple[dict[str, Any], Any]]:
    """Keys and times: many near a stored row or the end of its max age, some unknown, some null, some twice."""
    pools = {name: [None, *POOLS[dtype]] for name, dtype in case.entities.items()}
    stored = [(table, row) for table in case.tables for row in tables[table.name].history]
    rows: list[tuple[dict[str, Any], Any]] = []
    for _ in range(rng.choice([0, 1, 1, 3, 8, 20])):
        keys = {name: rng.choice(pool) for name, pool in pools.items()}
        at = clamped(case.base + rng.randint(-3, 14))
        if stored and rng.random() < 0.8:
            table, row = rng.choice(stored)
            keys |= dict(zip(table.entities, row.key, strict=True))
            age = table.max_age or 3
            at = clamped(row.event + rng.choice([-1, 0, 1, age - 1, age, age + 1, rng.randint(-3, 9)]))
        rows.append((keys, at if rng.random() < 0.95 else None))
    if rows and rng.random() < 0.3:
        rows.append(rng.choice(rows))
    return rows


def request(rng: random.Random, case: Case, tables: dict[str, oracle.Table], commits: list[int]) -> Request:
    """A join of all tables, or of each table in two roles: the second has the keys of the rows in reverse."""
    rows = entity_rows(rng, case, tables)
    columns: Columns = {name: (dtype, [keys[name] for keys, _ in rows]) for name, dtype in case.entities.items()}
    columns["label"] = ("int32", list(range(len(rows))))
    columns["event_timestamp"] = ("timestamp", [at for _, at in rows])
    roles = rng.random() < 0.25
    uses = [Use(table.name, table, table.entities) for table in case.tables]
    if roles:
        for name in case.entities:
            dtype, values = columns[name]
            columns[f"{name}_a"], columns[f"{name}_b"] = (dtype, values), (dtype, values[::-1])
        uses = [
            Use(f"{table.name}_{role}", table, [f"{table.entities[0]}_{role}", *table.entities[1:]])
            for table in case.tables
            for role in "ab"
        ]
    known, by_column = None, rng.random() < 0.5
    if rng.random() < 0.5:
        moments = (
            [clamped(case.base + offset) for offset in range(-1, 5)],
            [us - off for us in commits for off in (0, 1)],
        )
        known = [rng.choice(rng.choice(moments)) for _ in rows]
        known = known if by_column else known[:1] * len(rows)
        if by_column:
            columns["seen"] = ("timestamp", known)
    # A list of no dicts has no columns.
    kind = rng.choice(CONTAINERS if rows else CONTAINERS[1:])
    full = roles or rng.random() < 0.5
    return Request(columns, uses, kind, roles, rng.random() < 0.4, full, known, by_column)


def expected_matches(tables: dict[str, oracle.Table], asked: Request) -> list[list[Match]]:
    """For each use, for each entity row, what the oracle finds."""
    known: list[int | None] = [None] * len(asked.times) if asked.known is None else list(asked.known)
    return [
        [
            Match(use, key, at, known_us, tables[use.table.name].join(key, at, known_us))
            for key, at, known_us in zip(asked.keys(use), asked.times, known, strict=True)
        ]
        for use in asked.uses
    ]


def assert_join(db: fdb.Database, case: Case, asked: Request, expected: list[list[Match]]) -> None:
    """The join gives what the oracle gives, value by value, in the order of the entity rows."""
    features: Any = ("roles" if asked.roles else "plain") if asked.service else case.references
    aliases = None
    if asked.roles and not asked.service:
        features, aliases = references_of(case), aliases_of(case)
    known: Any = None
    if asked.known is not None:
        known = "seen" if asked.known_by_column else to_datetime(asked.known[0] if asked.known else 0)
    result = db.get_historical_features(
        container(asked.kind, asked.columns),
        features,
        aliases=aliases,
        known_at=known,
        full_feature_names=asked.full_names,
        include_event_timestamps=True,
    ).to_arrow()
    assert plain(result.column("label")) == asked.columns["label"][1]
    for matches, use in zip(expected, asked.uses, strict=True):
        events = plain(result.column(f"{use.name}__event_timestamp"))
        assert events == [match.row and match.row.event for match in matches], use.name
        for feature in use.table.features:
            got = plain(result.column(f"{use.name}__{feature}" if asked.full_names else feature))
            want = [match.row and match.row.values[feature] for match in matches]
            assert len(got) == len(want)
            for row, pair in enumerate(zip(got, want, strict=True)):
                assert oracle.same(*pair), f"{use.name}:{feature}, entity row {row}: {pair[0]!r} is not {pair[1]!r}"


# --- corners --------------------------------------------------------------------------------------


def corners(case: Case, tables: dict[str, oracle.Table], asked: Request, expected: list[list[Match]]) -> Iterator[str]:
    """The corners that one join reaches."""
    rows = len(asked.times)
    keys = list(zip(*(asked.columns[name][1] for name in case.entities), asked.times, strict=True))
    order = [(repr(key[:-1]), key[-1]) for key in keys if key[-1] is not None]
    yield from (name for name, reached in {
        "no entity rows": rows == 0,
        "one entity row": rows == 1,
        "an entity row twice": any(oracle.same_key(a, b) for place, a in enumerate(keys) for b in keys[:place]),
        "entity rows out of order": order != sorted(order),
        "a null timestamp": None in asked.times,
        "several tables": len(case.tables) > 1,
        "known_at": asked.known is not None and not asked.known_by_column,
        "known_at, by column": asked.known is not None and asked.known_by_column and len(set(asked.known)) > 1,
        "aliases": asked.roles and not asked.service,
        "a feature service": asked.service and not asked.roles,
        "a feature service with aliases": asked.service and asked.roles,
        f"entity rows from {asked.kind}": rows > 0,
    }.items() if reached)  # fmt: skip
    for matches in expected:
        for match in matches:
            yield from _corners_of(match, tables[match.use.table.name])
        for feature, dtype in matches[0].use.table.features.items() if matches else ():
            found = [match.row.values[feature] for match in matches if match.row is not None]
            yield from ("a null value" if value is None else f"a value of {dtype}" for value in found)
        if matches and any(match.row for match in matches):
            table = matches[0].use.table
            yield from (f"a key of {case.entities[name]}" for name in table.entities)


def _corners_of(match: Match, table: oracle.Table) -> Iterator[str]:
    """The corners that the join of one entity row with one table reaches."""
    row, at = match.row, match.at
    if None in match.key:
        yield "a null key"
        return
    if at is None:
        return
    own = [other for other in table.history if oracle.same_key(other.key, match.key)]
    if not table.history:
        yield "a table without data"
    elif not own:
        yield "a key that the file does not know"
    if any(other.event == at + 1 for other in own):
        yield "1 us before the event timestamp"
    latest = table.join(match.key, at, match.known_us, limited=False)
    if table.max_age is not None and latest is not None and latest.event == at - table.max_age - 1:
        yield "1 us past the max age"
    unlimited = table.join(match.key, at)
    if unlimited is not None and unlimited is not row:
        yield f"known_at, a row left out by its {'commit' if unlimited.created is None else 'created timestamp'}"
        if row is not None:
            yield "known_at, an earlier row found"
    if row is None:
        return
    rivals = [other for other in own if other.event == row.event and other is not row]
    yield from (name for name, reached in {
        "equal event timestamps": rivals,
        "equal created timestamps": row.created is not None
        and any(other.created == row.created and other is not row for other in own),
        "no created timestamp": row.created is None,
        "no created timestamp beside one": row.created is not None and any(one.created is None for one in rivals),
        "a composite key": len(match.key) > 1,
        "before 1970": row.event < 0,
        "after 2262": row.event > YEAR_2262_US,
        "at the event timestamp": at == row.event,
        "1 us after the event timestamp": at == row.event + 1,
        "at the max age": at - row.event == table.max_age,
        "1 us within the max age": table.max_age is not None and at - row.event == table.max_age - 1,
    }.items() if reached)  # fmt: skip


def stored_corners(db: fdb.Database, case: Case, tables: dict[str, oracle.Table]) -> set[str]:
    """The corners of what a database holds, which all of its joins reach."""
    found = set()
    given_rows = sum(len(batch.rows) for table in case.tables for batch in table.batches)
    if sum(len(table.history) for table in tables.values()) < given_rows:
        found.add("a replaced row")
    with db._snapshot() as (txn, registry):
        for table in registry.tables.values():
            segments = read_manifest(txn, table.id).segments
            if read_tail(txn, table.id).rows:
                found.add("rows in a tail beside segments" if segments else "rows in a tail alone")
            if any(ref.dead_count for ref in segments):
                found.add("a replaced row that is still in its segment")
            infos = [db._cache.reader(txn, table.id, ref).info for ref in segments]
            spans = sorted((info.event_min, info.event_max) for info in infos)
            if any(first[1] >= second[0] for first, second in pairwise(spans)):
                found.add("several segments with overlapping times")
    return found


# --- the property ---------------------------------------------------------------------------------


def joins_property(reached: Counter[str], *, wide: bool) -> Callable[[], None]:
    """The property "joins equal the oracle", which counts its cases and their corners in `reached`."""

    @given(
        case=cases(tables_max=3, most_left=0, wide=wide),
        rng=st.randoms(use_true_random=True),
        tiny=st.booleans(),
        batch_rows=st.sampled_from([3, 1000]),
        dead_share=st.sampled_from([1.0, DEAD_SHARE_MAX]),
        tails=st.sampled_from(TAILS),
    )
    def joins_equal_the_oracle(
        case: Case, rng: random.Random, tiny: bool, batch_rows: int, dead_share: float, tails: tuple[int, int]
    ) -> None:
        with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
            if tiny:
                tiny_limits(patch)
            small_batches(patch, batch_rows)
            patch.setattr("featuredb.offline.merge.DEAD_SHARE_MAX", dead_share)
            set_tails(patch, *tails)
            tables = case.load(db)
            db.apply(services_of(case))
            stored = stored_corners(db, case, tables)
            commits = [to_us(commit.time) for commit in db.log()]
            for _ in range(CASES_PER_DATABASE):
                asked = request(rng, case, tables, commits)
                expected = expected_matches(tables, asked)
                assert_join(db, case, asked, expected)
                reached.update(["cases", *stored, *set(corners(case, tables, asked, expected))])

    return joins_equal_the_oracle


def check_joins(reached: Counter[str], options: settings, first_seed: int | None = None) -> None:
    """Check the property; one database in six has a table with every dtype in keys and features."""
    wide = options.max_examples // 6
    for databases, is_wide in ((options.max_examples - wide, False), (wide, True)):
        check = settings(options, max_examples=databases)(joins_property(reached, wide=is_wide))
        (check if first_seed is None else seed(first_seed)(check))()


def main() -> None:
    parser = argparse.ArgumentParser(description="Join at random and compare with the oracle.")
    parser.add_argument("--cases", type=int, default=100_000, help="join at least this often (100,000)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="of the first round")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    reached: Counter[str] = Counter()
    slow = settings(deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck))
    began, number = time.monotonic(), options.seed
    while reached["cases"] < options.cases:
        databases = min(600, -(-(options.cases - reached["cases"]) // CASES_PER_DATABASE))
        check_joins(reached, settings(slow, max_examples=databases), number)
        number += 1
        print(f"{reached['cases']:,} cases, no mismatch, {time.monotonic() - began:,.0f} s", flush=True)
    for corner in CORNERS:
        print(f"{reached[corner]:9,}  {corner}")


if __name__ == "__main__":
    main()
