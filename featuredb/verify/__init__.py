"""Verification: that a file holds what it says, and that serving agrees with training.

Everything is read once, in one snapshot: records and checksums, order within and between segments, zone maps, the
entity dictionary, the log, and the invariant of the store: the online value of every key is its latest row
of history. What is found is collected, not raised. The pages below must have been found in order (`storage.pages`).
Not checked: whether values are those that were once ingested, and whether the newest commit is missing whole.
"""

from __future__ import annotations

import time

from featuredb.storage.env import Env, ReadTxn
from featuredb.storage.moving import settle
from featuredb.storage.snapshots import SnapshotTxn
from featuredb.verify.definitions import check_format, check_key_space, check_log, check_registry
from featuredb.verify.history import check_rejected, check_table
from featuredb.verify.report import Check, Finding, VerifyReport
from featuredb.verify.serving import check_online, check_pending
from featuredb.verify.snapshots import check_snapshots
from featuredb.verify.strays import check_strays

__all__ = ["Finding", "VerifyReport", "report_pages", "verify_database", "verify_env"]


def verify_env(env: Env, level: str = "full") -> VerifyReport:
    """Check the pages of a file, without the engine, and only if they are in order everything else."""
    began = time.perf_counter()
    faults = env.page_faults()
    if faults:
        return report_pages(faults, time.perf_counter() - began, level)
    with env.read() as txn:
        settle(txn)
        return verify_database(txn, level)


def verify_database(txn: ReadTxn, level: str = "full") -> VerifyReport:
    """Check everything in one transaction; in one at a snapshot, everything that the snapshot sees.

    Of the file's snapshots their records, history and saved online values are checked, but not that these online
    values are the latest of that history: for that, verify at the snapshot.

    Memory: the timestamps of one segment and a chunk of its values, the keys of one key space three times, and the
    latest row of each key of one table.

    Parameters
    ----------
    txn : ReadTxn
        The snapshot.
    level : {"full", "quick"}
        ``"quick"`` reads no content of chunks and online rows: of chunks it checks that they are there, and their
        lengths.

    Returns
    -------
    VerifyReport
        Everything found. Damage is never raised.
    """
    began = time.perf_counter()
    check = Check(txn, level)
    with check.guarded():
        check_format(check)
    with check.guarded():
        check_log(check)
    if check_registry(check):
        for entities, number in sorted(check.registry.spaces.items()):
            check_key_space(check, entities, number)
        for name in sorted(check.registry.tables):
            table = check.registry.tables[name]
            sound = check_table(check, table)
            with check.guarded(table=name):
                check_online(check, table, sound=sound)
            # What a snapshot does not see is not its own, but neither is it astray.
            if not isinstance(txn, SnapshotTxn):
                with check.guarded(table=name):
                    check_pending(check, table)
                with check.guarded(table=name):
                    check_rejected(check, table)
        if not isinstance(txn, SnapshotTxn):
            with check.guarded():
                check_snapshots(check)
            with check.guarded():
                check_strays(check)
    return check.report(time.perf_counter() - began)


def report_pages(faults: list[str], seconds: float, level: str = "full") -> VerifyReport:
    """The report on a file whose pages are damaged, so that nothing else of it can be checked."""
    problems = tuple(Finding(f"pages: {fault}") for fault in faults)
    return VerifyReport(
        ok=False,
        problems=problems,
        differences=(),
        problem_count=len(problems),
        difference_count=0,
        tables=0,
        segments=0,
        rows=0,
        chunks=0,
        entity_keys=0,
        online_keys=0,
        commits=0,
        seconds=seconds,
        level=level,
    )
