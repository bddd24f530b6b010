"""Forgetting from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

import featuredb as fdb
from featuredb.cli.output import count, file_argument, json_option, print_json
from featuredb.cli.read import parse_keys

if TYPE_CHECKING:
    from featuredb.database import Database


@click.command()
@file_argument
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@click.option("--table", "tables", multiple=True, metavar="TABLE", help="Only from this table; may be repeated.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def forget(file: str, keys: Sequence[str], tables: Sequence[str], yes: bool, as_json: bool) -> None:
    """Remove keys with all that is stored of them: history, online values, dictionary.

    A KEY is entity=value, or entity=value,entity=value. A table of more entities loses every row with these.
    Compact the file afterwards, and their bytes are nowhere in it.

    \b
      featuredb forget f.fdb user=7 user=8
      featuredb forget f.fdb user=7,item=3 --table clicks
    """
    with fdb.open(file, create=False) as db:
        columns = parse_keys(keys, _entities(db, keys[0]), "the entities of the first")
        if not yes:
            click.confirm(f"{file}: forget {count(len(keys), 'key')} for good?", abort=True, err=True)
        report = db.forget(columns, list(tables) or None)
    if as_json:
        print_json(asdict(report))
        return
    found = f"{count(report.keys_found, 'key')} found, {report.keys_not_found:,} not found"
    rows, online = sum(report.rows_removed.values()), sum(report.online_keys_removed.values())
    click.echo(f"{file}: {found}, {count(rows, 'row')} and {count(online, 'online value')} removed")


def _entities(db: Database, key: str) -> dict[str, str]:
    """The entities that a key names, with their dtypes; all there are if it names none."""
    dtypes = {entity.name: entity.dtype for entity in db.list_entities()}
    # A comma separates only where an entity's name follows, so values may contain commas.
    named = re.findall(rf"(?:^|,)({'|'.join(map(re.escape, dtypes)) or '(?!)'})=", key)
    return {name: dtypes[name] for name in named} or dtypes
