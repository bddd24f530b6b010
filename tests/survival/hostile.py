"""Changes of values: of bytes, and of records as what they say, with the checksums put right that vouch for them."""

from __future__ import annotations

import random
import zlib
from typing import Any

from featuredb import limits
from featuredb.storage.crc import CRC_BYTES, seal
from featuredb.storage.manifest import DEAD, SNAPSHOT_ID_BYTES
from featuredb.storage.records import pack, unpack
from featuredb.storage.segment import checksum

EXTREMES = (
    0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
_OTHERS: tuple[Any, ...] = (
    None, True, False, "", "x", b"", b"\xff\0", 0.5, [], [0], {}, {"x": 1}, -1, -(1 << 63), "float64[65536]",
    "list[string]", "int8",
)  # fmt: skip
_WORDS = (
    "int8", "uint64", "float64", "string", "bool", "timestamp", "float64[65536]", "list[string]", "packed", "plain",
    "heap", "null", "dictionary", "\u00e9", "a" * 300,
)  # fmt: skip


def mutated(rng: random.Random, raw: bytes) -> bytearray:
    """The bytes with a few of them changed, moved, cut off or added."""
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(7)
        at = rng.randrange(len(changed)) if changed else 0
        if kind == 0 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind in (1, 2):
            width = rng.choice((1, 2, 4, 8))
            at -= at % width if rng.random() < 0.7 else 0
            word = rng.choice((*EXTREMES, len(changed), rng.randrange(64), rng.getrandbits(64)))
            order = "little" if rng.random() < 0.8 else "big"
            changed[at : at + width] = (word & (1 << 8 * width) - 1).to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 8, 64)))
        elif kind == 5:
            size = rng.choice((1, 2, 4, 8, 32))
            changed[at : at + size] = changed[:size]
        else:
            del changed[at : at + rng.choice((1, 4, 8))]
    return changed


def mutated_record(rng: random.Random, key: bytes, raw: bytes) -> bytes:
    """The record that says something else, with its checksum right; of bytes that are none, `mutated` ones."""
    if key[:1] in _COPIES:
        return seal(key, mutated_record(rng, copied_from(key), raw[CRC_BYTES:]))
    if rng.random() < 0.1:
        return seal(key, bytes(mutated(rng, raw[CRC_BYTES:])))
    try:
        said = unpack(key, raw, "a record")
    except Exception:
        return bytes(mutated(rng, raw))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        said = _otherwise(rng, said)
    return pack(key, said)


def sealed(key: bytes, body: bytes) -> bytes:
    """The bytes of a record, block or row behind every checksum that is expected under `key`."""
    return seal(key, seal(copied_from(key), body) if key[:1] in _COPIES else body)


def _otherwise(rng: random.Random, said: Any) -> Any:
    """With one part of it, or all, replaced."""
    if isinstance(said, list) and list(map(type, said)) == [bytes, bytes] and rng.random() < 0.8:
        # An entry of a snapshot's definitions.
        return [said[0], mutated_record(rng, said[0], said[1])]
    inside = said and isinstance(said, list | dict)
    if inside and rng.random() < 0.85:
        at = rng.choice(list(said) if isinstance(said, dict) else range(len(said)))
        copied = dict(said) if isinstance(said, dict) else list(said)
        kind = rng.randrange(16)
        if kind == 0:
            del copied[at]
        elif kind == 1 and isinstance(copied, list):
            copied.insert(at, rng.choice(copied))
        elif kind == 2:
            copied[at] = rng.choice(list(copied.values()) if isinstance(copied, dict) else copied)
        elif kind == 3 and isinstance(copied, dict):
            copied[rng.choice((*copied, "x", 7, None, b"x"))] = copied.pop(at)
        else:
            copied[at] = _otherwise(rng, copied[at])
        return copied
    return _other(rng, said)


def _other(rng: random.Random, said: Any) -> Any:
    if type(said) is int and rng.random() < 0.7:
        near = (said + 1, said - 1, said * 2, said ^ 1 << rng.randrange(40), -said, said + (1 << 32))
        number: int = rng.choice((*EXTREMES, *near, rng.randrange(100), 1 << rng.randrange(63)))
        return number if -(1 << 63) <= number < 1 << 64 else 0
    if isinstance(said, str) and rng.random() < 0.7:
        return rng.choice((*_WORDS, said + said, said[:-1], said.upper()))
    return rng.choice((*_OTHERS, *EXTREMES))


