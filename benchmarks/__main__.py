"""``python -m benchmarks``: run, compare, print the table, and keep it if asked."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.check import WrongAnswerError
from benchmarks.report import render, replace_block
from benchmarks.run import BenchmarkError, run
from benchmarks.workload import Workload


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="featuredb against other systems on generated data. The README's table: "
        "--rows 10000000 --entities 100000 --entity-rows 1000000.",
    )
    parser.add_argument(
        "task",
        nargs="?",
        default="all",
        choices=("join", "ingest", "online", "all", "render"),
        help="what to measure; render: only make the table of the results in --json anew",
    )
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows of history")
    parser.add_argument("--entities", type=int, default=10_000, metavar="E", help="distinct entities")
    parser.add_argument("--entity-rows", type=int, default=100_000, metavar="M", help="rows of the entity dataframe")
    parser.add_argument("--repeat", type=int, default=5, metavar="R", help="runs that count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results here")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the table between the markers in this file")
    options = parser.parse_args(arguments)
    if options.task == "render" and options.json is None:
        parser.error("render needs --json")
    problems = Workload(options.rows, options.entities, options.entity_rows).problems()
    if options.repeat < 1:
        problems.append("repeat must be at least 1")
    if problems:
        parser.error("; ".join(problems))
    return options


def _results(options: argparse.Namespace) -> dict[str, Any]:
    if options.task == "render":
        kept: dict[str, Any] = json.loads(options.json.read_text(encoding="utf-8"))
        return kept
    if find_spec("pyarrow") is None:
        raise BenchmarkError('the benchmarks need pyarrow; install it with: pip install "featuredb[bench]"')
    workload = Workload(options.rows, options.entities, options.entity_rows)
    results = run(options.task, workload, options.repeat, lambda line: print(line, file=sys.stderr, flush=True))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code: 1 if a system fails or gives a wrong answer."""
    options = _parse(arguments)
    try:
        rendered = render(_results(options))
        if options.readme is not None:
            replace_block(options.readme, rendered)
    except (WrongAnswerError, BenchmarkError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(rendered, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
