"""Snapshots from the command line: make, list and drop them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import featuredb as fdb
from featuredb.cli.output import file_argument, iso, json_option, print_json, print_table, size

if TYPE_CHECKING:
    from featuredb.database import Database

name_argument = click.argument("name", metavar="NAME")
at_option = click.option("--at", metavar="NAME", help="Read the file as it was at this snapshot.")


def view(db: Database, at: str | None) -> Database:
    """The database, or the snapshot of it that ``--at`` names."""
    return db if at is None else db.at(at)


@click.command()
@file_argument
@name_argument
@json_option
def snapshot(file: str, name: str, as_json: bool) -> None:
    """Hold the current commit as NAME, so that it can be read with --at NAME. Copies no data."""
    with fdb.open(file, create=False) as db:
        made = db.snapshot(name)
    if as_json:
        print_json({"name": made.name, "commit_id": made.commit_id, "time": made.time})
    else:
        click.echo(f"{made.name}: holds commit {made.commit_id}")


@click.command()
@file_argument
@json_option
def snapshots(file: str, as_json: bool) -> None:
    """Show the snapshots, oldest first, with what each alone keeps in the file."""
    with fdb.open(file, read_only=True) as db:
        times = {held.name: held.time for held in db.list_snapshots()}
        facts = db.info()["snapshots"]
    if as_json:
        print_json([{"name": name, **fact, "time": times.get(name)} for name, fact in facts.items()])
        return
    headers = ("snapshot", "commit", "time", "history", "online rows")
    rows = [
        (name, f"{fact['commit_id']}", iso(times.get(name)), size(fact["history_bytes"]), size(fact["online_bytes"]))
        for name, fact in facts.items()
    ]
    if rows:
        print_table(headers, rows, right=("commit", "history", "online rows"))
    else:
        click.echo(f"{file}: no snapshots")


@click.command("drop-snapshot")
@file_argument
@name_argument
@json_option
def drop_snapshot(file: str, name: str, as_json: bool) -> None:
    """Let go of the snapshot NAME: what only it held is removed, and its space used again."""
    with fdb.open(file, create=False) as db:
        db.drop_snapshot(name)
    if as_json:
        print_json({"dropped": name})
    else:
        click.echo(f"{name}: dropped")
