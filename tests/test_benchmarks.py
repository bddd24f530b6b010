"""The benchmarks: all systems agree at a tiny size, a wrong answer stops them, the README shows the kept results."""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featuredb as fdb
from benchmarks import checksums, child, commits, join_sqlite, lab, measures, pagecache, peers, run, scale
from benchmarks.__main__ import main
from benchmarks.check import WrongAnswerError, compare, digest, digests
from benchmarks.data import generate
from benchmarks.history import Entities, make_history
from benchmarks.kept import Kept, read_kept
from benchmarks.measures import extra_memory
from benchmarks.process import PROJECT, AnonymousPeak, BenchmarkError, Child, anonymous_bytes, in_process
from benchmarks.report import END, START, block, render
from benchmarks.targets import TARGETS, Check, Target
from benchmarks.units import duration
from benchmarks.workload import FEATURES, KEY, MAX_AGE_US, SMALL_ROWS, TIME, Workload, read_expected, read_workload

# Few rows per entity: else a newer row hides nearly every one that is exactly as old as the max age, or just older.
TINY = Workload(rows=2_000, entities=600, entity_rows=2_000)
SIZES = ["--rows", "2000", "--entities", "600", "--entity-rows", "2000", "--repeat", "1"]


class InThisProcess(child.Measured):
    """Only one system is loaded at a time, for py-lmdb opens a file once in a process."""

    loaded: InThisProcess | None = None

    def __init__(self, folder: Path, what: str, name: str) -> None:
        self.arguments = folder, what, name
        self.pid = os.getpid()

    def ask(self, question: str) -> Any:
        if InThisProcess.loaded is not self:
            if InThisProcess.loaded is not None:
                InThisProcess.loaded.close()
            super().__init__(*self.arguments)
            InThisProcess.loaded = self
        return super().ask(question)

    def close(self) -> None:
        if InThisProcess.loaded is self:
            InThisProcess.loaded = None
            super().close()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes of their own cost a second each; two tests use them."""
    monkeypatch.setattr(lab, "in_process", child.act)
    monkeypatch.setattr(scale, "in_process", child.act)
    monkeypatch.setattr(lab, "Child", InThisProcess)
    # Garbage is collected between runs, which need not look at what the tests have loaded.
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workload") / "main"
    generate(path, TINY)
    return path


def kept_after(task: str, tmp_path: Path, *more: str) -> dict[str, Any]:
    """What a run of the task at a tiny size keeps."""
    results = tmp_path / "results.json"
    assert main([task, *SIZES, "--json", str(results), *more]) == 0
    kept: dict[str, Any] = json.loads(results.read_text())["tasks"][task]
    return kept


@pytest.mark.parametrize("task", ["join", "ingest", "online", "cold"])
def test_all_systems_of_a_task_give_the_expected_answers(task: str, in_this_process: None, tmp_path: Path) -> None:
    kept = kept_after(task, tmp_path)
    measured = {(result["what"], result["system"]) for result in kept["results"]}
    left_out = {(left["what"], left["system"]) for left in kept["left_out"]}
    systems = [system for system in peers.all_systems() if system.task == task]
    assert measured | left_out == {(system.what, system.name) for system in systems}
    # The test environment has every package; a server and what is new in featuredb it may lack.
    assert {left["why"] for left in kept["left_out"]} <= {system.lacks() for system in systems if system.lacks()}
    assert not any("pip install" in left["why"] for left in kept["left_out"])
    assert all(len(result["seconds"]) == 1 and result["seconds"][0] > 0 for result in kept["results"])
    elsewhere = {(system.what, system.name) for system in systems if system.elsewhere}
    for result in kept["results"]:
        assert (result["peak_bytes"] is None) == ((result["what"], result["system"]) in elsewhere)
        assert result["peak_bytes"] is None or result["peak_anonymous_bytes"] > 1 << 20


def test_scale_measures_every_system_at_every_size_and_draws_them(in_this_process: None, tmp_path: Path) -> None:
    kept = kept_after("scale", tmp_path, "--large-rows", "4000")
    sizes = {(result["history_rows"], result["entity_rows"]) for result in kept["results"] if result["what"] == "scale"}
    assert sizes == {(20, 2_000), (200, 2_000), (2_000, 2_000), (2_000, 2), (2_000, 20), (2_000, 200)}
    assert not kept["left_out"]
    for size in sizes:
        at_size = {r["system"] for r in kept["results"] if (r["history_rows"], r["entity_rows"]) == size}
        assert {"featuredb, to_numpy", "pandas merge_asof, both sorted", "DuckDB ASOF JOIN"} < at_size
        assert {"Polars join_asof, history sorted", "SQLite primary key, max() per row"} < at_size
    large = [result for result in kept["results"] if result["what"] == "large"]
    assert [result["history_rows"] for result in large] == [2_000, 4_000]
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "scale.svg").read_text()


def test_all_is_every_task(in_this_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "all_systems", list)
    monkeypatch.setattr(run, "measure_scale", lambda *_: ([], []))
    results = tmp_path / "results.json"
    monkeypatch.setattr("benchmarks.plot.plot", lambda *_: None)
    assert main(["all", *SIZES, "--json", str(results)]) == 0
    assert tuple(json.loads(results.read_text())["tasks"]) == run.TASKS


def test_results_of_other_tasks_are_kept_and_the_readme_shows_all(
    in_this_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    few = [system for system in peers.all_systems() if system.name in ("numpy.take (limit)", "Python dict")]
    monkeypatch.setattr(run, "all_systems", lambda: few)
    readme, results = tmp_path / "README.md", tmp_path / "results.json"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    kept_after("join", tmp_path)
    capsys.readouterr()
    kept_after("online", tmp_path, "--readme", str(readme))
    both = read_kept(results)
    assert set(both["tasks"]) == {"join", "online"}
    assert readme.read_text() == f"before\n{START}\n{render(both)}{END}\nafter\n"
    assert capsys.readouterr().out == render(both)


# --- a process for each -------------------------------------------------------------------------


def test_a_system_runs_in_a_process_of_its_own(folder: Path) -> None:
    measured = Child(folder, "join", "numpy.take (limit)")
    try:
        rest = measured.ask("rest")
        with AnonymousPeak(measured.pid) as sampled:
            assert measured.ask("run") > 0
        assert measured.ask("digests") == read_expected(folder)["join"]
        assert measured.ask("sizes")["peak_bytes"] > 1 << 20
        assert sampled.peak_bytes >= rest // 2 > 1 << 20
        assert anonymous_bytes(measured.pid) > 1 << 20
    finally:
        measured.close()


def test_a_failing_system_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"(?s)join: numpy\.take.*failed.*FileNotFoundError"):
        Child(tmp_path, "join", "numpy.take (limit)")
    with pytest.raises(BenchmarkError, match=r"(?s)prepare.*DuckDB.*failed"):
        in_process("prepare", tmp_path, what="join", name="DuckDB ASOF JOIN")


# --- wrong answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "what", "name"),
    [
        ("join", "join", "Polars join_asof, both sorted"),
        ("join", "join", "SQLite primary key, max() per row"),
        ("join", "small", "featuredb"),
        ("ingest", "ingest", "Parquet (zstd)"),
        ("online", "many", "Python dict"),
        ("online", "load", "featuredb, materialize"),
        ("cold", "cold_one", "SQLite, cold"),
    ],
)
def test_a_wrong_answer_stops_the_benchmark(
    task: str, what: str, name: str, in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    system = peers.find_system(what, name)

    def load(folder: Path) -> peers.Case:
        case = system.load(folder)
        return replace(case, answer=lambda result: _one_value_changed(case.answer(result)))

    wrong = replace(system, load=load)
    monkeypatch.setattr(run, "all_systems", lambda: [wrong])
    monkeypatch.setattr(child, "find_system", lambda what, name: wrong)
    assert main([task, *SIZES, "--json", str(tmp_path / "results.json")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {what}: {name} gives a wrong answer; columns different: visits"
    assert not (tmp_path / "results.json").exists()


def _one_value_changed(answer: Any) -> dict[str, Any]:
    values = answer["visits"]
    values = list(values) if isinstance(values, tuple | list) else values.to_pylist()
    place = next(place for place, value in enumerate(values) if value is not None)
    values[place] += 1
    return {**answer, "visits": values}


def test_a_missing_peer_is_said_and_left_out(
    in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    few = [system for system in peers.all_systems() if system.what == "join" and "featuredb" not in system.name]
    monkeypatch.setattr(run, "all_systems", lambda: few)
    monkeypatch.setattr(peers, "find_spec", lambda module: None)
    kept = kept_after("join", tmp_path)
    assert {left["system"] for left in kept["left_out"]} == {
        "Polars join_asof, history sorted",
        "Polars join_asof, both sorted",
        "DuckDB ASOF JOIN",
    }
    output = capsys.readouterr()
    assert 'polars is not installed (pip install "featuredb[bench]")' in output.err
    assert (
        "Left out: Polars join_asof, history sorted (join), Polars join_asof, both sorted (join): polars" in output.out
    )


def test_a_program_that_is_not_found_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert peers.find_system("one", "Redis GET").lacks() == "there is no redis-server on the PATH"


# --- what the systems do ------------------------------------------------------------------------


def test_sqlite_joins_every_entity_row_by_primary_key(folder: Path) -> None:
    system = peers.find_system("join", "SQLite primary key, max() per row")
    assert system.prepare is not None
    system.prepare(folder)
    case = system.load(folder)
    try:
        assert case.rows is None
        assert len(case.run()) == TINY.entity_rows
    finally:
        case.close()
    connection = join_sqlite.open_sqlite(folder)
    try:
        plan = [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {join_sqlite.SQLITE_QUERY}")]
    finally:
        connection.close()
    # The history is only ever searched: for the newest time, then for its row.
    assert sum("USING PRIMARY KEY" in step for step in plan) == 2
    assert sum("SCAN" in step for step in plan) == 1


def test_pages_leave_the_cache_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    pagecache.fill(path)
    assert pagecache.resident_share(path) == 1.0
    pagecache.drop(path)
    dropped = pagecache.resident_share(path)
    if dropped == 1.0:
        pytest.skip("the temporary folder is in memory")
    assert dropped == 0.0


def test_the_variants_are_what_they_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    zipf = Workload(rows=10_000, entities=100, entity_rows=1, zipf=True)
    _, counts = np.unique(Entities(rng, zipf).draw(rng, zipf.rows), return_counts=True)
    shares = np.sort(counts)[::-1] / zipf.rows
    harmonic = (1 / np.arange(1, 101)).sum()
    assert shares[:3] == pytest.approx([1 / harmonic, 1 / (2 * harmonic), 1 / (3 * harmonic)], rel=0.1)
    generate(tmp_path / "online", Workload(rows=200, entities=100, entity_rows=1, every_entity=True))
    assert pq.read_table(tmp_path / "online" / "latest.parquet").num_rows == 100
    assert read_workload(tmp_path / "online").every_entity


def test_parts_of_history_follow_one_another(folder: Path) -> None:
    rng = np.random.default_rng(0)
    entities = Entities(rng, TINY)
    offsets = make_history(rng, entities, entities.draw(rng, 500), 1_000, 2_000_000).offsets
    assert 1_000 <= offsets.min() < offsets.max() <= 2_000_000


# --- digests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "other"),
    [
        ("price", [1.5, None], [1.5, 0.0]),
        ("price", [1.5, float("nan")], [1.5, None]),
        ("price", [0.1 + 0.2], [0.3]),
        ("visits", [1, 2], [2, 1]),
        ("active", [True, None], [True, False]),
        ("category", ["group_01", None], ["group_01", "unknown"]),
        ("category", ["group_01"], ["group_02"]),
    ],
)
def test_digests_differ_when_a_value_or_null_does(name: str, values: list[Any], other: list[Any]) -> None:
    assert digest(values, name) != digest(other, name)


def test_digests_do_not_depend_on_how_a_column_is_held() -> None:
    values = [3, None, 5]
    chunked = pa.chunked_array([[3], [None, 5]])
    floats = pa.array([3.0, None, 5.0])
    assert digest(values, "visits") == digest(chunked, "visits") == digest(floats, "visits")
    words = ["group_03", None]
    assert digest(words, "category") == digest(pa.array(words).dictionary_encode(), "category")
    assert digest([1, 0], "active") == digest(pa.array([True, False]), "active")


def test_a_missing_and_a_surplus_column_are_wrong() -> None:
    with pytest.raises(WrongAnswerError, match="them gives a wrong answer; columns missing: a; not asked for: b"):
        compare({"a": "1"}, {"b": "1"}, "them")


def test_the_expected_join_is_that_of_the_oracle(folder: Path) -> None:
    tables: dict[int, oracle.Table] = {}
    for row in pq.read_table(folder / "history.parquet").to_pylist():
        stored = oracle.Row((row[KEY],), in_us(row[TIME]), None, {name: row[name] for name in FEATURES})
        table = tables.setdefault(row[KEY], oracle.Table(list(FEATURES), MAX_AGE_US))
        table.history.append(stored)
    answer: dict[str, list[Any]] = {name: [] for name in FEATURES}
    ages = []
    for asked in pq.read_table(folder / "entities.parquet").to_pylist():
        table = tables.get(asked[KEY], oracle.Table(list(FEATURES), MAX_AGE_US))
        best = table.join((asked[KEY],), in_us(asked[TIME]))
        ages += [] if best is None else [in_us(asked[TIME]) - best.event]
        for name, values in answer.items():
            values.append(None if best is None else best.values[name])
    assert digests(answer) == read_expected(folder)["join"]
    assert digests({name: values[:SMALL_ROWS] for name, values in answer.items()}) == read_expected(folder)["small"]
    assert 0 < len(ages) < TINY.entity_rows
    assert min(ages) == 0
    assert max(ages) == MAX_AGE_US


def in_us(moment: datetime) -> int:
    """Microseconds of a timestamp of the workload, which is naive UTC."""
    return (moment - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def test_history_has_no_ties_and_arrives_out_of_order(folder: Path) -> None:
    history = pq.read_table(folder / "history.parquet")
    keys, times = history[KEY].to_numpy(), history[TIME].to_numpy()
    assert len(set(zip(keys.tolist(), times.tolist(), strict=True))) == TINY.rows
    assert 0 < np.mean(times[1:] < times[:-1]) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "rows must be at least 1"),
        (["--entities", "2000000"], "entities must be at most 1,048,576"),
        (["--repeat", "0"], "repeat must be at least 1"),
        (["--rows", "10", "--large-rows", "10"], "large-rows must be more than rows"),
        (["render"], "render goes alone, and needs --json"),
        (["joins"], "there is no task joins"),
        (["join", "--json", "no/such/folder.json"], "there is no folder no/such"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_readme_without_markers_is_refused(tmp_path: Path, capsys: Any) -> None:
    results, readme = tmp_path / "results.json", tmp_path / "README.md"
    results.write_text(json.dumps(_results()))
    readme.write_text("no markers")
    assert main(["render", "--json", str(results), "--readme", str(readme)]) == 1
    assert "has no lines <!-- benchmarks:start -->" in capsys.readouterr().err
    assert readme.read_text() == "no markers"


# --- the tables ---------------------------------------------------------------------------------


def test_ratios_are_of_medians_and_per_row() -> None:
    lines = render(_results()).splitlines()
    assert "| Ingest 1,000 rows | 2.00 s | 5.00 s (2.50) |" in lines
    assert "| Ingest 1,000 rows | featuredb | 2.00 s (1.00 s – 9.00 s) | 1.00 | 1.0 MiB | 2.0 MiB |" in lines
    assert "|  | SQLite executemany (100 rows) | 500 ms (100 ms – 600 ms) | 2.50 | 100 MiB |  |" in lines


def test_the_short_table_shows_the_first_of_featuredb_and_the_best_of_others() -> None:
    results = _results()
    measured = results["tasks"]["ingest"]["results"]
    measured.insert(1, {**measured[0], "system": "featuredb, in time order", "seconds": [0.1, 0.1, 0.1]})
    measured.append({**measured[-1], "system": "SQLite, slower", "seconds": [9.0, 9.0, 9.0]})
    assert "| Ingest 1,000 rows | 2.00 s | 5.00 s (2.50) |" in render(results).splitlines()


def test_a_target_says_what_is_reached() -> None:
    kept = Kept(_results())
    speedup = next(target.unit for target in TARGETS if target.unit.more)
    slower = next(target.unit for target in TARGETS if not target.unit.more)

    def met(unit: Any, value: float, must: float | None, aim: float | Check | None) -> str:
        return Target("it", unit, lambda _: measures.Figure(value, value, value), must, aim).row(kept)[-1]

    assert [met(speedup, value, 2, 4) for value in (1.9, 2, 3.9, 4)] == ["no", "must", "must", "aim"]
    assert [met(slower, value, 4, 2) for value in (4.1, 4, 2.1, 2)] == ["no", "must", "must", "aim"]
    assert met(slower, 5, None, 4) == "no"
    assert met(slower, 5, None, None) == ""
    other = Check(1.0, slower, lambda _: measures.Figure(0.5, 0.5, 0.5))
    assert [met(slower, value, 4, other) for value in (3, 5)] == ["aim", "no"]
    assert Target("it", slower, lambda _: None, 1).row(kept)[-2:] == ("", "not measured")


def test_every_target_names_systems_that_exist() -> None:
    """With a result for every system, no target but those of what was not asked for stays without a figure."""
    results = [
        {"task": s.task, "what": s.what, "system": s.name, "seconds": [1.0], "rows": 10, "file_bytes": 1, "segments": n,
         "peak_bytes": 1, "peak_anonymous_bytes": 3, "rest_bytes": 1, "output_bytes": 1, "first_seconds": 1.0,
         "resident_share_max": 0.0}
        for s in peers.all_systems()
        for n in [10 if s.name.startswith("10 ") else 1]
    ]  # fmt: skip
    point = {**results[0], "what": "scale", "history_rows": 1_000, "entity_rows": 10}
    results += [point, {**point, "what": "large"}, {**point, "what": "large", "history_rows": 10_000}]
    task = {**_results()["tasks"]["ingest"], "results": results}
    kept = Kept({"format": 2, "tasks": {"join": task}})
    assert [target.what for target in TARGETS if target.row(kept)[-1] == "not measured"] == []
    assert extra_memory(kept).value == 1.0
    assert "N = 10,000" in render({"format": 2, "tasks": {"join": task}})


def test_segments_that_were_merged_count_as_not_measured() -> None:
    base = _results()["tasks"]["ingest"]["results"][0]
    names = ("one segment", "10 overlapping segments")

    def measured(segments: int) -> str:
        counts = (1, segments)
        results = [{**base, "what": "segments", "system": n, "segments": c} for n, c in zip(names, counts, strict=True)]
        kept = Kept({"tasks": {"join": {**_results()["tasks"]["ingest"], "results": results}}})
        return next(target.row(kept)[-1] for target in TARGETS if "unmerged" in target.what)

    assert [measured(10), measured(3)] == ["aim", "not measured"]


def test_durations_have_three_digits() -> None:
    assert [duration(s) for s in (123.4, 1.234, 0.0123, 0.000456, 1.2e-7, -0.002)] == [
        "123 s", "1.23 s", "12.3 ms", "456 µs", "0.12 µs", "-2.00 ms",
    ]  # fmt: skip


def test_the_readme_shows_the_kept_results() -> None:
    kept, readme = PROJECT / "benchmarks" / "results.json", PROJECT / "README.md"
    assert block(readme.read_text(encoding="utf-8")) == render(read_kept(kept))


def _results() -> dict[str, Any]:
    base = {"task": "ingest", "what": "ingest", "first_seconds": 9.0}
    task = {
        "command": "python -m benchmarks ingest",
        "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 4.0, "os": "Linux"},
        "versions": {"featuredb": "0"},
        "workload": {"rows": 1_000, "entities": 10, "entity_rows": 10, "online_keys": 100, "seed": 0},
        "repeat": 3,
        "results": [
            {**base, "system": "featuredb", "seconds": [2.0, 9.0, 1.0], "peak_bytes": 1 << 20, "file_bytes": 2 << 20,
             "rows": None},
            {**base, "system": "SQLite executemany", "seconds": [0.5, 0.1, 0.6], "peak_bytes": 100 << 20,
             "file_bytes": None, "rows": 100},
        ],
        "left_out": [],
    }  # fmt: skip
    return {"format": 2, "tasks": {"ingest": task}}


def test_small_commits_are_timed_beside_what_another_process_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commits.measure(tmp_path, rows=3000, seconds=0.3)
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == list(commits.BESIDE)
    for _, count, p50, p99, longest, _ in cells:
        assert int(count) > 0
        assert 0 < float(p50[:-3]) <= float(p99[:-3]) <= float(longest[:-3].replace(",", ""))
    with fdb.open(tmp_path / "commits.fdb") as db:
        small = sum(commit.table == "small" for commit in db.log())
        assert small == sum(int(row[1]) for row in cells)
        assert sum(commit.table == "large" for commit in db.log()) > 1


@pytest.mark.usefixtures("a_segment_each")
def test_checksums_cost_a_first_join_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checksums, "in_process", child.act)
    checksums.main([*SIZES[:-1], "2"])
    _, _, *rows, _, cost = capsys.readouterr().out.splitlines()
    cells = {row.strip("|").split("|")[0].strip(): row.strip("|").split("|")[-1].strip() for row in rows}
    assert list(cells) == [checksums.CHECKED, checksums.UNCHECKED, checksums.AGAIN]
    assert [checked == "0.0 MiB" for checked in cells.values()] == [False, True, True]
    assert re.fullmatch(r"Checking \d+ chunks takes .* of a first join\.", cost)
