"""What the demo prints: the figures of each step, as the step ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featuredb.cli.output import age, cell, heading, print_table, size

OWN_DATA = """\
import featuredb as fdb
db = fdb.open("mine.fdb")
db.apply([fdb.Entity("user", "int64"), fdb.FeatureTable("orders", ["user"], [fdb.Feature("total", "float64")])])
db.ingest("orders", "orders.parquet")   # columns: user, event_timestamp, total
db.get_historical_features("labels.parquet", ["orders:total"]).to_parquet("training.parquet")
db.get_online_features(["orders:total"], [{"user": 42}]).to_dict()
"""
_TRAINING_COLUMNS = ("tailnum", "origin", "dest", "event_timestamp", "arr_delay", "temp", "seats", "last_arr_delay")
_COMPILE_SECONDS_MIN = 1.0


def title(folder: Path) -> None:
    heading("featuredb demo: a year of flights from New York (2013)")
    click.echo(f"files go to {folder}{'' if str(folder).endswith('/') else '/'}")


def prepare(figures: dict[str, Any]) -> None:
    inputs = ", ".join(f"{Path(item['path']).name} ({size(item['bytes'])})" for item in figures["inputs"])
    click.echo(f"sources written in {figures['seconds']:.1f} s: {inputs}")
    if figures["compile_seconds"] >= _COMPILE_SECONDS_MIN:
        click.echo(f"kernels compiled in {figures['compile_seconds']:.1f} s (once for each installation)")


def load(figures: dict[str, Any]) -> None:
    click.echo()
    heading("1. Define and load")
    headers = ("table", "entities", "max age", "source", "rows", "replaced", "online keys", "seconds")
    rows = [
        (
            table["table"],
            ", ".join(table["entities"]),
            age(table["max_age_seconds"]),
            table["source"],
            f"{table['rows_ingested']:,}",
            f"{table['duplicates_replaced']:,}",
            f"{table['online_keys']:,}",
            f"{table['seconds']:.2f}",
        )
        for table in figures["tables"]
    ]
    print_table(headers, rows, right=headers[4:])
    click.echo(f"feature service {figures['service']}: all {figures['service_features']} features")


def train(figures: dict[str, Any], frame: Any) -> None:
    click.echo()
    heading("2. Train")
    click.echo(
        f"{figures['rows']:,} flights joined with {figures['features']} features, each as known at the scheduled "
        f"departure: {figures['seconds']:.2f} s, {figures['rows_per_second']:,.0f} rows/s"
    )
    rates = ", ".join(f"{table} {rate:.1%}" for table, rate in figures["hit_rates"].items())
    click.echo(f"hit rate: {rates}")
    middle = len(frame) // 2
    shown = frame.iloc[[0, 1, 2, middle, middle + 1, middle + 2]][list(_TRAINING_COLUMNS)]
    shown = shown.astype({"event_timestamp": str}).astype(object).where(shown.notna(), None)
    rows = [[cell(value).removesuffix(":00+00:00") for value in row] for row in shown.to_numpy().tolist()]
    numbers = ("arr_delay", "temp", "seats", "last_arr_delay")
    print_table(_TRAINING_COLUMNS, [*rows[:3], ["..."] + [""] * (len(_TRAINING_COLUMNS) - 1), *rows[3:]], right=numbers)
    click.echo(f"training set: {figures['path']} ({size(figures['bytes'])})")


def serve(figures: dict[str, Any]) -> None:
    click.echo()
    heading("3. Serve")
    moments = list(figures["values"][0]["values"])
    rows = []
    before = None
    for item in figures["values"]:
        name = (item["entity"], item["key"])
        key = "" if name == before else f"{item['entity']} {item['key']}"
        before = name
        present = [item["statuses"][moment] == "PRESENT" for moment in moments]
        texts = [
            cell(item["values"][moment]) if there else item["statuses"][moment]
            for moment, there in zip(moments, present, strict=True)
        ]
        rows.append((key, item["feature"], *texts))
    print_table(("key", "feature", *(f"now={moment}" for moment in moments)), rows)
    click.echo("(always the latest value; now= is what its max age is measured from)")
    click.echo(f"online_reader(...).get({figures['reader_key']!r}, now={figures['reader_now']!r}):")
    click.echo(f"  {figures['reader_values']}")
    click.echo(
        f"prepared reader: {figures['get_us']:.1f} us a read (median of {figures['reads']:,}), "
        f"{figures['get_many_us_per_key']:.2f} us a key when {figures['keys']:,} are read together"
    )
    click.echo(f"get_online_features of the whole service, one row: {figures['get_online_features_us']:.0f} us")


def verify(figures: dict[str, Any], seconds: float) -> None:
    click.echo()
    heading("4. Verify")
    if figures["ok"]:
        click.echo(f"checksums, order, online = history: all right ({figures['seconds']:.2f} s)")
    for problem in figures["problems"]:
        click.echo(f"problem: {problem}", err=True)
    click.echo(
        f"size of the file {size(figures['database_bytes'])}, of the three sources {size(figures['inputs_bytes'])}; "
        f"the demo took {seconds:.1f} s"
    )
    click.echo()
    heading("The same on your own data")
    click.echo(OWN_DATA, nl=False)
