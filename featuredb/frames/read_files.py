"""Files by their suffix; Parquet files and Arrow streams, read one batch at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from featuredb.errors import Problem, input_error
from featuredb.frames.from_arrow import arrow
from featuredb.frames.read import TableInput, arrow_column, check_names, reading
from featuredb.frames.read_csv import open_csv

PARQUET_SUFFIXES = (".parquet", ".pq")
CSV_SUFFIXES = (".csv", ".csv.gz", ".csv.zip")


def check_suffix(path: str) -> str | None:
    """What is wrong with the name of a file of data, if anything is."""
    if path.lower().endswith((*PARQUET_SUFFIXES, *CSV_SUFFIXES)):
        return None
    return f"the format of {path!r} is not known; its name must end in {', '.join((*PARQUET_SUFFIXES, *CSV_SUFFIXES))}"


def open_path(path: str | bytes, what: str) -> TableInput:
    """The Parquet or CSV file at `path`, by its suffix."""
    path = os.fsdecode(path)
    problem = _path_problem(path)
    if problem is not None:
        raise input_error(what, [Problem(problem)])
    where = f"{what}: file {path!r}"
    return _open_parquet(path, where) if path.lower().endswith(PARQUET_SUFFIXES) else open_csv(path, where)


def _path_problem(path: str) -> str | None:
    if os.path.isdir(path):
        return f"{path!r} is a directory; give the path of one .parquet or .csv file"
    if not os.path.exists(path):
        suffix = check_suffix(path)
        return f"there is no file {path!r} (seen from {os.getcwd()!r})" + (f"; {suffix}" if suffix else "")
    suffix = check_suffix(path)
    if suffix:
        return suffix
    try:
        with open(path, "rb") as file:
            return None if file.read(1) else f"the file {path!r} is empty"
    except OSError as error:
        return f"the file {path!r} cannot be opened: {error.strerror}"


def _open_parquet(path: str, where: str) -> TableInput:
    pa = arrow()
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise reading(error, where) from error
    check_names(schema.names, where)

    def read(columns: Sequence[str] | None, batch_rows: int) -> Iterator[tuple[Any, int]]:
        seen = False
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=batch_rows, columns=columns):
                    seen = True
                    yield pa.Table.from_batches([batch]), batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise reading(error, where) from error
        if not seen:
            yield schema.empty_table(), 0

    return TableInput(list(schema.names), rows, where, read, arrow_column, is_path=True)


def open_stream(data: Any, what: str) -> TableInput:
    """An Arrow reader, or any object with ``__arrow_c_stream__``; a reader can be read once."""
    pa = arrow()

    def export() -> Any:
        if isinstance(data, pa.RecordBatchReader):
            return data
        try:
            return pa.RecordBatchReader.from_stream(data)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise reading(error, what) from error

    # The stream that tells the names also serves the first pass: a one-shot object gives no second one.
    first = [export()]
    schema = first[0].schema
    check_names(schema.names, what)

    def read(columns: Sequence[str] | None, batch_rows: int) -> Iterator[tuple[Any, int]]:
        if not first and isinstance(data, pa.RecordBatchReader):
            raise input_error(what, [Problem("a RecordBatchReader can be read only once; give a Table")])
        try:
            yield from _regrouped(first.pop() if first else export(), schema, batch_rows)
        except (pa.ArrowException, OSError) as error:
            raise reading(error, what) from error

    return TableInput(list(schema.names), None, what, read, arrow_column)


def _regrouped(reader: Any, schema: Any, batch_rows: int) -> Iterator[tuple[Any, int]]:
    """Batches of any size, many of them tiny as a rule, as tables of `batch_rows` rows."""
    pa = arrow()
    held: list[Any] = []
    held_rows = 0
    seen = False
    for batch in reader:
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, batch_rows - held_rows)
            held.append(piece)
            held_rows += piece.num_rows
            start += piece.num_rows
            if held_rows == batch_rows:
                yield pa.Table.from_batches(held, schema), held_rows
                held, held_rows, seen = [], 0, True
    if held or not seen:
        yield pa.Table.from_batches(held, schema), held_rows
