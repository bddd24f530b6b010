"""Definitions, the dictionary of keys, and the log: each made anew from what of it can be read."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from featuredb.columns import Heap
from featuredb.errors import CorruptionError
from featuredb.limits import ENTITIES_MAX, KEYS_PER_BLOCK, NS_CODE_BLOCK, NS_COMMIT, NS_DEFINITION, NS_KEY, NS_ONLINE
from featuredb.offline.tail import table_readers
from featuredb.recovery.repair import Repair
from featuredb.schema import Entity
from featuredb.storage.crc import is_sealed
from featuredb.storage.keyspace import KeySpace, code_of, unpack_block
from featuredb.storage.log import LOST
from featuredb.storage.moving import STATE_KEY
from featuredb.storage.records import pack, unpack
from featuredb.storage.registry import KINDS, Registry, StoredTable, definition_of, write_registry
from featuredb.storage.segment import COMMIT, SegmentCache
from featuredb.storage.tail import read_tail
from featuredb.verify.definitions import check_key_space

# A file that says more is missing than this is not damaged but made up.
_GAPS_MAX = 1 << 22


def repair_definitions(work: Repair) -> None:
    """Keep each definition that can be read, and what others need, which follows from those of tables."""
    txn, found = work.txn, {kind: dict[str, Any]() for kind in KINDS}
    for key, raw in txn.scan(NS_DEFINITION):
        kind, name = bytes(key[1:2]), bytes(key[2:]).decode("utf-8", errors="replace")
        if kind not in KINDS:
            continue
        try:
            _, found[kind][name] = definition_of(key, raw)
        except CorruptionError:
            # What tables say of entities and key spaces is enough to make those anew.
            if kind in (b"t", b"s"):
                work.lose(f"the definition of {KINDS[kind]} {name!r}")
    entities: dict[str, Entity] = found[b"e"]
    tables: dict[str, StoredTable] = found[b"t"]
    for table in tables.values():
        for entity, dtype in zip(table.definition.entities, table.key_dtypes, strict=True):
            if entity not in entities:
                work.lose(f"description and labels of entity {entity!r}")
                entities[entity] = Entity(entity, dtype.name)
    spaces = {tuple(table.definition.entities): table.space_id for table in tables.values()}
    spaces = {tuple(name.split("/")): number for name, number in found[b"k"].items()} | spaces
    version, next_id = 1, 1
    with suppress(CorruptionError):
        version, next_id, *_ = unpack(STATE_KEY, txn.get(STATE_KEY) or b"", "the registry's state")
    numbers = [*spaces.values(), *(table.id for table in tables.values())]
    registry = Registry(version, max([next_id, *(number + 1 for number in numbers)]), entities, tables, {}, spaces)
    services = {name: service for name, service in found[b"s"].items() if _resolves(registry, service)}
    for name in found[b"s"].keys() - services.keys():
        work.lose(f"feature service {name!r}, of features that are lost")
    work.registry = replace(registry, services=services)
    txn.delete_prefix(NS_DEFINITION)
    write_registry(txn, Registry(version), work.registry)


def _resolves(registry: Registry, service: Any) -> bool:
    try:
        registry.references(service)
    except Exception:
        return False
    return True


def repair_keys(work: Repair) -> None:
    """Each key stands in the tree and in a block: a space that is damaged is made anew from both."""
    for entities, number in work.registry.spaces.items():
        check = work.check()
        check_key_space(check, entities, number)
        if check.problem_count:
            name = "/".join(entities)
            missing = _rewrite_space(work, KeySpace(number))
            if missing:
                work.lose(f"key space {name}: {missing} entity keys or more")
            check_key_space(work.check(), entities, number)


def _rewrite_space(work: Repair, space: KeySpace) -> int:
    """Write a key space anew; how many of its codes have lost their keys."""
    txn, number = work.txn, space.id.to_bytes(4, "big")
    forgotten = 0
    with suppress(CorruptionError):
        forgotten = space.forgotten(txn)
    keys: dict[int, bytes] = {}
    for key, raw in txn.scan(NS_CODE_BLOCK + number, b"\0"):
        with suppress(CorruptionError):
            block = unpack_block(key, raw, "a block of entity keys").tolist()
            first = KEYS_PER_BLOCK * int.from_bytes(key[5:], "big")
            keys |= {first + place: name for place, name in enumerate(block) if name}
    known = set(keys.values())
    for key, raw in txn.scan(NS_KEY + number):
        name = bytes(key[5:])
        code = code_of(key, raw)
        if code is not None and code not in keys and name not in known:
            keys[code] = name
    count = max(keys, default=-1) + 1
    if count > min(ENTITIES_MAX, len(keys) + _GAPS_MAX):
        raise CorruptionError(f"key space {space.id} lacks {count - len(keys)} of {count} keys; restore from a backup")
    txn.delete_prefix(NS_CODE_BLOCK + number)
    txn.delete_prefix(NS_KEY + number)
    # A code without a key is one whose key was forgotten: no row of it is left, or will be.
    stand_ins = (b"\xff\xffno key" + code.to_bytes(4, "big") for code in range(count))
    if keys:
        space.append(txn, Heap.of([keys.get(code, name) for code, name in enumerate(stand_ins)]))
    gaps = np.setdiff1d(np.arange(count), np.fromiter(keys, np.int64, len(keys)))
    if len(gaps):
        space.forget(txn, gaps.astype(np.int32))
    return max(0, len(gaps) - forgotten)


def repair_log(work: Repair) -> None:
    """Put a commit ``lost`` where a record is damaged or missing, so that the times of the others stay."""
    txn, records, bad = work.txn, dict[int, tuple[int, str]](), list[bytes]()
    before, before_us = 0, 0
    for key, raw in txn.scan(NS_COMMIT):
        number = int.from_bytes(key[1:], "big")
        try:
            time_us, operation, _, _ = unpack(key, raw if len(key) == 9 else b"", "a commit")
            # One under the number of another is out of order.
            if (records and time_us - before_us < number - before) or number < 1:
                raise CorruptionError("a commit is out of order")
        except (CorruptionError, TypeError, ValueError):
            bad.append(bytes(key))
        else:
            records[number] = time_us, operation
            before, before_us = number, time_us
    for stray in bad:
        txn.delete(stray)
    last = max([*records, *(_last_of(work, table) for table in work.registry.tables.values())], default=0)
    if last > len(records) + _GAPS_MAX:
        raise CorruptionError(f"the log lacks {last - len(records)} of {last} commits; restore the file from a backup")
    missing = [number for number in range(1, last + 1) if number not in records]
    first = min(records, default=0)
    time_us = records[first][0] - first if records else time.time_ns() // 1000 - last
    for number in range(1, last + 1):
        if number in records:
            time_us, operation = records[number]
        else:
            time_us, operation = time_us + 1, LOST
            at = NS_COMMIT + number.to_bytes(8, "big")
            txn.put(at, pack(at, [time_us, operation, None, 0]))
        work.operations[number] = operation
    if missing:
        shown = f"{', '.join(map(str, missing[:20]))}{', ...' if len(missing) > 20 else ''}"
        work.lose(f"what the log says of {len(missing)} commits: {shown}")


def _last_of(work: Repair, table: StoredTable) -> int:
    """The last commit that a row of history, of the tail or of the online values names."""
    txn = work.txn
    readers = table_readers(txn, SegmentCache(), table)
    history = max((int(reader.read_system(COMMIT).max()) for reader in readers), default=0)
    online = txn.scan(NS_ONLINE + table.id.to_bytes(4, "big"))
    whole = (raw for key, raw in online if is_sealed(key, raw))
    named = (int.from_bytes(raw[22:30], "little") for raw in whole)
    return max(history, read_tail(txn, table.id).commit_id, max(named, default=0))
