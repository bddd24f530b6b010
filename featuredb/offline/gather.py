"""From the rows that a search found to columns of values, gathered from the file where they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap, null_column
from featuredb.errors import CorruptionError
from featuredb.offline import kernels
from featuredb.offline.cells import Located, locate, trust
from featuredb.offline.explain import TablePlan
from featuredb.offline.search import Found
from featuredb.schema import DTYPES, DType
from featuredb.storage.segment import COMMIT, SegmentReader, frozen
from featuredb.threads import over_rows

_NO_FLAGS = np.zeros(0, dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class _Part:
    """What was found in one segment: positions (-1: nothing) in the order of its keys, and rows of the result."""

    reader: SegmentReader
    positions: NDArray[np.int32]
    rows: NDArray[np.int64]


class Gatherer:
    """Turns what was found into columns, in the order of the result.

    Parameters
    ----------
    found : Found
        From a search.
    threads : int, optional
        At most so many; None: one for each core.
    plan : TablePlan, optional
        Is told which chunks are touched.
    """

    def __init__(self, found: Found, *, threads: int | None = None, plan: TablePlan | None = None) -> None:
        self._rows_out = len(found.rows)
        self._parts = _parts(found)
        self._threads = threads
        self._plan = plan
        # Which chunks are touched, by part and by rows of a chunk.
        self._marks: dict[tuple[int, int], NDArray[np.bool_]] = {}

    def commits(self) -> NDArray[np.int64]:
        """The commit of each row of the result, 0 where nothing was found."""
        output = _Output(DTYPES["int64"], self._rows_out, _NO_FLAGS, nan=False)
        located = [locate(part.reader, COMMIT) for part in self._parts]
        self._trust(enumerate(located))
        for part, column in zip(self._parts, located, strict=True):
            over_rows(len(part.rows), output.work(part, column), self._threads)
        return output.data

    def feature(self, feature_id: int, dtype: DType) -> Column:
        """The feature's values in the rows of the result; null where nothing was found."""
        return self.features([(feature_id, dtype)])[0]

    def features(self, wanted: Sequence[tuple[int, DType]], *, nan: bool = False) -> list[Column]:
        """The values of several features, each range of rows gathered by one thread.

        With `nan`, floats have NaN where they are null, and say so, which saves converting them.
        """
        if not self._parts:
            return [null_column(dtype, self._rows_out) for _, dtype in wanted]
        sources = [[_source(part.reader, number, dtype) for part in self._parts] for number, dtype in wanted]
        self._trust((number, column) for columns in sources for number, column in enumerate(columns))
        matched = _NO_FLAGS
        outputs = []
        for (_, dtype), columns in zip(wanted, sources, strict=True):
            own = any(column is None or column.has_nulls for column in columns)
            flags = np.empty(self._rows_out if own or not len(matched) else 0, dtype=np.bool_)
            # Features without nulls are null just where nothing was found: the first of them tells where.
            matched = flags if not own and not len(matched) else matched
            outputs.append(_Output(dtype, self._rows_out, flags, nan=nan))
        for place, part in enumerate(self._parts):
            works: list[Callable[[int, int], None]] = []
            for (number, _), columns, output in zip(wanted, sources, outputs, strict=True):
                column = columns[place]
                if column is not None:
                    works.append(output.work(part, column))
                elif _is_heap(part.reader, number):
                    output.take_heap(part, number)
                else:
                    output.blank(part.rows)
            over_rows(len(part.rows), lambda start, stop: _each(works, start, stop), self._threads)  # noqa: B023
        return [output.column(matched) for output in outputs]

    def _trust(self, columns: Iterable[tuple[int, Located | None]]) -> None:
        """Check the chunks that are touched of the columns of parts, and tell the plan."""
        wanted = []
        for number, column in columns:
            if column is None:
                continue
            part, key = self._parts[number], (number, column.shift)
            if key not in self._marks:
                marks = self._marks[key] = np.zeros((part.reader.rows >> column.shift) + 1, dtype=np.bool_)
                kernels.mark_chunks(part.positions, column.shift, marks)
            wanted.append((part.reader, column, self._marks[key]))
            if self._plan is not None:
                self._plan.note_column(part.reader, column, self._marks[key])
        trust(wanted, self._threads)


def _parts(found: Found) -> list[_Part]:
    """The rows of each segment that has any; rows for which nothing was found are with the first."""
    if len(found.readers) <= 1:
        return [_Part(reader, frozen(found.position), frozen(found.rows)) for reader in found.readers]
    stops = np.zeros(len(found.readers), dtype=np.int64)
    positions, rows = np.empty_like(found.position), np.empty_like(found.rows)
    kernels.split_by_segment(frozen(found.segment), frozen(found.position), frozen(found.rows), stops, positions, rows)
    positions, rows = frozen(positions), frozen(rows)
    return [
        _Part(reader, positions[start:stop], rows[start:stop])
        for reader, (start, stop) in zip(found.readers, pairwise([0, *stops.tolist()]), strict=True)
        if start < stop
    ]


