"""How figures are worked out of kept results."""

from __future__ import annotations

from collections.abc import Callable
from operator import truediv

from benchmarks.join_variants import SEGMENTS
from benchmarks.kept import Figure, Kept, paired

Measure = Callable[[Kept], Figure | None]
FSYNC = "write 4 KiB, fsync"
NUMPY, PANDAS = "featuredb, to_numpy", "featuredb, to_pandas"


def ratio(what: str, dividend: str, divisor: str) -> Measure:
    """Time of one system over that of another."""
    return lambda kept: kept.ratio(what, dividend, divisor)


def seconds(what: str, system: str) -> Measure:
    """Time of a run, or of a call."""
    return lambda kept: kept.seconds(what, system)


def segments(kept: Kept) -> Figure | None:
    """None unless the files have as many segments as their names say."""
    one, ten = kept.find("segments", "one segment"), kept.find("segments", f"{SEGMENTS} overlapping segments")
    if one is None or ten is None or (one["segments"], ten["segments"]) != (1, SEGMENTS):
        return None
    return kept.ratio("segments", ten["system"], one["system"])


def large(kept: Kept) -> Figure | None:
    """The join on the largest history over that on the main one."""
    both = kept.comparison("large")
    return paired(both[1], both[0], truediv) if both else None


def extra_memory(kept: Kept) -> Figure | None:
    """The most that a join held beside its output and what was there before, over the output."""
    found = kept.find("memory", NUMPY)
    if found is None:
        return None
    output = found["output_bytes"]
    share = (found["peak_anonymous_bytes"] - found["rest_bytes"] - output) / output
    return Figure(share, share, share)


def peak(what: str, system: str) -> Measure:
    """The most anonymous memory of the whole process, in bytes."""

    def measure(kept: Kept) -> Figure | None:
        found = kept.find(what, system)
        if found is None:
            return None
        most = float(found["peak_anonymous_bytes"])
        return Figure(most, most, most)

    return measure


def after_fsync(system: str) -> Measure:
    """Time of a write less that of an fsync, in turns with it."""
    return lambda kept: kept.difference("write", system, FSYNC)


def file_size(family: str) -> Measure:
    """Bytes over those of the smallest file of a system."""

    def measure(kept: Kept) -> Figure | None:
        ours = kept.find("ingest", "featuredb")
        theirs = [r["file_bytes"] for r in kept.comparison("ingest") if r["system"].startswith(family)]
        if ours is None or not theirs:
            return None
        share = ours["file_bytes"] / min(theirs)
        return Figure(share, share, share)

    return measure


def rate(what: str, system: str) -> Measure:
    """Rows a second."""

    def measure(kept: Kept) -> Figure | None:
        found, result = kept.seconds(what, system), kept.find(what, system)
        if found is None or result is None:
            return None
        rows = result["rows"]
        return Figure(rows / found.value, rows / found.most, rows / found.least)

    return measure
