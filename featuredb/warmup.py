"""Compiles every kernel, so that the first ingest and join of a fresh installation need not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuredb.database import open_database
from featuredb.schema import Entity, Feature, FeatureTable

_FEATURES = ("bool", "int16", "int64", "float32", "float64", "string")
_VECTOR = "float32[3]"
# As many as make packing worth while.
_ROWS = 200


def warmup() -> int:
    """Compile the kernels and cache the machine code on disk; returns how many versions are ready.

    Examples
    --------
    >>> from featuredb.warmup import warmup
    >>> warmup() > 0
    True
    """
    from featuredb.offline import kernels
    from featuredb.online import kernels as online_kernels
    from featuredb.storage import kernels as storage_kernels

    with open_database(":memory:") as db:
        features = [*(Feature(name, name) for name in _FEATURES), Feature("vector", _VECTOR)]
        db.apply([Entity("word", "int64"), FeatureTable("words", ["word"], features)])
        db.apply([Entity("text", "string"), FeatureTable("texts", ["text"], features)])
        times = np.array([1, 2], dtype="datetime64[us]")
        for table, entity, keys in (("words", "word", np.array([1, 2])), ("texts", "text", np.array(["a", "b"]))):
            db.ingest(table, _unsorted(entity, keys))
            values = {name: np.array([0, 1]).astype(name) for name in _FEATURES if name != "string"}
            rows = {entity: keys, "event_timestamp": times, **values, "string": ["a", None]}
            rows["vector"] = np.zeros((2, 3), dtype=np.float32)
            db.ingest(table, rows)
            db.ingest(table, rows | {"event_timestamp": times + np.timedelta64(1, "s")})
            del rows["string"]
            db.ingest(table, rows | {"event_timestamp": times + np.timedelta64(2, "s")}, partial=True)
            # Few keys are looked up in the tree, many in the hashed dictionary.
            for repeats in (1, 3000):
                left = {entity: np.repeat(keys, repeats), "event_timestamp": np.repeat(times, repeats)}
                references = [f"{table}:{name}" for name in (*_FEATURES, "vector")]
                db.get_historical_features(left, references, known_at=times[1]).to_numpy()
                db.get_online_features(references, {entity: left[entity]})
        db.materialize()
    functions = {**vars(storage_kernels), **vars(kernels), **vars(online_kernels)}.values()
    return sum(len(function.signatures) for function in functions if hasattr(function, "signatures"))


def _unsorted(entity: str, keys: NDArray[Any]) -> dict[str, Any]:
    """Rows in no order, with nulls, of which each encoding has some: strings short and long, floats decimal and not."""
    count = 2 * _ROWS
    values = {name: np.arange(count).astype(name) / (1 if name != "float64" else 10) for name in _FEATURES[1:5]}
    data: dict[str, Any] = {name: np.ma.MaskedArray(one, np.arange(count) % 7 == 3) for name, one in values.items()}
    data["bool"] = np.arange(count) % 3 == 0
    data["string"] = [str(row) if row % 7 else None for row in range(count)]
    data["vector"] = np.zeros((count, 3), dtype=np.float32)
    times = np.array([7, 3], dtype="datetime64[us]").repeat(_ROWS) - np.arange(count).astype("timedelta64[us]")
    return data | {entity: np.tile(keys, _ROWS), "event_timestamp": times}
