"""Snapshots: a commit held under a name, without a copy of its data, until it is dropped.

A snapshot's record holds the definitions of its commit, and copies of the manifests (see `storage.manifest`)
hold its segments, which are immutable. Online rows change in place: when one is overwritten or deleted, the
old row, or that there was none, is saved once under the newest snapshot. A row at snapshot S is thus the one
saved under the oldest snapshot from S on that has one, or else the current row. Without snapshots nothing
is saved; a table that the newest snapshot lacks is in no older one either that could still see it change.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import compress, islice, repeat
from operator import itemgetter, not_
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Heap
from featuredb.errors import CorruptionError, DefinitionError, InputError, NotFoundError, ReadOnlyError
from featuredb.frames.arrays import to_pylist
from featuredb.limits import (
    NS_COMMIT,
    NS_DEFINITION,
    NS_MANIFEST,
    NS_ONLINE,
    NS_PINNED,
    NS_SNAPSHOT,
    NS_TAIL,
    NS_UNDO,
    SNAPSHOTS_MAX,
    TIMESTAMP_MAX_US,
    TIMESTAMP_MIN_US,
    WRITE_TIMEOUT_SECONDS,
)
from featuredb.schema import check_name
from featuredb.storage.crc import CRC_BYTES, is_sealed, seal
from featuredb.storage.env import Env, ReadTxn, WriteTxn
from featuredb.storage.filemap import Tree
from featuredb.storage.keys import decode_keys
from featuredb.storage.log import append_commit, last_commit
from featuredb.storage.manifest import SNAPSHOT_ID_BYTES, held_manifest, pin_key, pin_manifest, pinned_manifests, unpin
from featuredb.storage.moving import settle
from featuredb.storage.records import Raw, binary, decode, pack, text, whole
from featuredb.storage.txn import Bytes

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNDO_HEAD = 1 + SNAPSHOT_ID_BYTES
_BATCH_ROWS = 1 << 13
_online_tail = itemgetter(slice(1, None))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit that is held under a name until ``drop_snapshot``.

    Attributes
    ----------
    name : str
        Unique within the file.
    commit_id : int
        The commit that it holds: the last one before the snapshot was made.
    time : datetime
        When it was made, UTC.
    """

    name: str
    commit_id: int
    time_us: int
    id: int

    @property
    def time(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.time_us)

    def __repr__(self) -> str:
        return f"Snapshot(name={self.name!r}, commit_id={self.commit_id}, time={self.time.isoformat()!r})"


def saved_prefix(snapshot: Snapshot) -> bytes:
    """What online rows saved under it begin with; as of other online rows, table id and key follow."""
    return NS_UNDO + _id_bytes(snapshot.id)


def _id_bytes(snapshot_id: int) -> bytes:
    return snapshot_id.to_bytes(SNAPSHOT_ID_BYTES, "big")


def snapshot_of(key: memoryview, raw: memoryview) -> tuple[Snapshot, dict[bytes, bytes]]:
    """The snapshot that an entry records, and its definitions, keys to records."""
    number = int.from_bytes(key[1:], "big")

    def snapshot(record: Any) -> tuple[Snapshot, dict[bytes, bytes]]:
        name, commit_id, time_us, definitions = record
        whole(time_us, TIMESTAMP_MIN_US, TIMESTAMP_MAX_US)
        held = {binary(key): binary(entry) for key, entry in definitions}
        return Snapshot(text(name), whole(commit_id), time_us, number), held

    return decode(key, raw, f"the record of snapshot {number}", snapshot)


def snapshots(txn: ReadTxn) -> list[Snapshot]:
    """Every snapshot, oldest first."""
    return [snapshot_of(key, raw)[0] for key, raw in txn.scan(NS_SNAPSHOT)]


def find_snapshot(txn: ReadTxn, name: str) -> tuple[Snapshot, dict[bytes, bytes]]:
    """The snapshot `name` and its definitions, keys to records; `NotFoundError` names those there are."""
    found, damage = list[str](), None
    for key, raw in txn.scan(NS_SNAPSHOT):
        try:
            snapshot, definitions = snapshot_of(key, raw)
        except CorruptionError as error:
            damage = error
            continue
        if snapshot.name == name:
            return snapshot, definitions
        found.append(snapshot.name)
    if damage is not None:
        raise damage
    known = ", ".join(found) or "none yet"
    raise NotFoundError(f"no snapshot {name!r} in this file; there is: {known}")