def _source(reader: SegmentReader, feature_id: int, dtype: DType) -> Located | None:
    """Where the feature's values or entry numbers lie; None if it has none, or each chunk a heap of its own."""
    info = reader.info.columns.get(feature_id)
    if info is not None and info.dtype != dtype:
        raise reader.damaged(info, f"it is stored as {info.dtype}, and defined as {dtype}")
    return None if info is None or info.encoding in ("null", "heap") else locate(reader, feature_id)


def _is_heap(reader: SegmentReader, feature_id: int) -> bool:
    info = reader.info.columns.get(feature_id)
    return info is not None and info.encoding == "heap"


def _each(works: Iterable[Callable[[int, int], None]], start: int, stop: int) -> None:
    for work in works:
        work(start, stop)


@dataclass(slots=True)
class _Output:
    """One column in the making. ``flags`` (which rows are not null) is empty if other columns tell that too."""

    dtype: DType
    rows_out: int
    flags: NDArray[np.bool_]
    nan: bool
    data: NDArray[Any] = field(init=False)
    heaps: list[Heap] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = np.empty(self.rows_out, dtype=self.dtype.numpy)
        self.nan = self.nan and self.dtype.is_float

    @property
    def fill(self) -> int:
        """The bits of what stands for null."""
        return int(np.array(np.nan, self.dtype.numpy).view(f"i{self.dtype.numpy.itemsize}")) if self.nan else 0

    def work(self, part: _Part, column: Located) -> Callable[[int, int], None]:
        """What gathers a range of the rows of a part."""
        positions, rows = part.positions, part.rows
        width = self.dtype.numpy.itemsize
        if width not in (1, 2, 4, 8):
            matrix = self.data.view("u1").reshape(-1, width)
            return lambda a, b: kernels.gather_bytes(
                positions[a:b], rows[a:b], column.cells, column.addresses, matrix, self.flags
            )
        if self.dtype.is_float and column.column.encoding == "packed":
            power, null = 10.0**column.column.exponent, np.nan if self.nan else 0.0
            return lambda a, b: kernels.gather_decimals(
                positions[a:b], rows[a:b], column.cells, column.addresses, power, null, self.data, self.flags
            )
        words, offset, fill = self.data.view(f"i{width}"), self._take_dictionary(part, column), self.fill
        return lambda a, b: kernels.gather(
            positions[a:b], rows[a:b], column.cells, column.addresses, offset, fill, words, self.flags
        )

    def _take_dictionary(self, part: _Part, column: Located) -> int:
        """Add the dictionary of a part; where its entries begin among all."""
        if not self.dtype.is_variable:
            return 0
        first = sum(map(len, self.heaps))
        # It lies in the file's pages, and the result must outlive the transaction.
        heap = part.reader.dictionary(column.column.id)
        self.heaps.append(Heap(heap.offsets.copy(), heap.data.copy()))
        return first

    def take_heap(self, part: _Part, feature_id: int) -> None:
        """Take the values of a part whose chunks each have a heap of their own."""
        self.blank(part.rows)
        chunk_rows = part.reader.info.columns[feature_id].chunk_rows
        chunks = part.positions // chunk_rows
        order = np.argsort(chunks, kind="stable")
        chunks, positions, rows = chunks[order], part.positions[order], part.rows[order]
        bounds = [0, *(np.flatnonzero(chunks[1:] != chunks[:-1]) + 1), len(chunks)]
        for start, stop in pairwise(bounds):
            chunk = int(chunks[start]) if start < stop else -1
            if chunk < 0:
                continue
            column = part.reader.feature_chunk(feature_id, chunk).take(positions[start:stop] - chunk * chunk_rows)
            column = column.compact()
            assert column.heap is not None
            self.data[rows[start:stop]] = column.data + sum(map(len, self.heaps))
            self.flags[rows[start:stop]] = True if column.valid is None else column.valid
            self.heaps.append(column.heap)

    def blank(self, rows: NDArray[np.int64]) -> None:
        """Make the rows null."""
        self.data[rows] = np.zeros(1, dtype=self.data.dtype) if not self.nan else np.nan
        self.flags[rows] = False

    def column(self, matched: NDArray[np.bool_]) -> Column:
        """The column, once all parts are gathered; `matched` is true for rows where anything was found."""
        flags = self.flags if len(self.flags) or not self.rows_out else matched
        valid = None if flags.all() else flags
        if not self.dtype.is_variable:
            return Column(self.dtype, self.data, valid, filled=self.nan)
        heap = Heap.concat([Heap.of([]), *self.heaps])
        if valid is not None and len(self.heaps) > 1:
            self.data[~valid] = 0
        if len(self.data) and self.data.view(np.uint32).max() >= max(len(heap), 1):
            raise CorruptionError(
                "a dictionary entry number is not in its dictionary; run `featuredb verify`, "
                "and restore the file from a backup"
            )
        column = Column(self.dtype, self.data, valid, heap)
        return column.compact() if len(heap) > len(self.data) else column
