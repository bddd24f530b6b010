"""What the processes of profile ``processes`` do with the file that they share: its content, writers, and checks.

Users belong to groups. A commit writes all users of a group, with one ``round`` and amounts that cancel out. So in
every commit, and at any time in it, a group is of one round and its amounts have the sum 0, whatever was replaced,
came late or was forgotten before. ``left`` and ``right`` are materialized together, so that their online values agree.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import featuredb as fdb
from featuredb.storage import segment

from .workload import T0, small_limits

GROUPS, GROUP_USERS = 64, 8
LARGE_SLOTS, LARGE_SPAN = 60, 30
PAIR_SLOTS = 4
BATCH_ROWS = 4096
SEGMENTS_HELD_MAX = 256
LATE_SECONDS = 10
SNAPSHOTS_HELD_MAX = 2
END = datetime(9999, 1, 1, tzinfo=UTC)
FEATURES = ("round", "amount", "note")
TABLES = ("small", "large", "left", "right")
# As long as one of a dozen busy processes may keep the others waiting.
TIMEOUT_SECONDS = 240.0

Row = tuple[Any, ...] | None


class Violation(Exception):
    """Something was read that no commit has."""


def opened(path: Path) -> fdb.Database:
    """The file, with limits that let the larger ingests have several batches, and merges come often.

    Of the segments that are merged away a process forgets the descriptors so soon that its memory levels off.
    """
    small_limits(BATCH_ROWS)
    segment.SEGMENTS_HELD_MAX = SEGMENTS_HELD_MAX  # type: ignore[misc]
    return fdb.open(path, create=False, timeout=TIMEOUT_SECONDS)


def make(path: Path) -> None:
    """The file, with its definitions."""
    features = [fdb.Feature("round", "int64"), fdb.Feature("amount", "int64"), fdb.Feature("note", "string")]
    vector = fdb.Feature("vector", "float64[4]")
    tables = [fdb.FeatureTable(name, ["user"], [*features, *([vector] * (name == "large"))]) for name in TABLES]
    with fdb.open(path) as db:
        db.apply([fdb.Entity("user", "int64"), *tables])


def users_of(groups: Sequence[int]) -> list[int]:
    return [group * GROUP_USERS + place for group in groups for place in range(GROUP_USERS)]


def references(table: str) -> list[str]:
    return [f"{table}:{name}" for name in FEATURES]


# --- writers ----------------------------------------------------------------------------------


def _values(rng: random.Random, count: int) -> dict[str, list[Any]]:
    """Values of `count` groups: one round, and amounts of each group that cancel out."""
    round_number, amounts = time.time_ns(), list[int]()
    for _ in range(count):
        given = [rng.randrange(-1000, 1000) for _ in range(GROUP_USERS - 1)]
        amounts += [*given, -sum(given)]
    notes = [rng.choice([None, "", "n" * rng.randrange(60)]) for _ in amounts]
    return {"round": [round_number] * len(amounts), "amount": amounts, "note": notes}


def write_small(db: fdb.Database, rng: random.Random) -> Iterator[None]:
    """The users of a group at a time: new, or late; as dicts, or as columns."""
    while True:
        late = timedelta(seconds=rng.random() * LATE_SECONDS * (rng.random() < 0.3))
        data = {
            "user": users_of([rng.randrange(GROUPS)]),
            "event_timestamp": [datetime.now(UTC) - late] * GROUP_USERS,
            **_values(rng, 1),
        }
        as_dicts = [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
        db.ingest("small", as_dicts if rng.random() < 0.7 else data)
        yield
        time.sleep(rng.uniform(0, 0.04))


def write_large(db: fdb.Database, rng: random.Random) -> Iterator[None]:
    """All users, at many times, most of which are there already; in several staged batches."""
    while True:
        first = rng.randrange(LARGE_SLOTS - LARGE_SPAN + 1)
        data: dict[str, list[Any]] = {"user": [], "event_timestamp": []}
        for slot in range(first, first + LARGE_SPAN):
            data["user"] += users_of(range(GROUPS))
            data["event_timestamp"] += [T0 + timedelta(seconds=slot)] * (GROUPS * GROUP_USERS)
        data |= _values(rng, GROUPS * LARGE_SPAN)
        data["vector"] = [[float(amount)] * 4 for amount in data["amount"]]
        db.ingest("large", data)
        yield
        time.sleep(rng.uniform(0, 1))


def write_pairs(db: fdb.Database, rng: random.Random) -> Iterator[None]:
    """History of `left`, then of `right`, then online values of both in one commit. Only one process may do it."""
    slots = list(range(PAIR_SLOTS))
    while True:
        data: dict[str, list[Any]] = {"user": [], "event_timestamp": []}
        for slot in slots:
            data["user"] += users_of(range(GROUPS))
            data["event_timestamp"] += [T0 + timedelta(seconds=slot)] * (GROUPS * GROUP_USERS)
        data |= _values(rng, GROUPS * len(slots))
        for table in ("left", "right"):
            db.ingest(table, data, to="offline")
            yield
        db.materialize(["left", "right"], incremental=rng.random() < 0.5)
        yield
        if rng.random() < 0.2:
            _forget(db, rng, ["left", "right"])
            yield
        # The first time all of it, for the one before may have been killed between the two.
        slots = [rng.randrange(PAIR_SLOTS)]
        time.sleep(rng.uniform(0, 0.5))


def forget(db: fdb.Database, rng: random.Random) -> Iterator[None]:
    """One group after another, so that there is an end to history."""
    while True:
        _forget(db, rng, ["small", "large"])
        yield
        time.sleep(rng.uniform(0, 0.3))


def _forget(db: fdb.Database, rng: random.Random, tables: list[str]) -> None:
    try:
        db.forget({"user": users_of([rng.randrange(GROUPS)])}, tables=tables)
    except fdb.InputError as error:
        if "snapshot" not in str(error):
            raise


def keep_up(db: fdb.Database, rng: random.Random) -> Iterator[None]:
    """Snapshots, held for a while and dropped, and ``compact`` now and then. Only one process may do it."""
    while True:
        held = db.list_snapshots()
        if rng.random() < 0.15:
            db.compact()
        elif len(held) < SNAPSHOTS_HELD_MAX and rng.random() < 0.5:
            db.snapshot(f"s{time.time_ns()}")
        # Now and then there is none, for as long as they hold the rows of all groups, none can be forgotten.
        for snapshot in held if rng.random() < 0.5 else held[:1]:
            db.drop_snapshot(snapshot.name)
        yield
        time.sleep(rng.uniform(0.2, 2))


WRITERS: dict[str, Callable[[fdb.Database, random.Random], Iterator[None]]] = {
    "small": write_small,
    "small too": write_small,
    "large": write_large,
    "pairs": write_pairs,
    "forget": forget,
    "upkeep": keep_up,
}


# --- checks -----------------------------------------------------------------------------------


def check(db: fdb.Database, rng: random.Random) -> int:
    """Check some groups of a database that stays as it is; how many keys were read both ways."""
    groups = rng.sample(range(GROUPS), rng.choice([1, 1, 4, 16]))
    users = users_of(groups)
    table = rng.choice(("small", "large"))
    newest = _offline(db, table, users, rng)
    online = _online(db, table, users, rng)
    for user, row, expected in zip(users, online, newest, strict=True):
        # One key at a time has no event timestamp.
        if row != (expected if row is None or expected is None else expected[: len(row)]):
            raise Violation(f"{table}, user {user}: online {row}, offline {expected}")
    _check_groups(table, online)
    _check_groups(f"{table} as of then", _as_of(db, table, users, _some_time(table, rng)))
    left, right = (_online(db, name, users, rng, columns=True) for name in ("left", "right"))
    for user, one, other, row in zip(users, left, right, _as_of(db, "left", users, END), strict=True):
        if one != other:
            raise Violation(f"user {user}: left {one} and right {other} are of one commit")
        if one is not None and (row is None or row[0] < one[0]):
            raise Violation(f"user {user}: left is newer online, {one}, than offline, {row}")
    return 2 * len(users)


def _some_time(table: str, rng: random.Random) -> datetime:
    if table == "large":
        return T0 + timedelta(seconds=rng.randrange(LARGE_SLOTS))
    return datetime.now(UTC) - timedelta(seconds=rng.uniform(0, 3 * LATE_SECONDS))


def _check_groups(where: str, rows: Sequence[Row]) -> None:
    for first in range(0, len(rows), GROUP_USERS):
        group = rows[first : first + GROUP_USERS]
        found = [row for row in group if row is not None]
        if len(found) not in (0, GROUP_USERS):
            raise Violation(f"{where}: {len(found)} of the {GROUP_USERS} users of a group: {group}")
        if len({row[0] for row in found}) > 1 or sum(row[1] for row in found):
            raise Violation(f"{where}: a group of several commits: {group}")


def _plain(columns: Sequence[Any]) -> list[Row]:
    """Rows of arrays; None for one whose first value is null, as that of a stored row never is."""
    return [None if row[0] is None else row for row in zip(*(column.tolist() for column in columns), strict=True)]


def _as_of(db: fdb.Database, table: str, users: list[int], time_asked: datetime) -> list[Row]:
    asked = {"user": users, "event_timestamp": [time_asked] * len(users)}
    found = db.get_historical_features(asked, references(table), include_event_timestamps=True, threads=1).to_numpy()
    return _plain([found[name] for name in (*FEATURES, f"{table}__event_timestamp")])


def _offline(db: fdb.Database, table: str, users: list[int], rng: random.Random) -> list[Row]:
    """The newest row of each user: joined, or now and then looked for in all that is stored."""
    if rng.random() < 0.9:
        return _as_of(db, table, users, END)
    found = db.get_historical_features(None, references(table), latest=True, threads=1).to_numpy()
    rows = _plain([found[name] for name in (*FEATURES, "event_timestamp")])
    latest = dict(zip(found["user"].tolist(), rows, strict=True))
    return [latest.get(user) for user in users]


def _online(db: fdb.Database, table: str, users: list[int], rng: random.Random, columns: bool = False) -> list[Row]:
    """Read one by one, as few rows, as columns, or by a prepared reader."""
    way = "columns" if columns else rng.choice(["one", "few", "columns", "many"])
    if way == "one":
        reader = db.online_reader(references(table))
        rows = [tuple(reader.get(user).values()) for user in users]
        return [None if row[0] is None else row for row in rows]
    if way == "many":
        many = db.online_reader(references(table)).get_many(users)
        values = [
            [value if status == fdb.Status.PRESENT else None for value, status in zip(column, codes, strict=True)]
            for column, codes in ((many.columns[name].tolist(), many.statuses[name].tolist()) for name in FEATURES)
        ]
        rows = list(zip(*values, many.event_timestamps[table].tolist(), strict=True))
        return [None if row[0] is None else row for row in rows]
    given = [{"user": user} for user in users] if way == "few" else {"user": users}
    response = db.get_online_features(references(table), given)
    values = [response.to_dict()[name] for name in FEATURES]
    rows = list(zip(*values, response.event_timestamps[table].tolist(), strict=True))
    return [None if row[0] is None else row for row in rows]


def content(db: fdb.Database) -> str:
    """All of history and of the online values, as a short text."""
    found = hashlib.sha256()
    everyone = users_of(range(GROUPS))
    for table in TABLES:
        history = db.get_historical_features(None, references(table), threads=1).to_numpy()
        found.update(repr([column.tolist() for column in history.values()]).encode())
        found.update(repr(db.get_online_features(references(table), {"user": everyone}).to_dict()).encode())
    return found.hexdigest()[:16]
