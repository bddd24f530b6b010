"""How a join was computed: what was searched and read, by which methods, and in what time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from featuredb.offline.cells import Located
    from featuredb.storage.segment import SegmentReader
from featuredb.storage.tail import TAIL_ID

STAGES = ("read", "encode keys", "sort", "search", "gather", "convert")


@dataclass
class SegmentPlan:
    """What a join did with one segment of a table.

    Attributes
    ----------
    rows : int
        Rows of the segment.
    pruned : str
        Why its zone map rules out that it holds an answer; empty if it was searched.
    """

    rows: int
    pruned: str
    # By column: the bytes of each chunk, and which of them were touched.
    columns: dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]] = field(default_factory=dict)

    @property
    def chunks(self) -> int:
        """Chunks of columns that were read."""
        return int(sum(np.count_nonzero(marks & (sizes > 0)) for sizes, marks in self.columns.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of these chunks."""
        return int(sum(sizes[marks].sum() for sizes, marks in self.columns.values()))


@dataclass
class TablePlan:
    """What a join did with one feature table, or with one alias of it."""

    table: str
    lookup: str = ""
    sort: str = ""
    rows_searched: int = 0
    rows_found: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    segments: dict[int, SegmentPlan] = field(default_factory=dict)

    def note_segment(self, reader: SegmentReader, pruned: str) -> None:
        """A segment was considered; if it was searched for any batch, it was not pruned."""
        held = self.segments.get(reader.ref.id)
        if held is None:
            self.segments[reader.ref.id] = SegmentPlan(reader.rows, pruned)
        elif not pruned:
            held.pruned = ""

    def note_column(self, reader: SegmentReader, column: Located, marks: NDArray[np.bool_] | None) -> None:
        """Chunks of a column of a segment were touched: those marked, or all."""
        columns = self.segments.setdefault(reader.ref.id, SegmentPlan(reader.rows, "")).columns
        marks = np.ones(len(column.sizes), dtype=np.bool_) if marks is None else marks[: len(column.sizes)]
        _, before = columns.get(column.column.id, (None, None))
        columns[column.column.id] = (column.sizes, marks if before is None else marks | before)

    def to_dict(self) -> dict[str, Any]:
        segments = {
            number: {"rows": one.rows, "pruned": one.pruned or None, "chunks": one.chunks, "bytes": one.nbytes}
            for number, one in self.segments.items()
        }
        return {
            "table": self.table,
            "lookup": self.lookup,
            "sort": self.sort,
            "rows_searched": self.rows_searched,
            "rows_found": self.rows_found,
            "seconds": dict(self.seconds),
            "segments": segments,
        }


class Explanation:
    """How a training set was computed. Made by ``TrainingSet.explain``; print it, or take `to_dict`."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._commit_id = 0
        self._rows = 0
        self._batches = 0
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._tables: dict[str, TablePlan] = {}

    def start(self, commit_id: int) -> None:
        """The join begins, or begins anew."""
        self._commit_id, self._rows, self._batches = commit_id, 0, 0
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._tables = {}

    def note_batch(self, rows: int) -> None:
        """A batch of so many rows is joined."""
        self._rows += rows
        self._batches += 1

    def table(self, name: str, table: str) -> TablePlan:
        """The plan of a feature table under the name that the features use."""
        return self._tables.setdefault(name, TablePlan(table))

    @contextmanager
    def stage(self, name: str, plan: TablePlan | None = None) -> Iterator[None]:
        """Add the time that the block takes to a stage, and to that of a table."""
        began = perf_counter()
        try:
            yield
        finally:
            taken = perf_counter() - began
            self._seconds[name] += taken
            if plan is not None:
                plan.seconds[name] = plan.seconds.get(name, 0.0) + taken

    def to_dict(self) -> dict[str, Any]:
        """The same facts as plain values, with times in seconds and sizes in bytes.

        Returns
        -------
        dict
            ``commit_id``, ``rows`` and ``batches`` of the entity dataframe, ``threads``, ``seconds`` by stage, and
            ``tables`` by name: ``table``, ``lookup`` and ``sort`` (the methods), ``rows_searched`` (with a known key),
            ``rows_found``, ``seconds`` by stage, and ``segments`` by number (0: the tail): ``rows``, ``pruned`` (why it
            was not searched, or None), ``chunks`` and ``bytes`` read.
        """
        return {
            "commit_id": self._commit_id,
            "rows": self._rows,
            "batches": self._batches,
            "threads": self._threads,
            "seconds": dict(self._seconds),
            "tables": {name: plan.to_dict() for name, plan in self._tables.items()},
        }

    def __str__(self) -> str:
        batches = f" in {self._batches:,} batches" if self._batches > 1 else ""
        threads = f"{self._threads} thread{'s'[: self._threads != 1]}"
        lines = [
            f"{self._rows:,} rows{batches} at commit {self._commit_id}, {threads}, {sum(self._seconds.values()):.4f} s",
            "  " + _times(self._seconds),
        ]
        for name, plan in self._tables.items():
            lines.append(name if name == plan.table else f"{name} (of {plan.table})")
            methods = ", ".join(filter(None, (plan.lookup and f"keys by {plan.lookup}", plan.sort)))
            lines += [f"  {methods}"] if methods else []
            lines.append(f"  {plan.rows_searched:,} rows searched, {plan.rows_found:,} found; {_times(plan.seconds)}")
            for number, one in plan.segments.items():
                what = f"not searched: {one.pruned}" if one.pruned else f"{one.chunks:,} chunks, {_size(one.nbytes)}"
                name = "tail" if number == TAIL_ID else f"segment {number}"
                lines.append(f"  {name}: {one.rows:,} rows; {what}")
        return "\n".join(lines)

    __repr__ = __str__


def _times(seconds: dict[str, float]) -> str:
    return ", ".join(f"{stage} {taken:.4f} s" for stage, taken in seconds.items())


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 100_000 else f"{nbytes:,} bytes"
