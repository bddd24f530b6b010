"""Forgetting: entity keys with all that was ever stored of them, in one commit.

Segments that have rows of the keys, replaced ones included, are written anew without them; their online rows go, and
the keys themselves from the dictionary of their key space, unless a table that is not meant has rows of them. A
snapshot that shows a row of a key would have to change for that, so it must be dropped first. What is gone stays in
free pages of the file until it is written anew, see `storage.rewrite`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.errors import InputError, NotFoundError, Problem, input_error
from featuredb.frames import open_table
from featuredb.frames.arrays import to_pylist
from featuredb.frames.outcome import short
from featuredb.limits import KEY_BYTES_MAX, NS_ONLINE
from featuredb.offline.rows import live_dtypes
from featuredb.offline.segments import read_rows
from featuredb.offline.tail import flush_tail
from featuredb.online.index import BATCH_ROWS
from featuredb.online.keys import key_columns
from featuredb.schema import DTYPES, DType
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.keys import decode_keys, encode_keys
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.log import append_commit, last_commit
from featuredb.storage.manifest import drop_segment, read_manifest, write_manifest
from featuredb.storage.registry import Registry, StoredTable, read_registry
from featuredb.storage.rejected import RejectedRow, drop_rejected
from featuredb.storage.segment import SegmentCache
from featuredb.storage.segment_writer import write_segment
from featuredb.storage.snapshots import SnapshotTxn, drop_saved, find_snapshot, saved_prefix, snapshots
from featuredb.storage.tail import tail_codes

_SUBJECT = "keys"


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What ``forget`` did.

    Attributes
    ----------
    keys_found : int
        Distinct keys, of those given, that something was removed of.
    keys_not_found : int
        The others, of which there was nothing.
    rows_removed : dict of str to int
        Rows removed from the history of each feature table meant. Rows that were replaced before are not counted.
    online_keys_removed : dict of str to int
        Online values removed from each of them.
    commit_id : int
        The commit; the one before if there was nothing to forget.
    seconds : float
        Wall time.
    """

    keys_found: int
    keys_not_found: int
    rows_removed: dict[str, int]
    online_keys_removed: dict[str, int]
    commit_id: int
    seconds: float = 0.0


# --- what is meant ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GivenKeys:
    """The keys as given: a column for each entity named, all of one length, without nulls."""

    columns: Mapping[str, Column]

    def encoded(self, names: Iterable[str]) -> list[bytes]:
        """The bytes of each key, its entities in the order of `names`."""
        return encode_keys([self.columns[name] for name in names]).tolist() if self.columns else []


def given_keys(registry: Registry, keys: object, tables: str | Sequence[str] | None) -> GivenKeys:
    """The keys that a caller names; an error lists everything that is wrong with them, and with the tables."""
    names = _names(keys)
    problems = [
        Problem(f"is no entity; there is: {', '.join(sorted(registry.entities)) or 'none yet'}", str(name))
        for name in names
        if name not in registry.entities
    ]
    known = {name: DTYPES[registry.entity(name).dtype] for name in names if name in registry.entities}
    columns: dict[str, Column] = {}
    if known:
        try:
            columns = key_columns(known, keys, null_reason="is null; leave the row out")
        except InputError as error:
            problems += error.problems or [Problem(str(error))]
    _, of_tables, missing = _tables_named(registry, known, tables)
    if problems or of_tables:
        _refuse([*problems, *of_tables], missing)
    return GivenKeys(columns)


def _refuse(problems: Sequence[Problem], missing: bool) -> NoReturn:
    refusal = input_error(_SUBJECT, list(problems))
    raise NotFoundError(str(refusal)) if missing else refusal