def create_snapshot(txn: WriteTxn, name: str, table_ids: Sequence[int]) -> Snapshot:
    """Hold the state of the file, with the tables `table_ids`, under `name`; a commit of its own."""
    check_name(name, "snapshot")
    held = snapshots(txn)
    if any(snapshot.name == name for snapshot in held):
        raise DefinitionError(f"snapshot {name!r} exists already; choose another name, or drop that one first")
    if len(held) >= SNAPSHOTS_MAX:
        raise DefinitionError(f"snapshot {name!r}: the file already has {SNAPSHOTS_MAX} snapshots, the most; drop one")
    before = last_commit(txn)
    definitions = [[bytes(key), bytes(raw)] for key, raw in txn.scan(NS_DEFINITION)]
    # The commit's own number: it is never given out again, so whoever reads at a snapshot can tell it was dropped.
    commit = append_commit(txn, f"snapshot {name}", None, 0)
    snapshot = Snapshot(name, 0 if before is None else before.id, commit.time_us, commit.id)
    key = NS_SNAPSHOT + _id_bytes(snapshot.id)
    txn.put(key, pack(key, [name, snapshot.commit_id, snapshot.time_us, definitions]))
    for table_id in table_ids:
        pin_manifest(txn, table_id, snapshot.id)
    return snapshot


def drop_snapshot(txn: WriteTxn, name: str) -> None:
    """Let go of a snapshot and of all that only it held."""
    snapshot, _ = find_snapshot(txn, name)
    older = [other.id for other in snapshots(txn) if other.id < snapshot.id]
    prefix = NS_UNDO + _id_bytes(snapshot.id)
    if older:
        kept = [table_id for table_id, number in _pins(txn) if number == older[-1]]
        for table_id in kept:
            _pass_on(txn, prefix + table_id.to_bytes(4, "big"), older[-1])
    txn.delete_prefix(prefix)
    unpin(txn, snapshot.id)
    txn.delete(NS_SNAPSHOT + _id_bytes(snapshot.id))
    append_commit(txn, f"drop snapshot {name}", None, 0)


def _pins(txn: ReadTxn) -> list[tuple[int, int]]:
    return [(manifest.table_id, number) for number, manifest in pinned_manifests(txn)]


# --- online rows ------------------------------------------------------------------------------


