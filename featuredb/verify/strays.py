"""Check that every entry of the file belongs to something."""

from __future__ import annotations

from collections.abc import Iterator

from featuredb import limits
from featuredb.limits import (
    NS_CHUNK,
    NS_CODE_BLOCK,
    NS_DEFINITION,
    NS_FORMAT,
    NS_KEY,
    NS_MANIFEST,
    NS_ONLINE,
    NS_PENDING,
    NS_REJECTED,
    NS_SEGMENT,
    NS_TAIL,
)
from featuredb.storage.env import ReadTxn
from featuredb.storage.manifest import segment_key, staged_segments
from featuredb.verify.report import Check

_NAMESPACES = {value: name for name, value in vars(limits).items() if name.startswith("NS_")}
_DEFINITION_KINDS = b"#eskt"


def check_strays(check: Check) -> None:
    """Report entries of tables, segments and key spaces that do not exist, and keys of no known kind."""
    for prefix in heads(check.txn, b"", 1):
        if prefix not in _NAMESPACES:
            check.problem(f"entries whose keys begin with {prefix!r} are of no known kind")
    if [bytes(key) for key, _ in check.txn.scan(NS_FORMAT)] not in ([], [NS_FORMAT]):
        check.problem("there is more than one format record")
    for prefix in heads(check.txn, NS_DEFINITION, 1):
        if prefix not in _DEFINITION_KINDS:
            check.problem(f"definitions of kind {prefix!r} are not known")
    spaces = set(check.registry.spaces.values())
    for namespace, what in ((NS_KEY, "an entity key"), (NS_CODE_BLOCK, "a block of entity keys")):
        for head in heads(check.txn, namespace, 4):
            if int.from_bytes(head, "big") not in spaces:
                check.problem(f"{what} belongs to no key space: number {int.from_bytes(head, 'big')}")
    tables = {table.id for table in check.registry.tables.values()}
    for namespace, what in (
        (NS_MANIFEST, "a manifest"),
        (NS_ONLINE, "an online row"),
        (NS_PENDING, "a mark of rows to materialize"),
        (NS_REJECTED, "a rejected row"),
        (NS_TAIL, "a row of a tail"),
    ):
        for head in heads(check.txn, namespace, 4):
            if int.from_bytes(head, "big") not in tables:
                check.problem(f"{what} belongs to no feature table", table=_table_name(check, head))
    _check_segments(check, tables)


def _check_segments(check: Check, tables: set[int]) -> None:
    """Chunks and descriptors are of live segments, or staged by an ingest that runs or was killed."""
    staged = set(staged_segments(check.txn))
    for table_id, segment in sorted(staged):
        name = _table_name(check, table_id.to_bytes(4, "big"))
        if (table_id, segment) in check.segments_live:
            check.problem("it is staged and in its manifest at once", table=name, segment=segment)
        elif table_id not in tables:
            check.problem("it is staged for no feature table", table=name, segment=segment)
    strays: dict[tuple[bytes, int, str], None] = {}
    for namespace, what in ((NS_SEGMENT, "a descriptor"), (NS_CHUNK, "a chunk")):
        for entry, _ in check.txn.scan(namespace):
            key = bytes(entry)
            table_id, segment = int.from_bytes(key[1:5], "big"), int.from_bytes(key[5:13], "big")
            one = (table_id, segment)
            if one in staged or one in check.unread or (table_id, None) in check.unread:
                continue
            live = key == segment_key(*one) and one in check.segments_live
            if not (live if namespace == NS_SEGMENT else key in check.chunks_expected):
                strays[key[1:5], segment, what] = None
    for head, segment, what in strays:
        check.problem(
            f"{what} belongs to no live segment, nor to one that a snapshot holds",
            table=_table_name(check, head),
            segment=segment,
        )


def _table_name(check: Check, head: bytes) -> str:
    number = int.from_bytes(head, "big")
    return next((table.name for table in check.registry.tables.values() if table.id == number), f"number {number}")


def heads(txn: ReadTxn, namespace: bytes, size: int) -> Iterator[bytes]:
    """The distinct first `size` bytes of the keys of a namespace (short keys padded), without a visit to each key."""
    start = b""
    while (entry := next(txn.scan(namespace, start), None)) is not None:
        head = bytes(entry[0][len(namespace) :][:size]).ljust(size, b"\0")
        yield head
        if head == b"\xff" * size:
            return
        start = (int.from_bytes(head, "big") + 1).to_bytes(size, "big")
