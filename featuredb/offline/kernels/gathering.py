"""Values at known positions, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

from numba import njit

_options = {"nogil": True, "cache": True, "boundscheck": False}


@njit(**_options)
def gather(values, positions, first, rows, out):
    """out[rows[i]] = values[positions[i] - first]."""
    for i in range(len(rows)):
        out[rows[i]] = values[positions[i] - first]


@njit(**_options)
def gather_bytes(values, positions, first, rows, out):
    """As `gather`, for values of any width: both arrays are bytes of shape (n, width).

    Words of 8 bytes are no faster, as the compiler copies in vectors of 32, and would need alignment.
    """
    for i in range(len(rows)):
        source = positions[i] - first
        target = rows[i]
        for j in range(values.shape[1]):
            out[target, j] = values[source, j]
