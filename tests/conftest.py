"""Hypothesis profiles, and what every test may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# So that tests can import `oracle` and `strategies` whatever the import mode.
sys.path.insert(0, str(Path(__file__).parent))

from strategies import TAILS, set_tails

import featuredb as fdb

# The first example compiles kernels, so time limits of single examples say nothing.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=_SLOW, derandomize=True)
# For `mutations.py`, where any failure will do.
settings.register_profile("faults", settings.get_profile("ci"), phases=[Phase.generate])
_LONG = int(os.environ.get("FEATUREDB_EXAMPLES", "3000"))
settings.register_profile("long", max_examples=_LONG, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("FEATUREDB_PROFILE", "ci"))


@pytest.fixture
def db() -> Iterator[fdb.Database]:
    """An empty database in memory."""
    with fdb.open(":memory:") as database:
        yield database


@pytest.fixture(scope="module")
def segments_only() -> Iterator[None]:
    """For modules whose tests look at segments: every ingest makes one, however small it is."""
    with pytest.MonkeyPatch.context() as patch:
        set_tails(patch, *TAILS[0])
        yield


@pytest.fixture
def a_segment_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for one test."""
    set_tails(monkeypatch, *TAILS[0])


@pytest.fixture(scope="module", params=["segments", "tail"])
def both_histories(request: pytest.FixtureRequest) -> Iterator[None]:
    """For modules whose tests load few rows: with a segment for every ingest, and as it is."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "segments":
            set_tails(patch, *TAILS[0])
        yield
