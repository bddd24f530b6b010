"""Any table-like to batches of native columns, which `as_column` then reads."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from featuredb.errors import FeatureDBError, InputError, Problem, input_error
from featuredb.frames.from_arrow import arrow
from featuredb.limits import INGEST_BATCH_ROWS

SUPPORTED = (
    "a pandas, Polars or PyArrow table, an object with __arrow_c_stream__, a dict of arrays or lists, "
    "a list of dicts, the path of a .parquet or .csv file, or a source"
)
_NAMES_SHOWN_MAX = 50


@dataclass(frozen=True)
class Frame:
    """One batch of a table.

    Parameters
    ----------
    names : sequence of str
        Its columns.
    rows : int
        How many it has.
    start : int
        Position of its first row in the table.
    native : object
        The batch as a pandas DataFrame, Polars DataFrame, Arrow table, dict of arrays or list of dicts.
    text : bool
        Whether every value is a field of a text file (``as_column(..., text=True)``).
    """

    names: Sequence[str]
    rows: int
    start: int
    native: Any
    get: Callable[[Any, str], Any] = field(repr=False)
    text: bool = False

    def column(self, name: str) -> Any:
        """The column, as `as_column` takes it."""
        return self.get(self.native, name)


# From the columns wanted (None: all) and the rows of a batch to (native batch, its rows).
Read = Callable[[Sequence[str] | None, int], Iterator[tuple[Any, int]]]


@dataclass
class TableInput:
    """A table to be read in batches.

    Parameters
    ----------
    names : list of str
        Its columns. Columns of a DataFrame whose label is no str are not among them.
    rows : int or None
        How many rows it has, where that is known before reading.
    describe : str
        What it is, for messages.
    native : object or None
        The table itself when it is in memory: a pandas or Polars DataFrame, Arrow table, dict or list.
    is_path : bool
        Whether it is a file.
    text : bool
        Whether it holds text to be parsed (CSV).
    index_names : tuple of str
        Names of a DataFrame's index levels, which are not columns.
    whole : callable or None
        Of a CSV file: all of it as a pandas DataFrame, the columns named as text, the others as inferred.
    """

    names: list[str]
    rows: int | None
    describe: str
    read: Read = field(repr=False)
    get: Callable[[Any, str], Any] = field(repr=False)
    native: Any = field(default=None, repr=False)
    is_path: bool = False
    text: bool = False
    index_names: tuple[str, ...] = ()
    whole: Callable[[Sequence[str]], Any] | None = field(default=None, repr=False)

    def batches(self, columns: Sequence[str] | None = None, batch_rows: int = INGEST_BATCH_ROWS) -> Iterator[Frame]:
        """The table in batches of at most `batch_rows` rows: at least one, which has no rows if the table has none.

        Parameters
        ----------
        columns : sequence of str, optional
            The columns needed; others may be left out of the batches.
        batch_rows : int
            Bounds the memory in use. A one-shot input, such as an Arrow reader, can be read once.

        Raises
        ------
        InputError
            If a column is missing or the data cannot be read.
        """
        wanted = None if columns is None else list(dict.fromkeys(columns))
        self.require(wanted or ())
        start = 0
        for native, rows in self.read(wanted, batch_rows):
            yield Frame(wanted or self.names, rows, start, native, self.get, self.text)
            start += rows

    def require(self, columns: Sequence[str]) -> None:
        """One `InputError` for all of the columns that are missing."""
        known = set(self.names)
        missing = [name for name in columns if name not in known]
        if not missing:
            return
        shown = ", ".join(self.names[:_NAMES_SHOWN_MAX]) + (", ..." if len(self.names) > _NAMES_SHOWN_MAX else "")
        has = f"the columns are {shown}" if self.names else "there are no columns"
        problems = []
        for name in missing:
            remedy = "it is an index: call reset_index() first" if name in self.index_names else has
            problems.append(Problem(f"is missing; {remedy}", name))
        raise input_error(self.describe, problems)


def open_table(data: Any, what: str) -> TableInput:
    """`data` as a table to read.

    Parameters
    ----------
    data : table-like
        A pandas, Polars or PyArrow table, anything with ``__arrow_c_stream__``, a dict of arrays, a list
        of dicts, the path of a Parquet or CSV file, or a source.
    what : str
        What the data is for; begins every message.

    Raises
    ------
    InputError
        If it is none of these, or cannot be read: missing or empty file, duplicate names, unequal lengths.
    MissingExtraError
        If it needs pyarrow, and that is not installed.
    """
    if isinstance(data, (str, os.PathLike)):
        from featuredb.frames.read_files import open_path

        return open_path(os.fspath(data), what)
    if isinstance(data, Mapping):
        return _open_mapping(data, what)
    if isinstance(data, (list, tuple)):
        return _open_rows(data, what)
    module, kind = type(data).__module__.partition(".")[0], type(data).__name__
    ancestors = {(base.__module__.partition(".")[0], base.__name__) for base in type(data).__mro__}
    if ("pandas", "DataFrame") in ancestors:
        return _open_pandas(data, what)
    if ("polars", "LazyFrame") in ancestors:
        data = _collect(data, what)
        ancestors = {("polars", "DataFrame")}
    if ("polars", "DataFrame") in ancestors:
        return _open_polars(data, what)
    if module == "pyarrow" and kind in ("Table", "RecordBatch"):
        return _open_arrow(data, what)
    if isinstance(data, type):
        raise _refusal(what, f"the class {data.__name__} is not a table; give {SUPPORTED}")
    if callable(getattr(data, "open", None)):
        opened = data.open()
        if isinstance(opened, TableInput):
            return opened
    if kind in ("Series", "ChunkedArray") or (module == "pyarrow" and kind.endswith("Array")):
        raise _refusal(what, f"a {module} {kind} is one column, not a table; give a dict such as {{'name': column}}")
    if hasattr(data, "__arrow_c_stream__"):
        from featuredb.frames.read_files import open_stream

        return open_stream(data, what)
    raise _refusal(what, f"{module + '.' if module != 'builtins' else ''}{kind} is not a table; give {SUPPORTED}")


def _refusal(what: str, reason: str) -> InputError:
    return input_error(what, [Problem(reason)])


def check_names(labels: Sequence[Any], what: str) -> None:
    """An `InputError` that names every label which stands more than once."""
    if len(set(labels)) == len(labels):
        return
    counts: dict[Any, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    twice = [label for label, count in counts.items() if count > 1]
    raise input_error(
        what, [Problem(f"stands {counts[label]} times; rename or drop the others", str(label)) for label in twice]
    )


def sliced(data: Any, rows: int, cut: Callable[[Any, int, int], Any]) -> Read:
    """Reads a table in memory: whole if it is no larger than a batch, else by slices."""

    def read(columns: Sequence[str] | None, batch_rows: int) -> Iterator[tuple[Any, int]]:
        if rows <= batch_rows:
            yield data, rows
            return
        for start in range(0, rows, batch_rows):
            stop = min(start + batch_rows, rows)
            yield cut(data, start, stop), stop - start

    return read


def _open_pandas(data: Any, what: str) -> TableInput:
    labels = data.columns.tolist()
    check_names(labels, what)
    names = [label for label in labels if isinstance(label, str)]
    index_names = tuple(name for name in data.index.names if isinstance(name, str))
    read = sliced(data, len(data), lambda frame, start, stop: frame.iloc[start:stop])
    return TableInput(names, len(data), what, read, operator.getitem, data, index_names=index_names)


def _collect(data: Any, what: str) -> Any:
    try:
        return data.collect()
    except Exception as error:
        if not type(error).__module__.startswith(("polars", "builtins")):
            raise
        raise input_error(what, [Problem(f"the Polars query fails: {error}")]) from error


def _open_polars(data: Any, what: str) -> TableInput:
    read = sliced(data, data.height, lambda frame, start, stop: frame.slice(start, stop - start))
    return TableInput(data.columns, data.height, what, read, lambda frame, name: frame.get_column(name), data)


def _open_arrow(data: Any, what: str) -> TableInput:
    pa = arrow()
    table = data if isinstance(data, pa.Table) else pa.Table.from_batches([data])
    check_names(table.column_names, what)
    read = sliced(table, table.num_rows, lambda frame, start, stop: frame.slice(start, stop - start))
    return TableInput(list(table.column_names), table.num_rows, what, read, arrow_column, table)


def arrow_column(table: Any, name: str) -> Any:
    return table.column(name)


def _open_mapping(data: Mapping[Any, Any], what: str) -> TableInput:
    problems, lengths = [], {}
    for name, values in data.items():
        if not isinstance(name, str):
            problems.append(Problem(f"the column name {name!r} is of type {type(name).__name__}, not str"))
        elif isinstance(values, (str, bytes, Mapping)) or not _has_length(values):
            kind = type(values).__name__
            problems.append(Problem(f"is of type {kind}, not a sequence; for one row, give a list of one dict", name))
        else:
            lengths[name] = len(values)
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        problems.append(Problem(f"columns differ in length: {shown}"))
    if problems:
        raise input_error(what, problems)
    rows = next(iter(lengths.values()), 0)

    def cut(columns: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        return {name: _slice(values, start, stop) for name, values in columns.items()}

    return TableInput(list(lengths), rows, what, sliced(data, rows, cut), operator.getitem, data)


def _has_length(values: Any) -> bool:
    try:  # a numpy array of no dimensions has __len__, and refuses
        return len(values) >= 0 and hasattr(values, "__getitem__")
    except TypeError:
        return False


def _slice(values: Any, start: int, stop: int) -> Any:
    # A pandas Series with a float index would take the bounds for labels.
    return values.iloc[start:stop] if hasattr(values, "iloc") else values[start:stop]


def _open_rows(data: Sequence[Any], what: str) -> TableInput:
    kinds = set(map(type, data))
    strange = {kind for kind in kinds if not issubclass(kind, Mapping)}
    if strange:
        count = sum(map(strange.__contains__, map(type, data)))
        row, value = next((row, value) for row, value in enumerate(data) if type(value) in strange)
        reason = f"is of type {type(value).__name__}, not a dict; a list must hold one dict for each row"
        raise input_error(what, [Problem(reason, None, row, repr(value)[:80], count)])
    names = list(dict.fromkeys(chain.from_iterable(data)))
    wrong = [
        Problem(f"the column name {n!r} is of type {type(n).__name__}, not str") for n in names if type(n) is not str
    ]
    if wrong:
        raise input_error(what, wrong)
    read = sliced(data, len(data), lambda rows, start, stop: rows[start:stop])
    return TableInput(names, len(data), what, read, _row_values, data)


def _row_values(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return list(map(operator.methodcaller("get", name), rows))


def detached(given: TableInput) -> TableInput:
    """`given` as it is now, whatever its owner does to it later. Files and Arrow tables are left as they are."""
    return given if given.native is None else open_table(_copied(given.native), given.describe)


def _copied(native: Any) -> Any:
    if isinstance(native, Mapping):
        return {name: _copied_values(values) for name, values in native.items()}
    if isinstance(native, (list, tuple)):
        return list(map(dict, native))
    if hasattr(native, "iloc"):
        import pandas as pd

        # pandas 3 copies at the first write to either frame.
        return native.copy(deep=int(pd.__version__.partition(".")[0]) < 3)
    return native.clone() if hasattr(native, "clone") else native


def _copied_values(values: Any) -> Any:
    for name in ("copy", "clone"):  # lists, numpy and pandas; Polars, where it costs nothing
        if callable(getattr(values, name, None)):
            return getattr(values, name)()
    return copy.copy(values) if isinstance(values, MutableSequence) else values


def reading(error: Exception, what: str) -> Exception:
    """`error`, met while data was read, as one of ours."""
    if isinstance(error, FeatureDBError):
        return error
    lines = str(error).splitlines() or [type(error).__name__]
    return input_error(what, [Problem(f"cannot be read: {lines[0]}")])
