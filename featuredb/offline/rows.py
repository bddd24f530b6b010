"""Rows in the total order: sorting, dropping what a later row replaces, comparing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, concat
from featuredb.offline import kernels
from featuredb.schema import DTYPES, DType
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment import frozen
from featuredb.storage.segment_writer import Rows, is_uniform, uniform
from featuredb.threads import over_rows

_NO_TIMES = frozen(np.zeros(0, dtype=np.int64))


def live_dtypes(table: StoredTable) -> dict[int, DType]:
    """Feature id to dtype, of the features that the table has now."""
    return {table.feature_ids[f.name]: DTYPES[f.dtype] for f in table.definition.features}


def run_bounds(codes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each run of equal codes starts, and the length at the end."""
    if not len(codes):
        return np.zeros(1, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1, [len(codes)]])


def total_order(
    codes: NDArray[np.int32], event: NDArray[np.int64], created: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The order by (code, event, created, position), and which rows in it a later position replaces."""
    rows = sort_rows(Rows(codes, event, created, uniform(0, len(codes)), {}), keep_replaced=True)
    order = np.arange(len(codes)) if rows.places is None else rows.places.astype(np.int64)
    return order, _replaced(rows)


def sort_rows(rows: Rows, *, keep_replaced: bool = False) -> Rows:
    """The rows in total order, without those that a later one replaces; values are not moved, see `Rows.places`."""
    codes, event = frozen(np.ascontiguousarray(rows.codes)), frozen(np.ascontiguousarray(rows.event))
    created = _NO_TIMES if is_uniform(rows.created) else frozen(np.ascontiguousarray(rows.created))
    if kernels.ascending(codes, event, created):
        return rows
    bounds, codes, places, event_out, created_out = _by_code(codes, event, created)
    equal = _sort_by_time(bounds, places, event_out, created_out)
    commit = rows.commit if is_uniform(rows.commit) else rows.commit[places]
    places = places if rows.places is None else rows.places[places]
    created_out = created_out if len(created) else rows.created
    ordered = Rows(codes, event_out, created_out, commit, rows.columns, places)
    return ordered if keep_replaced or not equal else ordered.where(~_replaced(ordered))


def _by_code(
    codes: NDArray[np.int32], event: NDArray[np.int64], created: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """The stable order by code: bounds of its runs, and of each row code, place before, event and created timestamp."""
    rows, codes_max = len(codes), int(codes.max()) + 1
    if codes_max > 8 * rows + 1024:
        # Few rows of many entities: counting would walk the entities.
        places = np.argsort(codes, kind="stable").astype(np.int32)
        codes = codes[places]
        return run_bounds(codes), codes, places, event[places], created[places] if len(created) else created.copy()
    starts = np.zeros(codes_max + 1, dtype=np.int64)
    kernels.count_codes(codes, starts[1:])
    np.cumsum(starts, out=starts)
    cursors = starts.copy()
    places, event_out, created_out = np.empty(rows, dtype=np.int32), np.empty_like(event), np.empty_like(created)

    def scatter(start: int, stop: int) -> None:
        # Each thread reads all rows, and places those of some codes: two that write to one place would have to agree.
        low, high = np.searchsorted(starts[:-1], (start, stop)).tolist()
        kernels.scatter_rows(codes, event, created, low, high, cursors, places, event_out, created_out)

    over_rows(rows, scatter)
    ordered = np.repeat(np.arange(codes_max, dtype=np.int32), np.diff(starts))
    return starts, ordered, places, event_out, created_out


def _sort_by_time(
    bounds: NDArray[np.int64], places: NDArray[np.int32], event: NDArray[np.int64], created: NDArray[np.int64]
) -> int:
    """Sort each run of rows by time, in place; how many rows have the times of the one before."""
    longest = int(np.diff(bounds).max(initial=0))
    equal: list[int] = []

    def sort(start: int, stop: int) -> None:
        first, last = np.searchsorted(bounds[:-1], (start, stop)).tolist()
        scratch = [np.empty(longest if len(array) else 0, array.dtype) for array in (event, created, places)]
        equal.append(kernels.sort_runs(bounds[first : last + 1], event, created, places, *scratch))

    over_rows(len(places), sort)
    return sum(equal)


def _replaced(rows: Rows) -> NDArray[np.bool_]:
    """Which of the sorted rows have the key and timestamps of the one after."""
    codes, event, created = rows.codes, rows.event, rows.created
    replaced = np.zeros(len(codes), dtype=np.bool_)
    replaced[:-1] = (codes[1:] == codes[:-1]) & (event[1:] == event[:-1]) & (created[1:] == created[:-1])
    return replaced


def concat_rows(parts: Sequence[Rows]) -> Rows:
    """The parts one after the other; all have the same features, and their values in order."""
    return Rows(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.event for part in parts]),
        joined([part.created for part in parts]),
        joined([part.commit for part in parts]),
        {feature: concat([part.columns[feature] for part in parts]) for feature in parts[0].columns},
    )


def joined(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Timestamps or commits, one part after the other; uniform if all of them are, with one value."""
    values = {int(part[0]) for part in parts if is_uniform(part)}
    if len(values) == 1 and all(map(is_uniform, parts)):
        return uniform(values.pop(), sum(map(len, parts)))
    return np.concatenate(parts)


def distinct_codes(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """The codes of all parts, each of them ascending: ascending, none twice.

    Sorted, for `numpy.unique` hashes: 1 million codes of one part take it 0.3 s.
    """
    if len(parts) == 1:
        return parts[0]
    codes = np.sort(np.concatenate([np.zeros(0, dtype=np.int32), *parts]))
    return codes[run_bounds(codes)[:-1]]


def last_of_each(codes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Positions of the last row of each code in sorted `codes`."""
    return run_bounds(codes)[1:] - 1


def _same_variable(a: Column, b: Column, both: NDArray[np.bool_]) -> NDArray[np.bool_]:
    assert a.heap is not None
    assert b.heap is not None
    same = np.zeros(len(a), dtype=np.bool_)
    at = np.flatnonzero(both)
    left, right = a.heap.take(a.data[at]), b.heap.take(b.data[at])
    equal = np.diff(left.offsets) == np.diff(right.offsets)
    at = at[equal]
    left, right = left.take(np.flatnonzero(equal)), right.take(np.flatnonzero(equal))
    differing = np.zeros(len(left.data) + 1, dtype=np.int64)
    np.cumsum(left.data != right.data, out=differing[1:])
    same[at] = differing[left.offsets[1:]] == differing[left.offsets[:-1]]
    return same


def same_values(a: Column, b: Column) -> NDArray[np.bool_]:
    """Row by row, whether two columns hold the same: null equals null, NaN equals NaN, 0.0 is not -0.0."""
    a_valid = np.ones(len(a), np.bool_) if a.valid is None else a.valid
    b_valid = np.ones(len(b), np.bool_) if b.valid is None else b.valid
    both = a_valid & b_valid
    if a.dtype.is_variable:
        same = _same_variable(a, b, both)
    else:
        width = a.dtype.numpy.itemsize
        word = next(size for size in (8, 4, 2, 1) if width % size == 0)
        left, right = (np.ascontiguousarray(one.data).view(f"u{word}") for one in (a, b))
        equal = left == right
        same = both & (equal if word == width else equal.reshape(len(a), width // word).all(axis=1))
    return same | ~(a_valid | b_valid)


def same_rows(a: Mapping[int, Column], b: Mapping[int, Column], rows: int) -> NDArray[np.bool_]:
    """Row by row, whether all features hold the same."""
    same = np.ones(rows, dtype=np.bool_)
    for feature, column in a.items():
        same &= same_values(column, b[feature])
    return same
