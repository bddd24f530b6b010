"""One file in several processes and threads: whole commits, one writer at a time, fork, open twice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import featuredb as fdb

ROOT = Path(__file__).parent.parent
T0 = datetime(2013, 1, 1, tzinfo=UTC)
KEYS = list(range(40))
LATEST = {"user": KEYS, "event_timestamp": [datetime(9999, 1, 1)] * len(KEYS)}
REFERENCES = ["a:round", "b:round"]


def batch(number: int) -> dict[str, Any]:
    """A row for each key: the number of the round."""
    return {
        "user": KEYS,
        "event_timestamp": [T0 + timedelta(seconds=number)] * len(KEYS),
        "round": [number] * len(KEYS),
    }


def define(db: fdb.Database) -> None:
    tables = [fdb.FeatureTable(name, ["user"], [fdb.Feature("round", "int64")]) for name in "ab"]
    db.apply([fdb.Entity("user", "int64"), *tables])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "shared.fdb"
    with fdb.open(path) as db:
        define(db)
        db.ingest("a", batch(0))
        db.ingest("b", batch(0))
    return path


def python(code: str, *arguments: object, under: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Code in a process of its own, started by the command `under`; ``sys.argv[1:]`` are the arguments."""
    preamble = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import featuredb as fdb\n"
    command = [*under, sys.executable, "-c", preamble + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


WRITER = """
from test_processes import batch
with fdb.open(sys.argv[1], durability="relaxed") as db:
    for number in range(1, 31):
        db.ingest("a", batch(number))
        db.ingest("b", batch(number))
"""


def rounds(db: fdb.Database) -> tuple[list[int], list[int]]:
    """What one online read says of both tables; asserts that each commit in it is whole."""
    values = db.get_online_features(REFERENCES, {"user": KEYS}, full_feature_names=True).to_dict()
    a, b = set(values["a__round"]), set(values["b__round"])
    assert len(a) == len(b) == 1, "some keys are of another commit"
    assert a == b or a == {number + 1 for number in b}, "the tables are not of one commit"
    return sorted(a), sorted(b)


def check_join(db: fdb.Database) -> None:
    joined = db.get_historical_features(LATEST, REFERENCES, full_feature_names=True).to_numpy()
    a, b = set(joined["a__round"].tolist()), set(joined["b__round"].tolist())
    assert len(a) == len(b) == 1
    assert a == b or a == {number + 1 for number in b}


def test_readers_see_whole_commits_while_another_process_writes(path: Path) -> None:
    with fdb.open(path, read_only=True) as db:
        seen = []
        with python(WRITER, path) as writer:
            while writer.poll() is None:
                seen.append(rounds(db))
                check_join(db)
        assert writer.returncode == 0
        seen.append(rounds(db))
    assert seen == sorted(seen), "a reader went back in time"
    assert seen[-1] == ([30], [30])
    assert len({repr(pair) for pair in seen}) > 2, "the writer was done before anything was read"


def test_readers_see_whole_commits_while_another_thread_writes(path: Path) -> None:
    with fdb.open(path, durability="relaxed") as db:
        failures: list[BaseException] = []
        done = threading.Event()

        def read() -> None:
            try:
                while not done.is_set():
                    rounds(db)
                    check_join(db)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 16):
            db.ingest("a", batch(number))
            db.ingest("b", batch(number))
        done.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert rounds(db) == ([15], [15])


