"""A few entity rows, read one by one into plain Python values: the common request of a model server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featuredb.errors import InputError
from featuredb.online.keys import key_columns
from featuredb.online.query import OnlineQuery
from featuredb.online.reader import respond
from featuredb.online.response import OnlineResponse, ResponseColumns
from featuredb.schema import DType
from featuredb.storage.env import ReadTxn
from featuredb.storage.keys import encode_keys

# Up to here it is faster than columns: 4 us a row, against 200 us and 1 us a row.
FEW_ROWS_MAX = 40


def _plain_type(dtype: DType) -> type | None:
    """The Python type whose values are keys of this dtype just as they are."""
    if dtype.is_integer:
        return int
    return {"string": str, "bytes": bytes, "bool": bool}.get(dtype.name)


def read_few(txn: ReadTxn, query: OnlineQuery, entity_rows: Sequence[Any], now_us: int) -> OnlineResponse | None:
    """As `read_rows`, for dicts of plain keys and features that are not nested; None for all else, and for bad input.

    `txn` copies values.
    """
    entities = query.entities
    if query.has_nested:
        return None
    keys: dict[str, list[Any]] = {}
    for name, dtype in entities.items():
        plain = _plain_type(dtype)
        if plain is None:
            return None
        keys[name] = column = []
        for row in entity_rows:
            value = row.get(name) if type(row) is dict else None
            if type(value) is not plain:
                return None
            column.append(value)
    try:
        parts = [list(map(encode, column)) for encode, column in zip(query.encoders, keys.values(), strict=True)]
    except InputError:
        return None
    values: dict[str, list[Any]] = {name: [] for name in query.names}
    stored: list[list[tuple[bytes, bytes] | None]] = []
    asked = list(zip(*parts, strict=True))
    for plan in query.plans:
        found = [plan.find(txn, key) for key in asked]
        stored.append(found)
        columns = [values[name] for name in plan.outputs]
        named = [keys[name] for name in plan.columns]
        for key, entry in zip(named[0] if len(named) == 1 else zip(*named, strict=True), found, strict=True):
            if entry is not None:
                event, read = plan.decode(*entry, key)
                if plan.max_age_us is None or now_us - event <= plan.max_age_us:
                    for column, value in zip(columns, read, strict=True):
                        column.append(value)
                    continue
            for column in columns:
                column.append(None)

    def load() -> ResponseColumns:
        columns = key_columns(entities, keys)
        rows = [
            plan.index.of_rows(
                [entry and entry[1] for entry in found],
                encode_keys([columns[name] for name in plan.columns]),
                plan.features,
            )
            for plan, found in zip(query.plans, stored, strict=True)
        ]
        return respond(query, columns, rows, now_us)

    return OnlineResponse(load, {**keys, **values})
