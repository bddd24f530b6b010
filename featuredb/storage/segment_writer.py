"""Writing segments: rows in memory to checksummed column chunks. FORMAT.md has the bytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column
from featuredb.schema import DTYPES
from featuredb.storage.encode import Plan, plan
from featuredb.storage.env import WriteTxn
from featuredb.storage.manifest import (
    SegmentRef,
    chunk_prefix,
    dead_key,
    drop_dead,
    segment_key,
    stage_segment,
)
from featuredb.storage.records import pack
from featuredb.storage.segment import (
    CODES,
    COMMIT,
    CREATED,
    EVENT,
    STARTS,
    SYSTEM_DTYPES,
    ColumnInfo,
    SegmentInfo,
    checksum,
)
from featuredb.threads import in_order, over_items, ranges


def uniform(value: int, rows: int) -> NDArray[np.int64]:
    """`rows` times the same value, which takes no memory."""
    return np.broadcast_to(np.int64(value), rows)


def is_uniform(values: NDArray[np.int64]) -> bool:
    """Whether all are the same, as `uniform` made them."""
    return len(values) > 0 and values.strides == (0,)


@dataclass(frozen=True, slots=True)
class Rows:
    """History rows in memory, sorted by (code, event, created): what a segment is written from.

    ``codes`` is int32, ``event``, ``created`` (`ABSENT_US` where absent) and ``commit`` int64, all of
    shape (n,); ``columns`` maps feature ids to columns of n values. With ``places`` (int32) the values of row `i`
    are those of row ``places[i]`` of the columns, which stay as they came until they are written.
    """

    codes: NDArray[np.int32]
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    commit: NDArray[np.int64]
    columns: Mapping[int, Column]
    places: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def where(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows of the mask, their values where they are."""
        places = np.flatnonzero(mask).astype(np.int32) if self.places is None else self.places[mask]
        return self._at(mask, self.columns, places)

    def take(self, rows: NDArray[Any] | slice) -> Rows:
        """The rows at these positions (or of a mask or slice), with columns of just these."""
        at = rows if self.places is None else self.places[rows]
        return self._at(rows, {name: column.take(at) for name, column in self.columns.items()}, None)

    def gathered(self) -> Rows:
        """The rows with their values in order."""
        return self if self.places is None else self.take(slice(None))

    def _at(self, rows: NDArray[Any] | slice, columns: Mapping[int, Column], places: NDArray[np.int32] | None) -> Rows:
        created, commit = _taken(self.created, rows), _taken(self.commit, rows)
        return Rows(self.codes[rows], self.event[rows], created, commit, columns, places)


def _taken(values: NDArray[Any], rows: NDArray[Any] | slice) -> NDArray[Any]:
    """``values[rows]``; what is uniform stays so."""
    if not is_uniform(values) or isinstance(rows, slice):
        return values[rows]
    return uniform(int(values[0]), int(np.count_nonzero(rows)) if rows.dtype == np.bool_ else len(rows))


def _pack_info(key: bytes, info: SegmentInfo) -> bytes:
    columns = []
    for column in info.columns.values():
        chunks = [[*at, *ref] for at, ref in column.chunks.items()]
        facts = [column.id, column.dtype.name, column.encoding, column.chunk_rows, column.null_count]
        columns.append([*facts, column.width, column.base, column.exponent, chunks])
    zone = [info.rows, info.event_min, info.event_max, info.code_min, info.code_max]
    return pack(key, [zone, columns])


