"""Batch sources that are files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featuredb.errors import DefinitionError
from featuredb.frames.read import TableInput, open_table
from featuredb.frames.read_files import check_suffix


@dataclass(frozen=True)
class FileSource:
    """A Parquet or CSV file that a feature table is loaded from.

    Nothing is read, and the file need not exist, until ``ingest`` asks for it.

    Parameters
    ----------
    path : str or os.PathLike
        Ends in ``.parquet``, ``.pq``, ``.csv``, ``.csv.gz`` or ``.csv.zip``. A relative path is relative
        to the working directory of the process that ingests.
    event_timestamp_column : str
        The column that holds the event timestamp.
    created_timestamp_column : str or None
        The column that holds the created timestamp, if there is one.
    field_mapping : mapping of str to str
        ``{source column: feature or entity name}``, for columns of another name.

    Raises
    ------
    DefinitionError
        Lists every problem of the arguments.

    Examples
    --------
    >>> import featuredb as fdb
    >>> source = fdb.FileSource("weather.parquet", event_timestamp_column="time_hour")
    >>> source.event_timestamp_column
    'time_hour'
    """

    path: str
    event_timestamp_column: str = "event_timestamp"
    created_timestamp_column: str | None = None
    field_mapping: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = list(filter(None, [self._path_problem(), self._columns_problem(), self._mapping_problem()]))
        if problems:
            raise DefinitionError(f"file source {self.path!r}: " + "; ".join(problems))
        object.__setattr__(self, "path", os.fspath(self.path))
        object.__setattr__(self, "field_mapping", dict(self.field_mapping))

    def _path_problem(self) -> str | None:
        if not isinstance(self.path, (str, os.PathLike)) or not isinstance(os.fspath(self.path), str):
            return f"path must be a str or a pathlib.Path, not {self.path!r}"
        return check_suffix(os.fspath(self.path))

    def _columns_problem(self) -> str | None:
        event, created = self.event_timestamp_column, self.created_timestamp_column
        if not isinstance(event, str) or not event:
            return f"event_timestamp_column must be the name of a column, not {event!r}"
        if created is not None and (not isinstance(created, str) or not created):
            return f"created_timestamp_column must be the name of a column or None, not {created!r}"
        if event == created:
            return f"the event and the created timestamp cannot both be column {event!r}; use None for no created one"
        return None

    def _mapping_problem(self) -> str | None:
        mapping = self.field_mapping
        if not isinstance(mapping, Mapping) or not all(
            isinstance(name, str) and name for pair in mapping.items() for name in pair
        ):
            return f"field_mapping must map names of source columns to names of features or entities, not {mapping!r}"
        return None

    def to_record(self) -> dict[str, Any]:
        """The source as plain values, to be stored."""
        return {
            "type": "file",
            "path": self.path,
            "event_timestamp_column": self.event_timestamp_column,
            "created_timestamp_column": self.created_timestamp_column,
            "field_mapping": dict(self.field_mapping),
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> FileSource:
        """The source that `to_record` wrote."""
        return FileSource(
            record["path"],
            record["event_timestamp_column"],
            record["created_timestamp_column"],
            record["field_mapping"],
        )

    def open(self) -> TableInput:
        """The file as a table to read, or an `InputError` that says why it cannot be."""
        return open_table(self.path, "batch source")
