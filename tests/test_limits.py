"""Every limit that a user can reach is reached here: one error, which names it and what to do, and nothing changes.

Limits that would take hours to reach are lowered where they are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featuredb as fdb
from featuredb import limits
from featuredb.storage.core import Core

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


def table(name: str = "t", **features: str) -> fdb.FeatureTable:
    return fdb.FeatureTable(name, ["k"], [fdb.Feature(*one) for one in (features or {"v": "string"}).items()])


def rows(**columns: Any) -> dict[str, list[Any]]:
    return {"k": ["a"], "event_timestamp": ["2024-01-01"], "v": ["x"]} | columns


def ingest(**columns: Any) -> Callable[[fdb.Database], object]:
    return lambda db: db.ingest("t", rows(**columns))


def apply_all(*made: Callable[[], Any]) -> Callable[[fdb.Database], object]:
    return lambda db: db.apply([one() for one in made])


def many_snapshots(db: fdb.Database) -> None:
    db.snapshot("two")


def many_changes(db: fdb.Database) -> None:
    db.apply(table(v="string", w="int8"))


def many_reads(db: fdb.Database) -> None:
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(db._env.read())


@dataclass(frozen=True)
class Limit:
    """A row of the README's table, and how to exceed it: the call, what its error is and says."""

    constant: str
    text: str
    call: Callable[[fdb.Database], object] | None
    error: type[fdb.FeatureDBError] = fdb.DefinitionError
    says: str = ""
    lowered: tuple[str, int] | None = None


# By the words of the README. Without a call there is no error: more simply takes another one, or the oldest goes.
LIMITS = {
    "Characters of a name": Limit(
        "NAME_CHARS_MAX", "128", apply_all(lambda: table("t" * 129)), says="129 characters; at most 128: shorten it"
    ),
    "Feature tables in a file": Limit(
        "TABLES_MAX", "100,000", apply_all(lambda: table("u")), says="holds 1 tables, the most; delete one",
        lowered=("storage.registry.TABLES_MAX", 1),
    ),
    "Entities in a feature table": Limit(
        "ENTITIES_PER_TABLE_MAX", "16",
        apply_all(lambda: fdb.FeatureTable("u", [f"k{number}" for number in range(17)], [fdb.Feature("v", "int8")])),
        says="17 entities; at most 16, so make one of several",
    ),
    "Features in a feature table": Limit(
        "FEATURES_PER_TABLE_MAX", "4,096", apply_all(lambda: table(**{f"v{number}": "int8" for number in range(4097)})),
        says="4097 features; at most 4096, so split the table",
    ),
    "Changes of the features of a table": Limit(
        "LAYOUTS_MAX", "65,535", many_changes, says="changed 0 times, the most; define a table of another name",
        lowered=("storage.registry.LAYOUTS_MAX", 1),
    ),
    "Snapshots at a time": Limit(
        "SNAPSHOTS_MAX", "1,000", many_snapshots, says="has 1 snapshots, the most; drop one",
        lowered=("storage.snapshots.SNAPSHOTS_MAX", 1),
    ),
    "Encoded entity key": Limit(
        "KEY_BYTES_MAX", "500 bytes", ingest(k=["k" * 500]), fdb.InputError,
        "column 'k', row 0, value .*more than 500 bytes; use a shorter key, such as a hash",
    ),
    "Distinct keys of one combination of entities": Limit(
        "ENTITIES_MAX", "2,147,483,646", ingest(k=["b"]), fdb.LimitError,
        "more than 1 entity keys; use another file", ("storage.keyspace.ENTITIES_MAX", 1),
    ),
    "One string, bytes or list value": Limit(
        "VALUE_BYTES_MAX", "16 MiB", ingest(v=["v" * (16 * MIB + 1)]), fdb.InputError,
        "column 'v', row 0, value .*longer than 16777216 bytes; store where it is instead",
    ),
    "Elements of a vector": Limit(
        "VECTOR_LENGTH_MAX", "65,536", apply_all(lambda: table(v="int8[65537]")),
        says=r"whole number from 1 to 65,536, such as int8\[384\]",
    ),
    "Fixed-width values of a row": Limit(
        "ROW_BYTES_MAX", "16 MiB", apply_all(lambda: table(**{f"v{number}": "float64[65536]" for number in range(33)})),
        says="take 17301504 bytes a row; at most 16777216, so split the table",
    ),
    "One row, values of all features together": Limit(
        "CHUNK_BYTES_MAX", "1 GiB", ingest(v=["v" * 99]), fdb.LimitError,
        "a row of 134 bytes is too long; at most 99: split the table", ("online.row.CHUNK_BYTES_MAX", 99),
    ),
    "Timestamps": Limit(
        "TIMESTAMP_MAX_US", "years 1 to 9999", ingest(event_timestamp=np.array(["10000-01-01"], dtype="M8[us]")),
        fdb.InputError,
        "column 'event_timestamp', row 0, value .*outside the years 1 to 9999; leave the row out",
    ),
    "Reads at a time, of all processes": Limit(
        "READERS_MAX", "1,022", many_reads, fdb.BusyError, "too many concurrent reads .2.; finish some, then retry",
        ("limits.READERS_MAX", 2),
    ),
    "Rows of a segment; more make another": Limit("SEGMENT_ROWS_MAX", "33,554,432", None),
    "Rejected rows kept of a call; of a table, the newest": Limit("REJECTIONS_KEPT_MAX", "1,000; 10,000", None),
}  # fmt: skip