class SegmentEncoder:
    """Sorted `rows` (at least one, at most `SEGMENT_ROWS_MAX`) as the entries of a segment: chunks, then descriptor.

    Apart from any transaction, so that one may end while other threads encode what the next will write.
    """

    def __init__(self, table_id: int, segment_id: int, rows: Rows) -> None:
        self._table_id, self._id, self._rows = table_id, segment_id, rows
        starts = np.flatnonzero(np.concatenate([[True], rows.codes[1:] != rows.codes[:-1]]))
        system: dict[int, NDArray[Any]] = {
            EVENT: rows.event,
            CREATED: rows.created,
            COMMIT: rows.commit,
            CODES: rows.codes[starts],
            STARTS: np.append(starts, len(rows)).astype(np.int32),
        }
        planned: list[tuple[int, Column, NDArray[np.int32] | None]] = [
            (key, Column(DTYPES[SYSTEM_DTYPES[key]], values), None) for key, values in system.items()
        ]
        planned += [(key, column, rows.places) for key, column in rows.columns.items()]
        self._parallel = len(ranges(len(rows))) > 1
        plans: dict[int, Plan] = {}
        over_items(planned, lambda given: plans.update({given[0]: plan(*given)}), None if self._parallel else 1)
        self._plans = [plans[key] for key, _, _ in planned]
        self._chunks: dict[int, dict[tuple[int, int], tuple[int, int]]] = {key: {} for key in plans}
        self._nulls = dict.fromkeys(plans, 0)

    def chunks(self) -> Iterator[tuple[bytes, memoryview]]:
        """Keys and values of all chunks; to be exhausted before `descriptor`."""
        jobs = [(one, chunk) for one in self._plans for chunk in one.chunks]
        tasks = (partial(one.encode, chunk) for one, chunk in jobs)
        encoded = in_order(tasks) if self._parallel else (task() for task in tasks)
        prefix = chunk_prefix(self._table_id, self._id)
        for (one, _), (parts, nulls) in zip(jobs, encoded, strict=True):
            self._nulls[one.id] += nulls
            for part in parts:
                self._chunks[one.id][part.chunk, part.part] = (len(part.raw), part.checksum)
                key = prefix + one.id.to_bytes(4, "big") + part.chunk.to_bytes(4, "big") + bytes([part.part])
                yield key, part.raw

    def descriptor(self) -> tuple[bytes, bytes, SegmentRef]:
        """Key and value of the descriptor, and the segment as manifests name it."""
        rows = self._rows
        columns = {one.id: self._info(one) for one in self._plans}
        zone = (int(rows.event.min()), int(rows.event.max()), int(rows.codes[0]), int(rows.codes[-1]))
        key = segment_key(self._table_id, self._id)
        raw = _pack_info(key, SegmentInfo(self._table_id, self._id, len(rows), *zone, columns))
        return key, raw, SegmentRef(self._id, zlib.crc32(raw), len(rows))

    def _info(self, one: Plan) -> ColumnInfo:
        packing = one.packing
        nulls = one.rows if one.encoding == "null" else self._nulls[one.id]
        facts = (one.encoding, one.chunk_rows, nulls, packing.width, packing.base, packing.exponent)
        return ColumnInfo(one.id, one.column.dtype, *facts, self._chunks[one.id])


def write_segment(txn: WriteTxn, table_id: int, segment_id: int, rows: Rows) -> SegmentRef:
    """Write sorted `rows` as a segment, in one transaction."""
    encoder = SegmentEncoder(table_id, segment_id, rows)
    for key, raw in encoder.chunks():
        txn.put(key, raw)
    key, descriptor, ref = encoder.descriptor()
    txn.put(key, descriptor)
    return ref


Entries = list[tuple[bytes, bytes | memoryview]]


def put_staged(txn: WriteTxn, table_id: int, segment_id: int, entries: Entries, until_us: int | None = None) -> None:
    """Write some of the entries of a staged segment; `until_us` as for `stage_segment`."""
    stage_segment(txn, table_id, segment_id, until_us)
    for key, raw in entries:
        txn.put(key, raw)


def stage_rows(
    table_id: int, segment_id: int, rows: Rows, write: Callable[[Entries], None], nbytes_max: int
) -> SegmentRef:
    """Write sorted `rows` as a staged segment, in several transactions: while one ends, the next is encoded.

    Each is a call of `write`, with entries of about `nbytes_max` bytes for `put_staged`.
    """
    encoder = SegmentEncoder(table_id, segment_id, rows)
    waiting: Entries = []
    nbytes = 0
    for key, raw in encoder.chunks():
        waiting.append((key, raw))
        nbytes += len(raw)
        if nbytes >= nbytes_max:
            write(waiting)
            waiting, nbytes = [], 0
    key, descriptor, ref = encoder.descriptor()
    write([*waiting, (key, descriptor)])
    return ref


def write_dead(txn: WriteTxn, table_id: int, ref: SegmentRef, positions: NDArray[np.int32]) -> SegmentRef:
    """The segment with the rows at `positions` (sorted, all that are dead) marked as replaced."""
    if ref.dead_count:
        drop_dead(txn, table_id, ref.id, ref.dead_version)
    version = ref.dead_version + 1
    raw = positions.astype("<i4").tobytes()
    txn.put(dead_key(table_id, ref.id, version), raw)
    return SegmentRef(ref.id, ref.crc, ref.rows, version, len(positions), checksum(raw))