def _batches(txn: ReadTxn, prefix: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
    """All entries under `prefix`, copied, a batch at a time; between batches the file may be written."""
    start = b""
    while batch := [(bytes(key), bytes(value)) for key, value in islice(txn.scan(prefix, start), _BATCH_ROWS)]:
        yield batch
        start = batch[-1][0][len(prefix) :] + b"\0"


def _pass_on(txn: WriteTxn, prefix: bytes, to_id: int) -> None:
    """Give saved online rows to an older snapshot, save those that it has itself."""
    head = NS_UNDO + _id_bytes(to_id)
    for batch in _batches(txn, prefix):
        keys = [head + key[_UNDO_HEAD:] for key, _ in batch]
        _put_missing(txn, keys, [_saved(txn, key, value) for key, value in batch])


def _saved(txn: ReadTxn, key: Bytes, raw: Raw) -> Raw:
    """The online row that was saved under `key`; empty if there was none. By the definitions in `txn` it is named."""
    if not is_sealed(key, raw):
        raise CorruptionError(
            f"{_saved_name(txn, bytes(key))}, as it was saved for a snapshot: its checksum does not match; the file is "
            "damaged: restore a backup, or copy what is undamaged, without snapshots, with salvage()"
        )
    return raw[CRC_BYTES:]


def _saved_name(txn: ReadTxn, key: bytes) -> str:
    from featuredb.storage.registry import read_registry

    number, entity_key = int.from_bytes(key[_UNDO_HEAD : _UNDO_HEAD + 4], "big"), key[_UNDO_HEAD + 4 :]
    name = f"online row of table number {number}, key {entity_key.hex()}"
    # A key that is damaged may be of no table, and none of its dtypes.
    with suppress(CorruptionError, ValueError):
        for table in read_registry(txn).tables.values():
            if table.id == number:
                name = f"online row of table {table.name!r}, key {entity_key.hex()}"
                values = [to_pylist(column)[0] for column in decode_keys(Heap.of([entity_key]), table.key_dtypes)]
                name = f"online row of table {table.name!r}, key {(values[0] if len(values) == 1 else tuple(values))!r}"
    return name


def _put_missing(txn: WriteTxn, keys: list[bytes], rows: Sequence[Bytes]) -> None:
    """Save rows, or that there was none, under those of the keys that have nothing yet."""
    held = set(map(bytes, map(itemgetter(0), txn.get_many(keys))))
    lacking = list(map(not_, map(held.__contains__, keys)))
    wanted = list(compress(keys, lacking))
    txn.put_many(zip(wanted, map(seal, wanted, compress(rows, lacking)), strict=True))


def online_saver(txn: WriteTxn, table_id: int) -> Callable[[list[bytes]], None] | None:
    """What to call with the online keys (whole, of this table) about to be written; None if nothing need be."""
    newest = txn.last(NS_SNAPSHOT)
    if newest is None:
        return None
    snapshot_id = int.from_bytes(newest[0][1:], "big")
    if txn.get(pin_key(table_id, snapshot_id)) is None:
        return None
    head = NS_UNDO + _id_bytes(snapshot_id)

    def save(keys: list[bytes]) -> None:
        stored = {bytes(key): bytes(value) for key, value in txn.get_many(keys)}
        undo = list(map(head.__add__, map(_online_tail, keys)))
        # An empty row says that there was none.
        _put_missing(txn, undo, list(map(stored.get, keys, repeat(b""))))

    return save


def delete_online(txn: WriteTxn, table_id: int) -> int:
    """Delete a table's online rows, save what a snapshot holds; how many there were."""
    prefix = NS_ONLINE + table_id.to_bytes(4, "big")
    save = online_saver(txn, table_id)
    if save is not None:
        for batch in _batches(txn, prefix):
            save([key for key, _ in batch])
    return txn.delete_prefix(prefix)


def drop_saved(txn: WriteTxn, table_id: int, keys: Sequence[bytes]) -> NDArray[np.bool_]:
    """Delete what was saved of a table's online keys for any snapshot; which of `keys` had something.

    Of a key that no snapshot shows a row of, all that can be saved is that there was none. It may go with the key.
    """
    dropped = np.zeros(len(keys), dtype=np.bool_)
    for snapshot in snapshots(txn):
        head = NS_UNDO + _id_bytes(snapshot.id) + table_id.to_bytes(4, "big")
        dropped |= np.fromiter((txn.delete(head + key) for key in keys), np.bool_, len(keys))
    return dropped


# --- reading at a snapshot --------------------------------------------------------------------


class SnapshotTxn(ReadTxn):
    """A read transaction in which definitions, manifests, log and online rows are those of a snapshot.

    The rest (segments, entity keys) only ever grows while the snapshot holds it, and is read as it is.
    """

    __slots__ = ("_definitions", "_inner", "_layer_ids", "snapshot")

    def __init__(self, inner: ReadTxn, snapshot: Snapshot, definitions: Mapping[bytes, bytes]) -> None:
        self._inner = inner
        self.snapshot = snapshot
        self._definitions = definitions
        self._layer_ids: list[bytes] | None = None

    def __enter__(self) -> SnapshotTxn:
        self._inner.__enter__()
        try:
            settle(self._inner)
            if self._inner.get(NS_SNAPSHOT + _id_bytes(self.snapshot.id)) is None:
                raise NotFoundError(f"snapshot {self.snapshot.name!r} was dropped; open another with at()")
        except BaseException:
            self._inner.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._layer_ids = None
        self._inner.__exit__(kind, error, at)

    def follow(self) -> None:
        """Do nothing: when it began it made sure of the file, and a mark among its definitions has no meaning."""

    def id(self) -> int:
        return self._inner.id()

    def get(self, key: Bytes) -> memoryview | None:
        space = bytes(key[:1])
        if space == NS_ONLINE:
            for layer in self._layers():
                name = layer + bytes(key[1:])
                raw = self._inner.get(name)
                if raw is not None:
                    saved = _saved(self, name, raw)
                    return saved if len(saved) else None
        elif space == NS_MANIFEST:
            held = pin_key(int.from_bytes(key[1:5], "big"), self.snapshot.id)
            raw = self._inner.get(held)
            return None if raw is None else held_manifest(held, raw)
        elif space == NS_DEFINITION:
            record = self._definitions.get(bytes(key))
            return None if record is None else memoryview(record)
        elif space == NS_TAIL:
            return None  # it was made a segment for the snapshot, and has grown anew since
        elif space == NS_COMMIT and int.from_bytes(key[1:], "big") > self.snapshot.commit_id:
            return None
        return self._inner.get(key)

    def get_many(self, keys: Sequence[Bytes]) -> list[tuple[memoryview, memoryview]]:
        if not keys or bytes(keys[0][:1]) != NS_ONLINE:
            return self._inner.get_many(keys)
        found: dict[bytes, memoryview] = {}
        left = list(map(bytes, keys))
        for layer in self._layers():
            saved = self._inner.get_many(list(map(layer.__add__, map(_online_tail, left))))
            if saved:
                found.update((NS_ONLINE + bytes(key[_UNDO_HEAD:]), _saved(self, key, raw)) for key, raw in saved)
                left = list(compress(left, map(not_, map(found.__contains__, left))))
        found.update((bytes(key), value) for key, value in self._inner.get_many(left))
        # An empty row says that there was none.
        pairs = ((bytes(key), found.get(bytes(key))) for key in keys)
        return [(memoryview(key), value) for key, value in pairs if value]

    def tree(self, prefix: bytes) -> Tree | None:
        """As for the file itself, unless a row under `prefix` was saved, or is not stored under that key."""
        if prefix[:1] != NS_ONLINE or any(any(self._inner.scan(layer + prefix[1:])) for layer in self._layers()):
            return None
        return self._inner.tree(prefix)

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[memoryview, memoryview]]:
        space = prefix[:1]
        if space == NS_ONLINE:
            yield from self._scan_online(prefix, start)
        elif space == NS_DEFINITION:
            for name in sorted(self._definitions):
                if name.startswith(prefix) and name >= prefix + start:
                    yield memoryview(name), memoryview(self._definitions[name])
        elif space == NS_COMMIT:
            last = NS_COMMIT + self.snapshot.commit_id.to_bytes(8, "big")
            for entry in self._inner.scan(prefix, start):
                if bytes(entry[0]) > last:
                    return
                yield entry
        elif space == NS_MANIFEST:
            own = _id_bytes(self.snapshot.id)
            for key, raw in self._inner.scan(NS_PINNED + prefix[1:]):
                held = NS_MANIFEST + bytes(key[1:5])
                if key[5:] == own and held >= prefix + start:
                    yield memoryview(held), held_manifest(key, raw)
        elif space != NS_TAIL:
            yield from self._inner.scan(prefix, start)

    def _scan_online(self, prefix: bytes, start: bytes) -> Iterator[tuple[memoryview, memoryview]]:
        """Current and saved rows merged by key; of one key the oldest layer's, which comes first."""

        def ranked(rank: int, under: bytes) -> Iterator[tuple[bytes, int, memoryview]]:
            for key, raw in self._inner.scan(under, start):
                yield bytes(key[_UNDO_HEAD:]), rank, _saved(self, key, raw)

        layers = self._layers()
        streams = [ranked(rank, layer + prefix[1:]) for rank, layer in enumerate(layers)]
        streams.append((bytes(key[1:]), len(layers), value) for key, value in self._inner.scan(prefix, start))
        done = None
        for tail, _, value in heapq.merge(*streams, key=itemgetter(0, 1)):
            if tail != done and len(value):
                yield memoryview(NS_ONLINE + tail), value
            done = tail

    def last(self, prefix: bytes) -> tuple[bytes, memoryview] | None:
        if prefix[:1] in (NS_ONLINE, NS_DEFINITION, NS_COMMIT, NS_MANIFEST, NS_TAIL):
            found = deque(self.scan(prefix), 1)
            return (bytes(found[0][0]), found[0][1]) if found else None
        return self._inner.last(prefix)

    def abandon(self) -> None:
        self._inner.abandon()

    def _layers(self) -> list[bytes]:
        """Prefixes of the rows saved under this snapshot and each newer one, oldest first."""
        if self._layer_ids is None:
            found = self._inner.scan(NS_SNAPSHOT, _id_bytes(self.snapshot.id))
            self._layer_ids = [NS_UNDO + bytes(key[1:]) for key, _ in found]
        return self._layer_ids


