"""Reading from the command line: join (training sets) and get (online values)."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

import featuredb as fdb
from featuredb.cli.output import (
    cell,
    chosen_features,
    count,
    features_options,
    file_argument,
    iso,
    json_option,
    print_json,
    print_table,
    size,
)
from featuredb.cli.snapshots import at_option, view
from featuredb.errors import FileError, Problem, input_error
from featuredb.schema import DTYPES, split_reference

if TYPE_CHECKING:
    from featuredb.database import Database
    from featuredb.offline.training import TrainingSet
    from featuredb.schema import FeatureTable

_OUTPUT_SUFFIXES = (".parquet", ".pq", ".csv")


@click.command()
@file_argument
@click.argument("entities", metavar="ENTITIES", type=click.Path())
@click.argument("out", metavar="OUT", type=click.Path())
@features_options
@click.option("--known-at", metavar="TIME|COLUMN", help="Use only what was known by then.")
@click.option("--event-timestamp-column", metavar="COLUMN", default="event_timestamp", show_default=True)
@click.option("--include-event-timestamps", is_flag=True, help="Add TABLE__event_timestamp for each table.")
@click.option("--threads", metavar="N", type=int, help="Use at most N threads instead of one for each core.")
@click.option("--explain", is_flag=True, help="Tell what was searched and read, how, and in what time.")
@at_option
@json_option
def join(
    file: str,
    entities: str,
    out: str,
    features: Sequence[str],
    service: str | None,
    full_feature_names: bool,
    known_at: str | None,
    event_timestamp_column: str,
    include_event_timestamps: bool,
    threads: int | None,
    explain: bool,
    at: str | None,
    as_json: bool,
) -> None:
    """Join features onto the rows of ENTITIES as they were at each row's event timestamp, and write OUT.

    ENTITIES is a Parquet or CSV file with the entity keys and an event timestamp; OUT ends in .parquet or
    .csv and is replaced if it exists. CSV files are held in memory, Parquet files are streamed.
    """
    wanted = chosen_features(features, service)
    if not out.lower().endswith(_OUTPUT_SUFFIXES):
        raise click.BadParameter(f"must end in one of {', '.join(_OUTPUT_SUFFIXES)}.", param_hint="OUT")
    began = time.perf_counter()
    with fdb.open(file, read_only=True) as db:
        held = view(db, at)
        if out.lower().endswith(".csv"):
            _refuse_nested(held, wanted)
        training = held.get_historical_features(
            entities,
            wanted,
            known_at=known_at,
            full_feature_names=full_feature_names,
            include_event_timestamps=include_event_timestamps,
            event_timestamp_column=event_timestamp_column,
            threads=threads,
        )
        rows = _write_csv(training, out) if out.lower().endswith(".csv") else training.to_parquet(out)
        commit = training.commit_id
    seconds = time.perf_counter() - began
    nbytes = os.path.getsize(out)
    if as_json:
        explained = {"explain": training.explain().to_dict()} if explain else {}
        print_json({"rows": rows, "out": out, "bytes": nbytes, "commit_id": commit, "seconds": seconds, **explained})
        return
    click.echo(f"{out}: {count(rows, 'row')}, {size(nbytes)}, joined at commit {commit} in {seconds:.2f} s")
    if explain:
        click.echo(str(training.explain()))


def _refuse_nested(db: Database, wanted: str | Sequence[str]) -> None:
    """An `InputError` that names every feature asked for that a CSV file cannot hold."""
    problems = [
        Problem(f"is {feature.dtype}, which a CSV file cannot hold; write a .parquet file", feature.name)
        for _, asked, table, _ in _asked(db, wanted)
        for feature in table.features
        if feature.name == asked and DTYPES[feature.dtype].is_nested
    ]
    if problems:
        raise input_error("features", problems)


def _write_csv(training: TrainingSet, path: str) -> int:
    """Write the training set as CSV, whole or not at all; returns the rows."""
    frame = training.to_pandas()
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        frame.to_csv(temporary, index=False)
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:  # also when the user interrupts
        with suppress(OSError):
            os.remove(temporary)
    return len(frame)


@click.command()
@file_argument
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@features_options
@click.option("--now", metavar="TIME", help="Measure max ages from this time instead of the current one.")
@at_option
@json_option
def get(
    file: str,
    keys: Sequence[str],
    features: Sequence[str],
    service: str | None,
    full_feature_names: bool,
    now: str | None,
    at: str | None,
    as_json: bool,
) -> None:
    """Read the latest feature values of one or more keys.

    A KEY is entity=value, or entity=value,entity=value if the features have several entities:

    \b
      featuredb get f.fdb --service delay origin=JFK origin=LGA
      featuredb get f.fdb -f route:distance carrier=AA,dest=ORD
    """
    wanted = chosen_features(features, service)
    with fdb.open(file, read_only=True) as db:
        held = view(db, at)
        columns = parse_keys(keys, _entities(held, wanted))
        response = held.get_online_features(wanted, columns, now=now, full_feature_names=full_feature_names)
    values, statuses = response.to_dict(), response.statuses
    if as_json:
        events = {table: [iso(moment) for moment in times] for table, times in response.event_timestamps.items()}
        print_json({"values": values, "statuses": statuses, "event_timestamps": events})
        return
    rows = []
    for row, key in enumerate(keys):
        rows += [(key, name, cell(values[name][row]), codes[row].name) for name, codes in statuses.items()]
    print_table(("key", "feature", "value", "status"), rows)


def _asked(db: Database, wanted: str | Sequence[str]) -> list[tuple[str, str, FeatureTable, Mapping[str, str]]]:
    """Each feature asked for: (name of table or alias, feature, table, entity to column as the alias has it)."""
    service = db.get_feature_service(wanted) if isinstance(wanted, str) else None
    references, aliases = (wanted, {}) if service is None else (service.features, service.aliases)
    asked = []
    for name, feature in map(split_reference, references):
        alias = aliases.get(name)
        table = db.get_feature_table(name if alias is None else alias.table)
        asked.append((name, feature, table, {} if alias is None else alias.keys))
    return asked


def _entities(db: Database, wanted: str | Sequence[str]) -> dict[str, str]:
    """The entities of the features asked for, or the key columns of aliases, with their dtypes."""
    return {
        columns.get(entity, entity): db.get_entity(entity).dtype
        for _, _, table, columns in _asked(db, wanted)
        for entity in table.entities
    }


def parse_keys(keys: Sequence[str], entities: Mapping[str, str], of: str = "these features") -> dict[str, list[Any]]:
    """The keys as a list of values for each entity; an `InputError` lists every problem of all keys."""
    from featuredb.frames import as_column
    from featuredb.frames.arrays import to_pylist

    form = ",".join(f"{name}=VALUE" for name in entities)
    # A comma separates only where an entity's name follows, so values may contain commas.
    separator = re.compile(rf",(?=(?:{'|'.join(map(re.escape, entities))})=)")
    problems = []
    texts: dict[str, list[str | None]] = {name: [] for name in entities}
    for row, key in enumerate(keys):
        parts = [part.partition("=") for part in separator.split(key)]
        values = {name: value for name, _, value in parts}
        if len(values) != len(parts) or set(values) != set(entities) or not all(equals for _, equals, _ in parts):
            problems.append(Problem(f"is not a key of {of}; write {form}", None, row, repr(key)))
            continue
        for name, value in values.items():
            texts[name].append(value)
    if problems:
        raise input_error("keys", problems)
    columns = {}
    for name, dtype in entities.items():
        converted = as_column(texts[name], DTYPES[dtype], name, text=True)
        problems += converted.problems()
        columns[name] = to_pylist(converted.column)
    if problems:
        raise input_error("keys", problems)
    return columns
