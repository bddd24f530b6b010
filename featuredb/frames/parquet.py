"""Tables streamed to a Parquet file that is there whole or not at all."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np

from featuredb.errors import FileError, InputError, Problem, input_error
from featuredb.frames.arrays import first_line, import_pyarrow


class ParquetWriter:
    """Streams tables into one Parquet file, which appears whole when closed, or not at all.

    Parameters
    ----------
    path : str or os.PathLike
        Replaced if it exists. Until `close` the bytes are in a hidden file beside it.

    Raises
    ------
    FileError
        If the file cannot be written there.
    InputError
        If `path` is of another type, or can name no file.
    MissingExtraError
        If pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import_pyarrow("Parquet output")
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"path: must be a str or a pathlib.Path, not a {type(path).__name__}")
        self._path = os.path.abspath(os.fsdecode(path))
        if os.path.isdir(self._path):
            raise FileError(f"cannot write {self._path}: it is a directory; give the path of a file")
        folder, name = os.path.split(self._path)
        self._temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
        self._writer: Any = None
        self._rows = 0
        # Fails here, not after a long join, when the folder is missing or not writable.
        try:
            with self._explained(), open(self._temporary, "xb"):
                pass
        except ValueError as error:  # a null character, or a lone surrogate
            raise InputError(f"path: {os.fspath(path)!r} cannot be the name of a file: {error}") from error

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, table: Any, metadata: Mapping[bytes, bytes] | None = None) -> None:
        """Append a `pyarrow.Table`. The first one's schema holds; later ones are cast to it.

        `metadata` goes to the file's unless `annotate` can add to that later, which pyarrow before 17 cannot.

        Raises
        ------
        InputError
            Names every column that cannot be cast, or that Parquet cannot hold.
        FileError
            If the disk is full or fails.
        """
        from pyarrow import parquet

        with self._explained():
            if not writes_null_vectors():
                table = _without_fixed_sizes(table)
            if self._writer is None:
                if metadata is not None and not hasattr(parquet.ParquetWriter, "add_key_value_metadata"):
                    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
                self._writer = parquet.ParquetWriter(self._temporary, table.schema, compression="zstd")
            elif not table.schema.equals(self._writer.schema):
                table = self._cast(table)
            self._writer.write_table(table)
        self._rows += table.num_rows

    def annotate(self, metadata: Mapping[bytes, bytes]) -> None:
        """Add to the file's metadata, where pyarrow can; see `write`."""
        if hasattr(self._writer, "add_key_value_metadata"):
            with self._explained():
                self._writer.add_key_value_metadata(dict(metadata))

    def close(self) -> None:
        """Finish the file and put it in place. Without any table written, there is no file."""
        if self._writer is None:
            self.abort()
            return
        try:
            with self._explained():
                self._writer.close()
                with open(self._temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(self._temporary, self._path)
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave no trace; after `close`, do nothing."""
        with suppress(Exception):
            if self._writer is not None:
                self._writer.close()
        self._writer = None
        with suppress(OSError):
            os.remove(self._temporary)

    def _cast(self, table: Any) -> Any:
        import pyarrow as pa

        schema = self._writer.schema
        if table.schema.names != schema.names:
            raise InputError(
                f"rows from {self._rows} on have the columns {', '.join(table.schema.names)}, the rows before "
                f"{', '.join(schema.names)}; give all rows the same columns"
            )
        arrays, problems = [], []
        for field, column in zip(schema, table.columns, strict=True):
            try:
                arrays.append(column.cast(field.type))
            except pa.ArrowException as error:
                problems.append(Problem(self._cast_reason(field.type, column.type, error), column=field.name))
        if problems:
            raise input_error(f"rows from {self._rows} on", problems)
        return pa.Table.from_arrays(arrays, schema=schema)

    @staticmethod
    def _cast_reason(before: Any, after: Any, error: Exception) -> str:
        if str(before) == "null":
            return f"is {after} here and only nulls in the rows before; give the column its dtype in all rows"
        return f"is {after} here and {before} in the rows before: {first_line(error)}; give all rows one dtype"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (InputError, FileError):
            raise
        except OSError as error:
            raise FileError(
                f"cannot write {self._path}: {error.strerror or error}; "
                "check that the folder exists, may be written and has space"
            ) from error
        except pa.ArrowException as error:
            raise InputError(
                f"cannot write {self._path}: Parquet cannot hold a column: {first_line(error)}; "
                "leave the column out or give it another dtype"
            ) from error


@lru_cache(maxsize=1)
def writes_null_vectors() -> bool:
    """Whether this pyarrow writes, and reads, lists of a fixed size of which some are null; early ones do not."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"vector": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2))})
    file = io.BytesIO()
    try:
        parquet.write_table(table, file)
        parquet.read_table(file)
    except pa.ArrowException:
        return False
    return True


def _without_fixed_sizes(table: Any) -> Any:
    """The table with its lists of fixed size as lists."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if pa.types.is_fixed_size_list(field.type):
            kind = pa.list_(field.type.value_type)
            chunks = [_as_lists(chunk, kind) for chunk in table.column(place).chunks]
            table = table.set_column(place, field.with_type(kind), pa.chunked_array(chunks, type=kind))
    return table


def _as_lists(vectors: Any, kind: Any) -> Any:
    import pyarrow as pa

    valid = vectors.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(valid) * vectors.type.list_size]).astype(np.int32)
    buffers = [pa.py_buffer(np.packbits(valid, bitorder="little")), pa.py_buffer(offsets)]
    size = vectors.type.list_size
    items = vectors.values.slice(vectors.offset * size, len(vectors) * size)
    items = items.filter(pa.array(np.repeat(valid, size)))
    return pa.Array.from_buffers(kind, len(vectors), buffers, children=[items])
