"""Paths that users give."""

from __future__ import annotations

import os

from featuredb.errors import FileError


def path_text(path: str | os.PathLike[str], name: str = "path") -> str:
    """The path as text; `FileError`, which calls it `name`, if it is none."""
    if not isinstance(path, str | os.PathLike):
        raise FileError(f"{name} must be a str or a path, not {path!r}")
    text = os.fsdecode(path)
    try:
        reason = "it has a null character" if b"\0" in os.fsencode(text) else None
    except UnicodeEncodeError as error:
        reason = str(error)
    if reason is not None:
        raise FileError(f"{name} {text!r} cannot be the name of a file: {reason}; give another")
    return text
