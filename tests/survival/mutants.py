"""Hostile files: small sound ones, changed by a mutator that knows the structure of pages and of entries.

Half of the mutants have their pages changed as bytes, so that checksums and the tree are wrong. The other half have
entries rewritten inside the tree, which stays sound, and every checksum put right: what the decoders believe.
Everything follows from the number of a case.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import featuredb as fdb
from featuredb import limits
from featuredb.offline import ingest, merge
from featuredb.storage.engine import new_engine
from featuredb.storage.pages import PageWalk, meta_pages

from .hostile import EXTREMES, mutated, mutated_record, repaired

PAGE_BYTES = 4096
MAP_BYTES = 1 << 26
_META_AT = 16
_META_FIELDS = [*range(0, 8, 4), 8, 16, 24, 28, 30, *range(32, 72, 8), 72, 76, 78, *range(80, 120, 8), 120, 128]
_T0 = datetime(2013, 1, 1, tzinfo=UTC)


class Content(bytearray):
    """The bytes of a file, and where the pages of its last transaction begin."""

    live: tuple[int, ...] = ()


@dataclass(frozen=True)
class Base:
    """A sound file: its bytes, the places of the pages that are in use, and its entries."""

    content: bytes
    live: tuple[int, ...]
    entries: dict[bytes, bytes]


# --- sound files ------------------------------------------------------------------------------


def make_bases(folder: Path) -> None:
    """Write the sound files, the same bytes each time."""
    for name, build in (("scalars", _scalars), ("nested", _nested), ("snapshots", _snapshots)):
        ticks, ids = itertools.count(1_700_000_000_000_000_000, 1_000_000_000), itertools.count(1)
        with (
            mock.patch.object(time, "time_ns", lambda ticks=ticks: next(ticks)),
            mock.patch.object(uuid, "uuid4", lambda ids=ids: uuid.UUID(int=next(ids))),
            mock.patch.multiple(ingest, INGEST_BATCH_ROWS=999, INGEST_MEMORY_ROWS=999, SMALL_INGEST_ROWS_MAX=5),
            mock.patch.object(merge, "MERGE_FANOUT", 9),
            fdb.open(folder / f"{name}.fdb") as db,
        ):
            build(db)


def read_bases(folder: Path) -> list[Base]:
    """The files that `make_bases` wrote."""
    return [_base(path) for path in sorted(folder.glob("*.fdb"))]


def _base(path: Path) -> Base:
    engine = new_engine(str(path), MAP_BYTES)
    try:
        with engine.begin() as txn:
            entries = {bytes(key): bytes(value) for key, value in txn.cursor()}
    finally:
        engine.close()
    content = path.read_bytes()
    fd = os.open(path, os.O_RDONLY)
    try:
        walk = PageWalk(fd, meta_pages(fd)[0], len(content))
        walk.faults()
    finally:
        os.close(fd)
    return Base(content, tuple((np.flatnonzero(walk._used) * PAGE_BYTES).tolist()), entries)


def _times(count: int, step_hours: int = 1) -> list[datetime]:
    return [_T0 + timedelta(hours=step_hours * number) for number in range(count)]


def _scalars(db: fdb.Database) -> None:
    """Packed, plain and dictionary columns, replaced rows, a tail, rejected rows, rows to materialize."""
    features = {"n": "int64", "price": "float64", "flag": "bool", "kind": "string", "at": "timestamp"}
    db.apply(
        [
            fdb.Entity("item", "int32"),
            fdb.FeatureTable("rows", ["item"], [fdb.Feature(*one) for one in features.items()]),
            fdb.FeatureService("model", ["rows:n", "rows:kind"]),
        ]
    )

    def rows(count: int, shift: int) -> dict[str, list[Any]]:
        return {
            "item": [number % 40 for number in range(count)],
            "event_timestamp": _times(count),
            "n": [number + shift if number % 7 else None for number in range(count)],
            "price": [number / 4 for number in range(count)],
            "flag": [number % 2 == 0 for number in range(count)],
            "kind": [f"kind {number % 3}" for number in range(count)],
            "at": _times(count, 24),
        }

    db.ingest("rows", rows(120, 0))
    db.ingest("rows", rows(30, 5), to="offline")
    db.ingest("rows", {name: values[:3] for name, values in rows(3, 9).items()} | {"event_timestamp": _times(3, 999)})
    db.ingest("rows", rows(2, 0) | {"item": [None, 1]}, on_error="skip")


def _nested(db: fdb.Database) -> None:
    """Lists, vectors, long strings, composite keys, a removed feature."""
    features = {
        "gone": "int8",
        "vector": "float32[3]",
        "words": "list[string]",
        "counts": "list[int16]",
        "raw": "bytes",
    }
    entities = [fdb.Entity("user", "string"), fdb.Entity("day", "timestamp")]

    def table(names: list[str]) -> fdb.FeatureTable:
        chosen = [fdb.Feature(name, features[name]) for name in names]
        return fdb.FeatureTable("nested", ["user", "day"], chosen, max_age=timedelta(days=99), labels={"team": "ops"})

    db.apply([*entities, table(list(features))])

    def rows(first: int, count: int) -> dict[str, list[Any]]:
        numbers = range(first, first + count)
        return {
            "user": [f"user\0{number % 5}" for number in numbers],
            "day": [_T0 + timedelta(days=number % 3) for number in numbers],
            "event_timestamp": [_T0 + timedelta(hours=number) for number in numbers],
            "gone": [1] * count,
            "vector": [[number, 0.5, -1.0] if number % 4 else None for number in numbers],
            "words": [["a", "é" * (number % 4)] if number % 5 else None for number in numbers],
            "counts": [list(range(number % 3)) for number in numbers],
            "raw": [bytes([number]) * (number % 9) for number in numbers],
        }

    db.ingest("nested", rows(0, 20))
    db.apply(table([name for name in features if name != "gone"]))
    db.ingest("nested", {name: values for name, values in rows(20, 4).items() if name != "gone"})


def _snapshots(db: fdb.Database) -> None:
    """Snapshots that hold a segment and online rows, rows loaded apart, a forgotten key, an alias, an offline table."""
    one = fdb.FeatureTable("one", ["key"], [fdb.Feature("v", "float32")])
    service = fdb.FeatureService("both", ["copy:v"], aliases={"copy": fdb.Alias("one", {"key": "other"})})
    source = fdb.FileSource("x.csv", event_timestamp_column="t", created_timestamp_column="c")
    two = fdb.FeatureTable("two", ["key"], [fdb.Feature("w", "uint8")], batch_source=source, online=False)
    db.apply([fdb.Entity("key", "string"), one, two, service])
    rows = {"key": list("abcd"), "event_timestamp": _times(4), "created_timestamp": _times(4, 2), "v": [1, 2, None, 4]}
    db.ingest("one", rows)
    db.ingest("two", {"key": ["a", "z"], "t": _times(2), "c": _times(2), "w": [1, None]})
    db.forget([{"key": "z"}])
    db.snapshot("first")
    db.ingest("one", rows | {"v": [9, 9, 9, 9]})
    db.snapshot("second")
    db.ingest("one", {name: values[:1] for name, values in rows.items()} | {"event_timestamp": _times(2)[1:]})
    db.ingest("one", rows | {"key": list("efgh")}, to="online")


# --- mutants ----------------------------------------------------------------------------------


def write_mutant(bases: list[Base], number: int, path: Path) -> str:
    """Write the mutant of a number; what was done."""
    rng = random.Random(number)
    base = rng.choice(bases)
    if rng.random() < 0.5:
        content = Content(base.content)
        content.live = base.live
        done = []
        for _ in range(rng.choice((1, 1, 2, 4))):
            while True:
                change, before = rng.choice(_PAGE_CHANGES), bytes(content)
                change(rng, content)
                if content != before:
                    break
            done.append(change.__name__.strip("_"))
        path.write_bytes(content)
        return "pages: " + ", ".join(done)
    path.write_bytes(base.content)
    entries, done = mutated_entries(rng, base.entries)
    _rewrite(path, base.entries, entries)
    return f"entries: {done}"


def _rewrite(path: Path, before: dict[bytes, bytes], after: dict[bytes, bytes]) -> None:
    engine = new_engine(str(path), MAP_BYTES)
    try:
        with engine.begin(write=True) as txn:
            for key in before.keys() - after.keys():
                txn.delete(key)
            for key, value in after.items():
                if before.get(key) != value:
                    txn.put(key, value)
    finally:
        engine.close()


def mutated_entries(rng: random.Random, entries: dict[bytes, bytes]) -> tuple[dict[bytes, bytes], str]:
    """The entries with some of them changed, and every checksum put right but for a few; what was done."""
    fresh, done = dict(entries), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        # Each namespace alike, for most entries are chunks and keys.
        spaces = sorted({key[:1] for key in fresh})
        space = rng.choice(spaces)
        keys = sorted(key for key in fresh if key[:1] == space)
        key = rng.choice(keys)
        kind = rng.choices(("change", "exchange", "delete", "rename", "copy"), (12, 2, 1, 1, 1))[0]
        done.append(f"{kind} {key[:40].hex()}")
        if kind == "change":
            fresh[key] = mutated_record(rng, key, fresh[key]) if space in _RECORDS else _changed(rng, key, fresh[key])
        elif kind == "exchange":
            other = rng.choice(keys)
            fresh[key], fresh[other] = fresh[other], fresh[key]
        elif kind == "delete":
            del fresh[key]
        else:
            name = bytes(mutated(rng, key[1:]))[:500]
            value = fresh.pop(key) if kind == "rename" else fresh[key]
            fresh[(space if rng.random() < 0.9 else rng.choice(spaces)) + name] = value
    if rng.random() < 0.9:
        fresh = repaired(entries, fresh, lie=rng.random() < 0.5)
    return fresh, "; ".join(done)


_RECORDS = {
    limits.NS_FORMAT, limits.NS_COMMIT, limits.NS_DEFINITION, limits.NS_PENDING, limits.NS_SEGMENT, limits.NS_PINNED,
    limits.NS_REJECTED, limits.NS_SNAPSHOT, limits.NS_MANIFEST,
}  # fmt: skip


def _changed(rng: random.Random, key: bytes, value: bytes) -> bytes:
    # Records among rows and blocks are changed as such: the heads of tails, and what was forgotten.
    return mutated_record(rng, key, value) if rng.random() < 0.3 else bytes(mutated(rng, value))


# --- pages ------------------------------------------------------------------------------------


def _page(rng: random.Random, content: Content) -> int:
    """Where a page begins, mostly one that is in use: what others hold has no meaning."""
    live = [page for page in content.live if page + PAGE_BYTES <= len(content)]
    if live and rng.random() < 0.95:
        return rng.choice(live)
    return PAGE_BYTES * rng.randrange(max(1, len(content) // PAGE_BYTES))


def _spot(rng: random.Random, content: Content, width: int) -> int:
    """The place of a word of a page, outside the gap between its lists of nodes and these."""
    page = _page(rng, content)
    low, high = struct.unpack_from("<HH", content.ljust(page + PAGE_BYTES, b"\0"), page + 12)
    at = rng.randrange(PAGE_BYTES // width) * width
    if low <= at < high <= PAGE_BYTES:
        at = (
            rng.choice((rng.randrange(max(1, low)), min(high + rng.randrange(64), PAGE_BYTES - width))) // width * width
        )
    return page + at


def _put(rng: random.Random, content: Content, at: int, width: int) -> None:
    """A word that is extreme, or of the size of what stands in pages."""
    near = (len(content) // PAGE_BYTES, len(content), PAGE_BYTES, rng.randrange(PAGE_BYTES), rng.randrange(64))
    before = int.from_bytes(content[at : at + width], "little")
    word = rng.choice((*EXTREMES, *near, *near, before + 1, before - 1, before ^ 1 << rng.randrange(8 * width)))
    if at + width <= len(content):
        content[at : at + width] = (word & (1 << 8 * width) - 1).to_bytes(width, "little")


def _nodes(content: Content, page: int) -> list[int]:
    # What was cut off may be asked for.
    held = content.ljust(page + PAGE_BYTES, b"\0")
    low = struct.unpack_from("<H", held, page + 12)[0]
    count = min(max(low - 16, 0) // 2, (PAGE_BYTES - 16) // 2)
    places = struct.unpack_from(f"<{count}H", held, page + 16)
    return [page + place for place in places if place <= min(PAGE_BYTES, len(content) - page) - 8]


def _flip(rng: random.Random, content: Content) -> None:
    for _ in range(rng.choice((1, 1, 8))):
        content[min(_spot(rng, content, 1), len(content) - 1)] ^= 1 << rng.randrange(8)


def _word(rng: random.Random, content: Content) -> None:
    width = rng.choice((1, 2, 4, 8))
    _put(rng, content, _spot(rng, content, width), width)


def _head(rng: random.Random, content: Content) -> None:
    """Page number, flags, lower and upper."""
    at, width = rng.choice(((0, 8), (10, 2), (12, 2), (14, 2), (12, 4)))
    _put(rng, content, _page(rng, content) + at, width)


def _place(rng: random.Random, content: Content) -> None:
    """Where a node stands."""
    page = _page(rng, content)
    _put(rng, content, page + 16 + 2 * rng.randrange(max(1, len(_nodes(content, page)))), 2)


def _node(rng: random.Random, content: Content) -> None:
    """A node's sizes, flags or child; the number of the page of a long value; its key and value."""
    nodes = _nodes(content, _page(rng, content))
    if nodes:
        node = rng.choice(nodes)
        key_bytes = struct.unpack_from("<H", content, node + 6)[0]
        at, width = rng.choice(((0, 2), (2, 2), (4, 2), (6, 2), (0, 4), (8 + key_bytes, 8), (8, 4), (8 + key_bytes, 4)))
        _put(rng, content, node + at, width)


