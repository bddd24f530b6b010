"""The workload's sizes and columns, and its data as read back from a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DAY_US = 86_400_000_000
DAYS = 90
SPAN_US = DAYS * DAY_US
MAX_AGE_US = 7 * DAY_US
LATE_SHARE = 0.02
LATE_US_MAX = 3 * DAY_US
UNKNOWN_SHARE = 0.05
NULL_SHARE = 0.05
# Exactly at an event, exactly as old as the max age, and one microsecond older.
EDGE_SHARE = 0.01
SINGLE_KEYS = 1_000
MANY_KEYS = 10_000
SMALL_ROWS = 1_000
WRITES = 100
# Online reads and loads have more keys than history has entities.
ONLINE_KEYS_PER_ENTITY = 10
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

# History dealt out to many feature tables, each with these features.
PARTS = 20
PART_FEATURES = ("price", "visits")

ENTITIES_MAX = 1 << 20


@dataclass(frozen=True)
class Workload:
    """Sizes and form of generated data.

    Attributes
    ----------
    rows, entities, entity_rows : int
        Rows of history, distinct entities, rows of the entity dataframe.
    zipf : bool
        The entity of rank r has a share of rows in proportion to 1 / r, in history and entity dataframe alike;
        otherwise all have the same.
    every_entity : bool
        Each entity has a row at least.
    parts : bool
        Work out the answers for history dealt out to `PARTS` tables as well.
    """

    rows: int
    entities: int
    entity_rows: int
    zipf: bool = False
    every_entity: bool = False
    parts: bool = False
    seed: int = 0

    def problems(self) -> list[str]:
        """What is wrong with the sizes; nothing when they can be generated."""
        sizes = {"rows": self.rows, "entities": self.entities, "entity_rows": self.entity_rows}
        found = [f"{name} must be at least 1" for name, value in sizes.items() if value < 1]
        if self.entities > ENTITIES_MAX:
            found.append(f"entities must be at most {ENTITIES_MAX:,}")
        return found

    @property
    def first_rows(self) -> int:
        """Rows of history that go to a system which is given only the first of them."""
        return min(self.rows, FIRST_ROWS_MAX)

    @property
    def online_keys(self) -> int:
        """Keys of the online reads and loads."""
        return min(self.entities * ONLINE_KEYS_PER_ENTITY, ENTITIES_MAX)


def read_workload(folder: Path) -> Workload:
    """The sizes of the data in a folder."""
    return Workload(**json.loads((folder / "workload.json").read_text()))


def write_workload(folder: Path, workload: Workload) -> None:
    """Keep the sizes beside the data."""
    (folder / "workload.json").write_text(json.dumps(asdict(workload)))


def read_expected(folder: Path) -> dict[str, dict[str, str]]:
    """The digests of the right answers, by kind of answer and column."""
    expected: dict[str, dict[str, str]] = json.loads((folder / "expected.json").read_text())
    return expected


def write_expected(folder: Path, expected: dict[str, dict[str, str]]) -> None:
    """Keep the digests of the right answers."""
    (folder / "expected.json").write_text(json.dumps(expected))


def as_users_hold_it(frame: Any) -> Any:
    """A frame of rows as pandas users have it: NaN for null floats, Int64 for null integers."""
    return frame.astype({name: "Int64" for name in NULLABLE if FEATURES[name] == "int64"})


def history_frame(folder: Path, file: str = "history.parquet") -> Any:
    """History in the order of arrival, or of another file."""
    import pandas as pd

    return as_users_hold_it(pd.read_parquet(folder / file))


def latest_frame(folder: Path) -> Any:
    """The latest row of each entity, in the order of keys."""
    import pandas as pd

    return as_users_hold_it(pd.read_parquet(folder / "latest.parquet"))
