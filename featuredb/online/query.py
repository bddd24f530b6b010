"""A query: features of one or several tables, resolved against the definitions of one commit, and read key by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from featuredb.columns import Column
from featuredb.errors import DefinitionError, InputError, Problem, input_error
from featuredb.limits import KEY_BYTES_MAX
from featuredb.online.index import OnlineIndex, OnlineRows
from featuredb.online.keys import key_columns, key_values
from featuredb.online.row import HEADER_BYTES, damaged
from featuredb.online.row_reader import RowReader
from featuredb.schema import DType
from featuredb.storage.env import ReadTxn
from featuredb.storage.keys import encode_keys, value_encoder
from featuredb.storage.references import TableUse
from featuredb.storage.registry import StoredTable

# A union would be built anew at each call.
_COMPOUND = (dict, tuple)


class TablePlan:
    """What a query asks of one table, with all that does not depend on the key worked out."""

    def __init__(self, use: TableUse, columns: Sequence[str]) -> None:
        table = use.table
        self.index = OnlineIndex(table)
        self.name = table.definition.name
        self.use_name = use.name
        self.prefix = self.index.prefix
        self.max_age_us = table.definition.max_age_us
        self.columns = use.columns
        self.key_places = [columns.index(name) for name in self.columns]
        self.features: list[str] = []
        self.outputs: list[str] = []
        # By the bytes of the layout's version.
        self.readers: dict[bytes, RowReader] = {}

    def find(self, txn: ReadTxn, parts: Sequence[bytes | None]) -> tuple[bytes, bytes] | None:
        """Whole key and packed row of one key, of whose columns `parts` has the bytes; None if there is none."""
        places = self.key_places
        if len(places) == 1:
            packed = parts[places[0]]
        else:
            chosen = [parts[place] for place in places]
            packed = None if None in chosen else b"".join(chosen)  # type: ignore[arg-type]
        if packed is None or len(packed) > KEY_BYTES_MAX:
            return None
        full_key = self.prefix + packed
        raw: bytes | None = txn.get(full_key)  # type: ignore[assignment]
        return None if raw is None else (full_key, raw)

    def decode(self, full_key: bytes, raw: bytes, key: object) -> tuple[int, list[Any]]:
        """Event timestamp of a packed row, and its values in the order of `outputs`."""
        reader = self.readers.get(raw[4:6])
        if reader is None:
            reader = self._make_reader(raw, key)
        return reader.read(raw, full_key, self.name, key)

    def _make_reader(self, raw: bytes, key: object) -> RowReader:
        if len(raw) < HEADER_BYTES:
            raise damaged(f"{len(raw)} bytes are too few for a row", self.name, key)
        ids, version = self.index.table.feature_ids, int.from_bytes(raw[4:6], "little")
        reader = RowReader(self.index.layout(version, lambda _: key), [ids[name] for name in self.features])
        self.readers[raw[4:6]] = reader
        return reader

    def read(self, txn: ReadTxn, keys: Mapping[str, Column], threads: int | None = None) -> OnlineRows:
        """Rows of many keys; a key with a null in it has none."""
        columns = [keys[name] for name in self.columns]
        masks = [column.valid for column in columns if column.valid is not None]
        if not masks:
            return self.index.read(txn, encode_keys(columns), self.features, threads)
        whole = np.logical_and.reduce(masks)
        rows = np.flatnonzero(whole)
        found = self.index.read(txn, encode_keys([column.take(rows) for column in columns]), self.features, threads)
        places = np.full(len(whole), -1, dtype=np.int64)
        places[rows] = np.where(found.found, np.arange(len(rows)), -1)
        return found.at(places)


class OnlineQuery:
    """Features to look up, resolved against the definitions of one commit.

    Parameters
    ----------
    selections : sequence of (TableUse or StoredTable, sequence of str, sequence of str)
        Table, its features, and the output name of each, in the order of the output. A table may
        stand more than once.

    Raises
    ------
    InputError
        If two output names are equal, or one equals the name of a key column.
    """

    def __init__(self, selections: Sequence[tuple[TableUse | StoredTable, Sequence[str], Sequence[str]]]) -> None:
        chosen = [
            (given if isinstance(given, TableUse) else TableUse.of(given), features, outputs)
            for given, features, outputs in selections
        ]
        # Key columns: the entities' own names, or what aliases make of them.
        self.entities: dict[str, DType] = {}
        for use, _, _ in chosen:
            self.entities.update(use.key_dtypes)
        names = list(self.entities)
        plans: dict[str, TablePlan] = {}
        self.names: list[str] = []
        for use, features, outputs in chosen:
            plan = plans.get(use.name) or plans.setdefault(use.name, TablePlan(use, names))
            plan.features += features
            plan.outputs += outputs
            self.names += outputs
        self.plans = list(plans.values())
        self._check_names()
        self.has_max_age = any(plan.max_age_us is not None for plan in self.plans)
        dtypes = [plan.index.table.dtype_of(name) for plan in self.plans for name in plan.features]
        self.has_nested = any(dtype.is_nested for dtype in dtypes)
        self.encoders = [value_encoder(dtype) for dtype in self.entities.values()]
        # An alias may take one column for two entities.
        single = len(self.plans) == 1 and list(self.plans[0].columns) == names
        self._only = self.plans[0] if single else None
        self._pack: Callable[[Any], bytes] = self.encoders[0] if len(self.encoders) == 1 else self._pack_tuple
        self._blank: dict[str, Any] = dict.fromkeys(self.names)

    def _check_names(self) -> None:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        problems = [Problem(f"two features are named {name!r}; use full_feature_names=True") for name in twice]
        problems += [
            Problem(f"the feature {name!r} is named like an entity; use full_feature_names=True")
            for name in dict.fromkeys(self.names)
            if name in self.entities
        ]
        if problems:
            raise input_error("features", problems)

    def get(self, txn: ReadTxn, key: object, now_us: int) -> dict[str, Any]:
        """Values of one key by output name, None where null, absent or too old; `txn` copies values."""
        plan = self._only
        if plan is None:
            return self._get_any(txn, key, now_us)
        # One table, and a key as it should be: the same as below, with no call that can be saved.
        try:
            packed = self._pack(key)
        except InputError:
            return self._get_any(txn, key, now_us)
        full_key = plan.prefix + packed
        raw = txn.get(full_key) if len(packed) <= KEY_BYTES_MAX else None
        if raw is None:
            return self._blank.copy()
        event, values = plan.decode(full_key, raw, key)  # type: ignore[arg-type]
        if plan.max_age_us is not None and now_us - event > plan.max_age_us:
            return self._blank.copy()
        return dict(zip(plan.outputs, values))  # noqa: B905 (strict= takes 0.2 us)

    def _get_any(self, txn: ReadTxn, key: object, now_us: int) -> dict[str, Any]:
        parts = self._encode(key)
        result = self._blank.copy()
        for plan in self.plans:
            found = plan.find(txn, parts)
            if found is not None:
                event, values = plan.decode(*found, key)
                if plan.max_age_us is None or now_us - event <= plan.max_age_us:
                    result.update(zip(plan.outputs, values))  # noqa: B905 (as above)
        return result

    def _pack_tuple(self, key: object) -> bytes:
        if type(key) is not tuple or len(key) != len(self.encoders):
            raise InputError(f"{key!r} is not a tuple of a value for each entity")
        return b"".join([encode(value) for encode, value in zip(self.encoders, key)])  # noqa: B905 (as below)

    def _encode(self, key: object) -> Sequence[bytes | None]:
        """The bytes of each entity's value of one key, None for a null."""
        plain = len(self.encoders) == 1 and not isinstance(key, _COMPOUND)
        values = (key,) if plain else key_values(self.entities, key)
        try:
            return [encode(value) for encode, value in zip(self.encoders, values, strict=True)]
        except InputError:
            # Nulls, numbers of other types and what is wrong: as in a read of many keys.
            columns = key_columns(self.entities, {name: [v] for name, v in zip(self.entities, values, strict=True)})
            return [encode_keys([c]).tolist()[0] if c.valid is None or c.valid[0] else None for c in columns.values()]


def query_of(references: Sequence[tuple[TableUse, str]], full_feature_names: bool) -> OnlineQuery:
    """The query of some features; `DefinitionError` if a table of theirs is not kept online."""
    hidden = sorted({use.table.name for use, _ in references if not use.table.definition.online})
    if hidden:
        raise DefinitionError(f"feature table {', '.join(hidden)} is not kept online; define it with online=True")
    return OnlineQuery(
        [(use, [name], [f"{use.name}__{name}" if full_feature_names else name]) for use, name in references]
    )
