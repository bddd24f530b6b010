"""Sorting by code and time, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

_options = {"nogil": True, "cache": True, "boundscheck": False}


@njit(**_options)
def count_codes(codes, counts):
    """counts[code] += 1 for each code; -1, which stands for no code, counts in the last place."""
    for i in range(len(codes)):
        counts[codes[i]] += 1


@njit(**_options)
def counts_to_starts(counts):
    """Counts by (part, code) to where the codes of each part start, in the order of code, then part."""
    total = 0
    for code in range(counts.shape[1]):
        for part in range(counts.shape[0]):
            count = counts[part, code]
            counts[part, code] = total
            total += count


@njit(**_options)
def place_by_code(codes, starts, first, order, out):
    """One part of a counting sort: codes go to their places in `out`, row numbers, from `first` on, in `order`."""
    for i in range(len(codes)):
        code = codes[i]
        place = starts[code]
        starts[code] = place + 1
        order[place] = first + i
        out[place] = code


@njit(**_options)
def scatter_rows(codes, event, created, low, high, cursors, places, event_out, created_out):
    """The rows with low <= code < high to where their code's next row goes, which is cursors[code]; stable.

    `places` gets the numbers of the rows. `created` and `created_out` are empty if all rows have the same.
    """
    for i in range(len(codes)):
        code = codes[i]
        if code < low or code >= high:
            continue
        place = cursors[code]
        cursors[code] = place + 1
        places[place] = i
        event_out[place] = event[i]
        if len(created) > 0:
            created_out[place] = created[i]


@njit(**_options)
def ascending(codes, event, created):
    """Whether the rows ascend strictly by (code, event, created)."""
    for i in range(1, len(codes)):
        if codes[i] > codes[i - 1]:
            continue
        if codes[i] < codes[i - 1] or not _before(event, created, i - 1, i):
            return False
    return True


@njit(inline="always", nogil=True)
def _before(event, created, i, j):
    if event[i] != event[j]:
        return event[i] < event[j]
    if len(created) > 0:
        return created[i] < created[j]
    return False


@njit(inline="always", nogil=True)
def _insertion_sort(low, high, event, created, places):
    dated = len(created) > 0
    made = np.int64(0)
    for i in range(low + 1, high):
        time = event[i]
        place = places[i]
        if dated:
            made = created[i]
        j = i - 1
        while j >= low and (event[j] > time or (dated and event[j] == time and created[j] > made)):
            event[j + 1] = event[j]
            places[j + 1] = places[j]
            if dated:
                created[j + 1] = created[j]
            j -= 1
        event[j + 1] = time
        places[j + 1] = place
        if dated:
            created[j + 1] = made


@njit(inline="always", nogil=True)
def _merge_halves(low, middle, high, event, created, places, event_tmp, created_tmp, places_tmp):
    dated = len(created) > 0
    left = middle - low
    for i in range(left):
        event_tmp[i] = event[low + i]
        places_tmp[i] = places[low + i]
        if dated:
            created_tmp[i] = created[low + i]
    i = 0
    j = middle
    k = low
    # What is left of the right half once the left is used up lies where it belongs.
    while i < left:
        if j < high and (
            event[j] < event_tmp[i] or (dated and event[j] == event_tmp[i] and created[j] < created_tmp[i])
        ):
            event[k] = event[j]
            places[k] = places[j]
            if dated:
                created[k] = created[j]
            j += 1
        else:
            event[k] = event_tmp[i]
            places[k] = places_tmp[i]
            if dated:
                created[k] = created_tmp[i]
            i += 1
        k += 1


@njit(**_options)
def sort_runs(bounds, event, created, places, event_tmp, created_tmp, places_tmp):
    """Sort each run bounds[r]:bounds[r + 1] by (event, created), in place; stable.

    A natural check first (data mostly arrives in time order), then insertion sort of blocks of 16 and a
    bottom-up merge sort. `created` is empty if all rows have the same. The `_tmp` arrays are scratch, as long as
    the longest run. Returns how many rows are equal to the one before them.
    """
    equal = 0
    for r in range(len(bounds) - 1):
        first = bounds[r]
        stop = bounds[r + 1]
        ordered = True
        for i in range(first + 1, stop):
            if _before(event, created, i, i - 1):
                ordered = False
                break
        if not ordered:
            for low in range(first, stop, 16):
                _insertion_sort(low, min(low + 16, stop), event, created, places)
            width = 16
            while width < stop - first:
                for low in range(first, stop - width, 2 * width):
                    middle = low + width
                    if _before(event, created, middle, middle - 1):
                        high = min(middle + width, stop)
                        _merge_halves(low, middle, high, event, created, places, event_tmp, created_tmp, places_tmp)
                width *= 2
        for i in range(first + 1, stop):
            if event[i] == event[i - 1] and (len(created) == 0 or created[i] == created[i - 1]):
                equal += 1
    return equal
