"""Progress of long calls: a rich bar on a terminal, nothing elsewhere, or a function of the caller's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _silent(done: int, total: int | None) -> None:
    pass


Report = Callable[[int, int | None], None]


@contextmanager
def reporter(progress: bool | Report | None, title: str) -> Iterator[Report]:
    """A function to call with (rows done, rows in all or None).

    `progress` is True or False for a bar or none, None for a bar if standard error is a terminal, or
    the function itself.
    """
    if callable(progress):
        yield progress
        return
    if not (sys.stderr.isatty() if progress is None else progress):
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
