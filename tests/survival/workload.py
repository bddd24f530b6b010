"""A random workload: a list of steps made from a seed, each of which is one call on a database.

The same seed gives the same steps, and the same content after each (`digest`), whatever the clock says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import featuredb as fdb
from featuredb.offline import ingest, merge, merge_beside
from featuredb.storage import snapshots

USERS = [f"user {number}" for number in range(12)]
DAYS = list(range(3))
T0 = datetime(2013, 1, 1, tzinfo=UTC)
VECTOR_LENGTH = 300
BATCH_ROWS = 6
SNAPSHOTS_HELD_MAX = 2


@dataclass(frozen=True)
class Step:
    """One call: its kind and what it is given."""

    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items() if name != "rows")
        return f"{self.kind}({shown})"


def small_limits(batch_rows: int = BATCH_ROWS) -> None:
    """Make a few rows reach what only large data does: ingests, merges and drops in several parts."""
    for module, name, value in (
        (ingest, "INGEST_BATCH_ROWS", batch_rows),
        (ingest, "INGEST_MEMORY_ROWS", batch_rows),
        (merge, "MERGE_FANOUT", 3),
        (merge, "MERGE_LOCKED_ROWS_MAX", batch_rows),
        (merge_beside, "MERGE_STAGE_BYTES", 40 * batch_rows),
        (merge_beside, "MERGE_PAUSE_SECONDS", 0),
        (snapshots, "_BATCH_ROWS", 4),
    ):
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name} any more; name its successor here")
        setattr(module, name, value)


def steps(seed: int, count: int) -> list[Step]:
    """The definitions, then `count` random steps."""
    rng = random.Random(seed)
    made = [Step("apply", {"version": 0})]
    snapshots_held: list[str] = []
    version, gone = 0, False
    for number in range(count):
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind == "apply":
            version += 1
            made.append(Step("apply", {"version": version}))
        elif kind == "snapshot" and len(snapshots_held) < SNAPSHOTS_HELD_MAX:
            snapshots_held.append(f"s{number}")
            made.append(Step("snapshot", {"name": snapshots_held[-1]}))
        elif kind in ("snapshot", "drop snapshot"):
            if snapshots_held:
                made.append(Step("drop snapshot", {"name": snapshots_held.pop(rng.randrange(len(snapshots_held)))}))
        elif kind == "table":
            made.append(Step("delete table" if gone else "create table"))
            gone = not gone
        elif kind == "forget":
            # It is refused while a snapshot holds the data.
            if not snapshots_held:
                made.append(Step("forget", {"user": rng.choice(USERS)}))
        elif kind == "backup":
            made.append(Step("backup", {"name": f"backup{number}.fdb"}))
        elif kind in ("compact", "materialize", "reopen"):
            made.append(Step(kind))
        else:
            made.append(_ingest_step(rng, kind))
    return made


# How often each kind of step is drawn.
WEIGHTS = {
    "ingest": 8,
    "ingest batches": 3,
    "ingest offline": 2,
    "ingest online": 2,
    "ingest vectors": 2,
    "ingest partial": 1,
    "ingest rejected": 1,
    "materialize": 2,
    "apply": 2,
    "snapshot": 2,
    "drop snapshot": 2,
    "table": 1,
    "compact": 1,
    "backup": 1,
    "reopen": 1,
} | ({"forget": 2} if hasattr(fdb.Database, "forget") else {})


def _ingest_step(rng: random.Random, kind: str) -> Step:
    count = rng.randint(BATCH_ROWS + 1, 4 * BATCH_ROWS) if kind == "ingest batches" else rng.randint(1, BATCH_ROWS)
    rows: dict[str, list[Any]] = {
        "user": [rng.choice(USERS) for _ in range(count)],
        # Few distinct times, so that many rows replace earlier ones.
        "event_timestamp": [T0 + timedelta(hours=rng.randrange(30)) for _ in range(count)],
    }
    if kind == "ingest vectors":
        rows["day"] = [rng.choice(DAYS) for _ in range(count)]
        rows["vector"] = [[float(rng.randrange(100))] * VECTOR_LENGTH for _ in range(count)]
        return Step(kind, {"rows": rows})
    rows["amount"] = [rng.choice([None, rng.random()]) for _ in range(count)]
    if kind != "ingest partial":
        rows["note"] = [rng.choice([None, "", "n" * rng.randrange(200)]) for _ in range(count)]
    if kind == "ingest rejected":
        rows["user"][rng.randrange(count)] = None
    return Step(kind, {"rows": rows})


def perform(db: fdb.Database, step: Step) -> None:
    """Make the call, all but `reopen`, which is up to whoever holds `db`."""
    _CALLS[step.kind](db, **step.arguments)


def _apply(db: fdb.Database, version: int) -> None:
    # Each version takes away the feature of the one before.
    extra = [fdb.Feature(f"extra{version}", "int32")] if version else []
    amount, note = fdb.Feature("amount", "float64"), fdb.Feature("note", "string")
    db.apply(
        [
            fdb.Entity("user", "string"),
            fdb.Entity("day", "int64"),
            fdb.FeatureTable("orders", ["user"], [amount, note, *extra], description=f"version {version}"),
            fdb.FeatureTable("apart", ["user"], [amount, note], online=version % 2 == 0),
            fdb.FeatureTable("vectors", ["user", "day"], [fdb.Feature("vector", f"float32[{VECTOR_LENGTH}]")]),
            fdb.FeatureService("model", ["orders:amount", "vectors:vector"]),
        ]
    )


def _ingest(db: fdb.Database, rows: dict[str, list[Any]], table: str = "orders", **options: Any) -> None:
    partial = options.pop("partial", True)
    if table == "orders" and not partial:
        known = db.get_feature_table(table).feature_names
        rows = rows | {name: [None] * len(rows["user"]) for name in known if name not in rows}
    db.ingest(table, rows, partial=partial, **options)


def _ingest_online(db: fdb.Database, rows: dict[str, list[Any]]) -> None:
    # With its online values switched off, the table takes the rows as history.
    _ingest(db, rows, "apart", to="online" if db.get_feature_table("apart").online else "offline")


def _create_table(db: fdb.Database) -> None:
    db.apply(fdb.FeatureTable("gone", ["user"], [fdb.Feature("amount", "float64")]))


def _backup(db: fdb.Database, name: str) -> None:
    db.backup(Path(db.path).parent / name)


_CALLS: dict[str, Callable[..., None]] = {
    "apply": _apply,
    "ingest": lambda db, rows: _ingest(db, rows, partial=False),
    "ingest batches": lambda db, rows: _ingest(db, rows, partial=False),
    "ingest offline": lambda db, rows: _ingest(db, rows, "apart", to="offline"),
    "ingest online": _ingest_online,
    "ingest vectors": lambda db, rows: _ingest(db, rows, "vectors"),
    "ingest partial": lambda db, rows: _ingest(db, rows, partial=True),
    "ingest rejected": lambda db, rows: _ingest(db, rows, partial=False, on_error="skip"),
    "materialize": lambda db: db.materialize() and None,
    "snapshot": lambda db, name: db.snapshot(name) and None,
    "drop snapshot": lambda db, name: db.drop_snapshot(name),
    "create table": _create_table,
    "delete table": lambda db: db.delete_feature_table("gone"),
    "forget": lambda db, user: db.forget([{"user": user}]) and None,
    "compact": lambda db: db.compact(),
    "backup": _backup,
}
