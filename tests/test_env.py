"""The storage engine: opening, transactions, the write lock, growth, and what happens when processes die."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import msgpack
import pytest

from featuredb import limits
from featuredb.errors import (
    BusyError,
    ClosedError,
    CorruptionError,
    FeatureDBError,
    FileError,
    ForkedError,
    FormatVersionError,
    InputError,
    LimitError,
    NotADatabaseError,
    ReadOnlyError,
)
from featuredb.storage import core, records
from featuredb.storage import env as env_module
from featuredb.storage.env import Env, open_env

ROOT = Path(__file__).parent.parent


def opened(path: Path | str, *, create: bool = True, readonly: bool = False, durable: bool = True) -> Env:
    return open_env(str(path), create=create, readonly=readonly, durable=durable)


def put(env: Env, *items: tuple[bytes, bytes]) -> None:
    with env.writer(5):
        env.write(lambda txn: txn.put_many(items))


def value(env: Env, key: bytes) -> bytes | None:
    with env.read() as txn:
        found = txn.get(key)
        return None if found is None else bytes(found)


def spawn(code: str, *arguments: object) -> subprocess.Popen[str]:
    header = (
        "import os, sys, time\n"
        "from featuredb import limits\n"
        "from featuredb.errors import *\n"
        "from featuredb.storage.env import open_env\n"
        "path = sys.argv[1]\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", header + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# For `spawn`, after it has opened `env`.
READING = "with env.read():\n    print('reading', flush=True)\n    sys.stdin.readline()\n"


def in_fork(child: Callable[[], str]) -> str:
    """What `child` returns when it is run in a forked process."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of forking while other tests' threads live.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            text = child()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.fdb"


@pytest.fixture
def env(path: Path) -> Iterator[Env]:
    env = opened(path)
    yield env
    env.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


# --- opening ------------------------------------------------------------------------------------


def test_a_created_file_holds_its_format_record_and_no_temporary_file_stays(env: Env, path: Path) -> None:
    record = records.unpack(limits.NS_FORMAT, value(env, limits.NS_FORMAT), "the format record")
    assert record["magic"] == limits.FORMAT_MAGIC
    assert record["version"] == limits.FORMAT_VERSION
    assert len(record["file_id"]) == 32
    assert abs(record["created_us"] / 1e6 - time.time()) < 60
    assert sorted(os.listdir(path.parent)) == ["x.fdb", "x.fdb-lock"]


def test_what_was_committed_is_there_when_opened_again(path: Path) -> None:
    env = opened(path)
    put(env, (b"k", b"v"))
    env.close()
    again = opened(path, create=False)
    assert value(again, b"k") == b"v"
    again.close()


def test_a_new_file_honours_the_umask(path: Path) -> None:
    before = os.umask(0o027)
    try:
        opened(path).close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("what", ["link", "dangling link", "folder", "fifo"])
def test_nothing_but_a_regular_file_is_written_to_as_lock_file(path: Path, what: str) -> None:
    opened(path).close()
    lock, other = path.with_name(f"{path.name}-lock"), path.with_name("other")
    lock.unlink()
    if what == "folder":
        lock.mkdir()
    elif what == "fifo":
        os.mkfifo(lock)
    else:
        lock.symlink_to(other)
    if what == "link":
        other.write_text("someone's")
    for readonly in (True, False):
        with pytest.raises(FileError, match=f"{lock}: is in the place of the lock file.*; remove it"):
            open_env(path, create=False, readonly=readonly, durable=True)
    assert not other.exists() or other.read_text() == "someone's"


def test_the_path_is_resolved_and_links_share_one_environment(env: Env, path: Path) -> None:
    link = path.with_name("link.fdb")
    link.symlink_to(path)
    other = opened(link)
    assert other.path == env.path == os.path.realpath(path)
    put(env, (b"k", b"v"))
    assert value(other, b"k") == b"v"
    other.close()


@pytest.mark.parametrize("create", [True, False])
def test_a_missing_folder_is_named(tmp_path: Path, create: bool) -> None:
    with pytest.raises(FileError, match="nowhere"):
        opened(tmp_path / "nowhere" / "x.fdb", create=create)


@pytest.mark.parametrize(("create", "readonly"), [(False, False), (False, True), (True, True)])
def test_a_missing_file_is_an_error_unless_it_may_be_created(path: Path, create: bool, readonly: bool) -> None:
    with pytest.raises(FileError, match="no such file"):
        opened(path, create=create, readonly=readonly)
    assert not contents(path.parent)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a directory"):
        opened(tmp_path)