# --- checksums --------------------------------------------------------------------------------


def repaired(
    before: dict[bytes, bytes], after: dict[bytes, bytes], *, lie: bool, upwards: bool = True
) -> dict[bytes, bytes]:
    """The entries, with the checksums right that those which differ from `before` hold.

    With `upwards` also those of them that others hold; with `lie` what is said twice is made to agree as well, with
    what the descriptors of segments say.
    """
    fixed = dict(after)
    changed = [key for key, value in after.items() if before.get(key) != value]
    for key in changed:
        value, space = fixed[key], key[:1]
        if space in _COPIES and len(value) >= 2 * CRC_BYTES:
            fixed[key] = sealed(key, value[2 * CRC_BYTES :])
        elif space not in _UNSEALED and len(value) >= CRC_BYTES:
            fixed[key] = seal(key, value[CRC_BYTES:])
    # From the bottom up: chunks, descriptors, manifests.
    for repair in (_repair_chunks, _repair_manifests, _repair_tails) if upwards else ():
        repair(fixed, lie)
    return fixed


_UNSEALED = {limits.NS_STAGED, limits.NS_CHUNK}
# Of values that stood, with their checksums, under other keys.
_COPIES = {limits.NS_PINNED, limits.NS_UNDO}


def copied_from(key: bytes) -> bytes:
    """The key that what a snapshot holds or has saved under `key` is a copy from."""
    if key[:1] == limits.NS_PINNED:
        return limits.NS_MANIFEST + key[1:5]
    return limits.NS_ONLINE + key[1 + SNAPSHOT_ID_BYTES :]


def _said(key: bytes, raw: bytes | None) -> Any:
    try:
        return None if raw is None else unpack(key, raw, "a record")
    except Exception:
        return None


def _repair_chunks(entries: dict[bytes, bytes], lie: bool) -> None:
    """Lengths and checksums of chunks in the descriptors that name them."""
    for key in [key for key in entries if key[:1] == limits.NS_SEGMENT]:
        said = _said(key, entries[key])
        try:
            for column in said[1]:
                for ref in column[-1]:
                    name = limits.NS_CHUNK + key[1:13] + column[0].to_bytes(4, "big") + ref[0].to_bytes(4, "big")
                    raw = entries.get(name + bytes([ref[1]]))
                    if raw is not None:
                        ref[2:] = [len(raw), checksum(raw)]
            entries[key] = pack(key, said)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError):
            # It has no shape any more that could be put right.
            continue


def _repair_manifests(entries: dict[bytes, bytes], lie: bool) -> None:
    """Checksums of descriptors and dead lists in the manifests, live and held, that name them."""
    for key in [key for key in entries if key[:1] in (limits.NS_MANIFEST, limits.NS_PINNED)]:
        table, is_held = key[1:5], key[:1] == limits.NS_PINNED
        manifest = copied_from(key) if is_held else key
        said = _said(manifest, entries[key][CRC_BYTES:] if is_held else entries[key])
        try:
            for ref in said[1]:
                number = ref[0].to_bytes(8, "big")
                descriptor = limits.NS_SEGMENT + table + number
                raw = entries.get(descriptor)
                if raw is not None:
                    ref[1] = zlib.crc32(raw)
                    if lie:
                        ref[2] = _said(descriptor, raw)[0][0]
                chunk = limits.NS_CHUNK + table + number + DEAD.to_bytes(4, "big") + ref[3].to_bytes(4, "big") + b"\0"
                if chunk in entries:
                    ref[5] = checksum(entries[chunk])
                    if lie:
                        ref[4] = len(entries[chunk]) // 4
            packed = pack(manifest, said)
            entries[key] = seal(key, packed) if is_held else packed
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError):
            continue


def _repair_tails(entries: dict[bytes, bytes], lie: bool) -> None:
    """What the heads of tails say of their rows."""
    for head in [key for key in entries if key[:1] == limits.NS_TAIL and len(key) == 5]:
        rows = [(key, raw) for key, raw in entries.items() if key.startswith(head) and len(key) == 25]
        said = _said(head, entries[head])
        if isinstance(said, list) and len(said) == 4:
            marks = 0
            for _, raw in rows:
                marks ^= int.from_bytes(raw[:CRC_BYTES], "little")
            said[0], said[3] = len(rows), marks
            if lie:
                said[1] = sum(len(raw) for _, raw in rows)
            entries[head] = pack(head, said)
