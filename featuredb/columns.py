"""Columns in memory: what every other module passes around. Plain numpy arrays, no pandas, no Arrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.schema import DType


@dataclass(frozen=True, slots=True)
class Heap:
    """Values of variable width, one after the other: entry ``i`` is ``data[offsets[i]:offsets[i + 1]]``.

    ``offsets`` is int64 of length entries + 1, ``data`` uint8 (UTF-8 for strings).
    """

    offsets: NDArray[np.int64]
    data: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def width(self) -> int:
        """What every entry is long, if they are all alike; else 0."""
        widths = np.diff(self.offsets)
        return int(widths[0]) if len(widths) and np.all(widths == widths[0]) else 0

    def tolist(self) -> list[bytes]:
        """The entries as bytes objects."""
        width = self.width
        if width:
            entries: list[bytes] = (
                np.ascontiguousarray(self.data[self.offsets[0] : self.offsets[-1]]).view(f"V{width}").tolist()
            )
            return entries
        start, stop = self.offsets[0], self.offsets[-1]
        raw = self.data[start:stop].tobytes()
        bounds = (self.offsets - start).tolist()
        return list(map(raw.__getitem__, map(slice, bounds[:-1], bounds[1:])))

    @staticmethod
    def of(values: Sequence[bytes | memoryview]) -> Heap:
        """A heap of `values`, in their order."""
        offsets = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, values), dtype=np.int64, count=len(values)), out=offsets[1:])
        return Heap(offsets, np.frombuffer(b"".join(values), dtype=np.uint8))

    @staticmethod
    def concat(parts: Sequence[Heap]) -> Heap:
        """The entries of the parts, one part after the other."""
        bounds = [(int(part.offsets[0]), int(part.offsets[-1])) for part in parts]
        bases = np.cumsum([0, *(stop - start for start, stop in bounds)]) - [*(start for start, _ in bounds), 0]
        offsets = [np.zeros(1, dtype=np.int64)]
        offsets += [part.offsets[1:] + base for part, base in zip(parts, bases[:-1], strict=True)]
        data = [part.data[start:stop] for part, (start, stop) in zip(parts, bounds, strict=True)]
        return Heap(np.concatenate(offsets), np.concatenate(data))

    def part(self, start: int, stop: int) -> Heap:
        """The entries from `start` up to `stop`: the same memory, and offsets that need not begin with 0."""
        return Heap(self.offsets[start : stop + 1], self.data)

    def take(self, places: NDArray[Any]) -> Heap:
        """A heap of the entries at `places`, in that order."""
        places = np.asarray(places)
        width = self.width
        if width:
            taken = self.data[self.offsets[0] : self.offsets[-1]].reshape(len(self), width)[places]
            return Heap(np.arange(len(taken) + 1, dtype=np.int64) * width, taken.reshape(-1))
        lengths = (self.offsets[1:] - self.offsets[:-1])[places]
        offsets = np.zeros(len(places) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        # Byte j of the result comes from where its entry starts plus its distance from the entry's start.
        source = np.repeat(self.offsets[:-1][places] - offsets[:-1], lengths)
        source += np.arange(offsets[-1], dtype=np.int64)
        return Heap(offsets, self.data[source])


@dataclass(frozen=True, slots=True)
class Column:
    """`n` values of one dtype, any of which may be null.

    Parameters
    ----------
    dtype : DType
        What the values are.
    data : ndarray, shape (n,)
        Of dtype ``dtype.numpy``: the values; for string, bytes and lists, each row's place in `heap`.
        A vector is one void value (see `matrix`). Zero where null.
    valid : ndarray of bool, shape (n,), or None
        False where null; None when nothing is null.
    heap : Heap or None
        The distinct (or all) values of a string, bytes or list column. Of a list it holds the elements'
        bytes one after the other; of strings or bytes, first their number and then their lengths, u32 each.
    filled : bool
        Of floats: where null, `data` is NaN instead of zero. So are results of joins, which are to be converted.
    """

    dtype: DType
    data: NDArray[Any]
    valid: NDArray[np.bool_] | None = None
    heap: Heap | None = None
    filled: bool = False

    def __len__(self) -> int:
        return len(self.data)

    @property
    def null_count(self) -> int:
        return 0 if self.valid is None else int(len(self.valid) - np.count_nonzero(self.valid))

    def take(self, rows: NDArray[Any] | slice) -> Column:
        """The column at `rows` (positions, a mask or a slice)."""
        valid = None if self.valid is None else self.valid[rows]
        return Column(self.dtype, self.data[rows], valid, self.heap, self.filled)

    def compact(self) -> Column:
        """The same column whose heap holds just the values in use, none twice-referenced values lost."""
        if self.heap is None:
            return self
        used = np.zeros(len(self.heap), dtype=np.bool_)
        used[self.data if self.valid is None else self.data[self.valid]] = True
        if used.all():
            return self
        renumbered = np.cumsum(used, dtype=np.int64) - 1
        data = np.zeros(len(self.data), dtype=self.dtype.numpy)
        rows = slice(None) if self.valid is None else self.valid
        data[rows] = renumbered[self.data[rows]]
        return Column(self.dtype, data, self.valid, self.heap.take(np.flatnonzero(used)))


Columns = Mapping[str, Column]


def zeroed(data: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[Any]:
    """`data` with zeros where not `valid`, of any dtype."""
    return data if valid is None else np.where(valid, data, np.zeros(1, dtype=data.dtype))


def matrix(column: Column) -> NDArray[Any]:
    """The vectors as an array of shape (n, length): the column's own memory."""
    dtype = column.dtype
    return np.ascontiguousarray(column.data).view(dtype.item.numpy).reshape(len(column), dtype.length)


def vectors(dtype: DType, items: NDArray[Any]) -> NDArray[np.void]:
    """Elements one vector after the other, as `Column.data` of the vector dtype: the same memory."""
    flat: NDArray[np.void] = np.ascontiguousarray(items, dtype=dtype.item.numpy).reshape(-1).view(dtype.numpy)
    return flat


def null_column(dtype: DType, rows: int) -> Column:
    """A column of `rows` nulls."""
    heap = Heap.of([]) if dtype.is_variable else None
    return Column(dtype, np.zeros(rows, dtype=dtype.numpy), np.zeros(rows, dtype=np.bool_), heap)


def concat(parts: Sequence[Column]) -> Column:
    """The parts one after the other; all of one dtype."""
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].dtype
    valid = None
    if any(part.valid is not None for part in parts):
        valid = np.concatenate([np.ones(len(p), np.bool_) if p.valid is None else p.valid for p in parts])
    if not dtype.is_variable:
        filled = all(part.filled or part.valid is None for part in parts)
        return Column(dtype, np.concatenate([part.data for part in parts]), valid, filled=filled)
    heaps: list[Heap] = []
    data = []
    base = 0
    for part in parts:
        assert part.heap is not None
        # Chunks of one column share a heap.
        if not heaps or part.heap is not heaps[-1]:
            base += len(heaps[-1]) if heaps else 0
            heaps.append(part.heap)
        data.append(part.data + base if base else part.data)
    places = np.concatenate(data).astype(dtype.numpy, copy=False)
    heap = heaps[0] if len(heaps) == 1 else Heap.concat(heaps)
    return Column(dtype, zeroed(places, valid), valid, heap)
