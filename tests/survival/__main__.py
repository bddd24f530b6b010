"""``python -m tests.survival PROFILE ...``: some profiles, their findings printed and kept as JSON.

Without ``--count`` each is short. The exit code is 1 if there is a violation.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from . import damage, decoders, fuzz, iofaults, kill, powerloss, processes, salvage, space
from .results import FILE, README, Outcome, into_readme, save, table
from .runs import warm_up

# Cases of a short run, and what runs them.
PROFILES: dict[str, tuple[int, Callable[[int, int], Outcome | list[Outcome]]]] = {
    "powerloss": (100, powerloss.run),
    "relaxed": (50, powerloss.run_relaxed),
    "kill": (16, kill.run),
    "iofaults": (40, iofaults.run),
    "space": (1, space.run),
    # Its cases are seconds.
    "processes": (6, processes.run),
    "lying": (100, damage.lying),
    "truncation": (30, damage.truncation),
    "bitflips": (100, damage.bitflips),
    "everybyte": (0, damage.every_byte),
    "fuzz": (200, fuzz.run),
    "decoders": (5000, decoders.run),
    "salvage": (30, salvage.run),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.survival", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "profiles",
        nargs="+",
        choices=[*PROFILES, "table"],
        help="`table` prints the kept results, and puts them into the README",
    )
    parser.add_argument("--count", type=int, help="cases of each profile; of processes seconds, of everybyte 0 for all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=FILE, help="JSON file to keep the results in")
    given = parser.parse_args()
    if given.profiles == ["table"]:
        kept = json.loads(given.results.read_text(encoding="utf-8"))
        print(table(kept))
        into_readme(kept, README)
        return
    # Children are forked from this process, which has no threads of its own.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    warm_up()
    records = []
    for profile in given.profiles:
        short, run = PROFILES[profile]
        count = short if given.count is None else given.count
        unit = "seconds" if profile == "processes" else "cases"
        asked = "every byte" if profile == "everybyte" and not count else f"{count} {unit}"
        print(f"{profile}: seed {given.seed}, {asked}", flush=True)
        found = run(count, given.seed)
        records += [outcome.record() for outcome in ([found] if isinstance(found, Outcome) else found)]
        save(records, given.results)
    print(table(records))
    for record in records:
        for line in (*record["first_violations"], *record["notes"]):
            print(f"- {record['profile']}: {line}")
    sys.exit(any(record["violations"] for record in records))


if __name__ == "__main__":
    main()
