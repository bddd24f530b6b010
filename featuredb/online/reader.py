"""Look-ups over one or several tables: a query resolved once, then read for one key or for many."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, zeroed
from featuredb.errors import DefinitionError, InputError, Problem, input_error
from featuredb.frames.convert import as_us
from featuredb.limits import KEY_BYTES_MAX
from featuredb.online.index import OnlineIndex, OnlineRows
from featuredb.online.keys import key_columns, key_values
from featuredb.online.response import OnlineArrays, OnlineResponse, Status
from featuredb.online.row import HEADER_BYTES, RowReader, damaged
from featuredb.schema import DType
from featuredb.storage.env import Env, ReadTxn
from featuredb.storage.keys import encode_keys, value_encoder
from featuredb.storage.references import TableUse
from featuredb.storage.registry import StoredTable

# A union would be built anew at each call.
_COMPOUND = (dict, tuple)
_NAMES_SHOWN_MAX = 10


def now_in_us(now: object = None) -> int:
    """`now` (a timestamp; None: the current time) in microseconds UTC."""
    return time.time_ns() // 1000 if now is None else as_us(now, "now")


class _TablePlan:
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
        self._readers: dict[int, RowReader] = {}

    def get(self, txn: ReadTxn, parts: Sequence[bytes | None], key: object, now_us: int) -> list[Any] | None:
        """Values of one key in the order of `outputs`; None if there is no row, or none young enough."""
        places = self.key_places
        if len(places) == 1:
            packed = parts[places[0]]
        else:
            chosen = [parts[place] for place in places]
            packed = None if None in chosen else b"".join(chosen)  # type: ignore[arg-type]
        if packed is None or len(packed) > KEY_BYTES_MAX:
            return None
        buffer = txn.get(self.prefix + packed)
        if buffer is None:
            return None
        if len(buffer) < HEADER_BYTES:
            raise damaged(f"{len(buffer)} bytes are too few for a row", self.name, key)
        version = buffer[4] | buffer[5] << 8
        reader = self._readers.get(version) or self._make_reader(version, key)
        event, _, _, values = reader.read(buffer, self.name, key)
        if self.max_age_us is not None and now_us - event > self.max_age_us:
            return None
        return values

    def _make_reader(self, version: int, key: object) -> RowReader:
        ids = self.index.table.feature_ids
        reader = RowReader(self.index.layout(version, lambda _: key), [ids[name] for name in self.features])
        self._readers[version] = reader
        return reader

    def read(self, txn: ReadTxn, keys: Mapping[str, Column]) -> OnlineRows:
        """Rows of many keys; a key with a null in it has none."""
        columns = [keys[name] for name in self.columns]
        masks = [column.valid for column in columns if column.valid is not None]
        if not masks:
            return self.index.read(txn, encode_keys(columns), self.features)
        whole = np.logical_and.reduce(masks)
        rows = np.flatnonzero(whole)
        found = self.index.read(txn, encode_keys([column.take(rows) for column in columns]), self.features)
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
        plans: dict[str, _TablePlan] = {}
        self.names: list[str] = []
        for use, features, outputs in chosen:
            plan = plans.get(use.name) or plans.setdefault(use.name, _TablePlan(use, names))
            plan.features += features
            plan.outputs += outputs
            self.names += outputs
        self.plans = list(plans.values())
        self._check_names()
        self._encoders = [value_encoder(dtype) for dtype in self.entities.values()]
        self._encode_single = self._encoders[0] if len(self._encoders) == 1 else None
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
        """Values of one key by output name, None where null, absent or too old."""
        parts = self._encode(key)
        # Of equal length by construction; zip(strict=True) would take 0.2 us more.
        if len(self.plans) == 1:
            plan = self.plans[0]
            values = plan.get(txn, parts, key, now_us)
            return self._blank.copy() if values is None else dict(zip(plan.outputs, values, strict=False))
        result = self._blank.copy()
        for plan in self.plans:
            values = plan.get(txn, parts, key, now_us)
            if values is not None:
                result.update(zip(plan.outputs, values, strict=False))
        return result

    def _encode(self, key: object) -> Sequence[bytes | None]:
        """The bytes of each entity's value of one key, None for a null."""
        single = self._encode_single
        plain = single is not None and not isinstance(key, _COMPOUND)
        values = (key,) if plain else key_values(self.entities, key)
        try:
            if single is not None:
                return (single(values[0]),)
            return [encode(value) for encode, value in zip(self._encoders, values, strict=True)]
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


