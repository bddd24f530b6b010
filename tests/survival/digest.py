"""What a database says of its content, as one short text: equal content gives an equal digest."""

from __future__ import annotations

import hashlib
from typing import Any

import featuredb as fdb

from .workload import DAYS, USERS

_NOW = "2013-02-01"


def digest(db: fdb.Database) -> str:
    """Log, definitions, history, online values, rejected rows and snapshots; times of commits are left out."""
    parts = _state(db)
    for table in db.list_feature_tables():
        parts.append([(row.commit_id, row.row, row.column, row.value, row.reason) for row in db.rejected(table.name)])
    for snapshot in db.list_snapshots():
        parts.append([snapshot.name, snapshot.commit_id, _state(db.at(snapshot.name))])
    log = db.log()
    return f"{len(log)} commits, {hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def _state(db: fdb.Database) -> list[Any]:
    tables = db.list_feature_tables()
    parts: list[Any] = [
        [(commit.id, commit.operation, commit.table, commit.rows) for commit in db.log()],
        [db.list_entities(), tables, db.list_feature_services()],
    ]
    for table in tables:
        references = [f"{table.name}:{name}" for name in table.feature_names]
        parts.append([table.name, _history(db, references)])
        if table.online:
            parts.append(online(db, references, "day" in table.entities))
    return parts


def _history(db: fdb.Database, references: list[str]) -> list[Any]:
    frame = db.get_historical_features(None, references).to_pandas()
    return [(name, [_plain(value) for value in frame[name].tolist()]) for name in frame]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def online(db: fdb.Database, references: list[str], by_day: bool) -> list[Any]:
    """Online values of every key that the workload uses."""
    keys: dict[str, list[Any]] = {"user": USERS}
    if by_day:
        keys = {"user": [user for user in USERS for _ in DAYS], "day": DAYS * len(USERS)}
    values = db.get_online_features(references, keys, now=_NOW)
    shown = {name: [_plain(value) for value in column] for name, column in values.to_dict().items()}
    return [shown, values.statuses, {name: times.tolist() for name, times in values.event_timestamps.items()}]
