"""Seeded faults: each is put into a copy of the library, and the tests must fail. ``python tests/mutations.py``

A fault that survives means that a rule is not tested. `test_mutations.py` checks that every fault still applies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = tuple(f"tests/test_{name}.py" for name in ("join", "online", "ingest_order", "database", "packing", "sorting"))


@dataclass(frozen=True)
class Fault:
    """`old`, which stands just once in `file`, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


FAULTS = (
    Fault(
        "event before the row's time only, not at it",
        "offline/kernels/searching.py",
        "            if event[middle] <= time:\n",
        "            if event[middle] < time:\n",
    ),
    Fault(
        "max age excludes its end",
        "offline/kernels/searching.py",
        "if place < slice_start or event[place] < oldest[i]:",
        "if place < slice_start or event[place] <= oldest[i]:",
    ),
    Fault(
        "knowledge time is ignored",
        "offline/search.py",
        "        knowledge[:] = np.where(created == ABSENT_US, query.commit_times[commit], created)\n",
        "        knowledge[:] = ABSENT_US\n",
    ),
    Fault(
        "rows without a created timestamp are always known",
        "offline/search.py",
        "np.where(created == ABSENT_US, query.commit_times[commit], created)",
        "created",
    ),
    Fault(
        "replaced rows live on for joins as of a knowledge time",
        "offline/search.py",
        "    knowledge[dead] = NEVER_US\n",
        "",
    ),
    Fault(
        "a block of unknown rows is stepped over by one too many",
        "offline/kernels/searching.py",
        "                    place -= 64\n",
        "                    place -= 65\n",
    ),
    Fault(
        "of equal event timestamps the earlier created wins",
        "offline/kernels/sorting.py",
        "        return created[i] < created[j]\n",
        "        return created[i] > created[j]\n",
    ),
    Fault(
        "the earlier of equal rows in one batch stays",
        "offline/rows.py",
        "    replaced[:-1] = (codes",
        "    replaced[1:] = (codes",
    ),
    Fault(
        "the created timestamp is dropped",
        "offline/prepare.py",
        "        ages = created.data if created.valid is None else np.where(created.valid, created.data, ABSENT_US)\n",
        "        pass\n",
    ),
    Fault(
        "nulls are joined as zeros",
        "offline/search.py",
        "            if nulls is not None:\n                valid[rows] = nulls\n",
        "",
    ),
    Fault(
        "a null event timestamp of the entity dataframe matches",
        "offline/training.py",
        "usable = np.ones(frame.rows, dtype=np.bool_) if times.valid is None else times.valid",
        "usable = np.ones(frame.rows, dtype=np.bool_)",
    ),
    Fault(
        "max age is ignored online",
        "online/reader.py",
        "        if self.max_age_us is not None and now_us - event > self.max_age_us:\n",
        "        if False:\n",
    ),
    Fault(
        "max age excludes its end online",
        "online/reader.py",
        "rows.found & (rows.event < now_us - plan.max_age_us)",
        "rows.found & (rows.event <= now_us - plan.max_age_us)",
    ),
    Fault(
        "late data overwrites newer online",
        "online/index.py",
        "        wins[places] = newer\n",
        "        wins[places] = True\n",
    ),
    Fault(
        "a negative zero is taken for a decimal",
        "storage/kernels.py",
        "        scaled = np.rint(values[i] * scale) + 0.0\n",
        "        scaled = np.rint(values[i] * scale)\n",
    ),
    Fault(
        "a value that crosses words is read short",
        "storage/kernels.py",
        "        if shift + width > 64:\n",
        "        if shift + width > 65:\n",
    ),
    Fault(
        "merging runs forgets the order of arrival",
        "offline/kernels/sorting.py",
        "            event[j] < event_tmp[i] or",
        "            event[j] <= event_tmp[i] or",
    ),
    Fault(
        "unchanged rows are stored again",
        "offline/ingest.py",
        "            kept[at[same]] = False\n",
        "",
    ),
)


def apply(fault: Fault, root: Path) -> None:
    """Put the fault into the library below `root`."""
    path = root / "featuredb" / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.name}: its text stands {text.count(fault.old)} times in {fault.file}, not once")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def survives(fault: Fault) -> bool:
    """Whether all tests pass in spite of the fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("featuredb", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
        apply(fault, copy)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "--override-ini=addopts=",
            "-p",
            "no:cacheprovider",
            *TESTS,
        ]
        environment = {**os.environ, "PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": str(copy / "numba")}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{fault.name}: the tests did not run:\n{done.stdout}{done.stderr}")
        return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Check that the tests catch every seeded fault.")
    parser.add_argument("words", nargs="*", help="only faults whose name has one of these words")
    words = parser.parse_args().words
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    survivors = []
    for fault in chosen:
        alive = survives(fault)
        survivors += [fault.name] * alive
        print(f"{'SURVIVED' if alive else 'caught'}: {fault.name}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
