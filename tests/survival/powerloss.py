"""Power loss: during any write or sync of a run, with any of what was not synced on the disk or not."""

from __future__ import annotations

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
    left = count
    with scratch() as folder:
        while left > 0:
            known = expected(Plan.of(seed, STEPS, durability), record=True)
            chosen = _spread(sum(1 for _ in states(known.events, seed)), left)
            found = (state for state in states(known.events, seed) if state.number in chosen)
            for state, verdict in children.each(lambda state: check(state, known, folder), found):  # noqa: B023
                step = known.plan.steps[min(state.done, len(known.plan.steps) - 1)]
                outcome.add(verdict, f"seed {seed}, state {state.number}: {state.mode}, in step {state.done} {step}")
            left -= len(chosen)
            seed += 1
    return outcome


def _spread(total: int, wanted: int) -> set[int]:
    """Numbers of `wanted` states, or all, from the whole run."""
    return set(range(total)) if wanted >= total else {number * total // wanted for number in range(wanted)}


def run_relaxed(count: int, seed: int) -> Outcome:
    """The same with ``durability="relaxed"``: the last commit that returned may be undone."""
    return run(count, seed, "relaxed")


def check(state: State, known: Expected, folder: Path) -> str:
    """Examine one state."""
    state.write(emptied(folder))
    return examine_folder(folder, known, state.done, state.begun)
