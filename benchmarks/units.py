"""Figures as text."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    size = abs(seconds)
    unit, factor = next((u, f) for u, f in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if size * f >= 1 or u == "µs")
    value = size * factor
    sign = "-" if seconds < 0 else ""
    return f"{sign}{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def mebibytes(count: float) -> str:
    """MiB with a digit if there are few."""
    value = count / 2**20
    return f"{value:,.{1 if value < 10 else 0}f} MiB"


def gigabytes(count: float) -> str:
    """GB of 10 to the power of 9 bytes."""
    return f"{count / 1e9:.2f} GB"


def rows_a_second(value: float) -> str:
    """Millions with two digits."""
    return f"{value / 1e6:.2f} million rows/s"