def _names(keys: object) -> list[str]:
    """The columns of `keys`."""
    if isinstance(keys, Mapping):
        return list(keys)
    if isinstance(keys, list | tuple) and all(isinstance(key, Mapping) for key in keys):
        return list(dict.fromkeys(chain.from_iterable(keys)))
    if isinstance(keys, list | tuple | str | bytes | os.PathLike | np.ndarray):
        raise InputError(
            f"{_SUBJECT}: give a list of dicts, a dict of lists or arrays, or a dataframe, with a column for each "
            f"entity, not a {type(keys).__name__}"
        )
    return list(open_table(keys, _SUBJECT).names)


def tables_meant(registry: Registry, entities: Iterable[str], names: str | Sequence[str] | None) -> list[StoredTable]:
    """The tables to forget keys of `entities` in: all that have these, or those of `names`, which must."""
    meant, problems, missing = _tables_named(registry, entities, names)
    if problems:
        _refuse(problems, missing)
    return meant


def _tables_named(
    registry: Registry, entities: Iterable[str], names: str | Sequence[str] | None
) -> tuple[list[StoredTable], list[Problem], bool]:
    """The tables, what is wrong with `names`, and whether one of them does not exist."""
    asked = set(entities)
    if names is None:
        return [table for table in registry.tables.values() if asked <= set(table.definition.entities)], [], False
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Iterable):
        return [], [Problem(f"tables must be names of feature tables, not {names!r}")], False
    meant: dict[str, StoredTable] = {}
    problems, missing = [], False
    for name in names:
        if not isinstance(name, str):
            problems.append(Problem(f"tables: {name!r} is not the name of a feature table; give a str"))
            continue
        try:
            table = registry.table(name)
        except NotFoundError as error:
            problems.append(Problem(str(error)))
            missing = True
            continue
        lacking = sorted(asked - set(table.definition.entities))
        if lacking and name not in meant:
            has = ", ".join(table.definition.entities)
            what = f"feature table {name!r} has no entity {', '.join(map(repr, lacking))}; it has {has}"
            problems.append(Problem(what))
        meant[name] = table
    if not problems and not meant:
        problems.append(Problem("tables: none is named; leave it out for all that have the entities"))
    return list(meant.values()), problems, missing


@dataclass(slots=True)
class _Space:
    """The keys meant in one key space: codes ascending (-1 of keys without one), the key bytes of each, and which of
    those given it is.
    """

    space: KeySpace
    tables: list[StoredTable]
    codes: NDArray[np.int32]
    keys: list[bytes]
    given: list[bytes]
    # Something was removed of the key; a table that is not meant has something of it.
    touched: NDArray[np.bool_] = field(init=False)
    needed: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.touched = np.zeros(len(self.codes), dtype=np.bool_)
        self.needed = np.zeros(len(self.codes), dtype=np.bool_)

    def online_keys(self, table_id: int) -> list[bytes]:
        head = NS_ONLINE + table_id.to_bytes(4, "big")
        return [head + key for key in self.keys]

    def held(self, txn: ReadTxn, cache: SegmentCache, table: StoredTable) -> NDArray[np.bool_]:
        """Which of the keys `table` has rows of: in a segment, replaced or not, in its tail, or online."""
        found = np.zeros(len(self.codes), dtype=np.bool_)
        for ref in read_manifest(txn, table.id).segments:
            found |= np.isin(self.codes, cache.reader(txn, table.id, ref).entity_index()[0])
        found |= np.isin(self.codes, tail_codes(txn, table.id))
        if table.definition.online:
            online = {bytes(key) for key, _ in txn.get_many(self.online_keys(table.id))}
            found |= np.fromiter((key in online for key in self.online_keys(table.id)), np.bool_, len(self.keys))
        return found


