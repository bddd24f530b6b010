"""A database in many threads, and sent to other processes: as its path and options, so that it opens the file there."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import featuredb as fdb

T0 = datetime(2024, 5, 1, tzinfo=UTC)
USERS = list(range(8))
ROUND = ["t:round"]
THREADS = 16
KINDS = ["spawn", "forkserver"]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[fdb.Database]:
    with fdb.open(tmp_path / "x.fdb", durability="relaxed", timeout=30) as db:
        define(db)
        yield db


def define(db: fdb.Database) -> None:
    db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], [fdb.Feature("round", "int64")])])
    load(db, 0)


def load(db: fdb.Database, number: int, users: list[int] = USERS) -> None:
    """A row for each user: the number of the round."""
    times = [T0 + timedelta(seconds=number)] * len(users)
    db.ingest("t", {"user": users, "event_timestamp": times, "round": [number] * len(users)})


# --- threads --------------------------------------------------------------------------------------


def test_sixteen_threads_read_join_and_ingest_at_once(db: fdb.Database) -> None:
    """Each has users of its own, and finds of them just what it has loaded last, whatever the others do."""
    reader = db.online_reader(ROUND)
    failures: list[BaseException] = []
    together = threading.Barrier(THREADS)

    def work(place: int) -> None:
        users = [100 * place + user for user in USERS]
        try:
            together.wait()
            for number in range(1, 6):
                load(db, number, users)
                assert [reader.get(user)["round"] for user in users] == [number] * len(users)
                assert reader.get_many(users).columns["round"].tolist() == [number] * len(users)
                assert db.get_online_features(ROUND, {"user": users}).to_dict()["round"] == [number] * len(users)
                asked = {"user": users, "event_timestamp": [T0 + timedelta(seconds=number - 1)] * len(users)}
                joined = db.get_historical_features(asked, ROUND).to_numpy()["round"].tolist()
                assert joined == [number - 1 if number > 1 or place == 0 else None] * len(users)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert db.verify().ok
    assert len(db.log()) == 2 + 5 * THREADS


# --- other processes ------------------------------------------------------------------------------


def read_here(db: fdb.Database) -> tuple[int, list[int], list[int]]:
    """In another process: its id, and what the database that was sent there says."""
    online = db.get_online_features(ROUND, {"user": USERS}).to_dict()["round"]
    asked = {"user": USERS, "event_timestamp": [T0 + timedelta(days=1)] * len(USERS)}
    return os.getpid(), online, db.get_historical_features(asked, ROUND).to_numpy()["round"].tolist()


def load_here(db: fdb.Database, number: int) -> None:
    load(db, number)


def get_here(reader: Any, user: int) -> Any:
    return reader.get(user)


class Rows:
    """Like a map-style dataset of PyTorch: it is pickled into each worker, which then asks it for one row at a time."""

    def __init__(self, db: fdb.Database) -> None:
        self.db = db
        self.reader = db.online_reader(ROUND)

    def __len__(self) -> int:
        return len(USERS)

    def __getitem__(self, place: int) -> tuple[int, Any]:
        asked = {"user": [USERS[place]], "event_timestamp": [T0]}
        joined = self.db.get_historical_features(asked, ROUND).to_numpy()["round"].tolist()
        return joined[0], self.reader.get(USERS[place])["round"]


_dataset: Rows


def keep_dataset(dataset: Rows) -> None:
    global _dataset
    _dataset = dataset


def row_of_dataset(place: int) -> tuple[int, Any]:
    return _dataset[place]


@pytest.mark.parametrize("kind", KINDS)
def test_workers_open_the_database_that_they_are_given(db: fdb.Database, kind: str) -> None:
    load(db, 1)
    with ProcessPoolExecutor(1, multiprocessing.get_context(kind)) as pool:
        pid, *found = pool.submit(read_here, db).result()
        assert found == [[1] * len(USERS), [1] * len(USERS)]
        assert pid != os.getpid()
        pool.submit(load_here, db, 2).result()
        assert read_here(db)[1:] == ([2] * len(USERS), [2] * len(USERS))
        load(db, 3)
        assert pool.submit(get_here, db.online_reader(ROUND), 5).result() == {"round": 3}
    assert len(db.log()) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_with_a_database_and_a_reader_goes_to_workers(db: fdb.Database, kind: str) -> None:
    load(db, 1)
    dataset = Rows(db)
    with ProcessPoolExecutor(2, multiprocessing.get_context(kind), keep_dataset, (dataset,)) as pool:
        assert list(pool.map(row_of_dataset, range(len(dataset)))) == [(0, 1)] * len(USERS)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_is_told_to_open_the_file_itself(db: fdb.Database) -> None:
    keep_dataset(Rows(db))
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        with pytest.raises(fdb.ForkedError, match="open it in the child process itself"):
            pool.submit(row_of_dataset, 0).result()
        # What is pickled to it, it opens.
        assert pool.submit(read_here, db).result()[1] == [0] * len(USERS)


# --- pickled --------------------------------------------------------------------------------------


def again(what: Any) -> Any:
    return pickle.loads(pickle.dumps(what))


def test_a_database_is_pickled_as_its_path_and_options(db: fdb.Database) -> None:
    with again(db) as same:
        assert (same.path, same._read_only, same._durable, same._timeout) == (db.path, False, False, 30)
        load(same, 1)
    with fdb.open(db.path, read_only=True) as reading, again(reading) as same, pytest.raises(fdb.ReadOnlyError):
        load(same, 2)
    with copy.deepcopy(db) as same:
        assert read_here(same)[1] == [1] * len(USERS)
    assert read_here(db)[1] == [1] * len(USERS)


def test_a_view_of_a_snapshot_is_pickled_with_its_name(db: fdb.Database) -> None:
    db.snapshot("before")
    view = db.at("before")
    load(db, 1)
    assert read_here(again(view))[1:] == ([0] * len(USERS), [0] * len(USERS))
    db.drop_snapshot("before")
    with pytest.raises(fdb.NotFoundError):
        again(view)


def test_a_prepared_reader_is_pickled_with_its_features(db: fdb.Database) -> None:
    alias = {"friend": fdb.Alias("t", {"user": "friend_id"})}
    reader = again(db.online_reader(["t:round", "friend:round"], aliases=alias, full_feature_names=True))
    load(db, 1)
    assert reader.entities == ("user", "friend_id")
    assert reader.get({"user": 1, "friend_id": 99}) == {"t__round": 1, "friend__round": None}


def test_the_file_must_be_there_when_it_is_opened_again(db: fdb.Database) -> None:
    pickled = pickle.dumps(db)
    db.close()
    os.rename(db.path, f"{db.path}.moved")
    with pytest.raises(fdb.FileError, match="no such file"):
        pickle.loads(pickled)
    assert not os.path.exists(db.path)


@pytest.mark.parametrize(
    ("what", "remedy"),
    [
        (lambda db: db.get_historical_features(None, ROUND), "pickle what to_arrow"),
        (lambda db: db.get_historical_features({"user": [1], "event_timestamp": [T0]}, ROUND), "pickle what to_arrow"),
        (lambda db: db.get_online_features(ROUND, [{"user": 1}]), "pickle what to_dict"),
    ],
)
def test_what_cannot_be_pickled_says_what_can(
    db: fdb.Database, what: Callable[[fdb.Database], object], remedy: str
) -> None:
    with pytest.raises(fdb.InputError, match=remedy):
        pickle.dumps(what(db))


def test_a_database_in_memory_cannot_be_pickled_nor_a_closed_one(db: fdb.Database) -> None:
    with fdb.open(":memory:") as memory:
        define(memory)
        memory.snapshot("s")
        for one in (memory, memory.at("s"), memory.online_reader(ROUND)):
            with pytest.raises(fdb.InputError, match="open a file instead"):
                pickle.dumps(one)
    db.close()
    with pytest.raises(fdb.ClosedError):
        pickle.dumps(db)
