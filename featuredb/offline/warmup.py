"""Compiles every kernel, so that the first join of a fresh installation need not."""

from __future__ import annotations

import numpy as np

from featuredb.columns import Heap
from featuredb.offline import kernels
from featuredb.offline.dictionary import factorize
from featuredb.schema import DTYPES


def warmup() -> int:
    """Compile and cache the kernels; returns the number of machine-code versions that exist now."""
    from featuredb.database import open_database
    from featuredb.schema import Entity, Feature, FeatureTable

    names = ("bool", "int16", "float32", "float64", "string")
    with open_database(":memory:") as db:
        db.apply(
            [
                Entity("word", "int64"),
                Entity("text", "string"),
                FeatureTable("words", ["word"], [Feature(name, name) for name in names]),
                FeatureTable("texts", ["text"], [Feature("float64", "float64")]),
            ]
        )
        times = np.array([1, 2], dtype="datetime64[us]")
        values = {
            "bool": [True, False],
            "int16": np.array([1, 2], dtype=np.int16),
            "float32": np.array([1, 2], dtype=np.float32),
            "float64": np.array([1.0, 2.0]),
            "string": ["a", "b"],
        }
        words = {"word": np.array([1, 2]), "event_timestamp": times, **values}
        texts = {"text": ["a", "b"], "event_timestamp": times, "float64": values["float64"]}
        for table, data in (("words", words), ("texts", texts)):
            db.ingest(table, data)
            db.ingest(table, {**data, "event_timestamp": times + np.timedelta64(1, "s")})
            references = [f"{table}:{name}" for name in data if name in names]
            db.get_historical_features(data, references, known_at=times[1]).to_numpy()
            many = {name: np.repeat(np.asarray(column), 600) for name, column in data.items()}
            db.get_historical_features(many, references).to_numpy()
    for name in ("int64", "string"):
        factorize(Heap.of([b"12345678"]), (DTYPES[name],))
    compiled = [kernel for kernel in vars(kernels).values() if hasattr(kernel, "signatures")]
    return sum(len(kernel.signatures) for kernel in compiled)
