"""Rows in the total order: sorting, dropping what a later row replaces, comparing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, concat
from featuredb.offline import kernels
from featuredb.storage.segment_writer import Rows


def order_by_code(codes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Stable order of `codes` (none negative)."""
    codes_max = int(codes.max()) + 1 if len(codes) else 0
    if codes_max > 8 * len(codes) + 1024:
        # Few rows of many entities: counting would walk the entities.
        return np.argsort(codes, kind="stable")
    order = np.empty(len(codes), dtype=np.int64)
    kernels.counting_sort(codes, np.zeros(codes_max + 1, dtype=np.int64), order)
    return order


def run_bounds(codes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each run of equal codes starts, and the length at the end."""
    if not len(codes):
        return np.zeros(1, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1, [len(codes)]])


def total_order(
    codes: NDArray[np.int32], event: NDArray[np.int64], created: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The order by (code, event, created, position), and which rows in it a later position replaces."""
    order = order_by_code(codes)
    codes, event, created = codes[order], event[order], created[order]
    scratch = (np.empty_like(event), np.empty_like(created), np.empty_like(order))
    kernels.sort_runs(run_bounds(codes), event, created, order, *scratch)
    replaced = np.zeros(len(codes), dtype=np.bool_)
    replaced[:-1] = (codes[1:] == codes[:-1]) & (event[1:] == event[:-1]) & (created[1:] == created[:-1])
    return order, replaced


def sort_rows(rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
    """The rows in total order without those replaced, and the positions they came from."""
    order, replaced = total_order(rows.codes, rows.event, rows.created)
    if replaced.any():
        order = order[~replaced]
    return rows.take(order), order


def concat_rows(parts: Sequence[Rows]) -> Rows:
    """The parts one after the other; all have the same features."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.event for part in parts]),
        np.concatenate([part.created for part in parts]),
        np.concatenate([part.commit for part in parts]),
        {feature: concat([part.columns[feature] for part in parts]) for feature in parts[0].columns},
    )


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
