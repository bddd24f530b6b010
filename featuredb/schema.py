"""The vocabulary: dtypes, Entity, Feature, FeatureTable, Alias, FeatureService. Frozen, pure, checked when made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np

from featuredb.errors import DefinitionError
from featuredb.limits import (
    ENTITIES_PER_TABLE_MAX,
    FEATURES_PER_TABLE_MAX,
    NAME_CHARS_MAX,
    ROW_BYTES_MAX,
    TIMESTAMP_MAX_US,
    TIMESTAMP_MIN_US,
    VECTOR_LENGTH_MAX,
)

INTEGER_NAMES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOAT_NAMES = ("float32", "float64")
_FIXED = {name: np.dtype(name).newbyteorder("<") for name in (*INTEGER_NAMES, *FLOAT_NAMES, "bool")}
_FIXED["timestamp"] = np.dtype("<i8")
_PLACE = np.dtype("<i4")
_VARIABLE = ("string", "bytes")
SCALAR_NAMES = ("bool", *INTEGER_NAMES, *FLOAT_NAMES, "string", "bytes", "timestamp")
_LIST = re.compile(r"list\[(\w+)\]")
_VECTOR = re.compile(r"(\w+)\[([1-9][0-9]{0,5})\]", re.ASCII)
# "event_timestamp" and "created_timestamp" are left out on purpose: a source without a name for its
# time columns uses just these.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype by name: a scalar, ``list[T]`` of a scalar, or a vector ``T[n]`` of a scalar of fixed width.

    Timestamps are int64 microseconds since 1970-01-01 UTC.
    """

    name: str

    @property
    def is_variable(self) -> bool:
        """Whether values have no fixed width (string, bytes and lists)."""
        return self.name in _VARIABLE or self.is_list

    @property
    def is_list(self) -> bool:
        """Whether values are lists of any length."""
        return self.name.startswith("list[")

    @property
    def is_vector(self) -> bool:
        """Whether values are vectors of one fixed length."""
        return _vector_of(self.name) is not None

    @property
    def is_nested(self) -> bool:
        """Whether values are lists or vectors."""
        return self.name.endswith("]")

    @property
    def item(self) -> DType:
        """Dtype of the elements of a list or vector; the dtype itself if it is a scalar."""
        if self.is_list:
            return DTYPES[self.name[5:-1]]
        vector = _vector_of(self.name)
        return self if vector is None else DTYPES[vector[0]]

    @property
    def length(self) -> int:
        """Elements of a vector; 1 for any other dtype."""
        vector = _vector_of(self.name)
        return 1 if vector is None else vector[1]

    @property
    def is_integer(self) -> bool:
        return self.name in INTEGER_NAMES

    @property
    def is_float(self) -> bool:
        return self.name in FLOAT_NAMES

    @property
    def numpy(self) -> np.dtype[Any]:
        """Dtype of `Column.data`: the values, or for variable-width dtypes int32 places in the heap.

        A vector is void: all its elements as one value, so that columns stay one-dimensional.
        """
        fixed = _FIXED.get(self.name)
        if fixed is not None:
            return fixed
        vector = _vector_of(self.name)
        return _PLACE if vector is None else vector[2]

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=1024)
def _vector_of(name: str) -> tuple[str, int, np.dtype[Any]] | None:
    """Element dtype, length and numpy dtype of the vector dtype called so; None if it is none."""
    found = _VECTOR.fullmatch(name)
    if found is None or found[1] not in _FIXED or int(found[2]) > VECTOR_LENGTH_MAX:
        return None
    return found[1], int(found[2]), np.dtype(f"V{_FIXED[found[1]].itemsize * int(found[2])}")


class _DTypes(dict[str, DType]):
    """Every dtype by name. The scalars stand in it, lists and vectors are made when asked for."""

    def __missing__(self, name: str) -> DType:
        listed = _LIST.fullmatch(name)
        if (listed is None or listed[1] not in SCALAR_NAMES) and _vector_of(name) is None:
            raise KeyError(name)
        return self.setdefault(name, DType(name))


