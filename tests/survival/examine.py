"""Examines a file that was left behind: whole, as old or as new as it may be, and good for more work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import featuredb as fdb

from .digest import digest
from .runs import NAME, Expected


def examine_folder(folder: Path, known: Expected, done: int, begun: int) -> str:
    """Examine the file of a plan, and its backups, after `done` steps returned and `begun` had been started."""
    for name, content in known.backups.items():
        made = next(at for at, step in enumerate(known.plan.steps) if step.arguments == {"name": name})
        if made < begun:
            verdict = examine(folder / name, [content] if made < done else [None, content])
            if verdict.startswith("violation"):
                return f"{verdict} ({name})"
    return examine(folder / NAME, allowed_digests(known, done, begun))


def allowed_digests(known: Expected, done: int, begun: int) -> list[str | None]:
    """What the file of a plan may hold, the oldest first; None if it may be missing."""
    oldest = done - 1
    if known.plan.durability == "relaxed":
        # The last commit may be undone; steps that made none come after it.
        while oldest >= 0 and known.digests[oldest] == known.digests[done - 1]:
            oldest -= 1
    return [known.digests[at] if at >= 0 else None for at in range(oldest, begun)]


def examine(path: Path, allowed: Sequence[str | None]) -> str:
    """``old`` or ``new`` (``new`` is the last of `allowed`), or what is wrong.

    Parameters
    ----------
    path : Path
        The file, which is then written to.
    allowed : sequence of str or None
        Digests that it may have, the oldest first; None if it may be missing.
    """
    existed = path.exists()
    if not existed and None not in allowed:
        return "violation: the file is missing"
    try:
        with fdb.open(path) as db:
            found = digest(db) if existed else None
            if found not in allowed:
                wanted = ", ".join(map(str, allowed))
                return f"violation: its content is that of no step it may hold: {found}, not {wanted}"
            _use(db)
        with fdb.open(path) as db:
            # After a write: what is wrong with free pages shows once they are used.
            report = db.verify()
            if not report.ok:
                return f"violation: {report}"
            if db.get_online_features(["probe:value"], {"probe": [1]}).to_dict()["value"] != [7]:
                return "violation: a write made after it was opened is gone"
    except Exception as error:
        return f"violation: {type(error).__name__}: {error}"
    return "new" if found == allowed[-1] else "old"


def _use(db: fdb.Database) -> None:
    db.apply([fdb.Entity("probe", "int64"), fdb.FeatureTable("probe", ["probe"], [fdb.Feature("value", "int64")])])
    db.ingest("probe", {"probe": [1], "event_timestamp": ["2013-01-01"], "value": [7]})