def _matched(
    txn: ReadTxn, space: KeySpace, entities: Sequence[str], dtypes: Sequence[DType], keys: GivenKeys
) -> _Space:
    """The keys of a key space that the given ones name: by all of its entities, or by some."""
    names = list(keys.columns)
    if set(names) == set(entities):
        named = dict(zip(keys.encoded(entities), keys.encoded(names), strict=True))
        # LMDB refuses keys longer than any that is stored.
        named = {key: given for key, given in named.items() if len(key) <= KEY_BYTES_MAX}
    else:
        named = {}
        wanted = set(keys.encoded(names))
        for block in chain(space.blocks(txn), _online_keys(txn, space.id)):
            held = block.take(np.flatnonzero(np.diff(block.offsets)))
            columns = dict(zip(entities, decode_keys(held, dtypes), strict=True))
            parts = encode_keys([columns[name] for name in names]).tolist()
            named.update(pair for pair in zip(held.tolist(), parts, strict=True) if pair[1] in wanted)
    found = sorted(zip(space.lookup(txn, list(named)).tolist(), named.items(), strict=True))
    codes = np.array([code for code, _ in found], dtype=np.int32)
    return _Space(space, [], codes, [key for _, (key, _) in found], [given for _, (_, given) in found])


def _online_keys(txn: ReadTxn, space_id: int) -> Iterator[Heap]:
    """The keys of a key space that have an online row, or one saved for a snapshot, in batches; some more than once.

    Of some it was saved that there was none, also in a table that was not online then.
    """
    layers = [(NS_ONLINE, read_registry(txn))]
    layers += [(saved_prefix(view.snapshot), read_registry(view)) for _, view in _views(txn)]
    for layer, registry in layers:
        for table in registry.tables.values():
            if table.space_id == space_id:
                prefix = layer + table.id.to_bytes(4, "big")
                entries = txn.scan(prefix)
                while batch := [bytes(key[len(prefix) :]) for key, _ in islice(entries, BATCH_ROWS)]:
                    yield Heap.of(batch)


def _spaces(txn: ReadTxn, registry: Registry, keys: GivenKeys, tables: list[StoredTable], every: bool) -> list[_Space]:
    """The key spaces of the tables meant; if `every`, also those whose tables were all deleted."""
    meant = {table.space_id for table in tables}
    found = []
    for entities, number in registry.spaces.items():
        if number in meant or (every and set(keys.columns) <= set(entities)):
            dtypes = [DTYPES[registry.entity(name).dtype] for name in entities]
            space = _matched(txn, KeySpace(number), entities, dtypes, keys)
            space.tables = [table for table in tables if table.space_id == number]
            found.append(space)
    return found


# --- the commit ---------------------------------------------------------------------------------


def forget(txn: WriteTxn, cache: SegmentCache, keys: GivenKeys, names: str | Sequence[str] | None) -> ForgetReport:
    """Remove the keys from the tables `names` (None: all that have their entities), or raise what prevents it."""
    registry = read_registry(txn)
    tables = tables_meant(registry, keys.columns, names) if keys.columns else []
    spaces = _spaces(txn, registry, keys, tables, names is None) if keys.columns else []
    if not spaces and keys.columns:
        known = ", ".join(sorted({f"({', '.join(entities)})" for entities in registry.spaces})) or "none yet"
        asked = ", ".join(map(repr, keys.columns))
        raise InputError(f"{_SUBJECT}: no feature table has the entities {asked}; there are tables of {known}")
    _refuse_held(txn, cache, spaces, names is None)
    rows, online, rejected = {}, {}, 0
    for space in spaces:
        for table in space.tables:
            rows[table.name] = _forget_history(txn, cache, table, space)
            online[table.name] = _forget_online(txn, table, space)
            rejected += drop_rejected(txn, table.id, _shows(keys, table))
        _forget_keys(txn, cache, registry, space)
    given = set(keys.encoded(keys.columns))
    found = {one for space in spaces for one, touched in zip(space.given, space.touched, strict=True) if touched}
    if found or rejected:
        commit = append_commit(txn, "forget", tables[0].name if len(tables) == 1 else None, sum(rows.values())).id
    else:
        last = last_commit(txn)
        commit = 0 if last is None else last.id
    return ForgetReport(len(found), len(given) - len(found), rows, online, commit)


def _views(txn: ReadTxn) -> list[tuple[str, SnapshotTxn]]:
    """The file as each snapshot shows it, with the snapshot's name."""
    return [(one.name, SnapshotTxn(txn, one, find_snapshot(txn, one.name)[1])) for one in snapshots(txn)]


