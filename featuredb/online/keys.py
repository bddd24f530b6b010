"""Entity keys as callers give them: one, a list, arrays or a dataframe; as one column per entity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from featuredb.columns import Column, concat
from featuredb.errors import InputError, Problem, input_error
from featuredb.frames import as_column, open_table
from featuredb.schema import DType

_SUBJECT = "entity rows"


def key_values(entities: Mapping[str, DType], key: object) -> Sequence[object]:
    """The values of one key, in the order of `entities`."""
    if isinstance(key, Mapping):
        try:
            return [key[name] for name in entities]
        except KeyError as error:
            raise InputError(f"{_SUBJECT}: the key has no value for entity {error}") from None
    values = key if isinstance(key, tuple) else (key,)
    if len(values) != len(entities):
        raise InputError(f"{_SUBJECT}: {key!r} must have a value for each of {', '.join(entities)}")
    return values


def key_columns(entities: Mapping[str, DType], keys: object, *, null_reason: str | None = None) -> dict[str, Column]:
    """One column per entity, checked; nulls are kept, or if there is a `null_reason`, refused for it.

    Parameters
    ----------
    entities : mapping of str to DType
        What a key is made of, in order.
    keys : object
        A list of values (of a single entity), of tuples in the order of `entities` or of dicts; a dict
        of arrays or lists; an array; or a dataframe, whose other columns are ignored.

    Raises
    ------
    InputError
        Lists every problem: an entity that is missing, and the first row of each kind of wrong value.
    """
    parts: list[dict[str, Any]]
    if isinstance(keys, Mapping):
        parts = [_mapping(entities, keys)]
    elif isinstance(keys, list | tuple):
        parts = [_sequence(entities, keys)]
    elif isinstance(keys, np.ndarray) or hasattr(type(keys), "dtype") or hasattr(type(keys), "type"):
        parts = [_array(entities, keys)]
    else:
        parts = _table(entities, keys)
    problems: list[Problem] = []
    columns: dict[str, list[Column]] = {name: [] for name in entities}
    base = 0
    for part in parts:
        for name, dtype in entities.items():
            converted = as_column(part[name], dtype, name)
            columns[name].append(converted.column)
            if converted.problem is not None:
                problems.append(converted.problem)
            problems += [
                Problem(bad.reason, bad.column, base + int(bad.rows[0]), next(iter(bad.values), None), len(bad.rows))
                for bad in converted.rejected
            ]
            if null_reason is not None and converted.problem is None and converted.column.valid is not None:
                null = ~converted.column.valid
                for bad in converted.rejected:
                    null[bad.rows] = False
                if null.any():
                    row, count = base + int(np.argmax(null)), int(np.count_nonzero(null))
                    problems.append(Problem(null_reason, name, row, None, count))
        base += len(columns[next(iter(entities))][-1])
    if problems:
        raise input_error(_SUBJECT, problems)
    return {name: concat(found) for name, found in columns.items()}


def _missing(entities: Mapping[str, DType], names: Sequence[object]) -> None:
    lacking = [Problem(f"the entity {name!r} is missing; give a value for each row", name) for name in entities
               if name not in names]  # fmt: skip
    if lacking:
        raise input_error(_SUBJECT, lacking)


def _mapping(entities: Mapping[str, DType], keys: Mapping[Any, Any]) -> dict[str, Any]:
    _missing(entities, list(keys))
    problems = [
        Problem("give a list or an array, one value for each row", name, value=repr(keys[name]))
        for name in entities
        if isinstance(keys[name], str | bytes) or not hasattr(keys[name], "__len__")
    ]
    if problems:
        raise input_error(_SUBJECT, problems)
    lengths = {name: len(keys[name]) for name in entities}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{_SUBJECT}: columns of different lengths: {lengths}; give one value for each row")
    return {name: keys[name] for name in entities}


def _sequence(entities: Mapping[str, DType], keys: Sequence[Any]) -> dict[str, Any]:
    kinds = set(map(type, keys))
    if kinds and all(issubclass(kind, Mapping) for kind in kinds):
        return {name: _items(name, keys) for name in entities}
    if len(entities) == 1 and not any(issubclass(kind, Mapping | tuple) for kind in kinds):
        return {next(iter(entities)): keys}
    if any(not issubclass(kind, tuple | list) for kind in kinds) or not set(map(len, keys)) <= {len(entities)}:
        row = next(i for i, key in enumerate(keys) if not isinstance(key, tuple | list) or len(key) != len(entities))
        problem = Problem(
            f"is not a key; give all rows as a tuple ({', '.join(entities)}) or all as a dict",
            None,
            row,
            repr(keys[row]),
        )
        raise input_error(_SUBJECT, [problem])
    return {name: list(map(itemgetter(place), keys)) for place, name in enumerate(entities)}


def _items(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    try:
        return list(map(itemgetter(name), rows))
    except KeyError:
        row = next(i for i, key in enumerate(rows) if name not in key)
        problem = Problem(
            f"the entity {name!r} is missing; give a value, or None for a null", name, row, repr(rows[row])
        )
        raise input_error(_SUBJECT, [problem]) from None


def _array(entities: Mapping[str, DType], keys: Any) -> dict[str, Any]:
    if getattr(keys, "ndim", 1) == 2 and keys.shape[1] == len(entities):
        return {name: keys[:, place] for place, name in enumerate(entities)}
    if len(entities) != 1 or getattr(keys, "ndim", 1) != 1:
        raise InputError(f"{_SUBJECT}: one array holds one entity; give a dict of arrays: {', '.join(entities)}")
    return {next(iter(entities)): keys}


def _table(entities: Mapping[str, DType], keys: object) -> list[dict[str, Any]]:
    if isinstance(keys, str | bytes) or hasattr(keys, "__fspath__"):
        raise InputError(f"{_SUBJECT}: {keys!r} is a single value; put it in a list")
    table = open_table(keys, _SUBJECT)
    _missing(entities, table.names)
    parts = [{name: frame.column(name) for name in entities} for frame in table.batches(list(entities))]
    return parts or [{name: [] for name in entities}]
