"""`compact` writes the file anew under all who have it open: what they see, whoever dies, and what stays of the old."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lmdb.verify import verify as lmdb_verify
from test_processes import KEYS, LATEST, REFERENCES, WRITER, batch, check_join, define, python, rounds
from test_snapshots import as_bytes

import featuredb as fdb
from featuredb.storage import datafile, engine, rewrite
from featuredb.storage.moving import STATE_KEY, is_marked
from featuredb.storage.pages import file_faults
from featuredb.storage.txn import ReadTxn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "shared.fdb"
    with fdb.open(path) as db:
        define(db)
        db.ingest("a", batch(0))
        db.ingest("b", batch(0))
    return path


def load(db: fdb.Database, number: int) -> None:
    db.ingest("a", batch(number))
    db.ingest("b", batch(number))


def state(db: fdb.Database) -> dict[str, Any]:
    """Definitions, log, history with its lineage, and online values."""
    joined = db.get_historical_features(LATEST, REFERENCES, full_feature_names=True)
    online = db.get_online_features(REFERENCES, {"user": KEYS}, full_feature_names=True)
    return {
        "tables": db.list_feature_tables(),
        "log": db.log(),
        "joined": as_bytes(joined.to_arrow()),
        "lineage": joined.lineage,
        "online": as_bytes(online.to_arrow()),
    }


def fill(db: fdb.Database) -> None:
    """Make a file that is far longer than what lives in it."""
    table = fdb.FeatureTable("gone", ["user"], [fdb.Feature("text", "string")])
    db.apply(table)
    texts = [f"{number:0100000d}" for number in KEYS]
    db.ingest("gone", {"user": KEYS, "event_timestamp": batch(0)["event_timestamp"], "text": texts})
    db.delete_feature_table("gone")


def marked(db: fdb.Database) -> bool:
    with db._env.read() as txn:
        return is_marked(txn.get(STATE_KEY))


def inode(path: Path) -> int:
    return path.stat().st_ino


def hidden(path: Path) -> list[str]:
    """What stands beside the file, save the lock file."""
    return sorted(set(os.listdir(path.parent)) - {path.name, f"{path.name}-lock"})


# --- one process --------------------------------------------------------------------------------


def test_the_file_shrinks_and_reads_the_same(path: Path) -> None:
    with fdb.open(path) as db:
        fill(db)
        db.snapshot("held")
        load(db, 1)
        before, held = state(db), state(db.at("held"))
        report = db.compact()
        assert report.bytes_before > 4_000_000 > 1_000_000 > report.bytes_after == path.stat().st_size
        assert (state(db), state(db.at("held"))) == (before, held)
        assert db.verify().ok
    with fdb.open(path) as db:
        assert (state(db), state(db.at("held"))) == (before, held)
        assert db.verify().ok
    assert hidden(path) == []


def test_every_handle_goes_on_with_the_new_file(path: Path) -> None:
    with fdb.open(path) as db, fdb.open(path, read_only=True) as second:
        reader = db.online_reader(["a:round"])
        db.snapshot("held")
        view = second.at("held")
        held_reader = view.online_reader(["a:round"])
        old = inode(path)
        db.compact()
        assert inode(path) != old
        load(db, 1)
        assert rounds(db) == rounds(second) == ([1], [1])
        assert reader.get(1) == {"round": 1}
        assert rounds(view) == ([0], [0])
        assert held_reader.get(1) == {"round": 0}
        check_join(second)
        with fdb.open(path) as third:
            load(third, 2)
        assert reader.get(1) == {"round": 2}
        assert second.log() == db.log()


def test_a_second_compact_finds_nothing_to_do(path: Path) -> None:
    with fdb.open(path) as db:
        db.compact()
        log = db.log()
        report = db.compact()
        assert report.bytes_after == report.bytes_before
        assert db.log() == log


def test_a_new_file_and_one_in_memory_can_be_compacted(tmp_path: Path) -> None:
    for path in (tmp_path / "new.fdb", ":memory:"):
        with fdb.open(path) as db:
            db.compact()
            define(db)
            load(db, 1)
            db.compact()
            load(db, 2)
            assert rounds(db) == ([2], [2])
            assert db.verify().ok


def test_a_copy_in_many_batches_has_all_and_continues_the_transactions(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "_BATCH_ENTRIES", 1)
    with fdb.open(path) as db:
        before = state(db)
        for _ in range(2):
            last = db._env.core.last_transaction()
            db.compact()
            assert db._env.core.last_transaction() > last, "whoever has the old file open must not see numbers repeat"
            assert state(db) == before
            load(db, 0)
            assert db.verify().ok
        assert file_faults(str(path)) == lmdb_verify(str(path)) == []


def test_threads_read_on_while_the_file_is_replaced(path: Path) -> None:
    with fdb.open(path, durability="relaxed") as db:
        reader = db.online_reader(["a:round"])
        failures: list[BaseException] = []
        done = threading.Event()

        def read() -> None:
            try:
                while not done.is_set():
                    rounds(db)
                    check_join(db)
                    before = reader.get(1)["round"]
                    (many,) = set(reader.get_many(KEYS).columns["round"].tolist())
                    assert before <= many <= reader.get(1)["round"]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 9):
            load(db, number)
            db.compact()
        done.set()
        for thread in threads:
            thread.join()
        assert not failures


def test_no_snapshot_of_the_new_file_has_the_number_of_one_of_the_old(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of a snapshot, such as where its chunks lie, is held by its number."""
    take_after, seen = datafile.take_after, []

    def read_the_marked_file(*arguments: Any) -> None:
        with db._env.read() as txn:
            seen.append(txn.id())
        take_after(*arguments)

    monkeypatch.setattr(datafile, "take_after", read_the_marked_file)
    with fdb.open(path) as db:
        for _ in range(2):
            db.compact()
            with db._env.read() as txn:
                assert txn.id() > seen[-1]
    assert len(seen) == 2


