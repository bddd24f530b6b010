"""The workload's sizes and columns, and its data as read back from a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DAY_US = 86_400_000_000
DAYS = 90
MAX_AGE_US = 7 * DAY_US
LATE_SHARE = 0.02
LATE_US_MAX = 3 * DAY_US
UNKNOWN_SHARE = 0.05
NULL_SHARE = 0.05
# Exactly at an event, exactly as old as the max age, and one microsecond older.
EDGE_SHARE = 0.01
SINGLE_KEYS = 1_000
MANY_KEYS = 10_000
# SQLite inserts row by row: it gets the first rows only, and its time is compared per row.
FIRST_ROWS_MAX = 500_000

KEY = "entity_id"
TIME = "event_timestamp"
ROW = "row"
FEATURES = {
    "price": "float64",
    "distance": "float64",
    "temperature": "float64",
    "score": "float64",
    "share": "float32",
    "weight": "float32",
    "visits": "int64",
    "last_order": "int64",
    "active": "bool",
    "category": "string",
}
NULLABLE = ("distance", "weight", "last_order", "category")
CATEGORIES = tuple(f"group_{number:02d}" for number in range(20))

ENTITIES_MAX = 1 << 20


@dataclass(frozen=True)
class Workload:
    """Sizes: rows of history, distinct entities, rows of the entity dataframe."""

    rows: int
    entities: int
    entity_rows: int
    seed: int = 0

    def problems(self) -> list[str]:
        """What is wrong with the sizes; nothing when they can be generated."""
        found = [f"{name} must be at least 1" for name, value in asdict(self).items() if name != "seed" and value < 1]
        if self.entities > ENTITIES_MAX:
            found.append(f"entities must be at most {ENTITIES_MAX:,}")
        return found

    @property
    def first_rows(self) -> int:
        """Rows of history that go to a system which is given only the first of them."""
        return min(self.rows, FIRST_ROWS_MAX)


def read_workload(folder: Path) -> Workload:
    """The sizes of the data in a folder."""
    return Workload(**json.loads((folder / "workload.json").read_text()))


def read_expected(folder: Path) -> dict[str, dict[str, str]]:
    """The digests of the right answers, by kind of answer and column."""
    expected: dict[str, dict[str, str]] = json.loads((folder / "expected.json").read_text())
    return expected


def history_frame(folder: Path) -> Any:
    """History in the order of arrival as pandas users hold it: NaN for null floats, Int64 for null integers."""
    import pandas as pd

    frame = pd.read_parquet(folder / "history.parquet")
    return frame.astype({name: "Int64" for name in NULLABLE if FEATURES[name] == "int64"})
