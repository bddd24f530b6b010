"""What a profile found: counted, the first violations kept, written as JSON and shown as a table."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .children import Died

FILE = Path(__file__).parent / "results.json"
README = Path(__file__).parent.parent.parent / "README.md"
START, END = "<!-- survival:start -->\n", "\n<!-- survival:end -->"
SHOWN_MAX = 20


@dataclass
class Outcome:
    """Verdicts of one profile, by kind."""

    name: str
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, verdict: str | Died, where: str) -> None:
        """Count a verdict; one that begins with ``violation`` is kept, with where it was found."""
        if isinstance(verdict, Died):
            verdict = f"violation: the process ended by {verdict}"
        kind, _, _ = verdict.partition(":")
        self.counts[kind] += 1
        if kind == "violation":
            self.violations.append(f"{where}: {verdict.removeprefix('violation: ')}")

    def note(self, text: str) -> None:
        """Keep a finding that is no violation."""
        if text not in self.notes:
            self.notes.append(text)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "profile": self.name,
            "seed": self.seed,
            "cases": sum(self.counts.values()),
            "violations": len(self.violations),
            "verdicts": dict(sorted(self.counts.items())),
            "first_violations": self.violations[:SHOWN_MAX],
            "notes": self.notes,
            "seconds": round(time.monotonic() - self.began, 1),
        }


def save(records: list[dict[str, Any]], path: Path) -> None:
    """Put the records into the file, in the place of earlier ones of the same profiles."""
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    fresh = {record["profile"]: record for record in records}
    held = [fresh.pop(record["profile"], record) for record in held]
    path.write_text(json.dumps([*held, *fresh.values()], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def table(records: list[dict[str, Any]]) -> str:
    """The records as a table of Markdown."""
    lines = ["| Profile | Cases | Verdicts | Violations | Seed | Seconds |", "|---|---:|---|---:|---:|---:|"]
    for record in records:
        verdicts = ", ".join(f"{count:,} {kind}" for kind, count in record["verdicts"].items())
        lines.append(
            f"| {record['profile']} | {record['cases']:,} | {verdicts} | {record['violations']:,} | {record['seed']} "
            f"| {record['seconds']:,.0f} |"
        )
    return "\n".join(lines)


def readme_table(text: str) -> str:
    """The table that a README holds between its markers."""
    return text.partition(START)[2].partition(END)[0]


def into_readme(records: list[dict[str, Any]], path: Path) -> None:
    """Put the table of the records between the markers of a README."""
    before, _, rest = path.read_text(encoding="utf-8").partition(START)
    path.write_text(before + START + table(records) + END + rest.partition(END)[2], encoding="utf-8")