def test_an_open_read_prevents_it_and_nothing_changes(path: Path) -> None:
    with fdb.open(path) as db:
        old = inode(path)
        with db._env.read(), pytest.raises(fdb.BusyError, match="this thread's own open read prevents it"):
            db.compact()
        assert inode(path) == old
        assert not marked(db)
        assert hidden(path) == []
        load(db, 1)
        assert rounds(db) == ([1], [1])


def test_the_permissions_are_kept_and_a_link_stays_one(path: Path) -> None:
    path.chmod(0o640)
    link = path.with_name("link.fdb")
    link.symlink_to(path)
    with fdb.open(link) as db:
        db.compact()
    assert link.is_symlink()
    assert path.stat().st_mode & 0o7777 == 0o640
    with fdb.open(path) as db:
        assert rounds(db) == ([0], [0])


def test_the_new_file_is_never_open_to_more_people_than_the_old(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o600)
    modes = []
    batches = rewrite._batches

    def seen(txn: ReadTxn) -> Any:
        for part in batches(txn):
            modes.append(Path(datafile.successor_name(str(path))).stat().st_mode & 0o7777)
            yield part

    monkeypatch.setattr(rewrite, "_batches", seen)
    with fdb.open(path) as db:
        db.compact()
    assert modes
    assert set(modes) == {0o600}


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with fdb.open(sys.argv[1]) as db:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    try:
        db._env.core.lock.acquire(1)
        db._env.rewrite()
    except fdb.FileError as error:
        print(error)
"""


def test_a_full_disk_is_an_error_that_changes_nothing(path: Path) -> None:
    with fdb.open(path) as db:
        load(db, 1)
    old, before = inode(path), path.read_bytes()
    with python(FULL_DISK, path) as process:
        out, _ = process.communicate(timeout=60)
    assert "the disk is full or failing" in out
    assert str(path) in out
    assert (inode(path), len(path.read_bytes())) == (old, len(before))
    assert hidden(path) == []
    with fdb.open(path) as db:
        assert rounds(db) == ([1], [1])
        assert db.verify().ok


def test_what_a_killed_process_left_is_removed_by_the_next(path: Path) -> None:
    from featuredb.storage.datafile import successor_name

    left = Path(successor_name(str(path)))
    left.write_bytes(b"half a file")
    with fdb.open(path) as db:
        assert rounds(db) == ([0], [0])
        db.compact()
    assert hidden(path) == []


def test_a_file_replaced_while_it_is_being_opened_is_opened_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fdb.open(path) as db:
        db.backup(path.with_name("new.fdb"))
    real, times = engine._open_engine, []

    def late(*arguments: Any) -> Any:
        opened = real(*arguments)
        if not times:
            os.replace(path.with_name("new.fdb"), path)
        times.append(1)
        return opened

    monkeypatch.setattr(engine, "_open_engine", late)
    with fdb.open(path) as db:
        assert len(times) == 2
        assert db._env.core.key[1] == inode(path)
        assert rounds(db) == ([0], [0])


# --- several processes --------------------------------------------------------------------------

OTHER = """
from test_processes import batch, check_join, rounds
with fdb.open(sys.argv[1], read_only=sys.argv[2] == "reads") as db:
    reader = db.online_reader(["a:round"])
    view = db.at("held") if db.list_snapshots() else db
    held = view.online_reader(["a:round"])
    uses = {
        "get": lambda: reader.get(1)["round"],
        "get_many": lambda: reader.get_many([1]).columns["round"].tolist()[0],
        "online": lambda: rounds(db)[0][0],
        "join": lambda: check_join(db) or rounds(db)[0][0],
        "log": lambda: len(db.log()),
        "snapshots": lambda: len(db.list_snapshots()),
        "info": lambda: db.info()["file_bytes"],
        "verify": lambda: db.verify().commits,
        "view": lambda: held.get(1)["round"],
        "at": lambda: db.at("late").get_online_features(["a:round"], {"user": [1]}).to_dict()["round"][0],
        "ingest": lambda: db.ingest("a", batch(int(sys.argv[3]))).commit_id,
    }
    uses["get"]()
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name == "hold":
            with db._env.read() as txn:
                print("holding", flush=True)
                sys.stdin.readline()
                print(rounds(db)[0][0], flush=True)
            continue
        try:
            print(uses[name](), flush=True)
        except fdb.NotFoundError as error:
            print(error, flush=True)