DTYPES = _DTypes({name: DType(name) for name in SCALAR_NAMES})
KEY_DTYPE_NAMES = (*INTEGER_NAMES, "string", "bytes", "bool", "timestamp")


def parse_dtype(name: object, where: str) -> DType:
    """The `DType` called `name`, or a `DefinitionError` that says where and what is allowed."""
    if isinstance(name, DType):
        return name
    if isinstance(name, str):
        try:
            return DTYPES[name]
        except KeyError:
            pass
    raise DefinitionError(f"{where}: {_why_not(name)}")


def _why_not(name: object) -> str:
    scalars = ", ".join(SCALAR_NAMES)
    opened = name.partition("[") if isinstance(name, str) and name.endswith("]") else None
    if opened is not None and opened[0] == "list":
        return f"dtype {name!r}: the elements of a list must be one of {scalars}"
    if opened is not None and opened[0] in _VARIABLE:
        return f"dtype {name!r}: the elements of a vector have a fixed width; use list[{opened[0]}]"
    if opened is not None and opened[0] in _FIXED:
        return (
            f"dtype {name!r}: the length of a vector is a whole number from 1 to {VECTOR_LENGTH_MAX:,}, "
            f"such as {opened[0]}[384]"
        )
    return f"unknown dtype {name!r}; use one of {scalars}, list[T] of these, or a vector such as float32[384]"


