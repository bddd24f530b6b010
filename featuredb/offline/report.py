"""What an ingest reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rejection:
    """One row that was left out: its number in the data (from 0), the column, the value and the reason."""

    row: int
    column: str
    value: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did.

    Attributes
    ----------
    table, to : str
        The feature table, and ``both``, ``offline`` or ``online``.
    rows_read : int
        Rows of the data, all of which are in one of the next five counts.
    rows_ingested : int
        Rows that are now in history (or, with ``to="online"``, were offered to the online values).
    rows_unchanged : int
        Rows that history already held with the same values.
    rows_repeated : int
        Rows replaced by a later row of the same data with the same key and timestamps.
    rows_outside : int
        Rows outside ``start`` and ``end``.
    rows_rejected : int
        Rows left out by ``on_error="skip"``.
    rejections : tuple of Rejection
        The first 1,000 of them, which ``rejected(table)`` gives back later.
    rejected_by_reason : dict of str to int
        All of them, counted.
    duplicates_replaced : int
        Rows replaced by one with the same key, event and created timestamp: earlier rows of the same
        data (`rows_repeated`) and rows that history held with other values.
    online_keys_updated : int
        Keys whose online value changed.
    commit_id : int
        The commit; the one before if nothing changed.
    seconds : float
        Wall time.
    bytes : int
        Bytes of the rows as history stores them.
    features_filled : tuple of str
        Features that the data lacked and ``partial=True`` filled from the row before.
    committed : bool
        Whether there was anything to commit: rows, online values, or rejected rows that were not there yet.
    """

    table: str
    to: str
    rows_read: int
    rows_ingested: int
    rows_unchanged: int
    rows_repeated: int
    rows_outside: int
    rows_rejected: int
    rejections: tuple[Rejection, ...]
    rejected_by_reason: dict[str, int]
    duplicates_replaced: int
    online_keys_updated: int
    commit_id: int
    seconds: float
    bytes: int
    features_filled: tuple[str, ...] = ()
    committed: bool = True
