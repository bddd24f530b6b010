"""Transactions: a snapshot to read, or one set of changes to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat, starmap, takewhile
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any

from featuredb.errors import ClosedError, InputError, LimitError

if TYPE_CHECKING:
    from featuredb.storage.core import Core
    from featuredb.storage.filemap import Tree

Bytes = bytes | bytearray | memoryview

LMDB_KEY_BYTES_MAX = 511
SCAN_ENTRIES = 64
# A namespace and the number of what it belongs to: as much as is remembered of the keys written.
SPACE_BYTES = 5


class ReadTxn:
    """One snapshot of the file, as a context manager. Values are views of the map, valid only inside it.

    Made by `Env.read`. May be nested, and used by any thread while it is open. Without `views`, keys and values are
    copied as bytes: faster for a few short ones.
    """

    __slots__ = ("_core", "_txn", "thread", "views")

    def __init__(self, core: Core, views: bool = True) -> None:
        self._core = core
        self.views = views
        self._txn: Any = None
        self.thread = 0

    def __enter__(self) -> ReadTxn:
        core = self._core
        self.thread = get_ident()
        core.active.add(self)
        if not core.stopped:
            try:
                # Positional, for this is on the path of every look-up: database, parent, write, buffers.
                self._txn = core.begin(None, None, False, self.views)
                return self
            except Exception:
                # Tried again below, where every cause is dealt with.
                pass
        self._txn = core.begin_waiting(self, write=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        txn = self._txn
        if txn is not None:
            self._txn = None
            txn.abort()
            core = self._core
            core.active.discard(self)
            if core.handles == 0:
                core.close_if_idle()

    def follow(self) -> None:
        """Begin anew in the file that is at the path now, if that is another. Nothing may have been read yet."""
        core = self._core
        txn, self._txn = self._txn, None
        txn.abort()
        core.active.discard(self)
        core.follow(patient=False)
        self.__enter__()

    def id(self) -> int:
        """Number of the snapshot in this process: it grows with every commit, and when another file is gone over to."""
        try:
            return self._txn.id() + self._core.ids_before  # type: ignore[no-any-return]
        except Exception as error:
            raise self._failure(error) from error

    def get(self, key: Bytes) -> memoryview | None:
        """The value of `key`, or None."""
        try:
            return self._txn.get(key)  # type: ignore[no-any-return]
        except Exception as error:
            raise self._failure(error) from error

    def get_many(self, keys: Sequence[Bytes]) -> list[tuple[memoryview, memoryview]]:
        """Keys and values of those of `keys` that exist, in the order of `keys`."""
        try:
            return self._txn.cursor().getmulti(keys)  # type: ignore[no-any-return]
        except Exception as error:
            raise self._failure(error) from error

    def tree(self, prefix: bytes) -> Tree | None:
        """The pages to walk for keys that begin with `prefix`; None if only `get` and `get_many` can tell."""
        try:
            return self._core.file_map.tree(self._txn.id(), self._txn.stat())
        except Exception as error:
            raise self._failure(error) from error

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[memoryview, memoryview]]:
        """Keys and values of all keys that begin with `prefix`, ascending, from ``prefix + start`` on."""
        size = len(prefix)
        try:
            cursor = self._txn.cursor()
            entries = cursor.iternext() if cursor.set_range(prefix + start) else iter(())
            # One comparison for many entries: the last of a batch tells whether all of it belongs. More and more of
            # them, for behind the prefix there may be others that cost reading their pages (none found: 2 us, not 140).
            ahead = 1
            while batch := list(islice(entries, ahead)):
                ahead = min(8 * ahead, SCAN_ENTRIES)
                whole = batch[-1][0][:size] == prefix
                for entry in batch:
                    if self._txn is None or not (whole or entry[0][:size] == prefix):
                        break
                    yield entry
                else:
                    continue
                if self._txn is None:
                    raise self._failure(ClosedError())
                return
        except Exception as error:
            raise self._failure(error) from error

    def last(self, prefix: bytes) -> tuple[bytes, memoryview] | None:
        """The greatest key that begins with `prefix`, and its value."""
        end = _successor(prefix)
        try:
            cursor = self._txn.cursor()
            found = cursor.prev() if end is not None and cursor.set_range(end) else cursor.last()
            key = bytes(cursor.key()) if found else b""
            return (key, cursor.value()) if found and key.startswith(prefix) else None
        except Exception as error:
            raise self._failure(error) from error

    def abandon(self) -> None:
        """Forget the engine's transaction without touching it: it belongs to the parent process."""
        self._txn = None

    def _failure(self, error: Exception) -> Exception:
        if self._txn is None:
            return self._core.refused() or ClosedError(f"{self._core.path}: a transaction was used outside its `with`")
        return self._core.translated(error)


