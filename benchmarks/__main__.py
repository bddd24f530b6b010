"""``python -m benchmarks``: run, compare, print the tables, and keep them if asked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.check import WrongAnswerError
from benchmarks.kept import FORMAT, Kept, keep, read_kept
from benchmarks.process import BenchmarkError
from benchmarks.report import render, replace_block
from benchmarks.run import TASKS, run
from benchmarks.workload import Workload


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="featuredb against other systems on generated data. The README's tables: "
        "--rows 10000000 --entities 100000 --entity-rows 1000000 --large-rows 100000000.",
    )
    parser.add_argument(
        "tasks",
        nargs="*",
        metavar="TASK",
        help=f"what to measure: {', '.join(TASKS)}, or all, which is what is measured by default; "
        "render: only make the tables and the plot of the results in --json anew",
    )
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows of history")
    parser.add_argument("--entities", type=int, default=10_000, metavar="E", help="distinct entities")
    parser.add_argument("--entity-rows", type=int, default=100_000, metavar="M", help="rows of the entity dataframe")
    parser.add_argument("--repeat", type=int, default=5, metavar="R", help="runs that count")
    parser.add_argument(
        "--large-rows", type=int, metavar="N", help="rows of one more history, which featuredb alone joins (scale)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE",
        help="keep the results here, where those of other tasks stay; the plot of scale goes beside it",
    )  # fmt: skip
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the tables between the markers in this file")
    options = parser.parse_args(arguments)
    problems = Workload(options.rows, options.entities, options.entity_rows).problems()
    unknown = [task for task in options.tasks if task not in (*TASKS, "all", "render")]
    if unknown:
        problems.append(f"there is no task {', '.join(unknown)}; choose from {', '.join(TASKS)}, all, render")
    if "render" in options.tasks and (options.json is None or len(options.tasks) > 1):
        problems.append("render goes alone, and needs --json")
    problems += [
        f"there is no folder {path.parent}"
        for path in (options.json, options.readme)
        if path is not None and not path.parent.is_dir()
    ]
    if options.repeat < 1:
        problems.append("repeat must be at least 1")
    if options.large_rows is not None and options.large_rows <= options.rows:
        problems.append("large-rows must be more than rows")
    if problems:
        parser.error("; ".join(problems))
    return options


def _results(options: argparse.Namespace) -> dict[str, Any]:
    if options.tasks == ["render"]:
        return read_kept(options.json)
    every = not options.tasks or "all" in options.tasks
    tasks = tuple(task for task in TASKS if every or task in options.tasks)
    needed = ["pyarrow", *(["matplotlib"] if "scale" in tasks and options.json is not None else [])]
    for name in needed:
        if find_spec(name) is None:
            raise BenchmarkError(f'the benchmarks need {name}; install it with: pip install "featuredb[bench]"')
    workload = Workload(options.rows, options.entities, options.entity_rows)
    found = run(
        tasks, workload, options.repeat, options.large_rows, lambda line: print(line, file=sys.stderr, flush=True)
    )
    results = {"format": FORMAT, "tasks": found}
    return results if options.json is None else keep(options.json, results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code: 1 if a system fails or gives a wrong answer."""
    options = _parse(arguments)
    try:
        results = _results(options)
        rendered = render(results)
        if options.json is not None and "scale" in results["tasks"]:
            from benchmarks.plot import plot

            plot(Kept(results), options.json.parent)
        if options.readme is not None:
            replace_block(options.readme, rendered)
    except (WrongAnswerError, BenchmarkError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(rendered, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
