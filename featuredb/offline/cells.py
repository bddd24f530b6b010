"""Segments as kernels read them: columns where they lie in the file, by address, each chunk checked when first needed.

What is held of a column is small: an address for each chunk. It is kept from read to read for as long as nothing is
committed (`SegmentCache`), so that a repeated small join need not look every chunk up again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.errors import CorruptionError
from featuredb.offline import kernels
from featuredb.offline.kernels.words import SHIFT, TABLE
from featuredb.offline.kernels.words import VALID as VALID_TABLE
from featuredb.storage.segment import (
    CODES,
    COMMIT,
    CREATED,
    DATA,
    EVENT,
    STARTS,
    VALID,
    ColumnInfo,
    SegmentReader,
    address_of,
    frozen,
    words_of,
)
from featuredb.threads import over_items

# The columns of a segment that are searched, in the order that the kernels number them.
_SEARCHED = (CODES, STARTS, EVENT, CREATED, COMMIT)
# A chunk of more rows than any segment has.
_ONE_CHUNK = 62
# What columns without chunks are read from.
_ZERO = np.zeros(1, dtype=np.uint64)
_NO_TIMES = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class Located:
    """A column of a segment: its seven integers (`kernels.words`), and where its chunks are.

    ``addresses`` are those of the chunks' values and then, if any row is null, of their validity bits (0 for a chunk
    without nulls). ``trusted`` tells of which chunks the checksums are checked. ``owned`` are copies of small chunks,
    which lie at any even address: kernels read whole words.
    """

    column: ColumnInfo
    cells: NDArray[Any]
    addresses: NDArray[np.uint64]
    trusted: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    owned: list[Any]

    @property
    def shift(self) -> int:
        """A chunk has ``1 << shift`` rows."""
        return int(self.cells[0, SHIFT])

    @property
    def has_nulls(self) -> bool:
        return bool(self.cells[0, VALID_TABLE] >= 0)


@dataclass(slots=True)
class Searchable:
    """What a search reads of a segment: its columns, and (rows, entities, least event, greatest event).

    ``dead`` is a column of bits, in memory: which rows were replaced. ``minima`` are the earliest times that any of
    each 64, and of each 4096, rows became known; empty if every row counts.
    """

    columns: tuple[Located, ...]
    cells: NDArray[Any]
    addresses: NDArray[np.uint64]
    zone: NDArray[np.int64]
    dead: NDArray[np.uint64]
    minima: tuple[NDArray[np.int64], NDArray[np.int64]]

    @property
    def event(self) -> Located:
        return self.columns[_SEARCHED.index(EVENT)]


def locate(reader: SegmentReader, column_id: int) -> Located:
    """Where a column lies: of fixed width, or of dictionary entry numbers."""
    key = (reader.info.table_id, reader.ref.id, reader.ref.crc, column_id)
    held = reader.views.get(key)
    if held is None:
        held = reader.views[key] = _locate(reader, reader.info.columns[column_id])
    return held


def _locate(reader: SegmentReader, column: ColumnInfo) -> Located:
    reader.check_encoding(column)
    width, base = _packing(column)
    if not 0 <= width <= 64 and not column.dtype.is_vector:
        raise reader.damaged(column, f"its values have {width} bits")
    if column.chunk_rows.bit_count() != 1:
        raise reader.damaged(column, f"chunks of {column.chunk_rows} rows, which is no power of two")
    shift = column.chunk_rows.bit_length() - 1
    chunks = len(column.chunks) if column.id in (CODES, STARTS) else len(reader.chunk_bounds(column.id))
    if any(chunk >= chunks for chunk, _ in column.chunks):
        raise reader.damaged(column, f"it has chunks beyond its {chunks}")
    owned: list[Any] = []
    words = [address_of(_ZERO.data)] * max(chunks, 1)
    if width:
        words = [_address(reader, column, chunk, DATA, width, owned) for chunk in range(chunks)]
    valid: list[int] = []
    if any(part == VALID for _, part in column.chunks):
        valid = [
            _address(reader, column, chunk, VALID, 1, owned) if (chunk, VALID) in column.chunks else 0
            for chunk in range(chunks)
        ]
    cells = np.array([[0, len(words) if valid else -1, shift, *_how(width, base)]], dtype=np.int64)
    sizes = np.zeros(len(words), dtype=np.int64)
    trusted = np.ones(len(words), dtype=np.bool_)
    for (chunk, part), (size, _) in column.chunks.items():
        sizes[chunk] += size
        trusted[chunk] &= part not in (DATA, VALID) or reader.is_checked(column.id, chunk, part)
    addresses = np.array(words + valid, dtype=np.uint64)
    return Located(column, frozen(cells), frozen(addresses), trusted, sizes, owned)


def _how(width: int, base: int) -> tuple[int, int, int, int]:
    """Width, mask, base and alignment as kernels take them; of vectors they take the width alone."""
    return width, -1 if width >= 64 else (1 << width) - 1, base, -8 if width in (8, 16, 32, 64) else -1


def _packing(column: ColumnInfo) -> tuple[int, int]:
    """Bits of a value in the file, and what is added to each."""
    if column.encoding == "plain":
        return 8 * column.dtype.numpy.itemsize, 0
    return column.width, column.base


def _address(reader: SegmentReader, column: ColumnInfo, chunk: int, part: int, width: int, owned: list[Any]) -> int:
    """Where a chunk lies, which is long enough for its rows of `width` bits."""
    if (chunk, part) not in column.chunks:
        raise reader.damaged(column, f"it has no chunk {chunk}")
    raw = reader.stored(column.id, chunk, part)
    if column.id not in (CODES, STARTS):
        rows = min(column.chunk_rows, reader.rows - chunk * column.chunk_rows)
        packed = part == DATA and column.encoding != "plain"
        nbytes = 8 * words_of(rows, width) if packed else -(-rows * width // 8)
        if len(raw) != nbytes:
            unit = 8 if packed else max(width // 8, 1)
            raise reader.damaged(column, f"a chunk has {len(raw) // unit} values instead of {nbytes // unit}")
    address = address_of(raw)
    if address % 8 == 0:
        return address
    copy = np.zeros(len(raw) // 8 + 1, dtype=np.uint64)
    copy.view(np.uint8)[: len(raw)] = np.frombuffer(raw, dtype=np.uint8)
    owned.append(copy)
    return address_of(copy.data)


def trust(wanted: Sequence[tuple[SegmentReader, Located, NDArray[np.bool_] | None]], threads: int | None) -> None:
    """Check the checksums of chunks that nobody has checked: those marked, or all of a column.

    Raises
    ------
    CorruptionError
        Names a chunk that is not what its descriptor says.
    """
    fresh: list[tuple[SegmentReader, Located, int]] = []
    for reader, located, marks in wanted:
        doubted = ~located.trusted
        if marks is not None:
            doubted &= marks[: len(doubted)]
        if doubted.any():
            fresh += [(reader, located, int(chunk)) for chunk in np.flatnonzero(doubted)]

    def check(item: tuple[SegmentReader, Located, int]) -> None:
        reader, located, chunk = item
        for part in (DATA, VALID):
            if (chunk, part) in located.column.chunks:
                reader.check(located.column.id, chunk, part)
        located.trusted[chunk] = True

    over_items(fresh, check, threads)


def searchable(reader: SegmentReader, knows: bool, commit_times: NDArray[np.int64], threads: int | None) -> Searchable:
    """The segment as a search reads it; with `knows` also when each of its rows became known."""
    ref = reader.ref
    key = (reader.info.table_id, ref.id, ref.crc, EVENT, ref.dead_version, ref.dead_count, int(knows))
    held = reader.views.get(key)
    if held is None:
        held = reader.views[key] = _searchable(reader, knows, commit_times, threads)
    return held


def _searchable(reader: SegmentReader, knows: bool, commit_times: NDArray[np.int64], threads: int | None) -> Searchable:
    columns = tuple(locate(reader, column_id) for column_id in _SEARCHED)
    dead = _dead_words(reader)
    some_dead = reader.ref.dead_count > 0
    bits = (0, -1, _ONE_CHUNK, *_how(int(some_dead), 0))
    cells = np.concatenate([*(column.cells for column in columns), np.array([bits], dtype=np.int64)])
    addresses = [*(column.addresses for column in columns), np.array([address_of(dead.data)], dtype=np.uint64)]
    cells[:, TABLE] = np.cumsum([0, *map(len, addresses[:-1])])
    codes, starts, _, created, commit = columns
    entity_codes, _ = reader.entity_index()
    zone = np.array([reader.rows, len(entity_codes), reader.info.event_min, reader.info.event_max], dtype=np.int64)
    # Most segments have these as one value each. Where not, all of them are checked at once.
    trust([(reader, located, None) for located in (codes, starts, created, *([commit] if knows else []))], threads)
    every_row_counts = (frozen(_NO_TIMES), frozen(_NO_TIMES))
    table = frozen(np.concatenate(addresses))
    found = Searchable(columns, frozen(cells), table, frozen(zone), dead, every_row_counts)
    if knows or some_dead:
        found.minima = _minima(found, commit_times, knows)
    return found


def _dead_words(reader: SegmentReader) -> NDArray[np.uint64]:
    """A bit for each row, 1 where it was replaced; a single word if none was."""
    dead = reader.dead()
    if not len(dead):
        return _ZERO
    if dead.min() < 0 or dead.max() >= reader.rows:
        raise CorruptionError(
            f"table {reader.info.table_id}, segment {reader.ref.id}: its list of replaced rows is out of range; "
            "run `featuredb verify`, and restore the file from a backup"
        )
    words = np.zeros(reader.rows // 64 + 1, dtype=np.uint64)
    np.bitwise_or.at(words.view(np.uint8), dead >> 3, np.left_shift(1, dead & 7).astype(np.uint8))
    return words


def _minima(
    found: Searchable, commit_times: NDArray[np.int64], knows: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The earliest time that any of each 64, and of each 4096, rows became known."""
    rows = int(found.zone[0])
    blocks = np.empty(-(-rows // 64), dtype=np.int64)
    kernels.block_minima(found.cells, found.addresses, frozen(commit_times), knows, rows, blocks)
    return frozen(blocks), frozen(np.minimum.reduceat(blocks, np.arange(0, len(blocks), 64)))