class WriteTxn(ReadTxn):
    """The transaction that `Env.write` passes on: commits when it ends, aborts on an exception.

    It sees its own writes; a value it has read is valid until its next write.
    """

    __slots__ = ("_full", "_written")

    def __enter__(self) -> WriteTxn:
        # Beginnings of the keys written or deleted.
        self._written: set[bytes] = set()
        self._full: Exception | None = None
        self.thread = get_ident()
        self._core.active.add(self)
        self._txn = self._core.begin_waiting(self, write=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        txn = self._txn
        if txn is None:
            return
        try:
            if kind is not None or self._full is not None:
                txn.abort()
            else:
                txn.commit()
        finally:
            self._txn = None
            self._core.active.discard(self)
        if self._full is not None and kind is None:
            # The caller's function swallowed the error.
            raise self._full

    def follow(self) -> None:
        """Do nothing: whoever took the write lock has seen to it."""

    def tree(self, prefix: bytes) -> Tree | None:
        """As of the commit before, for what this transaction writes is not in the file; None if it wrote such keys."""
        if any(key.startswith(prefix) or prefix.startswith(key) for key in self._written):
            return None
        try:
            return self._core.file_map.tree(self._txn.id() - 1, self._core.engine.stat())
        except Exception as error:
            raise self._failure(error) from error

    def put(self, key: Bytes, value: Bytes) -> None:
        """Set `key` to `value`."""
        if not 0 < len(key) <= LMDB_KEY_BYTES_MAX:
            raise LimitError(f"a key of {len(key)} bytes; keys have 1 to {LMDB_KEY_BYTES_MAX}")
        self._written.add(bytes(key[:SPACE_BYTES]))
        try:
            self._txn.put(key, value)
        except Exception as error:
            raise self._failure(error) from error

    def put_many(self, items: Iterable[tuple[Bytes, Bytes]], append: bool = False) -> int:
        """Set many keys that begin alike (with namespace and number); how many.

        With `append` they must ascend and follow every key of the file.
        """
        pairs = iter(items)
        for first in pairs:
            self._written.add(bytes(first[0][:SPACE_BYTES]))
            pairs = chain((first,), pairs)
            break
        try:
            consumed, added = self._txn.cursor().putmulti(pairs, append=append)
        except Exception as error:
            raise self._failure(error) from error
        if consumed != added:
            raise InputError(f"{consumed - added} of {consumed} keys to append do not follow the ones before them")
        return int(consumed)

    def delete(self, key: Bytes) -> bool:
        """Remove `key`; whether it existed."""
        self._written.add(bytes(key[:SPACE_BYTES]))
        try:
            return bool(self._txn.delete(key))
        except Exception as error:
            raise self._failure(error) from error

    def delete_prefix(self, prefix: bytes) -> int:
        """Remove every key that begins with `prefix`; how many."""
        self._written.add(prefix[:SPACE_BYTES])
        end = _successor(prefix)
        try:
            cursor = self._txn.cursor()
            if not cursor.set_range(prefix):
                return 0
            # Count, then delete as many from the start: both loops run in C.
            keys = map(bytes, cursor.iternext(keys=True, values=False))
            count = sum(map(bool, keys if end is None else takewhile(end.__gt__, keys)))
            cursor.set_range(prefix)
            return sum(starmap(cursor.delete, repeat((), count)))
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> Exception:
        if self._core.is_map_full(error):
            # For `Core.commit`, which grows the map and runs the function again.
            self._full = error
            return error
        return super()._failure(error)


def _successor(prefix: bytes) -> bytes | None:
    """The least key greater than all that begin with `prefix`; None if there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None