"""


class Other:
    """A process that has the file open, and does as it is told."""

    def __init__(self, path: Path, kind: str = "reads", number: int = 0) -> None:
        self.process = python(OTHER, path, kind, number)
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def other(path: Path) -> Iterator[Callable[..., Other]]:
    started: list[Other] = []

    def start(*arguments: Any) -> Other:
        started.append(Other(path, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.mark.parametrize(
    "use", ["get", "get_many", "online", "join", "log", "snapshots", "info", "verify", "view", "at"]
)
def test_a_process_that_reads_goes_over_with_its_next_call(path: Path, other: Callable[..., Other], use: str) -> None:
    with fdb.open(path) as db:
        db.snapshot("held")
        reading = other()
        db.compact()
        load(db, 1)
        db.snapshot("late")
        expected = {
            "log": len(db.log()),
            "snapshots": 2,
            "info": path.stat().st_size,
            "verify": len(db.log()),
            "view": 0,
        }
        assert reading.ask(use) == str(expected.get(use, 1))
        db.compact()
        db.compact()
        load(db, 2)
        assert reading.ask("get") == "2"
        assert not reading_old(path, reading.process)


def test_a_view_in_another_process_learns_that_its_snapshot_was_dropped(
    path: Path, other: Callable[..., Other]
) -> None:
    with fdb.open(path) as db:
        db.snapshot("held")
        reading = other()
        db.compact()
        assert reading.ask("view") == "0"
        db.compact()
        db.drop_snapshot("held")
        assert "snapshot 'held' was dropped" in reading.ask("view")


def reading_old(path: Path, process: subprocess.Popen[str]) -> bool:
    """Whether a process has a data file open that is at no path any more."""
    opened = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    return any(name.startswith(f"{path} (deleted)") for name in opened)


def test_a_process_that_writes_writes_into_the_new_file(path: Path, other: Callable[..., Other]) -> None:
    with fdb.open(path) as db:
        writing = other("writes", 1)
        db.compact()
        assert writing.ask("ingest") == "4"
        assert db.online_reader(["a:round"]).get(1) == {"round": 1}
        assert [commit.id for commit in db.log()] == [1, 2, 3, 4]
        assert db.verify().ok


def test_a_read_that_is_open_elsewhere_stays_as_it_was(path: Path, other: Callable[..., Other]) -> None:
    with fdb.open(path) as db:
        reading = other()
        assert reading.ask("hold") == "holding"
        db.compact()
        for number in range(1, 4):
            load(db, number)
        assert reading_old(path, reading.process)
        # Inside its own read it cannot go over.
        assert reading.ask("") == "0"
        assert reading.ask("online") == "3"
        assert not reading_old(path, reading.process)


def test_a_process_that_waits_to_write_goes_over_first(path: Path, other: Callable[..., Other]) -> None:
    with fdb.open(path) as db:
        writing = other("writes", 1)
        with db._writer():
            assert writing.process.stdin is not None
            writing.process.stdin.write("ingest\n")
            writing.process.stdin.flush()
            db._env.rewrite()
            load_inside(db)
        assert writing.read() == "4"
        assert db.verify().ok
        assert rounds(db) == ([1], [0])


def load_inside(db: fdb.Database) -> None:
    """The lock is still held, now of the new file: nothing can be written meanwhile."""
    with db._env.read() as txn:
        before = txn.id()
    threading.Event().wait(0.2)
    with db._env.read() as txn:
        assert txn.id() == before


def test_readers_and_a_writer_elsewhere_across_many_compactions(path: Path) -> None:
    with fdb.open(path, durability="relaxed") as db, python(WRITER, path) as writer:
        seen, compactions = [], 0
        while writer.poll() is None:
            seen.append(rounds(db))
            check_join(db)
            db.compact()
            compactions += 1
        assert writer.returncode == 0
        seen.append(rounds(db))
        assert seen == sorted(seen), "a reader went back in time"
        assert seen[-1] == ([30], [30])
        assert compactions > 2
        assert db.verify().ok
        assert len(db.log()) == 3 + 60


# --- whoever dies -------------------------------------------------------------------------------

DIES = """
import os, signal
from featuredb.storage import datafile, rewrite
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def after(module, name):
    real = getattr(module, name)
    setattr(module, name, lambda *arguments: (real(*arguments), die()))
