"""The walk over the pages of the file: on every key what the engine's own `get` says, and never a byte outside."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featuredb.columns import Heap
from featuredb.online import kernels
from featuredb.online.pagewalk import Lookup
from featuredb.storage import filemap
from featuredb.storage.env import Env, ReadTxn, open_env

PREFIX = b"p\x00\x00\x00\x07"
Entries = dict[bytes, bytes | None]


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Env]:
    env = open_env(str(tmp_path / "a.fdb"), create=True, readonly=False, durable=False)
    yield env
    env.close()


def write(env: Env, entries: Entries, prefix: bytes = PREFIX) -> None:
    """One commit: values under keys, None to delete."""

    def work(txn: Any) -> None:
        for key, value in entries.items():
            txn.delete(prefix + key) if value is None else txn.put(prefix + key, value)

    with env.writer(10):
        env.write(work, durable=False)


def near(keys: Iterable[bytes]) -> list[bytes]:
    """The keys, and ones just beside, below and above them."""
    found = set(keys)
    for key in list(found):
        found |= {key[:-1], key + b"\x00", key + b"\xff", key[:-1] + bytes([(key or b"\0")[-1] ^ 1])}
    return sorted(key for key in found if len(key) <= 500)


def walked(txn: ReadTxn, keys: list[bytes], prefix: bytes = PREFIX) -> tuple[Lookup, list[bytes | None]]:
    lookup = Lookup(txn, prefix, Heap.of(keys))
    lookup.walk(0, len(keys))
    lookup.rest(0, len(keys))
    return lookup, [lookup.value(row) for row in range(len(keys))]


def got(txn: ReadTxn, keys: list[bytes], prefix: bytes = PREFIX) -> list[bytes | None]:
    values = [txn.get(prefix + key) for key in keys]
    return [None if value is None else bytes(value) for value in values]


def assert_walk_is_get(env: Env, keys: list[bytes], prefix: bytes = PREFIX) -> None:
    with env.read() as txn:
        lookup, values = walked(txn, keys, prefix)
        assert values == got(txn, keys, prefix)
        assert kernels.UNSETTLED not in lookup.walked.at, "the walk was to answer, not the engine"


def depth(env: Env) -> int:
    with env.read() as txn:
        tree = txn.tree(PREFIX)
        assert tree is not None
        return tree.depth


@pytest.mark.parametrize(("levels", "count", "key_bytes"), [(1, 3, 8), (2, 400, 8), (3, 250, 480), (4, 1000, 500)])
def test_trees_of_any_depth_with_splits_deletes_and_big_values(
    env: Env, levels: int, count: int, key_bytes: int
) -> None:
    rng = np.random.default_rng(levels)
    heads = rng.permutation(count * 3)[:count]
    keys = [int(head).to_bytes(4, "big") + rng.bytes(int(rng.integers(1, key_bytes - 3))) for head in heads]
    if levels > 2:
        keys = [key.ljust(key_bytes, b"\xee") for key in keys]
    sizes = np.where(rng.random(count) < 0.05, rng.integers(3000, 20_000, count), rng.integers(0, 60, count))
    if levels == 1:
        sizes = np.array([0, 1, 9000])
    values = [rng.bytes(int(size)) for size in sizes]
    write(env, dict(zip(keys, values, strict=True)))
    assert depth(env) == levels
    asked = near(keys)
    rng.shuffle(asked)
    assert_walk_is_get(env, [*asked, *asked[:5]])
    write(env, dict.fromkeys(keys[: count // 3]))
    write(env, {key: value + b"!" * 40 for key, value in zip(keys[count // 2 :], values, strict=False)})
    assert_walk_is_get(env, asked)


SHORT = st.lists(st.sampled_from(b"\x00\x01o\xff"), max_size=30).map(bytes)


@given(
    st.lists(st.dictionaries(SHORT, st.none() | st.binary(max_size=3) | st.just(b"v" * 5000), max_size=40), max_size=4),
    st.lists(SHORT, max_size=20),
)
def test_keys_that_share_beginnings_or_begin_one_another(
    tmp_path_factory: pytest.TempPathFactory, commits: list[Entries], others: list[bytes]
) -> None:
    env = open_env(str(tmp_path_factory.mktemp("w") / "a.fdb"), create=True, readonly=False, durable=False)
    for entries in commits:
        write(env, entries)
    write(env, {b"": b"below", b"\xff": b"above"}, b"p\x00\x00\x00\x08")
    asked = near([key for entries in commits for key in entries]) + others
    assert_walk_is_get(env, asked)
    assert_walk_is_get(env, [b"", b"\xff", b"x"], b"p\x00\x00\x00\x08")
    env.close()


def test_nothing_is_stored_or_asked_for(env: Env) -> None:
    with env.read() as txn:
        assert walked(txn, [b"", b"x"])[1] == [None, None]
        assert walked(txn, [])[1] == []


def test_a_key_longer_than_any_that_can_be_stored_is_absent(env: Env) -> None:
    write(env, {b"k": b"v"})
    with env.read() as txn:
        assert walked(txn, [b"x" * 2000, b"k"])[1] == [None, b"v"]


# --- where the walk is not sure -----------------------------------------------------------------------


def assert_off(txn: ReadTxn, keys: list[bytes]) -> None:
    assert txn.tree(PREFIX) is None
    assert walked(txn, keys)[1] == got(txn, keys)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAGIC", 1),
        ("DATA_VERSION", 3),
        ("META_PAGE", 0x10),
        ("PAGE_BYTES_MAX", 256),
        ("_STATISTICS", ("entries", "depth", "branch_pages", "leaf_pages", "overflow_pages")),
    ],
)
def test_another_format_or_page_size_switches_it_off(
    env: Env, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    write(env, {b"%d" % i: b"v" * i for i in range(300)})
    keys = near([b"1", b"17", b"299"])
    assert_walk_is_get(env, keys)
    monkeypatch.setattr(filemap, name, value)
    with env.read() as txn:
        assert_off(txn, keys)


@pytest.mark.parametrize(("platform", "version"), [("win32", (0, 9, 36)), ("linux", (1, 0, 0)), ("linux", (0, 8, 1))])
def test_another_platform_or_engine_switches_it_off(
    env: Env, monkeypatch: pytest.MonkeyPatch, platform: str, version: tuple[int, int, int]
) -> None:
    write(env, {b"k": b"v"})
    monkeypatch.setattr(filemap.sys, "platform", platform)
    core = env._core
    assert core is not None
    monkeypatch.setattr(core, "file_map", filemap.FileMap(core.path, core.key, version))
    with env.read() as txn:
        assert_off(txn, [b"k", b"l"])


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_an_older_transaction_is_read_by_the_engine(env: Env, commits: int) -> None:
    keys = [b"%d" % i for i in range(300)]
    write(env, dict.fromkeys(keys, b"old"))
    with env.read() as txn:
        assert txn.tree(PREFIX) is not None
        for _ in range(commits):
            write(env, dict.fromkeys(keys, b"new"))
        assert_off(txn, keys)
        assert set(walked(txn, keys)[1]) == {b"old"}
    assert_walk_is_get(env, keys)


@pytest.mark.parametrize("how", ["put", "put many", "delete", "delete all"])
def test_a_transaction_that_writes_walks_the_commit_before_until_it_has_written_such_keys(env: Env, how: str) -> None:
    keys = [b"%d" % i for i in range(300)]
    write(env, dict.fromkeys(keys, b"old"))
    write(env, dict.fromkeys(keys[::2], b"older"))

    def work(txn: Any) -> None:
        txn.put(b"p\x00\x00\x00\x06other", b"x" * 5000)
        txn.put_many([(b"p\x00\x00\x00\x08%d" % i, b"x" * 90) for i in range(500)])
        lookup, values = walked(txn, keys)
        assert values == got(txn, keys)
        assert kernels.UNSETTLED not in lookup.walked.at
        if how == "put":
            txn.put(PREFIX + b"7", b"new")
        elif how == "put many":
            txn.put_many([(PREFIX + b"7", b"new")])
        elif how == "delete":
            txn.delete(PREFIX + b"7")
        else:
            txn.delete_prefix(PREFIX)
        assert_off(txn, keys)
        assert walked(txn, [b"7"])[1] == [b"new" if "put" in how else None]

    with env.writer(10):
        env.write(work)


def test_a_file_that_grew_is_mapped_anew_and_one_that_was_replaced_is_not(env: Env, tmp_path: Path) -> None:
    write(env, {b"k": b"v"})
    assert_walk_is_get(env, [b"k"])
    write(env, {b"%d" % i: b"w" * 3000 for i in range(2000)})
    assert_walk_is_get(env, [b"k", b"0", b"1999", b"2000"])
    path = Path(env.path)
    path.rename(tmp_path / "moved.fdb")
    path.write_bytes(b"\0" * 100_000)
    assert env._core is not None
    env._core.file_map._pages = None
    with env.read() as txn:
        assert_off(txn, [b"k", b"1999"])


# --- other processes, and damage ----------------------------------------------------------------------

WRITER = """
import random, sys
from featuredb.storage.env import open_env
env = open_env(sys.argv[1], create=False, readonly=False, durable=False)
rng = random.Random(5)
print("ready", flush=True)
while True:
    number = rng.randrange(1 << 30)
    def work(txn):
        for _ in range(rng.randrange(1, 60)):
            key = b"p\\0\\0\\0\\7" + rng.randrange(400).to_bytes(2, "big") * rng.choice((1, 1, 60))
            if rng.random() < 0.3:
                txn.delete(key)
            else:
                txn.put(key, number.to_bytes(4, "big") * rng.choice((1, 20, 2000)))
    with env.writer(10):
        env.write(work, durable=False)
