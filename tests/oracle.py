"""What the semantics say, as plain and slow Python: lists, dicts and loops, nothing of featuredb.

Timestamps are int microseconds since 1970-01-01 UTC, null is None, a key is a tuple. A stored row is a `Row`;
its total order is (event, created), a row without a created timestamp being older than any with one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

Key = tuple[Any, ...]


@dataclass
class Row:
    """One row of history. `commit_us` is the time of the commit that brought its values."""

    key: Key
    event: int
    created: int | None
    values: dict[str, Any]
    commit_us: int = 0

    @property
    def order(self) -> tuple[int, bool, int]:
        return self.event, self.created is not None, self.created or 0

    @property
    def known_from(self) -> int:
        """When the row became known: when it was created, or else committed."""
        return self.commit_us if self.created is None else self.created


def same(a: object, b: object) -> bool:
    """Whether two values are the very same: NaN equals NaN, 0.0 is not -0.0, 1 is not True."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def same_values(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


@dataclass
class Table:
    """The history of one feature table, and its latest rows."""

    features: list[str]
    max_age: int | None = None
    history: list[Row] = field(default_factory=list)
    online: list[Row] = field(default_factory=list)

    def ingest(self, rows: list[Row], commit_us: int = 0, to: str = "both") -> None:
        """Rows of one ingest: a later row replaces an earlier one of the same key and timestamps."""
        distinct: list[Row] = []
        for row in rows:
            distinct = [other for other in distinct if not is_one(row, other)]
            distinct.append(Row(row.key, row.event, row.created, row.values, commit_us))
        if to in ("both", "offline"):
            for row in distinct:
                self.history = put(self.history, row)
        if to in ("both", "online"):
            self.serve(distinct)

    def materialize(self, start: int | None = None, end: int | None = None) -> None:
        """Serve the stored rows from `start` to `end`, both included."""
        self.serve(
            [row for row in self.history if (start is None or row.event >= start) and (end is None or row.event <= end)]
        )

    def forget(self, keys: list[Key], places: list[int]) -> None:
        """No row is left of the keys that have, at `places`, the values of one of `keys`."""

        def stays(row: Row) -> bool:
            return not any(same_key(tuple(row.key[place] for place in places), key) for key in keys)

        self.history = list(filter(stays, self.history))
        self.online = list(filter(stays, self.online))

    def serve(self, rows: list[Row]) -> None:
        """Keep, of each key, the greatest row; of two that are one, that of the later commit."""
        for row in rows:
            stored = [other for other in self.online if other.key == row.key]
            if stored and stored[0].order == row.order and same_values(stored[0].values, row.values):
                continue
            if not stored or (row.order, row.commit_us) >= (stored[0].order, stored[0].commit_us):
                self.online = [other for other in self.online if other.key != row.key]
                self.online.append(row)

    def fill(self, rows: list[Row], to: str = "both") -> list[Row]:
        """Rows with the features they lack: those of the row before each, that of the same order included."""
        filled = []
        for row in rows:
            before: Row | None = None
            for other in self.online if to == "online" else self.history:
                if same_key(other.key, row.key) and other.order <= row.order:
                    before = other if before is None or other.order > before.order else before
            values = dict.fromkeys(self.features) if before is None else before.values
            filled.append(Row(row.key, row.event, row.created, {**values, **row.values}))
        return filled

    def join(self, key: Key, at: int | None, known_at: int | None = None, limited: bool = True) -> Row | None:
        """The greatest row of `key` with ``at - max_age <= event <= at``, known by `known_at`."""
        if at is None or None in key:
            return None
        best = None
        for row in self.history:
            if not same_key(row.key, key) or row.event > at:
                continue
            if limited and self.max_age is not None and row.event < at - self.max_age:
                continue
            if known_at is not None and row.known_from > known_at:
                continue
            if best is None or row.order > best.order:
                best = row
        return best

    def stored(self, start: int | None = None, end: int | None = None, known_at: int | None = None) -> list[Row]:
        """The rows from `start` to `end`, both included, known by `known_at`; by key, then in the total order."""
        rows = [
            row
            for row in self.history
            if (start is None or row.event >= start)
            and (end is None or row.event <= end)
            and (known_at is None or row.known_from <= known_at)
        ]
        return sorted(rows, key=lambda row: (row.key, row.order))

    def read(self, key: Key, now: int) -> tuple[dict[str, Any], dict[str, str], int | None]:
        """Online values, the name of each one's status, and the event timestamp."""
        row = None
        for other in self.online:
            if None not in key and same_key(other.key, key):
                row = other
        nothing = dict.fromkeys(self.features)
        if row is None:
            return nothing, dict.fromkeys(self.features, "NOT_FOUND"), None
        if self.max_age is not None and now - row.event > self.max_age:
            return nothing, dict.fromkeys(self.features, "OUTSIDE_MAX_AGE"), row.event
        statuses = {name: "NULL_VALUE" if row.values[name] is None else "PRESENT" for name in self.features}
        return dict(row.values), statuses, row.event


def same_key(a: Key, b: Key) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def is_one(a: Row, b: Row) -> bool:
    """Whether two rows are one: the later replaces the earlier."""
    return same_key(a.key, b.key) and a.event == b.event and a.created == b.created


def put(history: list[Row], row: Row) -> list[Row]:
    """History with `row` in it; the same row again changes nothing."""
    for other in history:
        if is_one(row, other) and same_values(row.values, other.values):
            return history
    return [*(other for other in history if not is_one(row, other)), row]
