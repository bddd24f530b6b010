"""The benchmarks: all systems agree at a tiny size, a wrong answer stops them, the README shows the kept results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import child, join, peers, run
from benchmarks.__main__ import main
from benchmarks.check import WrongAnswerError, compare, digest, digests
from benchmarks.data import generate
from benchmarks.report import END, START, block, duration, render
from benchmarks.workload import FEATURES, KEY, MAX_AGE_US, TIME, Workload, read_expected

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PROJECT = Path(run.__file__).parent.parent
# Few rows per entity: else a newer row hides nearly every one that is exactly as old as the max age, or just older.
TINY = Workload(rows=2_000, entities=600, entity_rows=2_000)
SIZES = ["--rows", "2000", "--entities", "600", "--entity-rows", "2000", "--repeat", "1"]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own cost a second each; one test uses them."""
    monkeypatch.setattr(run, "in_process", child.act)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workload")
    generate(path, TINY)
    return path


def test_all_systems_give_the_expected_answers(in_this_process: None, tmp_path: Path, capsys: Any) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    results = tmp_path / "results.json"
    assert main(["all", *SIZES, "--json", str(results), "--readme", str(readme)]) == 0

    kept = json.loads(results.read_text())
    measured = {(result["what"], result["system"]) for result in kept["results"]}
    assert measured == {(system.what, system.name) for system in peers.all_systems()}
    assert {what for what, _ in measured} == {"join", "ingest", "one", "many"}
    assert all(len(result["seconds"]) == 1 and result["seconds"][0] > 0 for result in kept["results"])
    assert all(result["peak_bytes"] > 1 << 20 for result in kept["results"])
    assert readme.read_text() == f"before\n{START}\n{render(kept)}{END}\nafter\n"
    assert capsys.readouterr().out == render(kept)


def test_a_system_runs_in_a_process_of_its_own(folder: Path) -> None:
    arguments = {"what": "join", "name": "numpy.take (limit)"}
    measured = run.in_process("measure", folder, **arguments, repeat=2)
    assert measured["digests"] == read_expected(folder)["join"]
    assert len(measured["seconds"]) == 2


def test_a_failing_system_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(run.BenchmarkError, match=r"(?s)numpy\.take.*failed.*FileNotFoundError"):
        run.in_process("measure", tmp_path, what="join", name="numpy.take (limit)", repeat=1)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("join", "Polars join_asof, both sorted"),
        ("join", "SQLite primary key, max() per row"),
        ("ingest", "Parquet (zstd)"),
        ("online", "Python dict"),
    ],
)
def test_a_wrong_answer_of_a_peer_stops_the_benchmark(
    task: str, name: str, in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    right = [system for system in peers.all_systems() if system.task == task and system.name == name]

    def wrong(system: peers.System) -> peers.System:
        def load(folder: Path) -> peers.Case:
            case = system.load(folder)
            return replace(case, answer=lambda result: _one_value_changed(case.answer(result)))

        return replace(system, load=load)

    systems = [wrong(system) for system in right]
    monkeypatch.setattr(run, "all_systems", lambda: systems)
    monkeypatch.setattr(child, "find_system", lambda what, _: next(s for s in systems if s.what == what))
    assert main([task, *SIZES, "--json", str(tmp_path / "results.json")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {systems[0].label} gives a wrong answer; columns different: visits"
    assert not (tmp_path / "results.json").exists()


def _one_value_changed(answer: Any) -> dict[str, Any]:
    values = pa.array(answer["visits"]) if isinstance(answer["visits"], tuple) else answer["visits"]
    values = values.to_pylist()
    place = next(place for place, value in enumerate(values) if value is not None)
    values[place] += 1
    return {**answer, "visits": values}


def test_a_missing_peer_is_said_and_left_out(
    in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda module: None)
    results = tmp_path / "results.json"
    assert main(["join", *SIZES, "--json", str(results)]) == 0
    kept = json.loads(results.read_text())
    assert {left["system"] for left in kept["left_out"]} == {
        "Polars join_asof, history sorted",
        "Polars join_asof, both sorted",
        "DuckDB ASOF JOIN",
    }
    output = capsys.readouterr()
    assert 'polars is not installed (pip install "featuredb[bench]")' in output.err
    assert "Left out, not installed: Polars" in output.out


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
    connection = join.open_sqlite(folder)
    try:
        plan = [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {join.SQLITE_QUERY}")]
    finally:
        connection.close()
    # The history is only ever searched: for the newest time, then for its row.
    assert sum("USING PRIMARY KEY" in step for step in plan) == 2
    assert sum("SCAN" in step for step in plan) == 1


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


def test_the_expected_join_is_that_of_a_plain_loop(folder: Path) -> None:
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in pq.read_table(folder / "history.parquet").to_pylist():
        rows.setdefault(row[KEY], []).append(row)
    limit = np.timedelta64(MAX_AGE_US, "us").astype(object)
    answer: dict[str, list[Any]] = {name: [] for name in FEATURES}
    ages = []
    for asked in pq.read_table(folder / "entities.parquet").to_pylist():
        known = [row for row in rows.get(asked[KEY], []) if asked[TIME] - limit <= row[TIME] <= asked[TIME]]
        best = max(known, key=lambda row: row[TIME], default=None)
        ages += [] if best is None else [asked[TIME] - best[TIME]]
        for name, values in answer.items():
            values.append(None if best is None else best[name])
    assert digests(answer) == read_expected(folder)["join"]
    assert 0 < len(ages) < TINY.entity_rows
    assert min(ages) == 0 * limit
    assert max(ages) == limit


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
        (["render"], "render needs --json"),
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


def test_ratios_are_of_medians_and_per_row() -> None:
    lines = render(_results()).splitlines()
    assert "| Ingest 1,000 rows | featuredb | 2.00 s | 1.00 | 1.0 MiB | 2.0 MiB |" in lines
    assert "|  | SQLite executemany (100 rows) | 500 ms | 2.50 | 100 MiB |  |" in lines


def test_durations_have_three_digits() -> None:
    assert [duration(s) for s in (123.4, 1.234, 0.0123, 0.000456, 1.2e-7)] == [
        "123 s", "1.23 s", "12.3 ms", "456 µs", "0.12 µs",
    ]  # fmt: skip


def test_the_readme_shows_the_kept_results() -> None:
    kept, readme = PROJECT / "benchmarks" / "results.json", PROJECT / "README.md"
    expected = render(json.loads(kept.read_text())) if kept.exists() else "No results yet.\n"
    assert block(readme.read_text(encoding="utf-8")) == expected


def _results() -> dict[str, Any]:
    base = {"task": "ingest", "what": "ingest", "first_seconds": 9.0}
    return {
        "task": "ingest",
        "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 4.0, "os": "Linux"},
        "versions": {"featuredb": "0"},
        "workload": {"rows": 1_000, "entities": 10, "entity_rows": 10, "seed": 0},
        "repeat": 3,
        "results": [
            {**base, "system": "featuredb", "seconds": [2.0, 9.0, 1.0], "peak_bytes": 1 << 20, "file_bytes": 2 << 20,
             "rows": None},
            {**base, "system": "SQLite executemany", "seconds": [0.5, 0.1, 0.6], "peak_bytes": 100 << 20,
             "file_bytes": None, "rows": 100},
        ],
        "left_out": [],
    }  # fmt: skip
