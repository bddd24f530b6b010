"""Power loss: during any write or sync of a run, with any of what was not synced on the disk or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from . import children
from .examine import examine_folder
from .results import Outcome
from .runs import Expected, Plan, emptied, expected, scratch
from .states import State, states

STEPS = 25


def run(count: int, seed: int, durability: str = "full") -> Outcome:
    """Examine `count` states, of as many workloads as that takes."""
    outcome = Outcome("power loss" if durability == "full" else "power loss, relaxed", seed)
    with scratch() as folder:
        for state, known, verdict in _verdicts(count, seed, durability, folder):
            where = f"seed {known.plan.seed}, event {state.event}, state {state.number}, {state.mode}"
            outcome.add(
                verdict, f"{where}, step {state.done}: {known.plan.steps[min(state.done, len(known.plan.steps) - 1)]}"
            )
    return outcome


def _verdicts(
    count: int, seed: int, durability: str, folder: Path
) -> Iterator[tuple[State, Expected, str | children.Died]]:
    left, per_event = count, 3.0 if count < 5000 else 12.0
    while left > 0:
        known = expected(Plan.of(seed, STEPS, durability), record=True)
        found = list(states(known.events, per_event, seed))
        if len(found) > left:
            # Spread over the whole run.
            found = [found[number * len(found) // left] for number in range(left)]
        for state, verdict in children.each(lambda state: check(state, known, folder), found):  # noqa: B023
            yield state, known, verdict
        left -= len(found)
        seed += 1


def check(state: State, known: Expected, folder: Path) -> str:
    """Examine one state."""
    state.write(emptied(folder))
    return examine_folder(folder, known, state.done, state.begun)
