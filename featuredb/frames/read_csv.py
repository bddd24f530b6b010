"""CSV files: as text by batches, or whole with typed columns."""

from __future__ import annotations

import csv
import gzip
import io
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from operator import methodcaller
from typing import IO, Any

import numpy as np

from featuredb.errors import Problem, input_error
from featuredb.frames.arrays import to_pandas_array
from featuredb.frames.convert import as_column
from featuredb.frames.read import TableInput, check_names, open_table, reading
from featuredb.schema import DTYPES, DType

_FAILURES = (OSError, EOFError, ValueError, csv.Error, zipfile.BadZipFile, zlib.error)
_TEXT: dict[str, Any] = {"dtype": object, "na_filter": False, "encoding": "utf-8"}
# Only an empty field is null: NA, null and the like are text.
_TYPED: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "low_memory": False, "encoding": "utf-8"}
_FIELD_BYTES_MAX = (1 << 31) - 1
_field_limit_lock = threading.Lock()


def open_csv(path: str, where: str) -> TableInput:
    """The CSV file at `path`: a header, then rows of as many fields."""
    import pandas as pd

    try:
        header = pd.read_csv(path, header=None, nrows=1, **_TEXT)
    except _FAILURES as error:
        raise reading(error, where) from error
    names = [str(name) for name in header.iloc[0].tolist()]
    check_names(names, where)

    def read(columns: Sequence[str] | None, batch_rows: int) -> Iterator[tuple[Any, int]]:
        # All columns are parsed: with a choice of them pandas would not notice rows that are too long.
        seen = counted = False
        try:
            with pd.read_csv(path, header=0, names=names, chunksize=batch_rows, **_TEXT) as chunks:
                for frame in chunks:
                    seen = True
                    if not counted and _may_be_short(frame, where):
                        _check_lengths(path, len(names), where)
                        counted = True
                    yield frame if columns is None else frame[columns], len(frame)
        except _FAILURES as error:
            raise reading(error, where) from error
        if not seen:
            yield pd.DataFrame({name: [] for name in names}, dtype=object), 0

    def whole(text: Sequence[str]) -> Any:
        try:
            frame = pd.read_csv(path, header=0, names=names, dtype=dict.fromkeys(text, object), **_TYPED)
            if _may_be_short(frame, where):
                _check_lengths(path, len(names), where)
            return _exact(path, names, frame, set(text))
        except _FAILURES as error:
            raise reading(error, where) from error

    return TableInput(names, None, where, read, _fields, is_path=True, text=True, whole=whole)


def read_typed(given: TableInput, dtypes: Mapping[str, DType]) -> TableInput:
    """A CSV file as a table in memory.

    Parameters
    ----------
    given : TableInput
        A CSV file.
    dtypes : mapping of str to DType
        Columns to read as these; the types of the others are those that pandas infers, but integers
        and booleans with nulls stay exact, as pandas' nullable dtypes. Empty fields are null.

    Raises
    ------
    InputError
        If the file cannot be read, or lists every value that is not of its column's dtype.
    """
    assert given.whole is not None
    frame = given.whole(list(dtypes))
    problems = []
    for name, dtype in dtypes.items():
        converted = as_column(_fields(frame, name), dtype, name, text=True)
        problems += converted.problems()
        frame[name] = to_pandas_array(converted.column)
    if problems:
        raise input_error(given.describe, problems)
    return open_table(frame, given.describe)


def _fields(frame: Any, name: str) -> Any:
    """A column of text with None for the empty fields."""
    values = frame[name].to_numpy(dtype=object)
    return np.where((values == "") | (values != values), None, values)


def _may_be_short(frame: Any, where: str) -> bool:
    """Whether some row may have fewer fields than the header; an `InputError` if rows have more.

    pandas fills short rows up with empty fields, and takes the first fields of rows that are all too
    long for an index.
    """
    if type(frame.index).__name__ != "RangeIndex":
        raise input_error(where, [Problem("the rows have more fields than the header; add the missing names to it")])
    last = frame.iloc[:, -1]
    return frame.shape[1] > 1 and bool((last.isna() | (last == "")).any())


def _check_lengths(path: str, fields: int, where: str) -> None:
    """An `InputError` that names the first row with fewer than `fields` fields, if there is one."""
    with _field_limit_lock, ExitStack() as stack:
        # The limit is one for the whole process, and by default below what a string may be long.
        stack.callback(csv.field_size_limit, csv.field_size_limit(_FIELD_BYTES_MAX))
        # pandas skips blank lines; one within a quoted field adds no field.
        lines = filter(methodcaller("strip", " \t\r\n"), _open_text(path, stack))
        counts = np.fromiter(map(len, csv.reader(lines)), dtype=np.int32)[1:]
    short = np.flatnonzero(counts < fields)
    if len(short):
        row = int(short[0])
        has = f"{counts[row]} field{'' if counts[row] == 1 else 's'}"
        reason = f"has {has}, but the header has {fields}; write a comma before each field that is empty"
        raise input_error(where, [Problem(reason, None, row, None, len(short))])


def _open_text(path: str, stack: ExitStack) -> IO[str]:
    """The text of a CSV file, whatever it is compressed with; `stack` closes it."""
    if path.lower().endswith(".zip"):
        archive = stack.enter_context(zipfile.ZipFile(path))
        raw = stack.enter_context(archive.open(archive.namelist()[0]))
        return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
    if path.lower().endswith(".gz"):
        return stack.enter_context(gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return stack.enter_context(open(path, encoding="utf-8-sig", newline=""))


def _exact(path: str, names: Sequence[str], frame: Any, text: set[str]) -> Any:
    """`frame`, as pandas inferred it, with what inference spoils where there are nulls put right.

    Integers have become floats, booleans objects, and integers that need 64 bits without a sign text.
    """
    import pandas as pd

    inferred = {name: frame[name] for name in names if name not in text and frame[name].notna().any()}
    floats = [name for name, values in inferred.items() if values.dtype == np.float64 and values.hasnans]
    if floats:
        again = pd.read_csv(path, header=0, names=names, usecols=floats, dtype_backend="numpy_nullable", **_TYPED)
        for name in floats:
            if again[name].dtype.kind in "iu":
                frame[name] = again[name]
    for name, values in inferred.items():
        if values.dtype == object and pd.api.types.infer_dtype(values, skipna=True) == "boolean":
            frame[name] = values.astype("boolean")
        elif values.dtype.kind == "O" and (values == "").any():
            converted = as_column(_fields(frame, name), DTYPES["uint64"], name, text=True)
            frame[name] = values.mask(values == "") if converted.problems() else to_pandas_array(converted.column)
    return frame
