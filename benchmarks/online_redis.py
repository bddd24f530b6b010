"""A Redis server of our own, on a socket in a temporary folder."""

from __future__ import annotations

import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.process import BenchmarkError

_KEY = struct.Struct(">q")
_START_SECONDS_MAX = 10.0
_BATCH_ROWS = 10_000


class RedisServer:
    """A server that saves nothing and listens to no network, stopped by `close`.

    Attributes
    ----------
    client : redis.Redis
        Connected to it.
    """

    def __init__(self, folder: Path) -> None:
        import redis

        # The path of a socket may have some hundred characters at most.
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        address = str(Path(self._folder.name) / "redis.sock")
        arguments = ["--port", "0", "--unixsocket", address, "--save", "", "--appendonly", "no", "--dir", str(folder)]
        self._process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        self.client: Any = redis.Redis(unix_socket_path=address)
        try:
            self._await(address)
        except BaseException:
            self.close()
            raise

    def _await(self, address: str) -> None:
        deadline = time.monotonic() + _START_SECONDS_MAX
        while self._process.poll() is None and time.monotonic() < deadline:
            # Not by the client, of which older versions leave a socket open when refused.
            with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
                probe.connect(address)
                return
            time.sleep(0.01)
        raise BenchmarkError(f"redis-server does not answer within {_START_SECONDS_MAX:.0f} s")

    def close(self) -> None:
        """Stop the server."""
        self.client.close()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


def load_rows(client: Any, rows: Iterable[tuple[int, bytes]]) -> None:
    """Set packed rows by key."""
    remaining = iter(rows)
    while batch := {_KEY.pack(key): row for key, row in islice(remaining, _BATCH_ROWS)}:
        client.mset(batch)
