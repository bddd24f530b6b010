"""The file as a whole: info, tables, log, verify, backup, compact."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import click

import featuredb as fdb
from featuredb.cli.output import (
    age,
    cell,
    count,
    file_argument,
    iso,
    json_option,
    print_json,
    print_table,
    size,
)
from featuredb.recovery import OLDER
from featuredb.schema import FeatureTable
from featuredb.sources import FileSource

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _facts(db: fdb.Database) -> dict[str, Any]:
    """``db.info()`` with its times as ISO 8601 UTC."""
    facts = db.info()
    if facts["commit"] is not None:
        facts["commit"]["time"] = iso(datetime.fromisoformat(facts["commit"]["time"]))
    for table in facts["feature_tables"].values():
        for end in ("min", "max"):
            moment_us = table.pop(f"event_{end}_us")
            table[f"event_{end}"] = None if moment_us is None else iso(_EPOCH + timedelta(microseconds=moment_us))
    return facts


@click.command()
@file_argument
@json_option
def info(file: str, as_json: bool) -> None:
    """Show sizes, the last commit, and the rows of each feature table."""
    with fdb.open(file, read_only=True) as db:
        facts = _facts(db)
    if as_json:
        print_json(facts)
        return
    commit = facts["commit"]
    last = "no commit yet" if commit is None else f"commit {commit['id']} ({commit['operation']}) of {commit['time']}"
    click.echo(f"{facts['path']}: {size(os.path.getsize(facts['path']))}, {last}")
    counts = (("entities", "entity", "entities"), ("feature_services", "feature service", "feature services"))
    shown = [f"{facts[key]} {one if facts[key] == 1 else many}" for key, one, many in counts]
    click.echo(", ".join([count(len(facts["feature_tables"]), "feature table"), *shown]))
    click.echo(_space(facts))
    headers = ("table", "rows", "segments", "size", "online keys", "first event", "last event")
    rows = [
        (name, f"{table['rows']:,}", f"{table['segments']}", size(table["bytes"]), _online(table),
         table["event_min"], table["event_max"])
        for name, table in facts["feature_tables"].items()
    ]  # fmt: skip
    if rows:
        print_table(headers, rows, right=headers[1:5])


def _space(facts: dict[str, Any]) -> str:
    shown = [f"{kind} {size(facts[f'{kind}_bytes'])}" for kind in ("live", "free", "pinned")]
    reader, snapshots = facts["oldest_reader"], facts["snapshots"]
    if reader is not None:
        shown[-1] += f" by readers (the oldest: process {reader['pid']}, {count(reader['age'], 'transaction')} behind)"
    if snapshots:
        nbytes = sum(held["history_bytes"] + held["online_bytes"] for held in snapshots.values())
        shown.append(f"{count(len(snapshots), 'snapshot')} with {size(nbytes)} of their own")
    return ", ".join(shown)


def _online(table: dict[str, Any]) -> str:
    return "not online" if table["online_keys"] is None else f"{table['online_keys']:,}"


@click.command()
@file_argument
@json_option
def tables(file: str, as_json: bool) -> None:
    """Show the definitions: feature tables with their features and sources, and feature services."""
    with fdb.open(file, read_only=True) as db:
        facts = _facts(db)["feature_tables"]
        definitions = db.list_feature_tables()
        entities = {entity.name: entity for entity in db.list_entities()}
        services = db.list_feature_services()
    if as_json:
        print_json(
            {
                "entities": list(entities.values()),
                "feature_tables": [_definition(table, facts[table.name]) for table in definitions],
                "feature_services": services,
            }
        )
        return
    for table in definitions:
        keys = ", ".join(f"{name} ({entities[name].dtype})" for name in table.entities)
        click.secho(table.name, bold=True, nl=False)
        click.echo(f": {cell(table.description)}" if table.description else "")
        click.echo(f"  entities  {keys}")
        click.echo(f"  features  {', '.join(f'{feature.name} ({feature.dtype})' for feature in table.features)}")
        click.echo(f"  max age   {age(None if table.max_age is None else table.max_age.total_seconds())}")
        click.echo(f"  source    {_source(table)}")
        if table.labels:
            click.echo(f"  labels    {', '.join(f'{cell(k)}={cell(v)}' for k, v in table.labels.items())}")
        click.echo(f"  rows      {facts[table.name]['rows']:,}, online keys: {_online(facts[table.name])}")
    for service in services:
        click.secho(f"feature service {service.name}", bold=True, nl=False)
        click.echo(f": {cell(service.description)}" if service.description else "")
        click.echo(f"  features  {', '.join(service.features)}")
        for name, alias in service.aliases.items():
            keys = ", ".join(f"{entity}={cell(column)}" for entity, column in alias.keys.items())
            click.echo(f"  alias     {name}: {alias.table} by {keys}")
    if not definitions:
        click.echo("no feature tables: define some with Database.apply()")


def _definition(table: FeatureTable, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": table.name,
        "entities": table.entities,
        "features": table.features,
        "max_age_seconds": table.max_age,
        "batch_source": None if table.batch_source is None else table.batch_source.to_record(),
        "labels": table.labels,
        "description": table.description,
        "online": table.online,
        "rows": facts["rows"],
        "online_keys": facts["online_keys"],
    }


def _source(table: FeatureTable) -> str:
    source = table.batch_source
    if source is None:
        return f"none (event timestamp: {table.event_timestamp_column})"
    parts = [source.path if isinstance(source, FileSource) else type(source).__name__]
    parts.append(f"event timestamp: {source.event_timestamp_column}")
    if source.created_timestamp_column is not None:
        parts.append(f"created timestamp: {source.created_timestamp_column}")
    if source.field_mapping:
        parts.append("mapping: " + ", ".join(f"{column} -> {name}" for column, name in source.field_mapping.items()))
    return cell("; ".join(parts))


@click.command()
@file_argument
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the last N commits.")
@json_option
def log(file: str, limit: int | None, as_json: bool) -> None:
    """Show the commits, oldest first."""
    with fdb.open(file, read_only=True) as db:
        commits = db.log()
    shown = commits if limit is None else commits[-limit:]
    if as_json:
        keys = ("id", "time", "operation", "table", "rows")
        print_json([{key: getattr(commit, key) for key in keys} for commit in shown])
        return
    headers = ("commit", "time", "operation", "table", "rows")
    rows = [(f"{c.id}", iso(c.time), c.operation, c.table, f"{c.rows:,}") for c in shown]
    print_table(headers, rows, right=("commit", "rows"))


@click.command()
@file_argument
@click.option("--level", type=click.Choice(["quick", "full"]), default="full", help="quick: read no values.")
@json_option
def verify(file: str, level: Literal["quick", "full"], as_json: bool) -> None:
    """Check the file: checksums, structure, order, and online = offline. Exit code 1 if anything is wrong."""
    with fdb.open(file, read_only=True) as db:
        report = db.verify(level)
    if as_json:
        print_json({"ok": report.ok, **asdict(report)})
    else:
        counted = f"{count(len(report.problems), 'problem')}, {count(len(report.differences), 'difference')}"
        click.echo(f"{file}: {'ok' if report.ok and not report.differences else counted}")
        for difference in report.differences:
            click.echo(f"  - {difference}")
    if not report.ok:
        if not as_json:
            lines = "".join(f"\n  - {problem}" for problem in report.problems)
            click.echo(f"error: {file}: {count(len(report.problems), 'problem')}{lines}", err=True)
        raise SystemExit(1)


@click.command()
@file_argument
@click.argument("dest", metavar="DEST", type=click.Path())
@click.option("--check", is_flag=True, help="Verify the copy before it gets its name.")
@json_option
def backup(file: str, dest: str, check: bool, as_json: bool) -> None:
    """Write a consistent, compacted copy to the new file DEST, while others read and write."""
    with fdb.open(file, read_only=True) as db:
        db.backup(dest, check=check)
    nbytes = os.path.getsize(dest)
    if as_json:
        print_json({"path": dest, "bytes": nbytes})
    else:
        click.echo(f"{dest}: {size(nbytes)}")


@click.command()
@click.argument("src", metavar="SRC", type=click.Path())
@click.argument("dest", metavar="DST", type=click.Path())
@json_option
def salvage(src: str, dest: str, as_json: bool) -> None:
    """Copy what is undamaged of the damaged file SRC into the new file DST, and say what is lost."""
    report = fdb.salvage(src, dest)
    if as_json:
        print_json(report)
        return
    content = report.content
    rows, keys = count(content.rows, "row"), count(content.online_keys, "online key")
    tables = count(content.tables, "feature table")
    click.echo(f"{dest}: {tables}, {rows}, {keys}, as after commit {report.commit_id}")
    if report.is_older:
        click.echo(f"  - older: {OLDER}")
    for fault in report.damaged_pages:
        click.echo(f"  - damaged: {fault}")
    for finding in report.lost:
        click.echo(f"  - lost: {finding}")


@click.command()
@file_argument
@json_option
def compact(file: str, as_json: bool) -> None:
    """Merge segments and write the file anew, so that it is as small as can be and has nothing of what is gone."""
    with fdb.open(file, create=False) as db:
        before = db.info()["feature_tables"]
        report = db.compact()
        after = db.info()["feature_tables"]
    sums = {
        key: {
            "before": sum(table[key] for table in before.values()),
            "after": sum(table[key] for table in after.values()),
        }
        for key in ("segments", "replaced_rows", "bytes")
    }
    sums["file_bytes"] = {"before": report.bytes_before, "after": report.bytes_after}
    if as_json:
        print_json(sums)
        return
    segments, replaced = sums["segments"], sums["replaced_rows"]
    click.echo(
        f"{file}: {segments['before']} -> {count(segments['after'], 'segment')}, "
        f"{replaced['before'] - replaced['after']:,} replaced rows removed, "
        f"{size(report.bytes_before)} -> {size(report.bytes_after)}"
    )
