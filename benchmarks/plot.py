"""The plot of join times over the sizes, as PNG and SVG."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.kept import Kept

_MARKS = "osD^v<>PX*"


def plot(kept: Kept, folder: Path) -> None:
    """Draw ``scale.png`` and ``scale.svg`` of the results of scale into a folder."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same results give the same file.
    mpl.rcParams["svg.hashsalt"] = "featuredb"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    sizes = kept.workload("scale")
    assert sizes is not None
    sides = (
        ("history_rows", "entity_rows", "rows of history (N)", f"M = {sizes['entity_rows']:,} entity rows"),
        ("entity_rows", "history_rows", "entity rows (M)", f"N = {sizes['rows']:,} rows of history"),
    )
    for axis, (over, held, label, title) in zip(axes, sides, strict=True):
        fixed = sizes["rows"] if held == "history_rows" else sizes["entity_rows"]
        for mark, (system, points) in zip(_MARKS, _curves(kept, over, held, fixed).items(), strict=False):
            ours = system.startswith("featuredb")
            axis.plot(
                [x for x, _ in points],
                [y for _, y in points],
                marker=mark,
                markersize=5,
                linewidth=2.6 if ours else 1.2,
                color="black" if ours else None,
                linestyle="--" if "limit" in system else "-",
                label=system,
            )
        axis.set(xscale="log", yscale="log", xlabel=label, title=title)
        axis.grid(visible=True, which="major", alpha=0.4)
    axes[0].set_ylabel("seconds, median")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(folder / "scale.png", dpi=110, metadata={"Software": None})
    figure.savefig(folder / "scale.svg", metadata={"Date": None})
    plt.close(figure)


def _curves(kept: Kept, over: str, held: str, fixed: int) -> dict[str, list[tuple[int, float]]]:
    """(size, seconds) of each system, by size, where the other size is as fixed."""
    curves: dict[str, list[tuple[int, float]]] = {}
    results: list[dict[str, Any]] = kept.comparison("scale")
    # The first is the main history once more, measured in turns with the larger one.
    for result in results + kept.comparison("large")[1:]:
        if result[held] == fixed:
            point = (result[over], statistics.median(result["seconds"]))
            curves.setdefault(result["system"], []).append(point)
    return {system: sorted(points) for system, points in curves.items()}
