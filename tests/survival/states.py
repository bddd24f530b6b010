"""The files that a power loss may leave, from a recorded run.

A disk keeps sectors of 512 bytes. What was written and not synced is on it or not, each sector by itself: it holds any
of the versions written since the last sync, or the one from before. A write through a descriptor with ``O_DSYNC``
makes just its own sectors durable. Names of files change in the order of the calls, and are durable once their
folder is synced. Sectors themselves are not torn, and synced ones are kept (`lying` drops them).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .record import Event

SECTOR_BYTES = 512
PAGE_SECTORS = 8
STATES_PER_EVENT = 12
MODES = ("none", "all", "pages", "sectors", "but one", "only one", "in order")


@dataclass
class _File:
    """A file as programs see it, as the disk is sure to have it, and the versions of each sector in between."""

    current: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)

    def write(self, number: int, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.current):
            self.current.extend(bytes(end - len(self.current)))
        self.current[offset:end] = data
        for sector in range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            at = sector * SECTOR_BYTES
            self.pending.setdefault(sector, []).append((number, bytes(self.current[at : at + SECTOR_BYTES])))

    def truncate(self, length: int) -> None:
        """Not reordered with writes: featuredb shortens no file that it writes to."""
        for content in (self.current, self.durable):
            del content[length:]
            content.extend(bytes(length - len(content)))

    def sync(self, sectors: Sequence[int] | None = None) -> None:
        for sector in list(self.pending) if sectors is None else sectors:
            _put(self.durable, sector, self.pending.pop(sector)[-1][1])

    def after_loss(self, mode: str, rng: random.Random) -> bytes:
        """One content that the disk may have."""
        content = bytearray(self.durable)
        times = sorted({number for versions in self.pending.values() for number, _ in versions})
        units = sorted({sector // PAGE_SECTORS for sector in self.pending})
        if not times:
            return bytes(content)
        chosen = rng.choice(units)
        until = rng.choice(times)
        per_page = {unit: rng.choice([0, *times]) for unit in units}
        for sector, versions in self.pending.items():
            unit = sector // PAGE_SECTORS
            kept_until = {
                "none": 0,
                "all": times[-1],
                "pages": per_page[unit],
                "sectors": rng.choice([0, *times]) if mode == "sectors" else 0,
                "but one": 0 if unit == chosen else times[-1],
                "only one": times[-1] if unit == chosen else 0,
                "in order": until,
            }[mode]
            kept = [data for number, data in versions if number <= kept_until]
            if kept:
                _put(content, sector, kept[-1])
        if rng.random() < 0.5 and len(content) < len(self.current):
            # The length may be there before the data is.
            content.extend(bytes(len(self.current) - len(content)))
        return bytes(content)


def _put(content: bytearray, sector: int, data: bytes) -> None:
    at = sector * SECTOR_BYTES
    if at > len(content):
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


class Disk:
    """Follows the events of a run, one by one."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        self._names_pending: list[tuple[str, int]] = []
        self._number = 0

    def _file(self, number: int) -> _File:
        return self._files.setdefault(number, _File())

    def start(self, event: Event) -> None:
        """The event is under way: what it writes may be on the disk."""
        self._number += 1
        if event.kind == "write":
            self._file(event.file).write(self._number, event.offset, event.data)
        elif event.kind == "name":
            self._names_pending.append((event.name, event.file))

    def finish(self, event: Event) -> None:
        """The event's call has returned."""
        if event.kind == "sync":
            self._file(event.file).sync()
        elif event.kind == "truncate":
            self._file(event.file).truncate(event.offset)
        elif event.kind == "write" and event.durable:
            first, end = event.offset // SECTOR_BYTES, -(-(event.offset + len(event.data)) // SECTOR_BYTES)
            self._file(event.file).sync(range(first, end))
        elif event.kind == "sync names":
            self._names = _renamed(self._names, self._names_pending)
            self._names_pending = []

    def after_loss(self, mode: str, rng: random.Random) -> dict[str, bytes]:
        """Name and content of each file, as a power loss now may leave them."""
        kept = {"none": 0, "all": len(self._names_pending)}.get(mode, rng.randint(0, len(self._names_pending)))
        names = _renamed(self._names, self._names_pending[:kept])
        return {name: self._file(file).after_loss(mode, rng) for name, file in names.items()}

    def file_at(self, name: str) -> int:
        """Number of the file of a name, as programs see it; -1 if there is none."""
        return _renamed(self._names, self._names_pending).get(name, -1)

    def content(self, file: int) -> bytes:
        """Content of a file, as programs see it."""
        return bytes(self._file(file).current)

    def now(self) -> dict[str, bytes]:
        """Name and content of each file, as programs see them."""
        names = _renamed(self._names, self._names_pending)
        return {name: bytes(self._file(file).current) for name, file in names.items()}


def _renamed(names: dict[str, int], changes: Sequence[tuple[str, int]]) -> dict[str, int]:
    names = dict(names)
    for name, file in changes:
        if file < 0:
            names.pop(name, None)
        else:
            names[name] = file
    return names


@dataclass
class State:
    """Files after a power loss; `done` steps had returned, and step `done` was in flight if `begun` is greater."""

    number: int
    event: int
    mode: str
    done: int
    begun: int
    files: dict[str, bytes]

    def write(self, folder: Path) -> None:
        """Put the files into a folder, without their lock files."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def states(events: Sequence[Event], seed: int) -> Iterator[State]:
    """Power losses during each event, of random modes; those during one event are distinct, and the first is free of
    whatever was not synced.
    """
    disk, done, begun, number = Disk(), 0, 0, 0
    for at, event in enumerate(events):
        done += event.kind == "done"
        begun += event.kind == "begin"
        disk.start(event)
        if event.kind not in ("begin", "done"):
            rng = random.Random(seed * 1_000_003 + at)
            seen = set()
            for place in range(STATES_PER_EVENT):
                mode = rng.choice(MODES) if place else "none"
                files = disk.after_loss(mode, rng)
                known = hash(tuple(sorted(files.items())))
                if known not in seen:
                    seen.add(known)
                    yield State(number, at, mode, done, begun, files)
                    number += 1
        disk.finish(event)
