"""Every seeded fault of `mutations.py` still applies to the library."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutations import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_changes_just_one_place(fault: Fault) -> None:
    text = Path(ROOT / "featuredb" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    assert fault.old != fault.new
