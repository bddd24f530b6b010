"""The structure of pages: what is in order is found so, and each kind of damage is named before the engine sees it."""

from __future__ import annotations

import os
import random
import struct
import threading
from pathlib import Path

import lmdb
import pytest
from lmdb.verify import verify as lmdb_verify
from test_processes import python

import featuredb as fdb
from featuredb.storage.env import open_env
from featuredb.storage.pages import file_faults

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Entries over many pages, three levels deep, with values of several pages and free ones."""
    path = tmp_path / "pages.fdb"
    env = open_env(path, create=True, readonly=False, durable=False)
    rng = random.Random(5)
    with env.writer(1):
        for _ in range(3):
            env.write(lambda txn: [txn.put(b"k%05d" % rng.randrange(9000) * 8, bytes(60)) for _ in range(4000)])
            env.write(lambda txn: [txn.put(b"v%d" % rng.randrange(9), bytes(10_000)) for _ in range(3)])
            env.write(lambda txn: txn.delete_prefix(b"k00"))
    env.close()
    return path


def meta(path: Path) -> tuple[int, int, int, int, int]:
    """Where the newest meta page is; root, depth, last page; root of the free pages."""
    content = path.read_bytes()
    at = max((0, PAGE), key=lambda base: struct.unpack_from("<Q", content, base + 144)[0])
    (depth,) = struct.unpack_from("<H", content, at + 94)
    return (
        at,
        *struct.unpack_from("<Q", content, at + 128),
        depth,
        *struct.unpack_from("<Q", content, at + 136),
        *(struct.unpack_from("<Q", content, at + 80)),
    )


def change(path: Path, at: int, form: str, *values: int) -> None:
    with open(path, "r+b") as stream:
        stream.seek(at)
        stream.write(struct.pack(form, *values))


def number(path: Path, at: int, form: str) -> int:
    return int(struct.unpack_from(form, path.read_bytes(), at)[0])


def leaf(path: Path) -> int:
    """Where the leaf page at the left edge of the tree is."""
    content = path.read_bytes()
    _, page, depth, _, _ = meta(path)
    for _ in range(depth - 1):
        (node,) = struct.unpack_from("<H", content, page * PAGE + 16)
        low, high, highest = struct.unpack_from("<HHH", content, page * PAGE + node)
        page = low | high << 16 | highest << 32
    return page * PAGE


def free_key(path: Path, place: int) -> int:
    """Where the number of a transaction is that freed pages: the first (0) or last (-1) in the tree of these."""
    content, base = path.read_bytes(), meta(path)[4] * PAGE
    flags, lower = struct.unpack_from("<HH", content, base + 10)
    assert flags & 0x02, "not a leaf"
    nodes = struct.unpack_from(f"<{(lower - 16) // 2}H", content, base + 16)
    return base + int(nodes[place]) + 8


def test_a_file_in_order_has_no_faults(path: Path) -> None:
    assert meta(path)[2] >= 3, "a tree of less depth shows little"
    assert file_faults(str(path)) == lmdb_verify(str(path)) == []


def test_random_trees_have_no_faults(tmp_path: Path) -> None:
    for seed in range(5):
        rng = random.Random(seed)
        path = tmp_path / f"{seed}.fdb"
        env = open_env(path, create=True, readonly=False, durable=False)
        with env.writer(1):
            for _ in range(30):
                entries = [
                    (rng.randbytes(rng.randint(1, 200)), bytes(rng.choice([0, 9, 900, 9000]))) for _ in range(40)
                ]
                # Not the first entry: that is the format record, by which the file is known.
                env.write(lambda txn: [txn.put(b"b" + key, value) for key, value in entries])  # noqa: B023
                env.write(lambda txn: [txn.delete(b"b" + key) for key, _ in entries[: rng.randrange(41)]])  # noqa: B023
                assert file_faults(str(path)) == []
        assert env.page_faults() == lmdb_verify(str(path)) == []
        env.close()


DAMAGE = {
    "its own number": (lambda path: change(path, leaf(path), "<Q", 77), "says that it is page 77"),
    "its kind": (lambda path: change(path, leaf(path) + 10, "<H", 1), "of kind 0x1"),
    "its bounds": (lambda path: change(path, leaf(path) + 12, "<H", 4000), "has its nodes between"),
    "the gap": (lambda path: change(path, leaf(path) + 14, "<H", number(path, leaf(path) + 12, "<H")), "they do not"),
    "a node": (lambda path: change(path, leaf(path) + 16, "<H", 4095), "is outside it"),
    "a key": (lambda path: change(path, leaf(path) + number(path, leaf(path) + 16, "<H") + 6, "<H", 9999), "cut off"),
    "a value": (lambda path: change(path, leaf(path) + number(path, leaf(path) + 16, "<H"), "<H", 9999), "not inside"),
    "order": (lambda path: change(path, leaf(path) + number(path, leaf(path) + 18, "<H") + 8, "<B", 0), "out of order"),
    "the root": (lambda path: change(path, meta(path)[0] + 128, "<Q", 1 << 40), "is none of the"),
    "a loop": (lambda path: change(path, meta(path)[0] + 80, "<Q", meta(path)[1]), "of kind|in use twice"),
    "entries": (lambda path: change(path, meta(path)[0] + 120, "<Q", 3), "should have"),
    "no free pages": (lambda path: change(path, meta(path)[0] + 80, "<Q", (1 << 64) - 1), "should have"),
    "free since none": (lambda path: change(path, free_key(path, 0), "<Q", 0), "since transaction 0, which was none"),
    "free later": (lambda path: change(path, free_key(path, -1), "<Q", 1 << 40), "which was none"),
    "the length": (lambda path: change(path, meta(path)[0] + 136, "<Q", 1 << 40), "should have 1099511627777 pages"),
    "one page more": (
        lambda path: change(path, meta(path)[0] + 136, "<Q", meta(path)[3] + 1),
        "neither in use nor free",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_nothing_is_read(path: Path, damage: str) -> None:
    make, message = DAMAGE[damage]
    make(path)
    faults = file_faults(str(path))
    assert faults
    assert len(faults) <= 20
    assert any(part in faults[0] for part in message.split("|")), faults


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("at", "flags"), [(44, 0x4004), (44, 0x400C), (44, 0), (92, 0x02), (92, 0x04), (92, 0x08)])
def test_a_file_whose_trees_are_of_another_order_or_kind_is_not_opened(
    path: Path, at: int, flags: int, both: bool
) -> None:
    """LMDB would compare its keys in that way, which may have no end, or take values for trees."""
    newest = meta(path)[0]
    for base in (0, PAGE) if both else (newest,):
        change(path, base + at, "<H", flags)
    with pytest.raises(fdb.CorruptionError, match="meta pages are truncated or damaged"):
        fdb.open(path, read_only=True)


def test_the_end_of_a_value_beyond_the_end_of_the_file_is_refused(tmp_path: Path) -> None:
    """lmdb.verify looks at the first page of such a value only; reading the others would be SIGBUS."""
    path = tmp_path / "long.fdb"
    env = open_env(path, create=True, readonly=False, durable=False)
    with env.writer(1):
        env.write(lambda txn: txn.put(b"filler", bytes(200_000)))
        env.write(lambda txn: txn.put(b"long", bytes(40_000)))
        env.write(lambda txn: txn.delete(b"filler"))
        for _ in range(5):
            # The trees move into the pages that were freed, and leave the long value the last.
            env.write(lambda txn: txn.put(b"k", b"v"))
    env.close()
    content = path.read_bytes()
    first = next(
        page
        for page in range(2, len(content) // PAGE)
        if struct.unpack_from("<QHHI", content, page * PAGE) == (page, 0, 4, 10)
    )
    os.truncate(path, (first + 3) * PAGE)
    assert file_faults(str(path)) == [f"a value of the tree of entries: page {first + 9} is beyond the end of the file"]
    with pytest.raises(fdb.CorruptionError, match="beyond the end of the file"):
        open_env(path, create=False, readonly=False, durable=False)


def test_verify_reports_pages_and_reads_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "some.fdb"
    with fdb.open(path) as db:
        db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], [fdb.Feature("n", "int64")])])
        db.ingest("t", {"user": range(3000), "event_timestamp": ["2013-01-01"] * 3000, "n": range(3000)})
        assert db.verify().ok
    change(path, meta(path)[0] + 120, "<Q", 3)
    with fdb.open(path) as db:
        report = db.verify()
    assert not report.ok
    assert report.problem_count == len(report.problems) == 1
    assert str(report.problems[0]).startswith("pages: the tree of entries has")
    assert report.tables == 0


def test_verify_checks_the_pages_of_a_file_that_another_process_has_put_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "replaced.fdb"
    with fdb.open(path) as db:
        db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("t", ["user"], [fdb.Feature("n", "int64")])])
        db.ingest("t", {"user": range(3000), "event_timestamp": ["2013-01-01"] * 3000, "n": range(3000)})
        before = path.stat().st_ino
        other = python("with fdb.open(sys.argv[1]) as db:\n    db.compact()\n", path)
        other.communicate(timeout=60)
        assert other.returncode == 0
        assert path.stat().st_ino != before
        change(path, meta(path)[0] + 120, "<Q", 3)
        report = db.verify()
    assert not report.ok
    assert str(report.problems[0]).startswith("pages: the tree of entries has")


def test_pages_are_in_order_while_another_thread_writes(tmp_path: Path) -> None:
    """The proof is about the pages of one transaction, which a reader holds."""
    env = open_env(tmp_path / "busy.fdb", create=True, readonly=False, durable=False)
    done = threading.Event()

    def write() -> None:
        rng = random.Random(3)
        while not done.is_set():
            with env.writer(5):
                env.write(
                    lambda txn: [txn.put(b"k%d" % rng.randrange(2000), bytes(rng.randrange(5000))) for _ in range(50)]
                )
                env.write(lambda txn: txn.delete_prefix(b"k%d" % rng.randrange(10)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert [env.page_faults() for _ in range(30)] == [[]] * 30
    finally:
        done.set()
        writer.join()
        env.close()


def test_a_tree_of_another_kind_is_no_tree_of_ours(tmp_path: Path) -> None:
    """Values that sort themselves are a feature of the engine that featuredb does not use."""
    path = tmp_path / "other.mdb"
    other = lmdb.open(str(path), subdir=False, lib_version=0, lock=False, max_dbs=1)
    with other.begin(write=True) as txn:
        txn.put(b"k", b"v", db=other.open_db(b"named", txn=txn))
    other.close()
    assert "is not inside it" in file_faults(str(path))[0]
