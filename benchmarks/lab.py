"""Makes data and files as they are needed, and measures systems on them, those of a comparison in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.check import compare
from benchmarks.peers import System
from benchmarks.process import AnonymousPeak, Child, in_process
from benchmarks.units import duration
from benchmarks.workload import Workload, read_expected

Result = dict[str, Any]


class Lab:
    """A folder with everything that is measured.

    Parameters
    ----------
    root : Path
        An empty folder.
    workload : Workload
        Sizes of the main data.
    repeat : int
        Runs of each system that count.
    say : callable
        Told of each step as it is done.
    """

    def __init__(self, root: Path, workload: Workload, repeat: int, say: Callable[[str], None]) -> None:
        self.root = root
        self.workload = workload
        self.repeat = repeat
        self.say = say
        self._prepared: set[tuple[Path, Callable[[Path], None]]] = set()

    def data(self, name: str) -> Path:
        """The folder of the data of that name (as in `System.data`), which is made if need be."""
        plain = self.workload
        forms = {
            "main": replace(plain, parts=True),
            "zipf": replace(plain, zipf=True),
            # Two rows of each entity on average, so that the latest has to be found.
            "online": Workload(2 * plain.online_keys, plain.online_keys, 1, every_entity=True),
        }
        return self.generated(name, forms[name])

    def generated(self, name: str, workload: Workload, action: str = "generate") -> Path:
        """The folder of that name with a workload in it, which is made if need be."""
        folder = self.root / name
        if not folder.exists():
            in_process(action, folder, **asdict(workload))
            self.say(f"{name}: generated {workload.rows:,} rows of {workload.entities:,} entities")
        return folder

    def prepare(self, system: System, folder: Path) -> None:
        """Have a system write its files into a folder of data, once."""
        if system.prepare is not None and (folder, system.prepare) not in self._prepared:
            in_process("prepare", folder, what=system.what, name=system.name)
            self._prepared.add((folder, system.prepare))

    def measure(self, pairs: Sequence[tuple[System, Path]]) -> list[Result]:
        """Measure systems, each in a process of its own, in turns.

        All are loaded, then each runs once, and its answer must be the expected one. Then they run in turns,
        forth and back, as often as is to be repeated. At last each runs while its memory is looked at; one that is
        to run once has just this run, and its answer is compared after it.

        Parameters
        ----------
        pairs : sequence of (System, Path)
            Systems that are compared, and the folder of the data of each.

        Returns
        -------
        list of dict
            For each: ``first_seconds`` of the run that does not count, ``seconds`` of those that do, one for each
            round; ``rest_bytes``, ``peak_anonymous_bytes`` (memory that is no page of a file: before and at most
            during the last run), ``peak_bytes`` (resident, mapped pages of files included), ``output_bytes``,
            ``file_bytes``, ``rows``, and what else the case tells.

        Raises
        ------
        WrongAnswerError
            At the first answer that is not the expected one.
        BenchmarkError
            If a system fails.
        """
        children = []
        try:
            for system, folder in pairs:
                self.prepare(system, folder)
                children.append(Child(folder, system.what, system.name))
            return self._measure(pairs, children)
        finally:
            for child in children:
                child.close()

    def _measure(self, pairs: Sequence[tuple[System, Path]], children: Sequence[Child]) -> list[Result]:
        expected = [read_expected(folder)[system.expected or system.what] for system, folder in pairs]
        timed = [place for place, (system, _) in enumerate(pairs) if not system.once]
        first: dict[int, float] = {}
        seconds: dict[int, list[float]] = {place: [] for place in range(len(pairs))}

        def check(place: int) -> None:
            compare(expected[place], children[place].ask("digests"), pairs[place][0].label)
            children[place].ask("rest")

        for place in timed:
            first[place] = children[place].ask("run")
            check(place)
        for number in range(self.repeat):
            for place in timed if number % 2 == 0 else reversed(timed):
                seconds[place].append(children[place].ask("run"))
                children[place].ask("rest")
        results = []
        for place, (system, _) in enumerate(pairs):
            if system.elsewhere:
                sizes = children[place].ask("sizes") | {"peak_bytes": None}
            else:
                taken, sizes = _look_at_memory(children[place])
                if system.once:
                    seconds[place].append(taken)
                    check(place)
                children[place].ask("rest")
            counted = seconds[place]
            results.append(
                {
                    "task": system.task,
                    "what": system.what,
                    "system": system.name,
                    "first_seconds": first.get(place),
                    "seconds": counted,
                    **sizes,
                }
            )
            self.say(f"{system.label}: {duration(statistics.median(counted))}")
        return results


def _look_at_memory(child: Child) -> tuple[float, dict[str, Any]]:
    """Seconds of a run, and the sizes that belong to it."""
    rest = child.ask("rest")
    with AnonymousPeak(child.pid) as sampled:
        taken = child.ask("run")
    # Bytes that a look missed are still there after the run, if they are of the output.
    return taken, {"rest_bytes": rest, "peak_anonymous_bytes": sampled.peak_bytes, **child.ask("sizes")}
