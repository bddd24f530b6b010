"""One join in a new process: prints a line when the columns are there, then writes them to a Parquet file.

``python -m benchmarks.first_join`` with the folder of the data and the file to write.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def main(folder: Path, out: Path) -> None:
    """Join the entity dataframe, held as arrays, and write the features."""
    import featuredb as fdb

    entities = {path.stem: np.load(path) for path in (folder / "entity_arrays").iterdir()}
    with fdb.open(folder / "join.fdb", read_only=True) as db:
        table = db.list_feature_tables()[0]
        references = [f"{table.name}:{feature.name}" for feature in table.features]
        columns = db.get_historical_features(entities, references).to_numpy()
        print("joined", flush=True)

        import pyarrow as pa
        import pyarrow.parquet as pq

        from benchmarks.check import masked_answer

        pq.write_table(pa.table(dict(masked_answer(columns))), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