def check_name(name: object, where: str) -> str:
    """`name` if it can name a definition: letters, digits, ``_ . -``; no leading digit; no ``__``."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{where}: name {name!r} is not valid; use a letter or '_' first, then letters, digits, '_', '.' or '-'"
        )
    if len(name) > NAME_CHARS_MAX:
        raise DefinitionError(
            f"{where}: name {name[:40]!r}... has {len(name)} characters; at most {NAME_CHARS_MAX}: shorten it"
        )
    return name


def _check_labels(labels: Mapping[str, str], where: str) -> dict[str, str]:
    if not isinstance(labels, Mapping) or not all(
        isinstance(key, str) and isinstance(value, str) for key, value in labels.items()
    ):
        raise DefinitionError(f"{where}: labels must map str to str, not {labels!r}")
    return dict(labels)


def _check_description(description: object, where: str) -> None:
    if not isinstance(description, str):
        raise DefinitionError(f"{where}: description must be a str, not {description!r}")


def _set(instance: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(instance, name, value)


@runtime_checkable
class Source(Protocol):
    """What a feature table can be loaded from: names of its columns, and a way to be stored."""

    @property
    def event_timestamp_column(self) -> str: ...
    @property
    def created_timestamp_column(self) -> str | None: ...
    @property
    def field_mapping(self) -> Mapping[str, str]: ...
    def to_record(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Entity:
    """A thing that features describe, and the dtype of the column that names it.

    Parameters
    ----------
    name : str
        Also the name of its key column.
    dtype : str
        Any integer type, ``string``, ``bytes``, ``bool`` or ``timestamp``.
    description : str
        Free text.
    labels : mapping of str to str
        Free labels.

    Raises
    ------
    DefinitionError
        If the name or dtype is not valid.

    Examples
    --------
    >>> import featuredb as fdb
    >>> fdb.Entity("origin", dtype="string", description="departure airport").dtype
    'string'
    """

    name: str
    dtype: str
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"entity {self.name!r}"
        check_name(self.name, where)
        dtype = parse_dtype(self.dtype, where)
        if dtype.name not in KEY_DTYPE_NAMES:
            raise DefinitionError(f"{where}: a key cannot be of dtype {dtype}; use one of {', '.join(KEY_DTYPE_NAMES)}")
        _check_description(self.description, where)
        _set(self, dtype=dtype.name, labels=_check_labels(self.labels, where))


@dataclass(frozen=True)
class Feature:
    """A named, typed column of a feature table. Any value may be null.

    Parameters
    ----------
    name : str
        Unique within its table.
    dtype : str
        ``bool``, ``int8`` to ``int64``, ``uint8`` to ``uint64``, ``float32``, ``float64``, ``string``,
        ``bytes`` or ``timestamp``; ``list[T]`` of any of these; or a vector ``T[n]`` of `n` elements of a
        dtype of fixed width, such as ``float32[384]``. A list or vector may be null, its elements may not.
    description : str
        Free text.

    Raises
    ------
    DefinitionError
        If the name or dtype is not valid.

    Examples
    --------
    >>> import featuredb as fdb
    >>> fdb.Feature("temp", "float64").name
    'temp'
    >>> fdb.Feature("embedding", "float32[384]").dtype
    'float32[384]'
    """

    name: str
    dtype: str
    description: str = ""

    def __post_init__(self) -> None:
        where = f"feature {self.name!r}"
        check_name(self.name, where)
        _check_description(self.description, where)
        _set(self, dtype=parse_dtype(self.dtype, where).name)


@dataclass(frozen=True)
class FeatureTable:
    """Features of the same entities that arrive together, with their history.

    Parameters
    ----------
    name : str
        Unique within the file.
    entities : sequence of str
        Names of one or more entities; several make a composite key.
    features : sequence of Feature
        At least one.
    max_age : datetime.timedelta or None
        How old a row may be when it is used; None means no limit. Whole microseconds.
    batch_source : FileSource or None
        Where ``ingest(name)`` reads from, and the column names of any data given to ``ingest``.
    online : bool
        Whether ingests keep the latest row of each key for online reads.
    labels, description
        Free labels and text.

    Raises
    ------
    DefinitionError
        Lists every problem of the definition.

    Examples
    --------
    >>> import featuredb as fdb
    >>> table = fdb.FeatureTable("weather", ["origin"], [fdb.Feature("temp", "float64")])
    >>> table.feature_names
    ('temp',)
    """

    name: str
    entities: Sequence[str]
    features: Sequence[Feature]
    max_age: timedelta | None = None
    batch_source: Source | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    online: bool = True

    def __post_init__(self) -> None:
        where = f"feature table {self.name!r}"
        check_name(self.name, where)
        if isinstance(self.entities, str) or isinstance(self.features, Feature):
            raise DefinitionError(f"{where}: entities and features are lists; put the single one in brackets")
        if not isinstance(self.entities, Iterable) or not isinstance(self.features, Iterable):
            raise DefinitionError(f"{where}: entities and features must be lists, not None or a single value")
        entities = tuple(entity.name if isinstance(entity, Entity) else entity for entity in self.entities)
        features = tuple(self.features)
        _set(self, entities=entities, features=features, labels=_check_labels(self.labels, where))
        _check_description(self.description, where)
        problems = [*self._column_problems(), *self._option_problems()]
        if problems:
            raise DefinitionError(f"{where}: " + "; ".join(problems))

    def _column_problems(self) -> Iterable[str]:
        wrong = [feature for feature in self.features if not isinstance(feature, Feature)]
        if wrong:
            yield f"features must be Feature objects, not {wrong[0]!r}"
            return
        if not self.entities:
            yield "has no entity; name at least one"
        if not self.features:
            yield "has no feature; define at least one"
        if len(self.entities) > ENTITIES_PER_TABLE_MAX:
            yield f"has {len(self.entities)} entities; at most {ENTITIES_PER_TABLE_MAX}, so make one of several"
        if len(self.features) > FEATURES_PER_TABLE_MAX:
            yield f"has {len(self.features)} features; at most {FEATURES_PER_TABLE_MAX}, so split the table"
        width = sum(DTYPES[feature.dtype].numpy.itemsize for feature in self.features)
        if width > ROW_BYTES_MAX:
            yield f"its features take {width} bytes a row; at most {ROW_BYTES_MAX}, so split the table"
        names = [*self.entities, *self.feature_names]
        for name in sorted({name for name in names if names.count(name) > 1}, key=str):
            yield f"name {name!r} stands more than once among its entities and features; rename one"

    def _option_problems(self) -> Iterable[str]:
        if self.max_age is not None:
            if not isinstance(self.max_age, timedelta):
                yield f"max_age must be a datetime.timedelta or None, not {self.max_age!r}"
            elif getattr(self.max_age, "nanoseconds", 0):
                yield f"max_age must be whole microseconds, not {self.max_age!r}; round it"
            elif self.max_age <= timedelta(0):
                yield f"max_age must be longer than zero, not {self.max_age}; use None for no limit"
            elif self.max_age // timedelta(microseconds=1) > TIMESTAMP_MAX_US - TIMESTAMP_MIN_US:
                yield f"max_age {self.max_age} is longer than all of time, years 1 to 9999; use None for no limit"
        if not isinstance(self.online, bool):
            yield f"online must be True or False, not {self.online!r}"
        if self.batch_source is None:
            return
        if not isinstance(self.batch_source, Source):
            yield f"batch_source must be a FileSource, not {self.batch_source!r}"
            return
        known = {*self.entities, *self.feature_names}
        for column, target in self.batch_source.field_mapping.items():
            if target not in known:
                yield (
                    f"field mapping {column!r} -> {target!r}: the table has no entity or feature {target!r}; "
                    f"it has {', '.join(sorted(known))}"
                )
        targets = list(self.batch_source.field_mapping.values())
        for target in sorted({target for target in targets if targets.count(target) > 1}):
            yield f"field mapping: more than one column maps to {target!r}"

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @property
    def max_age_us(self) -> int | None:
        """`max_age` in microseconds."""
        return None if self.max_age is None else self.max_age // timedelta(microseconds=1)

    @property
    def event_timestamp_column(self) -> str:
        """Name of the event timestamp column in data given to ``ingest``."""
        return "event_timestamp" if self.batch_source is None else self.batch_source.event_timestamp_column

    @property
    def created_timestamp_column(self) -> str | None:
        """Name of the created timestamp column of the source, if it has one."""
        return None if self.batch_source is None else self.batch_source.created_timestamp_column

    def column_of(self, name: str) -> str:
        """Name, in data given to ``ingest``, of the column of the entity or feature `name`."""
        mapping = {} if self.batch_source is None else self.batch_source.field_mapping
        return next((column for column, target in mapping.items() if target == name), name)


@dataclass(frozen=True)
class Alias:
    """A feature table joined by other columns than its entities' names: a second role of the same entity.

    Parameters
    ----------
    table : str
        Name of the feature table.
    keys : mapping of str to str
        Entity of the table to the column that holds its values, in the entity dataframe and in the
        entity rows of online reads. Entities left out keep their own names.

    Raises
    ------
    DefinitionError
        If the table is not a name, or `keys` is empty or maps anything but names to columns.

    Examples
    --------
    >>> import featuredb as fdb
    >>> with fdb.open(":memory:") as db:
    ...     _ = db.apply([
    ...         fdb.Entity("airport", "string"),
    ...         fdb.FeatureTable("weather", ["airport"], [fdb.Feature("temp", "float64")]),
    ...     ])
    ...     data = {"airport": ["JFK", "LAX"], "event_timestamp": ["2013-01-01", "2013-01-01"], "temp": [3.5, 17.0]}
    ...     _ = db.ingest("weather", data)
    ...     aliases = {
    ...         "origin_weather": fdb.Alias("weather", {"airport": "origin_id"}),
    ...         "dest_weather": fdb.Alias("weather", {"airport": "dest_id"}),
    ...     }
    ...     flights = {"origin_id": ["JFK"], "dest_id": ["LAX"], "event_timestamp": ["2013-01-01T06:00"]}
    ...     training = db.get_historical_features(
    ...         flights, ["origin_weather:temp", "dest_weather:temp"], aliases=aliases, full_feature_names=True
    ...     )
    ...     {name: values.tolist() for name, values in training.to_numpy().items()}
    {'origin_weather__temp': [3.5], 'dest_weather__temp': [17.0]}
    """

    table: str
    keys: Mapping[str, str]

    def __post_init__(self) -> None:
        where = f"alias of {self.table!r}"
        check_name(self.table, where)
        if not isinstance(self.keys, Mapping) or not all(
            isinstance(name, str) and isinstance(column, str) and column for name, column in self.keys.items()
        ):
            raise DefinitionError(f"{where}: keys must map entity names to column names, not {self.keys!r}")
        if not self.keys:
            raise DefinitionError(f"{where}: keys is empty; map an entity to a column, or ask for the table itself")
        _set(self, keys=dict(self.keys))


def check_aliases(aliases: object, where: str) -> dict[str, Alias]:
    """`aliases` as a dict from valid names to `Alias`, or a `DefinitionError`."""
    if aliases is None:
        return {}
    if not isinstance(aliases, Mapping):
        raise DefinitionError(f"{where}: aliases must map names to fdb.Alias objects, not {aliases!r}")
    for name, alias in aliases.items():
        check_name(name, f"{where}: alias")
        if not isinstance(alias, Alias):
            raise DefinitionError(f"{where}: alias {name!r} must be an fdb.Alias, not {alias!r}")
    return dict(aliases)


@dataclass(frozen=True)
class FeatureService:
    """A named list of feature references: what one model reads, in training and in serving.

    Parameters
    ----------
    name : str
        Unique within the file.
    features : sequence of str
        References ``"table:feature"``, at least one, no two alike.
    labels, description
        Free labels and text.
    aliases : mapping of str to Alias
        Tables under other names, keyed by other columns; references may use these names:
        ``"alias:feature"``.

    Raises
    ------
    DefinitionError
        If the name, a reference or an alias is malformed, or a reference is given twice.

    Examples
    --------
    >>> import featuredb as fdb
    >>> fdb.FeatureService("delay_model", ["weather:temp"]).features
    ('weather:temp',)
    """

    name: str
    features: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    aliases: Mapping[str, Alias] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"feature service {self.name!r}"
        check_name(self.name, where)
        _check_description(self.description, where)
        if isinstance(self.features, str):
            raise DefinitionError(f"{where}: features is a list of references; put the single one in brackets")
        references = tuple(self.features)
        if not references:
            raise DefinitionError(f"{where}: has no feature; name at least one")
        try:
            for reference in references:
                split_reference(reference)
        except DefinitionError as error:
            raise DefinitionError(f"{where}: {error}") from None
        twice = sorted({reference for reference in references if references.count(reference) > 1})
        if twice:
            raise DefinitionError(f"{where}: {', '.join(map(repr, twice))} stands more than once; remove the repeats")
        aliases = check_aliases(self.aliases, where)
        _set(self, features=references, labels=_check_labels(self.labels, where), aliases=aliases)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the feature tables it reads or has an alias of."""
        prefixes = [reference.partition(":")[0] for reference in self.features]
        used = [name for name in prefixes if name not in self.aliases]
        return tuple(dict.fromkeys([*used, *(alias.table for alias in self.aliases.values())]))


Definition = Entity | FeatureTable | FeatureService


def split_reference(reference: object) -> tuple[str, str]:
    """``"table:feature"`` as (table, feature), or a `DefinitionError`."""
    if isinstance(reference, str):
        table, colon, feature = reference.partition(":")
        if colon and _NAME.fullmatch(table) and _NAME.fullmatch(feature):
            return table, feature
    raise DefinitionError(f"{reference!r} is not a feature reference; write 'table:feature'")
