"""What the README shows is what happens: its snippets and commands run, and print what stands below them.

Left to others: ``featuredb demo`` (test_demo.py) and the test command (it is what runs this).
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import pytest

import featuredb as fdb
from featuredb import limits
from featuredb.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
_LANGUAGES = {"sh", "python", "text", "console"}


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def shown_as(pattern: str, printed: str) -> bool:
    """Whether `printed` is what the README shows, where ``...`` stands for anything within a line."""
    regex = ".*".join(map(re.escape, pattern.rstrip().split("...")))
    return re.fullmatch(regex, printed.rstrip()) is not None


def run_command(line: str, folder: Path) -> str:
    """Standard output and error of ``featuredb ...``, run in `folder` as a user would."""
    words = shlex.split(line)
    assert words[0] == "featuredb", f"a console block may only run featuredb: {line}"
    code = "from featuredb.cli import main; main(prog_name='featuredb')"
    done = subprocess.run(
        [sys.executable, "-c", code, *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}"
    return done.stdout


def console_steps(block: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output shown below it."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert parts[0] == "", f"a console block begins with a command: {parts[0]!r}"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_every_block_has_a_language_that_is_tested() -> None:
    assert {name for name, _ in BLOCKS} == _LANGUAGES
    assert README.count("\n```") == 2 * len(BLOCKS)


def test_the_first_two_shell_blocks_are_the_demo_and_the_tests() -> None:
    first, second = (block.splitlines() for block in blocks("sh"))
    environment = ["python -m venv .venv", ". .venv/bin/activate"]
    assert first[:2] == second[:2] == environment
    assert first[2:] == ['pip install --quiet -e ".[demo]"', "featuredb demo"]
    assert second[2:] == ['pip install --quiet -e ".[test]"', "python -m pytest -q"]


def test_snippets_and_commands_print_what_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for place, (language, text) in enumerate(BLOCKS):
        if language == "python":
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(compile(text, f"README.md, block {place}", "exec"), namespace)
            following = BLOCKS[place + 1] if place + 1 < len(BLOCKS) else ("", "")
            shown = following[1] if following[0] == "text" else ""
            assert shown_as(shown, printed.getvalue()), f"shown:\n{shown}\nprinted:\n{printed.getvalue()}"
        elif language == "console":
            for command, shown in console_steps(text):
                printed_text = run_command(command, tmp_path)
                assert shown_as(shown, printed_text), f"{command}\nshown:\n{shown}\nprinted:\n{printed_text}"


def test_the_command_table_names_every_command_and_no_other() -> None:
    named = re.findall(r"^\| `featuredb ([a-z-]+)", README, re.MULTILINE)
    assert sorted(named) == sorted(main.list_commands(click.Context(main)))


def test_the_error_table_has_every_error_with_its_code_and_base() -> None:
    rows = re.findall(r"^\| `(\w+Error)` \| (FDB\d+) \| `(\w+)` \|", README, re.MULTILINE)
    public = {getattr(fdb, name) for name in fdb.__all__ if name.endswith("Error")} - {fdb.FeatureDBError}
    assert {(name, code) for name, code, _ in rows} == {(error.__name__, error.code) for error in public}
    for name, _, base in rows:
        assert base in {parent.__name__ for parent in getattr(fdb, name).__mro__[1:]}, name


def test_figures_in_the_text_are_those_of_the_code() -> None:
    for rows_max in (limits.INGEST_BATCH_ROWS, limits.INGEST_MEMORY_ROWS, limits.SEGMENT_ROWS_MAX):
        assert f"{rows_max:,}" in README
    assert f"{limits.WRITE_TIMEOUT_SECONDS:.0f} seconds by default" in README


def test_links_to_files_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target


@pytest.mark.parametrize(("shown", "printed"), [("a\n", "a b\n"), ("a ... s\n", "a 1 m\n"), ("", "a\n"), ("a\n", "")])
def test_another_output_than_the_one_shown_is_noticed(shown: str, printed: str) -> None:
    assert not shown_as(shown, printed)
