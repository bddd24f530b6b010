"""Loading from the command line: ingest, and the rows it left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import featuredb as fdb
from featuredb.cli.output import count, file_argument, json_option, print_json, print_table, size

if TYPE_CHECKING:
    from featuredb.offline.report import IngestReport

_REJECTIONS_SHOWN_MAX = 10


@click.command()
@file_argument
@click.argument("table", metavar="TABLE")
@click.argument("data", metavar="[DATA]", required=False, type=click.Path())
@click.option("--to", type=click.Choice(["both", "offline", "online"]), default="both", show_default=True)
@click.option("--start", metavar="TIME", help="Only rows with an event timestamp from here on.")
@click.option("--end", metavar="TIME", help="Only rows with an event timestamp up to here.")
@click.option(
    "--on-error", type=click.Choice(["raise", "skip"]), default="raise", show_default=True,
    help="Refuse data with rows that cannot be stored, or leave those rows out.",
)  # fmt: skip
@click.option("--partial", is_flag=True, help="Fill features that the data lacks from the row before.")
@json_option
def ingest(
    file: str,
    table: str,
    data: str | None,
    to: Any,
    start: str | None,
    end: str | None,
    on_error: Any,
    partial: bool,
    as_json: bool,
) -> None:
    """Load rows into the feature table TABLE, in one commit.

    DATA is a Parquet or CSV file with the column names of the table's batch source; left out, the batch
    source itself is read. Times are ISO 8601, UTC unless they say otherwise.
    """
    progress = False if as_json else None
    with fdb.open(file, create=False) as db:
        report = db.ingest(
            table, data, to=to, start=start, end=end, on_error=on_error, partial=partial, progress=progress
        )
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: IngestReport) -> None:
    parts = [f"{count(report.rows_read, 'row')} read", f"{report.rows_ingested:,} ingested"]
    for number, what in (
        (report.rows_unchanged, "unchanged"),
        (report.duplicates_replaced, "duplicates replaced"),
        (report.rows_outside, "outside start and end"),
        (report.rows_rejected, "rejected"),
    ):
        if number:
            parts.append(f"{number:,} {what}")
    parts.append(f"{count(report.online_keys_updated, 'online key')} updated")
    click.echo(f"{report.table}: {', '.join(parts)}")
    commit = f"commit {report.commit_id}" if report.committed else "nothing changed, no commit"
    click.echo(f"{commit}, {report.seconds:.2f} s, {size(report.bytes)} written")
    if report.features_filled:
        click.echo(f"filled from the row before: {', '.join(report.features_filled)}")
    for reason, number in report.rejected_by_reason.items():
        click.echo(f"rejected, {count(number, 'row')}: {reason}")
    if report.rejections:
        shown = report.rejections[:_REJECTIONS_SHOWN_MAX]
        print_table(("row", "column", "value", "reason"), [(r.row, r.column, r.value, r.reason) for r in shown])
        if report.rows_rejected > len(shown):
            click.echo(f"(the first rejected rows; `featuredb rejected FILE {report.table}` lists up to 1,000)")


@click.command()
@file_argument
@click.argument("table", metavar="TABLE")
@json_option
def rejected(file: str, table: str, as_json: bool) -> None:
    """Show the rows that `ingest --on-error skip` left out of TABLE, oldest commit first."""
    with fdb.open(file, read_only=True) as db:
        rows = db.rejected(table)
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo(f"{table}: no rejected rows")
    else:
        headers = ("commit", "row", "column", "value", "reason")
        shown = [(f"{r.commit_id}", f"{r.row:,}", r.column, r.value, r.reason) for r in rows]
        print_table(headers, shown, right=("commit", "row"))
