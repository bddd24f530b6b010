"""Generates a workload into a folder: history, entity dataframe and keys to read, with the digests of the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.check import Answer, digests
from benchmarks.history import (
    Entities,
    EntityRows,
    History,
    arrival_times,
    feature_array,
    make_entity_rows,
    make_history,
)
from benchmarks.workload import (
    FEATURES,
    MANY_KEYS,
    PART_FEATURES,
    PARTS,
    SINGLE_KEYS,
    SMALL_ROWS,
    WRITES,
    Workload,
    write_expected,
    write_workload,
)

# Files that do not depend on the entity dataframe.
_SHARED = ("history.parquet", "taken", "taken_valid")


def generate(folder: Path, workload: Workload) -> None:
    """Write the workload and the digests of the right answers into a folder, which is made.

    Files: ``history.parquet`` in the order of arrival, ``entities.parquet``, ``latest.parquet`` with one row
    per entity in key order, ``keys_one.npy`` and ``keys_many.npy`` to read online, ``positions.npy`` and
    ``taken/`` for the limit of a join, ``expected.json``.
    """
    import pyarrow.parquet as pq

    folder.mkdir()
    rng = np.random.default_rng(workload.seed)
    entities = Entities(rng, workload)
    places = entities.draw(rng, workload.rows)
    if workload.every_entity:
        places[: workload.entities] = np.arange(min(workload.entities, workload.rows))
    history = make_history(rng, entities, places)

    arrival = np.argsort(arrival_times(rng, history), kind="stable")
    pq.write_table(history.table(arrival), folder / "history.parquet")
    entity_rows = make_entity_rows(rng, entities, workload.entity_rows, history.packed)
    positions = entity_rows.positions_in(history.packed)
    pq.write_table(entity_rows.table(), folder / "entities.parquet")
    latest = history.latest()
    pq.write_table(history.table(latest), folder / "latest.parquet")
    np.save(folder / "positions.npy", positions)
    for kind, arrays in (("taken", history.columns), ("taken_valid", history.valid)):
        (folder / kind).mkdir()
        for name, array in arrays.items():
            np.save(folder / kind / f"{name}.npy", array)

    answers: dict[str, Answer] = {"nothing": {}, "join": history.joined(positions)}
    answers["small"] = history.joined(positions[:SMALL_ROWS])
    for what, count in (("one", SINGLE_KEYS), ("many", MANY_KEYS)):
        read = latest[rng.integers(0, len(latest), count)]
        np.save(folder / f"keys_{what}.npy", history.keys(read))
        answers[what] = {name: history.feature(name, read) for name in FEATURES}
    answers["write"] = {name: values[:WRITES] for name, values in answers["one"].items()}
    answers["start"] = {name: values[:1] for name, values in answers["one"].items()}
    answers["latest"] = {name: history.feature(name, latest) for name in FEATURES}
    if workload.parts:
        answers["tables"] = _joined_parts(history, arrival, entity_rows)
    first = np.sort(arrival[: workload.first_rows])
    for what, rows in (("ingest", slice(None)), ("ingest_first", first)):
        table = history.table(rows)
        answers[what] = {name: table[name] for name in table.column_names}
    write_expected(folder, {what: digests(answer) for what, answer in answers.items()})
    write_workload(folder, workload)


def part_of(what: str, part: int) -> str:
    """The name of a table, or of one of its features, in which a part of history is."""
    return f"part_{part:02d}{what}"


def _joined_parts(history: History, arrival: NDArray[np.int64], entity_rows: EntityRows) -> Answer:
    """Features of every table when the rows are dealt out to them in the order of arrival."""
    answer = {}
    for part in range(PARTS):
        rows = np.sort(arrival[part::PARTS])
        positions = np.full(len(entity_rows.times), -1)
        if len(rows):
            positions = entity_rows.positions_in(history.packed[rows])
        places = rows[np.maximum(positions, 0)] if len(rows) else np.zeros_like(positions)
        for name in PART_FEATURES:
            answer[part_of(f"__{name}", part)] = history.feature(name, places, positions >= 0)
    return answer


def take_first(folder: Path, into: Path, entity_rows: int) -> None:
    """Make a folder with the same history, and only the first rows of the entity dataframe."""
    import pyarrow.parquet as pq

    into.mkdir()
    for name in _SHARED:
        (into / name).symlink_to(folder / name)
    pq.write_table(pq.read_table(folder / "entities.parquet").slice(0, entity_rows), into / "entities.parquet")
    positions = np.load(folder / "positions.npy")[:entity_rows]
    np.save(into / "positions.npy", positions)
    taken = {name: np.load(folder / "taken" / f"{name}.npy")[np.maximum(positions, 0)] for name in FEATURES}
    write_expected(into, {"join": digests(taken_answer(folder, positions, taken))})


def taken_answer(folder: Path, positions: NDArray[np.int64], taken: Answer) -> Answer:
    """The answer of a join whose values were taken at known positions: with nulls, and strings for numbers."""
    found, places = positions >= 0, np.maximum(positions, 0)
    answer = {}
    for name, values in taken.items():
        path = folder / "taken_valid" / f"{name}.npy"
        valid = np.load(path)[places] if path.exists() else None
        answer[name] = feature_array(name, values, valid, found)
    return answer