def _copy_node(rng: random.Random, content: Content) -> None:
    """A node over another, perhaps of another page."""
    one, other = (_nodes(content, _page(rng, content)) for _ in range(2))
    if one and other:
        source, target, size = rng.choice(one), rng.choice(other), rng.choice((8, 16, 64))
        size = min(size, len(content) - max(source, target))
        content[target : target + size] = content[source : source + size]


def _exchange_pages(rng: random.Random, content: Content) -> None:
    one, other = _page(rng, content), _page(rng, content)
    # With its number kept, or as a disk would misplace it.
    skip = rng.choice((0, 8))
    first, second = (content[at + skip : at + PAGE_BYTES] for at in (one, other))
    content[one + skip : one + PAGE_BYTES], content[other + skip : other + PAGE_BYTES] = second, first


def _copy_page(rng: random.Random, content: Content) -> None:
    one, other, skip = _page(rng, content), _page(rng, content), rng.choice((0, 8))
    content[other + skip : other + PAGE_BYTES] = content[one + skip : one + PAGE_BYTES]


def _cut(rng: random.Random, content: Content) -> None:
    pages = len(content) // PAGE_BYTES
    del content[rng.choice((rng.randrange(len(content)), PAGE_BYTES * rng.randrange(1 + pages))) or PAGE_BYTES :]


def _extend(rng: random.Random, content: Content) -> None:
    content += rng.choice((bytes(PAGE_BYTES), bytes(rng.randrange(1, 999)), content[-PAGE_BYTES:]))


def _meta(rng: random.Random, content: Content) -> None:
    """A field of one meta page or of both: counts, roots, flags, sizes, numbers of pages and transactions."""
    at = _META_AT + rng.choice(_META_FIELDS)
    width = rng.choice((2, 4, 8))
    for page in rng.choice(((0,), (1,), (0, 1), (0, 1))):
        if (page + 1) * PAGE_BYTES <= len(content):
            _put(rng, content, page * PAGE_BYTES + at, width)


_PAGE_CHANGES: tuple[Callable[[random.Random, Content], None], ...] = (
    _flip, _flip, _word, _head, _place, _node, _node, _node, _copy_node, _exchange_pages, _copy_page, _cut, _extend,
    _meta, _meta,
)  # fmt: skip
