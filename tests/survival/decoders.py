"""Random and mutated bytes for each decoder, with the checksums that vouch for them: only errors of ours may come out.

Decoders get their entries from memory, in place of a transaction. 10,000 cases run in one child, and a signal ends it.
A case is its number and nothing else, and the first of a run is the seed: ``python -m tests.survival decoders
--seed N --count 1`` is the case N of any run again.
"""

from __future__ import annotations

import os
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import numpy as np

import featuredb as fdb
from featuredb import limits
from featuredb.columns import Heap
from featuredb.nested import decode_lists, list_decoder
from featuredb.offline.dictionary import KeyDictionary
from featuredb.offline.gather import Gatherer
from featuredb.offline.search import Query, search
from featuredb.offline.stored import at_positions
from featuredb.offline.tail import read_tail_rows
from featuredb.online.index import OnlineIndex
from featuredb.online.row_reader import RowReader
from featuredb.schema import DTYPES
from featuredb.storage import datafile
from featuredb.storage.env import ReadTxn
from featuredb.storage.keys import decode_keys
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.log import commits
from featuredb.storage.manifest import SegmentRef, pinned_manifests, read_manifest, staged_segments
from featuredb.storage.pages import meta_pages, page_faults
from featuredb.storage.pending import pending_since
from featuredb.storage.registry import Registry, StoredTable, read_registry
from featuredb.storage.rejected import rejected_rows
from featuredb.storage.segment import SYSTEM_COLUMNS, SegmentReader, read_info
from featuredb.storage.snapshots import SnapshotTxn, find_snapshot, snapshots
from featuredb.storage.tail import read_tail

from . import children
from .hostile import mutated, mutated_record, repaired, sealed
from .mutants import PAGE_BYTES, Base, make_bases, read_bases
from .results import Outcome
from .runs import scratch, stop_threads

PART, PARTS_PER_CHILD = 1_000, 10
SAMPLE_ROWS = 1 << 12


class Memory:
    """Entries in the place of a transaction."""

    views = True

    def __init__(self, entries: dict[bytes, bytes]) -> None:
        self.entries = entries

    def id(self) -> int:
        return 1

    def get(self, key: bytes) -> memoryview | None:
        raw = self.entries.get(bytes(key))
        return None if raw is None else memoryview(raw)

    def get_many(self, keys: Sequence[bytes]) -> list[tuple[memoryview, memoryview]]:
        return [(memoryview(key), memoryview(self.entries[key])) for key in keys if key in self.entries]

    def tree(self, prefix: bytes) -> None:
        return None

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[memoryview, memoryview]]:
        for key in sorted(key for key in self.entries if key.startswith(prefix) and key >= prefix + start):
            yield memoryview(key), memoryview(self.entries[key])

    def last(self, prefix: bytes) -> tuple[bytes, memoryview] | None:
        key = max((key for key in self.entries if key.startswith(prefix)), default=None)
        return None if key is None else (key, memoryview(self.entries[key]))


class Source:
    """A sound file's entries, and what is known of them."""

    def __init__(self, base: Base) -> None:
        self.base, self.entries = base, base.entries
        self.registry: Registry = read_registry(transaction(base.entries))

    def keys(self, *spaces: bytes) -> list[bytes]:
        """Keys of these namespaces, in order."""
        return sorted(key for key in self.entries if key[:1] in spaces)

    def table(self, number: bytes) -> StoredTable:
        """The table of a number as it stands in keys; any for a table that is gone."""
        tables = list(self.registry.tables.values())
        return next((table for table in tables if table.id == int.from_bytes(number, "big")), tables[0])


def transaction(entries: dict[bytes, bytes]) -> ReadTxn:
    return cast(ReadTxn, Memory(entries))


# --- decoders ---------------------------------------------------------------------------------


def _record(*spaces: bytes) -> Callable[..., Any]:
    """A decoder that is given all entries of a file, of which one record of these namespaces says something else."""

    def decorated(decode: Callable[[ReadTxn, Source, bytes], None]) -> Callable[[random.Random, Source], None]:
        def case(rng: random.Random, source: Source) -> None:
            keys = source.keys(*spaces)
            if keys:
                key = rng.choice(keys)
                raw = source.entries[key]
                raw = mutated_record(rng, key, raw) if rng.random() < 0.9 else _noise(rng, key, raw)
                decode(transaction({**source.entries, key: raw}), source, key)

        case.__name__ = decode.__name__
        return case

    return decorated


def _noise(rng: random.Random, key: bytes, raw: bytes) -> bytes:
    body = rng.randbytes(rng.randrange(64)) if rng.random() < 0.5 else bytes(mutated(rng, raw))
    return sealed(key, body) if rng.random() < 0.8 else body


@_record(limits.NS_DEFINITION)
def _definitions(txn: ReadTxn, source: Source, key: bytes) -> None:
    registry = read_registry(txn)
    for table in registry.tables.values():
        OnlineIndex(table).layout(0, lambda _: "a key")


