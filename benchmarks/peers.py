"""What a system under measurement is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.check import Answer

# The types of SQLite columns, by dtype.
SQL_TYPES = {"float64": "REAL", "float32": "REAL", "int64": "INTEGER", "bool": "INTEGER", "string": "TEXT"}


def _nothing() -> None:
    """Nothing to prepare before a run, or to close after the last."""


@dataclass(frozen=True)
class Case:
    """One system, loaded and ready to be timed.

    Attributes
    ----------
    run : callable
        What is timed. With `keys` it is called with each of them in turn, and each call is timed.
    answer : callable
        From the result of `run` (with `keys`: the list of the results) to the answer in the form that is compared.
    before : callable
        Called before each run, not timed.
    close : callable
        Called once the answer is read.
    files : tuple of Path
        What the system keeps on disk.
    rows : int, optional
        Rows of the workload that a run goes through, if not all.
    """

    run: Callable[..., Any]
    answer: Callable[[Any], Answer]
    before: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing
    files: tuple[Path, ...] = ()
    keys: list[Any] | None = None
    rows: int | None = None


@dataclass(frozen=True)
class System:
    """A row of the results.

    Attributes
    ----------
    task : str
        join, ingest or online: what is asked for on the command line.
    what : str
        Systems with the same `what` do the same work, and are compared.
    name : str
        The system and the form it is used in.
    note : str
        What is done outside the timing, and in which form the answer comes.
    load : callable
        Makes the case from the folder of the data.
    prepare : callable, optional
        Writes files into the folder; runs once per folder, in a process of its own.
    module : str, optional
        Module that must be installed.
    expected : str, optional
        Which of the right answers it must give, if not that of `what`.
    """

    task: str
    what: str
    name: str
    note: str
    load: Callable[[Path], Case]
    prepare: Callable[[Path], None] | None = None
    module: str | None = None
    expected: str = ""

    @property
    def label(self) -> str:
        return f"{self.what}: {self.name}"

    @property
    def installed(self) -> bool:
        return self.module is None or find_spec(self.module) is not None


def all_systems() -> list[System]:
    """Every system, in the order of the results; featuredb first in each comparison."""
    from benchmarks import ingest, join, online

    return [*join.SYSTEMS, *ingest.SYSTEMS, *online.SYSTEMS]


def find_system(what: str, name: str) -> System:
    """The system of that name."""
    return next(system for system in all_systems() if (system.what, system.name) == (what, name))


def arrow_result(relation: Any) -> Any:
    """A DuckDB relation as an Arrow table; the method was renamed in DuckDB 1.4."""
    return relation.to_arrow_table() if hasattr(relation, "to_arrow_table") else relation.fetch_arrow_table()
