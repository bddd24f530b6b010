"""Rows of a segment by key and timestamps, or by position: what ingest and `verify` compare others with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featuredb.offline import kernels
from featuredb.offline.chunks import chunks_to_search, event_chunk, system_chunk
from featuredb.offline.search import Found
from featuredb.storage.segment import CREATED, SegmentReader, frozen
from featuredb.storage.segment_writer import Rows


def at_positions(reader: SegmentReader, positions: NDArray[np.int32]) -> Found:
    """Rows of one segment at known positions, as a search would have found them."""
    rows = len(positions)
    no_times = np.zeros(0, dtype=np.int64)
    return Found([reader], np.arange(rows), np.zeros(rows, dtype=np.int32), positions, no_times, no_times)


def find_stored(reader: SegmentReader, rows: Rows, dead: NDArray[np.int32]) -> NDArray[np.int32]:
    """Position in the segment of the live row with the key and timestamps of each of `rows`, or -1."""
    out = np.full(len(rows), -1, dtype=np.int32)
    info = reader.info
    if (
        info.code_max < rows.codes[0]
        or info.code_min > rows.codes[-1]
        or info.event_max < rows.event.min()
        or info.event_min > rows.event.max()
    ):
        return out
    index = reader.entity_index()
    for chunk, first, begin, end in chunks_to_search(reader, index, rows.codes):
        part = slice(begin, end)
        kernels.find_rows(
            frozen(rows.codes[part]),
            frozen(rows.event[part]),
            frozen(np.ascontiguousarray(rows.created[part])),
            *index,
            first,
            event_chunk(reader, chunk),
            system_chunk(reader, CREATED, chunk),
            out[part],
        )
    if len(dead):
        out[in_sorted(out, dead)] = -1
    return out


def in_sorted(positions: NDArray[np.int32], held: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether each position is in the sorted `held`: a bisection each, so that a few cost little."""
    if not len(held):
        return np.zeros(len(positions), dtype=np.bool_)
    place = np.minimum(np.searchsorted(held, positions), len(held) - 1)
    found: NDArray[np.bool_] = held[place] == positions
    return found