@_record(limits.NS_MANIFEST, limits.NS_PINNED)
def _manifests(txn: ReadTxn, source: Source, key: bytes) -> None:
    read_manifest(txn, int.from_bytes(key[1:5], "big"))
    list(pinned_manifests(txn))
    list(staged_segments(txn))


@_record(limits.NS_COMMIT)
def _log(txn: ReadTxn, source: Source, key: bytes) -> None:
    for commit in commits(txn):
        repr(commit.time)


@_record(limits.NS_SNAPSHOT)
def _snapshots(txn: ReadTxn, source: Source, key: bytes) -> None:
    for snapshot in snapshots(txn):
        repr(snapshot)
        view = SnapshotTxn(txn, *find_snapshot(txn, snapshot.name))
        for table in read_registry(view).tables.values():
            read_manifest(view, table.id)


@_record(limits.NS_REJECTED)
def _rejected(txn: ReadTxn, source: Source, key: bytes) -> None:
    list(rejected_rows(txn, int.from_bytes(key[1:5], "big")))


@_record(limits.NS_PENDING)
def _pending(txn: ReadTxn, source: Source, key: bytes) -> None:
    pending_since(txn, int.from_bytes(key[1:5], "big"))


@_record(limits.NS_FORMAT)
def _format(txn: ReadTxn, source: Source, key: bytes) -> None:
    datafile.check_format("file", bytes(cast(memoryview, txn.get(key))))


def _entity_keys(rng: random.Random, source: Source) -> None:
    """Blocks of keys, codes in the tree, the generation of a key space."""
    key = rng.choice(source.keys(limits.NS_CODE_BLOCK, limits.NS_KEY))
    raw = source.entries[key]
    raw = mutated_record(rng, key, raw) if len(key) == 5 and rng.random() < 0.8 else bytes(mutated(rng, raw))
    entries = repaired(source.entries, {**source.entries, key: raw}, lie=False, upwards=False)
    txn, number = transaction(entries), int.from_bytes(key[1:5], "big")
    space, table = KeySpace(number), next(t for t in source.registry.tables.values() if t.space_id == number)
    names = [key[5:] for key in source.keys(limits.NS_KEY) if key[1:5] == number.to_bytes(4, "big")]
    space.lookup(txn, names)
    space.generation(txn)
    held = Heap.concat([Heap.of([]), *space.blocks(txn)])
    decode_keys(held.take(np.flatnonzero(np.diff(held.offsets))), table.key_dtypes)
    dictionary = KeyDictionary(number, table.key_dtypes)
    dictionary.keys(txn, np.zeros(1, dtype=np.int32))
    dictionary.lookup(txn, Heap.of(names))


def _tails(rng: random.Random, source: Source) -> None:
    """Packed rows of a tail, and its head."""
    keys = source.keys(limits.NS_TAIL)
    if not keys:
        return
    key = rng.choice(keys)
    raw = source.entries[key]
    raw = mutated_record(rng, key, raw) if len(key) == 5 else bytes(mutated(rng, raw))
    txn = transaction(repaired(source.entries, {**source.entries, key: raw}, lie=True, upwards=len(key) > 5))
    table = source.table(key[1:5])
    if read_tail(txn, table.id).rows:
        read_tail_rows(txn, table)


def _online_rows(rng: random.Random, source: Source) -> None:
    """A packed online row, by itself and as a column, and by compiled code."""
    key = rng.choice(source.keys(limits.NS_ONLINE))
    raw = sealed(key, bytes(mutated(rng, source.entries[key][4:])))
    table = source.table(key[1:5])
    index, features = OnlineIndex(table), list(table.feature_ids.values())
    txn, name = transaction({**source.entries, key: raw}), Heap.of([key[5:]])
    kind = rng.randrange(3)
    if kind == 0:
        version = int.from_bytes(raw[4:6], "little")
        RowReader(index.layout(version, lambda _: "a key"), features).read(raw, key, table.name, "a key")
    elif kind == 1:
        index.read(txn, name)
    else:
        index.read(txn, name.take(np.zeros(80, dtype=np.int64)))


def _lists(rng: random.Random, source: Source) -> None:
    """Bytes as lists, one by one and as a column."""
    dtype = DTYPES[f"list[{rng.choice(('string', 'bytes', 'int16', 'float64', 'timestamp', 'bool'))}]"]
    entries = [b"\2\0\0\0\1\0\0\0\2\0\0\0abc", b"\0\0\0\0", rng.randbytes(rng.choice((0, 4, 8, 16)))]
    heap = Heap.of([bytes(mutated(rng, entry)) if rng.random() < 0.5 else entry for entry in entries])
    # As it says; whoever calls it names the row.
    with suppress(ValueError, OverflowError):
        list_decoder(dtype)(rng.choice(heap.tolist()))
    decode_lists(dtype, heap)


