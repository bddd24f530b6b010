"""What verification finds, and the state that its checks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.errors import ClosedError, ForkedError
from featuredb.limits import VERIFY_FINDINGS_MAX
from featuredb.storage.env import ReadTxn
from featuredb.storage.registry import Registry
from featuredb.storage.segment import SegmentCache

# Not damage, whatever is being read.
_NOT_DAMAGE = (ClosedError, ForkedError, ImportError, MemoryError)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, and where."""

    what: str
    table: str | None = None
    segment: int | None = None
    column: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        parts = [("table", self.table), ("segment", self.segment), ("column", self.column), ("key", self.key)]
        where = ", ".join(f"{name} {value}" for name, value in parts if value is not None)
        return f"{where}: {self.what}" if where else self.what


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes
    ----------
    ok : bool
        Whether no damage was found.
    problems : tuple of Finding
        Damage: content that contradicts itself. A file in order has none. The first 1,000 of them.
    differences : tuple of Finding
        Keys whose online value is not their latest row of history because rows were loaded apart, with
        ``to="offline"`` or ``to="online"``: no damage, and kept out of `ok`. Every one; `str` shows the first 1,000.
    problem_count, difference_count : int
        All of them.
    tables, segments, rows, chunks, entity_keys, online_keys, commits : int
        How much was checked; rows that were replaced are not counted.
    seconds : float
        Wall time.
    level : str
        ``"full"``, or ``"quick"`` if the content of chunks and online rows was not read.
    """

    ok: bool
    problems: tuple[Finding, ...]
    differences: tuple[Finding, ...]
    problem_count: int
    difference_count: int
    tables: int
    segments: int
    rows: int
    chunks: int
    entity_keys: int
    online_keys: int
    commits: int
    seconds: float
    level: str = "full"

    def __str__(self) -> str:
        checked = (
            f"{self.tables} tables, {self.segments} segments, {self.rows} rows, {self.chunks} chunks, "
            f"{self.entity_keys} entity keys, {self.online_keys} online keys, {self.commits} commits"
        )
        if self.ok and not self.differences:
            return f"ok: {checked}" if self.level == "full" else f"ok ({self.level}): {checked}"
        lines = [f"{self.problem_count} problems, {self.difference_count} differences in {checked}"]
        for kind, listed, count in (
            ("problem", self.problems, self.problem_count),
            ("difference", self.differences, self.difference_count),
        ):
            shown = listed[:VERIFY_FINDINGS_MAX]
            lines += [f"{kind}: {finding}" for finding in shown]
            if count > len(shown):
                lines.append(f"... and {count - len(shown)} more {kind}s")
        return "\n".join(lines)


@dataclass
class Check:
    """One verification under way: what it reads, what it has found, and what its parts tell one another.

    Attributes
    ----------
    level : str
        ``"quick"`` to read no content of chunks and online rows, or ``"full"``.
    registry : Registry
        The definitions of the snapshot; set by the first check, which reads them.
    cache : SegmentCache
        Its own, so that checksums that the process has seen before are checked again.
    operations : dict of int to str
        Operation of each commit whose log record can be read.
    key_counts : dict of int to int
        Codes given in each key space that is sound.
    forgotten : dict of int to ndarray
        Those of them that have no key any more.
    chunks_expected : set of bytes
        Keys of the chunks that the descriptors and manifests name.
    segments_live : set of (int, int)
        Table and number of the segments that manifests name.
    unread : set of (int, int or None)
        Segments whose descriptor, or (with None) tables whose manifest, says nothing reliable.
    """

    txn: ReadTxn
    level: str = "full"
    registry: Registry = field(default_factory=Registry)
    cache: SegmentCache = field(default_factory=SegmentCache)
    problems: list[Finding] = field(default_factory=list)
    differences: list[Finding] = field(default_factory=list)
    problem_count: int = 0
    operations: dict[int, str] = field(default_factory=dict)
    last_commit: int = 0
    key_counts: dict[int, int] = field(default_factory=dict)
    forgotten: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    chunks_expected: set[bytes] = field(default_factory=set)
    segments_live: set[tuple[int, int]] = field(default_factory=set)
    unread: set[tuple[int, int | None]] = field(default_factory=set)
    segments: int = 0
    rows: int = 0
    chunks: int = 0
    entity_keys: int = 0
    online_keys: int = 0
    commits: int = 0

    def problem(self, what: str, *, count: int = 1, **where: Any) -> None:
        """Note damage; `count` findings that are alike count as so many."""
        self.problem_count += count
        if len(self.problems) < VERIFY_FINDINGS_MAX:
            self.problems.append(Finding(what, **where))

    def difference(self, what: str, **where: Any) -> None:
        """Note a key that was loaded apart. Each is listed, for whoever loads them anew."""
        self.differences.append(Finding(what, **where))

    @contextmanager
    def guarded(self, what: str = "", **where: Any) -> Iterator[None]:
        """Turn whatever reading damaged content raises into a problem, so that the check goes on."""
        try:
            yield
        except _NOT_DAMAGE:
            raise
        except Exception as error:
            # A record with a valid checksum and a wrong shape fails in ways that no one foresaw.
            text = str(error) if type(error).__module__.startswith("featuredb.") else f"{type(error).__name__}: {error}"
            self.problem(f"{what}: {text}" if what else text, **where)

    def report(self, seconds: float) -> VerifyReport:
        """The outcome."""
        return VerifyReport(
            self.problem_count == 0,
            tuple(self.problems),
            tuple(self.differences),
            self.problem_count,
            len(self.differences),
            len(self.registry.tables),
            self.segments,
            self.rows,
            self.chunks,
            self.entity_keys,
            self.online_keys,
            self.commits,
            seconds,
            self.level,
        )
