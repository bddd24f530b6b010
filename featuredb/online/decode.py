"""Many packed rows into columns: compiled, over threads, and straight from the pages of the file if they can be walked.

`online.row` has the bytes, and decodes few rows; both give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.limits import ABSENT_US
from featuredb.online import kernels
from featuredb.online.pagewalk import Located, Lookup
from featuredb.online.row import RowLayout
from featuredb.schema import DType
from featuredb.storage.crc import crc_tables
from featuredb.threads import over_rows

# Below this a second thread costs more than it gains.
_ROWS_PER_THREAD_MIN = 1500
# Rows that are found, then decoded while they are still in the processor's cache.
_BLOCK_ROWS = 1024
_ALIGN_BYTES = 64


class Decoder:
    """Columns of some features, filled with the rows of a look-up; null where a row, or its layout, lacks one.

    Parameters
    ----------
    wanted : sequence of (int, DType)
        Number and dtype of each feature.
    rows : int
        How many keys are looked up.

    Attributes
    ----------
    state : ndarray of uint8, shape (rows,)
        One of `kernels`; 0 where there is no row.
    event, created : ndarray of int64, shape (rows,)
        Microseconds UTC, `ABSENT_US` where there is none.
    commit : ndarray of uint64, shape (rows,)
    """

    def __init__(self, wanted: Sequence[tuple[int, DType]], rows: int) -> None:
        self._wanted = wanted
        widths = [0 if dtype.is_variable else dtype.numpy.itemsize for _, dtype in wanted]
        ends = np.cumsum([0, *(-(-width * rows // _ALIGN_BYTES) * _ALIGN_BYTES for width in widths)])
        self._starts = ends[:-1].tolist()
        self._buffer = np.zeros(int(ends[-1]), dtype=np.uint8)
        self._valid = np.zeros((len(wanted), rows), dtype=np.bool_)
        self._head = np.full((4, rows), ABSENT_US, dtype=np.int64)
        self._head[2] = 0
        self.event, self.created, commit, self._version = self._head
        self.commit = commit.view(np.uint64)
        self.state = np.zeros(rows, dtype=np.uint8)
        self._variable = [column for column, (_, dtype) in enumerate(wanted) if dtype.is_variable]
        self._spans = np.zeros((2 * len(self._variable), rows), dtype=np.int64)
        self._codes = np.zeros((len(self._variable), rows), dtype=np.int32)
        # Of each column of variable width, the distinct values of some rows, and these rows.
        self._heaps: list[list[tuple[NDArray[np.int64], Heap]]] = [[] for _ in self._variable]

    def read(
        self, lookup: Lookup, layout: RowLayout, layout_of: Callable[[int, int], RowLayout], threads: int | None
    ) -> None:
        """Fill in all rows.

        Parameters
        ----------
        lookup : Lookup
            Of as many keys.
        layout : RowLayout
            That which most rows have.
        layout_of : callable
            From another version, and the place of a row that has it, to the layout.
        threads : int, optional
            At most so many; all cores, if it pays, when left out.
        """
        rows = len(self.state)
        plan = self._plan(layout)
        walked = lookup.walked

        def work(start: int, stop: int) -> None:
            for begin in range(start, stop, _BLOCK_ROWS):
                end = min(begin + _BLOCK_ROWS, stop)
                lookup.walk(begin, end)
                self._decode(walked, walked.at, lookup.keys, begin, end, layout, plan)
            self._intern(walked, walked.at, start, stop, layout)

        over_rows(rows, work, threads, _ROWS_PER_THREAD_MIN)
        rest = lookup.rest(0, rows)
        if rest is not None:
            self._decode(rest, rest.at, lookup.keys, 0, rows, layout, plan)
            self._intern(rest, rest.at, 0, rows, layout)
        others = self.state == kernels.OTHER_LAYOUT
        for other in np.unique(self._version[others]).tolist() if others.any() else ():
            chosen = others & (self._version == other)
            layout = layout_of(other, int(np.argmax(chosen)))
            for part in (walked, rest) if rest is not None else (walked,):
                at = np.where(chosen, part.at, kernels.ABSENT)
                self._decode(part, at, lookup.keys, 0, rows, layout, self._plan(layout))
                self._intern(part, at, 0, rows, layout)

    def columns(self) -> list[Column]:
        """The columns, in the order of the features."""
        rows, found = len(self.state), []
        for column, (_, dtype) in enumerate(self._wanted):
            valid = None if self._valid[column].all() else self._valid[column]
            heap = None
            if dtype.is_variable:
                data, heap = self._numbered(self._variable.index(column))
                data = data.astype(dtype.numpy, copy=False)
            else:
                start = self._starts[column]
                data = self._buffer[start : start + rows * dtype.numpy.itemsize].view(dtype.numpy)
            found.append(Column(dtype, data, valid, heap))
        return found

    def _plan(self, layout: RowLayout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What `kernels.decode` is told of a layout: the fixed-width values wanted, and all of variable width."""
        column_of = {layout.places.get(feature_id): column for column, (feature_id, _) in enumerate(self._wanted)}
        fixed, variable = [], []
        for place, (_, dtype) in enumerate(layout.features):
            column = column_of.get(place, -1)
            if dtype.is_variable:
                span = 2 * self._variable.index(column) if column >= 0 else 0
                variable.append([layout.offsets[place], place, column, span])
            elif column >= 0:
                fixed.append([layout.offsets[place], dtype.numpy.itemsize, place, column, self._starts[column]])
        return np.array(fixed, np.int64).reshape(-1, 5), np.array(variable, np.int64).reshape(-1, 4)

    def _decode(
        self,
        part: Located,
        at: NDArray[np.int64],
        keys: Heap,
        begin: int,
        end: int,
        layout: RowLayout,
        plan: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> None:
        words = [self._buffer.view(f"<u{width}") for width in (2, 4, 8)]
        kernels.decode(
            part.data, at, part.size, keys.data, keys.offsets, begin, end, crc_tables(), layout.version,
            layout.fixed_bytes, *plan, self.state, self._head, self._buffer, *words, self._valid.view(np.uint8),
            self._spans,
        )  # fmt: skip

    def _intern(self, part: Located, at: NDArray[np.int64], start: int, stop: int, layout: RowLayout) -> None:
        """Number the values of variable width of the rows that were just decoded."""
        if not self._variable:
            return
        rows = slice(start, stop)
        read = (at[rows] >= 0) & (self.state[rows] == kernels.READ) & (self._version[rows] == layout.version)
        for place, column in enumerate(self._variable):
            chosen = read & self._valid[column, rows]
            starts, lengths = self._spans[2 * place : 2 * place + 2, rows]
            slots = np.full(1 << (2 * len(read)).bit_length(), -1, dtype=np.int32)
            firsts = np.empty(len(read), dtype=np.int64)
            count = kernels.distinct(
                part.data, starts, lengths, chosen.view(np.uint8), slots, self._codes[place, rows], firsts
            )
            heap = _heap(part.data, starts[firsts[:count]], lengths[firsts[:count]])
            self._heaps[place].append((start + np.flatnonzero(chosen), heap))

    def _numbered(self, place: int) -> tuple[NDArray[np.int32], Heap]:
        """The codes of a column and its values, those of each range of rows behind those of the one before."""
        codes, heaps = self._codes[place], [Heap.of([])]
        entries = 0
        for rows, heap in self._heaps[place]:
            if entries:
                codes[rows] += entries
            entries += len(heap)
            heaps.append(heap)
        return codes, Heap.concat(heaps)


def _heap(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Heap:
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    taken = np.empty(int(offsets[-1]), dtype=np.uint8)
    kernels.copy_spans(data, starts, lengths, offsets[:-1], taken)
    return Heap(offsets, taken)
