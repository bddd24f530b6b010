"""Many packed rows into columns: compiled, over threads, and straight from the pages of the file if they can be walked.

`online.row` has the bytes, and decodes few rows; both give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column, Heap
from featuredb.limits import ABSENT_US
from featuredb.online import kernels
from featuredb.online.pagewalk import ROWS_PER_THREAD_MIN, Located
from featuredb.online.row import RowLayout
from featuredb.schema import DType
from featuredb.threads import over_rows

_ALIGN_BYTES = 64
_POLYNOMIAL = 0xEDB88320


@dataclass(frozen=True, slots=True)
class Decoded:
    """Rows of `decode`: `state` is one of `kernels`, 0 where there is no row; the rest stands where it is ``READ``."""

    state: NDArray[np.uint8]
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    commit: NDArray[np.uint64]
    columns: list[Column]


@lru_cache(maxsize=1)
def crc_tables() -> NDArray[np.uint32]:
    """For `kernels.decode`: entry ``256 * n + byte`` is the CRC-32 of a byte followed by `n` zero bytes."""
    tables = np.arange(256, dtype=np.uint32)[None, :].repeat(8, axis=0)
    for _ in range(8):
        tables[0] = tables[0] >> 1 ^ np.where(tables[0] & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    for n in range(1, 8):
        tables[n] = tables[n - 1] >> 8 ^ tables[0][tables[n - 1] & 255]
    return tables.reshape(-1)


class _Target:
    """Columns to be filled: their buffers, and where each begins."""

    def __init__(self, wanted: Sequence[tuple[int, DType]], rows: int) -> None:
        self.wanted = wanted
        self.rows = rows
        widths = [0 if dtype.is_variable else dtype.numpy.itemsize for _, dtype in wanted]
        ends = np.cumsum([-(-width * rows // _ALIGN_BYTES) * _ALIGN_BYTES for width in [0, *widths]])
        self.starts = ends[:-1].tolist()
        # As many bytes again as the widest view needs.
        self.buffer = np.zeros(int(ends[-1]) + _ALIGN_BYTES, dtype=np.uint8)
        self.valid = np.zeros((len(wanted), rows), dtype=np.uint8)
        self.head = np.full((4, rows), ABSENT_US, dtype=np.int64)
        self.head[2] = 0
        self.state = np.zeros(rows, dtype=np.uint8)
        self.variable = [place for place, (_, dtype) in enumerate(wanted) if dtype.is_variable]
        self.spans = np.zeros((2 * len(self.variable), rows), dtype=np.int64)

    def fields(self, layout: RowLayout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What `kernels.decode` is told of a layout: its fixed-width values wanted, and all of variable width."""
        column_of = {layout.places.get(feature_id): column for column, (feature_id, _) in enumerate(self.wanted)}
        fixed, variable = [], []
        for place, (_, dtype) in enumerate(layout.features):
            column = column_of.get(place, -1)
            if dtype.is_variable:
                span = 2 * self.variable.index(column) if column >= 0 else 0
                variable.append([layout.offsets[place], place, column, span])
            elif column >= 0:
                fixed.append([layout.offsets[place], dtype.numpy.itemsize, place, column, self.starts[column]])
        return np.array(fixed, np.int64).reshape(-1, 5), np.array(variable, np.int64).reshape(-1, 4)

    def fill(self, part: Located, at: NDArray[np.int64], layout: RowLayout, threads: int | None) -> None:
        """Decode the rows of one part that `at` names; those of other layouts are only noted."""
        fields, variable = self.fields(layout)
        views = [self.buffer.view(f"<u{width}") for width in (1, 2, 4, 8)]

        def work(start: int, stop: int) -> None:
            kernels.decode(
                part.data, at, part.size, start, stop, crc_tables(), layout.version, layout.fixed_bytes, fields,
                variable, self.state, self.head, *views, self.valid, self.spans,
            )  # fmt: skip

        over_rows(self.rows, work, threads, ROWS_PER_THREAD_MIN)

    def columns(self, parts: Sequence[Located], threads: int | None) -> list[Column]:
        found = []
        for place, (_, dtype) in enumerate(self.wanted):
            present = self.valid[place].view(np.bool_)
            valid = None if present.all() else present
            if dtype.is_variable:
                data, heap = self._distinct(place, parts, threads)
                found.append(Column(dtype, data.astype(dtype.numpy, copy=False), valid, heap))
            else:
                start, size = self.starts[place], self.rows * dtype.numpy.itemsize
                found.append(Column(dtype, self.buffer[start : start + size].view(dtype.numpy), valid))
        return found

    def _distinct(self, place: int, parts: Sequence[Located], threads: int | None) -> tuple[NDArray[np.int32], Heap]:
        """Values of variable width: a number for each row, and the distinct values of each part and thread."""
        codes = np.zeros(self.rows, dtype=np.int32)
        starts, lengths = self.spans[2 * self.variable.index(place) :][:2]
        heaps: dict[tuple[int, int], tuple[slice, NDArray[np.bool_], Heap]] = {}
        for number, part in enumerate(parts):
            chosen = (part.at >= 0) & self.valid[place].view(np.bool_)

            def work(
                start: int, stop: int, number: int = number, part: Located = part, chosen: NDArray[np.bool_] = chosen
            ) -> None:
                rows = slice(start, stop)
                slots = np.full(1 << (2 * (stop - start)).bit_length(), -1, dtype=np.int32)
                firsts = np.empty(stop - start, dtype=np.int64)
                count = kernels.distinct(
                    part.data, starts[rows], lengths[rows], chosen[rows], slots, codes[rows], firsts
                )
                first = firsts[:count]
                sizes = lengths[rows][first]
                offsets = np.zeros(count + 1, dtype=np.int64)
                np.cumsum(sizes, out=offsets[1:])
                data = np.empty(int(offsets[-1]), dtype=np.uint8)
                kernels.copy_spans(part.data, starts[rows][first], sizes, offsets[:-1], data)
                heaps[number, start] = (rows, chosen[rows], Heap(offsets, data))

            over_rows(self.rows, work, threads, ROWS_PER_THREAD_MIN)
        found = [heaps[key] for key in sorted(heaps)]
        entries = 0
        for rows, chosen_rows, heap in found:
            codes[rows][chosen_rows] += entries
            entries += len(heap)
        return codes, Heap.concat([heap for _, _, heap in found])


def decode(
    parts: Sequence[Located],
    rows: int,
    wanted: Sequence[tuple[int, DType]],
    layout_of: Callable[[int, int], RowLayout],
    version: int,
    threads: int | None = None,
) -> Decoded:
    """Columns of the features `wanted` (numbers and dtypes), null where a row or its layout lacks one.

    Parameters
    ----------
    parts : sequence of Located
        Where the rows are, as from `locate`.
    rows : int
        How many were asked for.
    layout_of : callable
        From a version, and a row that has it, to the layout.
    version : int
        The layout that most rows have.
    """
    target = _Target(wanted, rows)
    layout = layout_of(version, 0)
    for part in parts:
        target.fill(part, part.at, layout, threads)
    others = target.state == kernels.OTHER_LAYOUT
    for other in np.unique(target.head[3][others]).tolist() if others.any() else ():
        chosen = others & (target.head[3] == other)
        layout = layout_of(other, int(np.argmax(chosen)))
        for part in parts:
            target.fill(part, np.where(chosen, part.at, kernels.ABSENT), layout, threads)
    event, created, commit, _ = target.head
    return Decoded(target.state, event, created, commit.view(np.uint64), target.columns(parts, threads))
