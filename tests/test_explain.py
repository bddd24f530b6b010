"""explain: what a join did. threads: however many, and whoever else joins, the result is the same."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from strategies import small_batches

import featuredb as fdb
from featuredb.cli import main
from featuredb.offline.explain import STAGES
from featuredb.threads import over_items, over_rows, ranges

ROWS, KEYS = 4000, 60
DAY_US = 86_400_000_000


def stored(seed: int, first_day: int) -> dict[str, Any]:
    """Rows of 30 days; NaN is a value."""
    rng = np.random.default_rng(seed)
    events = first_day * DAY_US + rng.permutation(ROWS) * (30 * DAY_US // ROWS)
    return {
        "user": rng.integers(0, KEYS, ROWS),
        "event_timestamp": events.view("M8[us]"),
        "x": np.where(rng.random(ROWS) < 0.1, np.nan, rng.random(ROWS)),
        "n": rng.integers(-5, 5, ROWS),
        "word": rng.choice(["a", "b", "c"], ROWS).tolist(),
    }


def entity_rows(rows: int = 3000) -> pd.DataFrame:
    """Entity rows around days 0 to 70, some of unknown users."""
    rng = np.random.default_rng(9)
    times = (rng.integers(0, 70 * DAY_US, rows)).view("M8[us]")
    return pd.DataFrame({"user": rng.integers(0, KEYS + 6, rows), "event_timestamp": times})


def opened(max_age: timedelta | None = None) -> fdb.Database:
    db = fdb.open(":memory:")
    features = [fdb.Feature("x", "float64"), fdb.Feature("n", "int64"), fdb.Feature("word", "string")]
    db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], features, max_age=max_age)])
    return db


REFERENCES = ["t:x", "t:n", "t:word"]


def explained(training: Any) -> dict[str, Any]:
    found: dict[str, Any] = training.explain().to_dict()
    return found


# --- explain -------------------------------------------------------------------------------------


def test_explain_computes_the_join_and_tells_what_it_did() -> None:
    with opened() as db:
        db.ingest("t", stored(1, 0))
        frame = entity_rows()
        training = db.get_historical_features(frame, REFERENCES, threads=2)
        facts = explained(training)
        assert (facts["commit_id"], facts["rows"], facts["batches"], facts["threads"]) == (2, 3000, 1, 2)
        known = int((frame["user"] < KEYS).sum())
        table = facts["tables"]["t"]
        assert table["table"] == "t"
        assert table["rows_searched"] == known
        assert table["rows_found"] == int(np.sum(~np.ma.getmaskarray(training.to_numpy()["n"])))
        (segment,) = table["segments"].values()
        assert segment["rows"] == ROWS
        assert segment["pruned"] is None
        info = db.info()["feature_tables"]["t"]
        assert 0 < segment["bytes"] <= info["bytes"]
        assert segment["chunks"] >= 6  # x, n and word, codes, starts and event timestamps
        assert set(facts["seconds"]) == set(STAGES)
        assert all(seconds >= 0 for seconds in facts["seconds"].values())
        assert facts["seconds"]["search"] == pytest.approx(table["seconds"]["search"])


def test_explain_says_why_a_segment_was_not_searched() -> None:
    with opened(timedelta(days=2)) as db:
        db.ingest("t", stored(1, 0))
        db.ingest("t", stored(2, 1000))
        db.ingest("t", {**stored(3, 500), "user": np.arange(ROWS) + 10_000})
        times = np.array([600, 601], dtype="M8[D]")
        facts = explained(db.get_historical_features({"user": [1, 2], "event_timestamp": times}, REFERENCES))
        reasons = {number: one["pruned"] for number, one in facts["tables"]["t"]["segments"].items()}
        assert reasons == {1: "too old", 2: "later", 3: "other keys"}
        assert all(one["bytes"] == one["chunks"] == 0 for one in facts["tables"]["t"]["segments"].values())
        nobody = explained(db.get_historical_features({"user": [-1], "event_timestamp": times[:1]}, REFERENCES))
        assert {one["pruned"] for one in nobody["tables"]["t"]["segments"].values()} == {
            "no row has a known key and a timestamp"
        }


def test_explain_names_the_way_keys_were_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as db:
        db.ingest("t", stored(1, 0))
        frame = entity_rows(20)
        assert (
            explained(db.get_historical_features(frame, REFERENCES))["tables"]["t"]["lookup"] == "look-ups in the tree"
        )
        frame = entity_rows(3000)
        assert explained(db.get_historical_features(frame, REFERENCES))["tables"]["t"]["lookup"] == "hashed dictionary"


def test_either_way_of_looking_keys_up_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, keys in (
        ("int64", [3, 5, 10**12, -1]),
        ("string", ["a", "", "b" * 600, "zz"]),
        ("bytes", [b"", b"\x00"]),
    ):
        known = keys[:2]
        found = []
        for lookups_max in (0, 512):
            monkeypatch.setattr("featuredb.offline.dictionary.TREE_LOOKUPS_MAX", lookups_max)
            with fdb.open(":memory:") as db:
                db.apply([fdb.Entity("k", dtype), fdb.FeatureTable("t", ["k"], [fdb.Feature("n", "int64")])])
                day = [np.datetime64("2024-01-01")]
                db.ingest("t", {"k": known, "event_timestamp": day * len(known), "n": range(len(known))})
                db._dictionaries.clear()
                training = db.get_historical_features(
                    {"k": [*keys, None], "event_timestamp": day * (len(keys) + 1)}, ["t:n"]
                )
                found.append(training.to_numpy()["n"].tolist())
        assert found[0] == found[1] == [*range(len(known)), *[None] * (len(keys) - len(known) + 1)]


def test_explain_adds_up_the_batches_of_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as db:
        db.ingest("t", stored(1, 0))
        frame = entity_rows()
        whole = explained(db.get_historical_features(frame, REFERENCES))["tables"]["t"]
        small_batches(monkeypatch, 700)
        training = db.get_historical_features(frame, REFERENCES)
        seen: list[tuple[int, int | None]] = []
        assert (
            training.to_parquet(tmp_path / "out.parquet", progress=lambda done, total: seen.append((done, total)))
            == 3000
        )
        assert seen == [(700, 3000), (1400, 3000), (2100, 3000), (2800, 3000), (3000, 3000)]
        facts = explained(training)
        assert (facts["rows"], facts["batches"]) == (3000, 5)
        for name in ("rows_searched", "rows_found", "segments"):
            assert facts["tables"]["t"][name] == whole[name]


def test_explain_is_readable_and_names_aliases() -> None:
    with opened() as db:
        db.ingest("t", stored(1, 0))
        frame = entity_rows().rename(columns={"user": "buyer"})
        training = db.get_historical_features(frame, ["seen:x"], aliases={"seen": fdb.Alias("t", {"user": "buyer"})})
        lines = str(training.explain()).splitlines()
        assert lines[0].startswith("3,000 rows at commit 2, ")
        assert lines[2] == "seen (of t)"
        assert any(line.startswith("  segment 1: 4,000 rows; ") for line in lines)
        assert repr(training.explain()) == str(training.explain())


@pytest.mark.parametrize("options", [{}, {"latest": True}, {"start": "1970-01-10", "end": "1970-01-12"}])
def test_stored_rows_are_explained_too(options: dict[str, Any]) -> None:
    with opened() as db:
        db.ingest("t", stored(1, 0))
        facts = explained(db.get_historical_features(None, REFERENCES, **options))
        (segment,) = facts["tables"]["t"]["segments"].values()
        assert segment["bytes"] > 0


def test_the_command_line_explains(tmp_path: Path) -> None:
    path, entities, out = tmp_path / "a.fdb", tmp_path / "e.parquet", tmp_path / "o.parquet"
    with fdb.open(path) as db:
        db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], [fdb.Feature("n", "int64")])])
        db.ingest("t", {name: stored(1, 0)[name] for name in ("user", "event_timestamp", "n")})
    entity_rows().to_parquet(entities)
    command = ["join", str(path), str(entities), str(out), "-f", "t:n", "--threads", "1", "--explain"]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert "3,000 rows at commit 2, 1 thread, " in shown.output
    as_json = CliRunner().invoke(main, [*command, "--json"])
    assert json.loads(as_json.stdout)["explain"]["tables"]["t"]["segments"]["1"]["rows"] == ROWS
    assert pq.read_table(out).num_rows == 3000


# --- threads -------------------------------------------------------------------------------------


def as_text(training: Any) -> list[str]:
    # As text, NaN is NaN.
    return [repr(array.tolist()) for array in training.to_numpy().values()]


@pytest.mark.parametrize("known_at", [None, "2200-01-01"])
def test_any_number_of_threads_gives_the_same(known_at: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.threads.ROWS_PER_THREAD_MIN", 10)
    monkeypatch.setattr("featuredb.storage.encode.CHUNK_ROWS_MAX", 128)
    with opened(timedelta(days=3)) as db:
        for seed in range(3):
            db.ingest("t", stored(seed, 9 * seed))
        frame = entity_rows(6000)
        options: dict[str, Any] = {"known_at": known_at, "include_event_timestamps": True}
        one = db.get_historical_features(frame, REFERENCES, threads=1, **options).to_pandas()
        for threads in (2, 3, 7, 64, None):
            other = db.get_historical_features(frame, REFERENCES, threads=threads, **options).to_pandas()
            pd.testing.assert_frame_equal(one, other)
        stored_rows = db.get_historical_features(None, REFERENCES, threads=1).to_pandas()
        pd.testing.assert_frame_equal(stored_rows, db.get_historical_features(None, REFERENCES, threads=5).to_pandas())


def test_joins_in_several_threads_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.threads.ROWS_PER_THREAD_MIN", 100)
    with opened() as db:
        db.ingest("t", stored(1, 0))
        frame = entity_rows(5000)
        expected = as_text(db.get_historical_features(frame, REFERENCES))

        def join(number: int) -> bool:
            if number % 5 == 0:
                day = np.array([number + 2000], dtype="M8[D]")
                db.ingest("t", {"user": [number], "event_timestamp": day, "x": [0.5], "n": [1], "word": ["a"]})
            threads = None if number % 2 else 1 + number % 3
            return as_text(db.get_historical_features(frame, REFERENCES, threads=threads)) == expected

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(join, range(40)))


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_threads_must_be_a_number_of_threads(threads: Any) -> None:
    with opened() as db, pytest.raises(fdb.InputError, match="threads must be an int of at least 1, or None"):
        db.get_historical_features(entity_rows(), REFERENCES, threads=threads)
    with opened() as db, pytest.raises(fdb.InputError, match="threads must be an int of at least 1, or None"):
        db.get_historical_features(None, REFERENCES, threads=threads)


def test_ranges_cover_all_rows_and_items_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.threads.ROWS_PER_THREAD_MIN", 10)
    assert ranges(0) == [(0, 0)]
    assert ranges(19, 4) == [(0, 19)]
    assert ranges(100, 3) == [(0, 33), (33, 66), (66, 100)]
    seen: list[int] = []
    over_rows(1000, lambda start, stop: seen.extend(range(start, stop)), 5)
    assert sorted(seen) == list(range(1000))
    taken: list[int] = []
    over_items(range(500), taken.append, 6)
    assert sorted(taken) == list(range(500))


def test_what_one_thread_raises_is_raised_when_all_are_done() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 1:
            raise ValueError("no")
        done.append(item)

    with pytest.raises(ValueError, match="no"):
        over_items(range(40), work, 2)
    assert len(done) == 39