def test_a_fifo_is_refused_without_waiting_for_it(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(FileError, match="not a regular file"):
        opened(path)


def sqlite_file(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table t (x)")
    connection.commit()
    connection.close()


def other_lmdb(path: Path, items: tuple[tuple[bytes, bytes], ...] = (), version: int = 0) -> None:
    other = lmdb.open(str(path), subdir=False, lib_version=version, lock=False)
    with other.begin(write=True) as txn:
        for key, data in items:
            txn.put(key, data)
    other.close()


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("a,b\n1,ü\n" * 1000), "a text file"),
    "binary": (
        lambda path: path.write_bytes(bytes(range(256)) * 100),
        "not a featuredb file; check the path, or if it was one, restore it from a backup$",
    ),
    "short": (
        lambda path: path.write_bytes(b"\x00\x01"),
        "not a featuredb file; check the path, or if it was one, restore it from a backup$",
    ),
    "sqlite": (sqlite_file, "a SQLite database"),
    "parquet": (lambda path: path.write_bytes(b"PAR1" + bytes(5000) + b"PAR1"), "a Parquet file"),
    "duckdb": (lambda path: path.write_bytes(bytes(8) + b"DUCK" + bytes(5000)), "a DuckDB database"),
    "lmdb 1.0": (lambda path: other_lmdb(path, ((b"k", b"v"),), version=1), "LMDB 1.0 file"),
    "empty lmdb": (other_lmdb, "another program"),
    "lmdb": (lambda path: other_lmdb(path, ((b"k", b"v"),)), "another program"),
    "lmdb with our key": (lambda path: other_lmdb(path, ((limits.NS_FORMAT, b"\xc1junk"),)), "another program"),
    "lmdb with a long value": (lambda path: other_lmdb(path, ((limits.NS_FORMAT, b"x" * 9000),)), "another program"),
    "lmdb with a map": (
        lambda path: other_lmdb(path, ((limits.NS_FORMAT, msgpack.packb({"magic": "else", "version": 1})),)),
        "another program",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_named_and_left_alone(path: Path, kind: str) -> None:
    make, message = FOREIGN[kind]
    make(path)
    before = contents(path.parent)
    with pytest.raises(NotADatabaseError, match=message):
        opened(path)
    assert contents(path.parent) == before


def test_an_empty_file_is_refused_and_left_alone(path: Path) -> None:
    path.touch()
    with pytest.raises(FileError, match="is empty"):
        opened(path)
    assert contents(path.parent) == {"x.fdb": b""}


def test_a_newer_format_is_refused_naming_both_versions(path: Path) -> None:
    said = {"magic": limits.FORMAT_MAGIC, "version": 7, "file_id": "", "created_us": 0}
    record = records.pack(limits.NS_FORMAT, said)
    other_lmdb(path, ((limits.NS_FORMAT, record),))
    before = contents(path.parent)
    with pytest.raises(FormatVersionError, match=rf"version 7.* up to {limits.FORMAT_VERSION}.*upgrade"):
        opened(path)
    assert contents(path.parent) == before


def test_a_damaged_format_record_is_told_from_a_foreign_file(path: Path) -> None:
    said = {"magic": limits.FORMAT_MAGIC, "version": 1, "file_id": "", "created_us": 0}
    record = bytearray(records.pack(limits.NS_FORMAT, said))
    record[-1] ^= 1
    other_lmdb(path, ((limits.NS_FORMAT, bytes(record)),))
    with pytest.raises(CorruptionError, match="its format record is damaged"):
        opened(path)


def big_file(path: Path) -> int:
    """A closed file whose tree has branches, and whose newest commit reaches to its end; its length."""
    env = opened(path)
    put(env, *((b"k%06d" % i, b"v" * 100) for i in range(5000)))
    used = env.space()["used_bytes"]
    env.close()
    os.truncate(path, used)
    os.unlink(f"{path}-lock")
    return used


def test_a_file_of_many_pages_passes_the_checks(path: Path) -> None:
    big_file(path)
    env = opened(path)
    assert value(env, b"k004999") == b"v" * 100
    env.close()


@pytest.mark.parametrize("kept", [1, 4096, 8191, 8192, 3 * 4096, "half", "almost"])
def test_a_truncated_file_is_refused_and_left_alone(path: Path, kept: int | str) -> None:
    used = big_file(path)
    os.truncate(path, {"half": used // 2, "almost": used - 1}.get(kept, kept))  # type: ignore[call-overload]
    before = contents(path.parent)
    expected = NotADatabaseError if kept == 1 else CorruptionError
    with pytest.raises(expected):
        opened(path)
    assert contents(path.parent) == before


def test_a_file_that_lacks_only_free_pages_opens(path: Path) -> None:
    env = opened(path)
    put(env, (b"big", b"v" * 1_000_000))
    with env.writer(1):
        env.write(lambda txn: txn.delete(b"big"))
        for _ in range(5):
            # The tree and the list of free pages move into the pages that were freed.
            env.write(lambda txn: txn.put(b"k", b"v"))
    used = env.space()["used_bytes"]
    env.close()
    os.truncate(path, used - 4096)
    env = opened(path)
    assert value(env, b"k") == b"v"
    env.close()


@pytest.mark.parametrize("at", [10, 40, 4096 + 10, 4096 + 16, 4096 + 40])
def test_a_damaged_meta_page_is_refused(path: Path, at: int) -> None:
    opened(path).close()
    with open(path, "r+b") as stream:
        stream.seek(at)
        stream.write(b"\x00\x00")
    with pytest.raises(CorruptionError, match="meta pages"):
        opened(path)


def test_garbage_in_the_tree_never_reaches_the_engine(path: Path) -> None:
    opened(path).close()
    whole = path.read_bytes()
    newest = max((0, 4096), key=lambda base: struct.unpack_from("<Q", whole, base + 144)[0])
    (root,) = struct.unpack_from("<Q", whole, newest + 128)
    path.write_bytes(whole[: root * 4096] + b"\xff" * 4096 + whole[(root + 1) * 4096 :])
    with pytest.raises(NotADatabaseError):
        opened(path)


def test_four_processes_that_create_one_file_share_it(path: Path) -> None:
    code = (
        "sys.stdin.readline()\n"
        "env = open_env(path, create=True, readonly=False, durable=True)\n"
        "with env.writer(20):\n    env.write(lambda txn: txn.put(b'k' + sys.argv[2].encode(), b'v'))\n"
        "with env.read() as txn:\n    print(bytes(txn.get(limits.NS_FORMAT)).hex())\n"
    )
    processes = [spawn(code, path, i) for i in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    records = {process.communicate(timeout=60)[0] for process in processes}
    assert len(records) == 1
    assert [process.returncode for process in processes] == [0] * 4
    env = opened(path, create=False)
    with env.read() as txn:
        assert [bytes(key) for key, _ in txn.scan(b"k")] == [b"k0", b"k1", b"k2", b"k3"]
    env.close()
    assert sorted(os.listdir(path.parent)) == ["x.fdb", "x.fdb-lock"]


def test_a_file_system_without_hard_links_still_creates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError("link")

    monkeypatch.setattr(os, "link", no_link)
    env = opened(path)
    put(env, (b"k", b"v"))
    env.close()
    assert sorted(os.listdir(path.parent)) == ["x.fdb", "x.fdb-lock"]


def test_a_file_created_meanwhile_is_not_overwritten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faster = path.with_name("faster.fdb")
    env = opened(faster)
    put(env, (b"k", b"theirs"))
    env.close()
    real = env_module.datafile.publish

    def late(temporary: str, target: str) -> bool:
        shutil.copy(faster, target)
        return real(temporary, target)

    monkeypatch.setattr(env_module.datafile, "publish", late)
    env = opened(path)
    assert value(env, b"k") == b"theirs"
    env.close()
    assert not list(path.parent.glob(".*"))


def test_the_map_is_halved_until_the_system_grants_it(path: Path) -> None:
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))\n"
        "env = open_env(path, create=True, readonly=False, durable=True)\n"
        "with env.writer(5):\n    env.write(lambda txn: txn.put(b'k', b'v'))\n"
        "print(env.space()['map_bytes'])\n"
    )
    process = spawn(code, path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert limits.MAP_SIZE_MIN_BYTES <= int(out) < 1 << 31


# --- handles ------------------------------------------------------------------------------------


def test_handles_of_one_file_are_counted(path: Path) -> None:
    first, second = opened(path), opened(path)
    first.close()
    first.close()
    with pytest.raises(ClosedError):
        first.read()
    put(second, (b"k", b"v"))
    assert value(second, b"k") == b"v"
    second.close()
    # Nothing of it is left in this process: lmdb itself would refuse a second open.
    lmdb.open(str(path), subdir=False, lib_version=0).close()


@pytest.mark.parametrize(
    "use",
    [
        lambda env: env.read(),
        lambda env: env.writer(0).__enter__(),
        lambda env: env.write(lambda txn: None),
        lambda env: env.copy("y"),
        lambda env: env.space(),
    ],
)
def test_every_use_of_a_closed_handle_is_refused(path: Path, use: Callable[[Env], object]) -> None:
    env = opened(path)
    env.close()
    with pytest.raises(ClosedError, match="open it again"):
        use(env)


def test_close_waits_for_the_reads_of_other_threads(path: Path) -> None:
    env = opened(path)
    put(env, (b"k", b"v"))
    reading, done = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        with env.read() as txn:
            found = txn.get(b"k")
            reading.set()
            done.wait(10)
            seen.append(bytes(found or b""))

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait(10)
    closer = threading.Thread(target=env.close)
    closer.start()
    closer.join(0.1)
    assert closer.is_alive()
    done.set()
    closer.join(10)
    thread.join(10)
    assert seen == [b"v"]
    lmdb.open(str(path), subdir=False, lib_version=0).close()


def test_close_inside_a_read_takes_effect_after_it(path: Path) -> None:
    env = opened(path)
    put(env, (b"k", b"v"))
    with env.read() as txn:
        env.close()
        assert txn.get(b"k") == b"v"
        again = opened(path)
    assert value(again, b"k") == b"v"
    with again.writer(1):
        again.close()
    lmdb.open(str(path), subdir=False, lib_version=0).close()


def test_a_readonly_handle_reads_and_refuses_writes_beside_a_writable_one(path: Path) -> None:
    writable = opened(path)
    reader = opened(path, create=False, readonly=True)
    put(writable, (b"k", b"v"))
    assert value(reader, b"k") == b"v"
    with pytest.raises(ReadOnlyError), reader.writer(1):
        pass
    with pytest.raises(ReadOnlyError), writable.writer(1):
        reader.write(lambda txn: txn.put(b"k", b"w"))
    assert value(reader, b"k") == b"v"
    writable.close()
    writable = opened(path)
    put(writable, (b"k", b"w"))
    assert value(reader, b"k") == b"w"
    reader.close()
    writable.close()


@pytest.mark.parametrize("lock_file", ["missing", "there"])
def test_a_file_and_folder_that_cannot_be_written_are_readable(path: Path, lock_file: str) -> None:
    env = opened(path)
    put(env, (b"k", b"v"))
    env.close()
    if lock_file == "missing":
        os.unlink(f"{path}-lock")
    code = (
        # lmdb imports parts of itself when they are used; an unprivileged user may not reach its folder.
        "import tempfile\n"
        "with tempfile.TemporaryDirectory() as other:\n"
        "    open_env(other + '/x.fdb', create=True, readonly=False, durable=True).close()\n"
        "    open_env(other + '/x.fdb', create=False, readonly=True, durable=True).close()\n"
        "if os.getuid() == 0:\n    os.setgid(65534); os.setuid(65534)\n"
        "try:\n    open_env(path, create=False, readonly=False, durable=True)\n"
        "except FileError as error:\n    print('permission' in str(error))\n"
        "env = open_env(path, create=False, readonly=True, durable=True)\n"
        "with env.read() as txn:\n    print(bytes(txn.get(b'k')))\n"
        "try:\n    env.writer(1).__enter__()\n"
        "except ReadOnlyError:\n    print('refused')\n"
    )
    # Under pytest's own folder an unprivileged child could not reach the file.
    folder = Path("/tmp") / f"featuredb-test-{os.getpid()}-{lock_file}"
    shutil.copytree(path.parent, folder)
    try:
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
        process = spawn(code, folder / path.name)
        out, _ = process.communicate(timeout=60)
        names = sorted(os.listdir(folder))
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert out.split() == ["True", "b'v'", "refused"]
    assert names == (["x.fdb"] if lock_file == "missing" else ["x.fdb", "x.fdb-lock"])


def test_a_durable_commit_is_synced_in_an_environment_opened_relaxed(path: Path) -> None:
    relaxed = opened(path, durable=False)
    full = opened(path)
    core = full._core
    assert core is not None
    synced: list[str] = []
    core.sync = lambda: synced.append("sync")  # type: ignore[method-assign]
    for env, durable, expected in ((relaxed, True, 0), (full, False, 0), (full, True, 1)):
        with env.writer(1):
            env.write(lambda txn: txn.put(b"k", b"v"), durable=durable)
        assert len(synced) == expected
    del core.sync
    put(full, (b"k", b"w"))
    relaxed.close()
    full.close()


# --- transactions -------------------------------------------------------------------------------


def test_get_many_returns_the_found_keys_in_the_order_asked(env: Env) -> None:
    put(env, (b"a1", b"1"), (b"b2", b"2"), (b"c3", b"3"))
    with env.read() as txn:
        found = [(bytes(key), bytes(data)) for key, data in txn.get_many([b"c3", b"zz", b"a1", b"c3"])]
        assert txn.get_many([]) == []
    assert found == [(b"c3", b"3"), (b"a1", b"1"), (b"c3", b"3")]


PREFIXED = [b"p", b"p\x00", b"pa", b"p\xff", b"p\xff\xff", b"q", b"\xff", b"\xff\xff\x01"]


@pytest.mark.parametrize(
    "prefix", [b"", b"o", b"p", b"pa", b"p\xff", b"q", b"r", b"\xff", b"\xff\xff", b"\xff\xff\xff"]
)
def test_prefixes_select_exactly_their_keys(env: Env, prefix: bytes) -> None:
    put(env, *((key, b"v" + key) for key in PREFIXED))
    expected = sorted(key for key in [*PREFIXED, limits.NS_FORMAT] if key.startswith(prefix))
    with env.read() as txn:
        assert [bytes(key) for key, _ in txn.scan(prefix)] == expected
        last = txn.last(prefix)
        assert (None if last is None else last[0]) == (expected[-1] if expected else None)
        assert last is None or last[1] == b"v" + last[0]
    with env.writer(1):
        assert env.write(lambda txn: txn.delete_prefix(prefix)) == len(expected)
    with env.read() as txn:
        left = [bytes(key) for key, _ in txn.scan(b"")]
    assert left == sorted({*PREFIXED, limits.NS_FORMAT} - set(expected))


@pytest.mark.parametrize("start", [b"", b"\x00", b"b", b"\xff", b"\xff\xff\xff"])
def test_a_scan_may_start_within_its_prefix(env: Env, start: bytes) -> None:
    put(env, *((key, b"") for key in PREFIXED))
    with env.read() as txn:
        found = [bytes(key) for key, _ in txn.scan(b"p", start)]
    assert found == sorted(key for key in PREFIXED if key.startswith(b"p") and key >= b"p" + start)


def test_delete_prefix_empties_many_pages(env: Env) -> None:
    put(env, *((b"p%05d" % i, b"v" * 50) for i in range(3000)), (b"o", b""), (b"q", b""))
    with env.writer(1):
        assert env.write(lambda txn: txn.delete_prefix(b"p")) == 3000
    with env.read() as txn:
        assert [bytes(key) for key, _ in txn.scan(b"")] == [limits.NS_FORMAT, b"o", b"q"]


def test_a_transaction_sees_its_own_writes(env: Env) -> None:
    def change(txn: env_module.WriteTxn) -> list[bytes]:
        txn.put(b"k2", b"2")
        txn.put(b"k1", b"1")
        assert txn.delete(b"k2")
        assert not txn.delete(b"k2")
        return [bytes(key) for key, _ in txn.scan(b"k")]

    with env.writer(1):
        assert env.write(change) == [b"k1"]


def test_keys_to_append_must_ascend(env: Env) -> None:
    with env.writer(1):
        assert env.write(lambda txn: txn.put_many([(b"k1", b""), (b"k2", b"")], append=True)) == 2
        with pytest.raises(InputError, match="1 of 2"):
            env.write(lambda txn: txn.put_many([(b"k4", b""), (b"k3", b"")], append=True))
    assert value(env, b"k2") == b""
    assert value(env, b"k4") is None


@pytest.mark.parametrize("key", [b"", b"k" * 512])
def test_a_key_the_engine_cannot_hold_is_refused(env: Env, key: bytes) -> None:
    with env.writer(1):
        with pytest.raises(LimitError):
            env.write(lambda txn: txn.put(key, b""))
        with pytest.raises(LimitError):
            env.write(lambda txn: txn.put_many([(key, b"")]))
        env.write(lambda txn: txn.put(b"k" * 511, b"v"))
    assert value(env, b"k" * 511) == b"v"


def test_an_exception_changes_nothing(env: Env) -> None:
    def fail(txn: env_module.WriteTxn) -> None:
        txn.put(b"k", b"v")
        raise ZeroDivisionError

    with env.writer(1), pytest.raises(ZeroDivisionError):
        env.write(fail)
    assert value(env, b"k") is None
    put(env, (b"k", b"w"))
    assert value(env, b"k") == b"w"


def test_a_snapshot_stays_as_it_was_and_nests(env: Env) -> None:
    put(env, (b"k", b"old"))
    with env.read() as outer:
        put(env, (b"k", b"new"))
        with env.read() as inner:
            assert outer.get(b"k") == b"old"
            assert inner.get(b"k") == b"new"
            assert inner.id() > outer.id()
        assert outer.get(b"k") == b"old"


def test_a_transaction_is_refused_after_its_end(env: Env) -> None:
    put(env, (b"k1", b""), (b"k2", b""))
    with env.read() as txn:
        suspended = txn.scan(b"k")
        next(suspended)
    for use in (
        lambda: txn.get(b"k"),
        lambda: txn.get_many([b"k"]),
        lambda: list(txn.scan(b"k")),
        lambda: txn.last(b"k"),
        lambda: txn.id(),
        lambda: next(suspended),
    ):
        with pytest.raises(ClosedError, match="outside its `with`"):
            use()
    leaked: list[env_module.WriteTxn] = []
    with env.writer(1):
        env.write(leaked.append)
    for change in (
        lambda: leaked[0].put(b"k", b""),
        lambda: leaked[0].put_many([(b"k", b"")]),
        lambda: leaked[0].delete(b"k"),
        lambda: leaked[0].delete_prefix(b"k"),
    ):
        with pytest.raises(ClosedError):
            change()


# --- the write lock -----------------------------------------------------------------------------


def test_write_needs_the_lock_and_does_not_nest(env: Env) -> None:
    with pytest.raises(FeatureDBError, match=r"env\.writer"):
        env.write(lambda txn: None)
    with env.writer(1):
        with pytest.raises(BusyError, match="this thread"), env.writer(1):
            pass
        with pytest.raises(FeatureDBError, match="inside write"):
            env.write(lambda txn: env.write(lambda inner: None))
        with pytest.raises(FeatureDBError, match="inside write"):
            env.write(lambda txn: env.copy(env.path + ".copy"))
    put(env, (b"k", b"v"))


def test_a_second_thread_waits_then_is_told_who_writes(env: Env) -> None:
    errors: list[str] = []

    def compete() -> None:
        try:
            put_within(env, 0.05)
        except BusyError as error:
            errors.append(str(error))

    with env.writer(1):
        thread = threading.Thread(target=compete)
        thread.start()
        thread.join(10)
    assert len(errors) == 1
    assert "another thread" in errors[0]
    assert "0.05 seconds" in errors[0]
    assert env.path in errors[0]


def put_within(env: Env, seconds: float) -> None:
    with env.writer(seconds):
        env.write(lambda txn: txn.put(b"k", b"v"))


def test_threads_take_turns(env: Env) -> None:
    def add() -> None:
        for _ in range(20):
            with env.writer(20):
                env.write(lambda txn: txn.put(b"n", b"%d" % (int(bytes(txn.get(b"n") or b"0")) + 1)))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert value(env, b"n") == b"80"


HOLDER = (
    "env = open_env(path, create=True, readonly=False, durable=True)\n"
    "def change(txn):\n"
    "    for i in range(1000):\n        txn.put(b'k%04d' % i, b'new')\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.readline()\n"
    "with env.writer(5):\n    env.write(change)\n"
)


def test_another_process_is_waited_for_then_given_up_while_reads_go_on(env: Env, path: Path) -> None:
    put(env, (b"k0000", b"old"))
    holder = spawn(HOLDER, path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    started = time.monotonic()
    with pytest.raises(BusyError, match=r"x\.fdb: another process is writing.* 0\.2 seconds"), env.writer(0.2):
        pass
    assert 0.2 <= time.monotonic() - started < 5
    assert value(env, b"k0000") == b"old"
    waiting = threading.Thread(target=put_within, args=(env, 20))
    waiting.start()
    holder.communicate("go\n", timeout=60)
    waiting.join(20)
    assert value(env, b"k0000") == b"new"
    assert value(env, b"k") == b"v"


def test_a_writer_killed_leaves_the_lock_free_and_the_old_content(env: Env, path: Path) -> None:
    put(env, *((b"k%04d" % i, b"old") for i in range(1000)))
    holder = spawn(HOLDER, path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=60)
    with env.read() as txn:
        assert {bytes(data) for _, data in txn.scan(b"k")} == {b"old"}
    put(env, (b"k0000", b"newer"))
    assert value(env, b"k0000") == b"newer"


def test_a_writer_killed_at_any_moment_leaves_whole_commits(env: Env, path: Path) -> None:
    code = (
        "env = open_env(path, create=True, readonly=False, durable=True)\n"
        "for n in range(10**9):\n"
        "    with env.writer(5):\n"
        "        env.write(lambda txn: txn.put_many([(b'k%03d' % i, b'%d' % n) for i in range(300)]))\n"
        "    print('x', flush=True)\n"
    )
    for seconds in (0.0, 0.013, 0.031):
        process = spawn(code, path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.kill()
        process.communicate(timeout=60)
        with env.read() as txn:
            rows = [bytes(data) for _, data in txn.scan(b"k")]
        assert len(rows) == 300
        assert len(set(rows)) == 1
        put(env, (b"after", b"%f" % seconds))


def test_the_slot_of_a_killed_reader_is_freed_on_open(path: Path) -> None:
    code = "env = open_env(path, create=True, readonly=False, durable=True)\n" + READING
    opened(path).close()
    # Keeps the table of readers alive.
    other = spawn(code, path)
    killed = spawn(code, path)
    for process in (other, killed):
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
    killed.kill()
    killed.communicate(timeout=60)
    env = opened(path)
    assert env._core is not None
    readers = env._core.engine.readers()
    assert str(other.pid) in readers
    assert str(killed.pid) not in readers
    env.close()
    other.communicate("go\n", timeout=60)


def killed_in_a_read(path: Path) -> int:
    """The process id of a reader that was killed in the middle of a read."""
    killed = spawn("env = open_env(path, create=False, readonly=True, durable=True)\n" + READING, path)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "reading\n"
    killed.kill()
    killed.communicate(timeout=60)
    return killed.pid


def test_a_writer_frees_what_a_killed_reader_holds(env: Env, path: Path) -> None:
    put(env, (b"k", b"v" * 100_000))
    killed = killed_in_a_read(path)
    assert env._core is not None
    assert str(killed) in env._core.engine.readers()
    for number in range(50):
        put(env, (b"k", b"%d" % number * 100_000))
    assert str(killed) not in env._core.engine.readers()
    assert path.stat().st_size < 20 * 100_000


def test_space_does_not_count_a_killed_reader(env: Env, path: Path) -> None:
    put(env, (b"k", b"v" * 100_000))
    killed_in_a_read(path)
    put(env, (b"k", b"w"))
    assert env.space()["oldest_reader"] is None
    assert env.space()["readers"] == 1


def test_too_many_reads_are_an_error_and_fewer_work_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READERS_MAX", 2)
    env = opened(path)
    with env.read(), env.read(), pytest.raises(BusyError, match="too many concurrent reads"), env.read():
        pass
    assert value(env, b"k") is None
    env.close()


# --- growth and space ---------------------------------------------------------------------------


@pytest.fixture
def tiny(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Env]:
    monkeypatch.setattr(limits, "MAP_SIZE_BYTES", 1 << 16)
    env = opened(path)
    yield env
    env.close()


def test_a_full_map_grows_and_the_function_runs_again(tiny: Env) -> None:
    before = tiny.space()["map_bytes"]
    runs: list[int] = []

    def change(txn: env_module.WriteTxn) -> str:
        runs.append(1)
        txn.put_many((b"k%02d" % i, b"v" * 10_000) for i in range(50))
        return "done"

    with tiny.writer(1):
        assert tiny.write(change) == "done"
    assert len(runs) > 1
    assert tiny.space()["map_bytes"] >= 8 * before
    with tiny.read() as txn:
        assert sum(len(data) for _, data in txn.scan(b"k")) == 500_000


def test_a_swallowed_full_map_still_grows(tiny: Env) -> None:
    def change(txn: env_module.WriteTxn) -> None:
        try:
            txn.put(b"k", b"v" * 500_000)
        except Exception:
            return

    with tiny.writer(1):
        tiny.write(change)
    assert len(value(tiny, b"k") or b"") == 500_000


def test_growth_waits_for_reads_and_lets_nested_ones_through(tiny: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tiny, (b"k", b"v"))
    # Long enough that no read is let through just because time is up.
    monkeypatch.setattr(core, "_GATE_SECONDS", 30)
    reading, finish = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        with tiny.read() as outer:
            view = outer.get(b"k")
            reading.set()
            while not finish.wait(0.001):
                with tiny.read() as inner:
                    assert inner.get(b"k") == b"v"
            seen.append(bytes(view or b""))

    reader = threading.Thread(target=read)
    reader.start()
    reading.wait(10)
    grower = threading.Thread(target=put, args=(tiny, (b"big", b"x" * 500_000)))
    grower.start()
    grower.join(0.2)
    assert grower.is_alive()
    finish.set()
    grower.join(20)
    reader.join(20)
    assert seen == [b"v"]
    assert len(value(tiny, b"big") or b"") == 500_000


def test_growth_is_refused_inside_a_read_of_the_same_thread(tiny: Env) -> None:
    with tiny.read(), pytest.raises(BusyError, match="this thread's own open read"):
        put(tiny, (b"k", b"v" * 500_000))
    put(tiny, (b"k", b"v" * 500_000))
    assert len(value(tiny, b"k") or b"") == 500_000


def test_growth_gives_up_on_a_read_that_stays_open(tiny: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITE_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(core, "_GATE_SECONDS", 0.01)
    reading, finish = threading.Event(), threading.Event()

    def read() -> None:
        with tiny.read():
            reading.set()
            finish.wait(20)

    reader = threading.Thread(target=read)
    reader.start()
    reading.wait(10)
    try:
        with pytest.raises(BusyError, match="stayed open"):
            put(tiny, (b"k", b"v" * 500_000))
        assert value(tiny, b"k") is None
    finally:
        finish.set()
        reader.join(20)


def test_growth_by_another_process_is_followed(tiny: Env, path: Path) -> None:
    code = (
        "env = open_env(path, create=False, readonly=False, durable=True)\n"
        "with env.writer(5):\n    env.write(lambda txn: txn.put(sys.argv[2].encode(), b'v' * int(sys.argv[3])))\n"
    )
    for key, size in ((b"read", 500_000), (b"write", 5_000_000)):
        process = spawn(code, path, key.decode(), size)
        process.communicate(timeout=60)
        if key == b"write":
            put(tiny, (b"k", b"v"))
        assert len(value(tiny, key) or b"") == size


def test_a_map_that_cannot_grow_is_an_error_that_changes_nothing(path: Path) -> None:
    code = (
        "import resource\n"
        "limits.MAP_SIZE_BYTES = 1 << 26\n"
        "env = open_env(path, create=True, readonly=False, durable=True)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096 + (1 << 26)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used, used))\n"
        "done = 0\n"
        "try:\n"
        "    while done < 100:\n"
        "        with env.writer(5):\n            env.write(lambda txn: txn.put(b'k%02d' % done, b'v' * (1 << 22)))\n"
        "        done += 1\n"
        "except FileError as error:\n    print('no larger one; allow this process more address space' in str(error))\n"
        "with env.writer(5):\n    env.write(lambda txn: txn.put(b'after', b'v'))\n"
        "with env.read() as txn:\n"
        "    print(done > 5, txn.get(b'k%02d' % done), len(list(txn.scan(b'k'))) == done, bytes(txn.get(b'after')))\n"
    )
    out, _ = spawn(code, path).communicate(timeout=60)
    assert out.split() == ["True", "True", "None", "True", "b'v'"]


def test_a_full_disk_is_an_error_that_changes_nothing(env: Env) -> None:
    put(env, (b"k", b"old"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(FileError, match="disk is full"):
            put(env, (b"big", b"v" * (1 << 22)), (b"k", b"new"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert value(env, b"k") == b"old"
    put(env, (b"k", b"new"))
    assert value(env, b"k") == b"new"


def test_space_counts_pages(env: Env, path: Path) -> None:
    put(env, (b"k", b"v" * 1_000_000))
    with env.writer(1):
        env.write(lambda txn: txn.delete(b"k"))
    space = env.space()
    assert space["file_bytes"] == path.stat().st_size
    assert 1_000_000 < space["free_bytes"] < space["used_bytes"] <= space["file_bytes"] < space["map_bytes"]
    assert space["live_bytes"] + space["free_bytes"] + space["pinned_bytes"] == space["used_bytes"]
    assert (space["pinned_bytes"], space["oldest_reader"]) == (0, None)
    assert space["readers"] >= 1


def test_space_tells_what_the_oldest_reader_pins(env: Env, path: Path) -> None:
    put(env, (b"k", b"v" * 1_000_000), (b"small", b"v"))
    put(env, (b"small", b"w"))
    with env.read(), env.read():
        put(env, (b"small", b"x"))
        few = env.space()
        put(env, (b"k", b"w" * 1_000_000))
        many = env.space()
        assert few["oldest_reader"] == {"pid": os.getpid(), "age": 1}
        assert many["oldest_reader"] == {"pid": os.getpid(), "age": 2}
        assert 0 < few["pinned_bytes"] < 100_000
        assert 1_000_000 < many["pinned_bytes"] < 1_100_000
        assert many["live_bytes"] + many["free_bytes"] + many["pinned_bytes"] == many["used_bytes"]
        assert many["free_bytes"] < 100_000
    after = env.space()
    assert (after["pinned_bytes"], after["oldest_reader"]) == (0, None)
    assert after["free_bytes"] > 1_000_000


def test_a_copy_is_a_database_of_its_own(env: Env, path: Path) -> None:
    put(env, (b"k", b"v"), (b"big", b"v" * 1_000_000))
    with env.writer(1):
        env.write(lambda txn: txn.delete(b"big"))
    target = path.with_name("copy.fdb")
    env.copy(str(target))
    put(env, (b"k", b"later"))
    assert target.stat().st_size < 100_000
    copied = opened(target, create=False)
    assert value(copied, b"k") == b"v"
    put(copied, (b"k", b"mine"))
    copied.close()
    assert value(env, b"k") == b"later"
    assert not list(path.parent.glob(".*"))


def test_a_copy_overwrites_nothing(env: Env, path: Path) -> None:
    target = path.with_name("precious")
    target.write_text("precious")
    with pytest.raises(FileError, match="exists already"):
        env.copy(str(target))
    assert target.read_text() == "precious"
    with pytest.raises(FileError, match="nowhere"):
        env.copy(str(path.parent / "nowhere" / "x.fdb"))
    with pytest.raises(FileError, match="exists already"):
        env.copy(str(path))
    assert not list(path.parent.glob(".*"))


# --- fork ---------------------------------------------------------------------------------------


def test_a_forked_child_is_refused_every_use_of_the_parents_handle(env: Env) -> None:
    uses: dict[str, Callable[[], object]] = {
        "read": lambda: env.read().__enter__(),
        "writer": lambda: env.writer(1).__enter__(),
        "write": lambda: env.write(lambda txn: None),
        "space": env.space,
    }
    for use in uses.values():
        assert in_fork(lambda use=use: str(use())).startswith(f"{ForkedError.__name__}: {env.path}: was opened before")
    assert in_fork(lambda: str(env.close())) == "None"


def test_a_forked_child_opens_the_file_itself(env: Env, path: Path) -> None:
    put(env, (b"k", b"parent"))

    def child() -> str:
        mine = opened(path, create=False)
        before = value(mine, b"k")
        put(mine, (b"k", b"child"))
        mine.close()
        mine = opened(path, create=False)
        assert in_fork(lambda: str(value(opened(path), b"k"))) == "b'child'"
        return str(before)

    assert in_fork(child) == "b'parent'"
    assert value(env, b"k") == b"child"
    put(env, (b"k", b"parent again"))
    assert value(env, b"k") == b"parent again"


def test_a_child_disturbs_neither_the_parents_snapshot_nor_its_lock(env: Env, path: Path) -> None:
    put(env, (b"k", b"old"))
    with env.read() as txn:

        def child() -> str:
            with pytest.raises(ForkedError):
                txn.get(b"k")
            # As when the child leaves the parent's with blocks.
            txn.__exit__(None, None, None)
            env.close()
            mine = opened(path)
            readers = mine._core.engine.readers() if mine._core is not None else ""
            return str(str(os.getppid()) in readers)

        assert in_fork(child) == "True"
        for i in range(20):
            put(env, (b"k", b"new%d" % i), (b"fill", b"x" * 100_000))
        assert txn.get(b"k") == b"old"

    with env.writer(1):

        def competing() -> str:
            with opened(path).writer(0.05):
                return "took the parent's lock"

        assert in_fork(competing).startswith("BusyError")
    with env.writer(1):
        # The child unwinds the parent's with block.
        assert in_fork(lambda: str(env._core.lock.release() if env._core is not None else "")) == "None"
        assert in_fork(competing).startswith("BusyError")


def test_a_child_that_ends_like_a_program_leaves_the_parents_reader_slots(path: Path) -> None:
    code = (
        "env = open_env(path, create=True, readonly=False, durable=True)\n"
        "with env.read() as txn:\n"
        # Leaves a slot that the engine keeps for the next read.
        "    with env.read() as inner:\n        pass\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n        sys.exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    print(env._core.engine.readers().count(str(os.getpid())))\n"
        "    with env.read() as inner:\n        print(inner.id() == txn.id())\n"
    )
    process = spawn(code, path)
    out, _ = process.communicate(timeout=60)
    assert out.split() == ["2", "True"]
    assert process.returncode == 0
