"""Seeded faults of storage, and of the disk itself: a profile must notice each. ``python -m tests.survival.mutations``

Each is put into a copy of the library and of these tests. `test_survival.py` checks that every fault still applies.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class StorageFault:
    """`old`, which stands just once in `file`, becomes `new`; `profile` must notice."""

    name: str
    file: str
    old: str
    new: str
    profile: str


FAULTS = (
    StorageFault(
        "commits are not synced",
        "featuredb/storage/engine.py",
        "                sync=True,\n",
        "                sync=False,\n",
        "powerloss",
    ),
    StorageFault(
        "the last commit is not synced",
        "featuredb/storage/engine.py",
        "metasync=durable,",
        "metasync=False,",
        "powerloss",
    ),
    StorageFault(
        "the folder of a new file is not synced",
        "featuredb/storage/datafile.py",
        "            os.fsync(folder)\n",
        "            pass\n",
        "powerloss",
    ),
    StorageFault(
        "the disk swaps a sync and the write of the meta page",
        "tests/survival/states.py",
        "    for at, event in enumerate(events):\n        done +=",
        "    events = list(events)\n"
        "    for at in range(len(events) - 1):\n"
        "        if events[at].kind == 'sync' and events[at + 1].durable:\n"
        "            events[at], events[at + 1] = events[at + 1], events[at]\n"
        "    for at, event in enumerate(events):\n        done +=",
        "powerloss",
    ),
    StorageFault(
        "the disk forgets a sync",
        "tests/survival/states.py",
        '        if event.kind == "sync":\n',
        '        if event.kind == "sync" and self._number % 7:\n',
        "powerloss",
    ),
    StorageFault(
        "a relaxed commit may be lost with the one before",
        "featuredb/storage/engine.py",
        "                sync=True,\n",
        "                sync=durable,\n",
        "relaxed",
    ),
    StorageFault(
        "a call commits in two parts",
        "featuredb/storage/log.py",
        "    last = last_commit(txn)\n    now_us",
        "    txn._txn.commit()\n    txn._txn = txn._core.begin(write=True, buffers=True)\n"
        "    last = last_commit(txn)\n    now_us",
        "kill",
    ),
    StorageFault(
        "what a killed ingest staged is taken for the table's",
        "featuredb/offline/ingest.py",
        "            with self._env.read() as txn:\n                self._added(txn, outcome, ref)\n",
        "            self._env.write(lambda txn: write_manifest(\n"
        "                txn, (held := read_manifest(txn, self._table.id)).with_segments((*held.segments, ref))))\n"
        "            with self._env.read() as txn:\n                self._added(txn, outcome, ref)\n",
        "kill",
    ),
    StorageFault(
        "errors of the engine are passed on",
        "featuredb/storage/engine.py",
        "    if not isinstance(error, lmdb.Error):\n        return error\n",
        "    return error\n",
        "iofaults",
    ),
    StorageFault(
        "the checksum of chunks is not checked",
        "featuredb/storage/segment.py",
        "            if checksum(raw) != expected:\n",
        "            if False:\n",
        "bitflips",
    ),
    StorageFault(
        "the checksum of records is not checked",
        "featuredb/storage/records.py",
        "    if not is_sealed(key, raw):\n",
        "    if len(raw) < CRC_BYTES:\n",
        "bitflips",
    ),
    StorageFault(
        "a short file is opened as it is",
        "featuredb/storage/datafile.py",
        "        if looks_left == 0 and not whole:\n",
        "        if False:\n",
        "truncation",
    ),
    StorageFault(
        "the end of a long value may be beyond the end of the file",
        "featuredb/storage/pages.py",
        "        if number + pages > self._pages:\n",
        "        if number > self._pages:\n",
        "truncation",
    ),
    StorageFault(
        "pages are not checked",
        "featuredb/verify/__init__.py",
        "    faults = env.page_faults()\n",
        "    faults: list[str] = []\n",
        "lying",
    ),
    StorageFault(
        "what the meta page counts is not checked",
        "featuredb/storage/pages.py",
        "            if not self._found and tree.counted != tree.recorded:\n",
        "            if False:\n",
        "lying",
    ),
    StorageFault(
        "pages made to deceive are not checked",
        "featuredb/verify/__init__.py",
        "    faults = env.page_faults()\n",
        "    faults: list[str] = []\n",
        "fuzz",
    ),
    StorageFault(
        "a record of another shape is taken as it is",
        "featuredb/storage/records.py",
        "    except _UNLIKE as error:\n",
        "    except KeyError as error:\n",
        "decoders",
    ),
    StorageFault(
        "salvage does not tell of rows that it leaves out",
        "featuredb/recovery/segments.py",
        "        if kept < before:\n",
        "        if False:\n",
        "salvage",
    ),
    StorageFault(
        "salvage takes rows of damaged chunks",
        "featuredb/recovery/segments.py",
        "            parts.append(null_column(dtype, stop - first))\n            kept[first:stop] = False\n",
        "            parts.append(null_column(dtype, stop - first))\n",
        "salvage",
    ),
)


def survives(fault: StorageFault) -> bool:
    """Whether a short run of the profile finds no violation in spite of the fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("featuredb", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / fault.file
        text = path.read_text(encoding="utf-8")
        if text.count(fault.old) != 1:
            raise SystemExit(f"{fault.name}: its text stands {text.count(fault.old)} times in {fault.file}, not once")
        path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        results = copy / "found.json"
        environment = {**os.environ, "PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": str(copy / "numba")}
        command = [sys.executable, "-m", "tests.survival", fault.profile, "--results", str(results)]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if not results.exists():
            raise SystemExit(f"{fault.name}: the profile did not run:\n{done.stdout}{done.stderr}")
        return not any(record["violations"] for record in json.loads(results.read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description="Check that the tests of survival catch every seeded fault.")
    parser.add_argument("words", nargs="*", help="only faults whose name has one of these words")
    words = parser.parse_args().words
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    survivors = 0
    for fault in chosen:
        alive = survives(fault)
        survivors += alive
        print(f"{'SURVIVED' if alive else 'caught'}: {fault.name}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