with fdb.open(sys.argv[1]) as db:
    point = sys.argv[2]
    if point == "before the mark":
        rewrite._mark_all = die
    elif point == "after the mark":
        after(rewrite, "_mark_all")
    elif point == "before the rename":
        datafile.replace = die
    elif point == "after the rename":
        after(os, "replace")
    elif point == "after all":
        after(fdb.Database, "compact")
    db.compact()
"""
POINTS = ["before the mark", "after the mark", "before the rename", "after the rename", "after all"]


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_at_any_point_leaves_the_old_file_or_the_new(
    path: Path, other: Callable[..., Other], point: str
) -> None:
    old = inode(path)
    with fdb.open(path) as db:
        reading, writing = other(), other("writes", 1)
        reader = db.online_reader(["a:round"])
        with python(DIES, path, point) as process:
            assert process.wait(60) == -signal.SIGKILL
        assert (inode(path) == old) is (point not in POINTS[3:])
        later = other("writes", 2)
        for one in (reading, writing, later):
            assert one.ask("online") == "0"
        assert rounds(db) == ([0], [0])
        assert marked(db) is (point in POINTS[1:3])
        assert writing.ask("ingest") == "4"
        assert not marked(db)
        assert later.ask("ingest") == "5"
        assert reader.get(1) == {"round": 2}
        assert [one.ask("get") for one in (reading, writing, later)] == ["2"] * 3
        assert not any(reading_old(path, one.process) for one in (reading, writing, later))
        assert db.verify().ok
        db.compact()
        assert hidden(path) == []
        assert reading.ask("get") == "2"
    assert file_faults(str(path)) == lmdb_verify(str(path)) == []


def test_a_mark_without_a_new_file_costs_no_new_definitions(path: Path) -> None:
    with fdb.open(path) as db:
        with python(DIES, path, "after the mark") as process:
            process.wait(60)
        db.log()
        assert marked(db)
        with db._env.read() as txn:
            first = db._registry(txn)
            assert db._registry(txn) is first
        reader = db.online_reader(REFERENCES, full_feature_names=True)
        assert reader.get(1) == {"a__round": 0, "b__round": 0}


# --- something else at the path -----------------------------------------------------------------


@pytest.mark.parametrize("what", ["nothing", "foreign", "other", "older"])
def test_a_path_that_holds_no_successor_is_refused(path: Path, tmp_path: Path, what: str) -> None:
    copy = tmp_path / "copy.fdb"
    with fdb.open(path) as db:
        db.backup(copy)
    if what == "other":
        copy.unlink()
        with fdb.open(copy) as another:
            define(another)
    elif what == "foreign":
        copy.write_text("something else\n" * 1000)
    with fdb.open(path) as db:
        load(db, 1)
        if what == "nothing":
            path.unlink()
        else:
            os.replace(copy, path)
        with pytest.raises(fdb.FileError, match=str(path)) as caught:
            load(db, 2)
        words = {
            "nothing": "is not there any more",
            "foreign": "is not a featuredb file but a text file",
            "other": "holds another file than the one that was opened",
            "older": "holds another file than the one that was opened",
        }
        assert words[what] in str(caught.value)
