"""The latest row of each key over the batches of one ingest."""

from __future__ import annotations

from dataclasses import dataclass, replace

from featuredb.columns import Heap
from featuredb.offline.rows import concat_rows, last_of_each, sort_rows
from featuredb.storage.encode import number_entries
from featuredb.storage.segment_writer import Rows


@dataclass(frozen=True, slots=True)
class Latest:
    """Parts of at least doubling size, each with one row a key; a key may be in several of them.

    A part is folded into the one before once it has grown to half its size, so that a row is sorted
    O(log batches) times, not once for every batch that follows.
    """

    parts: tuple[tuple[Rows, Heap], ...] = ()

    def add(self, rows: Rows, keys: Heap) -> Latest:
        """With one more batch: a row for each key, and the key of each."""
        parts = [*self.parts, (rows, keys)]
        while len(parts) > 1 and 2 * len(parts[-1][0]) > len(parts[-2][0]):
            parts[-2:] = [_fold(parts[-2], parts[-1])]
        return Latest(tuple(parts))

    def fold(self) -> tuple[Rows, Heap] | None:
        """The latest row of each key, and the keys; None if there is no row."""
        if not self.parts:
            return None
        folded = self.parts[-1]
        for part in reversed(self.parts[:-1]):
            folded = _fold(part, folded)
        return folded


def _fold(earlier: tuple[Rows, Heap], later: tuple[Rows, Heap]) -> tuple[Rows, Heap]:
    keys = Heap.concat([earlier[1], later[1]])
    # Codes are of one batch, where the keys are given none in the file.
    numbers, _ = number_entries(keys)
    rows = sort_rows(replace(concat_rows([earlier[0], later[0]]), codes=numbers))
    last = last_of_each(rows.codes)
    kept = rows.take(last)
    order = last if rows.places is None else rows.places[last]
    # Without the values of rows that are gone, the heaps stay as small as the rows.
    columns = {feature: column.compact() for feature, column in kept.columns.items()}
    rows = Rows(kept.codes, kept.event, kept.created, kept.commit, columns)
    return rows, keys.take(order)
