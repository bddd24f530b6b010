"""Records a run: every write, sync and change of names of its files, and when each step began and ended."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from .calls import Call, Go


@dataclass
class Event:
    """One thing that happened.

    ``kind`` is ``write`` (to `file` at `offset`; `durable` if it is a sync as well), ``sync`` (of `file`), ``truncate``
    (`file` to `offset` bytes), ``name`` (`name` is now `file`, or nothing if that is -1), ``sync names`` (of
    the folder), or ``begin`` and ``done`` of step number `offset`.
    """

    kind: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    durable: bool = False
    name: str = ""


@dataclass
class Recorder:
    """A handler for `calls.intercept` that makes each call and keeps what happened in the folder."""

    folder: str
    events: list[Event] = field(default_factory=list)
    _files: dict[tuple[int, int], int] = field(default_factory=dict)

    def __call__(self, call: Call, go: Go) -> int:
        if os.path.dirname(call.path) != self.folder and call.path != self.folder:
            return go(None)
        if call.names:
            return self._names(call, go)
        if os.path.isdir(call.path):
            result = go(None)
            self.events.append(Event("sync names"))
            return result
        file, durable = self._file(f"/proc/self/fd/{call.fd}"), call.durable
        result = go(None)
        if call.kind == "write":
            self.events.append(Event("write", file, call.offset, call.data[:result], durable))
        else:
            self.events.append(Event(call.kind, file, call.length))
        return result

    def _names(self, call: Call, go: Go) -> int:
        source = self._file(call.names[0]) if call.kind in ("link", "rename") else -1
        result = go(None)
        if call.kind == "create":
            source = self._file(call.names[0])
        if call.kind == "rename":
            self.events.append(Event("name", -1, name=os.path.basename(call.names[0])))
        self.events.append(Event("name", source, name=os.path.basename(call.names[-1])))
        return result

    def _file(self, path: str) -> int:
        found = os.stat(path)
        key = (found.st_dev, found.st_ino)
        if key not in self._files:
            self._files[key] = len(self._files)
            # Held open, so that its number is not given again.
            self._held = [*getattr(self, "_held", []), open(path, "rb")]  # noqa: SIM115
        return self._files[key]

    def mark(self, kind: str, step: int) -> None:
        """Note that a step begins or is done."""
        self.events.append(Event(kind, offset=step))
