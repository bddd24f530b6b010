"""Any array-like to a `Column`: every value kept exactly, or its row reported."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column
from featuredb.errors import InputError, Problem
from featuredb.frames.from_arrow import arrow, from_arrow
from featuredb.frames.nested import from_array, from_sequences, polars_to_arrow
from featuredb.frames.outcome import Outcome, Target, from_dictionary, short
from featuredb.frames.outcome import from_numpy as from_scalar_array
from featuredb.frames.outcome import from_objects as from_scalars
from featuredb.limits import REJECTIONS_KEPT_MAX
from featuredb.schema import DTYPES, DType


@dataclass(frozen=True)
class RowProblems:
    """Rows of one column that were rejected for one reason.

    Parameters
    ----------
    column : str
        Name of the column.
    reason : str
        What is wrong with each of the values.
    rows : ndarray of int64
        Positions of all the rows, ascending.
    values : tuple of str
        ``repr`` of the values at the first ``limits.REJECTIONS_KEPT_MAX`` of the rows.
    """

    column: str
    reason: str
    rows: NDArray[np.int64]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Converted:
    """What became of an array-like: the column, null at rejected rows; or the problem with all of it."""

    column: Column
    rejected: tuple[RowProblems, ...] = ()
    problem: Problem | None = None

    def problems(self, first_row: int = 0) -> list[Problem]:
        """What is wrong, for an error that lists it; rows are counted from `first_row`."""
        found = [] if self.problem is None else [self.problem]
        for bad in self.rejected:
            value = bad.values[0] if bad.values else None
            found.append(Problem(bad.reason, bad.column, first_row + int(bad.rows[0]), value, len(bad.rows)))
        return found


def as_column(values: Any, dtype: DType, name: str, *, text: bool = False, distinct: bool = True) -> Converted:
    """The values as a `Column` of `dtype`, each kept exactly or rejected.

    Lists and vectors come as a list, tuple or array in each row, as an array of two dimensions, or as an
    Arrow or Polars column of lists.

    Parameters
    ----------
    values : list, tuple, numpy array, pandas Series, Index or array, Arrow array, or Polars Series
        ``None``, ``pd.NA``, ``NaT`` and masked values are null; NaN is null in pandas' numpy-backed
        floats and objects, and a value elsewhere.
    dtype : DType
        What the column is to hold.
    name : str
        The caller's name of the column, for messages.
    text : bool
        The values are fields of a text file, None where empty: numbers, booleans and bytes are parsed.
    distinct : bool
        Keep each string once, wherever it pays to find repeats. Otherwise only where there seem to be many: for
        columns that are read once and not stored.

    Returns
    -------
    Converted
        With ``problem`` when the values as a whole are of a wrong type; the column is then all null.
        Cost: linear; strings are hashed once per value.
    """
    outcome = _convert(values, Target(name, dtype, text, distinct))
    rejected = tuple(
        RowProblems(name, bad.reason, bad.rows, tuple(map(bad.show, bad.rows[:REJECTIONS_KEPT_MAX].tolist())))
        for bad in outcome.bad
    )
    return Converted(outcome.column, rejected, outcome.problem)


def as_us(value: Any, where: str) -> int:
    """One timestamp in microseconds since 1970-01-01 UTC.

    Parameters
    ----------
    value : datetime, date, numpy.datetime64, pandas.Timestamp or str
        Naive values are UTC; strings are ISO 8601.
    where : str
        The argument's name, for messages.

    Raises
    ------
    InputError
        If it is none of these, null, or not a whole microsecond of the years 1 to 9999.

    Examples
    --------
    >>> from featuredb.frames import as_us
    >>> as_us("1970-01-01T00:00:01+00:00", "now")
    1000000
    """
    outcome = _convert([value], Target(where, DTYPES["timestamp"], False))
    reason = None
    if outcome.problem is not None:
        reason = outcome.problem.reason
    elif outcome.bad:
        reason = outcome.bad[0].reason
    elif outcome.column.null_count:
        reason = "is null, but a timestamp is needed"
    if reason is not None:
        raise InputError(f"{where}: value {short(value)} {reason}", [Problem(reason, where, None, short(value))])
    return int(outcome.column.data[0])


def _convert(values: Any, target: Target) -> Outcome:
    if isinstance(values, (list, tuple)):
        return _from_objects(values, target, nan_is_null=False)
    if isinstance(values, np.ndarray):
        return _from_numpy(values, target)
    module = type(values).__module__.partition(".")[0]
    if module == "pandas":
        return _from_pandas(values, target)
    if module == "pyarrow":
        return from_arrow(values, target)
    if module == "polars" and hasattr(values, "dtype"):
        arrow()
        if str(values.dtype) == "Object":  # Arrow has no such type
            return _from_objects(values.to_list(), target, nan_is_null=False)
        return from_arrow(polars_to_arrow(values), target)
    if hasattr(values, "__array__"):
        return _from_numpy(np.asarray(values), target)
    if hasattr(values, "__arrow_array__"):
        return from_arrow(arrow().array(values), target)
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes, bytearray, memoryview)):
        return _from_objects(list(values), target, nan_is_null=False)
    rows = len(values) if hasattr(values, "__len__") and not isinstance(values, (str, bytes, AbstractSet)) else 0
    return target.unusable(rows, f"of type {type(values).__name__}")


def _from_objects(values: Sequence[Any], target: Target, nan_is_null: bool) -> Outcome:
    if target.dtype.is_nested:
        return from_sequences(values, target, _convert, nan_is_null)
    return from_scalars(values, target, nan_is_null)


def _from_numpy(
    values: NDArray[Any],
    target: Target,
    valid: NDArray[np.bool_] | None = None,
    nan_is_null: bool = False,
    what: str | None = None,
) -> Outcome:
    if not target.dtype.is_nested:
        return from_scalar_array(values, target, valid, nan_is_null, what)
    values = values if valid is None else np.ma.MaskedArray(values, mask=~valid)
    return from_array(values, target, _convert, nan_is_null, what)


def _from_pandas(values: Any, target: Target) -> Outcome:
    import pandas as pd

    array = getattr(values, "array", values)
    if getattr(array, "ndim", 1) != 1:
        return target.unusable(len(array), f"a pandas {type(values).__name__}")
    if not hasattr(array, "dtype"):
        return target.unusable(0, f"a pandas {type(values).__name__}")
    what = str(array.dtype)
    if isinstance(array, pd.Categorical):
        return from_dictionary(array.codes, None, lambda: _from_pandas(array.categories, target), target)
    if isinstance(array.dtype, pd.ArrowDtype) or str(getattr(array.dtype, "storage", "")).startswith("pyarrow"):
        return from_arrow(array.__arrow_array__(), target)
    if isinstance(array, (pd.arrays.IntegerArray, pd.arrays.FloatingArray, pd.arrays.BooleanArray)):
        valid = ~np.asarray(array.isna())
        flat = array.to_numpy(dtype=array.dtype.numpy_dtype, na_value=array.dtype.numpy_dtype.type(0))
        return _from_numpy(flat, target, None if valid.all() else valid, what=what)
    if isinstance(array.dtype, pd.StringDtype):
        return _from_objects(np.asarray(array, dtype=object).tolist(), target, nan_is_null=True)
    if isinstance(array.dtype, pd.DatetimeTZDtype):
        array = array.tz_convert("UTC").tz_localize(None)
    return _from_numpy(np.asarray(array), target, nan_is_null=True, what=what)
