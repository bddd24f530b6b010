"""What every column of values must hold, wherever in the file it is stored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featuredb.columns import Column, Heap
from featuredb.errors import CorruptionError
from featuredb.limits import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from featuredb.nested import elements
from featuredb.schema import DTYPES


def utf8_fault(heap: Heap) -> str | None:
    """What is wrong with a heap of strings, None if every entry is valid UTF-8."""
    try:
        str(heap.data.tobytes(), "utf-8")
    except UnicodeDecodeError as error:
        return f"a string is not valid UTF-8: {error.reason}"
    # The whole is valid, so each entry is if none begins inside a character.
    inner = heap.offsets[heap.offsets < len(heap.data)]
    if np.any(heap.data[inner] & 0xC0 == 0x80):
        return "a string is not valid UTF-8: it begins or ends inside a character"
    return None


def value_faults(column: Column) -> Iterator[str]:
    """What is wrong with the values of a column whose bytes are sound."""
    if column.dtype.is_nested:
        present = column if column.valid is None else column.take(column.valid)
        try:
            yield from value_faults(elements(present)[0])
        except CorruptionError as error:
            yield str(error)
        return
    if column.dtype == DTYPES["string"] and column.heap is not None:
        fault = utf8_fault(column.heap)
        if fault is not None:
            yield fault
    if column.dtype == DTYPES["bool"] and np.any(column.data.view(np.uint8) > 1):
        yield "a bool is neither 0 nor 1"
    if column.dtype == DTYPES["timestamp"]:
        values = column.data if column.valid is None else column.data[column.valid]
        if np.any((values < TIMESTAMP_MIN_US) | (values > TIMESTAMP_MAX_US)):
            yield "a timestamp is outside the years 1 to 9999"
