"""The entity dictionary of a key space: key bytes to dense integer codes, and back.

Two views of the same facts. One tree entry per key (key bytes to code) makes a handful of look-ups
independent of the number of entities; blocks of 512 keys in code order let a large join read the whole
dictionary at memory speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Heap
from featuredb.errors import CorruptionError, LimitError
from featuredb.limits import ENTITIES_MAX, KEYS_PER_BLOCK, NS_CODE_BLOCK, NS_KEY
from featuredb.storage.crc import crc32_rows, is_sealed, seal
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.keys import sort_order, whole_keys
from featuredb.storage.records import COUNTER_MAX, decode, pack, wholes
from featuredb.storage.txn import Bytes

# The longest keys of one width whose checksums are faster in columns.
_COLUMNS_BYTES_MAX = 64


def _pack_codes(names: Heap, codes: NDArray[np.int32]) -> list[bytes]:
    """What is stored in the tree under each (whole) key: its code, little-endian, sealed."""
    packed = codes.astype("<u4").reshape(-1, 1)
    width = names.width
    if not 0 < width <= _COLUMNS_BYTES_MAX:
        return list(map(seal, names.tolist(), packed.view("V4").reshape(-1).tolist()))
    words = np.empty((len(names), 2), dtype="<u4")
    words[:, 1:] = packed
    raw = names.data[names.offsets[0] : names.offsets[-1]].reshape(-1, width)
    words[:, 0] = crc32_rows(np.concatenate([packed.view(np.uint8), raw], axis=1))
    return words.view("V8").reshape(-1).tolist()


def code_of(name: Bytes, raw: Bytes) -> int | None:
    """The code that is stored under a (whole) key, None if it is damaged."""
    if len(raw) != 8 or not is_sealed(name, raw):
        return None
    code = int.from_bytes(raw[4:], "little")
    return code if code <= ENTITIES_MAX else None


def _pack_block(key: bytes, keys: Heap) -> bytes:
    start, stop = int(keys.offsets[0]), int(keys.offsets[-1])
    offsets = (keys.offsets - start).astype("<u4")
    body = np.uint32(len(keys)).tobytes() + offsets.tobytes() + keys.data[start:stop].tobytes()
    return seal(key, body)


def unpack_block(key: bytes | memoryview, raw: memoryview, what: str) -> Heap:
    """The keys of the block stored under `key`, empty where one was forgotten."""
    if len(raw) < 12 or not is_sealed(key, raw):
        raise CorruptionError(f"{what} is damaged: its checksum does not match; restore the file from a backup")
    count = int.from_bytes(raw[4:8], "little")
    start = 8 + 4 * (count + 1)
    if not 0 < count <= KEYS_PER_BLOCK or start > len(raw):
        raise CorruptionError(f"{what} is damaged: it claims {count} keys; restore the file from a backup")
    offsets = np.frombuffer(raw[8:start], dtype="<u4").astype(np.int64)
    data = np.frombuffer(raw[start:], dtype=np.uint8).copy()
    if offsets[0] != 0 or offsets[-1] != len(data) or np.any(np.diff(offsets) < 0):
        raise CorruptionError(f"{what} is damaged: its offsets do not fit; restore the file from a backup")
    return Heap(offsets, data)


class KeySpace:
    """The dictionary of one tuple of entities. Codes are 0, 1, 2, ... in order of arrival, each given once.

    The code of a key that was forgotten has no key any more: its bytes in the block are none, which no key's are.
    How often keys were forgotten is the `generation`, for a key that came again since has another code.
    """

    def __init__(self, space_id: int) -> None:
        self.id = space_id
        self._key_prefix = NS_KEY + space_id.to_bytes(4, "big")
        self._block_prefix = NS_CODE_BLOCK + space_id.to_bytes(4, "big")

    def _block_name(self, block: int) -> str:
        return f"block {block} of key space {self.id}"

    def _forgetting(self, txn: ReadTxn) -> tuple[int, int]:
        # Shorter than the keys of blocks, and so none of them.
        raw = txn.get(self._block_prefix)
        if raw is None:
            return 0, 0

        def facts(record: Any) -> tuple[int, int]:
            generation, forgotten = wholes(record, 0, COUNTER_MAX)
            return generation, forgotten

        return decode(self._block_prefix, raw, f"the generation of key space {self.id}", facts)

    def generation(self, txn: ReadTxn) -> int:
        """How often keys have been forgotten."""
        return self._forgetting(txn)[0]

    def forgotten(self, txn: ReadTxn) -> int:
        """Number of codes without a key."""
        return self._forgetting(txn)[1]

    def _last_block(self, txn: ReadTxn) -> tuple[int, Heap]:
        """Number and keys of the last block, which says how many codes were given."""
        last = txn.last(self._block_prefix)
        if last is None:
            return 0, Heap.of([])
        block = int.from_bytes(last[0][5:], "big")
        return block, unpack_block(*last, self._block_name(block))

    def count(self, txn: ReadTxn) -> int:
        """Number of codes given."""
        block, keys = self._last_block(txn)
        return block * KEYS_PER_BLOCK + len(keys)

    def lookup(self, txn: ReadTxn, keys: Sequence[bytes]) -> NDArray[np.int32]:
        """The code of each key, -1 where unknown."""
        known: dict[bytes, int] = {}
        for name, raw in txn.get_many([self._key_prefix + key for key in keys]):
            code = code_of(name, raw)
            if code is None:
                raise CorruptionError(f"a code of key space {self.id} is damaged; restore the file from a backup")
            known[bytes(name[5:])] = code
        return np.fromiter((known.get(key, -1) for key in keys), dtype=np.int32, count=len(keys))

    def append(self, txn: WriteTxn, keys: Heap) -> NDArray[np.int32]:
        """Give codes to `keys`: at least one, distinct, not yet in the space."""
        block, held = self._last_block(txn)
        first = block * KEYS_PER_BLOCK + len(held)
        if first + len(keys) > ENTITIES_MAX:
            raise LimitError(
                f"key space {self.id} would hold more than {ENTITIES_MAX} entity keys; use another file for the rest"
            )
        codes = np.arange(first, first + len(keys), dtype=np.int32)
        order = sort_order(keys)
        ordered = keys.take(order)
        whole = whole_keys(self._key_prefix, ordered)
        names = whole.tolist()
        # At the end of the file, as in a new one, pages are filled one after the other; elsewhere they are split.
        last = txn.last(b"")
        append = last is None or last[0] < names[0]
        txn.put_many(zip(names, _pack_codes(whole, codes[order]), strict=True), append)
        done = 0
        while done < len(keys):
            block, used = divmod(first + done, KEYS_PER_BLOCK)
            step = min(KEYS_PER_BLOCK - used, len(keys) - done)
            key = self._block_prefix + block.to_bytes(4, "big")
            part = keys.part(done, done + step)
            txn.put(key, _pack_block(key, Heap.concat([held, part]) if used else part))
            done += step
        return codes

    def forget(self, txn: WriteTxn, codes: NDArray[np.int32]) -> None:
        """Take the keys from `codes`: ascending, none of them without one."""
        for part in np.split(codes, np.flatnonzero(np.diff(codes // KEYS_PER_BLOCK)) + 1):
            block = int(part[0]) // KEYS_PER_BLOCK
            at = self._block_prefix + block.to_bytes(4, "big")
            stored = txn.get(at)
            if stored is None:
                raise CorruptionError(f"{self._block_name(block)} is missing; restore the file from a backup")
            keys = unpack_block(at, stored, self._block_name(block)).tolist()
            for place in (part % KEYS_PER_BLOCK).tolist():
                txn.delete(self._key_prefix + keys[place])
                keys[place] = b""
            txn.put(at, _pack_block(at, Heap.of(keys)))
        generation, forgotten = self._forgetting(txn)
        txn.put(self._block_prefix, pack(self._block_prefix, [generation + 1, forgotten + len(codes)]))

    def blocks(self, txn: ReadTxn, first_block: int = 0) -> Iterator[Heap]:
        """The keys in code order, a block at a time, from block `first_block` on."""
        expected, full = first_block, True
        for key, value in txn.scan(self._block_prefix, first_block.to_bytes(4, "big")):
            block = int.from_bytes(key[5:], "big")
            if block != expected:
                raise CorruptionError(f"{self._block_name(expected)} is missing; restore the file from a backup")
            if not full:
                raise CorruptionError(f"{self._block_name(block - 1)} is not full; restore the file from a backup")
            keys = unpack_block(key, value, self._block_name(block))
            full = len(keys) == KEYS_PER_BLOCK
            yield keys
            expected += 1
