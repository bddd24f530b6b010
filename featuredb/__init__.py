"""featuredb: an embedded feature store. One library, one file, no servers.

A `Database` is one ``.fdb`` file. *Entities* name the things that features describe; a *feature table*
holds features of the same entities, as rows of (entity key, event timestamp, created timestamp, values);
a *feature service* is a named list of features that a model reads. ``ingest`` loads rows: history goes to
time-sorted segments, the latest row of each key to the online values, both in one commit. For training,
``get_historical_features`` joins onto an entity dataframe what was known at each row's timestamp; for
serving, ``get_online_features`` and ``online_reader`` read the latest values in microseconds. Both use one
total order of rows (event, then created timestamp), so they cannot disagree.
"""

from featuredb.database import Database
from featuredb.database import open_database as open
from featuredb.errors import (
    BusyError,
    ClosedError,
    CorruptionError,
    DefinitionError,
    FeatureDBError,
    FileError,
    ForkedError,
    FormatVersionError,
    InputError,
    LimitError,
    MissingExtraError,
    NotADatabaseError,
    NotFoundError,
    Problem,
    ReadOnlyError,
)
from featuredb.loading import MaterializeReport
from featuredb.maintenance import CompactReport
from featuredb.online.reader import OnlineReader
from featuredb.online.response import OnlineArrays, OnlineResponse, Status
from featuredb.recovery import SalvageReport, salvage
from featuredb.schema import Alias, Entity, Feature, FeatureService, FeatureTable
from featuredb.sources import FileSource
from featuredb.storage.log import Commit
from featuredb.storage.registry import Change
from featuredb.storage.rejected import RejectedRow
from featuredb.storage.snapshots import Snapshot

__version__ = "0.1.0"

__all__ = [
    "Alias",
    "BusyError",
    "Change",
    "ClosedError",
    "Commit",
    "CompactReport",
    "CorruptionError",
    "Database",
    "DefinitionError",
    "Entity",
    "Feature",
    "FeatureDBError",
    "FeatureService",
    "FeatureTable",
    "FileError",
    "FileSource",
    "ForkedError",
    "FormatVersionError",
    "InputError",
    "LimitError",
    "MaterializeReport",
    "MissingExtraError",
    "NotADatabaseError",
    "NotFoundError",
    "OnlineArrays",
    "OnlineReader",
    "OnlineResponse",
    "Problem",
    "ReadOnlyError",
    "RejectedRow",
    "SalvageReport",
    "Snapshot",
    "Status",
    "open",
    "salvage",
]
