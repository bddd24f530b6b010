"""What an online read returns: columns, a status per value, event timestamps per table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from featuredb.columns import Column
from featuredb.errors import InputError
from featuredb.frames import write
from featuredb.frames.arrays import import_pyarrow


class Status(IntEnum):
    """Why an online value is what it is.

    Examples
    --------
    >>> from featuredb.online.response import Status
    >>> Status(2).name
    'NOT_FOUND'
    """

    PRESENT = 0
    NULL_VALUE = 1
    NOT_FOUND = 2
    OUTSIDE_MAX_AGE = 3


_MEMBERS = np.array(list(Status), dtype=object)


@dataclass(frozen=True, slots=True)
class OnlineArrays:
    """Online values as plain numpy arrays, in the order of the keys asked for.

    Parameters
    ----------
    columns : mapping of str to ndarray, shape (n,)
        By output name; vectors of shape (n, length). Where there is no value: NaN for floats, 0 or False, NaT, None;
        see `statuses`.
    statuses : mapping of str to ndarray of uint8, shape (n,)
        Codes of `Status`, by output name.
    event_timestamps : mapping of str to ndarray of datetime64[us], shape (n,)
        By table, UTC; NaT where the table has no row for the key.
    """

    columns: Mapping[str, NDArray[Any]]
    statuses: Mapping[str, NDArray[np.uint8]]
    event_timestamps: Mapping[str, NDArray[np.datetime64]]

    def __len__(self) -> int:
        return len(next(iter(self.statuses.values()), ()))


@dataclass(frozen=True, slots=True)
class ResponseColumns:
    """A response as columns: keys and features by name, status codes by feature, event timestamps by table."""

    entities: Mapping[str, Column]
    features: Mapping[str, Column]
    codes: Mapping[str, NDArray[np.uint8]]
    event_timestamps: Mapping[str, NDArray[np.datetime64]]


class OnlineResponse:
    """Online values of the entity rows asked for, in their order.

    Attributes
    ----------
    event_timestamps : mapping of str to ndarray of datetime64[us], shape (n,)
        By table, UTC; NaT where the table has no row for the key.
    """

    def __init__(self, load: Callable[[], ResponseColumns], plain: Mapping[str, list[Any]] | None = None) -> None:
        self._load = load
        # What `to_dict` returns, if that was read first.
        self._plain = plain

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "an online response cannot be pickled; pickle what to_dict(), to_arrow(), to_pandas() or to_arrays() return"
        )

    @cached_property
    def _loaded(self) -> ResponseColumns:
        return self._load()

    def __len__(self) -> int:
        if self._plain is not None:
            return len(next(iter(self._plain.values())))
        return len(next(iter(self._loaded.entities.values())))

    def __repr__(self) -> str:
        return f"<OnlineResponse: {len(self)} rows, {', '.join(self._all)}>"

    @property
    def _all(self) -> dict[str, Column]:
        return {**self._loaded.entities, **self._loaded.features}

    @property
    def event_timestamps(self) -> Mapping[str, NDArray[np.datetime64]]:
        return self._loaded.event_timestamps

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Entity columns, then features, as numpy arrays; masked arrays where there are nulls."""
        return {name: write.to_numpy(column) for name, column in self._all.items()}

    @cached_property
    def statuses(self) -> dict[str, list[Status]]:
        """For each feature, by output name, the `Status` of each row."""
        return {name: _MEMBERS[codes].tolist() for name, codes in self._loaded.codes.items()}

    def to_dict(self) -> dict[str, list[Any]]:
        """Entity columns, then features, as lists of plain Python values; None for null."""
        if self._plain is not None:
            return {name: list(values) for name, values in self._plain.items()}
        return {name: write.to_pylist(column) for name, column in self._all.items()}

    def to_pandas(self) -> Any:
        """Entity columns, then features, as a ``pandas.DataFrame``."""
        entities = self._loaded.entities
        base = write.EntityFrame({name: write.to_pandas_array(column) for name, column in entities.items()})
        # A copy: the frame's blocks are otherwise those of this response.
        return base.to_pandas(self._loaded.features).copy()

    def to_arrow(self) -> Any:
        """Entity columns, then features, as a ``pyarrow.Table``.

        Raises
        ------
        MissingExtraError
            If pyarrow is not installed.
        """
        pa = import_pyarrow("to_arrow()")
        return pa.table({name: write.to_arrow_array(column) for name, column in self._all.items()})

    def to_arrays(self) -> OnlineArrays:
        """The features as plain numpy arrays, without the entity columns."""
        # Below the mask of a masked array stand the values that OnlineArrays promises for nulls.
        columns = {name: np.ma.getdata(write.to_numpy(column)) for name, column in self._loaded.features.items()}
        return OnlineArrays(columns, self._loaded.codes, self.event_timestamps)
