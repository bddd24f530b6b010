"""Lists and vectors in: from Python, numpy and Arrow to flat elements, cast as scalars are, and packed.

An element that is null, or cannot be cast, rejects its row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, null_column, vectors, zeroed
from featuredb.errors import Problem
from featuredb.frames.arrays import import_pyarrow
from featuredb.frames.casts import Mask, absent, lift
from featuredb.frames.objects import kind_of
from featuredb.frames.outcome import Bad, Outcome, Show, Target, short
from featuredb.limits import VALUE_BYTES_MAX
from featuredb.nested import encode_lists
from featuredb.schema import DType

Convert = Callable[[Any, Target], Outcome]

NULL_ELEMENT = "has a null element; a list or vector may be null, its elements may not"
_LIST_TYPES = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
_SCALAR_KINDS = ("null", "bool", "int", "float", "str", "bytes", "numpy.datetime64", "datetime", "pandas.Timestamp")
_SEQUENCE = "a sequence"


@dataclass(frozen=True, slots=True)
class _Ragged:
    """Elements of rows: `items` holds those of all rows in order; null rows have none."""

    items: Any
    lengths: NDArray[np.int64]
    valid: Mask
    show: Show


def is_list_type(kind: Any) -> bool:
    """Whether an Arrow type is a list of some kind."""
    return str(kind).partition("<")[0] in _LIST_TYPES


# --- Python objects ---------------------------------------------------------------------------------
def from_sequences(values: Sequence[Any], target: Target, convert: Convert, nan_is_null: bool) -> Outcome:
    """Objects of which each is null, a list, a tuple or an array of one dimension."""
    types = list(map(type, values))
    kinds = {one: _kind(one) for one in set(types)}
    array = np.fromiter(values, dtype=object, count=len(types))
    valid = np.zeros(len(types), dtype=np.bool_)
    bad: list[Bad] = []

    def show(row: int) -> str:
        return short(values[row])

    for kind in sorted(set(kinds.values()) - {"null"}):
        mask = np.fromiter((kinds[one] == kind for one in types), dtype=np.bool_, count=len(types))
        if kind == _SEQUENCE:
            valid |= mask
            continue
        if kind == "float" and nan_is_null:
            mask[mask] = ~np.isnan(array[mask].astype(np.float64))
        if mask.any():
            what = "text" if target.text else kind
            bad.append(Bad(target.describe(what), np.flatnonzero(mask), show))
    if target.text and bad:
        reason = f"a text file cannot hold {target.dtype}; load it from Parquet, Arrow or a dataframe"
        row = int(bad[0].rows[0])
        return Outcome(null_column(target.dtype, len(types)), problem=Problem(reason, target.name, row, show(row)))
    if bad and not valid.any():
        first = min(bad, key=lambda one: int(one.rows[0]))
        row = int(first.rows[0])
        problem = Problem(first.reason, target.name, row, show(row))
        return Outcome(null_column(target.dtype, len(types)), problem=problem)
    present = array[valid]
    dimensions = _dimensions(present)
    if np.any(dimensions != 1):
        wrong = np.flatnonzero(valid)[dimensions != 1]
        bad.append(Bad("is an array of other than one dimension; give a list or an array of one", wrong, show))
        valid[wrong] = False
        present = present[dimensions == 1]
    lengths = np.zeros(len(types), dtype=np.int64)
    lengths[valid] = np.fromiter(map(len, present), dtype=np.int64, count=len(present))
    return _pack(_Ragged(_joined(present.tolist()), lengths, valid, show), target, convert, bad)


def _kind(one: Any) -> str:
    if issubclass(one, list | tuple | np.ndarray):
        return _SEQUENCE
    kind = kind_of(one)
    return _SEQUENCE if kind not in _SCALAR_KINDS and hasattr(one, "__array__") and hasattr(one, "__len__") else kind


def _dimensions(present: NDArray[np.object_]) -> NDArray[np.int64]:
    flat = map(lambda row: getattr(row, "ndim", 1), present)  # noqa: C417 (called from C)
    return np.fromiter(flat, dtype=np.int64, count=len(present))


def _joined(rows: list[Any]) -> Any:
    """The elements of all rows: one array if they are arrays of one dtype, else a list."""
    types = set(map(type, rows))
    if types == {np.ndarray}:
        dtypes = {row.dtype for row in rows}
        if len(dtypes) == 1 and next(iter(dtypes)).kind != "O":
            return np.concatenate(rows)
    if types - {list, tuple, np.ndarray}:  # masked arrays hold None where masked; others are arrays or as good
        rows = [row if isinstance(row, list | tuple) else _elements(row) for row in rows]
    return list(chain.from_iterable(rows))


def _elements(row: Any) -> Any:
    return row.tolist() if isinstance(row, np.ma.MaskedArray) else np.asarray(row)


# --- numpy ------------------------------------------------------------------------------------------
def from_array(
    values: NDArray[Any], target: Target, convert: Convert, nan_is_null: bool, what: str | None = None
) -> Outcome:
    """An array of two dimensions, or of objects as for `from_sequences`."""
    if values.ndim == 2:
        return _from_matrix(values, target, convert)
    if values.ndim != 1:
        return target.unusable(len(values) if values.ndim else 0, f"a numpy array of {values.ndim} dimensions")
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    data = np.asarray(values)
    if data.dtype.kind == "O":
        if masked is not None:
            data = data.copy()
            data[masked] = None
        return from_sequences(data.tolist(), target, convert, nan_is_null)
    null = np.zeros(len(data), dtype=np.bool_) if masked is None else masked
    missing = absent(data, nan_is_null)
    null = null if missing is None else null | missing
    if null.all():
        return Outcome(null_column(target.dtype, len(data)))
    row = int((~null).argmax())
    return target.refuse(len(data), what or str(data.dtype), row, short(data[row].item()))


def _from_matrix(values: NDArray[Any], target: Target, convert: Convert) -> Outcome:
    rows, length = values.shape
    refused = _other_length(length, rows, target)
    if refused is not None:
        return refused
    valid: Mask = np.ones(rows, dtype=np.bool_)
    if isinstance(values, np.ma.MaskedArray) and length:
        valid = ~np.all(np.ma.getmaskarray(values), axis=1)
    items = values.reshape(-1) if valid.all() else values[valid].reshape(-1)
    lengths = np.where(valid, length, 0).astype(np.int64)
    return _pack(_Ragged(items, lengths, valid, lambda row: short(values[row].tolist())), target, convert, [])


def _other_length(length: int, rows: int, target: Target) -> Outcome | None:
    """The problem with all of a column whose rows have one length, which is not the vector's."""
    if not target.dtype.is_vector or length == target.dtype.length or not rows:
        return None
    reason = f"has {length} elements in each row, but {target.dtype} is needed; give {target.dtype.length}"
    return Outcome(null_column(target.dtype, rows), problem=Problem(reason, target.name))


