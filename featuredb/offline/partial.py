"""Partial rows: features that the data lacks are filled from the stored row that precedes each row.

Stored means: as of the start of the call. Rows of the call itself never supply values, and need not: they all
lack the same features, so whatever one of them could supply came from a stored row that the other one finds too.
That also makes the outcome independent of how the data is cut into batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Heap
from featuredb.offline import kernels
from featuredb.offline.chunks import chunks_to_search, event_chunk, system_chunk
from featuredb.offline.gather import Gatherer
from featuredb.offline.search import Found, Query, pruned
from featuredb.online.index import OnlineIndex
from featuredb.schema import DType
from featuredb.storage.env import ReadTxn
from featuredb.storage.segment import CREATED, SegmentReader, frozen
from featuredb.storage.segment_writer import Rows


def search_before(readers: Sequence[SegmentReader], rows: Rows) -> Found:
    """For each of `rows`, the greatest live row of its key up to its (event, created), that one included."""
    places = np.arange(len(rows))
    found = Found.nothing(readers, places)
    if not len(rows):
        return found
    query = Query(rows.codes, places, rows.event)
    for number, reader in enumerate(readers):
        if not pruned(reader, query, query.span_us):
            _search_segment(number, reader, rows, found)
    return found


def _search_segment(number: int, reader: SegmentReader, rows: Rows, found: Found) -> None:
    index = reader.entity_index()
    dead = reader.dead()
    for chunk, first, begin, end in chunks_to_search(reader, index, rows.codes):
        event = event_chunk(reader, chunk)
        part = slice(begin, end)
        kernels.find_before(
            frozen(rows.codes[part]),
            frozen(rows.event[part]),
            frozen(np.ascontiguousarray(rows.created[part])),
            *index,
            first,
            event,
            system_chunk(reader, CREATED, chunk),
            _dead_flags(dead, first, len(event)),
            number,
            found.event[part],
            found.created[part],
            found.segment[part],
            found.position[part],
        )


def _dead_flags(dead: NDArray[np.int32], first: int, rows: int) -> NDArray[np.bool_]:
    """Which of the `rows` from position `first` on are in the sorted `dead`; empty if that is."""
    flags = np.zeros(rows if len(dead) else 0, dtype=np.bool_)
    if len(dead):
        flags[dead[np.searchsorted(dead, first) : np.searchsorted(dead, first + rows)] - first] = True
    return flags


def fill_from_history(readers: Sequence[SegmentReader], rows: Rows, dtypes: Mapping[int, DType]) -> Rows:
    """The sorted `rows` with every feature of `dtypes`; those they lack are filled from the segments of `readers`."""
    gatherer = Gatherer(search_before(readers, rows))
    columns = {
        number: rows.columns[number] if number in rows.columns else gatherer.feature(number, dtype)
        for number, dtype in dtypes.items()
    }
    return Rows(rows.codes, rows.event, rows.created, rows.commit, columns)


def fill_from_online(txn: ReadTxn, index: OnlineIndex, keys: Heap, rows: Rows) -> Rows:
    """As `fill_from_history`, for one row of each of `keys`, from their online rows.

    Whether that is earlier does not matter: the row to fill loses to a later one, and is never seen.
    """
    numbers = index.table.feature_ids
    lacking = [name for name, number in numbers.items() if number not in rows.columns]
    stored = index.read(txn, keys, lacking)
    filled = {numbers[name]: stored.columns[name] for name in lacking}
    columns = {
        number: rows.columns[number] if number in rows.columns else filled[number] for number in numbers.values()
    }
    return Rows(rows.codes, rows.event, rows.created, rows.commit, columns)
