"""Where data comes from. A source names the columns of its data, can be stored, and opens as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from featuredb.errors import CorruptionError, DefinitionError
from featuredb.schema import Source
from featuredb.sources.file import FileSource

__all__ = ["FileSource", "source_from_record"]

_TYPES: dict[str, Callable[[Mapping[str, Any]], Source]] = {"file": FileSource.from_record}


def source_from_record(record: Mapping[str, Any]) -> Source:
    """The source that wrote `record` with ``to_record()``.

    Raises
    ------
    CorruptionError
        If the record is of a type this version does not know, or is damaged.
    """
    kind = record.get("type") if isinstance(record, Mapping) else None
    if not isinstance(kind, str) or kind not in _TYPES:
        raise CorruptionError(
            f"a stored source is of type {kind!r}, which this version of featuredb does not know (it knows "
            f"{', '.join(_TYPES)}); the file is damaged or was written by a newer version"
        )
    try:
        return _TYPES[kind](record)
    except (KeyError, DefinitionError) as error:
        raise CorruptionError(f"a stored source of type {kind!r} is damaged: {error}") from error