def read_rows(txn: ReadTxn, query: OnlineQuery, keys: Mapping[str, Column], now_us: int) -> OnlineResponse:
    """Values and statuses of many keys.

    Parameters
    ----------
    txn : ReadTxn
        The commit to read.
    query : OnlineQuery
        Resolved against the same commit.
    keys : mapping of str to Column
        A column per entity of the query, as from `key_columns`.
    now_us : int
        The time that max ages are measured from, in microseconds UTC.
    """
    features: dict[str, Column] = {}
    codes: dict[str, NDArray[np.uint8]] = {}
    events = {}
    for plan in query.plans:
        rows = plan.read(txn, keys)
        outside = None
        if plan.max_age_us is not None:
            # Absent rows hold the least int64, from which nothing may be subtracted.
            outside = rows.found & (rows.event < now_us - plan.max_age_us)
        for feature, name in zip(plan.features, plan.outputs, strict=True):
            features[name], codes[name] = _with_status(rows.columns[feature], rows.found, outside)
        events[plan.use_name] = rows.event.view("datetime64[us]")
    return OnlineResponse(
        {name: keys[name] for name in query.entities},
        {name: features[name] for name in query.names},
        {name: codes[name] for name in query.names},
        events,
    )


def _with_status(
    column: Column, found: NDArray[np.bool_], outside: NDArray[np.bool_] | None
) -> tuple[Column, NDArray[np.uint8]]:
    """The column without the values that are too old, and the status code of each."""
    codes = np.zeros(len(column), dtype=np.uint8)
    valid = column.valid
    if valid is not None:
        codes[~valid] = Status.NULL_VALUE
    if outside is not None and outside.any():
        codes[outside] = Status.OUTSIDE_MAX_AGE
        valid = ~outside if valid is None else valid & ~outside
        column = Column(column.dtype, zeroed(column.data, valid), valid, column.heap)
    codes[~found] = Status.NOT_FOUND
    return column, codes


class OnlineReader:
    """A prepared look-up for hot loops. Sees each new commit; safe to use from several threads.

    Parameters
    ----------
    env : Env
        The file.
    resolve : callable
        From a transaction to the version of the definitions in it, and the query by them.
    definitions_version : callable
        From a transaction to a number that changes with the definitions; cheap.
    """

    def __init__(
        self,
        env: Env,
        resolve: Callable[[ReadTxn], tuple[object, OnlineQuery]],
        definitions_version: Callable[[ReadTxn], object],
    ) -> None:
        self._env = env
        self._resolve = resolve
        self._definitions_version = definitions_version
        with env.read() as txn:
            self._prepared = resolve(txn)

    def _query(self, txn: ReadTxn) -> OnlineQuery:
        version, query = self._prepared
        current = self._definitions_version(txn)
        if version != current:
            current, query = self._resolve(txn)
            self._prepared = (current, query)
        return query

    def __repr__(self) -> str:
        _, query = self._prepared
        shown = ", ".join(query.names[:_NAMES_SHOWN_MAX]) + (", ..." if len(query.names) > _NAMES_SHOWN_MAX else "")
        return f"<OnlineReader: key ({', '.join(query.entities)}), features {shown}>"

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of the entities, in the order that the values of a tuple key have."""
        with self._env.read() as txn:
            return tuple(self._query(txn).entities)

    def get(self, key: object, *, now: object = None) -> dict[str, Any]:
        """Features of one key.

        Parameters
        ----------
        key : object
            The entity's value; for several entities a tuple in the order of `entities`, or a dict by name.
        now : timestamp, optional
            What max ages are measured from; the current time if left out.

        Returns
        -------
        dict
            Output name to plain Python value, or read-only array for a vector; None where null, not found or
            outside the max age.

        Raises
        ------
        InputError
            If the key is not of the entities' dtypes.
        """
        now_us = time.time_ns() // 1000 if now is None else as_us(now, "now")
        with self._env.read() as txn:
            return self._query(txn).get(txn, key, now_us)

    def get_many(self, keys: object, *, now: object = None) -> OnlineArrays:
        """Features of many keys, in their order, repeats kept.

        Parameters
        ----------
        keys : sequence, ndarray, dict of arrays, or dataframe
            A sequence of keys as for `get`, an array of the values of a single entity, or a column
            per entity.
        now : timestamp, optional
            What max ages are measured from; the current time if left out.

        Raises
        ------
        InputError
            Lists every entity and the first row whose value is not of its dtype.
        """
        now_us = now_in_us(now)
        with self._env.read() as txn:
            query = self._query(txn)
            return read_rows(txn, query, key_columns(query.entities, keys), now_us).to_arrays()
