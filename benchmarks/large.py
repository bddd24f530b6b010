"""A history too large for memory: made, loaded and joined part by part.

Parts follow one another in time. The late rows of each arrive with the next, so that segments overlap. The expected
join is worked out along the way: of the parts that have a row for an entity row, the last one's counts.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import featuredb as fdb
from benchmarks.check import digests
from benchmarks.history import (
    Entities,
    EntityRows,
    History,
    arrival_times,
    feature_array,
    make_entity_rows,
    make_history,
)
from benchmarks.join import TABLE, define
from benchmarks.workload import (
    FEATURES,
    MAX_AGE_US,
    SPAN_US,
    Workload,
    as_users_hold_it,
    write_expected,
    write_workload,
)

PARTS = 10


class _Expected:
    """The answer so far: the row of the newest part that has one, for each entity row."""

    def __init__(self, entity_rows: EntityRows) -> None:
        self._entity_rows = entity_rows
        rows = len(entity_rows.times)
        self._found = np.zeros(rows, dtype=np.bool_)
        self._values: dict[str, NDArray[Any]] = {}
        self._valid: dict[str, NDArray[np.bool_]] = {}

    def add(self, part: History) -> None:
        """A part that is later than those before."""
        positions = self._entity_rows.positions_in(part.packed)
        hit = positions >= 0
        rows = positions[hit]
        self._found |= hit
        for name, values in part.columns.items():
            self._values.setdefault(name, np.zeros(len(hit), values.dtype))[hit] = values[rows]
        for name, valid in part.valid.items():
            self._valid.setdefault(name, np.zeros(len(hit), np.bool_))[hit] = valid[rows]

    def answer(self) -> dict[str, Any]:
        return {name: feature_array(name, self._values[name], self._valid.get(name), self._found) for name in FEATURES}


def generate_large(folder: Path, workload: Workload) -> None:
    """Write ``join.fdb``, ``entities.parquet`` and ``expected.json`` of a history of any size into a folder.

    Memory holds a tenth of the history at a time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rng = np.random.default_rng(workload.seed)
    entities = Entities(rng, workload)
    late: Any = None
    expected: _Expected | None = None
    with fdb.open(folder / "join.fdb") as db:
        define(db, timedelta(microseconds=MAX_AGE_US))
        for number in range(PARTS):
            rows = workload.rows * (number + 1) // PARTS - workload.rows * number // PARTS
            end_us = SPAN_US * (number + 1) // PARTS
            part = make_history(rng, entities, entities.draw(rng, rows), SPAN_US * number // PARTS, end_us)
            if expected is None:
                entity_rows = make_entity_rows(rng, entities, workload.entity_rows, part.packed)
                pq.write_table(entity_rows.table(), folder / "entities.parquet")
                expected = _Expected(entity_rows)
            expected.add(part)
            arrival = arrival_times(rng, part)
            order = np.argsort(arrival, kind="stable")
            in_time = int(np.searchsorted(arrival[order], end_us)) if number + 1 < PARTS else rows
            batch = part.table(order[:in_time])
            if late is not None:
                batch = pa.concat_tables([late, batch])
            late = part.table(order[in_time:])
            del part, arrival, order
            db.ingest(TABLE, as_users_hold_it(batch.to_pandas()), progress=False)
    assert expected is not None
    write_expected(folder, {"join": digests(expected.answer())})
    write_workload(folder, workload)