# --- Arrow ------------------------------------------------------------------------------------------
def polars_to_arrow(values: Any) -> Any:
    """A Polars series as an Arrow array; slices of arrays of fixed size too, which Polars 1.0 gives a wrong offset."""
    arrow = values.to_arrow()
    size = getattr(arrow.type, "list_size", None)
    if size is not None and hasattr(arrow, "offset") and len(arrow.values) < (arrow.offset + len(arrow)) * size:
        return values.arr.to_list().to_arrow()
    return arrow


def from_arrow_lists(values: Any, target: Target, convert: Convert) -> Outcome:
    """An Arrow array of lists, large lists, list views or lists of fixed size, not all of them null."""
    pa = import_pyarrow("reading Arrow, Polars or Parquet data")
    kind, rows = values.type, len(values)
    if "view" in str(kind).partition("<")[0]:
        plain = pa.large_list(kind.value_type)
        try:
            values = values.cast(plain)
        except pa.ArrowNotImplementedError:
            values = pa.array(values.to_pylist(), plain)
    valid = np.ones(rows, dtype=np.bool_)
    if values.null_count:
        valid = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind):
        refused = _other_length(kind.list_size, rows, target)
        if refused is not None:
            return refused
        offsets = (values.offset + np.arange(rows + 1)) * kind.list_size
    else:
        offsets = values.offsets.to_numpy()
    # Not `values.flatten()`: that of pyarrow 16 aborts the process for some slices with nulls.
    spans = np.diff(offsets)
    items = values.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    lengths = np.where(valid, spans, 0).astype(np.int64)
    if lengths.sum() != len(items):
        items = items.filter(pa.array(np.repeat(valid, spans)))
    return _pack(_Ragged(items, lengths, valid, lambda row: short(values[row].as_py())), target, convert, [])