"""


def test_while_another_process_writes_the_walk_sees_the_transactions_own_commit(env: Env) -> None:
    keys = [head.to_bytes(2, "big") * times for head in range(400) for times in (1, 60)]
    process = subprocess.Popen([sys.executable, "-c", WRITER, env.path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        seen, by_walk = set(), 0
        while by_walk < 60 or len(seen) < 30:
            with env.read() as txn:
                lookup, values = walked(txn, keys)
                assert values == got(txn, keys)
                by_walk += kernels.UNSETTLED not in lookup.walked.at
                seen.add(txn.id())
    finally:
        process.kill()
        process.communicate()


DAMAGE = """
import ctypes, mmap, sys
import numpy as np
from featuredb.columns import Heap
from featuredb.online import kernels, pagewalk
from featuredb.storage.env import open_env
from featuredb.storage.filemap import Tree

PREFIX = b"p\\0\\0\\0\\7"
env = open_env(sys.argv[1], create=True, readonly=False, durable=False)
rng = np.random.default_rng(3)
# Few keys: every page is so near to the end that an offset within it could lead behind.
keys = [rng.bytes(int(rng.integers(1, 60))) for _ in range(int(sys.argv[2]))]
def work(txn):
    for i, key in enumerate(keys):
        txn.put(PREFIX + key, rng.bytes(5000 if i % 20 == 0 else 40))
