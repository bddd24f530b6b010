"""Where a training set comes from: all that it takes to make it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from featuredb.columns import Column
from featuredb.errors import CorruptionError
from featuredb.limits import NS_FORMAT
from featuredb.storage.env import ReadTxn
from featuredb.storage.records import decode, text
from featuredb.storage.snapshots import SnapshotTxn

# Key of the lineage in the metadata of a Parquet file.
PARQUET_KEY = b"featuredb"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def file_id(txn: ReadTxn) -> str:
    """The number that a file got when it was made; its backups have the same."""
    raw = txn.get(NS_FORMAT)
    if raw is None:
        raise CorruptionError("the format record is missing; restore the file from a backup")
    return decode(NS_FORMAT, raw, "the format record", lambda record: text(record["file_id"]))


def snapshot_name(txn: ReadTxn) -> str | None:
    """The snapshot that a transaction reads at, if any."""
    return txn.snapshot.name if isinstance(txn, SnapshotTxn) else None


def known_at_text(known_at: int | str | None) -> str | None:
    """`known_at` as a column name or ISO 8601 UTC."""
    return (_EPOCH + timedelta(microseconds=known_at)).isoformat() if isinstance(known_at, int) else known_at


class EntityHash:
    """SHA-256 of the columns of an entity dataframe that a join reads, whatever container and batches they come in.

    Each column is hashed as its validity (a byte a row), its values where valid and zero elsewhere
    (little-endian, timestamps in microseconds UTC), and for strings and bytes the lengths (int64) and bytes
    of the valid ones instead; the digests of the columns are then hashed with their names and dtypes.
    """

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], tuple[Any, Any, Any]] = {}

    def update(self, columns: Mapping[str, Column]) -> None:
        """Add the next rows; always of the same columns."""
        for name, column in columns.items():
            key = (name, column.dtype.name)
            if key not in self._columns:
                self._columns[key] = (hashlib.sha256(), hashlib.sha256(), hashlib.sha256())
            valid, values, lengths = self._columns[key]
            present = np.ones(len(column), dtype=np.bool_) if column.valid is None else column.valid
            valid.update(np.ascontiguousarray(present).data)
            if column.heap is None:
                data = column.data if column.valid is None else np.where(present, column.data, 0)
                values.update(np.ascontiguousarray(data, dtype=column.dtype.numpy).data)
            else:
                heap = column.heap.take(column.data if column.valid is None else column.data[present])
                lengths.update(np.diff(heap.offsets).astype("<i8").data)
                values.update(np.ascontiguousarray(heap.data).data)

    def hexdigest(self) -> str:
        """The hash of all rows so far."""
        whole = hashlib.sha256()
        for (name, dtype), parts in sorted(self._columns.items()):
            whole.update(f"{name}\0{dtype}\0".encode())
            for part in parts:
                whole.update(part.digest())
        return whole.hexdigest()