# What bounds the file itself, and what a user cannot reach or does not see.
FILE = "Size of the file"
INTERNAL = {
    "CHUNK_ROWS_MAX", "DEAD_SHARE_MAX", "DECIMAL_EXPONENT_MAX", "DECIMAL_INTEGER_MAX", "FILES_REMEMBERED_MAX",
    "MERGE_LOCKED_ROWS_MAX", "QUERIES_HELD_MAX", "REJECTED_ROWS_MAX", "REMEMBERED_BYTES_MAX", "SEGMENTS_HELD_MAX",
    "SMALL_INGEST_BYTES_MAX", "SMALL_INGEST_ROWS_MAX", "TAILS_HELD_MAX", "TAIL_BYTES_MAX", "TAIL_ROWS_MAX",
    "VERIFY_FINDINGS_MAX",
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "limits.fdb"
    with fdb.open(path) as db:
        db.apply([fdb.Entity("k", "string"), table()])
        db.ingest("t", rows())
        db.snapshot("one")
    # It has been given its size.
    path.with_name(f"{path.name}-lock").unlink()
    return path


def content(db: fdb.Database) -> dict[bytes, bytes]:
    with db._env.read() as txn:
        return {bytes(key): bytes(value) for key, value in txn.scan(b"")}


@pytest.mark.parametrize("name", [name for name, limit in LIMITS.items() if limit.call is not None])
def test_a_limit_that_is_exceeded_is_named_with_its_remedy_and_nothing_changes(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = LIMITS[name]
    if limit.lowered is not None:
        monkeypatch.setattr(f"featuredb.{limit.lowered[0]}", limit.lowered[1])
    with fdb.open(path) as db:
        before = content(db)
        assert limit.call is not None
        with pytest.raises(limit.error, match=re.compile(limit.says, re.DOTALL)):
            limit.call(db)
        assert content(db) == before
        assert db.verify().ok


def test_a_file_that_outgrows_its_map_and_the_system_is_refused_unchanged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAP_SIZE_BYTES", MIB)
    monkeypatch.setattr(Core, "_remap", lambda *_: False)
    with fdb.open(path) as db:
        before = content(db)
        with pytest.raises(fdb.FileError, match=r"map of 1048576 bytes is full.*allow this process more address space"):
            db.ingest("t", rows(v=["v" * 2 * MIB]))
        assert content(db) == before
        assert db.verify().ok


def test_more_rows_than_a_segment_has_make_more_segments(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("offline.merge.SEGMENT_ROWS_MAX", "offline.ingest.INGEST_BATCH_ROWS"):
        monkeypatch.setattr(f"featuredb.{place}", 10)
    monkeypatch.setattr("featuredb.offline.ingest.INGEST_MEMORY_ROWS", 10)
    monkeypatch.setattr("featuredb.offline.ingest.SMALL_INGEST_ROWS_MAX", 0)
    with fdb.open(path) as db:
        times = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=number) for number in range(1, 36)]
        db.ingest("t", rows(k=["a"] * 35, event_timestamp=times, v=["x"] * 35))
        db.compact()
        info = db.info()["feature_tables"]["t"]
        assert (info["rows"], info["segments"] >= 4) == (36, True)
        assert db.verify().ok


def test_the_newest_rejected_rows_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.offline.ingest.REJECTIONS_KEPT_MAX", 3)
    monkeypatch.setattr("featuredb.storage.rejected.REJECTED_ROWS_MAX", 4)
    with fdb.open(path) as db:
        for count in (2, 5):
            db.ingest(
                "t", rows(k=[None] * count, event_timestamp=["2024-01-01"] * count, v=["x"] * count), on_error="skip"
            )
        assert [row.row for row in db.rejected("t")] == [1, 0, 1, 2]


def test_the_readme_lists_every_limit_with_the_value_of_the_code() -> None:
    section = README.partition("\n## Limits and memory\n")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", section.partition("| Call |")[0], re.MULTILINE))
    for heading in ("Limit", "---"):
        listed.pop(heading, None)
    assert listed.pop(FILE) == f"address space, {limits.MAP_SIZE_BYTES // TIB} TiB mapped at first; it grows"
    assert listed == {name: limit.text for name, limit in LIMITS.items()}
    units = {"MiB": MIB, "GiB": GIB}
    for name, limit in LIMITS.items():
        value = getattr(limits, limit.constant)
        if name == "Timestamps":
            years = (datetime(1970, 1, 1) + timedelta(microseconds=us) for us in (limits.TIMESTAMP_MIN_US, value))
            assert [year.year for year in years] == [1, 9999]
            continue
        number, unit = re.match(r"([\d,]+)(?: (\w+))?", limit.text).groups()  # type: ignore[union-attr]
        shown = int(number.replace(",", "")) * units.get(unit or "", 1)
        assert shown == value - (limit.constant == "LAYOUTS_MAX"), name
    assert limits.REJECTED_ROWS_MAX == 10_000
    named = {name for name in vars(limits) if name.endswith("_MAX")}
    assert named == {limit.constant for limit in LIMITS.values() if limit.constant != "TIMESTAMP_MAX_US"} | INTERNAL
