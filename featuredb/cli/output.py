"""What every command shares: arguments, JSON, tables and figures for people. rich is imported where it is used."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import click
import numpy as np

# Rows stay on one line, however long: a cell folded by characters can be neither read nor copied.
_TABLE_WIDTH_MAX = 100_000

# In the words of the Python API, and in those of the command line.
_CLI_WORDS = (
    ("give partial=True", "--partial"),
    ("full_feature_names=True", "--full-feature-names"),
    ("name it with event_timestamp_column", "name it with --event-timestamp-column"),
    ("; check the path, or open it with create=True", "; check the path"),
    ("; delete it, then open it with create=True", "; delete it, and make the file anew with the Python API"),
    (", or open it with read_only=True", ""),
    ("; pass data, or apply it", "; give DATA, or apply it"),
    ("or use to='both'", "or use --to both"),
)
# An argument named at the beginning of a message, as what is wrong.
_ARGUMENT = re.compile(r"^(known_at|now|start|end)(?=: | \()")

file_argument = click.argument("file", metavar="FILE", type=click.Path())
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def features_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-f table:feature`` (repeatable) or ``--service NAME``, and the form of the output names."""
    decorators = (
        click.option("-f", "--feature", "features", multiple=True, metavar="TABLE:FEATURE", help="May be repeated."),
        click.option("--service", metavar="NAME", help="All features of a feature service."),
        click.option("--full-feature-names", is_flag=True, help="Name the output TABLE__FEATURE."),
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def chosen_features(features: Sequence[str], service: str | None) -> str | list[str]:
    """What the API takes, or a usage error unless just one of the options was given."""
    if bool(features) == (service is not None):
        raise click.UsageError("Give the features to read: either -f TABLE:FEATURE (repeatable) or --service NAME.")
    return list(features) if service is None else service


def in_cli_words(message: str) -> str:
    """An error's message with the options of the command line in the place of Python's arguments."""
    for words, ours in _CLI_WORDS:
        message = message.replace(words, ours)
    return _ARGUMENT.sub(lambda found: "--" + found[0].replace("_", "-"), message)


def plain(value: Any) -> Any:
    """`value` in JSON's own types: timestamps ISO 8601 UTC, bytes base64, NaN and infinities as strings."""
    if isinstance(value, datetime | np.datetime64):
        return iso(value)
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, timedelta):
        return value / timedelta(seconds=1)
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def print_json(value: Any) -> None:
    click.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def iso(moment: datetime | np.datetime64 | None) -> str | None:
    """A time as ISO 8601 in UTC, with microseconds only where there are any; None for NaT."""
    if isinstance(moment, np.datetime64):
        plain_moment: datetime | None = moment.astype("datetime64[us]").item()
        return iso(plain_moment)
    if moment is None:
        return None
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return utc.replace(tzinfo=None).isoformat() + "Z"


def size(nbytes: float) -> str:
    """Bytes for people: ``12.3 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            break
        nbytes /= 1024
    return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:,.1f} {unit}"


def count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def age(seconds: float | None) -> str:
    """A max age for people: ``3 h``, ``7 d``."""
    if seconds is None:
        return "none"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds % length == 0:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.6g} s"


def cell(value: Any) -> str:
    """A value as one line of text without control characters, which would reach the terminal."""
    if value is None:
        return "-"
    text = f"{value:.15g}" if isinstance(value, float) else str(plain(value))
    return text if text.isprintable() else repr(text)[1:-1]


def heading(title: str) -> None:
    click.secho(title, bold=True)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """A table without frames. Columns named in `right` are flushed right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=_TABLE_WIDTH_MAX)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    with console.capture() as captured:
        console.print(table)
    # rich pads the last column to its width.
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
