"""Lists and vectors out: as numpy arrays, Python lists, pandas objects and Arrow lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, matrix
from featuredb.nested import elements

Flat = Callable[[Column], Any]


def vectors_to_numpy(column: Column) -> NDArray[Any]:
    """The vectors as an array of shape (n, length), masked where null; without nulls the column's own memory."""
    values = matrix(column)
    if column.dtype.item.name == "timestamp":
        values = values.view("M8[us]")
    if column.valid is None or column.valid.all():
        return values
    if values.dtype.kind in "fM":
        values = values.copy()
        values[~column.valid] = "NaT" if values.dtype.kind == "M" else "nan"
    return np.ma.MaskedArray(values, mask=np.repeat(~column.valid, column.dtype.length).reshape(values.shape))


def objects(column: Column, flat: Flat) -> NDArray[np.object_]:
    """Each row's elements as `flat` gives those of all, cut into rows; None where null."""
    items, bounds = elements(column)
    values = flat(items)
    if isinstance(values, np.ndarray):
        values.flags.writeable = False  # the rows may share the column's memory
    out = np.full(len(column), None, dtype=object)
    rows = np.fromiter(_cut(values, bounds), dtype=object, count=len(column))
    present = slice(None) if column.valid is None else column.valid
    out[present] = rows[present]
    return out


def _cut(values: Any, bounds: NDArray[np.int64]) -> Iterator[Any]:
    return map(values.__getitem__, starmap(slice, pairwise(bounds.tolist())))
