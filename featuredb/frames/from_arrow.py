"""Arrow arrays to columns, by their buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Heap, concat, null_column
from featuredb.frames.arrays import import_pyarrow
from featuredb.frames.casts import Mask, heap_entries
from featuredb.frames.nested import from_arrow_lists, is_list_type
from featuredb.frames.outcome import (
    Bad,
    Outcome,
    Show,
    Target,
    finish,
    from_dictionary,
    from_numpy,
    from_objects,
    short,
)

# Arrow arrays of more bytes are not joined: a string array cannot pass 2 GiB.
_JOIN_BYTES_MAX = 1 << 30
_SAMPLE_ROWS = 1024


def arrow() -> Any:
    """The pyarrow module, or an error that names the extra."""
    return import_pyarrow("reading Arrow, Polars or Parquet data")


def from_arrow(values: Any, target: Target) -> Outcome:
    pa = arrow()
    if isinstance(values, pa.ChunkedArray):
        return _from_chunks(values, target)
    if not isinstance(values, pa.Array):
        return target.unusable(0, f"a pyarrow {type(values).__name__}")
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    kind, rows = values.type, len(values)
    if values.null_count == rows:
        return Outcome(null_column(target.dtype, rows))
    if target.dtype.is_nested and is_list_type(kind):
        return from_arrow_lists(values, target, from_arrow)
    if pa.types.is_dictionary(kind):
        codes, valid = _arrow_flat(values.indices)
        return from_dictionary(codes, valid, lambda: from_arrow(values.dictionary, target), target)
    if _is_binary(kind):
        plain = _plain_binary(values)
        if not target.distinct and values.null_count == 0 and _seldom_repeat(plain):
            return _from_binary(plain, target)
        encoded = plain.dictionary_encode()
        codes, valid = _arrow_flat(encoded.indices)
        return from_dictionary(codes, valid, lambda: _from_binary(encoded.dictionary, target), target)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or _is_datetime(kind):
        data, valid = _arrow_flat(values)
        return from_numpy(data, target, valid, what=str(kind))
    row = int(values.is_valid().to_numpy(zero_copy_only=False).argmax())
    return target.refuse(rows, str(kind), row, short(values[row].as_py()))


def _from_chunks(values: Any, target: Target) -> Outcome:
    if values.num_chunks > 1 and values.nbytes < _JOIN_BYTES_MAX:
        joined = (values if target.dtype.is_nested else values.unify_dictionaries()).combine_chunks()
        chunks = joined.chunks if hasattr(joined, "chunks") else [joined]
    else:
        chunks = values.chunks
    if not chunks:
        return Outcome(null_column(target.dtype, 0))
    outcomes = [from_arrow(chunk, target) for chunk in chunks]
    if len(outcomes) == 1:
        return outcomes[0]
    bad: list[Bad] = []
    start = 0
    for outcome in outcomes:
        if outcome.problem is not None:
            return Outcome(null_column(target.dtype, len(values)), problem=outcome.problem)
        bad += [Bad(b.reason, b.rows + start, _shifted(b.show, -start)) for b in outcome.bad]
        start += len(outcome.column)
    return Outcome(concat([outcome.column for outcome in outcomes]), bad)


def _shifted(show: Show, by: int) -> Show:
    return lambda row: show(row + by)


def _is_binary(kind: Any) -> bool:
    # By name: the predicates for views came with pyarrow 16 and after.
    return str(kind).partition("[")[0] in (
        "string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary"
    )  # fmt: skip


def _is_datetime(kind: Any) -> bool:
    return str(kind).partition("[")[0] in ("timestamp", "date32", "date64")


def _plain_binary(values: Any) -> Any:
    """Strings or bytes in the layout of offsets and data, whatever the layout they come in."""
    pa = arrow()
    name = str(values.type).partition("[")[0]
    if name in ("string", "large_string", "binary", "large_binary"):
        return values
    plain = pa.large_string() if name == "string_view" else pa.large_binary()
    try:
        return values.cast(plain)
    except pa.ArrowNotImplementedError:  # views before pyarrow 18
        return pa.array(values.to_pylist(), plain)


def _arrow_flat(values: Any) -> tuple[NDArray[Any], Mask | None]:
    """An Arrow array of fixed width as numpy, copied only for booleans, with its validity."""
    valid = None if values.null_count == 0 else values.is_valid().to_numpy(zero_copy_only=False)
    kind = str(values.type).partition("[")[0]
    if kind == "bool":
        return values.fill_null(False).to_numpy(zero_copy_only=False), valid
    names = {"timestamp": "int64", "date32": "int32", "date64": "int64", "halffloat": "float16"}
    names |= {"half_float": "float16", "float": "float32", "double": "float64"}
    numpy_dtype = np.dtype(names.get(kind, kind))
    buffer = values.buffers()[1]
    if buffer is None or len(values) == 0:
        data = np.zeros(0, dtype=numpy_dtype)
    else:
        data = np.frombuffer(buffer, numpy_dtype, len(values), values.offset * numpy_dtype.itemsize)
    if kind == "timestamp":
        data = data.view(f"M8[{values.type.unit}]")
    elif kind == "date32":
        data = data.astype(np.int64).view("M8[D]")
    elif kind == "date64":
        data = data.view("M8[ms]")
    return data, valid


def _seldom_repeat(values: Any) -> bool:
    """Whether the first values are mostly distinct: then finding those that are not takes longer than it saves."""
    first = values.slice(0, _SAMPLE_ROWS)
    return 2 * len(first.dictionary_encode().dictionary) > len(first)


def _from_binary(values: Any, target: Target) -> Outcome:
    """Arrow strings or bytes, none of them null, each an entry of the heap."""
    is_text = "string" in str(values.type)
    if target.text or (is_text and target.dtype.name == "timestamp"):
        return from_objects(values.to_pylist(), target, nan_is_null=False)
    if target.dtype.name != ("string" if is_text else "bytes"):
        return from_objects(values[:1].to_pylist(), target, nan_is_null=False)
    heap = _arrow_heap(values)
    check = None
    if is_text:
        try:
            values.validate(full=True)
        except arrow().ArrowInvalid:
            check = _decodes
    return finish(heap_entries(heap, check), None, target.dtype, lambda row: short(heap.take(_one(row)).tolist()[0]))


def _one(row: int) -> NDArray[np.int64]:
    return np.array([row], dtype=np.int64)


def _decodes(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _arrow_heap(values: Any) -> Heap:
    if len(values) == 0:
        return Heap.of([])
    width = np.int64 if str(values.type).startswith("large") else np.int32
    _, offsets_buffer, data_buffer = values.buffers()
    itemsize = np.dtype(width).itemsize
    offsets = np.frombuffer(offsets_buffer, width, len(values) + 1, values.offset * itemsize).astype(np.int64)
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    return Heap(offsets - offsets[0], data)
