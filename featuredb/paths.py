"""Paths that users give."""

from __future__ import annotations

import os

from featuredb.errors import FileError


def path_text(path: str | os.PathLike[str], name: str = "path") -> str:
    """The path as text; `FileError`, which calls it `name`, if it is none."""
    if not isinstance(path, str | os.PathLike):
        raise FileError(f"{name} must be a str or a path, not {path!r}")
    text = os.fsdecode(path)
    if "\0" in text:
        raise FileError(f"{name} {text!r} has a null character, which no path has; give another")
    return text