# --- all of them ------------------------------------------------------------------------------------
def _pack(found: _Ragged, target: Target, convert: Convert, bad: list[Bad]) -> Outcome:
    """The column of the rows whose elements are all of the item's dtype, none null, and as many as needed."""
    dtype, rows = target.dtype, len(found.lengths)
    outcome = convert(found.items, Target(target.name, dtype.item, False))
    bounds = np.cumsum(found.lengths)
    if outcome.problem is not None:
        return Outcome(null_column(dtype, rows), problem=_of_element(outcome.problem, bounds))
    items = outcome.column
    present = found.valid.copy()

    def reject(reason: str, wrong: NDArray[Any], show: Show) -> None:
        mask = lift(rows, wrong) & present
        if mask.any():
            bad.append(Bad(reason, np.flatnonzero(mask), show))
            present[mask] = False

    if dtype.is_vector:
        other = found.valid & (found.lengths != dtype.length)
        reject(f"has another number of elements than {dtype.length}", other, lambda row: _counted(found, row))
    null = np.zeros(len(items), dtype=np.bool_) if items.valid is None else ~items.valid
    for one in outcome.bad:
        null[one.rows] = False
        reject(f"has an element that {one.reason}", _rows_of(one.rows, bounds), _show_element(one, bounds))
    reject(NULL_ELEMENT, _rows_of(np.flatnonzero(null), bounds), found.show)
    lengths = found.lengths
    if not np.array_equal(present, found.valid):
        items = items.take(np.repeat(present, lengths))
        lengths = np.where(present, lengths, 0)
    items = Column(items.dtype, items.data, None, items.heap)
    if dtype.is_vector:
        return Outcome(_vector_column(dtype, items, present), bad)
    heap = encode_lists(items, lengths)
    long = np.flatnonzero(np.diff(heap.offsets) > VALUE_BYTES_MAX)
    reject(
        f"takes more than {VALUE_BYTES_MAX} bytes; store where it is instead", long, lambda row: _counted(found, row)
    )
    if not present.any():
        return Outcome(null_column(dtype, rows), bad)
    valid = None if present.all() else present
    return Outcome(Column(dtype, zeroed(np.arange(rows, dtype=dtype.numpy), valid), valid, heap), bad)


def _vector_column(dtype: DType, items: Column, present: Mask) -> Column:
    data = vectors(dtype, items.data)
    if present.all():
        return Column(dtype, data)
    spread = np.zeros(len(present), dtype=dtype.numpy)
    spread[present] = data
    return Column(dtype, spread, present)


def _rows_of(elements: NDArray[Any], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each element; `bounds` says where the elements of each row end."""
    return np.searchsorted(bounds, elements, side="right")


def _counted(found: _Ragged, row: int) -> str:
    return f"{found.show(row)} ({found.lengths[row]} elements)"


def _show_element(bad: Bad, bounds: NDArray[np.int64]) -> Show:
    """Shows the first element of a row that is bad, and where in the row it stands."""

    def show(row: int) -> str:
        start = int(bounds[row - 1]) if row else 0
        element = int(bad.rows[np.searchsorted(bad.rows, start)])
        return f"{bad.show(element)} (element {element - start})"

    return show


def _of_element(problem: Problem, bounds: NDArray[np.int64]) -> Problem:
    """The problem with all elements as one of the column, at the first row concerned."""
    row = None if problem.row is None else int(_rows_of(np.array([problem.row]), bounds)[0])
    return Problem(f"has an element that {problem.reason}", problem.column, row, problem.value)
