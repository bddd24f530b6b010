"""Damage: a disk that lies about a sync, a file cut short, bits that flipped. What `verify` says of it, and reads.

Each damaged file is verified in a child and read in another, for a signal ends either. It is ``refused`` (not opened),
``detected`` (by `verify`), or ``harmless`` (`verify` finds nothing, and the content is as before); anything else
is a violation. Of files that `verify` finds damaged it is only counted what ordinary reads make of them.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import featuredb as fdb

from . import children
from .digest import digest
from .record import Event
from .results import Outcome
from .runs import NAME, Plan, emptied, expected, scratch
from .states import Disk

PAGE_BYTES = 4096
STEPS = 20
SMALL_STEPS = 6


@dataclass(frozen=True)
class Damaged:
    """A damaged file: `content` with what `where` says; it was written by a step with this digest."""

    content: bytes
    where: str
    digest: str
    meta: bool = False
    older: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Put it in the place of the one before, without that one's lock file."""
        emptied(path.parent)
        path.write_bytes(self.content)


def verified(damaged: Damaged, path: Path) -> str:
    """What `verify` says: ``refused``, ``detected``, ``ok``, or a violation."""
    damaged.write(path)
    try:
        with fdb.open(path, read_only=True) as db:
            return "ok" if db.verify().ok else "detected"
    except fdb.FeatureDBError as error:
        return "refused" if "; " in str(error) else f"violation: no remedy in {type(error).__name__}: {error}"
    except Exception as error:
        return f"violation: a bare {type(error).__name__}: {error}"


def read(damaged: Damaged, path: Path) -> str:
    """What reading everything gives: ``right``, ``refused``, ``other`` with the digest, or ``bare`` with the error."""
    damaged.write(path)
    try:
        with fdb.open(path, read_only=True) as db:
            found = digest(db)
    except fdb.FeatureDBError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"bare: {type(error).__name__}: {error}"
    return "right" if found == damaged.digest else f"other: {found}"


def judged(damaged: Damaged, by_verify: str | children.Died, by_read: str | children.Died) -> str | children.Died:
    """The verdict on one damaged file."""
    if by_verify != "ok":
        return by_verify
    if by_read == "right":
        return "harmless"
    if damaged.meta and str(by_read).partition(": ")[2] in damaged.older:
        return "one commit back"
    return f"violation: silent: verify finds nothing, and reading gives {by_read}"


def judge(outcome: Outcome, make: Callable[[], Iterator[Damaged]]) -> None:
    """Judge every damaged file that `make` yields, each time the same ones."""
    reads: Counter[str] = Counter()
    # A folder for each, for their children run side by side.
    with scratch() as one, scratch() as other:
        verdicts = children.each(lambda damaged: verified(damaged, one / NAME), make())
        outcomes = children.each(lambda damaged: read(damaged, other / NAME), make())
        for (damaged, by_verify), (_, by_read) in zip(verdicts, outcomes, strict=True):
            outcome.add(judged(damaged, by_verify, by_read), damaged.where)
            if by_verify == "detected":
                reads[str(by_read).partition(":")[0]] += 1
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(reads.items()))
    outcome.note(f"reads of files that verify finds damaged: {shown or 'none'}")


# --- lying disk -------------------------------------------------------------------------------


def lying(count: int, seed: int) -> Outcome:
    """Of a page of a file after some step, the last write that was synced is missing."""
    outcome = Outcome("lying disk", seed)
    while (left := count - sum(outcome.counts.values())) > 0:
        known = expected(Plan.of(seed, STEPS), record=True)
        cases = list(dropped_pages(known.events, known.digests, f"seed {seed}"))
        chosen = random.Random(seed).sample(cases, min(left, len(cases)))
        judge(outcome, lambda: iter(chosen))  # noqa: B023
        seed += 1
    return outcome


def dropped_pages(events: Sequence[Event], digests: Sequence[str], seed: str) -> Iterator[Damaged]:
    """After each step, each page as it was before its last write."""
    disk, done = Disk(), 0
    # Of each file, for `compact` puts another in the place of the one before.
    before: defaultdict[int, dict[int, bytes]] = defaultdict(dict)
    for event in events:
        if event.kind == "write":
            held = disk.content(event.file)
            first, end = event.offset // PAGE_BYTES, -(-(event.offset + len(event.data)) // PAGE_BYTES)
            before[event.file] |= {
                page: held[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] for page in range(first, end)
            }
        disk.start(event)
        disk.finish(event)
        if event.kind != "done":
            continue
        done += 1
        content = disk.now()[NAME]
        for page, old in sorted(before[disk.file_at(NAME)].items()):
            at = page * PAGE_BYTES
            damaged = content[:at] + old.ljust(PAGE_BYTES, b"\0") + content[at + PAGE_BYTES :]
            if damaged != content:
                where = f"{seed}, after step {done - 1}, page {page} as before its last write"
                yield Damaged(damaged, where, digests[done - 1], page < 2, tuple(digests[: done - 1]))


# --- truncation -------------------------------------------------------------------------------


def truncation(count: int, seed: int) -> Outcome:
    """A file cut at every page boundary, and at `count` random lengths."""
    outcome = Outcome("truncation", seed)
    content, digests = _file(seed, STEPS)
    found, rng = digests[-1], random.Random(seed)
    lengths = [*range(0, len(content), PAGE_BYTES), *(rng.randrange(len(content)) for _ in range(count))]
    judge(outcome, lambda: (Damaged(content[:size], f"seed {seed}, {size} bytes kept", found) for size in lengths))
    return outcome


# --- bit flips --------------------------------------------------------------------------------


def bitflips(count: int, seed: int) -> Outcome:
    """One bit each of `count` random bytes of a file."""
    content, digests = _file(seed, STEPS)
    rng = random.Random(seed)
    places = [rng.randrange(len(content)) for _ in range(count)]
    return _flip(Outcome("bit flips, random bytes", seed), content, digests, places)


def every_byte(count: int, seed: int) -> Outcome:
    """One bit of every byte of a smaller file, which a `count` of 0 means, or of the first `count`."""
    content, digests = _file(seed, SMALL_STEPS)
    places = range(min(count, len(content)) or len(content))
    name = "bit flips, every byte" if len(places) == len(content) else "bit flips, first bytes"
    return _flip(Outcome(name, seed), content, digests, places)


def _flip(outcome: Outcome, content: bytes, digests: list[str], places: Sequence[int]) -> Outcome:
    rng = random.Random(outcome.seed)
    flips = [(place, rng.randrange(8)) for place in places]

    def make() -> Iterator[Damaged]:
        for place, bit in flips:
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            where = f"seed {outcome.seed}, byte {place % PAGE_BYTES} of page {place // PAGE_BYTES}, bit {bit}"
            yield Damaged(bytes(damaged), where, digests[-1], place < 2 * PAGE_BYTES, tuple(digests[:-1]))

    judge(outcome, make)
    return outcome


def _file(seed: int, steps: int) -> tuple[bytes, list[str]]:
    """The bytes of a file after some steps, and its digest after each."""
    known = expected(Plan.of(seed, steps), record=True)
    disk = Disk()
    for event in known.events:
        disk.start(event)
        disk.finish(event)
    return disk.now()[NAME], known.digests
