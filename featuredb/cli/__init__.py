"""The command line. It mirrors the Python API: every command is one call of `Database`, printed.

``featuredb COMMAND --help`` says what each takes. Commands that print data take ``--json``. Exit code 0 is
success, 1 a problem with the file, the data or the names given (one message on stderr), 2 wrong usage.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from featuredb import __version__
from featuredb.cli.demo_run import demo, warmup
from featuredb.cli.file import backup, compact, info, log, salvage, tables, verify
from featuredb.cli.forget import forget
from featuredb.cli.load import ingest, rejected
from featuredb.cli.output import in_cli_words
from featuredb.cli.read import get, join
from featuredb.cli.snapshots import drop_snapshot, snapshot, snapshots
from featuredb.errors import FeatureDBError

__all__ = ["main"]


class _Commands(click.Group):
    """Commands in the order they were added, and errors raised on purpose, or by the output, as one message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FeatureDBError as error:
            click.echo(f"error: {in_cli_words(str(error))}", err=True)
            ctx.exit(1)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            _output_failed(error)


def _output_failed(error: OSError) -> NoReturn:
    """The device that output goes to is full or fails: one line and exit code 1."""
    with suppress(OSError):
        click.echo(f"error: {error.filename or 'cannot write the output'}: {error.strerror or error}", err=True)
    sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="featuredb")
def main() -> None:
    """An embedded feature store: one file, point-in-time joins, online reads."""


_COMMANDS = (
    *(demo, info, tables, ingest, rejected, join, get, log),
    *(snapshot, snapshots, drop_snapshot, forget, verify, backup, salvage, compact, warmup),
)
for _command in _COMMANDS:
    main.add_command(_command)