with env.writer(10):
    env.write(work)
with env.read() as txn:
    tree = txn.tree(PREFIX)
    whole = tree.pages[: tree.page_count * tree.page_bytes].copy()
# The pages, between two stretches that must not be touched, each longer than an offset within a page can be.
GUARD = 1 << 17
area = mmap.mmap(-1, len(whole) + 2 * GUARD)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
for at in (address, address + GUARD + len(whole)):
    assert protect(at, GUARD, 0) == 0
pages = np.frombuffer(area, np.uint8, len(whole), GUARD)
read_only = pages[:]
read_only.flags.writeable = False
class Txn:
    def __init__(self, tree): self._tree = tree
    def tree(self, prefix): return self._tree
wrong = 0
for attempt in range(100_000 // len(keys)):
    np.copyto(pages, whole)
    kind = attempt % 5
    if kind == 0:
        pages[rng.integers(0, len(pages), 3000)] = rng.integers(0, 256, 3000)
    elif kind == 1:  # headers, pointers and nodes, with pages that keep their number and kind
        for page in rng.integers(2, tree.page_count, 40):
            places = page * tree.page_bytes + rng.integers(12, tree.page_bytes, 60)
            pages[places] = rng.choice([0, 1, 16, 127, 255], 60)
    elif kind == 2:  # all pointers to nodes
        for page in range(2, tree.page_count):
            start = page * tree.page_bytes
            pages[start + 16 : start + 200] = rng.choice([0, 8, 15, 16, 240, 248, 255], 184)
    else:  # sizes of values and numbers of pages; how many pages a big value has
        for page in range(2, tree.page_count):
            start = page * tree.page_bytes
            if pages[start + 10] == 4:
                pages[start + 12 : start + 16] = rng.choice([0, 1, 255], 4)
            nodes = pages[start + 16 : start + 60].view("<u2")
            for node in nodes[(nodes >= 60) & (nodes < tree.page_bytes - 80)].tolist():
                pages[start + node : start + node + 4] = rng.choice([0, 1, 255], 4)
                size = int(pages[start + node + 6])
                if kind == 4:
                    pages[start + node + 8 + size : start + node + 16 + size] = rng.choice([0, 1, 127, 255], 8)
    root = int(rng.integers(0, tree.page_count)) if attempt % 7 == 0 else tree.root
    depth = int(rng.integers(0, 9)) if attempt % 11 == 0 else tree.depth
    lookup = pagewalk.Lookup(Txn(Tree(read_only, tree.page_bytes, tree.page_count, root, depth)), PREFIX, Heap.of(keys))
    lookup.walk(0, len(keys))
    at, size = lookup.walked.at, lookup.walked.size
    found = at >= 0
    assert (at[found] + size[found] <= len(pages)).all() and (size[found] >= 0).all()
    wrong += int((~found).sum())
assert wrong > 1000, wrong
"""


@pytest.mark.parametrize("keys", ["1000", "100"])
def test_no_content_of_the_pages_makes_it_read_outside_of_them(tmp_path: Path, keys: str) -> None:
    """In a process of its own, which a read before or behind the pages would kill."""
    path = str(tmp_path / "a.fdb")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(DAMAGE), path, keys], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
