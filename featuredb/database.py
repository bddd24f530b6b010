"""The `Database` facade: wiring, no bytes, no loops over rows."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from featuredb.definitions import Definitions
from featuredb.errors import ClosedError, DefinitionError, InputError, ReadOnlyError
from featuredb.limits import MEMORY_MAP_SIZE_BYTES, QUERIES_HELD_MAX, WRITE_TIMEOUT_SECONDS
from featuredb.loading import Loading, time_range
from featuredb.maintenance import Maintenance
from featuredb.online.few import FEW_ROWS_MAX, read_few
from featuredb.online.keys import key_columns
from featuredb.online.query import OnlineQuery, query_of
from featuredb.online.reader import OnlineReader, now_in_us, read_rows
from featuredb.paths import path_text
from featuredb.schema import Alias, FeatureService, check_aliases
from featuredb.snapshots import Snapshots
from featuredb.storage.env import Env, ReadTxn, open_env
from featuredb.storage.manifest import discard_staged
from featuredb.storage.moving import clear_left_mark, settle
from featuredb.storage.registry import (
    Registry,
    StoredTable,
    read_registry,
    registry_state,
)
from featuredb.storage.remembered import Knowledge, learn, leave
from featuredb.storage.snapshots import SnapshotEnv
from featuredb.threads import check_threads

if TYPE_CHECKING:
    from featuredb.offline.append import Appender
    from featuredb.offline.dictionary import KeyDictionary
    from featuredb.offline.training import TrainingSet
    from featuredb.online.response import OnlineResponse


def open_database(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    create: bool = True,
    durability: Literal["full", "relaxed"] = "full",
    timeout: float = WRITE_TIMEOUT_SECONDS,
) -> Database:
    """Open a featuredb file, or make a new one.

    Parameters
    ----------
    path : str or os.PathLike
        The file; ``":memory:"`` for a database that is gone when closed.
    read_only : bool
        Refuse every call that writes.
    create : bool
        Make the file if it does not exist.
    durability : {"full", "relaxed"}
        With ``"full"`` a call that returned survives power loss. With ``"relaxed"`` the last commit may
        be undone by a power loss (not by a crash of the process); the file stays whole.
    timeout : float
        Seconds a call that writes waits for another writer before it raises `BusyError`.

    Returns
    -------
    Database
        Opening the same file again in a process shares one environment.

    Raises
    ------
    FileError
        If the path cannot be opened: missing with ``create=False``, a directory, empty, no permission.
    NotADatabaseError, FormatVersionError, CorruptionError
        If the file is not ours, newer than this library, or damaged.

    Examples
    --------
    >>> import featuredb as fdb
    >>> with fdb.open(":memory:") as db:
    ...     db.list_feature_tables()
    []
    """
    if durability not in ("full", "relaxed"):
        raise InputError(f"durability must be 'full' or 'relaxed', not {durability!r}")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < inf:
        raise InputError(f"timeout must be a number of seconds, not {timeout!r}")
    folder, map_bytes = None, None
    path = path_text(path)
    if path == ":memory:":
        if read_only:
            raise InputError("':memory:' is always new: it cannot be opened read-only")
        folder = tempfile.mkdtemp(prefix="featuredb-")
        path, map_bytes, durability = os.path.join(folder, "memory.fdb"), MEMORY_MAP_SIZE_BYTES, "relaxed"
    durable = durability == "full"
    try:
        env = open_env(path, create=create and not read_only, readonly=read_only, durable=durable, map_bytes=map_bytes)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return Database(env, read_only=read_only, durable=durable, timeout=timeout, folder=folder)


class Database(Definitions, Loading, Snapshots, Maintenance):
    """One open featuredb file. Made by ``featuredb.open``; safe to use from several threads.

    Every call that writes is one atomic commit; every call that reads sees one commit, whole. Pickled, it is its
    path and options: a process that it is sent to opens the file itself.
    """

    def __init__(self, env: Env, *, read_only: bool, durable: bool, timeout: float, folder: str | None) -> None:
        self._env = env
        self._read_only = read_only
        self._durable = durable
        self._timeout = timeout
        self._in_memory = folder is not None
        # In memory a file is gone when it is closed; a view of a snapshot gets what is known from its database.
        known = Knowledge() if folder is not None or isinstance(env, SnapshotEnv) else learn(env.path)
        self._cache = known.cache
        self._dictionaries: dict[int, KeyDictionary] = known.dictionaries
        self._definitions: tuple[int, bytes, Registry] | None = None
        self._appenders: dict[str, Appender] = {}
        self._queries: dict[tuple[str | tuple[str, ...], tuple[str, ...], bool], tuple[Registry, OnlineQuery]] = {}
        self._closed = False
        # Closes a database that was dropped without close(), at the latest when the process ends.
        self._release = weakref.finalize(self, _release, env, known, folder, os.getpid())

    # --- life ---------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Absolute path of the file."""
        return self._env.path

    def __enter__(self) -> Database:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        label = getattr(self._env, "label", "") + (" (closed)" if self._closed else "")
        return f"<featuredb.Database {self.path!r}{label}>"

    def __reduce__(self) -> tuple[Callable[..., Database], tuple[object, ...]]:
        """Pickle the path and the options: whoever unpickles it, in any process, opens the file anew."""
        self._check_open()
        if self._in_memory:
            raise InputError(
                f"{self!r} is in the memory of this process alone and cannot be pickled; open a file instead"
            )
        durability = "full" if self._durable else "relaxed"
        snapshot = self._env.snapshot.name if isinstance(self._env, SnapshotEnv) else None
        return _reopened, (self.path, self._read_only, durability, self._timeout, snapshot)

    def close(self) -> None:
        """Close the file. Closing twice is allowed; any other use afterwards raises `ClosedError`."""
        self._closed = True
        self._release()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the database {self.path} is closed; open it again with featuredb.open()")

    # --- transactions -------------------------------------------------------------------------

    def _registry(self, txn: ReadTxn) -> Registry:
        """The definitions in this transaction; decoded once for each version of them."""
        return self._registry_with_state(txn)[1]

    def _registry_with_state(self, txn: ReadTxn) -> tuple[bytes, Registry]:
        held, commit = self._definitions, txn.id()
        if held is None or held[0] != commit:
            seen = registry_state(txn)
            state = seen if held is not None and held[1] == seen else settle(txn)
            known = held[2] if held is not None and held[1] == state else read_registry(txn)
            # Where the file is marked and could not be left yet, the next call looks again.
            commit = txn.id() if registry_state(txn) == state else -1
            held = self._definitions = (commit, state, known)
        return held[1], held[2]

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[ReadTxn, Registry]]:
        self._check_open()
        with self._env.read() as txn:
            yield txn, self._registry(txn)

    @contextmanager
    def _writer(self) -> Iterator[None]:
        self._check_open()
        if self._read_only:
            raise ReadOnlyError(f"{self.path} was opened read-only; open it with read_only=False to write")
        with self._env.writer(self._timeout):
            discard_staged(self._env)
            clear_left_mark(self._env)
            yield

    def _dictionary(self, table: StoredTable) -> KeyDictionary:
        from featuredb.offline.dictionary import KeyDictionary

        if table.space_id not in self._dictionaries:
            self._dictionaries.setdefault(table.space_id, KeyDictionary(table.space_id, table.key_dtypes))
        return self._dictionaries[table.space_id]

    # --- train --------------------------------------------------------------------------------

    def get_historical_features(
        self,
        entity_df: Any,
        features: str | FeatureService | Sequence[str],
        *,
        aliases: Mapping[str, Alias] | None = None,
        start: Any = None,
        end: Any = None,
        latest: bool = False,
        known_at: Any = None,
        full_feature_names: bool = False,
        include_event_timestamps: bool = False,
        event_timestamp_column: str = "event_timestamp",
        threads: int | None = None,
    ) -> TrainingSet:
        """Join features onto an entity dataframe, as they were at each row's event timestamp.

        For each row with key k and timestamp t, and for each feature table, the greatest row by event
        then created timestamp with key k and ``t - max_age <= event timestamp <= t``, both included;
        its values as they are. No such row, or a null key or timestamp: nulls.

        Without an entity dataframe (None) the stored rows between `start` and `end` take its place, by
        key, then event timestamp, then created timestamp. The result has the key columns, the event
        timestamp, the created timestamp if one table is asked for and has any, and the features. One
        table gives its rows as they are. Several, which must have the same entities, give one row for
        each key and event timestamp that any of them has, and join at that time as above. With
        `latest` there is one row per key: of each table the greatest row between `start` and `end`,
        whatever the max age, at the newest of their event timestamps.

        Parameters
        ----------
        entity_df : table-like or None
            Keys, event timestamps, and any other columns: whatever `ingest` takes.
        features : str, FeatureService or sequence of str
            A feature service or its name, or references ``"table:feature"``.
        aliases : mapping of str to Alias, optional
            Tables under other names and keyed by other columns of the entity dataframe, beside those
            of the feature service; references may be ``"alias:feature"``.
        start, end : timestamp, optional
            Without an entity dataframe: range of event timestamps, both included.
        latest : bool
            Without an entity dataframe: only the latest of each key.
        known_at : timestamp or str, optional
            Use only rows with a created timestamp up to this time, or up to that of a column of the
            entity dataframe; rows without one count by the time of the commit that ingested them (a row
            that was replaced: of the commit that replaced it, for the values it had before are gone).
        full_feature_names : bool
            Name columns ``table__feature`` or ``alias__feature``.
        include_event_timestamps : bool
            Add a column ``table__event_timestamp`` for each table: when the row that was used happened.
        event_timestamp_column : str
            Column of `entity_df`, or without one of the result, with the timestamps.
        threads : int, optional
            Compute with at most so many threads; left out, with one for each core. The result is the same.

        Returns
        -------
        TrainingSet
            Computed when first converted.

        Raises
        ------
        NotFoundError
            If a table, feature or service does not exist.
        InputError
            If columns are missing or names collide; on conversion, if keys or timestamps have a wrong dtype.

        Examples
        --------
        >>> import featuredb as fdb
        >>> with fdb.open(":memory:") as db:
        ...     _ = db.apply([
        ...         fdb.Entity("city", "string"),
        ...         fdb.FeatureTable("weather", ["city"], [fdb.Feature("temp", "float64")]),
        ...     ])
        ...     times = ["2024-05-01", "2024-05-02", "2024-05-01"]
        ...     data = {"city": ["Oslo", "Oslo", "Bergen"], "event_timestamp": times, "temp": [9.5, 11.0, 8.0]}
        ...     _ = db.ingest("weather", data)
        ...     every = db.get_historical_features(None, ["weather:temp"], start="2024-05-01", end="2024-05-02")
        ...     latest = db.get_historical_features(None, ["weather:temp"], latest=True, end="2024-05-01T12:00Z")
        ...     [training.to_numpy()["temp"].tolist() for training in (every, latest)]
        [[8.0, 9.5, 11.0], [8.0, 9.5]]
        """
        from featuredb.offline.retrieve import training_set

        self._check_open()
        return training_set(
            self._snapshot,
            self._cache,
            self._dictionary,
            entity_df,
            features if isinstance(features, FeatureService) else _names(features),
            time_range(start, end),
            latest=latest,
            aliases=aliases,
            known_at=known_at,
            full_feature_names=full_feature_names,
            include_event_timestamps=include_event_timestamps,
            event_timestamp_column=event_timestamp_column,
            threads=threads,
        )

    # --- serve --------------------------------------------------------------------------------

    def _online_query(
        self,
        registry: Registry,
        features: str | FeatureService | Sequence[str],
        aliases: Mapping[str, Alias] | None,
        full_feature_names: bool,
    ) -> OnlineQuery:
        if isinstance(features, FeatureService):
            aliases = {**features.aliases, **check_aliases(aliases, "features")}
        names = _names(features)
        named = tuple(map(repr, check_aliases(aliases, "features").items())) if aliases is not None else ()
        key = (names if isinstance(names, str) else tuple(map(str, names)), named, full_feature_names)
        held = self._queries.get(key)
        if held is not None and held[0] is registry:
            return held[1]
        query = query_of(registry.references(names, aliases), full_feature_names)
        if len(self._queries) >= QUERIES_HELD_MAX:
            self._queries.clear()
        self._queries[key] = (registry, query)
        return query

    def get_online_features(
        self,
        features: str | FeatureService | Sequence[str],
        entity_rows: Any,
        *,
        aliases: Mapping[str, Alias] | None = None,
        now: Any = None,
        full_feature_names: bool = False,
        threads: int | None = None,
    ) -> OnlineResponse:
        """The latest values of some keys.

        Parameters
        ----------
        features : str, FeatureService or sequence of str
            A feature service or its name, or references ``"table:feature"``.
        entity_rows : list of dicts, dict of sequences or arrays, or dataframe
            One value for each entity of the tables, by entity name, or by the column that an alias names.
        aliases : mapping of str to Alias, optional
            Tables under other names and keyed by other columns, beside those of the feature service;
            references may be ``"alias:feature"``.
        now : timestamp, optional
            What max ages are measured from; the current time if left out.
        full_feature_names : bool
            Name outputs ``table__feature`` or ``alias__feature``.
        threads : int, optional
            Read with at most so many threads; left out, with one for each core when there are rows enough.

        Returns
        -------
        OnlineResponse
            One row for each entity row, in order, repeats kept; with a status for each value.

        Raises
        ------
        NotFoundError
            If a table, feature or service does not exist.
        InputError
            If an entity is missing, a key has a wrong dtype, names collide, or `threads` is not a positive integer.
        """
        check_threads(threads)
        now_us = now_in_us(now)
        self._check_open()
        if type(entity_rows) is list and len(entity_rows) <= FEW_ROWS_MAX:
            with self._env.read(False) as txn:
                query = self._online_query(self._registry(txn), features, aliases, full_feature_names)
                response = read_few(txn, query, entity_rows, now_us)
            if response is not None:
                return response
        with self._snapshot() as (txn, registry):
            query = self._online_query(registry, features, aliases, full_feature_names)
            return read_rows(txn, query, key_columns(query.entities, entity_rows), now_us, threads)

    def online_reader(
        self,
        features: str | FeatureService | Sequence[str],
        *,
        aliases: Mapping[str, Alias] | None = None,
        full_feature_names: bool = False,
    ) -> OnlineReader:
        """A prepared reader for hot loops: names are resolved once, and every new commit is seen.

        Parameters
        ----------
        features : str, FeatureService or sequence of str
            A feature service or its name, or references ``"table:feature"``.
        aliases : mapping of str to Alias, optional
            As for `get_online_features`: a key is then a dict by column, or a tuple in the order in which
            the features name their columns.
        full_feature_names : bool
            Name outputs ``table__feature`` or ``alias__feature``.

        Returns
        -------
        OnlineReader
            With ``get(key)`` and ``get_many(keys)``.
        """
        self._check_open()
        asked = features if isinstance(features, FeatureService) else _names(features)
        aliases = check_aliases(aliases, "features")

        def resolve(txn: ReadTxn) -> tuple[bytes, OnlineQuery]:
            state, registry = self._registry_with_state(txn)
            return state, self._online_query(registry, asked, aliases, full_feature_names)

        again = partial(self.online_reader, asked, aliases=aliases, full_feature_names=full_feature_names)
        return OnlineReader(self._env, resolve, registry_state, again)


def _reopened(
    path: str, read_only: bool, durability: Literal["full", "relaxed"], timeout: float, snapshot: str | None
) -> Database:
    db = open_database(path, read_only=read_only, create=False, durability=durability, timeout=timeout)
    return db if snapshot is None else db.at(snapshot)


def _release(env: Env, known: Knowledge, folder: str | None, pid: int) -> None:
    """Close a database; in memory, remove its folder. A forked child leaves what is its parent's alone."""
    leave(env.path, known)
    env.close()
    if folder is not None and os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _names(features: str | FeatureService | Iterable[str]) -> str | tuple[str, ...]:
    """A service's name, or references in a form that can be read more than once."""
    if isinstance(features, str):
        return features
    if isinstance(features, FeatureService):
        return tuple(features.features)
    if not isinstance(features, Iterable):
        raise DefinitionError(f"features must be a feature service or a list of 'table:feature', not {features!r}")
    return tuple(features)
