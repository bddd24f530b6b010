"""Files made to deceive: sound pages, right checksums, and content that no writer would write.

`survival.fuzz` and `survival.decoders` look for such content; here is what they have found, and each kind of record.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from survival import children, hostile, mutants
from survival.fuzz import MEMORY_BASE_BYTES, measured, read, verified

import featuredb as fdb
from featuredb import limits
from featuredb.storage.manifest import DEAD
from featuredb.storage.records import decode, pack, unpack, whole
from featuredb.storage.segment import CODES, COMMIT, STARTS

Entries = dict[bytes, bytes]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, mutants.Base]:
    folder = tmp_path_factory.mktemp("bases")
    mutants.make_bases(folder)
    names = sorted(path.stem for path in folder.glob("*.fdb"))
    return dict(zip(names, mutants.read_bases(folder), strict=True))


def written(base: mutants.Base, path: Path, entries: Entries, *, lie: bool = False) -> Path:
    """The file with other entries, whose checksums are right."""
    path.write_bytes(base.content)
    mutants._rewrite(path, base.entries, hostile.repaired(base.entries, {**base.entries, **entries}, lie=lie))
    return path


def edited(base: mutants.Base, space: bytes, edit: Callable[[Any], None]) -> Entries:
    """The first record of a namespace, edited."""
    key = min(key for key in base.entries if key.startswith(space))
    record = unpack(key, base.entries[key], "a record")
    edit(record)
    return {key: pack(key, record)}


def replaced(base: mutants.Base, space: bytes, record: Any) -> Entries:
    """The first record of a namespace, replaced."""
    key = min(key for key in base.entries if key.startswith(space))
    return {key: pack(key, record)}


def column_of(record: Any, number: int) -> Any:
    return next(column for column in record[1] if column[0] == number)


def put(column: int, place: int, value: Any) -> Callable[[Any], None]:
    """An edit of a descriptor."""

    def edit(record: Any) -> None:
        column_of(record, column)[place] = value

    return edit


def problems(path: Path) -> str:
    with fdb.open(path, read_only=True) as db:
        return str(db.verify())


def test_an_entry_under_another_key_is_found(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    """Of each kind the first and the last, with a bit of each byte of the key changed, none of the value."""
    rng = random.Random(7)
    for name, base in bases.items():
        kinds: dict[bytes, list[bytes]] = {}
        for key in base.entries:
            kinds.setdefault(key[:2] if key[:1] == limits.NS_DEFINITION else key[:1], []).append(key)
        for key in {key for keys in kinds.values() for key in (keys[0], keys[-1])}:
            for at in range(1, len(key)):
                other = key[:at] + bytes([key[at] ^ 1 << rng.randrange(8)]) + key[at + 1 :]
                if other in base.entries:
                    continue
                path = tmp_path / "x.fdb"
                path.write_bytes(base.content)
                entries = {one: value for one, value in base.entries.items() if one != key}
                mutants._rewrite(path, base.entries, {**entries, other: base.entries[key]})
                assert not problems(path).startswith("ok"), (name, key, other)
                path.unlink()


RECORDS = {
    "the registry's state": b"d#",
    "the definition of entity": b"de",
    "the definition of feature table": b"dt",
    "the definition of feature service": b"ds",
    "the definition of key space": b"dk",
    "the record of commit": limits.NS_COMMIT,
    "the pending mark": limits.NS_PENDING,
    "the descriptor of segment": limits.NS_SEGMENT,
    "rejected row": limits.NS_REJECTED,
    "the manifest": limits.NS_MANIFEST,
    "the head of the tail": limits.NS_TAIL,
    "the record of snapshot": limits.NS_SNAPSHOT,
    "the generation of key space": limits.NS_CODE_BLOCK,
}


@pytest.mark.parametrize("what", RECORDS)
@pytest.mark.parametrize("record", [None, [], [[1]], {"id": 1}], ids=repr)
def test_a_record_of_another_shape_is_damage_with_a_remedy(
    what: str, record: Any, bases: dict[str, mutants.Base], tmp_path: Path
) -> None:
    base = next(base for base in bases.values() if any(key.startswith(RECORDS[what]) for key in base.entries))
    base = bases["snapshots"] if RECORDS[what] == limits.NS_CODE_BLOCK else base
    path = written(base, tmp_path / "x.fdb", replaced(base, RECORDS[what], record))
    assert f"{what}" in problems(path)
    if what == "the pending mark":
        return  # read by `materialize` alone
    outcome = read(path)
    assert outcome.startswith("refused: ")
    assert what in outcome
    assert "has an unknown shape" in outcome
    assert "restore the file from a backup" in outcome


COUNTERS: dict[str, tuple[str, bytes, Callable[[Any], Any]]] = {
    "the next segment": ("scalars", limits.NS_MANIFEST, lambda record: record.__setitem__(0, (1 << 64) - 1)),
    "a segment": ("scalars", limits.NS_MANIFEST, lambda record: record[1][0].__setitem__(0, (1 << 64) - 1)),
    "a version": ("scalars", limits.NS_MANIFEST, lambda record: record[1][0].__setitem__(3, 0xFFFF_FFFF)),
    "definitions": ("scalars", b"d#", lambda record: record.__setitem__(0, (1 << 64) - 1)),
    "the next table": ("scalars", b"d#", lambda record: record.__setitem__(1, 0xFFFF_FFFF)),
    "keys forgotten": ("snapshots", limits.NS_CODE_BLOCK, lambda record: record.__setitem__(0, (1 << 64) - 1)),
}


@pytest.mark.parametrize("what", COUNTERS)
def test_a_number_that_cannot_be_counted_on_from_is_damage(
    what: str, bases: dict[str, mutants.Base], tmp_path: Path
) -> None:
    """Or else `verify` would find the file in order, and the next write could not be made."""
    name, space, edit = COUNTERS[what]
    path = written(bases[name], tmp_path / "x.fdb", edited(bases[name], space, edit))
    assert "has an unknown shape" in problems(path)


def test_rejected_rows_whose_numbers_are_used_up_are_damage(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    base = bases["scalars"]
    (key,) = [key for key in base.entries if key[:1] == limits.NS_REJECTED]
    path = tmp_path / "x.fdb"
    path.write_bytes(base.content)
    last = key[:5] + b"\xff" * 8
    entries = {one: value for one, value in base.entries.items() if one != key} | {last: base.entries[key]}
    mutants._rewrite(path, base.entries, hostile.repaired(base.entries, entries, lie=False))
    assert "the numbers of its rejected rows are used up" in problems(path)


def test_no_commit_can_follow_one_of_the_end_of_time(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    base = bases["scalars"]
    key = max(key for key in base.entries if key[:1] == limits.NS_COMMIT)
    said = unpack(key, base.entries[key], "a commit")
    path = written(base, tmp_path / "x.fdb", {key: pack(key, [limits.TIMESTAMP_MAX_US, *said[1:]])})
    assert problems(path).startswith("0 problems") or problems(path).startswith("ok")
    with fdb.open(path) as db, pytest.raises(fdb.LimitError, match=r"end of the year 9999.*; check the clock"):
        db.apply(fdb.Entity("later", "int64"))


def test_numbers_of_a_record_are_integers_in_range() -> None:
    for value in (True, 1.0, "1", None, -1, 8):
        with pytest.raises(fdb.FileError, match=r"it has an unknown shape: .* is no integer from 0 to 7; restore"):
            decode(b"k", pack(b"k", value), "it", lambda record: whole(record, 0, 7))
    assert decode(b"k", pack(b"k", 7), "it", lambda record: whole(record, 0, 7)) == 7
    with pytest.raises(fdb.FileError, match=r"it cannot be decoded: .*restore the file"):
        decode(b"k", hostile.sealed(b"k", b"\x81\x90\x01"), "it", lambda record: record)  # a map whose key is a list


SEGMENTS: dict[str, tuple[str, bytes, Callable[[Any], Any], bool]] = {
    # The places of chunks follow from `chunk_rows`, so a search would have looked beyond the last.
    "its chunks are not of 8 values": ("scalars", limits.NS_SEGMENT, put(CODES, 3, 8), False),
    "its chunks are not of 16 values": ("scalars", limits.NS_SEGMENT, put(STARTS, 3, 16), False),
    "chunks of 0 rows": ("scalars", limits.NS_SEGMENT, put(1, 3, 0), False),
    "its encoding is 'packed'": ("scalars", limits.NS_SEGMENT, put(CODES, 2, "packed"), False),
    "it is packed float32[3]": ("nested", limits.NS_SEGMENT, put(2, 2, "packed"), False),
    "it is plain string": ("scalars", limits.NS_SEGMENT, put(4, 2, "plain"), False),
    "18446744073709551615 is no integer": ("scalars", limits.NS_SEGMENT, put(1, 6, (1 << 64) - 1), False),
}


@pytest.mark.parametrize("what", SEGMENTS)
def test_a_descriptor_that_would_mislead_a_search_is_damage(
    what: str, bases: dict[str, mutants.Base], tmp_path: Path
) -> None:
    name, space, edit, lie = SEGMENTS[what]
    path = written(bases[name], tmp_path / "x.fdb", edited(bases[name], space, edit), lie=lie)
    # In children, for it ended the process.
    assert children.one(lambda: verified(path)) == "damaged"
    assert str(children.one(lambda: read(path))).startswith("refused: ")


def test_commits_and_replaced_rows_outside_are_not_looked_up(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    base = bases["scalars"]
    entries = edited(base, limits.NS_SEGMENT, put(COMMIT, 6, -(1 << 62)))
    path = written(base, tmp_path / "commit.fdb", entries)
    assert "a commit that is not logged" in problems(path)
    assert children.one(lambda: read(path)) == "read"
    dead = next(
        (key for key in base.entries if key[:1] == limits.NS_CHUNK and key[13:17] == DEAD.to_bytes(4, "big")), None
    )
    assert dead is not None
    count = len(base.entries[dead]) // 4
    path = written(base, tmp_path / "dead.fdb", {dead: struct.pack(f"<{count}i", *range(1 << 30, (1 << 30) + count))})
    assert "its list of replaced rows is out of order or range" in problems(path)
    assert "its list of replaced rows is out of range" in str(children.one(lambda: read(path)))


def test_layouts_of_another_dtype_than_the_feature_are_damage(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    base = bases["scalars"]

    def edit(record: Any) -> None:
        record["layouts"][-1][0][1] = "float64[9]"

    path = written(base, tmp_path / "x.fdb", edited(base, b"dt", edit))
    assert children.one(lambda: verified(path)) == "damaged"
    assert "has feature 1 as float64[9]; restore" in str(children.one(lambda: read(path)))


def test_keys_and_codes_of_another_space_are_damage(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    base = bases["scalars"]
    block = next(key for key in base.entries if key[:1] == limits.NS_CODE_BLOCK and len(key) == 9)
    raw = bytearray(base.entries[block])
    # The first key takes a byte of the second.
    struct.pack_into("<I", raw, 12, 5)
    path = written(base, tmp_path / "keys.fdb", {block: bytes(raw)})
    assert "an entity key is" in problems(path)
    assert "of other dtypes than its own" in read(path)
    key = next(key for key in base.entries if key[:1] == limits.NS_KEY)
    path = written(base, tmp_path / "code.fdb", {key: bytes(4) + b"\xff\xff\xff\xff"})
    assert "the code of key" in problems(path)


def test_a_held_manifest_says_of_a_live_segment_what_is_so(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    base = bases["snapshots"]
    key = max(key for key in base.entries if key[:1] == limits.NS_PINNED)
    manifest = hostile.copied_from(key)
    record = unpack(manifest, base.entries[key][4:], "a manifest")
    record[1][0][2] += 1
    path = written(base, tmp_path / "x.fdb", {key: hostile.sealed(key, pack(manifest, record)[4:])})
    assert "rows, the manifest that is held" in problems(path)


def test_definitions_of_a_snapshot_are_verified(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    base = bases["snapshots"]

    def edit(record: Any) -> None:
        for entry in record[3]:
            if entry[0].startswith(b"ds"):
                entry[1] = pack(entry[0], unpack(entry[0], entry[1], "a service") | {"aliases": {}})

    path = written(base, tmp_path / "x.fdb", edited(base, limits.NS_SNAPSHOT, edit))
    assert "snapshot 'first'" in problems(path)
    assert "no feature table 'copy'" in problems(path)


def test_meta_pages_that_lead_nowhere_are_refused_with_a_remedy(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    path = tmp_path / "x.fdb"
    content = bytearray(bases["scalars"].content)
    for page in (0, 1):
        # Root and last page of the tree of entries.
        struct.pack_into("<QQ", content, page * mutants.PAGE_BYTES + 128, 1 << 60, 1 << 61)
    path.write_bytes(content)
    with pytest.raises(fdb.FileError, match="meta pages are truncated or damaged; restore it from a backup"):
        fdb.open(path, read_only=True)


def test_few_bytes_that_claim_millions_of_rows_take_no_memory(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    """Columns of one value take no space in the file, so that the number of rows is all that an allocation is from."""
    base, rows = bases["scalars"], limits.SEGMENT_ROWS_MAX

    def edit(record: Any) -> None:
        record[0][0] = rows
        for column in record[1]:
            if column[0] not in (CODES, STARTS):
                column[2:] = ["packed", 1 << 30, 0, 0, 0, 0, []]

    entries = edited(base, limits.NS_SEGMENT, edit)
    prefix = limits.NS_CHUNK + min(entries)[1:13] + STARTS.to_bytes(4, "big")
    starts = next(key for key in base.entries if key.startswith(prefix))
    entries[starts] = base.entries[starts][:-4] + struct.pack("<I", rows)
    path = written(base, tmp_path / "x.fdb", entries, lie=True)
    result = children.one(lambda: measured(path, verified))
    assert result[0] == "damaged"
    assert result[1] < MEMORY_BASE_BYTES
    assert "keys differ in 0 bits of time" in problems(path)


def test_what_a_snapshot_holds_is_bytes_and_under_a_key_of_a_snapshot(
    bases: dict[str, mutants.Base], tmp_path: Path
) -> None:
    base = bases["snapshots"]

    def edit(record: Any) -> None:
        record[3][0][1] = 1 << 40  # as a number of bytes, more than any machine has

    path = written(base, tmp_path / "number.fdb", edited(base, limits.NS_SNAPSHOT, edit))
    assert "1099511627776 is no bytes" in problems(path)
    assert "1099511627776 is no bytes" in read(path)
    key = min(key for key in base.entries if key[:1] == limits.NS_SNAPSHOT)
    path = written(base, tmp_path / "key.fdb", {key + b"\0": base.entries[key]})
    assert f"the key {key.hex()}00 is none of a snapshot" in problems(path)


def test_the_format_record_names_the_file(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    base = bases["scalars"]
    path = written(base, tmp_path / "x.fdb", edited(base, limits.NS_FORMAT, lambda record: record.pop("file_id")))
    assert "the format record has an unknown shape: KeyError('file_id'); restore" in problems(path)
    assert "the format record has an unknown shape: KeyError('file_id'); restore" in read(path)


def test_a_meta_page_in_the_place_of_the_other_is_refused(bases: dict[str, mutants.Base], tmp_path: Path) -> None:
    """The engine would read the tree of the one, and `verify` would prove that of the other."""
    path = tmp_path / "x.fdb"
    content = bytearray(bases["scalars"].content)
    numbers = [struct.unpack_from("<Q", content, page * mutants.PAGE_BYTES + 144)[0] for page in (0, 1)]
    older = numbers.index(min(numbers))
    struct.pack_into("<Q", content, older * mutants.PAGE_BYTES + 144, max(numbers) + 2)
    path.write_bytes(content)
    with pytest.raises(fdb.FileError, match="meta pages are in each other's place; restore it from a backup"):
        fdb.open(path, read_only=True)
