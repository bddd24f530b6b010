"""Training sets: features joined onto an entity dataframe, point-in-time correct, computed when asked for."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from numpy.typing import NDArray

import featuredb
from featuredb.columns import Column, concat
from featuredb.errors import InputError, input_error
from featuredb.frames import TableInput, as_us, detached
from featuredb.frames.from_arrow import arrow
from featuredb.frames.read_csv import read_typed
from featuredb.frames.write import EntityFrame, ParquetWriter
from featuredb.limits import JOIN_BATCH_ROWS
from featuredb.offline.dictionary import KeyDictionary
from featuredb.offline.explain import Explanation
from featuredb.offline.joiner import SUBJECT, Joiner, Selection, select
from featuredb.offline.lineage import PARQUET_KEY, EntityHash, file_id, known_at_text, snapshot_name
from featuredb.offline.prepare import missing_columns
from featuredb.progress import Report, reporter
from featuredb.schema import DTYPES, Alias, DType, FeatureService, check_aliases
from featuredb.storage.env import ReadTxn
from featuredb.storage.log import last_commit
from featuredb.storage.registry import Registry, StoredTable
from featuredb.storage.segment import SegmentCache
from featuredb.threads import check_threads, cores

_NAMES_SHOWN_MAX = 10


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
        threads: int | None,
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
        self._threads = check_threads(threads)
        self._explanation = Explanation(self._threads or cores())
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

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a training set belongs to its database and cannot be pickled; pickle what to_arrow(), to_pandas() or "
            "to_numpy() return, or the database"
        )

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
            raise input_error(SUBJECT, problems)

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
        self._explanation.start(self._commit_id)
        return Joiner(
            txn,
            self._cache,
            self._dictionary_of,
            selection,
            self._event_column,
            self._known_at,
            seen,
            self._explanation,
            self._threads,
        )

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

    def explain(self) -> Explanation:
        """How the join was computed (computes it): what was searched and read, how, and in what time.

        Returns
        -------
        Explanation
            Print it, or take its ``to_dict()``.

        Examples
        --------
        >>> import featuredb as fdb
        >>> with fdb.open(":memory:") as db:
        ...     table = fdb.FeatureTable("weather", ["city"], [fdb.Feature("temp", "float64")])
        ...     _ = db.apply([fdb.Entity("city", "string"), table])
        ...     _ = db.ingest("weather", {"city": ["Oslo"], "event_timestamp": ["2024-05-01"], "temp": [9.5]})
        ...     rows = {"city": ["Oslo", "Bergen"], "event_timestamp": ["2024-05-02", "2024-05-02"]}
        ...     explanation = db.get_historical_features(rows, ["weather:temp"]).explain()
        ...     [explanation.to_dict()["tables"]["weather"][name] for name in ("rows_searched", "rows_found")]
        [1, 1]
        """
        if self._commit_id is None:
            self._compute()
        return self._explanation

    def to_pandas(self) -> Any:
        """The entity dataframe with the feature columns, as a ``pandas.DataFrame``.

        Floats are numpy floats with NaN for null; integers and bools are numpy dtypes, or pandas'
        nullable ones where there are nulls; strings are pandas' default for strings; timestamps are
        ``datetime64[us, UTC]``; included event timestamps are in the time zone of the caller's.
        """
        entities, columns = self._compute()
        with self._explanation.stage("convert"):
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
        with self._explanation.stage("convert"):
            return entities.in_zone(entities.to_arrow(columns), self._event_column, self._event_outputs)

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """The feature columns alone: name to array of shape (rows,), read-only.

        A column with nulls is a ``numpy.ma.MaskedArray`` (NaN, 0, False, NaT or None under the mask);
        timestamps are ``datetime64[us]`` UTC, strings and bytes objects. Vectors are an array of shape
        (rows, length), lists an object array of arrays.
        """
        entities, columns = self._compute()
        with self._explanation.stage("convert"):
            arrays = entities.to_numpy(columns)
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def to_parquet(self, path: str | os.PathLike[str], *, progress: bool | Report | None = None) -> int:
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
        progress : bool or callable, optional
            True or False to show a progress bar or not; by default it is shown on a terminal. A
            callable is called with (rows written, rows in all or None) after each batch.

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
        with ParquetWriter(path) as writer, reporter(progress, "join") as report:
            for table in self._tables():
                # Where metadata cannot follow, what is known by now comes first.
                writer.write(table, {PARQUET_KEY: self._lineage_json()})
                rows += table.num_rows
                report(rows, self._rows_in_all())
            writer.annotate({PARQUET_KEY: self._lineage_json()})
        return rows

    def _rows_in_all(self) -> int | None:
        """Rows of the result, where that is known before it is computed."""
        return self._given.rows

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
                with self._explanation.stage("convert"):
                    part = EntityFrame(frame.native) if whole is None else whole.slice(first, first + frame.rows)
                    table = part.in_zone(part.to_arrow(columns), self._event_column, self._event_outputs)
                yield table
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
