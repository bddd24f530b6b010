"""Every value of every dtype, from every container, comes back from history and online, also from a reopened file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from strategies import CONTAINERS, KEY_DTYPES, POOLS, Columns, container, no_nan, plain
from test_nested import assert_same, assert_stored

import featuredb as fdb

pytestmark = pytest.mark.usefixtures("both_histories")

LONG = ["", "x" * 100_000, "".join(map(chr, [0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]))]


def spread(pool: list[Any], rows: int, first: int) -> list[Any]:
    return [pool[(first + row) % len(pool)] for row in range(rows)]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_features_of_every_dtype(kind: str, tmp_path: Path) -> None:
    pools = {dtype: [*POOLS[dtype], *(LONG if dtype == "string" else []), None] for dtype in POOLS}
    rows = max(map(len, pools.values()))
    columns: Columns = {
        f"f{place}": (dtype, spread(pool, rows, place)) for place, (dtype, pool) in enumerate(pools.items())
    }
    keys: Columns = {"k": ("int64", list(range(rows))), "event_timestamp": ("timestamp", [7] * rows)}
    expected = {name: values for name, (_, values) in columns.items()}
    if kind == "pandas":
        expected = {name: list(map(no_nan, values)) for name, values in expected.items()}
    with fdb.open(tmp_path / "some.fdb") as db:
        features = [fdb.Feature(name, dtype) for name, (dtype, _) in columns.items()]
        db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], features)])
        db.ingest("t", container(kind, keys | columns))
        assert_stored(db, expected, "as ingested")
    with fdb.open(tmp_path / "some.fdb") as db:
        assert_stored(db, expected, "reopened")


@pytest.mark.parametrize("kind", CONTAINERS)
def test_keys_of_every_dtype(kind: str, tmp_path: Path) -> None:
    with fdb.open(tmp_path / "some.fdb") as db:
        for dtype in KEY_DTYPES:
            name, keys = f"of_{dtype}", sorted(POOLS[dtype])
            columns: Columns = {f"k_{dtype}": (dtype, keys), "event_timestamp": ("timestamp", [7] * len(keys))}
            db.apply(
                [fdb.Entity(f"k_{dtype}", dtype), fdb.FeatureTable(name, [f"k_{dtype}"], [fdb.Feature("n", "int8")])]
            )
            db.ingest(name, container(kind, columns | {"n": ("int8", list(range(len(keys))))}))
    with fdb.open(tmp_path / "some.fdb") as db:
        for dtype in KEY_DTYPES:
            keys, asked = sorted(POOLS[dtype]), [f"of_{dtype}:n"]
            stored = db.get_historical_features(None, asked).to_arrow()
            assert_same(plain(stored.column(f"k_{dtype}")), keys, dtype)
            assert stored.column("n").to_pylist() == list(range(len(keys)))
            turned: Columns = {f"k_{dtype}": (dtype, [*keys[::-1], None])}
            numbers = [*reversed(range(len(keys))), None]
            online = db.get_online_features(asked, container(kind, turned)).to_dict()
            assert online["n"] == numbers
            turned["event_timestamp"] = ("timestamp", [7] * len(numbers))
            assert db.get_historical_features(container(kind, turned), asked).to_arrow()["n"].to_pylist() == numbers
