"""Answers of all systems in one form, and their comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.workload import CATEGORIES, FEATURES, ROW, TIME

# Column name to Arrow array (or what pyarrow.array takes), rows in the order of the question.
Answer = Mapping[str, Any]
# Column name to the digest of its values and nulls.
Digests = dict[str, str]


class WrongAnswerError(Exception):
    """A system gave an answer that is not the expected one."""


def digests(answer: Answer) -> Digests:
    """The digest of every column of an answer."""
    return {name: digest(values, name) for name, values in answer.items()}


def digest(values: Any, name: str) -> str:
    """The digest of a column's values, to the last bit, and of where it is null.

    Parameters
    ----------
    values : pyarrow.Array, pyarrow.ChunkedArray, or anything that ``pyarrow.array`` takes
        NaN is a value.
    name : str
        A column of the workload, with its table before it if there are several: says what type the values are cast to.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        values = pa.array(values)
    dtype = FEATURES.get(name.rpartition("__")[2], "int64")
    valid = np.asarray(values.is_valid())
    if dtype == "string":
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        # A string that is none of the categories must differ from a null.
        plain = values.cast(pa.string())
        numbers = pc.index_in(plain, value_set=pa.array(CATEGORIES)).fill_null(-1).to_numpy()
        values = pa.array(np.where(valid, numbers, 0))
    elif name == TIME:
        values = values.cast(pa.timestamp("us")).cast(pa.int64())
    else:
        values = values.cast({"bool": pa.bool_}.get(dtype, lambda: pa.type_for_alias(dtype))())
    data = values.fill_null(False if dtype == "bool" else 0).to_numpy(zero_copy_only=False)
    state = hashlib.sha256(np.packbits(valid).tobytes())
    state.update(data.tobytes())
    return state.hexdigest()


def in_row_order(table: Any) -> Answer:
    """Features of an Arrow table, sorted back into the order of the entity dataframe by its row numbers."""
    order = np.argsort(table[ROW].to_numpy())
    return {name: table[name].take(order) for name in FEATURES}


def frame_answer(frame: Any) -> Answer:
    """Features of a pandas frame, sorted back likewise."""
    import pyarrow as pa

    return in_row_order(pa.table({name: pa.array(frame[name], from_pandas=True) for name in (ROW, *FEATURES)}))


def masked_answer(columns: Mapping[str, Any], names: Iterable[str] = FEATURES) -> Answer:
    """Features held as numpy arrays, masked where null."""
    import pyarrow as pa

    return {
        name: pa.array(np.ma.getdata(columns[name]), mask=np.ma.getmaskarray(columns[name]), from_pandas=False)
        for name in names
    }


def compare(expected: Digests, got: Digests, who: str) -> None:
    """Raise `WrongAnswerError` unless every column is as expected.

    Parameters
    ----------
    expected, got : dict of str to str
        Digests by column.
    who : str
        The task and system, for the message.
    """
    missing = [name for name in expected if name not in got]
    wrong = [name for name in expected if name in got and got[name] != expected[name]]
    beyond = [name for name in got if name not in expected]
    parts = (("missing", missing), ("different", wrong), ("not asked for", beyond))
    found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in parts if names)
    if found:
        raise WrongAnswerError(f"{who} gives a wrong answer; columns {found}")
