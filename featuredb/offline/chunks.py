"""Chunks of a segment one by one, for searches in its total order: of a row itself, or of the row before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featuredb.storage.segment import EVENT, SegmentReader, frozen


def chunks_to_search(
    reader: SegmentReader, index: tuple[NDArray[np.int32], NDArray[np.int32]], codes: NDArray[np.int32]
) -> list[tuple[int, int, int, int]]:
    """Chunks that hold rows of any of the sorted `codes`: (chunk, first row, range of `codes`)."""
    segment_codes, starts = index
    found = []
    for chunk, (first, stop) in enumerate(reader.chunk_bounds(EVENT)):
        low = segment_codes[np.searchsorted(starts, first, side="right") - 1]
        high = segment_codes[np.searchsorted(starts, stop - 1, side="right") - 1]
        begin = int(np.searchsorted(codes, low, side="left"))
        end = int(np.searchsorted(codes, high, side="right"))
        if begin < end:
            found.append((chunk, first, begin, end))
    return found


def system_chunk(reader: SegmentReader, column_id: int, chunk: int) -> NDArray[np.int64]:
    """A chunk of a system column, one value long if it is constant."""
    values = reader.system(column_id, chunk)
    return frozen(np.array([values], dtype=np.int64) if isinstance(values, int) else values)


def event_chunk(reader: SegmentReader, chunk: int) -> NDArray[np.int64]:
    """A chunk of event timestamps, always at full length."""
    values = reader.system(EVENT, chunk)
    if isinstance(values, int):
        first, stop = reader.chunk_bounds(EVENT)[chunk]
        values = np.full(stop - first, values, dtype=np.int64)
    return frozen(values)
