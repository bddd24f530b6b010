"""What a system under measurement is, and the list of all of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.check import Answer

# The types of SQLite columns, by dtype.
SQL_TYPES = {"float64": "REAL", "float32": "REAL", "int64": "INTEGER", "bool": "INTEGER", "string": "TEXT"}


def _nothing() -> None:
    """Nothing to do around a run, or after the last."""


def _no_facts() -> dict[str, Any]:
    """Nothing more to tell."""
    return {}


@dataclass(frozen=True)
class Case:
    """One system, loaded and ready to be timed.

    Attributes
    ----------
    run : callable
        What is timed. With `keys` it is called with each of them in turn, and each call is timed.
    answer : callable
        From the result of `run` (with `keys`: the list of the results) to the answer in the form that is compared.
    before, after : callable
        Called around each run, not timed; the result is still needed after `after`.
    close : callable
        Called at the end.
    files : tuple of Path
        What the system keeps on disk.
    keys : list, optional
        What `run` is called with; a run then counts with the median time of a call.
    rows : int, optional
        Rows of the workload that a run goes through, if not all.
    own_clock : bool
        `run` returns its seconds and the result, for what it measures starts before it or ends in another process.
    output_bytes : callable, optional
        From the result of `run` to the bytes that it is made of.
    facts : callable
        More to keep with the results, asked for after the last run.
    """

    run: Callable[..., Any]
    answer: Callable[[Any], Answer]
    before: Callable[[], None] = _nothing
    after: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing
    files: tuple[Path, ...] = ()
    keys: list[Any] | None = None
    rows: int | None = None
    own_clock: bool = False
    output_bytes: Callable[[Any], int] | None = None
    facts: Callable[[], dict[str, Any]] = _no_facts


@dataclass(frozen=True)
class System:
    """A row of the results.

    Attributes
    ----------
    task : str
        join, ingest, online or cold: what is asked for on the command line.
    what : str
        Systems with the same `what` do the same work: they are compared, and run in turns.
    name : str
        The system and the form it is used in.
    note : str
        What is done outside the timing, and in which form the answer comes.
    load : callable
        Makes the case from the folder of the data.
    prepare : callable, optional
        Writes files into the folder; runs once per folder, in a process of its own.
    lacks : callable
        What is not installed that it needs; empty if nothing.
    expected : str, optional
        Which of the right answers it must give, if not that of `what`.
    data : str
        The data it works on: main, zipf (popularity of entities) or online (more entities).
    once : bool
        Run a single time: its memory is what counts.
    elsewhere : bool
        What is timed is a process that the case starts, so that memory is not looked at.
    """

    task: str
    what: str
    name: str
    note: str
    load: Callable[[Path], Case]
    prepare: Callable[[Path], None] | None = None
    lacks: Callable[[], str] = field(default=str)
    expected: str = ""
    data: str = "main"
    once: bool = False
    elsewhere: bool = False

    @property
    def label(self) -> str:
        return f"{self.what}: {self.name}"


def module(name: str) -> Callable[[], str]:
    """For `System.lacks`: a module."""
    return lambda: "" if find_spec(name) else f'{name} is not installed (pip install "featuredb[bench]")'


def program(name: str, module_name: str) -> Callable[[], str]:
    """For `System.lacks`: a program, and the module that talks to it."""
    return lambda: module(module_name)() or ("" if shutil.which(name) else f"there is no {name} on the PATH")


def all_systems() -> list[System]:
    """Every system, in the order of the results; what others are compared to is the first of its comparison."""
    from benchmarks import (
        cold,
        ingest,
        join,
        join_first,
        join_memory,
        join_variants,
        online_load,
        online_many,
        online_one,
        online_start,
        online_write,
    )

    modules = (
        join, join_variants, join_memory, join_first, ingest,
        online_one, online_many, online_load, online_write, online_start, cold,
    )  # fmt: skip
    return [system for module in modules for system in module.SYSTEMS]


def find_system(what: str, name: str) -> System:
    """The system of that name."""
    return next(system for system in all_systems() if (system.what, system.name) == (what, name))


def arrow_result(relation: Any) -> Any:
    """A DuckDB relation as an Arrow table; the method was renamed in DuckDB 1.4."""
    return relation.to_arrow_table() if hasattr(relation, "to_arrow_table") else relation.fetch_arrow_table()


def copied(source: Path, path: Path) -> None:
    """A copy that is on the disk: what is written to it later must not wait for the copy."""
    shutil.copyfile(source, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def removed(path: Path) -> Callable[[], None]:
    """What makes a run start without the files of the one before."""

    def remove() -> None:
        for suffix in ("", "-lock", "-journal", ".wal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    return remove
