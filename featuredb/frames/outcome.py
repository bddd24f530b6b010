"""What became of one column: values cast, rows rejected, or one problem with all of it.

Shared by `convert` (lists, numpy, pandas) and `from_arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, null_column, zeroed
from featuredb.errors import Problem
from featuredb.frames.casts import Cast, Mask, absent, cast_array, lift
from featuredb.frames.objects import cast_objects, kind_of
from featuredb.schema import DType

_SHOWN_CHARS_MAX = 80

Show = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Bad:
    reason: str
    rows: NDArray[np.int64]
    show: Show


@dataclass(frozen=True, slots=True)
class Outcome:
    """A `Converted` in the making: a cheap one, as nothing is shown before it is known what is reported."""

    column: Column
    bad: list[Bad] = field(default_factory=list)
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    dtype: DType
    text: bool
    distinct: bool = True

    def refuse(self, rows: int, what: str, row: int | None = None, value: str | None = None) -> Outcome:
        problem = Problem(self.describe(what), self.name, row, value)
        return Outcome(null_column(self.dtype, rows), problem=problem)

    def unusable(self, rows: int, what: str) -> Outcome:
        reason = f"is {what}, not a sequence of values; give a list, a Series or an array of one dimension"
        return Outcome(null_column(self.dtype, rows), problem=Problem(reason, self.name))

    def describe(self, what: str) -> str:
        return f"is of type {what}, but {self.dtype} is needed; {_remedy(what, self.dtype)}"


def from_objects(values: Sequence[Any], target: Target, nan_is_null: bool) -> Outcome:
    def show(row: int) -> str:
        return short(values[row])

    cast = cast_objects(values, target.dtype, target.describe, text=target.text, nan_is_null=nan_is_null)
    if cast is not None:
        return finish(cast, None, target.dtype, show)
    row, kind = next(
        (row, kind)
        for row, kind in enumerate(map(kind_of, map(type, values)))
        if kind != "null" and not (nan_is_null and kind == "float" and np.isnan(values[row]))
    )
    return target.refuse(len(values), kind, row, show(row))


def from_numpy(
    values: NDArray[Any], target: Target, valid: Mask | None = None, nan_is_null: bool = False, what: str | None = None
) -> Outcome:
    if values.ndim != 1:
        return target.unusable(len(values) if values.ndim else 0, f"a numpy array of {values.ndim} dimensions")
    if values.dtype.kind == "V":
        return target.refuse(len(values), str(values.dtype))
    if isinstance(values, np.ma.MaskedArray):
        valid = None if not np.ma.is_masked(values) else ~np.ma.getmaskarray(values)
        values = values.data
    if values.dtype.kind == "T":  # numpy's variable-width strings; a NaN among them marks a missing one
        values, nan_is_null = values.astype(object), True
    if values.dtype.kind == "O" or (target.text and values.dtype.kind == "U"):
        objects = values.astype(object)
        if valid is not None:
            objects[~valid] = None
        return from_objects(objects.tolist(), target, nan_is_null)
    cast = None if target.text else cast_array(values, target.dtype, nan_is_null)

    def show(row: int) -> str:
        if values.dtype.kind != "M":
            return short(values[row].item())
        try:
            return str(values[row])
        except OverflowError:  # beyond what numpy can write, since its version 2.5
            return f"{values[row].astype(np.int64)} ({values.dtype})"

    if cast is not None:
        return finish(cast, valid, target.dtype, show)
    present = np.ones(len(values), dtype=np.bool_) if valid is None else valid.copy()
    null = absent(values, nan_is_null)
    if null is not None:
        present &= ~null
    if not present.any():
        return Outcome(null_column(target.dtype, len(values)))
    row = int(present.argmax())
    return target.refuse(len(values), what or str(values.dtype), row, show(row))


def from_dictionary(codes: Any, valid: Mask | None, convert: Callable[[], Outcome], target: Target) -> Outcome:
    """A categorical: its dictionary converted once, then taken by code; a code of -1 is null."""
    codes = np.asarray(codes)
    if codes.dtype.kind == "i" and len(codes) and codes.min() < 0:
        valid = (codes >= 0) if valid is None else valid & (codes >= 0)
    if len(codes) == 0 or (valid is not None and not valid.any()):
        return Outcome(null_column(target.dtype, len(codes)))
    entries = convert()
    places = codes if valid is None else np.where(valid, codes, np.zeros(1, dtype=codes.dtype))
    if entries.problem is not None:
        return _problem_in(places, valid, entries.problem, target)
    column = entries.column.take(places)
    if valid is not None:
        present = valid if column.valid is None else column.valid & valid
        column = Column(column.dtype, zeroed(column.data, present), present, column.heap)
    bad = []
    for found in entries.bad:
        hit = lift(len(entries.column), found.rows)[places]
        if valid is not None:
            hit &= valid
        if hit.any():
            bad.append(Bad(found.reason, np.flatnonzero(hit), _through(found.show, codes)))
    return Outcome(column, bad)


def _problem_in(places: NDArray[Any], valid: Mask | None, problem: Problem, target: Target) -> Outcome:
    """The problem of a whole dictionary, at the first row that holds the value it names."""
    hit = places == problem.row
    if valid is not None:
        hit &= valid
    row = int(hit.argmax()) if hit.any() else None
    shown = Problem(problem.reason, target.name, row, None if row is None else problem.value)
    return Outcome(null_column(target.dtype, len(places)), problem=shown)


def _through(show: Show, codes: NDArray[Any]) -> Show:
    return lambda row: show(int(codes[row]))


def finish(cast: Cast, valid: Mask | None, dtype: DType, show: Show) -> Outcome:
    """A cast as a column that is null where `valid` is not, the cast is null, or a value was bad."""
    bad = []
    present = valid
    if cast.null is not None:
        present = ~cast.null if present is None else present & ~cast.null
    for reason, mask in cast.bad:
        rows = np.flatnonzero(mask if valid is None else mask & valid)
        if len(rows):
            bad.append(Bad(reason, rows, show))
            present = ~mask if present is None else present & ~mask
    data = np.ascontiguousarray(cast.data, dtype=dtype.numpy)
    if present is not None and present.all():
        present = None
    return Outcome(Column(dtype, zeroed(data, present), present, cast.heap), bad)


def short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARS_MAX else shown[: _SHOWN_CHARS_MAX - 3] + "..."


def _remedy(what: str, dtype: DType) -> str:
    lowered = what.lower()
    if dtype.is_vector:
        return f"give an array of {dtype.length} elements in each row, or one array of two dimensions"
    if dtype.is_list:
        return "give a list or an array in each row"
    if dtype.name == "timestamp" and "int" in lowered:
        return "convert it with pandas.to_datetime(values, unit=...), as the unit of integers is not known"
    if dtype.name == "timestamp":
        return "convert it to datetimes, for example with pandas.to_datetime(values)"
    if dtype.name == "string" and ("bytes" in lowered or "binary" in lowered or "|s" in lowered):
        return "decode it, for example with .str.decode('utf-8')"
    if dtype.name == "string":
        return "convert it to str, for example with .astype(str)"
    if dtype.name == "bytes":
        return "convert it to bytes, for example with .str.encode('utf-8')"
    if dtype.name == "bool" and "str" in lowered:
        return "convert it to True and False, for example with .map({'true': True, 'false': False})"
    if dtype.name == "bool":
        return "convert it to True and False, for example with .astype(bool)"
    if "str" in lowered or "<u" in lowered:
        return "convert it to numbers, for example with pandas.to_numeric(values)"
    return f"convert it, for example with .astype({dtype.name!r})"
