"""Tables out: columns as what the user holds, and attached to the caller's own frame.

pandas and pyarrow are imported where they are used, so that online reads need neither.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from operator import methodcaller
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Columns
from featuredb.errors import InputError, Problem, input_error
from featuredb.frames.arrays import (
    arrow_type,
    first_line,
    import_pyarrow,
    to_arrow_array,
    to_numpy,
    to_pandas_array,
    to_pylist,
)
from featuredb.frames.parquet import ParquetWriter

__all__ = [
    "EntityFrame",
    "ParquetWriter",
    "arrow_type",
    "to_arrow_array",
    "to_numpy",
    "to_pandas_array",
    "to_pylist",
]

# pandas warns of fragmentation at the caller's next insert beyond 100 blocks; wider results are consolidated (a copy).
_PANDAS_BLOCKS_MAX = 64
# Tables of plain Python: a column for each name, or a mapping for each row.
_PLAIN = (Mapping, list, tuple)


class EntityFrame:
    """What the caller gave as entity dataframe; feature columns are attached to it.

    Parameters
    ----------
    native : pandas.DataFrame, polars.DataFrame, pyarrow.Table, mapping of arrays, or list or tuple of mappings
        Never changed. Anything else that offers the Arrow C stream is taken as an Arrow table.

    Raises
    ------
    InputError
        If `native` is none of these.
    """

    def __init__(self, native: object) -> None:
        pandas = sys.modules.get("pandas")
        self._is_pandas = pandas is not None and isinstance(native, pandas.DataFrame)
        is_arrow = any(hasattr(native, name) for name in ("__arrow_c_stream__", "__arrow_c_array__", "to_arrow"))
        if not (self._is_pandas or is_arrow or isinstance(native, _PLAIN)):
            raise InputError(
                f"an entity dataframe cannot be a {type(native).__name__}; "
                "give a pandas, Polars or PyArrow table, a dict of arrays or a list of dicts"
            )
        self._native: Any = native
        self._whole: EntityFrame | None = None
        self._rows = slice(None)
        self._shared: object = None

    def slice(self, start: int, stop: int) -> EntityFrame:
        """The rows from `start` up to `stop`. All slices of a frame have one Arrow schema."""
        part = EntityFrame(self._native)
        part._whole = self
        part._rows = slice(start, stop)
        return part

    def to_numpy(self, columns: Columns) -> dict[str, NDArray[Any]]:
        """The feature columns alone, each by `to_numpy`."""
        return {name: to_numpy(column) for name, column in columns.items()}

    def to_pandas(self, columns: Columns) -> Any:
        """The caller's rows, order, index and columns as they are, then the feature columns.

        Parameters
        ----------
        columns : mapping of str to Column
            As long as the frame, in the order wanted; no name is a column of the frame.

        Returns
        -------
        pandas.DataFrame
            Writing to it changes neither the caller's frame nor `columns`, while this object lives.
        """
        import pandas as pd

        base = self._pandas
        if not columns:
            return base.copy()
        arrays = {name: to_pandas_array(column) for name, column in columns.items()}
        features = pd.DataFrame(arrays, index=base.index, copy=len(arrays) > _PANDAS_BLOCKS_MAX)
        features.columns.name = base.columns.name
        # pandas 3 shares memory here and copies it at the first write, if it knows of another owner: keep one.
        # pandas 2 copies here.
        self._shared = features
        return pd.concat([base, features], axis=1, sort=False).__finalize__(base)

    def to_arrow(self, columns: Columns) -> Any:
        """The caller's columns, then the feature columns, as an Arrow table.

        Parameters
        ----------
        columns : mapping of str to Column
            As long as the frame, in the order wanted; no name is a column of the frame.

        Returns
        -------
        pyarrow.Table
            Named index levels of a pandas frame are its first columns; unnamed ones are left out.

        Raises
        ------
        InputError
            Names every column of the caller that Arrow cannot hold.
        MissingExtraError
            If pyarrow is not installed.
        """
        pa = import_pyarrow("Arrow output")
        base = self._arrow
        fields = [pa.field(name, arrow_type(column.dtype)) for name, column in columns.items()]
        arrays = [*base.columns, *map(to_arrow_array, columns.values())]
        schema = pa.schema([*base.schema, *fields], metadata=base.schema.metadata)
        return pa.Table.from_arrays(arrays, schema=schema)

    def in_zone(self, frame: Any, column: str, names: Sequence[str]) -> Any:
        """`frame` (from `to_pandas` or `to_arrow`) with the timestamps `names` in the time zone of `column`.

        Naive timestamps are UTC, so next to a naive column they become naive. The unit stays microseconds.
        """
        if not names:
            return frame
        if not hasattr(frame, "iloc"):
            return _arrow_in_zone(frame, column, names)
        given = frame[column].dtype
        if getattr(given, "kind", None) == "M":
            for name in names:
                frame[name] = frame[name].dt.tz_convert(getattr(given, "tz", None))
        return frame

    @cached_property
    def _pandas(self) -> Any:
        if self._whole is not None:
            return self._whole._pandas.iloc[self._rows]
        if self._is_pandas:
            return self._native
        if isinstance(self._native, _PLAIN):
            return _pandas_from_dict(self._lists)
        return _pandas_from_arrow(self._arrow)

    @cached_property
    def _arrow(self) -> Any:
        if self._whole is not None:
            whole = self._whole._arrow
            start, stop, _ = self._rows.indices(whole.num_rows)
            return whole.slice(start, max(stop - start, 0))
        pa = import_pyarrow("Arrow output")
        if self._is_pandas:
            return _arrow_from_pandas(self._native)
        if isinstance(self._native, _PLAIN):
            return _arrow_from_dict(self._lists)
        # Polars' own way first: its stream may carry string views, which older readers do not know.
        return self._native.to_arrow() if hasattr(self._native, "to_arrow") else pa.table(self._native)

    @cached_property
    def _lists(self) -> Mapping[str, Any]:
        if isinstance(self._native, Mapping):
            return self._native
        names = dict.fromkeys(chain.from_iterable(self._native))
        return {name: list(map(methodcaller("get", name), self._native)) for name in names}


def _arrow_in_zone(table: Any, column: str, names: Sequence[str]) -> Any:
    pa = import_pyarrow("Arrow output")
    given = table.schema.field(column).type
    if pa.types.is_timestamp(given):
        for name in names:
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table.column(name).cast(pa.timestamp("us", given.tz)))
    return table


# --- the caller's frame as pandas ---------------------------------------------------------------
def _pandas_from_dict(values: Mapping[str, Any]) -> Any:
    """A frame of the values by position; integers with nulls stay exact."""
    import pandas as pd

    def convert(value: Any) -> Any:
        if isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "iub":
            nullable = pd.arrays.BooleanArray if value.dtype.kind == "b" else pd.arrays.IntegerArray
            return nullable(np.asarray(value.data), np.ma.getmaskarray(value))
        if isinstance(value, pd.Series | pd.Index):
            return value.array
        if isinstance(value, np.ndarray):
            return _plain(value)
        if hasattr(value, "to_arrow") or hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__"):
            return _pandas_from_arrow(_arrow_from_dict({"value": value}))["value"].array
        value = value if isinstance(value, pd.api.extensions.ExtensionArray) else list(value)
        if isinstance(value, list) and pd.api.types.infer_dtype(value) == "integer" and None in value:
            with suppress(OverflowError, TypeError, ValueError):
                return pd.array(value, dtype="Int64")
        return value

    return pd.DataFrame({name: convert(value) for name, value in values.items()}, copy=False)


def _pandas_from_arrow(table: Any) -> Any:
    """``table.to_pandas()``, but integers and bools with nulls become nullable ones, not floats and objects."""
    import pandas as pd

    names = {str(column.type): column.type for column in table.columns if column.null_count}
    dtypes = {
        kind: pd.api.types.pandas_dtype("boolean" if name == "bool" else name.replace("i", "I", 1).replace("u", "U", 1))
        for name, kind in names.items()
        if name == "bool" or name.lstrip("u").startswith("int")
    }
    return table.to_pandas(types_mapper=dtypes.get)


# --- the caller's frame as Arrow ----------------------------------------------------------------
def _arrow_from_pandas(frame: Any) -> Any:
    pa = import_pyarrow("Arrow output")
    named = [level for level, name in enumerate(frame.index.names) if name is not None]
    twice = [name for name in frame.index.names if name is not None and name in frame.columns]
    if twice:
        raise input_error("entity dataframe", [Problem(_INDEX_NAME_TAKEN, column=str(name)) for name in twice])
    if named:
        frame = frame.reset_index(level=named)
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        columns = {str(name): frame.iloc[:, place] for place, name in enumerate(frame.columns)}
        _arrow_arrays(columns)
        raise InputError(f"entity dataframe: Arrow cannot hold it: {first_line(error)}") from error


_INDEX_NAME_TAKEN = "an index level and a column have this name; rename one of them"


def _arrow_from_dict(values: Mapping[str, Any]) -> Any:
    return import_pyarrow("Arrow output").table(_arrow_arrays(values))


def _arrow_arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every value as an Arrow array, or one error that names all that cannot be."""
    pa = import_pyarrow("Arrow output")
    arrays, problems = {}, []
    for name, value in values.items():
        try:
            arrays[name] = _arrow_array(value)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            reason = f"Arrow cannot hold it: {first_line(error)}; give the column one type, or leave it out"
            problems.append(Problem(reason, column=name))
    if problems:
        raise input_error("entity dataframe", problems)
    return arrays


def _arrow_array(value: Any) -> Any:
    pa = import_pyarrow("Arrow output")
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value
    if hasattr(value, "to_arrow"):
        return value.to_arrow()
    if isinstance(value, np.ndarray):
        return pa.array(_plain(value))
    if hasattr(value, "__array__"):
        return pa.array(value)
    try:
        return pa.array(list(value))
    except OverflowError:  # integers that only 64 bits without a sign can hold
        return pa.array(list(value), pa.uint64())


def _plain(value: NDArray[Any]) -> NDArray[Any]:
    """`value` in a dtype that pandas and Arrow know: native byte order, str objects, datetimes from days down."""
    if value.dtype.kind == "T":
        return value.astype(object)
    if value.dtype.kind == "M" and np.datetime_data(value.dtype)[0] in ("h", "m", "M", "W", "Y"):
        return value.astype("M8[s]")
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