class SnapshotEnv(Env):
    """An open file as it was at a snapshot: reads only. It lives as long as the handle it was made from.

    `owner` is what closes that handle when it is collected, and so must not be before this.
    """

    def __init__(self, base: Env, owner: object, snapshot: Snapshot, definitions: Mapping[bytes, bytes]) -> None:
        self.path = base.path
        self.owner = owner
        self.base = base
        self.snapshot = snapshot
        self._definitions = definitions
        self.label = f" at {snapshot.name!r}"

    @contextmanager
    def writer(self, timeout_seconds: float = WRITE_TIMEOUT_SECONDS) -> Iterator[None]:
        raise ReadOnlyError(
            f"snapshot {self.snapshot.name!r} of {self.path} cannot be changed; write to the database itself"
        )
        yield

    def read(self, views: bool = True) -> SnapshotTxn:
        return SnapshotTxn(self.base.read(views), self.snapshot, self._definitions)

    def copy(self, path: str, check: Callable[[str], None] | None = None) -> None:
        raise InputError(
            f"snapshot {self.snapshot.name!r} is backed up with its file; call backup() on the database itself"
        )

    def space(self) -> dict[str, Any]:
        return self.base.space()

    def page_faults(self) -> list[str]:
        return self.base.page_faults()

    def close(self) -> None:
        """Do nothing: the handle belongs to the database that the view was opened from."""
