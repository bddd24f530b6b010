"""Salvage: what is undamaged of a damaged file, in a new one, and a list of what is lost.

First the entries that can be read are written to a sound file (`storage.rescue`), which the engine may read. There
`verify` says what is damaged, and that is taken out, in one transaction, so that the rest holds together again:
definitions and the dictionary of keys first (`definitions`), then segments and tails (`history`), then what follows
from them, the online values (`online`). In the end `verify` must find nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featuredb.errors import CorruptionError, FeatureDBError, FileError
from featuredb.paths import path_text
from featuredb.storage import datafile
from featuredb.storage.env import open_env

if TYPE_CHECKING:
    from featuredb.verify import Finding, VerifyReport


OLDER = "what a later commit added is missing, and what it removed is there again"


@dataclass(frozen=True, slots=True)
class SalvageReport:
    """What ``salvage`` did.

    Attributes
    ----------
    lost : tuple of Finding
        What is not in the new file, each with its table, segment and key as far as they are known.
    damaged_pages : tuple of str
        What is wrong with the pages of the file. Where only what leads to others is damaged, nothing need be lost.
    commit_id : int
        The last commit that the new file has of the damaged one; of those after it, if there were any, nothing is left.
    is_older : bool
        Whether the newest meta page is, or may be, damaged, so that the one before had to do. What the last commit
        added is then not there, and **what it removed is there again**, such as rows that were forgotten.
    content : VerifyReport
        What is in the new file, verified.
    seconds : float
        Wall time.
    """

    lost: tuple[Finding, ...]
    damaged_pages: tuple[str, ...]
    commit_id: int
    is_older: bool
    content: VerifyReport
    seconds: float

    def __str__(self) -> str:
        lines = [f"state after commit {self.commit_id}"]
        if self.is_older:
            lines[0] += f", an older one: {OLDER}"
        lines += [
            *(f"damaged: {fault}" for fault in self.damaged_pages),
            *(f"lost: {finding}" for finding in self.lost),
        ]
        return "\n".join([str(self.content), *lines])


def salvage(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> SalvageReport:
    """Copy what is undamaged of a file into a new one, which is in order.

    The file is not changed. If nothing is damaged the new one is a copy. Otherwise of a damaged segment the rows are
    kept that are whole in all columns; if it cannot be told which rows or columns it has, the newest row of a key is,
    if its online value is whole. Online values that are damaged are made anew from history. Snapshots are let go of.
    The log gets a commit ``salvage``, and has commits ``lost`` where its records are.

    If the newest meta page is damaged, the state is that of the transaction before: **what the last commit removed,
    such as rows that were forgotten, is there again** (`SalvageReport.is_older`).

    The disk must have room for two more files of that size, and the memory for one segment; where it is lost which
    segments a table has, for the table.

    Parameters
    ----------
    src : str or os.PathLike
        The damaged file. No one may write to it meanwhile.
    dst : str or os.PathLike
        A name that is not taken. Nothing is there unless the call succeeds.

    Returns
    -------
    SalvageReport

    Raises
    ------
    FileError
        If `src` cannot be read, or `dst` exists or cannot be written.
    NotADatabaseError, FormatVersionError
        If `src` is not ours, or newer than this library.
    CorruptionError
        If nothing can be salvaged.
    BusyError
        If someone writes to `src`.

    Examples
    --------
    >>> import featuredb as fdb, os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     src, dst = os.path.join(folder, "damaged.fdb"), os.path.join(folder, "salvaged.fdb")
    ...     with fdb.open(src) as db:
    ...         table = fdb.FeatureTable("t", ["user"], [fdb.Feature("x", "int64")])
    ...         _ = db.apply([fdb.Entity("user", "int64"), table])
    ...         _ = db.ingest("t", {"user": [7], "event_timestamp": ["2024-05-01"], "x": [1]})
    ...     report = fdb.salvage(src, dst)
    >>> report.lost, report.content.ok, report.content.rows
    ((), True, 1)
    """
    from featuredb.recovery.repair import repair
    from featuredb.storage.rescue import rescue
    from featuredb.verify import verify_env

    began = time.perf_counter()
    source, target = (os.path.realpath(path_text(path, name)) for path, name in ((src, "src"), (dst, "dst")))
    if os.path.lexists(target):
        raise FileError(f"{target}: exists already; choose another name or delete it")
    lost: list[Finding] = []
    folder = datafile.temporary_name(target)
    try:
        os.mkdir(folder, 0o700)
        work = os.path.join(folder, "work.fdb")
        found = rescue(source, work)
        env = open_env(work, create=False, readonly=False, durable=False)
        try:
            report = verify_env(env)
            commit_id = report.commits
            if not (found.is_whole and report.ok):
                with env.writer():
                    commit_id, lost = env.write(repair, durable=False)
                report = verify_env(env)
            if not report.ok:
                raise CorruptionError(f"{source}: cannot be salvaged: {report.problems[0]}; restore it from a backup")
            env.copy(target)
        finally:
            env.close()
    except FeatureDBError:
        raise
    except OSError as error:
        raise datafile.file_error(target, error, "written") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return SalvageReport(
        tuple(lost), tuple(found.faults), commit_id, found.is_older, report, time.perf_counter() - began
    )
