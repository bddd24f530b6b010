"""Hypothesis strategies that aim at corners, and the same values in every container that featuredb takes.

Values are plain Python: None for null, timestamps as int microseconds UTC (see `oracle`). Times are a few
microseconds around one base, so that ties and both sides of a max age are common.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pandas as pd
import pyarrow as pa
import pytest

import featuredb as fdb

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_1_US = -62_135_596_800_000_000
YEAR_9999_US = 253_402_300_799_999_999
# Before 1970, beyond the years of nanoseconds (1677 to 2262), and both ends of what is legal.
BASES_US = [1_357_034_400_000_000, -5, -9_300_000_000_000_000, 9_300_000_000_000_000, YEAR_1_US, YEAR_9999_US - 8]
LONG_US = YEAR_9999_US - YEAR_1_US

_INTS = {
    f"{sign}int{bits}": (0 if sign else -(2 ** (bits - 1)), 2 ** (bits if sign else bits - 1) - 1)
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
_TEXTS = ["", "a", "a\x00", "\x00", "\x01", "\x00\x01", "a\x01b", "é", "😀", "b"]
# NaN, infinities and both zeros; each float is exact in 32 bits too.
_FLOATS = [0.0, -0.0, 1.5, -2.25, math.inf, -math.inf, math.nan, 2.0**-126, 2.0**127]


def item_and_length(dtype: str) -> tuple[str, int]:
    """Dtype of the elements, and how many a vector has; -1 for a list."""
    opened = dtype.partition("[")
    return (opened[2][:-1], -1) if opened[0] == "list" else (opened[0], int(opened[2][:-1]))


POOLS: dict[str, list[Any]] = {
    "bool": [False, True],
    "string": _TEXTS,
    "bytes": [*(text.encode() for text in _TEXTS), b"\xff\xfe"],
    "float32": _FLOATS,
    "float64": [*_FLOATS, 0.1, 1.7976931348623157e308],
    "timestamp": [YEAR_1_US, -1, 0, 1, YEAR_9999_US],
    **{name: [low, high, 1, 11, 0 if low else 2] for name, (low, high) in _INTS.items()},
}
SCALARS = list(POOLS)
KEY_DTYPES = [name for name in POOLS if not name.startswith("float")]
_FIXED = [name for name in SCALARS if name not in ("string", "bytes")]
for _name in SCALARS:
    _pool = POOLS[_name]
    POOLS[f"list[{_name}]"] = [[], _pool[:1], _pool, _pool[::-1], [_pool[0]] * 3]
for _place, _name in enumerate(_FIXED):
    # Lengths 1, 2, 3 and 5: elements of odd and even places, widths that are and are not those of a word.
    _length = (1, 2, 3, 5)[_place % 4]
    POOLS[f"{_name}[{_length}]"] = [(POOLS[_name] * 5)[start : start + _length] for start in range(4)]
NESTED = [name for name in POOLS if name not in SCALARS]
CONTAINERS = ["rows", "dict", "numpy", "pandas", "arrow", "polars"]
ARROW_TYPES: dict[str, pa.DataType] = {
    name: {
        "bool": pa.bool_(),
        "string": pa.string(),
        "bytes": pa.binary(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }.get(name)
    or pa.type_for_alias({"float32": "float", "float64": "double"}.get(name, name))
    for name in SCALARS
}
for _name in NESTED:
    _item, _length = item_and_length(_name)
    ARROW_TYPES[_name] = pa.list_(ARROW_TYPES[_item], _length)
_NULLABLE = {ARROW_TYPES[name]: pd.api.types.pandas_dtype(name.replace("i", "I").replace("u", "U")) for name in _INTS}

Columns = dict[str, tuple[str, list[Any]]]


def to_datetime(us: int | None) -> datetime | None:
    """Microseconds as an aware datetime."""
    return None if us is None else EPOCH + timedelta(microseconds=us)


def to_us(moment: datetime) -> int:
    """A datetime as microseconds; a naive one is UTC."""
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - EPOCH) // timedelta(microseconds=1)


def _python(dtype: str, values: list[Any]) -> list[Any]:
    if dtype.endswith("]"):
        item, _ = item_and_length(dtype)
        return [None if value is None else _python(item, value) for value in values]
    return list(map(to_datetime, values)) if dtype == "timestamp" else values


def _arrow(columns: Columns) -> pa.Table:
    return pa.table({name: pa.array(values, ARROW_TYPES[dtype]) for name, (dtype, values) in columns.items()})


def _numpy(dtype: str, values: list[Any]) -> Any:
    if dtype.startswith("list["):
        rows = [None if value is None else np.ma.getdata(_numpy(dtype[5:-1], value)) for value in values]
        return np.fromiter(rows, dtype=object, count=len(rows))
    if dtype.endswith("]"):
        item, length = item_and_length(dtype)
        flat = [element for value in values for element in ([None] * length if value is None else value)]
        return _numpy(item, flat).reshape(len(values), length)
    if dtype in ("string", "bytes"):
        return np.array([*values, None], dtype=object)[:-1]
    kind = "M8[us]" if dtype == "timestamp" else dtype
    filled = np.array([0 if value is None else value for value in values], dtype=kind)
    return np.ma.MaskedArray(filled, mask=[value is None for value in values])


def _pandas(columns: Columns) -> Any:
    frame = _arrow(columns).to_pandas(types_mapper=_NULLABLE.get)
    for name, (dtype, values) in columns.items():
        if dtype.endswith("]"):
            # Not left to Arrow, which makes floats of the integers of vectors among which one is null.
            arrays = [None if value is None else np.ma.getdata(_numpy(f"list[{item_and_length(dtype)[0]}]", [value])[0])
                      for value in values]  # fmt: skip
            frame[name] = pd.Series(np.fromiter(arrays, dtype=object, count=len(arrays)), index=frame.index)
    return frame


def listed(table: pa.Table, which: Callable[[pa.DataType], bool] = lambda item: True) -> pa.Table:
    """The table with its vectors, those of items that `which` names, as lists."""
    for place, field in enumerate(table.schema):
        if pa.types.is_fixed_size_list(field.type) and which(field.type.value_type):
            table = table.set_column(
                place, field.name, pa.array(table[field.name].to_pylist(), pa.list_(field.type.value_type))
            )
    return table


def _polars(columns: Columns) -> Any:
    import polars as pl

    # Polars 1.0 makes integers of the timestamps in vectors.
    return pl.from_arrow(listed(_arrow(columns), pa.types.is_timestamp))


def container(kind: str, columns: Columns) -> Any:
    """The columns, {name: (dtype, values)}, in a container of the kind."""
    makers: dict[str, Callable[[], Any]] = {
        "rows": lambda: [
            dict(zip(columns, row, strict=True)) for row in zip(*(_python(*c) for c in columns.values()), strict=True)
        ],
        "dict": lambda: {name: _python(*column) for name, column in columns.items()},
        "numpy": lambda: {name: _numpy(*column) for name, column in columns.items()},
        "pandas": lambda: _pandas(columns),
        "arrow": lambda: _arrow(columns),
        "polars": lambda: _polars(columns),
    }
    return makers[kind]()


def small_batches(patch: pytest.MonkeyPatch, rows: int, memory_rows: int | None = None) -> None:
    """Make ingests and joins work in batches of this many rows, or `memory_rows` of data that is in memory."""
    names = ("ingest.INGEST_BATCH_ROWS", "training.JOIN_BATCH_ROWS", "retrieve.JOIN_BATCH_ROWS")
    for name in names:
        patch.setattr(f"featuredb.offline.{name}", rows)
    patch.setattr("featuredb.offline.ingest.INGEST_MEMORY_ROWS", memory_rows or rows)


# The longest ingest whose rows go to the tail, and the rows at which that becomes a segment.
TAILS = [(0, 1), (2, 3), (4, 9), (1024, 4096)]


def set_tails(patch: pytest.MonkeyPatch, small_rows: int, tail_rows: int) -> None:
    """Make tails as long as this; with no small ingest at all, every one makes a segment."""
    patch.setattr("featuredb.offline.ingest.SMALL_INGEST_ROWS_MAX", small_rows)
    patch.setattr("featuredb.offline.append.APPENDED_ROWS_MAX", small_rows)
    patch.setattr("featuredb.storage.tail.TAIL_ROWS_MAX", tail_rows)


def tiny_limits(patch: pytest.MonkeyPatch) -> None:
    """Make a few rows reach what only large data does: many chunks, blocks, tiers, threads, evictions."""
    for name, value in {
        "storage.encode.CHUNK_ROWS_MAX": 4,
        "storage.encode.CHUNK_BYTES_TARGET": 32,
        "storage.packing.PACKED_SAVING_MIN": -1000,
        "storage.packing.CHUNK_ROWS_MAX": 3,
        "storage.packing._SAMPLE_ROWS": 2,
        "storage.segment.SEGMENTS_HELD_MAX": 1,
        "offline.ingest.STAGE_BYTES": 40,
        "storage.keyspace.KEYS_PER_BLOCK": 2,
        "offline.dictionary.KEYS_PER_BLOCK": 2,
        "offline.dictionary.TREE_LOOKUPS_MAX": 0,
        "offline.dictionary._DISTINCT_MIN": 1,
        "offline.merge.MERGE_FANOUT": 2,
        "offline.merge._TIER_ROWS_MIN": 2,
        "offline.merge.SEGMENT_ROWS_MAX": 20,
        "offline.merge.MERGE_LOCKED_ROWS_MAX": 6,
        "offline.merge_beside.MERGE_STAGE_BYTES": 40,
        "offline.merge_beside.MERGE_PAUSE_SECONDS": 0,
        "threads.ROWS_PER_THREAD_MIN": 2,
        "threads.TASKS_AHEAD": 1,
        "online.index.BATCH_ROWS": 2,
    }.items():
        patch.setattr(f"featuredb.{name}", value)


def plain(array: pa.ChunkedArray | pa.Array) -> list[Any]:
    """An Arrow column as plain values, timestamps as int microseconds."""
    return list(map(as_plain, array.to_pylist()))


def as_plain(value: Any) -> Any:
    """A value of any output as plain Python: timestamps as int microseconds, arrays as lists."""
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, np.ndarray | list):
        return list(map(as_plain, value))
    if isinstance(value, pd.Timestamp):
        value = value.to_pydatetime()
    if isinstance(value, datetime):
        return to_us(value)
    if isinstance(value, np.datetime64):
        return int(value.astype("M8[us]").astype(np.int64))
    return value.item() if isinstance(value, np.generic) else value


def rows_of(array: Any) -> list[Any]:
    """A numpy column as plain values, None for what is masked."""
    masks = np.ma.getmaskarray(array).reshape(len(array), -1).all(axis=1) if len(array) else []
    return [None if mask else as_plain(value) for value, mask in zip(np.ma.getdata(array), masks, strict=True)]


@dataclass
class Batch:
    """Rows of one ingest, the container they come in, and whether that has a created timestamp column."""

    rows: list[oracle.Row]
    created: bool
    kind: str


@dataclass
class TableCase:
    """One feature table and what is ingested into it, in order."""

    name: str
    entities: list[str]
    features: dict[str, str]
    max_age: int | None
    batches: list[Batch]

    def definition(self) -> fdb.FeatureTable:
        return fdb.FeatureTable(
            self.name,
            entities=self.entities,
            features=[fdb.Feature(name, dtype) for name, dtype in self.features.items()],
            max_age=None if self.max_age is None else timedelta(microseconds=self.max_age),
        )

    def oracle(self) -> oracle.Table:
        return oracle.Table(list(self.features), self.max_age)

    def data(self, batch: Batch, entities: dict[str, str]) -> Any:
        """The rows of a batch as given to ``ingest``."""
        columns: Columns = {
            name: (entities[name], [row.key[place] for row in batch.rows]) for place, name in enumerate(self.entities)
        }
        columns["event_timestamp"] = ("timestamp", [row.event for row in batch.rows])
        if batch.created:
            columns["created_timestamp"] = ("timestamp", [row.created for row in batch.rows])
        for name, dtype in self.features.items():
            columns[name] = (dtype, [row.values[name] for row in batch.rows])
        # A list of no dicts has no columns.
        return container("dict" if batch.kind == "rows" and not batch.rows else batch.kind, columns)

    def seen(self, batch: Batch) -> list[oracle.Row]:
        """The rows as they arrive: pandas takes NaN for null."""
        if batch.kind != "pandas":
            return batch.rows
        return [
            oracle.Row(row.key, row.event, row.created, {name: no_nan(value) for name, value in row.values.items()})
            for row in batch.rows
        ]


def no_nan(value: Any) -> Any:
    """NaN as the null that pandas takes it for."""
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass
class Case:
    """Definitions, ingests, and entity rows to join or read: (values by entity, time or None)."""

    entities: dict[str, str]
    tables: list[TableCase]
    left: list[tuple[dict[str, Any], int | None]]
    base: int

    @property
    def definitions(self) -> list[Any]:
        return [fdb.Entity(name, dtype) for name, dtype in self.entities.items()] + [
            table.definition() for table in self.tables
        ]

    @property
    def references(self) -> list[str]:
        return [f"{table.name}:{feature}" for table in self.tables for feature in table.features]

    def left_columns(self) -> Columns:
        """The entity dataframe: keys, a label that names the row, and the time."""
        columns: Columns = {
            name: (dtype, [keys[name] for keys, _ in self.left]) for name, dtype in self.entities.items()
        }
        columns["label"] = ("int32", list(range(len(self.left))))
        columns["event_timestamp"] = ("timestamp", [at for _, at in self.left])
        return columns

    def load(self, db: fdb.Database) -> dict[str, oracle.Table]:
        """Apply and ingest all of it; returns what the oracle makes of it."""
        db.apply(self.definitions)
        expected = {table.name: table.oracle() for table in self.tables}
        for table in self.tables:
            for batch in table.batches:
                ingest(db, self, table, batch, expected[table.name])
        return expected


def ingest(
    db: fdb.Database, case: Case, table: TableCase, batch: Batch, expected: oracle.Table, to: str = "both"
) -> Any:
    """Ingest a batch into the database and the oracle."""
    report = db.ingest(table.name, table.data(batch, case.entities), to=to)
    commit_us = {commit.id: to_us(commit.time) for commit in db.log()}[report.commit_id]
    expected.ingest(table.seen(batch), commit_us, to)
    return report


# --- strategies -----------------------------------------------------------------------------------


def values(features: dict[str, str], number: int) -> dict[str, Any]:
    """A value or null for each feature. Their pools differ in length, so equal values do not go together."""
    pools = {name: [None, *POOLS[dtype], None] for name, dtype in features.items()}
    return {name: pool[(number + place) % len(pool)] for place, (name, pool) in enumerate(pools.items())}


@st.composite
def rows(
    draw: st.DrawFn, pools: list[list[Any]], features: dict[str, str], base: int, created: bool, most: int
) -> list[oracle.Row]:
    """Rows of one ingest: few keys, few times, repeats."""
    row = st.builds(
        lambda key, event, made, number: oracle.Row(
            key, base + event, base + made if created else None, values(features, number)
        ),
        st.tuples(*map(st.sampled_from, pools)),
        st.integers(0, 8),
        st.integers(0, 3),
        st.integers(0, 131),
    )
    return draw(st.lists(row, max_size=most))


@st.composite
def tables(
    draw: st.DrawFn,
    name: str,
    pools: dict[str, list[Any]],
    base: int,
    most_rows: int,
    created: bool | None,
    wide: bool,
) -> TableCase:
    """A table over some of the entities (if `wide`, all), in any order, and its ingests."""
    entities = draw(st.permutations(list(pools)))[: len(pools) if wide else draw(st.integers(1, len(pools)))]
    dtypes = draw(st.lists(st.one_of(*map(st.sampled_from, (SCALARS, NESTED))), min_size=1, max_size=3))
    dtypes = list(POOLS) if wide else dtypes
    features = {f"{name}_{place}": dtype for place, dtype in enumerate(dtypes)}
    max_age = draw(st.sampled_from([None, 1, 2, 3, 5, LONG_US]))
    batches = []
    for _ in range(draw(st.integers(0, 5))):
        with_created = draw(st.booleans()) if created is None else created
        found = draw(rows([pools[entity] for entity in entities], features, base, with_created, most_rows))
        batches.append(Batch(found, with_created, draw(st.sampled_from(CONTAINERS))))
    return TableCase(name, entities, features, max_age, batches)


def near(stored: tuple[TableCase, oracle.Row], keys: dict[str, Any], place: int) -> tuple[dict[str, Any], int]:
    """An entity row with the key of a stored row, at a time where that is just found, or just not."""
    table, row = stored
    age = table.max_age or 3
    at = row.event + [0, -1, 1, age, age + 1][place]
    return {**keys, **dict(zip(table.entities, row.key, strict=True))}, min(max(at, YEAR_1_US), YEAR_9999_US)


@st.composite
def cases(
    draw: st.DrawFn,
    tables_max: int = 2,
    most_rows: int = 8,
    most_left: int = 12,
    created: bool | None = None,
    wide: bool = False,
) -> Case:
    """Tables with history and entity rows to join with it; if `wide`, the first has all dtypes as keys and features."""
    names = [f"e{place}" for place in range(len(KEY_DTYPES) if wide else draw(st.integers(1, 3)))]
    entities = {
        name: dtype if wide else draw(st.sampled_from(KEY_DTYPES))
        for name, dtype in zip(names, KEY_DTYPES, strict=False)
    }
    pools = {
        name: draw(st.lists(st.sampled_from(POOLS[dtype]), min_size=1, max_size=3, unique=True))
        for name, dtype in entities.items()
    }
    base = draw(st.sampled_from(BASES_US))
    found = [
        draw(tables(f"t{place}", pools, base, most_rows, created, wide and place == 0))
        for place in range(draw(st.integers(1, tables_max)))
    ]
    # Any value of the dtype, so unknown keys as well, and nulls.
    keys = st.fixed_dictionaries(
        {
            name: st.one_of(*[st.sampled_from(pools[name])] * 3, st.sampled_from([None, *POOLS[dtype]]))
            for name, dtype in entities.items()
        }
    )
    times = st.one_of(
        *[st.integers(-3, 14).map(lambda offset: min(max(base + offset, YEAR_1_US), YEAR_9999_US))] * 6, st.none()
    )
    asked = st.tuples(keys, times)
    stored = [(table, row) for table in found for batch in table.batches for row in batch.rows]
    if stored:
        asked = st.one_of(asked, *[st.builds(near, st.sampled_from(stored), keys, st.sampled_from(range(5)))] * 3)
    left = draw(st.lists(asked, max_size=most_left))
    if left and draw(st.booleans()):
        left.append(left[0])
    used = {entity for table in found for entity in table.entities}
    left = [({name: row[name] for name in entities if name in used}, at) for row, at in left]
    return Case({name: dtype for name, dtype in entities.items() if name in used}, found, left, base)
