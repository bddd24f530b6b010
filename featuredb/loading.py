"""The part of the `Database` facade that loads: rows into history, history into online values."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from featuredb.errors import FeatureDBError, InputError
from featuredb.limits import QUERIES_HELD_MAX
from featuredb.schema import Source
from featuredb.storage.env import Env, ReadTxn, WriteTxn
from featuredb.storage.manifest import discard_staged
from featuredb.storage.registry import Registry, StoredTable
from featuredb.storage.rejected import RejectedRow, rejected_rows
from featuredb.storage.segment import SegmentCache

if TYPE_CHECKING:
    from featuredb.offline.append import Appender
    from featuredb.offline.dictionary import KeyDictionary
    from featuredb.offline.report import IngestReport
    from featuredb.progress import Report


@dataclass(frozen=True, slots=True)
class MaterializeReport:
    """What ``materialize`` did: online keys written by table, the commit, and wall seconds."""

    keys_updated: dict[str, int]
    commit_id: int
    seconds: float


class Loading:
    """Methods of `Database`."""

    _env: Env
    _read_only: bool
    _durable: bool
    _timeout: float
    _cache: SegmentCache
    _appenders: dict[str, Appender]
    _check_open: Callable[[], None]
    _dictionary: Callable[[StoredTable], KeyDictionary]
    _registry_with_state: Callable[[ReadTxn], tuple[bytes, Registry]]
    _snapshot: Callable[[], AbstractContextManager[tuple[ReadTxn, Registry]]]
    _writer: Callable[[], AbstractContextManager[None]]

    def ingest(
        self,
        table: str,
        data: Any = None,
        *,
        to: Literal["both", "offline", "online"] = "both",
        start: Any = None,
        end: Any = None,
        on_error: Literal["raise", "skip"] = "raise",
        partial: bool = False,
        progress: bool | Report | None = None,
    ) -> IngestReport:
        """Load rows into a feature table: history, online values and the log in one commit.

        Data has the column names of the table's batch source (its timestamp columns and field mapping);
        without a source, ``event_timestamp`` and, if present, ``created_timestamp``. A source given as
        data names its own columns. Other columns are
        ignored. Rows with the key, event and created timestamp of a stored row replace it; ingesting
        the same data twice changes nothing.

        Memory: files and streams are read in batches of a million rows; beside one batch stand the
        distinct keys of the data and the latest row of each. Data in memory is converted 16 million
        rows at a time. Merging segments afterwards holds the rows merged, 33 million at most.

        Parameters
        ----------
        table : str
            Name of the feature table.
        data : table-like, optional
            A pandas, Polars or PyArrow table, anything with ``__arrow_c_stream__``, a dict of arrays, a
            list of dicts, the path of a Parquet or CSV file, or a source; left out, the table's batch source.
        to : {"both", "offline", "online"}
            Where the rows go.
        start, end : timestamp, optional
            Load only rows with an event timestamp between these, both included.
        on_error : {"raise", "skip"}
            Whether rows that cannot be stored raise, or are left out, reported, and kept for `rejected`.
        partial : bool
            Allow data without some of the table's features. Each row gets the missing ones from the stored
            row that precedes it in the total order when the call starts: the greatest of its key with an
            event and created timestamp up to its own, or the very row it replaces; null if there is none.
            Max age does not count, and a null in a column that is there is a value like any other. With
            ``to="online"`` the row before is the online row. What is filled in counts as known
            (``known_at``) when the row does, whatever it was filled from. By default such data is refused.
        progress : bool or callable, optional
            True or False to show a progress bar or not; by default it is shown on a terminal. A
            callable is called with (rows read, rows in all or None) after each batch.

        Returns
        -------
        IngestReport
            What was read, stored, rejected and replaced.

        Raises
        ------
        InputError
            Lists every problem of the data; nothing is changed.
        NotFoundError
            If there is no such table.
        BusyError
            If another writer held the file for longer than the timeout.

        Examples
        --------
        >>> import featuredb as fdb
        >>> db = fdb.open(":memory:")
        >>> features = [fdb.Feature("temp", "float64"), fdb.Feature("wind", "float64")]
        >>> _ = db.apply([fdb.Entity("origin", "string"), fdb.FeatureTable("weather", ["origin"], features)])
        >>> _ = db.ingest("weather", [{"origin": "JFK", "event_timestamp": "2013-01-01", "temp": 39.0, "wind": 12.7}])
        >>> later = [{"origin": "JFK", "event_timestamp": "2013-01-02", "temp": 41.0}]
        >>> db.ingest("weather", later, partial=True).features_filled
        ('wind',)
        >>> db.get_online_features(["weather:temp", "weather:wind"], {"origin": ["JFK"]}).to_dict()
        {'origin': ['JFK'], 'temp': [41.0], 'wind': [12.7]}
        >>> db.close()
        """
        self._check_open()
        _check_choice("to", to, ("both", "offline", "online"))
        _check_choice("on_error", on_error, ("raise", "skip"))
        start_us, end_us = time_range(start, end)
        plain = type(data) is list and to == "both" and not partial and (start_us, end_us, progress) == (None,) * 3
        if plain and isinstance(table, str) and (appended := self._append(table, data)) is not None:
            return appended
        with self._snapshot() as (_, registry):
            stored = registry.table(table)
        if to == "online" and not stored.definition.online:
            raise InputError(
                f"feature table {table!r} is not kept online; define it with online=True, or use to='both'"
            )
        if data is None:
            data = self._source(stored)
        from featuredb.frames import open_table
        from featuredb.offline.ingest import Ingest
        from featuredb.progress import reporter

        given = open_table(data, f"data for feature table {table!r}")
        with self._writer(), reporter(progress, table) as report_progress:
            with self._snapshot() as (_, registry):
                stored = registry.table(table)
            source = data if isinstance(data, Source) else stored.definition.batch_source
            ingest = Ingest(
                self._env,
                self._cache,
                self._dictionary(stored),
                stored,
                to=to,
                skip=on_error == "skip",
                partial=partial,
                durable=self._durable,
            )
            try:
                report = ingest.run(given, source, start_us, end_us, report_progress)
            except BaseException:
                discard_staged(self._env)
                raise
        self._merge(stored)
        return report

    def _append(self, table: str, data: list[Any]) -> IngestReport | None:
        """A small ingest of plain rows that are the newest of their keys; None if it is anything else."""
        from featuredb.offline.append import APPENDED_ROWS_MAX, Appender
        from featuredb.online.packer import NotPlain
        from featuredb.storage.tail import is_long

        if self._read_only or not 0 < len(data) <= APPENDED_ROWS_MAX:
            return None
        appender = self._appenders.get(table)
        if appender is None:
            if len(self._appenders) >= QUERIES_HELD_MAX:
                self._appenders.clear()
            with self._env.read() as txn:
                state, registry = self._registry_with_state(txn)
            appender = self._appenders[table] = Appender(registry.table(table), state)
        try:
            rows = appender.rows(data)
            # What a writer that was killed has left is found by the appender.
            with self._env.writer(self._timeout):
                report, tail = appender.append(self._env, rows, durable=self._durable)
        except NotPlain:
            with self._snapshot() as (_, registry):
                if registry.tables.get(table) is not appender.table:
                    self._appenders.pop(table, None)
            return None
        if is_long(tail):
            self._merge(appender.table)
        return report

    def _merge(self, table: StoredTable) -> None:
        """Merge what is due, after a commit: what fails, such as a full disk, must not deny that.

        Segments that stay unmerged are merged by a later ingest. The writer lock must not be held: others write
        while much is merged.
        """
        from featuredb.offline.merge import merge

        with suppress(FeatureDBError, MemoryError):
            merge(self._env, self._cache, table, durable=self._durable, writer=self._writer)

    def _source(self, table: StoredTable) -> Any:
        if table.definition.batch_source is None:
            raise InputError(
                f"feature table {table.name!r} has no batch source; pass data, or apply it with a batch_source"
            )
        return table.definition.batch_source

    def rejected(self, table: str) -> list[RejectedRow]:
        """The rows that ``ingest(on_error="skip")`` left out of a feature table, oldest commit first.

        Kept are the first 1,000 of a call and the newest 10,000 of a table. They are written in the commit
        of their ingest; if that stores no other row, the commit is there for them alone. The same rejected
        rows once more, with nothing else new, change nothing.

        Parameters
        ----------
        table : str
            Name of the feature table.

        Returns
        -------
        list of RejectedRow
            Commit id, row number in the data, column, value and reason. A row that was rejected for several
            columns is there once for each.

        Raises
        ------
        NotFoundError
            If there is no such table.

        Examples
        --------
        >>> import featuredb as fdb
        >>> db = fdb.open(":memory:")
        >>> _ = db.apply(
        ...     [fdb.Entity("origin", "string"), fdb.FeatureTable("gusts", ["origin"], [fdb.Feature("gust", "int16")])]
        ... )
        >>> rows = [{"origin": None, "event_timestamp": "2013-01-01", "gust": 7}]
        >>> _ = db.ingest("gusts", rows, on_error="skip")
        >>> [(row.commit_id, row.row, row.column, row.reason) for row in db.rejected("gusts")]
        [(2, 0, 'origin', 'a null entity key; leave the row out')]
        >>> db.close()
        """
        with self._snapshot() as (txn, registry):
            return list(rejected_rows(txn, registry.table(table).id))

    def materialize(
        self,
        tables: str | Sequence[str] | None = None,
        start: Any = None,
        end: Any = None,
        *,
        incremental: bool = False,
    ) -> MaterializeReport:
        """Load online values from history: the newest row of each key between `start` and `end`.

        A row that is older than what is already online changes nothing: older by event timestamp, then
        created timestamp, then commit.

        Parameters
        ----------
        tables : str or sequence of str, optional
            Feature tables; by default all that are kept online.
        start, end : timestamp, optional
            Range of event timestamps, both included.
        incremental : bool
            Look only at keys with rows of commits that have not been materialized yet. The outcome is that
            of a full ``materialize()``, late rows included, for it goes by commits and not by timestamps.

        Returns
        -------
        MaterializeReport
            Keys written for each table.

        Raises
        ------
        NotFoundError
            If there is no such table.
        InputError
            If a table is not kept online, the range is empty, or `incremental` comes with a range.

        Examples
        --------
        >>> import featuredb as fdb
        >>> db = fdb.open(":memory:")
        >>> _ = db.apply(
        ...     [fdb.Entity("origin", "string"), fdb.FeatureTable("sky", ["origin"], [fdb.Feature("temp", "float64")])]
        ... )
        >>> for origin in ("JFK", "LGA"):
        ...     rows = [{"origin": origin, "event_timestamp": "2013-01-01", "temp": 39.0}]
        ...     _ = db.ingest("sky", rows, to="offline")
        ...     print(db.materialize(incremental=True).keys_updated)
        {'sky': 1}
        {'sky': 1}
        >>> db.close()
        """
        from featuredb.offline.materialize import materialize_tables

        if incremental and (start is not None or end is not None):
            raise InputError(
                "materialize: incremental goes by commits and takes no start and end; leave them out, or incremental"
            )
        start_us, end_us = time_range(start, end)
        began = time.perf_counter()

        def work(txn: WriteTxn) -> tuple[dict[str, int], int]:
            return materialize_tables(
                txn, self._cache, self._dictionary, tables, start_us, end_us, incremental=incremental
            )

        with self._writer():
            updated, commit_id = self._env.write(work, durable=self._durable)
        return MaterializeReport(updated, commit_id, time.perf_counter() - began)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def time_range(start: Any, end: Any) -> tuple[int | None, int | None]:
    """`start` and `end` in microseconds."""
    from featuredb.frames import as_us

    start_us = None if start is None else as_us(start, "start")
    end_us = None if end is None else as_us(end, "end")
    if start_us is not None and end_us is not None and start_us > end_us:
        raise InputError(f"start ({start}) is after end ({end}); give the earlier time first")
    return start_us, end_us
