"""The table of rules and tests in README.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
NAMED = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", (FOLDER / "README.md").read_text(encoding="utf-8"))


def test_the_table_names_tests() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_named_for_a_rule_exists(file: str, name: str) -> None:
    text = (FOLDER / file).read_text(encoding="utf-8")
    assert not name or f"def {name}(" in text
