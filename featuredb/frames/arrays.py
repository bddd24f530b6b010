"""Columns as arrays of numpy, Python, pandas and Arrow, without conversion where memory can be shared.

pandas and pyarrow are imported where they are used, so that online reads need neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column
from featuredb.errors import MissingExtraError
from featuredb.frames.nested_out import objects as nested_objects
from featuredb.frames.nested_out import vectors_to_numpy
from featuredb.limits import ABSENT_US
from featuredb.nested import elements
from featuredb.schema import DType

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# 32-bit offsets: the type is string or binary whatever the size, and more bytes than this become several chunks.
_ARROW_BYTES_MAX = (1 << 31) - 1


def import_pyarrow(purpose: str) -> Any:
    """The pyarrow module, or a `MissingExtraError` that says what `purpose` needs it."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(f'{purpose} needs pyarrow; install it with: pip install "featuredb[arrow]"') from error
    return pyarrow


def first_line(error: Exception) -> str:
    """What Arrow says is wrong, without the context it may print below."""
    return str(error).partition("\n")[0]


def _valid(column: Column) -> NDArray[np.bool_] | None:
    """False where null; None when nothing is. An absent timestamp is null whether or not it is marked so."""
    valid = column.valid
    if column.dtype.name == "timestamp":
        present = column.data != ABSENT_US
        valid = present if valid is None else valid & present
    return None if valid is None or valid.all() else valid


def _objects(column: Column, valid: NDArray[np.bool_] | None) -> NDArray[np.object_]:
    """str or bytes objects, None where null. Decodes each heap entry in use once, not each row."""
    assert column.heap is not None
    if len(column.heap) > len(column):
        column = column.compact()
    assert column.heap is not None
    values: list[Any] = column.heap.tolist()
    entries = np.full(len(values) + 1, None, dtype=object)
    entries[:-1] = list(map(bytes.decode, values)) if column.dtype.name == "string" else values
    places = column.data if valid is None else np.where(valid, column.data, len(values))
    return np.take(entries, places)


def _filled(column: Column, valid: NDArray[np.bool_] | None) -> NDArray[Any]:
    """The values; where null NaN, NaT or None, and what `data` holds for dtypes that have no such value."""
    if column.dtype.is_list:
        return nested_objects(column, to_numpy)
    if column.dtype.is_variable:
        return _objects(column, valid)
    data = column.data.view("M8[us]") if column.dtype.name == "timestamp" else column.data
    if valid is None or column.filled or not (column.dtype.is_float or column.dtype.name == "timestamp"):
        return data
    return np.where(valid, data, np.array("NaT" if data.dtype.kind == "M" else "nan", dtype=data.dtype))


def to_numpy(column: Column) -> NDArray[Any]:
    """The column as a numpy array, masked where null.

    Parameters
    ----------
    column : Column
        Values of any dtype.

    Returns
    -------
    ndarray or numpy.ma.MaskedArray, shape (n,)
        Plain when nothing is null; then numbers share the column's memory. Under the mask stand NaN, NaT, None,
        0 or False. Strings and bytes are object arrays; timestamps are ``datetime64[us]`` in UTC. Vectors are
        one array of shape (n, length); lists are an object array of read-only arrays of one dimension.
    """
    if column.dtype.is_vector:
        return vectors_to_numpy(column)
    valid = _valid(column)
    values = _filled(column, valid)
    return values if valid is None else np.ma.MaskedArray(values, mask=~valid)


def to_pylist(column: Column) -> list[Any]:
    """The column as Python values: None for null, timestamps as aware UTC datetimes.

    Parameters
    ----------
    column : Column
        Values of any dtype.

    Returns
    -------
    list
        bool, int, float, str, bytes, `datetime.datetime`, None, or lists of these.
    """
    if column.dtype.is_nested:
        return list(nested_objects(column, to_pylist))
    valid = _valid(column)
    if column.dtype.is_variable:
        return list(_objects(column, valid))
    data = column.data if valid is None else column.data[valid]
    values: list[Any] = data.tolist()
    if column.dtype.name == "timestamp":
        values = list(map(_EPOCH.__add__, data.view("m8[us]").tolist()))
    if valid is None:
        return values
    objects = np.full(len(column), None, dtype=object)
    objects[valid] = values
    return list(objects)


def to_pandas_array(column: Column) -> Any:
    """The column as an array that pandas takes without converting it.

    Parameters
    ----------
    column : Column
        Values of any dtype.

    Returns
    -------
    ndarray or pandas.api.extensions.ExtensionArray, shape (n,)
        Floats have NaN for null; integers and bools are numpy arrays, or nullable ones when there are nulls, so
        that they stay exact; strings have the default dtype of this pandas; bytes are objects; timestamps are
        ``datetime64[us, UTC]``; lists and vectors are objects, a read-only array each. Numbers without nulls
        share the column's memory.
    """
    import pandas as pd

    valid = _valid(column)
    name = column.dtype.name
    if name == "string":
        return _pandas_strings(column, valid)
    if name == "timestamp":
        return pd.DatetimeIndex(_filled(column, valid), copy=False).tz_localize("UTC").array
    if column.dtype.is_nested:
        return pd.Series(nested_objects(column, to_numpy), dtype=object, copy=False).array
    if name == "bytes":
        # A bare object array would be searched for a better dtype.
        return pd.Series(_filled(column, valid), dtype=object, copy=False).array
    if valid is None or column.dtype.is_float:
        return _filled(column, valid)
    nullable = pd.arrays.BooleanArray if name == "bool" else pd.arrays.IntegerArray
    return nullable(column.data, ~valid)


