"""The first join of a new process, from its start to the columns: Python, imports and kernels included.

Numba keeps machine code in a folder; it is either full, from the run before that does not count, or new and empty.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.check import Answer
from benchmarks.join import prepare_featuredb
from benchmarks.peers import Case, System
from benchmarks.process import timed_process
from benchmarks.workload import FEATURES, KEY, TIME


def _load(compiled: bool) -> Any:
    def load(folder: Path) -> Case:
        import pyarrow.parquet as pq

        arrays = folder / "entity_arrays"
        arrays.mkdir(exist_ok=True)
        entities = pq.read_table(folder / "entities.parquet")
        for name in (KEY, TIME):
            np.save(arrays / f"{name}.npy", entities[name].to_numpy())
        cache = tempfile.TemporaryDirectory(prefix="numba-", dir=folder)
        out = Path(cache.name) / "answer.parquet"

        def run() -> tuple[float, None]:
            with tempfile.TemporaryDirectory(prefix="numba-", dir=folder) as empty:
                variables = {"NUMBA_CACHE_DIR": cache.name if compiled else empty}
                arguments = ["-m", "benchmarks.first_join", str(folder), str(out)]
                return timed_process(arguments, variables)[0], None

        def answer(_: None) -> Answer:
            table = pq.read_table(out)
            return {name: table[name] for name in FEATURES}

        return Case(run, answer, close=cache.cleanup, own_clock=True)

    return load


SYSTEMS = (
    System(
        "join",
        "first",
        "kernels cached",
        "from the start of a Python process to the columns; entity rows as arrays",
        _load(compiled=True),
        prepare_featuredb,
        expected="join",
        elsewhere=True,
    ),
    System(
        "join",
        "first",
        "kernels never compiled",
        "the same with an empty folder for Numba's machine code",
        _load(compiled=False),
        prepare_featuredb,
        expected="join",
        elsewhere=True,
    ),
)
