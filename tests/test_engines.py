"""Random joins against engines that others wrote: DuckDB's ASOF JOIN and pandas' ``merge_asof``.

Both take the latest row at or before a time. What they lack is done before or after, in their own terms: of rows
with equal key and event timestamp only the greatest stays, rows that are not yet known are left out, and a match
that is too old is dropped. They cannot have a `known_at` that differs from row to row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import hypothesis.strategies as st
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from strategies import (
    BASES_US,
    YEAR_1_US,
    YEAR_9999_US,
    container,
    plain,
    small_batches,
    tiny_limits,
    to_datetime,
    to_us,
)

import featuredb as fdb

pytestmark = pytest.mark.usefixtures("both_histories")

KEYS: dict[str, list[Any]] = {"u": [1, 2, -3], "s": ["", "a", "a\x00"]}
DTYPES = {"u": "int64", "s": "string"}
# One row of history: keys by entity, event, created (or None). Its value is its number, so no two are alike.
Given = tuple[dict[str, Any], int, int | None]


@dataclass(frozen=True)
class Join:
    """Ingests of one table, and entity rows to join; `known_us` is None or one time for all."""

    entities: list[str]
    batches: list[list[Given]]
    asked: list[tuple[dict[str, Any], int | None]]
    max_age: int | None
    known_us: int | None


@st.composite
def joins(draw: st.DrawFn) -> Join:
    entities = draw(st.sampled_from([["u"], ["s"], ["u", "s"], ["s", "u"]]))
    base = draw(st.sampled_from(BASES_US))
    keys = st.fixed_dictionaries({name: st.sampled_from(KEYS[name]) for name in entities})
    created = draw(st.sampled_from([st.none(), st.integers(0, 3).map(base.__add__)]))
    row = st.tuples(keys, st.integers(0, 8).map(base.__add__), created)
    asked_keys = st.fixed_dictionaries({name: st.sampled_from([*KEYS[name], None]) for name in entities})
    times = st.integers(-3, 14).map(lambda offset: min(max(base + offset, YEAR_1_US), YEAR_9999_US))
    return Join(
        entities,
        draw(st.lists(st.lists(row, min_size=1, max_size=15), max_size=4)),
        draw(st.lists(st.tuples(asked_keys, st.one_of(times, times, times, st.none())), max_size=25)),
        draw(st.sampled_from([None, 0, 1, 3, 6])) or None,
        draw(st.one_of(st.none(), st.integers(0, 4).map(base.__add__))),
    )


def columns(entities: list[str], rows: list[Any], first: int = 0) -> dict[str, tuple[str, list[Any]]]:
    """Keys, event timestamps and numbers of rows of history or of the entity dataframe."""
    found = {name: (DTYPES[name], [row[0][name] for row in rows]) for name in entities}
    found["event_timestamp"] = ("timestamp", [row[1] for row in rows])
    found["n"] = ("int64", list(range(first, first + len(rows))))
    return found


def ours(join: Join) -> tuple[list[Any], list[Any], pa.Table]:
    """Values and event timestamps that we join; and all that was ingested, with the times of the commits."""
    with pytest.MonkeyPatch.context() as patch, fdb.open(":memory:") as db:
        tiny_limits(patch)
        small_batches(patch, 4)
        max_age = None if join.max_age is None else to_datetime(join.max_age) - to_datetime(0)
        db.apply([fdb.Entity(name, DTYPES[name]) for name in join.entities])
        db.apply(fdb.FeatureTable("t", join.entities, [fdb.Feature("n", "int64")], max_age))
        history: dict[str, list[Any]] = {name: [] for name in [*join.entities, "event", "created", "known", "n"]}
        for batch in join.batches:
            data = columns(join.entities, batch, len(history["n"]))
            if batch[0][2] is not None:
                data["created_timestamp"] = ("timestamp", [created for _, _, created in batch])
            report = db.ingest("t", container("arrow", data))
            committed = to_us(db.log()[report.commit_id - 1].time)
            for name in join.entities:
                history[name] += data[name][1]
            history["event"] += data["event_timestamp"][1]
            history["created"] += [created for _, _, created in batch]
            history["known"] += [committed if created is None else created for _, _, created in batch]
            history["n"] += data["n"][1]
        asked = columns(join.entities, join.asked)
        asked["row"] = asked.pop("n")
        joined = db.get_historical_features(
            container("arrow", asked), ["t:n"], known_at=to_datetime(join.known_us), include_event_timestamps=True
        ).to_arrow()
        kinds = {"u": pa.int64(), "s": pa.string()}
        stored = pa.table({name: pa.array(values, kinds.get(name, pa.int64())) for name, values in history.items()})
        return plain(joined.column("n")), plain(joined.column("t__event_timestamp")), stored


def asked_table(join: Join) -> pa.Table:
    names = join.entities
    kinds = {"u": pa.int64(), "s": pa.string()}
    table = {name: pa.array([keys[name] for keys, _ in join.asked], kinds[name]) for name in names}
    times = pa.array([at for _, at in join.asked], pa.int64())
    return pa.table({**table, "at": times, "row": pa.array(range(len(join.asked)), pa.int64())})


def by_duckdb(join: Join, stored: pa.Table, asked: pa.Table) -> tuple[list[Any], list[Any]]:
    """With DuckDB: values and event timestamps by entity row."""
    keys = ", ".join(join.entities)
    on = " AND ".join(f"asked.{name} = history.{name}" for name in join.entities)
    known = "" if join.known_us is None else f"WHERE known <= {join.known_us}"
    # Some versions of DuckDB match a null time with a row.
    young = "asked.at IS NOT NULL"
    if join.max_age is not None:
        young += f" AND history.event >= asked.at - {join.max_age}"
    query = f"""
        WITH one AS (
            SELECT * FROM stored QUALIFY row_number() OVER (PARTITION BY {keys}, event, created ORDER BY n DESC) = 1
        ), history AS (
            SELECT * FROM one {known}
            QUALIFY row_number() OVER (PARTITION BY {keys}, event ORDER BY created DESC NULLS LAST) = 1
        )
        SELECT CASE WHEN {young} THEN n END, CASE WHEN {young} THEN event END
        FROM asked ASOF LEFT JOIN history ON {on} AND asked.at >= history.event ORDER BY row
    """
    with duckdb.connect() as connection:
        connection.register("stored", stored)
        connection.register("asked", asked)
        rows = connection.execute(query).fetchall()
    return [n for n, _ in rows], [event for _, event in rows]


def by_pandas(join: Join, stored: pa.Table, asked: pa.Table) -> tuple[list[Any], list[Any]]:
    """With pandas. It takes the last of equal times; it joins nulls with one another, so rows with any are left out."""
    # Without nullable integers those that have nulls beside them become floats.
    exact = {pa.int64(): pd.Int64Dtype()}.get
    history = stored.to_pandas(types_mapper=exact)
    left = asked.to_pandas(types_mapper=exact).dropna(subset=[*join.entities, "at"]).sort_values("at", kind="stable")
    for frame in (history, left):
        # pandas 2.2 takes "a" and "a\0" for one key; they are different as literals.
        frame["key"] = list(map(repr, zip(*(frame[name].tolist() for name in join.entities), strict=True)))
    history = history.drop_duplicates(["key", "event", "created"], keep="last")
    if join.known_us is not None:
        history = history[history["known"] <= join.known_us]
    history = history.sort_values(["event", "created"], na_position="first", kind="stable")
    history = history.drop_duplicates(["key", "event"], keep="last")
    history["when"] = history["event"]
    values: list[Any] = [None] * asked.num_rows
    events: list[Any] = [None] * asked.num_rows
    if left.empty or history.empty:
        return values, events
    found = pd.merge_asof(
        left.astype({"at": "int64"}),
        history.astype({"event": "int64"}),
        left_on="at",
        right_on="event",
        by="key",
        tolerance=join.max_age,
    ).dropna(subset="n")
    for row, n, event in zip(found["row"], found["n"], found["when"], strict=True):
        values[row], events[row] = int(n), int(event)
    return values, events


@pytest.mark.parametrize("engine", [by_duckdb, by_pandas])
@given(join=joins())
def test_a_join_equals_that_of_another_engine(engine: Callable[..., tuple[list[Any], list[Any]]], join: Join) -> None:
    values, events, stored = ours(join)
    assert (values, events) == engine(join, stored, asked_table(join))


def test_the_engines_find_what_there_is_to_find() -> None:
    """Ties, max age and knowledge: so that agreement on random joins does not mean that all find nothing."""
    key, other = {"u": 1}, {"u": 2}
    history: list[Given] = [(key, 10, 2), (key, 10, 1), (key, 12, 3), (other, 11, 0)]
    asked = [
        (key, 9),
        (key, 10),
        (key, 11),
        (key, 12),
        (key, 13),
        (key, 14),
        (other, 11),
        ({"u": None}, 11),
        (key, None),
    ]
    join = Join(["u"], [history], asked, 1, None)
    for known_us, expected in [
        (None, [None, 0, 0, 2, 2, None, 3, None, None]),
        (1, [None, 1, 1, None, None, None, 3, None, None]),
    ]:
        chosen = replace(join, known_us=known_us)
        values, events, stored = ours(chosen)
        assert values == expected
        for engine in (by_duckdb, by_pandas):
            assert engine(chosen, stored, asked_table(chosen)) == (values, events)
