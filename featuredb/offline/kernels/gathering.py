"""Values at known positions, compiled. See `featuredb.offline.kernels` for the rules, `words` for the columns.

The positions are in the order of the segment, so that what is read lies close together, and `rows` says where in
the result each belongs: reading in the order of the result instead took 1.4 to 2 times as long. A few values ahead
are asked for early: without it, wide columns took 1.8 times as long.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from featuredb.offline.kernels.words import (
    ALIGN,
    BASE,
    MASK,
    SHIFT,
    TABLE,
    VALID,
    WIDTH,
    is_valid,
    load_byte,
    prefetch_at,
    unpacked,
)

_options = {"nogil": True, "cache": True, "boundscheck": False}

_AHEAD = 16
# Values of so many bits are asked for however close they lie; of narrower ones, those closer together than the
# second number of bits are in the cache by themselves.
_WIDE_BITS_MIN = 24
_APART_BITS_MIN = 256


@njit(inline="always", nogil=True)
def _is_far(positions, width):
    """Whether to ask for values ahead: they are wide, or on average far apart."""
    count = len(positions)
    if width >= _WIDE_BITS_MIN or count == 0:
        return count > 0
    first = max(np.int64(positions[0]), 0)
    last = max(np.int64(positions[count - 1]), 0)
    return (last - first) * width > _APART_BITS_MIN * count


@njit(**_options)
def gather(positions, rows, cells, addresses, offset, fill, out, valid):
    """out[rows[i]] = the integer at positions[i] + offset, as words; `fill` where the position is -1 or the value null.

    `valid`, of one entry a row of the result or empty, tells which are not null.
    """
    table, valid_table, shift, width = cells[0, TABLE], cells[0, VALID], cells[0, SHIFT], cells[0, WIDTH]
    mask, align = cells[0, MASK], cells[0, ALIGN]
    base = cells[0, BASE] + offset
    flags = len(valid) > 0
    count = len(positions)
    far = _is_far(positions, width)
    for i in range(count):
        if far and i + _AHEAD < count:
            prefetch_at(addresses, table, shift, width, max(np.int64(positions[i + _AHEAD]), 0))
        position = np.int64(positions[i])
        row = rows[i]
        present = position >= 0
        if flags:
            present = present and (valid_table < 0 or is_valid(addresses, valid_table, shift, position))
            valid[row] = present
        out[row] = base + unpacked(addresses, table, shift, width, mask, align, position) if present else fill


@njit(**_options)
def gather_decimals(positions, rows, cells, addresses, power, fill, out, valid):
    """As `gather`, of floats that are stored as integers: each is divided by `power`."""
    table, valid_table, shift, width = cells[0, TABLE], cells[0, VALID], cells[0, SHIFT], cells[0, WIDTH]
    mask, align, base = cells[0, MASK], cells[0, ALIGN], cells[0, BASE]
    flags = len(valid) > 0
    count = len(positions)
    far = _is_far(positions, width)
    for i in range(count):
        if far and i + _AHEAD < count:
            prefetch_at(addresses, table, shift, width, max(np.int64(positions[i + _AHEAD]), 0))
        position = np.int64(positions[i])
        row = rows[i]
        present = position >= 0
        if flags:
            present = present and (valid_table < 0 or is_valid(addresses, valid_table, shift, position))
            valid[row] = present
        if present:
            out[row] = np.float64(base + unpacked(addresses, table, shift, width, mask, align, position)) / power
        else:
            out[row] = fill


@njit(**_options)
def gather_bytes(positions, rows, cells, addresses, out, valid):
    """As `gather`, for values of any width: `out` is bytes of shape (n, width), zero where there is no value."""
    table, valid_table, shift = cells[0, TABLE], cells[0, VALID], cells[0, SHIFT]
    inner = (np.int64(1) << shift) - 1
    flags = len(valid) > 0
    width = out.shape[1]
    for i in range(len(positions)):
        position = np.int64(positions[i])
        row = rows[i]
        present = position >= 0
        if flags:
            present = present and (valid_table < 0 or is_valid(addresses, valid_table, shift, position))
            valid[row] = present
        if present:
            address = addresses[table + (position >> shift)]
            first = (position & inner) * width
            for j in range(width):
                out[row, j] = load_byte(address, first + j)
        else:
            for j in range(width):
                out[row, j] = 0


@njit(**_options)
def split_by_segment(segments, positions, rows, starts, positions_out, rows_out):
    """Positions and rows of each segment one after the other, stable; -1, for nothing found, is with segment 0.

    `starts` has as many zeros as there are segments, and ends as where each one's stop.
    """
    for i in range(len(segments)):
        starts[max(segments[i], 0)] += 1
    total = 0
    for segment in range(len(starts)):
        count = starts[segment]
        starts[segment] = total
        total += count
    for i in range(len(segments)):
        segment = max(segments[i], 0)
        place = starts[segment]
        starts[segment] = place + 1
        positions_out[place] = positions[i]
        rows_out[place] = rows[i]


@njit(**_options)
def mark_chunks(positions, shift, marks):
    """marks[chunk] = True for each chunk that has one of the positions."""
    for i in range(len(positions)):
        if positions[i] >= 0:
            marks[positions[i] >> shift] = True
