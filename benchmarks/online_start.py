"""The first online value of a new process, from its start: Python and imports included."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.check import Answer
from benchmarks.join import REFERENCES
from benchmarks.online_one import ROW, prepare_featuredb, prepare_lmdb, tuples_answer, wanted_keys
from benchmarks.peers import Case, System
from benchmarks.process import timed_process
from benchmarks.workload import FEATURES, KEY

_FEATUREDB = f"""
import sys
import featuredb as fdb
with fdb.open(sys.argv[1], read_only=True) as db:
    print(list(db.online_reader({REFERENCES}).get(int(sys.argv[2])).values()), flush=True)
"""
_ONE_ROW = f"""
import sys
import featuredb as fdb
with fdb.open(sys.argv[1], read_only=True) as db:
    values = db.get_online_features({REFERENCES}, [{{{KEY!r}: int(sys.argv[2])}}]).to_dict()
    print([values[name][0] for name in {list(FEATURES)}], flush=True)
"""
_LMDB = f"""
import struct
import sys
import lmdb
env = lmdb.open(sys.argv[1], subdir=False, readonly=True, lib_version=0)
with env.begin() as txn:
    *values, category, nulls = struct.unpack({ROW.format!r}, txn.get(int(sys.argv[2]).to_bytes(8, "big")))
values.append(category.rstrip(b"\\0").decode())
print([None if nulls >> place & 1 else value for place, value in enumerate(values)], flush=True)
env.close()
"""


def _load(program: str, file: str) -> Callable[[Path], Case]:
    def load(folder: Path) -> Case:
        key = str(wanted_keys(folder, "one")[0])

        def run() -> tuple[float, str]:
            return timed_process(["-c", program, str(folder / file), key])

        def answer(line: str) -> Answer:
            row: tuple[Any, ...] = tuple(ast.literal_eval(line))
            return tuples_answer([row])

        return Case(run, answer, own_clock=True)

    return load


SYSTEMS = (
    System(
        "online",
        "start",
        "featuredb, reader.get",
        "a reader is prepared in the timing, too; modules are compiled to bytecode beforehand",
        _load(_FEATUREDB, "online.fdb"),
        prepare_featuredb,
        data="online",
        elsewhere=True,
    ),
    System(
        "online",
        "start",
        "featuredb, get_online_features",
        "one row",
        _load(_ONE_ROW, "online.fdb"),
        prepare_featuredb,
        data="online",
        elsewhere=True,
    ),
    System(
        "online",
        "start",
        "py-lmdb get, struct",
        "one row, decoded",
        _load(_LMDB, "online.lmdb"),
        prepare_lmdb,
        data="online",
        elsewhere=True,
    ),
)
