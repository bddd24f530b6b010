"""Results as kept in JSON: found by name, and put in relation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from operator import sub, truediv
from pathlib import Path
from typing import Any

FORMAT = 2


@dataclass(frozen=True)
class Figure:
    """A figure with the least and the most that single rounds give."""

    value: float
    least: float
    most: float


class Kept:
    """What one or more runs of ``python -m benchmarks`` measured.

    Parameters
    ----------
    results : dict
        As `benchmarks.run.run` returns them.
    """

    def __init__(self, results: dict[str, Any]) -> None:
        self.tasks: dict[str, Any] = results["tasks"]

    def comparison(self, what: str) -> list[dict[str, Any]]:
        """The results of the systems that do the same work, in their order."""
        return [result for task in self.tasks.values() for result in task["results"] if result["what"] == what]

    def find(self, what: str, system: str) -> dict[str, Any] | None:
        """One result; None if it was left out."""
        return next((result for result in self.comparison(what) if result["system"] == system), None)

    def workload(self, what: str) -> dict[str, Any] | None:
        """Sizes of the data that a comparison was made on."""
        for task in self.tasks.values():
            if any(result["what"] == what for result in task["results"]):
                found: dict[str, Any] = task["workload"]
                return found
        return None

    def seconds(self, what: str, system: str) -> Figure | None:
        """Median time of a run, or of a call in it."""
        result = self.find(what, system)
        return None if result is None else figure(result["seconds"])

    def ratio(self, what: str, dividend: str, divisor: str) -> Figure | None:
        """The median time of one system over that of another."""
        a, b = self.find(what, dividend), self.find(what, divisor)
        return None if a is None or b is None else paired(a, b, truediv)

    def difference(self, what: str, minuend: str, subtrahend: str) -> Figure | None:
        """The median time of one system less that of another."""
        a, b = self.find(what, minuend), self.find(what, subtrahend)
        return None if a is None or b is None else paired(a, b, sub)


def paired(one: dict[str, Any], other: dict[str, Any], relate: Callable[[float, float], float]) -> Figure:
    """Medians of two results put in relation; least and most are of single rounds, for they ran in turns."""
    rounds = [relate(x, y) for x, y in zip(one["seconds"], other["seconds"], strict=True)]
    medians = relate(statistics.median(one["seconds"]), statistics.median(other["seconds"]))
    return Figure(medians, min(rounds), max(rounds))


def figure(seconds: list[float]) -> Figure:
    """The median, the least and the most."""
    return Figure(statistics.median(seconds), min(seconds), max(seconds))


def read_kept(path: Path) -> dict[str, Any]:
    """Results of a file; none if it does not exist, or has another form."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found.get("format") == FORMAT:
            return found
    return {"format": FORMAT, "tasks": {}}


def keep(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Put the results of tasks into a file, where those of other tasks stay; returns all of them."""
    kept = read_kept(path)
    kept["tasks"] |= results["tasks"]
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return kept
