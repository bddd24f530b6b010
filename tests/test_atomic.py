"""A call that writes does all of its work or none, wherever in it the disk or the memory gives out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from strategies import small_batches
from test_snapshots import assert_sound, define, put, state, tables

import featuredb as fdb
from featuredb.storage.txn import WriteTxn

ONE = tables()[0]
MORE = {
    "u": [1, 2, 1, 5, 6, 7],
    "event_timestamp": [f"2013-01-01T00:00:0{place}" for place in (0, 1, 2, 0, 0, 0)],
    "x": [0.5, None, 2.5, 1.0, 1.0, 1.0],
    "text": ["new", "rows", None, "a", "b", "c"],
}
CALLS: dict[str, Callable[[fdb.Database], object]] = {
    "ingest": lambda db: db.ingest("one", MORE),
    "ingest of history alone": lambda db: db.ingest("one", MORE, to="offline"),
    "ingest with rejected rows": lambda db: db.ingest("one", {**MORE, "u": [None, *MORE["u"][1:]]}, on_error="skip"),
    "materialize": lambda db: db.materialize("two"),
    "a new feature": lambda db: db.apply(replace(ONE, features=[*ONE.features, fdb.Feature("new", "int8")])),
    "online off": lambda db: db.apply(replace(ONE, online=False)),
    "online on": lambda db: db.apply(replace(db.get_feature_table("off"), online=True)),
    "delete a table": lambda db: db.delete_feature_table("one"),
    "snapshot": lambda db: db.snapshot("new"),
    "drop a snapshot": lambda db: db.drop_snapshot("held"),
    "compact": lambda db: db.compact(),
}


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a snapshot, overwritten and replaced rows, rows that are not served, and a table kept offline."""
    path = tmp_path_factory.mktemp("master") / "some.fdb"
    with fdb.open(path) as db:
        define(db)
        db.apply(fdb.FeatureTable("off", ["u"], [fdb.Feature("n", "int8")], online=False))
        db.ingest("off", {"u": [1, 2], "event_timestamp": ["2013-01-01"] * 2, "n": [1, 2]})
        db.ingest(
            "two", {"u": [1], "s": ["a"], "event_timestamp": ["2013-01-01"], "x": [1.0], "text": [""]}, to="offline"
        )
        put(db, 0, 0, 3)
        db.snapshot("held")
        for event, value in ((0, 4), (1, 5), (1, 6)):
            put(db, 0, event, value)
    return path


@contextmanager
def failing_at(number: int) -> Iterator[list[int]]:
    """Let the write of this number, counted from 0, and all after it, fail; gives a list that counts them."""
    done = [0]

    def failing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: WriteTxn, *arguments: Any, **options: Any) -> Any:
            done[0] += 1
            if done[0] > number:
                raise MemoryError("no more")
            return method(self, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "put_many", "delete", "delete_prefix"):
            patch.setattr(WriteTxn, name, failing(getattr(WriteTxn, name)))
        yield done


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails_at_any_write_changes_nothing(
    master: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch, 4)
    failures = 0
    for number in count(0, 3):  # each write would take three times as long
        path = tmp_path / f"{number}.fdb"
        path.write_bytes(master.read_bytes())
        with fdb.open(path, durability="relaxed") as db:
            before = state(db)
            with failing_at(number) as done:
                try:
                    CALLS[name](db)
                except MemoryError:
                    failures += 1
                    finished = False
                else:
                    finished = True
            assert_sound(db)
            if finished:
                assert len(db.log()) - len(before["log"]) == (name != "compact")  # which readers cannot see
            else:
                assert state(db) == before
                CALLS[name](db)  # nothing is left behind that stands in its way
                assert_sound(db)
        if finished and done[0] <= number:
            break
    assert failures > 0
