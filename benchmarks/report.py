"""The README's part on benchmarks, made of the kept results."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from operator import truediv
from pathlib import Path
from typing import Any

from benchmarks.cold import COLD, WARM
from benchmarks.join_memory import REPEATS
from benchmarks.kept import Kept, figure, paired
from benchmarks.peers import all_systems
from benchmarks.targets import targets_table
from benchmarks.units import duration, mebibytes
from benchmarks.workload import DAY_US, DAYS, MANY_KEYS, MAX_AGE_US, PARTS, SMALL_ROWS, UNKNOWN_SHARE, WRITES

START = "<!-- benchmarks:start -->"
END = "<!-- benchmarks:end -->"
PLOT = "benchmarks/scale"
_BLOCK = re.compile(f"{START}\n(.*?){END}", re.DOTALL)

# Comparisons of the short table, and the systems that have a column in it.
_MAIN = ("join", "ingest", "one", "many")
_FAMILIES = ("featuredb", "pandas", "Polars", "DuckDB", "SQLite", "py-lmdb", "Redis", "Parquet", "Python dict")


def render(results: dict[str, Any]) -> str:
    """Markdown of all kept results: where they are from, the main table, the targets, the plot, and all figures."""
    kept = Kept(results)
    if not kept.tasks:
        return "No results yet.\n"
    lines = [*_main_table(kept), "", *targets_table(kept), ""]
    if kept.comparison("scale"):
        lines += [f"![Time of a join over rows of history and over entity rows]({PLOT}.png)", "",
                  f"The same as [SVG]({PLOT}.svg).", ""]  # fmt: skip
    lines += _folded("How it was measured", [*_origin(kept), "", *_method(kept)])
    lines += _folded("All figures", list(_all_figures(kept)))
    if kept.comparison("cold_join"):
        lines += _folded("Cold and warm page cache", list(_cold_table(kept)))
    if kept.comparison("scale"):
        lines += _folded("The join at other sizes", list(_scale_tables(kept)))
    lines += _folded("What each system does outside the timing, and the form of its answer", list(_notes(kept)))
    return "\n".join(lines) + "\n"


def _folded(title: str, lines: list[str]) -> list[str]:
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "", "</details>", ""]


# --- the main table -----------------------------------------------------------------------------


def _main_table(kept: Kept) -> list[str]:
    """The fastest way of each other system, against featuredb."""
    shown = [what for what in _MAIN if kept.comparison(what)]
    best = {(what, family): _fastest(kept, what, family) for what in shown for family in _FAMILIES}
    families = [family for family in _FAMILIES if any(best[what, family] for what in shown)]
    lines = [f"| Median time | {' | '.join(families)} |", "|---|" + "--:|" * len(families)]
    for what in shown:
        cells = [_cell(best[what, family], best[what, "featuredb"], _sized_rows(kept, what)) for family in families]
        lines.append(f"| {title(kept, what)} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Other systems in their fastest way; in brackets their time over that of featuredb. One that got fewer rows is "
        "shown as if it took as long for each of the others.",
    ]


def _fastest(kept: Kept, what: str, family: str) -> dict[str, Any] | None:
    """Of featuredb the first, as the targets have it: not the one that gets more threads, or rows in a better order."""
    rows = _sized_rows(kept, what)
    found = [result for result in kept.comparison(what) if result["system"].startswith(family)]
    if family == "featuredb":
        return found[0] if found else None
    return min(found, key=lambda result: _per_row(result, rows), default=None)


def _cell(result: dict[str, Any] | None, base: dict[str, Any] | None, rows: int) -> str:
    if result is None:
        return ""
    # A system that got fewer rows is shown, and compared, as if it took as long for each of the others.
    text = duration(_per_row(result, rows) * rows)
    return text if base is None or result is base else f"{text} ({_per_row(result, rows) / _per_row(base, rows):.2f})"


def _per_row(result: dict[str, Any], rows: int) -> float:
    return float(statistics.median(result["seconds"])) / (result["rows"] or rows)


def _sized_rows(kept: Kept, what: str) -> int:
    workload = kept.workload(what)
    return 1 if workload is None else int(workload["rows"])


# --- all figures --------------------------------------------------------------------------------


def title(kept: Kept, what: str) -> str:
    """What the systems of a comparison do."""
    sizes = kept.workload(what) or {}
    titles = {
        "join": "Join onto {entity_rows:,} rows",
        "keys": "Join with other keys",
        "small": f"Join onto {SMALL_ROWS:,} rows",
        "tables": f"Join of {PARTS} tables",
        "segments": "Join on segments",
        "memory": "Join, memory",
        "to_parquet": f"Training set of {REPEATS} x {{entity_rows:,}} rows to Parquet",
        "first": "First join of a process",
        "ingest": "Ingest {rows:,} rows",
        "one": "Online read of one of {online_keys:,} keys",
        "many": f"Online read of {MANY_KEYS:,} random keys of {{online_keys:,}}",
        "load": "Load of {online_keys:,} latest values",
        "write": f"Ingest of one row ({WRITES} times)",
        "start": "First online value of a process",
        "cold_join": "Join onto {entity_rows:,} rows, file opened",
        "cold_one": "Online read of one key, file opened",
        "cold_many": f"Online read of {MANY_KEYS:,} random keys, file opened",
    }
    return titles[what].format(**sizes)


def _all_figures(kept: Kept) -> Iterator[str]:
    yield "| What | System | Median (least – most) | Time / first | Peak memory | On disk |"
    yield "|---|---|--:|--:|--:|--:|"
    for what in dict.fromkeys(system.what for system in all_systems() if system.task != "cold"):
        measured = kept.comparison(what)
        for place, result in enumerate(measured):
            yield _figures_row(title(kept, what) if place == 0 else "", result, measured[0], _sized_rows(kept, what))


def _scale_tables(kept: Kept) -> Iterator[str]:
    """Times over rows of history and over entity rows, a column for each size; the larger history last."""
    points = kept.comparison("scale")
    systems = dict.fromkeys(result["system"] for result in points)
    points += kept.comparison("large")[1:]
    sizes = kept.workload("scale") or {}
    for over, held, fixed, heading, column in (
        ("history_rows", "entity_rows", sizes.get("entity_rows"), "M", "N"),
        ("entity_rows", "history_rows", sizes.get("rows"), "N", "M"),
    ):
        shown = {(result["system"], result[over]): result for result in points if result[held] == fixed}
        columns = sorted({size for _, size in shown})
        yield f"| {heading} = {fixed:,} | {' | '.join(f'{column} = {size:,}' for size in columns)} |"
        yield "|---|" + "--:|" * len(columns)
        for system in systems:
            cells = [_spread(shown[system, size]) if (system, size) in shown else "" for size in columns]
            yield f"| {system} | {' | '.join(cells)} |"
        yield ""


def _spread(result: dict[str, Any]) -> str:
    """Median, and least and most if there was more than one run."""
    found = figure(result["seconds"])
    text = duration(found.value)
    return text if found.least == found.most else f"{text} ({duration(found.least)} – {duration(found.most)})"


def _figures_row(name: str, result: dict[str, Any], base: dict[str, Any], rows: int) -> str:
    ratio = _per_row(result, rows) / _per_row(base, rows)
    partly = f" ({result['rows']:,} rows)" if result["rows"] not in (None, base["rows"] or rows) else ""
    peak, disk = ("" if result[size] is None else mebibytes(result[size]) for size in ("peak_bytes", "file_bytes"))
    return f"| {name} | {result['system']}{partly} | {_spread(result)} | {ratio:.2f} | {peak} | {disk} |"


def _cold_table(kept: Kept) -> Iterator[str]:
    yield "| What | System | Warm | Cold | Cold / warm | Still in the page cache before a cold run |"
    yield "|---|---|--:|--:|--:|--:|"
    for what in ("cold_join", "cold_one", "cold_many"):
        name = title(kept, what)
        for warm in kept.comparison(what):
            system = warm["system"].removesuffix(WARM)
            cold = kept.find(what, system + COLD)
            if cold is None or not warm["system"].endswith(WARM):
                continue
            times = [duration(statistics.median(result["seconds"])) for result in (warm, cold)]
            share = f"{cold['resident_share_max']:.1%} of its pages"
            yield f"| {name} | {system} | {' | '.join(times)} | {paired(cold, warm, truediv).value:.2f} | {share} |"
            name = ""


# --- words --------------------------------------------------------------------------------------


def _origin(kept: Kept) -> Iterator[str]:
    """Commands, and the machine and versions they ran with."""
    origins: dict[str, list[str]] = {}
    for task in kept.tasks.values():
        machine = task["machine"]
        packages = ", ".join(f"{name} {number}" for name, number in task["versions"].items())
        text = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['os']}; {packages}"
        origins.setdefault(text, []).append(f"`{task['command']}`")
    for text, commands in origins.items():
        yield f"Made by {', '.join(commands)} on {text}."


def _method(kept: Kept) -> Iterator[str]:
    repeats = sorted({task["repeat"] for task in kept.tasks.values()})
    for workload in {tuple(task["workload"].items()): task["workload"] for task in kept.tasks.values()}.values():
        yield (
            f"History of {workload['rows']:,} rows over {workload['entities']:,} entities and {DAYS} days, 10 features "
            f"of five dtypes with nulls; entity dataframe of {workload['entity_rows']:,} unsorted rows, "
            f"{UNKNOWN_SHARE:.0%} with unknown keys; max age {MAX_AGE_US // DAY_US} days. "
            f"Online reads and loads have {workload['online_keys']:,} keys."
        )
        yield ""
    yield (
        "Each system runs in its own process; those that are compared run in turns. Page cache warm unless said "
        f"otherwise. Median of {' or '.join(map(str, repeats))} runs after one that does not count. A ratio is of "
        "medians, its least and most are of single rounds. Answers are compared to the last bit with "
        "one worked out by numpy alone, before the timing."
    )
    yield ""
    yield (
        "Peak memory is resident memory of the process, its inputs and mapped file pages included, in a run of its "
        "own. Memory in the targets is anonymous memory: mapped pages of files do not count."
    )


def _notes(kept: Kept) -> Iterator[str]:
    """What stands in `System.note`, with the systems that it holds for, comparison by comparison."""
    found: dict[str, dict[str, list[str]]] = {}
    for system in all_systems():
        if kept.find(system.what, system.name) is not None:
            name = system.name.removesuffix(WARM).removesuffix(COLD)
            names = found.setdefault(system.what, {}).setdefault(system.note, [])
            names.extend([name] if name not in names else [])
    for what, notes in found.items():
        yield f"- {title(kept, what)}"
        yield from (f"  - {'; '.join(names)}: {note}." for note, names in notes.items())
    left_out = [left for task in kept.tasks.values() for left in task["left_out"]]
    for why in dict.fromkeys(left["why"] for left in left_out):
        systems = ", ".join(f"{left['system']} ({left['what']})" for left in left_out if left["why"] == why)
        yield f"- Left out: {systems}: {why}"


# --- the README ---------------------------------------------------------------------------------


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
