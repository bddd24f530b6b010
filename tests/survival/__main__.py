"""``python -m tests.survival PROFILE --count N --seed S``: one profile, its findings printed and kept as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from . import damage, iofaults, kill, powerloss, space
from .results import FILE, save, table
from .runs import warm_up

PROFILES = {
    "powerloss": lambda count, seed: [powerloss.run(count, seed)],
    "relaxed": lambda count, seed: [powerloss.run(count, seed, "relaxed")],
    "kill": lambda count, seed: [kill.run(count, seed)],
    "lying": lambda count, seed: [damage.lying(count, seed)],
    "truncation": lambda count, seed: [damage.truncation(count, seed)],
    "bitflips": lambda count, seed: [damage.bitflips(count, seed)],
    "space": space.run,
    "iofaults": lambda count, seed: [iofaults.run(count, seed)],
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.survival", description=__doc__)
    parser.add_argument("profile", choices=[*PROFILES, "table"], help="`table` prints the results kept so far")
    parser.add_argument("--count", type=int, default=300, help="how many cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=FILE, help="JSON file to keep the results in")
    given = parser.parse_args()
    if given.profile == "table":
        print(table(json.loads(given.results.read_text(encoding="utf-8"))))
        return
    # Children are forked from this process, which has no threads of its own.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    print(f"{given.profile}: seed {given.seed}, {given.count} cases", flush=True)
    warm_up()
    records = [outcome.record() for outcome in PROFILES[given.profile](given.count, given.seed)]
    save(records, given.results)
    print(table(records))
    for record in records:
        for line in (*record["first_violations"], *record["notes"]):
            print(f"- {line}")
    sys.exit(any(record["violations"] for record in records))


if __name__ == "__main__":
    main()
