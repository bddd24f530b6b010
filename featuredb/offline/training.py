"""Training sets: features joined onto an entity dataframe, point-in-time correct, computed when asked for."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

import featuredb
from featuredb.columns import Column, concat
from featuredb.errors import InputError, Problem, input_error
from featuredb.frames import Frame, TableInput, as_column, as_us, detached
from featuredb.frames.from_arrow import arrow
from featuredb.frames.read_csv import read_typed
from featuredb.frames.write import EntityFrame, ParquetWriter
from featuredb.limits import ABSENT_US, JOIN_BATCH_ROWS
from featuredb.offline.dictionary import KeyDictionary
from featuredb.offline.lineage import PARQUET_KEY, EntityHash, file_id, known_at_text, snapshot_name
from featuredb.offline.prepare import missing_columns
from featuredb.offline.search import Found, Gatherer, Query, make_query, search, with_max_age
from featuredb.schema import DTYPES, Alias, DType, FeatureService, check_aliases
from featuredb.storage.env import ReadTxn
from featuredb.storage.keys import encode_keys, too_long
from featuredb.storage.log import commit_times, last_commit
from featuredb.storage.manifest import read_manifest
from featuredb.storage.references import TableUse
from featuredb.storage.registry import Registry, StoredTable
from featuredb.storage.segment import SegmentCache

_SUBJECT = "entity dataframe"
_NAMES_SHOWN_MAX = 10


@dataclass(frozen=True)
class Selection:
    """What a join produces: for each table its features, in the order asked, and their output names."""

    outputs: Sequence[tuple[TableUse, str, str]]
    event_timestamps: Mapping[str, str]

    @property
    def uses(self) -> list[TableUse]:
        return list({use.name: use for use, _, _ in self.outputs}.values())

    @property
    def tables(self) -> list[StoredTable]:
        return list({use.table.id: use.table for use, _, _ in self.outputs}.values())

    @property
    def key_dtypes(self) -> dict[str, DType]:
        """The key columns of the tables, with their dtypes."""
        return {name: dtype for use in self.uses for name, dtype in use.key_dtypes.items()}


def output_name(table: str, feature: str, full_feature_names: bool) -> str:
    """Name of a feature's column in a result."""
    return f"{table}__{feature}" if full_feature_names else feature