def _pandas_strings(column: Column, valid: NDArray[np.bool_] | None) -> Any:
    import pandas as pd

    # What this pandas, with its options as set, makes of a str: object, or one of the string dtypes.
    dtype = pd.Series([""]).dtype
    if not isinstance(dtype, pd.StringDtype):
        return pd.Series(_objects(column, valid), dtype=object, copy=False).array
    if dtype.storage == "pyarrow":
        return dtype.__from_arrow__(_arrow_taken(column, valid))
    return pd.array(_objects(column, valid), dtype=dtype)


def arrow_type(dtype: DType) -> Any:
    """The Arrow type of a dtype: never large_string or dictionary, and the same with and without nulls.

    Parameters
    ----------
    dtype : DType
        Any dtype.

    Returns
    -------
    pyarrow.DataType
        Timestamps are ``timestamp("us", tz="UTC")``; vectors are lists of fixed size.

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    """
    pa = import_pyarrow("Arrow output")
    if dtype.is_nested:
        return pa.list_(arrow_type(dtype.item), dtype.length if dtype.is_vector else -1)
    if dtype.name == "timestamp":
        return pa.timestamp("us", tz="UTC")
    special = {"bool": pa.bool_, "string": pa.string, "bytes": pa.binary}
    return special[dtype.name]() if dtype.name in special else pa.from_numpy_dtype(dtype.numpy)


def to_arrow_array(column: Column) -> Any:
    """The column as an Arrow array of `arrow_type`; NaN stays NaN and null is null.

    Parameters
    ----------
    column : Column
        Values of any dtype.

    Returns
    -------
    pyarrow.Array or pyarrow.ChunkedArray
        Chunked only when strings, bytes or lists take more than 2 GiB. Numbers, timestamps and vectors share the
        column's memory.

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    """
    kind = arrow_type(column.dtype)
    valid = _valid(column)
    if column.dtype.is_nested:
        chunks = [_arrow_lists(part, kind, _valid(part)) for part in _within_offsets(column, valid)]
        return chunks[0] if len(chunks) == 1 else import_pyarrow("Arrow output").chunked_array(chunks, type=kind)
    if not column.dtype.is_variable:
        data = np.packbits(column.data, bitorder="little") if column.dtype.name == "bool" else column.data
        return _arrow_fixed(kind, data, valid, len(column))
    chunks = [_arrow_taken(part, _valid(part)).cast(kind) for part in _within_offsets(column, valid)]
    return chunks[0] if len(chunks) == 1 else import_pyarrow("Arrow output").chunked_array(chunks, type=kind)


def _arrow_lists(column: Column, kind: Any, valid: NDArray[np.bool_] | None) -> Any:
    pa = import_pyarrow("Arrow output")
    items, bounds = elements(column)
    buffers = [None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))]
    if column.dtype.is_list:
        buffers.append(pa.py_buffer(bounds.astype(np.int32)))
    return pa.Array.from_buffers(kind, len(column), buffers, children=[to_arrow_array(items)])


def _arrow_fixed(kind: Any, data: NDArray[Any], valid: NDArray[np.bool_] | None, rows: int) -> Any:
    pa = import_pyarrow("Arrow output")
    validity = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, rows, [validity, pa.py_buffer(np.ascontiguousarray(data))])


def _arrow_taken(column: Column, valid: NDArray[np.bool_] | None) -> Any:
    """Strings or bytes as large_string or large_binary: the heap as it lies, its entries taken by place."""
    pa = import_pyarrow("Arrow output")
    heap = column.heap
    assert heap is not None
    kind = pa.large_string() if column.dtype.name == "string" else pa.large_binary()
    buffers = [None, pa.py_buffer(np.ascontiguousarray(heap.offsets)), pa.py_buffer(np.ascontiguousarray(heap.data))]
    entries = pa.Array.from_buffers(kind, len(heap), buffers)
    if valid is None and len(heap) == len(column) and np.array_equal(column.data, np.arange(len(heap))):
        return entries
    return entries.take(_arrow_fixed(pa.int32(), column.data, valid, len(column)))


def _within_offsets(column: Column, valid: NDArray[np.bool_] | None) -> Iterator[Column]:
    """The column in runs of rows whose values fit 32-bit offsets: nearly always one run, the column itself."""
    if column.heap is None:
        yield column
        return
    lengths = np.diff(column.heap.offsets)
    if len(column) > 1 and lengths.max(initial=0) * len(column) > _ARROW_BYTES_MAX:
        places = column.data if valid is None else column.data[valid]
        if int(lengths[places].sum()) > _ARROW_BYTES_MAX:
            half = len(column) // 2
            for part in (column.take(slice(0, half)), column.take(slice(half, None))):
                yield from _within_offsets(part, _valid(part))
            return
    yield column
