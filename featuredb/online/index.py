"""The online values of one feature table: a packed row per entity key, newer rows win."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, islice, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Columns, Heap, concat, null_column, zeroed
from featuredb.errors import CorruptionError
from featuredb.frames.arrays import to_pylist
from featuredb.limits import ABSENT_US, BATCH_BYTES_TARGET, KEY_BYTES_MAX, NS_ONLINE
from featuredb.online.row import HEADER_BYTES, Buffer, KeyName, RowLayout, damaged, read_headers
from featuredb.schema import DTYPES
from featuredb.storage.crc import crc_tables
from featuredb.storage.env import ReadTxn, WriteTxn
from featuredb.storage.keys import decode_keys, sort_order, whole_keys
from featuredb.storage.registry import StoredTable
from featuredb.storage.snapshots import delete_online, online_saver

if TYPE_CHECKING:
    from featuredb.online.pagewalk import Lookup

# Rows packed, compared or decoded at a time. Few, as the garbage collector walks the values of a batch:
# an update of 1 million stored keys takes 5.0 s with 8 thousand, 7.4 s with 64 thousand.
BATCH_ROWS = 1 << 13
# Reads of so many keys run compiled code, which is not loaded (0.5 s) for fewer than the second number.
COMPILED_KEYS_MIN = 64
LOADING_KEYS_MIN = 2000
_PREFIX_BYTES = 5
_version_bytes = operator.itemgetter(slice(4, 6))
_values_bytes = operator.itemgetter(slice(HEADER_BYTES, None))
_key_bytes = operator.itemgetter(slice(_PREFIX_BYTES, None))


@dataclass(frozen=True, slots=True)
class OnlineRows:
    """Rows of one table, in the order of the keys asked for; where `found` is False all is null.

    ``event`` and ``created`` are int64 microseconds, `ABSENT_US` where there is none.
    """

    found: NDArray[np.bool_]
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    commit: NDArray[np.uint64]
    columns: Mapping[str, Column]

    def at(self, places: NDArray[np.int64]) -> OnlineRows:
        """The rows at `places`, none where the place is negative."""
        found = places >= 0
        if len(places) == len(self.event) and np.array_equal(places, np.arange(len(places))):
            return self
        columns = {name: spread(column, places) for name, column in self.columns.items()}
        if not len(self.event):
            absent = np.full(len(places), ABSENT_US, dtype=np.int64)
            return OnlineRows(found, absent, absent, np.zeros(len(places), dtype=np.uint64), columns)
        return OnlineRows(
            found,
            np.where(found, self.event[places], ABSENT_US),
            np.where(found, self.created[places], ABSENT_US),
            np.where(found, self.commit[places], np.uint64(0)),
            columns,
        )


def spread(column: Column, places: NDArray[np.int64]) -> Column:
    """The values of `column` at `places`, null where the place is negative."""
    found = places >= 0
    if found.all():
        return column.take(places)
    if not len(column):
        return null_column(column.dtype, len(places))
    taken = column.take(np.where(found, places, 0))
    valid = found if taken.valid is None else taken.valid & found
    return Column(column.dtype, zeroed(taken.data, valid), valid, column.heap)


class OnlineIndex:
    """Latest rows of `table`, stored under ``NS_ONLINE``, table id (u32 big-endian), key bytes.

    Parameters
    ----------
    table : StoredTable
        The table as of the transactions that will be given.
    """

    def __init__(self, table: StoredTable) -> None:
        self.table = table
        self.name = table.definition.name
        self.prefix = NS_ONLINE + table.id.to_bytes(4, "big")
        self._layouts: dict[int, RowLayout] = {}
        self._names = {feature_id: name for name, feature_id in table.feature_ids.items()}
        self._dtypes = {feature.name: DTYPES[feature.dtype] for feature in table.definition.features}
        self.current = self.layout(len(table.layouts) - 1, self._key_of([]))

    def update(
        self,
        txn: WriteTxn,
        keys: Heap,
        event: NDArray[np.int64],
        created: NDArray[np.int64],
        commit_id: int | NDArray[Any],
        columns: Columns,
    ) -> int:
        """Write the rows that are newer than, or replace, the stored ones of their keys.

        Parameters
        ----------
        txn : WriteTxn
            Where to write.
        keys : Heap
            Distinct key bytes.
        event, created : ndarray of int64, shape (n,)
            Microseconds UTC; `ABSENT_US` for an absent created timestamp.
        commit_id : int or ndarray, shape (n,)
            The commit of the rows.
        columns : mapping of str to Column
            Every live feature of the table.

        Returns
        -------
        int
            Rows written. A row is left out if a later one by (event, created, commit) is stored, or one with
            the same values.
        """
        from featuredb.online.pagewalk import Lookup

        if not len(keys):
            return 0
        commit = np.broadcast_to(np.asarray(commit_id, dtype=np.uint64), len(keys))
        order = sort_order(keys)
        ordered = bool(np.all(order[1:] > order[:-1]))
        keys = keys if ordered else keys.take(order)
        names = whole_keys(self.prefix, keys)
        last = txn.last(b"")
        # Beyond the greatest key of the tree nothing can be stored yet, and appending fills pages to the brim.
        append = last is None or bytes(last[0]) < names.part(0, 1).tolist()[0]
        lookup = None if append else Lookup(txn, self.prefix, keys)
        save = online_saver(txn, self.table.id)
        written = 0
        step = self._batch_rows
        for start in range(0, len(order), step):
            stop = min(start + step, len(order))
            rows = slice(start, stop) if ordered else order[start:stop]
            part, taken = names.part(start, stop), {name: column.take(rows) for name, column in columns.items()}
            packed = self.pack(part, event[rows], created[rows], commit[rows], taken)
            full, values = part.tolist(), packed.tolist()
            if lookup is not None:
                wins = self._wins(lookup, keys, start, stop, packed)
                if not wins.all():
                    full, values = list(compress(full, wins)), list(compress(values, wins))
            if save is not None:
                save(full)
            txn.put_many(zip(full, values, strict=True), append=append)
            written += len(full)
        return written

    @property
    def _batch_rows(self) -> int:
        return max(1, min(BATCH_ROWS, BATCH_BYTES_TARGET // (16 * self.current.fixed_bytes)))

    def _full_keys(self, keys: Heap) -> list[bytes]:
        return whole_keys(self.prefix, keys).tolist()

    def pack(
        self,
        keys: Heap,
        event: NDArray[np.int64],
        created: NDArray[np.int64],
        commit: NDArray[Any],
        columns: Columns,
    ) -> Heap:
        """Rows of (whole) keys in the current layout, which is that of the features there are."""
        parts = [columns[self._names[feature_id]] for feature_id, _ in self.current.features]
        return self.current.pack_many(keys, event, created, commit, parts)

    def _wins(self, lookup: Lookup, keys: Heap, start: int, stop: int, packed: Heap) -> NDArray[np.bool_]:
        """Which of the rows `packed` are to be written; their keys are those from `start` up to `stop`."""
        from featuredb.online import kernels

        outcome = np.full(stop - start, kernels.WINS, dtype=np.uint8)
        lookup.walk(start, stop)
        key_offsets = lookup.keys.offsets[start : stop + 1]
        for part in (lookup.walked, lookup.rest(start, stop)):
            if part is not None:
                at, size = part.at[start:stop], part.size[start:stop]
                kernels.compare(
                    part.data, at, size, lookup.keys.data, key_offsets, packed.data, packed.offsets, crc_tables(),
                    outcome,
                )  # fmt: skip
        bad = np.flatnonzero(outcome == kernels.BAD)
        if len(bad):
            row = start + int(bad[0])
            self.of_rows([lookup.value(row)], keys.take(np.array([row])), [])  # raises
        wins: NDArray[np.bool_] = outcome == kernels.WINS
        others = np.flatnonzero(outcome == kernels.OTHER_LAYOUT)
        if len(others):
            # Packed anew in the current layout, their content can be compared.
            stored = list(map(lookup.value, (start + others).tolist()))
            other_keys = keys.take(start + others)
            rows = self.of_rows(stored, other_keys, list(self._dtypes))
            anew = self.pack(
                whole_keys(self.prefix, other_keys), rows.event, rows.created, rows.commit, rows.columns
            ).tolist()
            fresh = packed.take(others).tolist()
            wins[others] = list(map(operator.ne, map(_values_bytes, anew), map(_values_bytes, fresh)))
        return wins

    def read(
        self, txn: ReadTxn, keys: Heap, features: Sequence[str] | None = None, threads: int | None = None
    ) -> OnlineRows:
        """The rows of `keys` (any order, repeats allowed), with the columns `features` (None: all)."""
        names = list(self._dtypes) if features is None else list(dict.fromkeys(features))
        if len(keys) >= (COMPILED_KEYS_MIN if "numba" in sys.modules else LOADING_KEYS_MIN):
            return self._read_compiled(txn, keys, names, threads)
        asked = self._full_keys(keys)
        # In key order a look-up takes 0.4 us instead of 1.4 us a key; for a few keys sorting does not pay.
        ordered = asked if len(asked) < 64 else self._full_keys(keys.take(sort_order(keys)))
        distinct = dict.fromkeys(ordered)
        # LMDB refuses keys longer than any that is stored.
        too_long = np.diff(keys.offsets) > KEY_BYTES_MAX
        if too_long.any():
            for key in compress(asked, too_long):
                distinct.pop(key, None)
        found_keys, stored = _pairs(txn.get_many(list(distinct)))
        rows = self._decode(stored, found_keys, names)
        place_of = dict(zip(found_keys, range(len(found_keys)), strict=True))
        places = np.fromiter(map(place_of.get, asked, repeat(-1)), dtype=np.int64, count=len(asked))
        return rows.at(places)

    def of_rows(self, stored: Sequence[bytes | None], keys: Heap, names: Sequence[str]) -> OnlineRows:
        """The rows of `keys` that were read as these bytes, None where there was none."""
        present = [place for place, raw in enumerate(stored) if raw is not None]
        full = self._full_keys(keys.take(np.array(present, dtype=np.int64)))
        rows = self._decode([raw for raw in stored if raw is not None], full, names)
        places = np.full(len(stored), -1, dtype=np.int64)
        places[present] = np.arange(len(present))
        return rows.at(places)

    def _read_compiled(self, txn: ReadTxn, keys: Heap, names: Sequence[str], threads: int | None) -> OnlineRows:
        from featuredb.online import kernels
        from featuredb.online.decode import Decoder
        from featuredb.online.pagewalk import Lookup

        def full_key(row: int) -> bytes:
            return self.prefix + keys.take(np.array([row])).tolist()[0]

        lookup = Lookup(txn, self.prefix, keys)
        decoder = Decoder([(self.table.feature_ids[name], self._dtypes[name]) for name in names], len(keys))
        decoder.read(
            lookup,
            self.current,
            lambda version, row: self.layout(version, lambda _: self._key_of([full_key(row)])(0)),
            threads,
        )
        bad = np.flatnonzero(decoder.state == kernels.BAD)
        if len(bad):
            row = int(bad[0])
            # Raises, and says what is wrong with it.
            self.of_rows([lookup.value(row)], keys.take(np.array([row])), names)
        columns = dict(zip(names, decoder.columns(), strict=True))
        return OnlineRows(decoder.state == kernels.READ, decoder.event, decoder.created, decoder.commit, columns)

    def scan(self, txn: ReadTxn) -> Iterator[tuple[Heap, OnlineRows]]:
        """All rows in key order, in batches: key bytes, and rows with every live feature."""
        entries = txn.scan(self.prefix)
        while batch := list(islice(entries, self._batch_rows)):
            keys, stored = _pairs(batch)
            yield Heap.of(list(map(_key_bytes, keys))), self._decode(stored, keys, list(self._dtypes))

    def count(self, txn: ReadTxn) -> int:
        """Keys that have a row."""
        return sum(map(bool, txn.scan(self.prefix)))

    def delete_all(self, txn: WriteTxn) -> int:
        """Remove every row (a snapshot keeps those it holds); returns how many there were."""
        return delete_online(txn, self.table.id)

    def layout(self, version: int, key_of: KeyName) -> RowLayout:
        """The layout `version`, which the row ``key_of(0)`` says it has."""
        layout = self._layouts.get(version)
        if layout is None:
            layouts = self.table.layouts
            if version >= len(layouts):
                raise damaged(f"it has layout {version}, the table only {len(layouts)} of them", self.name, key_of(0))
            features = [(feature_id, DTYPES[dtype]) for feature_id, dtype in layouts[version]]
            for feature_id, dtype in features:
                if feature_id in self._names and self._dtypes[self._names[feature_id]] != dtype:
                    raise CorruptionError(
                        f"feature table {self.name!r}: layout {version} of its rows has feature {feature_id} as "
                        f"{dtype}; restore the file from a backup"
                    )
            layout = self._layouts[version] = RowLayout(version, features)
        return layout

    def _key_of(self, full_keys: Sequence[bytes]) -> KeyName:
        """Names a row in an error by its entity key."""

        def key_of(row: int) -> object:
            key = Heap.of([full_keys[row][_PREFIX_BYTES:]])
            values = [to_pylist(column)[0] for column in decode_keys(key, self.table.key_dtypes)]
            return values[0] if len(values) == 1 else tuple(values)

        return key_of

    def _decode(self, stored: Sequence[Buffer], full_keys: Sequence[bytes], names: Sequence[str]) -> OnlineRows:
        """Rows of any layouts, all `found`; features that a row's layout lacks are null."""
        key_of = self._key_of(full_keys)
        marks = b"".join(map(_version_bytes, stored))
        if len(marks) != 2 * len(stored):
            read_headers(stored, full_keys, self.name, key_of)  # raises: a row is too short to have a version
        versions = np.frombuffer(marks, dtype="<u2")
        present = np.unique(versions).tolist()
        if not present:
            present = [self.current.version]
        if len(present) == 1:
            return self._decode_version(present[0], stored, full_keys, names)
        rows_of = [np.flatnonzero(versions == version) for version in present]
        parts = [
            self._decode_version(
                version,
                list(compress(stored, versions == version)),
                list(compress(full_keys, versions == version)),
                names,
            )
            for version in present
        ]
        places = np.empty(len(stored), dtype=np.int64)
        places[np.concatenate(rows_of)] = np.arange(len(stored))
        joined = OnlineRows(
            np.ones(len(stored), dtype=np.bool_),
            np.concatenate([part.event for part in parts]),
            np.concatenate([part.created for part in parts]),
            np.concatenate([part.commit for part in parts]),
            {name: concat([part.columns[name] for part in parts]) for name in names},
        )
        return joined.at(places)

    def _decode_version(
        self, version: int, stored: Sequence[Buffer], full_keys: Sequence[bytes], names: Sequence[str]
    ) -> OnlineRows:
        key_of = self._key_of(full_keys)
        if version >= len(self.table.layouts):
            read_headers(stored, full_keys, self.name, key_of)  # most likely the checksum says it better
        layout = self.layout(version, key_of)
        place_of = {name: layout.places.get(self.table.feature_ids[name]) for name in names}
        kept = [place for place in place_of.values() if place is not None]
        event, created, commit, values = layout.unpack_many(stored, full_keys, self.name, key_of, kept)
        known = iter(values)
        columns = {
            name: null_column(self._dtypes[name], len(stored)) if place is None else next(known)
            for name, place in place_of.items()
        }
        return OnlineRows(np.ones(len(stored), dtype=np.bool_), event, created, commit, columns)


def _pairs(entries: Sequence[tuple[Buffer, Buffer]]) -> tuple[list[bytes], list[Buffer]]:
    """Keys (copied) and values of `entries`."""
    flat = list(chain.from_iterable(entries))
    return list(map(bytes, flat[::2])), flat[1::2]
