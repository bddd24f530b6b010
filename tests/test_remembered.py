"""What a process remembers of closed files: it makes opening them again cheap, and never hides a change."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featuredb as fdb
from featuredb.errors import CorruptionError
from featuredb.storage import remembered

pytestmark = pytest.mark.usefixtures("segments_only")

LEFT = {"k": np.arange(1000), "event_timestamp": np.full(1000, "2024-01-02", dtype="M8[us]")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file written some time ago."""
    path = tmp_path / "a.fdb"
    with fdb.open(path) as db:
        db.apply([fdb.Entity("k", "int64"), fdb.FeatureTable("t", ["k"], [fdb.Feature("n", "int64")])])
        times = np.full(1000, "2024-01-01", dtype="M8[us]")
        db.ingest("t", {"k": np.arange(1000), "event_timestamp": times, "n": np.arange(1000) * 7})
    age(path)
    return path


def age(path: Path) -> None:
    long_ago = time.time_ns() - 10**10
    os.utime(path, ns=(long_ago, long_ago))


def joined(db: fdb.Database) -> list[Any]:
    found: list[Any] = db.get_historical_features(LEFT, ["t:n"]).to_numpy()["n"].tolist()
    return found


def test_a_file_that_is_opened_again_unchanged_is_known(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fdb.open(path, read_only=True) as db:
        expected = joined(db)
        cache = db._cache
    monkeypatch.setattr("featuredb.storage.segment.checksum", None)  # nothing is checked again
    monkeypatch.setattr("featuredb.storage.keyspace.KeySpace.blocks", None)  # nor keys read
    with fdb.open(path, read_only=True) as db:
        assert db._cache is cache
        assert joined(db) == expected == [7 * key for key in range(1000)]


def test_handles_on_one_file_share_what_is_known(path: Path) -> None:
    with fdb.open(path) as one, fdb.open(path, read_only=True) as other:
        assert one._cache is other._cache
        assert one._dictionaries is other._dictionaries
        one.close()
        assert joined(other) == [7 * key for key in range(1000)]


def test_a_file_that_was_changed_meanwhile_is_not_known(path: Path) -> None:
    with fdb.open(path, read_only=True) as db:
        assert joined(db)[1] == 7
    raw = path.read_bytes()
    # The values of the feature, packed: seven times 0 to 999 in 13 bits each.
    words = sum(7 * key << 13 * key for key in range(1000)).to_bytes(13 * 125, "little")
    assert raw.count(words) == 1
    with path.open("r+b") as file:
        file.seek(raw.index(words) + 5)
        file.write(b"\xff")
    with fdb.open(path, read_only=True) as db, pytest.raises(CorruptionError, match="checksum does not match"):
        joined(db)


def test_another_file_of_the_same_name_is_not_known(path: Path) -> None:
    with fdb.open(path, read_only=True) as db:
        assert joined(db)[1] == 7
        cache = db._cache
    copy = path.with_name("b.fdb")
    shutil.copy2(path, copy)
    os.replace(copy, path)
    with fdb.open(path, read_only=True) as db:
        assert db._cache is not cache
        assert joined(db)[1] == 7


def test_a_file_that_was_just_written_is_not_remembered(path: Path) -> None:
    with fdb.open(path) as db:
        db.ingest("t", {"k": [0], "event_timestamp": [np.datetime64("2024-01-01T12:00")], "n": [5]})
        cache = db._cache
        assert joined(db)[:2] == [5, 7]
    with fdb.open(path) as db:
        assert db._cache is not cache
        assert joined(db)[:2] == [5, 7]


def test_few_files_and_no_large_dictionaries_are_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "FILES_REMEMBERED_MAX", 2)
    monkeypatch.setattr(remembered, "REMEMBERED_BYTES_MAX", 100)
    caches = []
    for number in range(3):
        other = path.with_name(f"{number}.fdb")
        shutil.copy2(path, other)
        with fdb.open(other, read_only=True) as db:
            joined(db)
            assert db._dictionaries
            caches.append(db._cache)
    for number, cache in enumerate(caches[1:], 1):
        with fdb.open(path.with_name(f"{number}.fdb"), read_only=True) as db:
            assert db._cache is cache
            assert not db._dictionaries
            assert joined(db)[1] == 7
    with fdb.open(path.with_name("0.fdb"), read_only=True) as db:
        assert db._cache is not caches[0]