def _refuse_held(txn: ReadTxn, cache: SegmentCache, spaces: list[_Space], every: bool) -> None:
    """Raise if a snapshot shows a row of a key; note the keys that tables which are not meant need there."""
    holding = []
    for name, view in _views(txn):
        held = False
        for table in read_registry(view).tables.values():
            for space in spaces:
                if space.space.id != table.space_id:
                    continue
                rows = space.held(view, cache, table)
                if every or table.id in {meant.id for meant in space.tables}:
                    held |= bool(rows.any())
                else:
                    space.needed |= rows
        if held:
            holding.append(name)
    if holding:
        raise InputError(
            f"{_SUBJECT}: snapshot {', '.join(map(repr, holding))} holds rows of them, and stays as it is; "
            "drop it with drop_snapshot, then forget"
        )


def _forget_history(txn: WriteTxn, cache: SegmentCache, table: StoredTable, space: _Space) -> int:
    """Write the segments that have rows of the keys anew without them; the live rows removed."""
    if np.isin(space.codes, tail_codes(txn, table.id)).any():
        flush_tail(txn, table)
    manifest = read_manifest(txn, table.id)
    kept, removed, next_id = [], 0, manifest.next_segment_id
    for ref in manifest.segments:
        reader = cache.reader(txn, table.id, ref)
        here = np.isin(space.codes, reader.entity_index()[0])
        if not here.any():
            kept.append(ref)
            continue
        space.touched |= here
        rows = read_rows([reader], live_dtypes(table))
        others = rows.take(np.isin(rows.codes, space.codes, invert=True))
        removed += len(rows) - len(others)
        if len(others):
            kept.append(write_segment(txn, table.id, next_id, others))
            next_id += 1
        drop_segment(txn, table.id, ref.id)
    if tuple(kept) != manifest.segments:
        write_manifest(txn, manifest.with_segments(tuple(kept)))
    return removed


def _forget_online(txn: WriteTxn, table: StoredTable, space: _Space) -> int:
    """Delete the online rows of the keys. No snapshot shows them, so none is saved."""
    deleted = np.fromiter(map(txn.delete, space.online_keys(table.id)), np.bool_, len(space.keys))
    space.touched |= deleted
    space.touched |= drop_saved(txn, table.id, space.keys)
    return int(np.count_nonzero(deleted))


def _forget_keys(txn: WriteTxn, cache: SegmentCache, registry: Registry, space: _Space) -> None:
    """Take the keys from the dictionary, save those that other tables need, with what else names them."""
    meant = {table.id for table in space.tables}
    tables = {table.id: table for table in registry.tables.values() if table.space_id == space.space.id}
    for number, table in tables.items():
        if number not in meant:
            space.needed |= space.held(txn, cache, table)
    gone = np.flatnonzero(~space.needed)
    if not len(gone):
        return
    coded = gone[space.codes[gone] >= 0]
    if len(coded):
        space.space.forget(txn, space.codes[coded])
        space.touched[coded] = True
    keys = [space.keys[place] for place in gone.tolist()]
    for _, view in _views(txn):
        for table in read_registry(view).tables.values():
            if table.space_id == space.space.id and table.id not in meant:
                space.touched[gone] |= drop_saved(txn, table.id, keys)


def _shows(keys: GivenKeys, table: StoredTable) -> Callable[[RejectedRow], bool]:
    """Whether a rejected row shows a value of a forgotten key in a column of that entity."""
    shown: dict[str, set[str]] = {}
    for name, column in keys.columns.items():
        values = to_pylist(column)
        texts = {text for value in values for text in (short(value), short(str(value)), str(value))}
        shown.setdefault(table.definition.column_of(name), set()).update(texts)
        shown.setdefault(name, set()).update(texts)

    def shows(row: RejectedRow) -> bool:
        return row.value is not None and row.value in shown.get(row.column, ())

    return shows
