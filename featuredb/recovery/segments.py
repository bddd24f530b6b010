"""Segments that are damaged, written anew with the rows that are whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, concat, null_column
from featuredb.errors import CorruptionError
from featuredb.limits import SEGMENT_ROWS_MAX
from featuredb.offline.rows import live_dtypes, sort_rows
from featuredb.offline.segments import read_rows
from featuredb.offline.tail import table_readers
from featuredb.recovery.repair import Repair
from featuredb.schema import DType
from featuredb.storage.manifest import SegmentRef, drop_segment, read_manifest, write_manifest
from featuredb.storage.registry import StoredTable
from featuredb.storage.segment import COMMIT, CREATED, EVENT, SegmentCache, SegmentReader
from featuredb.storage.segment_writer import Rows, write_segment
from featuredb.storage.tail import drop_tail
from featuredb.verify.report import Finding

REPLACED_BACK = "where the row that replaced another is lost too, that is there again"


def renew_segments(work: Repair, table: StoredTable, problems: Sequence[Finding]) -> None:
    """Write each damaged segment anew, with the rows that are whole in all columns and of a key that is known."""
    txn, damaged = work.txn, {problem.segment: problem for problem in reversed(problems)}
    manifest = read_manifest(txn, table.id)
    refs, next_id = list[SegmentRef](), manifest.next_segment_id
    for ref in manifest.segments:
        if ref.id not in damaged:
            refs.append(ref)
            continue
        problem, rows = damaged[ref.id], None
        with work.check().guarded():
            rows = _whole_rows(work, table, ref)
        kept, before = 0 if rows is None else len(rows), ref.rows - ref.dead_count
        if kept < before:
            what = f"{before - kept} of its {before} rows: {problem.what}"
            work.lose(what, table=table.name, segment=ref.id, column=problem.column)
        if rows is not None and kept:
            refs.append(write_segment(txn, table.id, next_id, rows))
            next_id += 1
        drop_segment(txn, table.id, ref.id)
    write_manifest(txn, manifest.with_segments(tuple(refs)))


def _whole_rows(work: Repair, table: StoredTable, ref: SegmentRef) -> Rows:
    """The live rows of a segment all of whose chunks are whole, with the features that the table has now."""
    reader = SegmentCache().reader(work.txn, table.id, ref)
    codes, starts = reader.entity_index()
    codes = np.repeat(codes, np.diff(starts))
    kept = work.has_key(table, codes)
    try:
        kept[reader.dead()] = False
    except CorruptionError:
        work.lose(f"which of its rows were replaced; {REPLACED_BACK}", table=table.name, segment=ref.id)
    event, created, commit = (_times(reader, number, kept) for number in (EVENT, CREATED, COMMIT))
    columns = {number: _feature(reader, number, dtype, kept) for number, dtype in live_dtypes(table).items()}
    return Rows(codes, event, created, commit, columns).where(kept)


def _times(reader: SegmentReader, number: int, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A system column; what is damaged of it is left out of `kept`."""
    values = np.zeros(reader.rows, dtype=np.int64)
    for chunk, (first, stop) in enumerate(reader.chunk_bounds(number)):
        try:
            values[first:stop] = reader.system(number, chunk)
        except CorruptionError:
            kept[first:stop] = False
    return values


def _feature(reader: SegmentReader, number: int, dtype: DType, kept: NDArray[np.bool_]) -> Column:
    """A feature column, with nulls where it is damaged, which is left out of `kept`."""
    if number not in reader.info.columns:
        return null_column(dtype, reader.rows)
    parts = []
    for chunk, (first, stop) in enumerate(reader.chunk_bounds(number)):
        try:
            parts.append(reader.feature_chunk(number, chunk))
        except CorruptionError:
            parts.append(null_column(dtype, stop - first))
            kept[first:stop] = False
    return concat(parts)


def join_all(work: Repair, table: StoredTable, problems: Sequence[Finding]) -> None:
    """Write all history anew, without the rows that others of later commits replace: no list says which any more."""
    rows = None
    with work.check().guarded():
        readers = table_readers(work.txn, SegmentCache(), table)
        rows = read_rows(readers, live_dtypes(table)) if readers else None
    if rows is None or not len(rows):
        return
    rows = sort_rows(rows.take(np.argsort(rows.commit, kind="stable")))
    txn, manifest = work.txn, read_manifest(work.txn, table.id)
    refs, next_id = list[SegmentRef](), manifest.next_segment_id
    step = table.rows_within(SEGMENT_ROWS_MAX)
    for first in range(0, len(rows), step):
        refs.append(write_segment(txn, table.id, next_id + len(refs), rows.take(slice(first, first + step))))
    for ref in manifest.segments:
        drop_segment(txn, table.id, ref.id)
    drop_tail(txn, table.id)
    write_manifest(txn, manifest.with_segments(tuple(refs)))