def select(
    references: Sequence[tuple[TableUse, str]],
    columns: Sequence[str],
    *,
    full_feature_names: bool,
    include_event_timestamps: bool,
    subject: str = _SUBJECT,
) -> Selection:
    """Name the output columns; an `InputError` lists every collision and its remedy."""
    outputs = [(table, name, output_name(table.name, name, full_feature_names)) for table, name in references]
    events = {table.name: f"{table.name}__event_timestamp" for table, _ in references if include_event_timestamps}
    names = [name for _, _, name in outputs] + list(events.values())
    remedy = "rename the column" if full_feature_names else "pass full_feature_names=True"
    problems = [
        Problem(f"two of the features asked for would both be named so; {remedy}", column=name)
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    problems += [
        Problem(f"a feature would be named like this column of the {subject}; {remedy}", column=name)
        for name in dict.fromkeys(names)
        if name in columns
    ]
    if problems:
        raise input_error("features", problems)
    return Selection(outputs, events)


class Joiner:
    """Joins batches of entity rows within one transaction.

    Parameters
    ----------
    txn : ReadTxn
        The commit that is joined.
    cache : SegmentCache
        Of the file.
    dictionary_of : callable
        From a table to the dictionary of its key space.
    selection : Selection
        What to join, as the definitions of this commit have it.
    event_column : str
        Name of the event timestamp column.
    known_at : int, str or None
        Microseconds UTC, or the name of a column.
    seen : callable
        Given the columns of each batch that the join reads: keys, timestamps, known_at.
    """

    def __init__(
        self,
        txn: ReadTxn,
        cache: SegmentCache,
        dictionary_of: Callable[[StoredTable], KeyDictionary],
        selection: Selection,
        event_column: str,
        known_at: int | str | None,
        seen: Callable[[dict[str, Column]], None],
    ) -> None:
        self._txn = txn
        self._seen = seen
        self._dictionary_of = dictionary_of
        self._selection = selection
        self._event_column = event_column
        self._known_at = known_at
        self._readers = {
            table.id: [cache.reader(txn, table.id, ref) for ref in read_manifest(txn, table.id).segments]
            for table in selection.tables
        }

    def join(self, frame: Frame, first_row: int) -> dict[str, Column]:
        """The output columns for one batch of entity rows, in its order."""
        keys, times, known = self._read(frame, first_row)
        by_column = {self._known_at: known} if isinstance(self._known_at, str) and known is not None else {}
        self._seen({**keys, self._event_column: times, **by_column})
        usable = np.ones(frame.rows, dtype=np.bool_) if times.valid is None else times.valid
        known_us = times_of_commits = np.zeros(0, dtype=np.int64)
        if known is not None:
            known_us, times_of_commits = known.data, self._commit_times
            usable = usable if known.valid is None else usable & known.valid
        queries: dict[tuple[int, tuple[str, ...]], Query] = {}
        founds: dict[str, Found] = {}
        for use in self._selection.uses:
            space = (use.table.space_id, use.columns)
            if space not in queries:
                codes = self._codes(use, keys, frame.rows)
                queries[space] = make_query(codes, times.data, usable, known_us, times_of_commits)
            query = with_max_age(queries[space], use.table.definition.max_age_us)
            founds[use.name] = search(self._readers[use.table.id], query)
        return gather(self._selection, founds)

    def _read(self, frame: Frame, first_row: int) -> tuple[dict[str, Column], Column, Column | None]:
        """Entity key columns, event timestamps and known_at of the batch; all problems in one error."""
        problems: list[Problem] = []

        def convert(name: str, dtype: DType) -> Column:
            result = as_column(frame.column(name), dtype, name)
            problems.extend(result.problems(first_row))
            return result.column

        keys = {name: convert(name, dtype) for name, dtype in self._selection.key_dtypes.items()}
        times = convert(self._event_column, DTYPES["timestamp"])
        known = None
        if isinstance(self._known_at, str):
            known = convert(self._known_at, DTYPES["timestamp"])
        elif self._known_at is not None:
            known = Column(DTYPES["timestamp"], np.full(frame.rows, self._known_at, dtype=np.int64))
        if problems:
            raise input_error(_SUBJECT, problems)
        return keys, times, known

    @cached_property
    def _commit_times(self) -> NDArray[np.int64]:
        return np.array(commit_times(self._txn), dtype=np.int64)

    def _codes(self, use: TableUse, keys: Mapping[str, Column], rows: int) -> NDArray[np.int32]:
        """The code of each row's key, -1 where it is null, unknown or too long to be stored."""
        columns = [keys[name] for name in use.columns]
        present = np.ones(rows, dtype=np.bool_)
        for column in columns:
            if column.valid is not None:
                present &= column.valid
        codes = np.full(rows, -1, dtype=np.int32)
        encoded = encode_keys([column if present.all() else column.take(present) for column in columns])
        long = too_long(encoded)
        if len(long):
            present[np.flatnonzero(present)[long]] = False
            encoded = encoded.take(np.setdiff1d(np.arange(len(encoded)), long))
        if len(encoded):
            codes[present] = self._dictionary_of(use.table).lookup(self._txn, encoded)
        return codes


def gather(selection: Selection, founds: Mapping[str, Found]) -> dict[str, Column]:
    """The output columns of what was found, by the name of each table's use."""
    gatherers = {name: Gatherer(found) for name, found in founds.items()}
    columns = {}
    for use, feature, name in selection.outputs:
        columns[name] = gatherers[use.name].feature(use.table.feature_ids[feature], use.table.dtype_of(feature))
    for use_name, name in selection.event_timestamps.items():
        columns[name] = timestamps(founds[use_name].event_out())
    return columns


def timestamps(values: NDArray[np.int64]) -> Column:
    """Timestamps, null where `ABSENT_US`."""
    valid = values != ABSENT_US
    if valid.all():
        return Column(DTYPES["timestamp"], values)
    return Column(DTYPES["timestamp"], np.where(valid, values, 0), valid)


def shown_names(names: Sequence[str]) -> str:
    """The first of `names`, for a repr."""
    return ", ".join(names[:_NAMES_SHOWN_MAX]) + (", ..." if len(names) > _NAMES_SHOWN_MAX else "")


# Opens a transaction, and gives it with the definitions as of its commit.
Snapshot = Callable[[], AbstractContextManager[tuple[ReadTxn, Registry]]]


class TrainingSet:
    """Features joined onto an entity dataframe; computed at the first conversion, and only once.

    The join reads the commit that is current when it is computed; `commit_id` says which. Rows, order,
    index and other columns of the entity dataframe come back as they were when the set was made, repeats
    kept; feature columns follow in the order asked. A file is read when the join is computed. Of a CSV
    file, keys and timestamps have the dtypes that the join reads, other columns those that pandas infers.

    Memory: the entity dataframe and the result. `to_parquet` of more than a million rows streams instead,
    and holds one batch of a million rows at a time beside an entity dataframe that is in memory. CSV files
    are held in memory, Parquet files and Arrow streams are not. What was streamed is not kept: a later
    conversion joins again, then on the commit of that time.

    Examples
    --------
    >>> import featuredb as fdb
    >>> with fdb.open(":memory:") as db:
    ...     _ = db.apply([
    ...         fdb.Entity("city", "string"),
    ...         fdb.FeatureTable("weather", ["city"], [fdb.Feature("temp", "float64")]),
    ...     ])
    ...     _ = db.ingest("weather", {"city": ["Oslo"], "event_timestamp": ["2024-05-01T12:00Z"], "temp": [9.5]})
    ...     rows = {"city": ["Oslo", "Oslo"], "event_timestamp": ["2024-05-01T11:59Z", "2024-05-01T12:00Z"]}
    ...     db.get_historical_features(rows, ["weather:temp"]).to_numpy()["temp"].tolist()
    [None, 9.5]
    """

    def __init__(
        self,
        snapshot: Snapshot,
        cache: SegmentCache,
        dictionary_of: Callable[[StoredTable], KeyDictionary],
        given: TableInput,
        features: str | FeatureService | Sequence[str],
        *,
        aliases: Mapping[str, Alias] | None,
        known_at: object,
        full_feature_names: bool,
        include_event_timestamps: bool,
        event_timestamp_column: str,
    ) -> None:
        self._snapshot = snapshot
        self._cache = cache
        self._dictionary_of = dictionary_of
        self._given = detached(given)
        self._features = features
        self._aliases = check_aliases(aliases, "features")
        self._known_at = _known_at(known_at, given.names)
        self._full_feature_names = full_feature_names
        self._include_event_timestamps = include_event_timestamps
        self._event_column = event_timestamp_column
        self._lock = threading.RLock()
        self._commit_id: int | None = None
        self._entities: EntityFrame | None = None
        self._columns: dict[str, Column] = {}
        # What the join read of the entity dataframe, hashed when its lineage is asked for.
        self._seen: list[dict[str, Column]] = []
        self._lineage: dict[str, Any] = {}
        with snapshot() as (_, registry):
            selection = self._select(registry)
        self._check(selection)
        self._needed = self._dtypes(selection)
        self._names = [name for _, _, name in selection.outputs]
        self._event_outputs = list(selection.event_timestamps.values())

    def __repr__(self) -> str:
        count = self._given.rows
        rows = "entity rows of a file or stream" if count is None else f"{count:,} entity row{'s'[: count != 1]}"
        names = [*self._names, *self._event_outputs]
        state = "not computed yet" if self._commit_id is None else f"joined at commit {self._commit_id}"
        return f"<TrainingSet: {rows}, columns {shown_names(names)}; {state}>"

    def _select(self, registry: Registry) -> Selection:
        return select(
            registry.references(self._features, self._aliases),
            self._given.names,
            full_feature_names=self._full_feature_names,
            include_event_timestamps=self._include_event_timestamps,
        )

    def _check(self, selection: Selection) -> None:
        """An `InputError` that lists the columns that the join reads and the entity dataframe lacks."""
        roles: dict[str, str] = {}
        for use in selection.uses:
            for name in use.columns:
                roles.setdefault(name, use.role(name))
        roles[self._event_column] = "event timestamp; name it with event_timestamp_column"
        if isinstance(self._known_at, str):
            roles[self._known_at] = "known_at"
        problems = missing_columns(self._given, roles, "entity dataframe")
        if problems:
            raise input_error(_SUBJECT, problems)

    def _dtypes(self, selection: Selection) -> dict[str, DType]:
        """The columns of the entity dataframe that the join reads, and as what."""
        timestamps = [self._event_column, *([self._known_at] if isinstance(self._known_at, str) else [])]
        # An entity may be the event timestamp as well: if it is text, the join reads that as timestamps.
        return {**dict.fromkeys(timestamps, DTYPES["timestamp"]), **selection.key_dtypes}

    def _read(self) -> TableInput:
        """The entity dataframe; a CSV file is read here, once."""
        with self._lock:
            if self._given.text:
                self._given = read_typed(self._given, self._needed)
            return self._given

    def _joiner(self, txn: ReadTxn, registry: Registry, seen: Callable[[dict[str, Column]], None]) -> Joiner:
        last = last_commit(txn)
        self._commit_id = 0 if last is None else last.id
        selection = self._select(registry)
        self._check(selection)  # definitions may have changed since the set was made
        self._lineage = self._facts(txn, selection, self._known_at)
        return Joiner(txn, self._cache, self._dictionary_of, selection, self._event_column, self._known_at, seen)

    def _facts(self, txn: ReadTxn, selection: Selection, known_at: int | str | None) -> dict[str, Any]:
        """The lineage, but for the hash of the entity dataframe."""
        aliases = {
            use.name: {"table": use.table.name, "keys": use.keys}
            for use in selection.uses
            if use.name != use.table.name
        }
        return {
            "file_id": file_id(txn),
            "commit_id": self._commit_id,
            "snapshot": snapshot_name(txn),
            "features": [f"{use.name}:{feature}" for use, feature, _ in selection.outputs],
            **({"aliases": aliases} if aliases else {}),
            "entity_df": None,
            "known_at": known_at_text(known_at),
            "featuredb": featuredb.__version__,
        }

    def _compute(self) -> tuple[EntityFrame, dict[str, Column]]:
        with self._lock:
            if self._entities is None:
                # A frame in memory is one batch; a file or a stream is read, and joined, batch by batch.
                given = self._read()
                native = given.native
                batches = (
                    given.batches(None, JOIN_BATCH_ROWS)
                    if native is None
                    else given.batches(list(self._needed), max(given.rows or 0, 1))
                )
                natives, parts, first = [], [], 0
                with self._snapshot() as (txn, registry):
                    self._seen = []
                    joiner = self._joiner(txn, registry, self._seen.append)
                    for frame in batches:
                        natives.append(frame.native)
                        parts.append(joiner.join(frame, first))
                        first += frame.rows
                self._columns = {name: concat([part[name] for part in parts]) for name in parts[0]}
                self._entities = EntityFrame(arrow().concat_tables(natives) if native is None else native)
            return self._entities, self._columns

    @property
    def commit_id(self) -> int:
        """The commit that was joined (computes the join)."""
        if self._commit_id is None:
            self._compute()
        assert self._commit_id is not None
        return self._commit_id

    @property
    def lineage(self) -> dict[str, Any]:
        """Where this comes from (computes the join): all that it takes to make it again.

        Returns
        -------
        dict
            ``file_id``: of the file and its backups; ``commit_id``: the commit that was joined; ``snapshot``:
            the name of the one it was joined at, or None; ``features``: the references; ``aliases``: if any is
            used, the table and key columns of each; ``entity_df``: SHA-256 of the columns that the join reads
            (keys, event timestamp, known_at column), the same from every container; ``known_at``: ISO 8601 UTC,
            the name of a column, or None; ``featuredb``: the version. The same lineage on the same snapshot gives
            the same bytes, whatever was merged, compacted, ingested or backed up since.
        """
        if self._lineage.get("entity_df") is None:
            self._compute()
        with self._lock:
            if self._lineage["entity_df"] is None:
                entities = EntityHash()
                for columns in self._seen:
                    entities.update(columns)
                self._lineage["entity_df"] = entities.hexdigest()
                self._seen = []
            return {**self._lineage, "features": list(self._lineage["features"])}

    def to_pandas(self) -> Any:
        """The entity dataframe with the feature columns, as a ``pandas.DataFrame``.

        Floats are numpy floats with NaN for null; integers and bools are numpy dtypes, or pandas'
        nullable ones where there are nulls; strings are pandas' default for strings; timestamps are
        ``datetime64[us, UTC]``; included event timestamps are in the time zone of the caller's.
        """
        entities, columns = self._compute()
        return entities.in_zone(entities.to_pandas(columns), self._event_column, self._event_outputs)

    to_df = to_pandas

    def to_arrow(self) -> Any:
        """The entity dataframe with the feature columns, as a ``pyarrow.Table``.

        Raises
        ------
        MissingExtraError
            If pyarrow is not installed.
        """
        entities, columns = self._compute()
        return entities.in_zone(entities.to_arrow(columns), self._event_column, self._event_outputs)

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """The feature columns alone: name to array of shape (rows,), read-only.

        A column with nulls is a ``numpy.ma.MaskedArray`` (NaN, 0, False, NaT or None under the mask);
        timestamps are ``datetime64[us]`` UTC, strings and bytes objects. Vectors are an array of shape
        (rows, length), lists an object array of arrays.
        """
        entities, columns = self._compute()
        arrays = entities.to_numpy(columns)
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def to_parquet(self, path: str | os.PathLike[str]) -> int:
        """Write the entity dataframe with the feature columns to a Parquet file (zstd).

        The file appears when it is whole. Unless the join is already computed, entity dataframes of
        more than a million rows, and streams, are joined and written a million rows at a time, from one
        commit. That result is not kept: a later conversion, or a second `to_parquet`, joins again.
        The file's metadata has the `lineage` as JSON under the key ``featuredb``. (Before pyarrow 17, metadata must be
        written first: then a file written a million rows at a time lacks the hash of the entity dataframe.)

        Parameters
        ----------
        path : str or os.PathLike
            Replaced if it exists.

        Returns
        -------
        int
            Rows written.

        Raises
        ------
        FileError
            If the file cannot be written.
        InputError
            If `path` is no path, or a column cannot be held by Parquet.
        MissingExtraError
            If pyarrow is not installed.
        """
        rows = 0
        with ParquetWriter(path) as writer:
            for table in self._tables():
                # Where metadata cannot follow, what is known by now comes first.
                writer.write(table, {PARQUET_KEY: self._lineage_json()})
                rows += table.num_rows
            writer.annotate({PARQUET_KEY: self._lineage_json()})
        return rows

    def _lineage_json(self) -> bytes:
        lineage = self._lineage if self._entities is None else self.lineage
        return json.dumps(lineage, separators=(",", ":")).encode()

    def _tables(self) -> Iterator[Any]:
        given = self._read()
        small = given.rows is not None and given.rows <= JOIN_BATCH_ROWS
        if self._entities is not None or small:
            yield self.to_arrow()
            return
        whole = None if given.native is None else EntityFrame(given.native)
        entities = EntityHash()
        with self._snapshot() as (txn, registry):
            joiner = self._joiner(txn, registry, entities.update)
            first = 0
            for frame in given.batches(None, JOIN_BATCH_ROWS):
                columns = joiner.join(frame, first)
                part = EntityFrame(frame.native) if whole is None else whole.slice(first, first + frame.rows)
                yield part.in_zone(part.to_arrow(columns), self._event_column, self._event_outputs)
                first += frame.rows
        self._lineage["entity_df"] = entities.hexdigest()


def _known_at(known_at: object, columns: Sequence[str]) -> int | str | None:
    """`known_at` as microseconds, or as the name of a column."""
    if known_at is None or (isinstance(known_at, str) and known_at in columns):
        return known_at
    try:
        return as_us(known_at, "known_at")
    except InputError as error:
        if isinstance(known_at, str):
            raise InputError(
                f"known_at: {known_at!r} is neither a column of the entity dataframe nor a timestamp; give one of them"
            ) from None
        raise error
