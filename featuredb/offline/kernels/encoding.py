"""Entity keys of many rows as bytes, compiled: what `featuredb.storage.keys` does. See `kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

_options = {"nogil": True, "cache": True, "boundscheck": False}


@njit(**_options)
def escaped_lengths(offsets, data, out):
    """out[i] = bytes of entry i of a heap once it is escaped and ended."""
    for i in range(len(out)):
        length = 1 + offsets[i + 1] - offsets[i]
        for j in range(offsets[i], offsets[i + 1]):
            length += data[j] < 2
        out[i] = length


@njit(**_options)
def put_escaped(places, offsets, data, cursors, out):
    """Write the entry at places[i], escaped and ended, from cursors[i] on, and move the cursor behind it."""
    for i in range(len(places)):
        at = cursors[i]
        for j in range(offsets[places[i]], offsets[places[i] + 1]):
            byte = data[j]
            if byte < 2:
                out[at] = 1
                at += 1
                byte += 1
            out[at] = byte
            at += 1
        out[at] = 0
        cursors[i] = at + 1


@njit(**_options)
def put_words(words, width, cursors, out):
    """Write the `width` low bytes of words[i], big-endian, from cursors[i] on, and move the cursor behind them."""
    for i in range(len(words)):
        at = cursors[i]
        for j in range(width):
            out[at + j] = np.uint8(words[i] >> np.uint64(8 * (width - 1 - j)))
        cursors[i] = at + width
