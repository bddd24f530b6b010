"""Look-ups over one or several tables: of many keys at once, and by a prepared reader."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, zeroed
from featuredb.frames.convert import as_us
from featuredb.online.index import OnlineRows
from featuredb.online.keys import key_columns
from featuredb.online.query import OnlineQuery
from featuredb.online.response import OnlineArrays, OnlineResponse, ResponseColumns, Status
from featuredb.storage.env import Env, ReadTxn
from featuredb.threads import check_threads

_NAMES_SHOWN_MAX = 10


def now_in_us(now: object = None) -> int:
    """`now` (a timestamp; None: the current time) in microseconds UTC."""
    return time.time_ns() // 1000 if now is None else as_us(now, "now")


def read_rows(
    txn: ReadTxn, query: OnlineQuery, keys: Mapping[str, Column], now_us: int, threads: int | None = None
) -> OnlineResponse:
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
    threads : int, optional
        At most so many; all cores, if it pays, when left out.
    """
    columns = respond(query, keys, [plan.read(txn, keys, threads) for plan in query.plans], now_us)
    return OnlineResponse(lambda: columns)


def respond(
    query: OnlineQuery, keys: Mapping[str, Column], found: Sequence[OnlineRows], now_us: int
) -> ResponseColumns:
    """The columns made of the rows that were `found` for each plan of the query."""
    features: dict[str, Column] = {}
    codes: dict[str, NDArray[np.uint8]] = {}
    events = {}
    for plan, rows in zip(query.plans, found, strict=True):
        outside = None
        if plan.max_age_us is not None:
            # Absent rows hold the least int64, from which nothing may be subtracted.
            outside = rows.found & (rows.event < now_us - plan.max_age_us)
        for feature, name in zip(plan.features, plan.outputs, strict=True):
            features[name], codes[name] = _with_status(rows.columns[feature], rows.found, outside)
        events[plan.use_name] = rows.event.view("datetime64[us]")
    return ResponseColumns(
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
    again : callable
        Makes such a reader once more; it can be pickled, where the reader cannot.
    """

    def __init__(
        self,
        env: Env,
        resolve: Callable[[ReadTxn], tuple[object, OnlineQuery]],
        definitions_version: Callable[[ReadTxn], object],
        again: Callable[[], OnlineReader],
    ) -> None:
        self._env = env
        self._again = again
        self._resolve = resolve
        self._definitions_version = definitions_version
        self._prepared: tuple[int, object, OnlineQuery]
        with env.read() as txn:
            version, query = resolve(txn)
            self._prepared = (-1, version, query)

    def __reduce__(self) -> tuple[Callable[[], OnlineReader], tuple[()]]:
        return self._again, ()

    def _query(self, txn: ReadTxn) -> OnlineQuery:
        commit, version, query = self._prepared
        if commit != txn.id():
            if version != self._definitions_version(txn):
                version, query = self._resolve(txn)
            # While the file is marked and cannot be left, the version is another: the next call looks again.
            commit = txn.id() if version == self._definitions_version(txn) else -1
            self._prepared = (commit, version, query)
        return query

    def __repr__(self) -> str:
        _, _, query = self._prepared
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
        # The clock is read for tables with a max age alone.
        now_us = 0 if now is None else as_us(now, "now")
        with self._env.read(False) as txn:
            commit, _, query = self._prepared
            if commit != txn.id():
                query = self._query(txn)
            if now is None and query.has_max_age:
                now_us = time.time_ns() // 1000
            return query.get(txn, key, now_us)

    def get_many(self, keys: object, *, now: object = None, threads: int | None = None) -> OnlineArrays:
        """Features of many keys, in their order, repeats kept.

        Parameters
        ----------
        keys : sequence, ndarray, dict of arrays, or dataframe
            A sequence of keys as for `get`, an array of the values of a single entity, or a column
            per entity.
        now : timestamp, optional
            What max ages are measured from; the current time if left out.
        threads : int, optional
            Read with at most so many threads; left out, with one for each core when there are keys enough.

        Raises
        ------
        InputError
            Lists every entity and the first row whose value is not of its dtype. Also if `threads` is not a
            positive integer.
        """
        check_threads(threads)
        now_us = now_in_us(now)
        with self._env.read() as txn:
            query = self._query(txn)
            return read_rows(txn, query, key_columns(query.entities, keys), now_us, threads).to_arrays()
