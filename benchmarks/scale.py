"""The join at several sizes: history of N rows and entity dataframes of M, one of them as it is while the other grows.

Every system of the join takes part, as there, and has its files and frames of each size. Rows per entity stay the same,
so history has more entities as it grows. With ``--large-rows``, featuredb joins one larger history too, loaded in ten
ingests of consecutive rows, in turns with the history of the main size.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import join
from benchmarks.lab import Lab, Result
from benchmarks.peers import System
from benchmarks.process import in_process
from benchmarks.workload import ENTITIES_MAX, Workload

# Sizes of history and of entity dataframes, as parts of the main one.
_HISTORIES = (100, 10, 1)
_ENTITY_ROWS = (1_000, 100, 10)
OURS = "featuredb, to_numpy"


def measure_scale(lab: Lab, large_rows: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    """Results with ``history_rows`` and ``entity_rows`` of each, and the systems left out."""
    plain = lab.workload
    systems = [system for system in join.SYSTEMS if system.name not in join.FORMS]
    missing = [{"what": "scale", "system": s.name, "why": s.lacks()} for s in systems if s.lacks()]
    systems = [system for system in systems if not system.lacks()]
    results: list[Result] = []
    for part in sorted({max(plain.rows // part, 1) for part in _HISTORIES}):
        folder = lab.data("main")
        if part != plain.rows:
            folder = lab.generated(f"history-{part}", _resized(plain, part))
        results += _point(lab, [(system, folder) for system in systems], part, plain.entity_rows)
    for rows in sorted({max(plain.entity_rows // part, 1) for part in _ENTITY_ROWS} - {plain.entity_rows}):
        folder = _fewer_entity_rows(lab, systems, rows)
        results += _point(lab, [(_ready(system), folder) for system in systems], plain.rows, rows)
    if large_rows is not None:
        ours = next(system for system in systems if system.name == OURS)
        large = lab.generated("large", _resized(plain, large_rows), "large")
        main, bigger = lab.measure([(ours, lab.data("main")), (_ready(ours), large)])
        results.append(_sized(main, plain.rows, plain.entity_rows) | {"what": "large"})
        results.append(_sized(bigger, large_rows, plain.entity_rows) | {"what": "large"})
    return results, missing


def _ready(system: System) -> System:
    """The system, for a folder that has its file already."""
    return replace(system, prepare=None)


def _resized(plain: Workload, rows: int) -> Workload:
    """As many rows per entity as in `plain`."""
    entities = min(max(round(plain.entities * rows / plain.rows), 1), ENTITIES_MAX)
    return replace(plain, rows=rows, entities=entities)


def _fewer_entity_rows(lab: Lab, systems: list[System], rows: int) -> Path:
    """A folder with the main history, the files made of it, and the first entity rows."""
    main = lab.data("main")
    folder = lab.root / f"entity-rows-{rows}"
    in_process("take_first", main, into=str(folder), entity_rows=rows)
    for system in systems:
        lab.prepare(system, main)
    for name in join.FILES:
        if (main / name).exists():
            (folder / name).symlink_to(main / name)
    return folder


def _point(lab: Lab, pairs: list[tuple[System, Path]], rows: int, entity_rows: int) -> list[Result]:
    lab.say(f"{rows:,} rows of history, {entity_rows:,} entity rows")
    return [_sized(result, rows, entity_rows) for result in lab.measure(pairs)]


def _sized(result: Result, rows: int, entity_rows: int) -> Result:
    return {**result, "task": "scale", "what": "scale", "history_rows": rows, "entity_rows": entity_rows}
