"""Sorting by code and time, compiled. See `featuredb.offline.kernels` for the rules."""

# mypy: ignore-errors

from __future__ import annotations

from numba import njit

_options = {"nogil": True, "cache": True, "boundscheck": False}


@njit(**_options)
def counting_sort(codes, starts, order):
    """Stable order by code. `starts` has one zero a code plus one, and ends as where each run ends."""
    for i in range(len(codes)):
        starts[codes[i] + 1] += 1
    for code in range(1, len(starts)):
        starts[code] += starts[code - 1]
    for i in range(len(codes)):
        code = codes[i]
        order[starts[code]] = i
        starts[code] += 1


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


@njit(inline="always", nogil=True)
def _before(event, created, order, i, j):
    if event[i] != event[j]:
        return event[i] < event[j]
    if created[i] != created[j]:
        return created[i] < created[j]
    return order[i] < order[j]


@njit(**_options)
def sort_runs(bounds, event, created, order, event_tmp, created_tmp, order_tmp):
    """Sort each run bounds[r]:bounds[r + 1] by (event, created, order), in place.

    A natural check first (data mostly arrives in time order), then insertion sort of blocks of 16 and a
    bottom-up merge sort. The `_tmp` arrays are scratch of the same lengths.
    """
    for r in range(len(bounds) - 1):
        first = bounds[r]
        stop = bounds[r + 1]
        ordered = True
        for i in range(first + 1, stop):
            if _before(event, created, order, i, i - 1):
                ordered = False
                break
        if ordered:
            continue
        for low in range(first, stop, 16):
            for i in range(low + 1, min(low + 16, stop)):
                e = event[i]
                c = created[i]
                o = order[i]
                j = i - 1
                while j >= low and (
                    event[j] > e or (event[j] == e and (created[j] > c or (created[j] == c and order[j] > o)))
                ):
                    event[j + 1] = event[j]
                    created[j + 1] = created[j]
                    order[j + 1] = order[j]
                    j -= 1
                event[j + 1] = e
                created[j + 1] = c
                order[j + 1] = o
        width = 16
        while width < stop - first:
            for low in range(first, stop, 2 * width):
                middle = min(low + width, stop)
                high = min(low + 2 * width, stop)
                if middle >= high or not _before(event, created, order, middle, middle - 1):
                    continue
                for i in range(low, middle):
                    event_tmp[i] = event[i]
                    created_tmp[i] = created[i]
                    order_tmp[i] = order[i]
                i = low
                j = middle
                k = low
                while i < middle and j < high:
                    if event[j] < event_tmp[i] or (
                        event[j] == event_tmp[i]
                        and (created[j] < created_tmp[i] or (created[j] == created_tmp[i] and order[j] < order_tmp[i]))
                    ):
                        event[k] = event[j]
                        created[k] = created[j]
                        order[k] = order[j]
                        j += 1
                    else:
                        event[k] = event_tmp[i]
                        created[k] = created_tmp[i]
                        order[k] = order_tmp[i]
                        i += 1
                    k += 1
                while i < middle:
                    event[k] = event_tmp[i]
                    created[k] = created_tmp[i]
                    order[k] = order_tmp[i]
                    i += 1
                    k += 1
            width *= 2
