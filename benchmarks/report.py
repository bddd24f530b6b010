"""The README's table, made of the JSON results."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers import all_systems
from benchmarks.workload import DAY_US, DAYS, MANY_KEYS, MAX_AGE_US, UNKNOWN_SHARE

START = "<!-- benchmarks:start -->"
END = "<!-- benchmarks:end -->"
_BLOCK = re.compile(f"{START}\n(.*?){END}", re.DOTALL)


def render(results: dict[str, Any]) -> str:
    """Markdown: how it was measured, a table, and what each system does outside the timing."""
    lines = [*_how(results), ""]
    lines += ["| What | System | Median | Time / featuredb | Peak memory | On disk |", "|---|---|--:|--:|--:|--:|"]
    titles = _titles(results["workload"])
    shown = []
    for what, title in titles.items():
        measured = [result for result in results["results"] if result["what"] == what]
        for place, result in enumerate(measured):
            lines.append(_row(title if place == 0 else "", result, measured[0], results["workload"]["rows"]))
            shown.append((what, result["system"]))
    lines += ["", "Outside the timing, and form of the answer:", ""]
    lines += [f"- {'; '.join(names)}: {note}." for note, names in _notes(shown).items()]
    if results["left_out"]:
        names = ", ".join(f"{left['system']} ({left['what']})" for left in results["left_out"])
        lines += ["", f"Left out, not installed: {names}."]
    return "\n".join(lines) + "\n"


def _notes(shown: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Notes with the systems they hold for."""
    notes = {(system.what, system.name): system.note for system in all_systems()}
    found: dict[str, list[str]] = {}
    for what, name in shown:
        # Results kept from before a system was renamed or removed have no note any more.
        if (what, name) in notes:
            names = found.setdefault(notes[what, name], [])
            names.extend([name] if name not in names else [])
    return found


def _how(results: dict[str, Any]) -> list[str]:
    workload, machine = results["workload"], results["machine"]
    command = (
        f"python -m benchmarks {results['task']} --rows {workload['rows']} --entities {workload['entities']} "
        f"--entity-rows {workload['entity_rows']} --repeat {results['repeat']}"
    )
    packages = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return [
        f"Made by `{command}` on {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['os']}; {packages}.",
        "",
        f"History of {workload['rows']:,} rows over {workload['entities']:,} entities and {DAYS} days, 10 features of "
        f"five dtypes with nulls; entity dataframe of {workload['entity_rows']:,} unsorted rows, "
        f"{UNKNOWN_SHARE:.0%} with unknown keys; max age {MAX_AGE_US // DAY_US} days. "
        f"Each system runs in its own process, warm page cache; median of {results['repeat']} runs after one that does "
        "not count. Every answer is equal, to the last bit, to one worked out with numpy alone. Peak memory is of the "
        "process, its inputs and mapped file pages included.",
    ]


def _titles(workload: dict[str, Any]) -> dict[str, str]:
    return {
        "join": f"Join onto {workload['entity_rows']:,} rows",
        "ingest": f"Ingest {workload['rows']:,} rows",
        "one": "Online read of one key",
        "many": f"Online read of {MANY_KEYS:,} random keys",
    }


def _row(title: str, result: dict[str, Any], base: dict[str, Any], rows: int) -> str:
    median, base_median = statistics.median(result["seconds"]), statistics.median(base["seconds"])
    # A system that got fewer rows is compared by the time for each.
    ratio = (median / (result["rows"] or rows)) / (base_median / (base["rows"] or rows))
    partly = f" ({result['rows']:,} rows)" if result["rows"] not in (None, rows) else ""
    disk = "" if result["file_bytes"] is None else _mebibytes(result["file_bytes"])
    peak = _mebibytes(result["peak_bytes"])
    return f"| {title} | {result['system']}{partly} | {duration(median)} | {ratio:.2f} | {peak} | {disk} |"


def _mebibytes(count: int) -> str:
    value = count / 2**20
    return f"{value:,.{1 if value < 10 else 0}f} MiB"


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit, factor = next((u, f) for u, f in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if seconds * f >= 1 or u == "µs")
    value = seconds * factor
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def block(text: str) -> str | None:
    """What stands between the markers in a README; None without markers."""
    found = _BLOCK.search(text)
    return None if found is None else found[1]


def replace_block(path: Path, rendered: str) -> None:
    """Put `rendered` between the markers of a README.

    Raises
    ------
    ValueError
        If it has no markers.
    """
    text = path.read_text(encoding="utf-8")
    if block(text) is None:
        raise ValueError(f"{path} has no lines {START} and {END}; add them where the table is to stand")
    path.write_text(_BLOCK.sub(lambda _: f"{START}\n{rendered}{END}", text), encoding="utf-8")