HOLDER = """
from test_processes import batch
with fdb.open(sys.argv[1]) as db:
    def hold(done, total):
        print("holding", flush=True)
        sys.stdin.readline()
    db.ingest("a", batch(1), progress=hold)
"""


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of an ingest, until it is sent a line."""
    process = python(HOLDER, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.communicate()


def release(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()


def test_a_second_writer_gives_up_after_its_timeout(path: Path, holder: subprocess.Popen[str]) -> None:
    with fdb.open(path, timeout=0.2) as db:
        began = time.monotonic()
        with pytest.raises(fdb.BusyError, match=rf"{re.escape(str(path))}: another process is writing.*0\.2 seconds"):
            db.ingest("b", batch(1))
        assert 0.2 <= time.monotonic() - began < 5
        assert rounds(db) == ([0], [0]), "reads go on meanwhile"


def test_a_second_writer_waits_for_the_first(path: Path, holder: subprocess.Popen[str]) -> None:
    with fdb.open(path, timeout=30) as db:
        timer = threading.Timer(0.3, release, [holder])
        timer.start()
        report = db.ingest("b", batch(1))
        timer.join()
        assert holder.wait() == 0
        assert [commit.table for commit in db.log()][-2:] == ["a", "b"]
        assert db.log()[-1].id == report.commit_id
        assert rounds(db) == ([1], [1])


def test_a_writer_that_is_killed_leaves_what_was_committed(path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with fdb.open(path, timeout=5) as db:
        assert rounds(db) == ([0], [0])
        db.ingest("a", batch(2))
        assert db.get_online_features(["a:round"], [{"user": 1}]).to_dict()["round"] == [2]
        assert db.verify().ok


def test_a_file_opened_twice_in_a_process_is_one(path: Path) -> None:
    with fdb.open(path) as one, fdb.open(str(path)) as two, fdb.open(path, read_only=True) as three:
        one.ingest("a", batch(1))
        two.ingest("b", batch(1))
        assert rounds(one) == rounds(two) == rounds(three) == ([1], [1])
        one.close()
        two.ingest("a", batch(2))
        assert rounds(three) == ([2], [1])
        with pytest.raises(fdb.ReadOnlyError):
            three.ingest("a", batch(3))


def test_databases_in_memory_are_separate_and_leave_nothing() -> None:
    with fdb.open(":memory:") as one, fdb.open(":memory:") as two:
        define(one)
        assert two.list_entities() == []
        folder = Path(one.path).parent
    assert not folder.exists()


READING = """
import os, shutil, tempfile
from pathlib import Path
from test_processes import KEYS, batch, check_join, rounds

def read(path):
    with fdb.open(path, read_only=True) as db:
        assert rounds(db) == ([0], [0])
        check_join(db)
        assert db.online_reader(["a:round"]).get(1) == {"round": 0}
        assert db.get_historical_features(None, ["a:round"]).to_numpy()["user"].tolist() == KEYS
        assert db.at("before").get_online_features(["a:round"], {"user": [1]}).to_dict()["round"] == [0]
        assert (len(db.log()), db.info()["feature_tables"]["a"]["rows"], db.verify().ok) == (4, len(KEYS), True)
        for write in (
            lambda: db.ingest("a", batch(1)),
            lambda: db.ingest("a", [{"user": 1, "event_timestamp": "2014-01-01", "round": 1}]),
            lambda: db.apply(fdb.Entity("other", "int64")),
            lambda: db.materialize(),
            lambda: db.snapshot("after"),
            lambda: db.drop_snapshot("before"),
            lambda: db.forget({"user": [1]}),
            lambda: db.compact(),
            lambda: db.delete_feature_table("a"),
        ):
            try:
                write()
            except fdb.ReadOnlyError as error:
                assert "; open it with read_only=False to write" in str(error) or "open read-only; open" in str(error)
            else:
                raise AssertionError("written")
        assert rounds(db) == ([0], [0])

def told(function):
    try:
        function()
    except fdb.FileError as error:
        print(error)

path = Path(sys.argv[1])
"""

UNPRIVILEGED = """
# What is imported and compiled when it is used may be out of another user's reach.
with tempfile.TemporaryDirectory() as other:
    shutil.copyfile(path, other + "/copy.fdb")
    read(other + "/copy.fdb")
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
read(path)
told(lambda: fdb.open(path))
told(lambda: fdb.open(path.with_name("new.fdb")))
with fdb.open(path, read_only=True) as db:
    told(lambda: db.backup(path.with_name("backup.fdb")))
