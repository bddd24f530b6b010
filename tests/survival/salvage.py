"""Salvage: files with all kinds of content, damaged in random places, and what `salvage` makes of each.

A damaged file is salvaged in a child. The new file must be in order and good for more work; every row in it, of
history and online, must be one of the file at the commit that the report names, and what is missing must be
in the report. Such a file is ``whole``, or a ``part``. A file without a meta page that is in order is ``refused``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import featuredb as fdb
from featuredb.offline import append, ingest
from featuredb.recovery.segments import REPLACED_BACK
from featuredb.storage import encode, tail
from featuredb.storage.rescue import DEFINITIONS_OLDER

from . import children
from .results import Outcome
from .runs import NAME, Plan, Runner, emptied, scratch
from .workload import DAYS, T0, USERS, small_limits

STEPS = 25
CASES_PER_FILE = 50
WRITTEN_EVERY = 5
PAGE_BYTES = 4096
SHOPS = [f"shop {number:03d}" for number in range(90)]
# Rows of small ingests, rows of a tail, rows of a chunk: from segments for everything to tails for everything.
LIMITS = ((0, 1, 8), (2, 3, 64), (4, 9, 1 << 19), (1024, 4096, 256))
# Each row of history, and the online row of each key, by table. A row is JSON of key, time and values by name.
Content = dict[str, tuple[list[str], dict[str, str]]]


@dataclass(frozen=True)
class Made:
    """A file, and its content after each commit."""

    content: bytes
    after: dict[int, Content]


def content_of(db: fdb.Database) -> Content:
    """Every row of history, and every online row of the keys that the workload uses."""
    found: Content = {}
    for table in db.list_feature_tables():
        references = [f"{table.name}:{name}" for name in table.feature_names]
        frame = db.get_historical_features(None, references).to_pandas()
        history = [_text(table, row) for row in frame.to_dict("records")]
        found[table.name] = sorted(history), _online(db, table, references) if table.online else {}
    return found


def _online(db: fdb.Database, table: fdb.FeatureTable, references: list[str]) -> dict[str, str]:
    keys: dict[str, list[Any]] = {name: [] for name in table.entities}
    if table.entities == ["shop"]:
        keys["shop"] = SHOPS
    elif "day" in keys:
        keys |= {"user": [user for user in USERS for _ in DAYS], "day": DAYS * len(USERS)}
    else:
        keys["user"] = USERS
    values = db.get_online_features(references, keys, now="2030-01-01")
    shown, times = values.to_dict(), values.event_timestamps[table.name]
    found = {}
    for at, time in enumerate(times.tolist()):
        if time is not None:
            row = {name: column[at] for name, column in shown.items()} | {"event_timestamp": time}
            found[json.dumps([keys[name][at] for name in table.entities])] = _text(table, row)
    return found


def _text(table: fdb.FeatureTable, row: Mapping[str, Any]) -> str:
    key = [_plain(row[name]) for name in (*table.entities, "event_timestamp")]
    return json.dumps([key, {name: _plain(row[name]) for name in table.feature_names}])


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if hasattr(value, "isoformat"):
        return value.replace(tzinfo=None).isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return None if value != value else value


# --- files ----------------------------------------------------------------------------------------


def make(seed: int) -> Made:
    """A file after the steps of a plan and, somewhere among them, larger ingests into a table of many chunks."""
    with scratch() as folder:
        made = children.one(lambda: _make(seed, folder))
        if isinstance(made, children.Died):
            raise RuntimeError(f"the workload of seed {seed} ended by {made}")
        after = {int(commit): content for commit, content in made.items()}
        return Made((folder / NAME).read_bytes(), after)


def _make(seed: int, folder: Path) -> dict[int, Content]:
    small_limits()
    rng = random.Random(seed)
    small_rows, tail_rows, chunk_rows = rng.choice(LIMITS)
    ingest.SMALL_INGEST_ROWS_MAX = append.APPENDED_ROWS_MAX = small_rows  # type: ignore[misc]
    tail.TAIL_ROWS_MAX = tail_rows  # type: ignore[misc]
    encode.CHUNK_ROWS_MAX = chunk_rows  # type: ignore[misc]
    plan = Plan.of(seed, STEPS)
    loads = sorted(rng.sample(range(2, len(plan.steps)), 3))
    runner, after = Runner(plan, folder), dict[int, Content]()

    def note() -> None:
        log = runner.open().log()
        if log:
            after[log[-1].id] = content_of(runner.open())

    for number, step in enumerate(plan.steps):
        runner.run(step)
        note()
        if number in loads:
            _load(runner.open(), rng, note)
        elif number > loads[-1] and rng.random() < 0.1 and not runner.open().list_snapshots():
            runner.open().forget([{"shop": rng.choice(SHOPS)}])
            note()
    runner.close()
    return after


def _load(db: fdb.Database, rng: random.Random, note: Callable[[], None]) -> None:
    features = [fdb.Feature("n", "int64"), fdb.Feature("price", "float64"), fdb.Feature("word", "string")]
    features += [fdb.Feature("blob", "bytes"), fdb.Feature("flag", "bool"), fdb.Feature("tags", "list[string]")]
    db.apply([fdb.Entity("shop", "string"), fdb.FeatureTable("sales", ["shop"], features)])
    note()
    ingest.INGEST_BATCH_ROWS = rng.choice([40, 1000])  # type: ignore[misc]
    rows = range(rng.choice([30, 400]))
    data = {
        "shop": [rng.choice(SHOPS) for _ in rows],
        "event_timestamp": [T0 + timedelta(hours=rng.randrange(60)) for _ in rows],
        "n": [rng.choice([None, rng.randrange(100), rng.randrange(1 << 60)]) for _ in rows],
        "price": [rng.choice([None, round(rng.random() * 100, 2)]) for _ in rows],
        "word": [rng.choice(["", "red", "green", "blue"]) for _ in rows],
        "blob": [rng.randbytes(rng.choice([0, 3, 300])) for _ in rows],
        "flag": [rng.random() < 0.5 for _ in rows],
        "tags": [["a" * rng.randrange(4)] * rng.randrange(3) for _ in rows],
    }
    data["blob"][0] = rng.randbytes(9000)
    db.ingest("sales", data)
    note()
    small_limits()


# --- damage ---------------------------------------------------------------------------------------


def _noise(content: bytearray, rng: random.Random) -> str:
    size = min(int(2 ** rng.uniform(0, 13)), len(content))
    at = rng.randrange(len(content) - size + 1)
    content[at : at + size] = rng.randbytes(size)
    return f"{size} random bytes from {at} on"


def _zeroed(content: bytearray, rng: random.Random) -> str:
    pages = len(content) // PAGE_BYTES
    first, count = rng.randrange(pages), rng.choice([1, 1, 1, 2, 5])
    end = min(first + count, pages)
    content[first * PAGE_BYTES : end * PAGE_BYTES] = bytes((end - first) * PAGE_BYTES)
    return f"pages {first} to {end - 1} of zeros"


def _cut(content: bytearray, rng: random.Random) -> str:
    size = rng.randrange(len(content) // 2, len(content))
    if rng.random() < 0.5:
        size -= size % PAGE_BYTES
    del content[size:]
    return f"cut to {size} bytes"


def _flipped(content: bytearray, rng: random.Random) -> str:
    at, bit = rng.randrange(len(content)), rng.randrange(8)
    content[at] ^= 1 << bit
    return f"bit {bit} of byte {at}"


def _exchanged(content: bytearray, rng: random.Random) -> str:
    pages = len(content) // PAGE_BYTES
    one, other = (rng.randrange(pages) * PAGE_BYTES for _ in range(2))
    page = content[one : one + PAGE_BYTES]
    content[one : one + PAGE_BYTES] = content[other : other + PAGE_BYTES]
    content[other : other + PAGE_BYTES] = page
    return f"the pages at {one} and {other} exchanged"


def _meta(content: bytearray, rng: random.Random) -> str:
    newest = max((0, PAGE_BYTES), key=lambda at: int.from_bytes(content[at + 144 : at + 152], "little"))
    content[newest : newest + PAGE_BYTES] = bytes(PAGE_BYTES)
    return "the newest meta page of zeros"


DAMAGES: dict[Callable[[bytearray, random.Random], str], int] = {
    _noise: 8,
    _zeroed: 4,
    _cut: 2,
    _flipped: 4,
    _exchanged: 1,
    _meta: 1,
}


def damaged(made: Made, seed: int, number: int) -> tuple[bytes, str]:
    """The content of a file with some damage, and what that is; number 0 has none."""
    content, rng, told = bytearray(made.content), random.Random(f"{seed} {number}"), list[str]()
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8]) if number else 0):
        (kind,) = rng.choices(list(DAMAGES), list(DAMAGES.values()))
        told.append(kind(content, rng))
    return bytes(content), f"seed {seed}, case {number}: {', '.join(told) or 'no damage'}"


# --- judgement ------------------------------------------------------------------------------------


def judged(made: Made, content: bytes, folder: Path, *, written: bool) -> str:
    """``whole``, ``part`` or ``refused``, or what is wrong with what `salvage` did; if `written`, also in later use."""
    source, target = emptied(folder) / "damaged.fdb", folder / "salvaged.fdb"
    source.write_bytes(content)
    try:
        report = fdb.salvage(source, target)
    except fdb.CorruptionError as error:
        if "can be salvaged" in str(error) and not target.exists():
            return "refused"
        return f"violation: refused: {error}"
    except Exception as error:
        return f"violation: {type(error).__name__}: {error}"
    if source.read_bytes() != content:
        return "violation: the damaged file was changed"
    try:
        with fdb.open(target) as db:
            found = content_of(db)
            # Of an older state the log may lack the last records.
            commits = [commit for commit in sorted(made.after) if commit >= report.commit_id or not report.is_older]
            verdicts = [compared(made, commit, found, report) for commit in commits if report.is_older] or [
                compared(made, commits[-1], found, report)
            ]
            verdict = next((one for one in verdicts if not one.startswith("violation")), verdicts[0])
            if content == made.content and (report.lost or report.damaged_pages or verdict != "whole"):
                verdict = f"violation: of a file in order: {verdict}, {report}"
            if written:
                perform_more(db)
            if written and not (again := db.verify()).ok:
                verdict = f"violation: after more work: {again}"
    except Exception as error:
        return f"violation: the new file: {type(error).__name__}: {error}"
    return verdict


def compared(made: Made, commit: int, after: Content, report: fdb.SalvageReport) -> str:
    """Nothing may be there that was not, and nothing missing that the report is silent about."""
    before, lost = made.after[commit], [str(finding) for finding in report.lost]
    verdict = "whole"
    redefined = DEFINITIONS_OLDER in report.damaged_pages
    for name, (history, online) in after.items():
        if name not in before and redefined and not history:
            continue
        if name not in before:
            return f"violation: table {name} is new: {report}"
        rows, values = before[name]
        strange = set(history) - set(rows)
        if strange and redefined:
            # Of a table whose features the last commit changed.
            strange = {row for row in strange if not any(_agree(row, other) for other in rows)}
        if strange and any(line.startswith(f"table {name}") and REPLACED_BACK in line for line in lost):
            verdict = "part, replaced rows are back"
            strange = {row for row in strange if not _was_there(row, made, commit, name)}
        if strange or len(set(history)) < len(history):
            return f"violation: rows of {name} that were not there: {sorted(strange)[:2]}: {report}"
        others = [row for key, row in online.items() if row not in history and values.get(key) != row]
        if redefined:
            others = [row for row in others if not any(_agree(row, other) for other in values.values())]
        if others:
            return f"violation: online rows of {name} that were not there: {others[:2]}: {report}"
    for name, (rows, values) in before.items():
        history, online = after.get(name, ([], {}))
        if name in after and set(rows) <= set(history) and values.items() <= online.items():
            continue
        verdict = "part" if verdict == "whole" else verdict
        named = any(line.startswith(f"table {name}") or "its definition is lost" in line for line in lost)
        if not named and "entries cannot be found" not in str(report):
            what = f"{len(rows) - len(history)} rows, {len(values.keys() - online.keys())} online keys"
            return f"violation: of {name} {what} are missing, and the report does not say so: {report}"
    return verdict


def _agree(text: str, other: str) -> bool:
    """Whether two rows have the same key and time, and the same values of the features that both have."""
    (key, values), (other_key, others) = json.loads(text), json.loads(other)
    return bool(key == other_key and all(value == others.get(name, value) for name, value in values.items()))


def _was_there(text: str, made: Made, commit: int, table: str) -> bool:
    """Whether a row was in a table at an earlier commit."""
    earlier = (content for number, content in made.after.items() if number < commit and table in content)
    return any(_agree(text, row) for content in earlier for row in content[table][0])


def perform_more(db: fdb.Database) -> None:
    """Write to every table."""
    for table in db.list_feature_tables():
        row: dict[str, Any] = {name: [1 if name == "day" else "new"] for name in table.entities}
        row |= {"event_timestamp": [T0], **{name: [None] for name in table.feature_names}}
        db.ingest(table.name, row)


def run(count: int, seed: int) -> Outcome:
    """Salvage `count` damaged files."""
    outcome = Outcome("salvage", seed)
    with scratch() as folder:
        for done in range(0, count, CASES_PER_FILE):
            made = make(seed)
            cases = ((number, *damaged(made, seed, number)) for number in range(min(CASES_PER_FILE, count - done)))

            def judge(case: tuple[int, bytes, str]) -> str:
                return judged(made, case[1], folder, written=case[0] % WRITTEN_EVERY == 0)  # noqa: B023

            for (_, _, where), verdict in children.each(judge, cases):
                outcome.add(verdict, where)
            seed += 1
    return outcome
