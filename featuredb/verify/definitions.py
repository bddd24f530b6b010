"""Checks of what everything else rests on: format record, definitions, log, and the entity dictionary."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Heap
from featuredb.errors import CorruptionError
from featuredb.limits import FORMAT_MAGIC, FORMAT_VERSION, NS_COMMIT, NS_FORMAT, NS_KEY
from featuredb.online.index import BATCH_ROWS
from featuredb.schema import DTYPES
from featuredb.storage.keys import decode_keys
from featuredb.storage.keyspace import KeySpace, code_of
from featuredb.storage.log import commit_of
from featuredb.storage.records import decode, text, whole
from featuredb.storage.registry import Registry, StoredTable, read_registry
from featuredb.verify.report import Check
from featuredb.verify.values import utf8_fault


def check_format(check: Check) -> None:
    """The format record is there, whole, and of a version that this library reads."""
    raw = check.txn.get(NS_FORMAT)
    if raw is None:
        check.problem("the format record is missing")
        return
    with check.guarded():

        def facts(record: Any) -> tuple[Any, int]:
            text(record["file_id"])
            whole(record["created_us"])
            return record["magic"], whole(record["version"])

        magic, version = decode(NS_FORMAT, raw, "the format record", facts)
        if magic != FORMAT_MAGIC or not 1 <= version <= FORMAT_VERSION:
            check.problem(f"the format record says {magic!r}, version {version!r}")


def check_registry(check: Check) -> bool:
    """Read the definitions, and check that they fit together; False if they cannot be read."""
    before = check.problem_count
    with check.guarded():
        check.registry = read_registry(check.txn)
    if check.problem_count > before:
        return False
    registry = check.registry
    ids = [*registry.spaces.values(), *(table.id for table in registry.tables.values())]
    if not all(type(number) is int for number in (*ids, registry.next_id)):
        check.problem("a number of a table or key space is not an integer")
        return False
    if len(set(ids)) != len(ids) or max(ids, default=0) >= registry.next_id or min(ids, default=1) < 1:
        check.problem("the numbers of tables and key spaces are not distinct, or would be given out again")
    for table in registry.tables.values():
        with check.guarded(table=table.name):
            _check_table(check, registry, table)
    for service in registry.services.values():
        with check.guarded(f"feature service {service.name!r}"):
            registry.references(service)
    return True


def _check_table(check: Check, registry: Registry, table: StoredTable) -> None:
    entities = tuple(table.definition.entities)
    if registry.spaces.get(entities) != table.space_id:
        check.problem("it is not keyed by the key space of its entities", table=table.name)
    if tuple(DTYPES[registry.entity(name).dtype] for name in entities) != table.key_dtypes:
        check.problem("its key dtypes are not those of its entities", table=table.name)
    current = tuple((table.feature_ids[feature.name], feature.dtype) for feature in table.definition.features)
    if not table.layouts or table.layouts[-1] != current:
        check.problem("its last row layout is not that of its features", table=table.name)
    dtypes: dict[int, str] = {}
    for layout in table.layouts:
        for number, dtype in layout:
            if dtype not in DTYPES or dtypes.setdefault(number, dtype) != dtype or number < 1:
                check.problem(f"its row layouts disagree on feature {number}", table=table.name)


def check_log(check: Check) -> None:
    """Commits count from 1 without gaps, and their times increase."""
    before_us: int | None = None
    for key, value in check.txn.scan(NS_COMMIT):
        if len(key) != 9:
            check.problem(f"the key {bytes(key).hex()} is none of a commit")
            continue
        number = int.from_bytes(key[1:], "big")
        check.commits += 1
        if number != check.last_commit + 1:
            check.problem(f"commit {check.last_commit + 1} is missing from the log; the next is {number}")
        check.last_commit = number
        with check.guarded():
            commit = commit_of(key, value)
            if before_us is not None and commit.time_us <= before_us:
                check.problem(f"commit {number} is not later than the one before it")
            before_us = commit.time_us
            check.operations[number] = commit.operation


def check_key_space(check: Check, entities: tuple[str, ...], number: int) -> None:
    """Tree and blocks agree both ways, keys are distinct, and each is one of its dtypes."""
    name = f"key space {'/'.join(entities)}"
    before = check.problem_count
    with check.guarded(name):
        space = KeySpace(number)
        whole = _joined(list(space.blocks(check.txn)))
        count = len(whole)
        forgotten = np.diff(whole.offsets) == 0
        held = np.flatnonzero(~forgotten)
        blocks = whole.take(held) if len(held) < count else whole
        check.entity_keys += len(held)
        if count - len(held) != space.forgotten(check.txn):
            what = f"{count - len(held)} codes have no key, and {space.forgotten(check.txn)} keys were forgotten"
            check.problem(f"{name}: {what}")
        tree, codes = _read_tree(check, NS_KEY + number.to_bytes(4, "big"))
        # Keys of the tree are distinct, so if it holds each code once and its keys in that order are
        # those of the blocks, the two agree both ways.
        if not np.array_equal(np.sort(codes), held):
            check.problem(
                f"{name}: the tree has {len(codes)} keys, the blocks have {len(held)}, or a code is there twice"
            )
        else:
            ordered = tree.take(np.argsort(codes))
            wrong = np.diff(ordered.offsets) != np.diff(blocks.offsets)
            if not wrong.any():
                differs = np.zeros(len(blocks.data) + 1, dtype=np.int64)
                np.cumsum(ordered.data != blocks.data, out=differs[1:])
                wrong = differs[blocks.offsets[1:]] != differs[blocks.offsets[:-1]]
            if wrong.any():
                first = int(np.argmax(wrong))
                check.problem(f"{name}: keys of tree and blocks differ, the first at code {held[first]}")
        columns = decode_keys(blocks, [DTYPES[check.registry.entity(entity).dtype] for entity in entities])
        for entity, column in zip(entities, columns, strict=True):
            fault = utf8_fault(column.heap) if column.heap is not None and column.dtype.name == "string" else None
            if fault is not None:
                check.problem(f"{name}, entity {entity}: {fault}")
        if check.problem_count == before:
            check.key_counts[number] = count
            check.forgotten[number] = np.flatnonzero(forgotten)


def _read_tree(check: Check, prefix: bytes) -> tuple[Heap, NDArray[np.uint32]]:
    """Keys and codes of the tree entries of a key space, in key order."""
    keys, codes = list[Heap](), list[int]()
    entries = check.txn.scan(prefix)
    # In batches: the garbage collector walks all views that are held.
    while batch := list(islice(entries, BATCH_ROWS)):
        names = [bytes(key[len(prefix) :]) for key, _ in batch]
        for key, value in batch:
            code = code_of(key, value)
            if code is None:
                raise CorruptionError(f"the code of key {key[len(prefix) :].hex()} in the tree is damaged")
            codes.append(code)
        keys.append(Heap.of(names))
    return _joined(keys), np.array(codes, dtype=np.uint32)


def _joined(parts: list[Heap]) -> Heap:
    if not parts:
        return Heap.of([])
    sizes = np.cumsum([0, *(int(part.offsets[-1]) for part in parts)])
    offsets = [part.offsets[1:] + base for part, base in zip(parts, sizes[:-1], strict=True)]
    return Heap(np.concatenate([np.zeros(1, np.int64), *offsets]), np.concatenate([part.data for part in parts]))