def _segments(rng: random.Random, source: Source) -> None:
    """A descriptor, or a chunk that its descriptor vouches for: every column, whole and at positions found."""
    keys = source.keys(limits.NS_SEGMENT)
    name = rng.choice(keys)
    mine = {key: raw for key, raw in source.entries.items() if key[:1] in (b"f", b"h") and key[1:13] == name[1:13]}
    whole = rng.random() < 0.5
    key = name if whole else rng.choice(sorted(mine))
    raw = mutated_record(rng, key, mine[key]) if key == name else bytes(mutated(rng, mine[key]))
    entries = {**mine, key: raw}
    if not whole:
        entries = repaired(mine, entries, lie=False)
    table_id, segment = int.from_bytes(name[1:5], "big"), int.from_bytes(name[5:], "big")
    manifest = read_manifest(transaction(source.entries), table_id)
    held = next((ref for ref in manifest.segments if ref.id == segment), SegmentRef(segment, 0, 1))
    txn = transaction(entries)
    ref = replace(held, crc=zlib.crc32(entries[name]))
    info = read_info(txn, table_id, ref)
    if info.rows > SAMPLE_ROWS:
        return  # a matter of memory, see `fuzz`
    reader = SegmentReader(txn, ref, info, set(), {})
    codes, _ = reader.entity_index()
    features = [number for number in info.columns if number not in SYSTEM_COLUMNS]
    for number in features:
        for _ in reader.feature_chunks(number):
            pass
    reader.dead()
    wanted = [(number, info.columns[number].dtype) for number in features]
    positions = np.arange(reader.rows, dtype=np.int32)
    Gatherer(at_positions(reader, positions)).features(wanted)
    asked = np.unique(np.append(codes, np.int32(0)))
    asked = asked[asked >= 0]
    times = np.full(len(asked), 1 << 60, dtype=np.int64)
    known_us = times[:1] if rng.random() < 0.5 else times[:0]
    query = Query(asked, np.arange(len(asked)), times, known_us=known_us, commit_times=np.arange(30))
    Gatherer(search([reader], query, threads=1)).features(wanted)


def _pages(rng: random.Random, source: Source) -> None:
    """What proves the pages of a file before the engine sees them."""
    content = bytearray(source.base.content)
    for _ in range(rng.choice((1, 2, 8))):
        page = rng.randrange(len(content) // PAGE_BYTES) * PAGE_BYTES
        at, size = page + rng.choice((0, 0, rng.randrange(PAGE_BYTES - 512))), rng.choice((16, 48, 152, 512))
        content[at : at + size] = mutated(rng, content[at : at + size])
    fd = os.memfd_create("pages")
    try:
        os.write(fd, content)
        datafile._check_content("file", fd, lambda path: [])
        for meta in meta_pages(fd):
            page_faults(fd, meta)
    finally:
        os.close(fd)


DECODERS: tuple[Callable[[random.Random, Source], None], ...] = (
    _definitions, _manifests, _log, _snapshots, _rejected, _pending, _format, _entity_keys, _tails, _online_rows,
    _lists, _segments, _segments, _segments, _pages,
)  # fmt: skip


# --- runs -------------------------------------------------------------------------------------


def decoded(sources: list[Source], number: int) -> str:
    """What a decoder makes of a case: ``decoded``, ``refused``, or a violation."""
    rng = random.Random(number)
    decode = rng.choice(DECODERS)
    try:
        decode(rng, rng.choice(sources))
    except fdb.FeatureDBError as error:
        return "refused" if str(error) else f"violation: {decode.__name__.strip('_')}: no message"
    except Exception as error:
        return f"violation: {decode.__name__.strip('_')}: a bare {type(error).__name__}: {error}"
    return "decoded"


def run(count: int, seed: int) -> Outcome:
    """Cases `seed` to `seed + count - 1`."""
    outcome = Outcome("fuzzed decoders", seed)
    with scratch() as folder:
        make_bases(folder)
        sources = [Source(base) for base in read_bases(folder)]
    for number in range(200):
        decoded(sources, number)  # loads and compiles, for the children
    stop_threads()
    parts = [range(first, min(first + PART, seed + count)) for first in range(seed, seed + count, PART)]
    for part, found in children.beside(lambda part: _counted(sources, part), parts, PARTS_PER_CHILD):
        if isinstance(found, children.Died):
            # One by one, to find the case.
            for number, verdict in children.each(lambda number: decoded(sources, number), part):
                outcome.add(verdict, f"case {number}")
        else:
            outcome.counts.update(found[0])
            for number, verdict in found[1]:
                outcome.add(verdict, f"case {number}")
    return outcome


def _counted(sources: list[Source], part: range) -> tuple[dict[str, int], list[tuple[int, str]]]:
    """Verdicts without violations, counted, and the violations."""
    verdicts = [(number, decoded(sources, number)) for number in part]
    wrong = [(number, verdict) for number, verdict in verdicts if verdict.startswith("violation")]
    return Counter(verdict for _, verdict in verdicts if not verdict.startswith("violation")), wrong
