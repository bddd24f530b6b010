"""Every error featuredb raises: one root, a stable code each, and a message that names the remedy.

An error that a caller would look for under a builtin (``KeyError``, ``ValueError``, ``OSError``) is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PROBLEMS_SHOWN_MAX = 20


class FeatureDBError(Exception):
    """Root of every error raised on purpose by featuredb. ``code`` is stable across releases."""

    code = "FDB000"

    def __str__(self) -> str:
        # KeyError would print its message quoted and escaped.
        return str(self.args[0]) if self.args else ""


class DefinitionError(FeatureDBError, ValueError):
    """A definition is invalid, or a change to a stored one is refused."""

    code = "FDB101"


class NotFoundError(FeatureDBError, KeyError):
    """No entity, feature table, feature or feature service of that name."""

    code = "FDB102"


class InputError(FeatureDBError, ValueError):
    """Data or arguments cannot be used as they are. ``problems`` holds every problem found."""

    code = "FDB201"

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[InputError], tuple[str, tuple[Problem, ...]]]:
        return type(self), (str(self), self.problems)


class LimitError(FeatureDBError, ValueError):
    """A bound of ``featuredb.limits`` would be exceeded."""

    code = "FDB202"


class FileError(FeatureDBError, OSError):
    """The path cannot be opened as a database: missing, a directory, empty, not writable, no space."""

    code = "FDB301"


class NotADatabaseError(FileError):
    """The file exists, but is not a featuredb file."""

    code = "FDB302"


class FormatVersionError(FileError):
    """The file was written by a newer featuredb."""

    code = "FDB303"


class CorruptionError(FileError):
    """The file's content contradicts its own checksums or structure."""

    code = "FDB304"


class ReadOnlyError(FeatureDBError, PermissionError):
    """A write was asked of a database opened read-only."""

    code = "FDB305"


class BusyError(FeatureDBError, TimeoutError):
    """Another writer held the file for longer than the timeout."""

    code = "FDB306"


class ClosedError(FeatureDBError, ValueError):
    """The database was used after ``close()``."""

    code = "FDB401"


class ForkedError(FeatureDBError, RuntimeError):
    """The database was opened in a parent process and used after ``fork``."""

    code = "FDB402"


class MissingExtraError(FeatureDBError, ImportError):
    """An optional dependency is needed; the message names the extra to install."""

    code = "FDB403"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the input: what, where, and how often.

    Parameters
    ----------
    reason : str
        What is wrong and how to mend it.
    column : str or None
        The column, in the caller's own name for it.
    row : int or None
        Zero-based position of the first row concerned.
    value : str or None
        ``repr`` of the first value concerned.
    count : int
        Rows concerned.
    """

    reason: str
    column: str | None = None
    row: int | None = None
    value: str | None = None
    count: int = 1

    def __str__(self) -> str:
        where = []
        if self.column is not None:
            where.append(f"column {self.column!r}")
        if self.row is not None:
            where.append(f"row {self.row}")
        if self.value is not None:
            where.append(f"value {self.value}")
        text = f"{', '.join(where)}: {self.reason}" if where else self.reason
        return f"{text} ({self.count} rows)" if self.count > 1 else text


def input_error(subject: str, problems: Iterable[Problem]) -> InputError:
    """One `InputError` that lists all `problems` found in `subject`."""
    found = tuple(problems)
    lines = [str(problem) for problem in found[:PROBLEMS_SHOWN_MAX]]
    if len(found) > PROBLEMS_SHOWN_MAX:
        lines.append(f"... and {len(found) - PROBLEMS_SHOWN_MAX} more problems")
    if len(found) == 1:
        return InputError(f"{subject}: {lines[0]}", found)
    return InputError(f"{subject}: {len(found)} problems\n  - " + "\n  - ".join(lines), found)
