"""Short runs of every profile of `survival`, by the command that also makes the long ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from survival.examine import allowed_digests
from survival.mutations import FAULTS, StorageFault
from survival.results import README, readme_table, table
from survival.runs import Expected, Plan

ROOT = Path(__file__).parent.parent
# Verdicts that each profile must come to: one that never gets there shows nothing.
NEEDED = {
    "power loss": {"old", "new"},
    "power loss, relaxed": {"old", "new"},
    "kill -9": {"old", "new"},
    "faults of I/O": {"failed"},
    "full disk: limit on file size": {"failed, then succeeded"},
    "full disk: small file system": set(),
    "too little address space": {"FileError, then succeeded"},
    "processes": {"agree"},
    "lying disk": {"detected", "harmless", "one commit back"},
    "truncation": {"refused"},
    "bit flips, random bytes": {"detected", "harmless"},
    "fuzzed files": {"damaged", "refused", "sound"},
    "fuzzed decoders": {"decoded", "refused"},
    "salvage": {"whole", "part"},
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a short run of all profiles found, by the name of each."""
    results = tmp_path_factory.mktemp("survival") / "results.json"
    profiles = ["powerloss", "relaxed", "kill", "iofaults", "space", "processes", "lying", "truncation", "bitflips"]
    profiles += ["fuzz", "decoders", "salvage"]
    command = [sys.executable, "-m", "tests.survival", *profiles, "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert results.exists(), done.stderr
    found = json.loads(results.read_text(encoding="utf-8"))
    assert table(found) in done.stdout, done.stderr
    assert done.returncode == any(record["violations"] for record in found)
    return {record["profile"]: record for record in found}


def test_every_profile_was_run(records: dict[str, dict[str, Any]]) -> None:
    assert records.keys() == NEEDED.keys()


@pytest.mark.parametrize("profile", NEEDED)
def test_a_profile_has_no_violations(records: dict[str, dict[str, Any]], profile: str) -> None:
    record = records[profile]
    assert record["first_violations"] == []
    assert NEEDED[profile] <= record["verdicts"].keys()
    assert record["cases"] or record["notes"]


@pytest.mark.parametrize(
    ("durability", "done", "begun", "allowed"),
    [
        ("full", 5, 5, ["2"]),
        ("full", 5, 6, ["2", "3"]),
        ("relaxed", 2, 2, ["0", "1"]),
        ("relaxed", 5, 5, ["1", "2", "2"]),
        ("relaxed", 5, 6, ["1", "2", "2", "3"]),
        ("relaxed", 1, 1, [None, "0"]),
    ],
)
def test_a_relaxed_file_may_lack_the_last_commit_and_no_more(
    durability: str, done: int, begun: int, allowed: list[str | None]
) -> None:
    """Steps that commit nothing may come after it: what they left is undone with it."""
    known = Expected(Plan(0, [], durability), ["0", "1", "1", "2", "2", "3"], {})
    assert allowed_digests(known, done, begun) == allowed


def test_results_of_the_long_run_are_whole() -> None:
    for record in json.loads((ROOT / "tests/survival/results.json").read_text(encoding="utf-8")):
        assert record["violations"] == record["verdicts"].get("violation", 0)
        assert record["cases"] == sum(record["verdicts"].values()) > 0


def test_the_readme_shows_the_results_of_the_long_runs() -> None:
    kept = json.loads((ROOT / "tests/survival/results.json").read_text(encoding="utf-8"))
    assert readme_table(README.read_text(encoding="utf-8")) == table(kept)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_seeded_fault_changes_just_one_place(fault: StorageFault) -> None:
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.old != fault.new