"""


@pytest.mark.parametrize("lock_file", ["missing", "there"])
@pytest.mark.parametrize("folder_mode", [0o555, 0o755])
def test_a_file_that_cannot_be_written_is_read_by_another_user(path: Path, lock_file: str, folder_mode: int) -> None:
    with fdb.open(path) as db:
        db.snapshot("before")
    # Under pytest's own folder an unprivileged child could not reach the file.
    folder = Path(tempfile.mkdtemp(prefix="featuredb-test-", dir="/tmp"))
    try:
        file = folder / path.name
        shutil.copyfile(path, file)
        if lock_file == "there":
            shutil.copyfile(f"{path}-lock", f"{file}-lock")
        for each in folder.iterdir():
            each.chmod(0o444)
        before = file.read_bytes()
        folder.chmod(folder_mode)
        with python(READING + UNPRIVILEGED, file) as process:
            told = process.communicate()[0].splitlines()
        assert process.returncode == 0
        names = sorted(os.listdir(folder))
        folder.chmod(0o755)
        assert file.read_bytes() == before
    finally:
        shutil.rmtree(folder)
    if folder_mode == 0o555 or os.getuid() == 0:
        # Nor is a lock file made, or any other.
        assert names == [path.name, f"{path.name}-lock"][: 2 if lock_file == "there" else 1]
        assert len(told) == 3
    assert all("permission" in line and "; " in line for line in told)
    assert "read_only=True" in told[0]


# Before the command, options of a mount, and what is mounted where; as many of these three as wanted.
MOUNT = 'while [ "$1" != -- ]; do mount --bind -o "$1" "$2" "$3" || exit 77; shift 3; done; shift; exec "$@"'


def mounted(*mounts: object) -> list[str]:
    """A command that starts another with mounts of its own, which are gone with it; skips the test where it cannot."""
    privileges = [] if os.getuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--mount", *privileges, "sh", "-c", MOUNT, "sh", *map(str, mounts), "--"]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, to mount for one process alone")
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this system lets nothing be mounted for one process alone: {tried.stderr.strip()}")
    return command


MOUNTED = """
from test_cli import failure, text

other = Path(sys.argv[2])
read(path)
assert text("info", path) and text("verify", path).endswith(": ok\\n")
assert "read-only" in failure("compact", path) and "read_only=" not in failure("compact", path)
told(lambda: fdb.open(path))
told(lambda: fdb.open(path.with_name("new.fdb")))
told(lambda: fdb.salvage(path, path.with_name("salvaged.fdb")))
with fdb.open(path, read_only=True) as db:
    told(lambda: db.backup(path.with_name("backup.fdb")))
    db.backup(other / "backup.fdb", check=True)
    training = db.get_historical_features({"user": [1], "event_timestamp": ["2014-01-01"]}, ["a:round"])
    told(lambda: training.to_parquet(path.with_name("training.parquet")))
read(other / "backup.fdb")
"""


@pytest.mark.parametrize("lock_file", ["missing", "there"])
def test_a_file_on_a_read_only_file_system_is_read(path: Path, tmp_path: Path, lock_file: str) -> None:
    with fdb.open(path) as db:
        db.snapshot("before")
    folder, other = tmp_path / "mounted", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    file = folder / path.name
    shutil.copyfile(path, file)
    if lock_file == "there":
        shutil.copyfile(f"{path}-lock", f"{file}-lock")
    names, before = sorted(os.listdir(folder)), file.read_bytes()
    with python(READING + MOUNTED, file, other, under=mounted("ro", folder, folder)) as process:
        told = process.communicate()[0].splitlines()
    assert process.returncode == 0
    assert (sorted(os.listdir(folder)), file.read_bytes()) == (names, before)
    assert len(told) == 5
    assert all("ead-only file system" in line or "file system is read-only" in line for line in told)
    assert all("; " in line and ".tmp" not in line for line in told)
    assert "read_only=True" in told[0]


WRITTEN = """
with fdb.open(path) as db:
    db.ingest("a", batch(1))
    told(db.compact)
    told(lambda: db.backup(path.with_name("backup.fdb")))
    assert rounds(db) == ([1], [0]) and db.verify().ok
    db.ingest("b", batch(1))
"""


def test_a_file_that_can_be_written_in_a_read_only_folder_is_not_replaced(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounts: list[object] = ["ro", folder, folder]
    for name in (path.name, f"{path.name}-lock"):
        (folder / name).touch()
        mounts += ["rw", tmp_path / name, folder / name]
    with python(READING + WRITTEN, folder / path.name, under=mounted(*mounts)) as process:
        told = process.communicate()[0].splitlines()
    assert process.returncode == 0
    assert ["file system is read-only; " in line for line in told] == [True, True]
    with fdb.open(path) as db:
        assert rounds(db) == ([1], [1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_after_fork_is_refused_and_the_child_may_open_the_file_itself(path: Path) -> None:
    with fdb.open(path) as db:
        reader = db.online_reader(["a:round"])
        rounds(db)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                refusals = 0
                for use in (lambda: db.log(), lambda: reader.get(1), lambda: db.ingest("a", batch(9))):
                    try:
                        use()
                    except fdb.ForkedError as error:
                        refusals += "fork" in str(error)
                with fdb.open(path) as own:
                    code = 0 if refusals == 3 and own.online_reader(["a:round"]).get(1) == {"round": 0} else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        db.ingest("a", batch(1))
        assert reader.get(1) == {"round": 1}
