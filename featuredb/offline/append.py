"""Small ingests of plain rows that are each the newest of its key: the streaming case, without arrays.

Such a row can be in no segment, and replaces nothing but the online row that it is compared with. So it goes to the
tail and online as the same packed bytes, each sealed with its key. Whatever is not of this kind (other containers,
values that take a cast, late or repeated rows, rows loaded apart before) is left to `Ingest`; both commit the same.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featuredb.columns import Heap
from featuredb.errors import InputError
from featuredb.limits import ABSENT_US, KEY_BYTES_MAX, SMALL_INGEST_BYTES_MAX
from featuredb.offline.report import IngestReport
from featuredb.online.index import OnlineIndex
from featuredb.online.packer import NotPlain, RowPacker, plain_us
from featuredb.online.row import BODY_CODES, HEADER_BYTES
from featuredb.storage.crc import CRC_BYTES, is_sealed, seal
from featuredb.storage.env import Env, WriteTxn
from featuredb.storage.keys import value_encoder
from featuredb.storage.keyspace import KeySpace
from featuredb.storage.log import append_commit
from featuredb.storage.manifest import left_behind
from featuredb.storage.pending import pending_since
from featuredb.storage.registry import StoredTable, registry_state
from featuredb.storage.snapshots import online_saver
from featuredb.storage.tail import Tail, put_tail, tail_key

# Longer lists are faster to convert as columns.
APPENDED_ROWS_MAX = 64
_BODY = struct.Struct(BODY_CODES)


@dataclass(frozen=True, slots=True)
class _Row:
    key: bytes
    event_us: int
    created_us: int
    values: list[Any]


class Appender:
    """Appends to one table, as the definitions of one version have it.

    Parameters
    ----------
    table : StoredTable
        Kept online.
    state : bytes
        The `registry_state` that `table` was read at.
    """

    def __init__(self, table: StoredTable, state: bytes) -> None:
        self.table = table
        self._state = state
        self._space = KeySpace(table.space_id)
        self._online = OnlineIndex(table)
        self._packer = RowPacker(self._online.current)
        definition = table.definition
        self._keys = [
            (definition.column_of(name), value_encoder(dtype))
            for name, dtype in zip(definition.entities, table.key_dtypes, strict=True)
        ]
        self._event = definition.event_timestamp_column
        self._created = definition.created_timestamp_column
        self._optional_created = definition.batch_source is None
        names = {number: definition.column_of(name) for name, number in table.feature_ids.items()}
        self._features = [names[number] for number, _ in self._online.current.features]

    def rows(self, data: Sequence[object]) -> list[_Row]:
        """The rows of a list of dicts, which is not empty.

        Raises
        ------
        NotPlain
            If a value takes more than looking at its type.
        """
        if not self.table.definition.online:
            raise NotPlain
        created = self._created
        first = data[0]
        if self._optional_created and isinstance(first, Mapping) and "created_timestamp" in first:
            created = "created_timestamp"
        return [self._row(row, created) for row in data]

    def _row(self, row: object, created: str | None) -> _Row:
        if type(row) is not dict or (created is None and self._optional_created and "created_timestamp" in row):
            raise NotPlain
        if not all(type(name) is str for name in row):
            raise NotPlain
        try:
            key = b"".join([encode(row[name]) for name, encode in self._keys])
            event_us = plain_us(row[self._event])
            created_us = ABSENT_US if created is None else plain_us(row[created])
            values = [row[name] for name in self._features]
        except (KeyError, InputError):
            raise NotPlain from None
        if len(key) > KEY_BYTES_MAX:
            raise NotPlain
        return _Row(key, event_us, created_us, values)

    def append(self, env: Env, rows: Sequence[_Row], *, durable: bool) -> tuple[IngestReport, Tail]:
        """Append the rows in one commit; the writer lock must be held. The tail as it is then is for `is_long`.

        Raises
        ------
        NotPlain
            If one is not the newest of its key, or the file is in a state that takes more. Nothing is changed.
        """
        began = time.perf_counter()
        keys, commit_id, nbytes, tail = env.write(lambda txn: self._append(txn, rows), durable=durable)
        count = len(rows)
        report = IngestReport(
            self.table.name, "both", count, count, 0, 0, 0, 0, (), {}, 0, keys, commit_id,
            time.perf_counter() - began, nbytes,
        )  # fmt: skip
        return report, tail

    def _append(self, txn: WriteTxn, rows: Sequence[_Row]) -> tuple[int, int, int, Tail]:
        table_id = self.table.id
        if registry_state(txn) != self._state or pending_since(txn, table_id) is not None:
            raise NotPlain
        if left_behind(txn):
            raise NotPlain
        self._check_newest(txn, rows)
        commit_id = append_commit(txn, "ingest", self.table.name, len(rows)).id
        codes = self._codes(txn, [row.key for row in rows])
        # Values are converted in place, and the transaction may be run again.
        packed = [self._packer.pack(list(row.values), row.event_us, row.created_us, commit_id) for row in rows]
        nbytes = sum(map(len, packed)) + CRC_BYTES * len(packed)
        if nbytes > SMALL_INGEST_BYTES_MAX:
            raise NotPlain
        keys = [tail_key(table_id, code, row.event_us, row.created_us) for code, row in zip(codes, rows, strict=True)]
        tail = put_tail(txn, table_id, commit_id, zip(keys, map(seal, keys, packed), strict=True))
        online = {self._online.prefix + row.key: body for row, body in zip(rows, packed, strict=True)}
        save = online_saver(txn, table_id)
        if save is not None:
            save(list(online))
        for key, body in online.items():
            txn.put(key, seal(key, body))
        return len(online), commit_id, nbytes, tail

    def _check_newest(self, txn: WriteTxn, rows: Sequence[_Row]) -> None:
        """That each row is greater in the total order than what is online, and than those of its key before it."""
        newest: dict[bytes, tuple[int, int]] = {}
        for row in rows:
            before = newest.get(row.key)
            if before is None:
                name = self._online.prefix + row.key
                raw = txn.get(name)
                if raw is not None:
                    # A row that is damaged is for the general path to report.
                    if len(raw) < HEADER_BYTES or not is_sealed(name, raw):
                        raise NotPlain
                    before = _BODY.unpack_from(raw, CRC_BYTES)[1:3]
            if before is not None and (row.event_us, row.created_us) <= before:
                raise NotPlain
            newest[row.key] = (row.event_us, row.created_us)

    def _codes(self, txn: WriteTxn, keys: Sequence[bytes]) -> list[int]:
        codes: list[int] = self._space.lookup(txn, keys).tolist()
        if min(codes) < 0:
            new = list(dict.fromkeys(key for key, code in zip(keys, codes, strict=True) if code < 0))
            given = dict(zip(new, self._space.append(txn, Heap.of(new)).tolist(), strict=True))
            codes = [given[key] if code < 0 else code for key, code in zip(keys, codes, strict=True)]
        return codes
