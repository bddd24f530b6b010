"""The data file as a file: what it is, found out before the engine maps it, and how a new one gets its name.

A short file would kill the process on read (SIGBUS), a foreign one would be given a lock file. So the meta
pages and the format record are read here with plain ``pread``. The layout is LMDB 0.9's, 64-bit little-endian:
a 16-byte page header, then on the first two pages a meta record, of which the one with the greater
transaction id counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from featuredb import limits
from featuredb.errors import CorruptionError, FileError, FormatVersionError, NotADatabaseError
from featuredb.storage.records import COUNTER_MAX, pack, unpack

NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
# LMDB reports a write cut short by a full disk as EIO.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
MAGIC = 0xBEEFC0DE
DATA_VERSION = 1
META_BYTES = 152
TRANSACTION_AT = 144
# Of the tree of free pages, then of that of entries. The upper byte of the first is of the environment it was made in.
_TREE_FLAGS_AT = (44, 92)
_INTEGER_KEYS = 0x08
PAGE_BYTES_MIN, PAGE_BYTES_MAX = 256, 1 << 15
_LAST_PAGE_MAX = 1 << 47  # no file is longer
_PAGE_HEADER_BYTES = 16
_BRANCH, _LEAF, META_PAGE = 0x01, 0x02, 0x08
_BIG_VALUE = 0x01
_DEPTH_MAX = 32
_FORMAT_RECORD_BYTES_MAX = 4096
# Other writers may commit between two of our reads; a fresh look then finds the file whole.
_LOOKS_MAX = 3
_SIGNATURES = (
    (0, b"SQLite format 3\0", "a SQLite database"),
    (8, b"DUCK", "a DuckDB database"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip file"),
)


@dataclass(frozen=True, slots=True)
class Meta:
    """The newest meta record: where the tree starts and how far the file reaches."""

    page_bytes: int
    last_page: int
    root: int
    transaction: int


def check(path: str, verify: Callable[[str], list[str]]) -> bytes:
    """The format record of `path`; raises unless it is a whole featuredb file of a version that can be read.

    Parameters
    ----------
    path : str
        The file.
    verify : callable
        Walks the whole file and returns what is wrong with it; called only if the file is shorter than it says.

    Raises
    ------
    FileError
        Missing, a directory, empty or not readable.
    NotADatabaseError, FormatVersionError, CorruptionError
        It is another program's file, a newer featuredb's, or damaged.
    """
    check_regular(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    try:
        return _check_content(path, fd, verify)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def encode_format(file_id: str, created_us: int) -> bytes:
    """The format record of a new file."""
    return pack(
        limits.NS_FORMAT,
        {
            "magic": limits.FORMAT_MAGIC,
            "version": limits.FORMAT_VERSION,
            "file_id": file_id,
            "created_us": created_us,
        },
    )


def file_error(path: str, error: Exception, done: str) -> FileError:
    """The error that says that `path` cannot be `done` ("opened", ...); `error` is the system's or the engine's."""
    if isinstance(error, FileError):
        return error
    code = error.errno if isinstance(error, OSError) else getattr(error, "code", 0)
    if code == errno.EROFS:
        return FileError(
            f"{path}: cannot be {done}: its file system is read-only; give a path that can be written, "
            "or open it with read_only=True"
        )
    if code in NOT_ALLOWED:
        return FileError(
            f"{path}: cannot be {done}: permission denied; check the permissions of the file, its folder and "
            f"{path}-lock, or open it with read_only=True"
        )
    if code in _NO_SPACE:
        return FileError(
            f"{path}: cannot be {done}: the disk is full or failing ({error}); free disk space, then retry"
        )
    return FileError(f"{path}: cannot be {done}: {error}")


def temporary_name(path: str) -> str:
    """A name beside `path` that no one else uses.

    Raises
    ------
    FileError
        The folder does not exist.
    """
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise FileError(f"{path}: the folder {folder} does not exist; create it first")
    return os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.tmp")


def successor_name(path: str) -> str:
    """The name of the file that is to take the place of `path`: the same each time, so that none is left behind."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name[:100]}.{zlib.crc32(os.fsencode(name)):08x}.compact")


def discard(temporary: str) -> None:
    """Remove the file `temporary` if it is there and can be removed."""
    # A read-only file system refuses also where there is none. That must not hide the error that led here.
    with contextlib.suppress(OSError):
        os.unlink(temporary)


def publish(temporary: str, path: str) -> bool:
    """Give the finished file `temporary` the name `path`, durably; False, and no change, if that is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links: claim the name, then replace the empty file.
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    else:
        os.unlink(temporary)
    _sync_folder(path)
    return True


def replace(temporary: str, path: str) -> None:
    """Put the finished file `temporary` in the place of `path`, durably and at once."""
    os.replace(temporary, path)
    _sync_folder(path)


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Not every file system lets a folder be synced.
        with contextlib.suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


def key_of(fd: int) -> tuple[int, int]:
    """What tells a file from any other on this machine, whatever its path."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def key_at(path: str) -> tuple[int, int]:
    """The `key_of` the file at `path`; `FileError` if there is none."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise FileError(
            f"{path}: is not there any more ({error.strerror}); put it back, or close it and open it where it is"
        ) from error
    return found.st_dev, found.st_ino


def take_after(fd: int, path: str, transaction: int) -> None:
    """Make the new file `fd` the successor of `path`: its permissions, and `transaction` its last one's number.

    A reader is told by the lock file, which stays the same, which transaction is the last, and takes the
    meta page of that parity. So the parity must be right already.
    """
    found = os.stat(path)
    # The owner first: the permissions are for that one and its group.
    with contextlib.suppress(OSError):
        os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, stat.S_IMODE(found.st_mode))
    newest = _read_meta(path, fd)
    behind = transaction - newest.transaction
    assert behind >= 0
    assert behind % 2 == 0
    for page in range(2):
        at = page * newest.page_bytes + TRANSACTION_AT
        (number,) = struct.unpack("<Q", os.pread(fd, 8, at))
        os.pwrite(fd, struct.pack("<Q", number + behind), at)
    os.fsync(fd)


def check_regular(path: str) -> None:
    """Raise unless there is a file at `path`, with something in it."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileError(f"{path}: no such file; check the path, or open it with create=True") from error
    except OSError as error:
        raise FileError(f"{path}: cannot be opened: {error.strerror}") from error
    if stat.S_ISDIR(found.st_mode):
        raise FileError(f"{path}: is a directory; give the path of a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"{path}: is not a regular file")
    if found.st_size == 0:
        raise FileError(f"{path}: is empty; delete it, then open it with create=True")


def check_lock_file(path: str) -> None:
    """Raise if something else is where the lock file belongs: LMDB would write through a link, whatever it leads to."""
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"{path}: is in the place of the lock file, and is no regular file; remove it")


def _check_content(path: str, fd: int, verify: Callable[[str], list[str]]) -> bytes:
    for looks_left in reversed(range(_LOOKS_MAX)):
        meta = _read_meta(path, fd)
        # The size is taken after the meta page: the file only grows, and grows before a meta page says so.
        file_bytes = os.fstat(fd).st_size
        record = _format_record(fd, meta)
        whole = file_bytes >= (meta.last_page + 1) * meta.page_bytes
        if whole and record is not None:
            break
        if looks_left == 0 and not whole:
            _check_truncated(path, file_bytes, meta, verify)
    if record is None:
        raise _foreign(path, "is an LMDB file of another program, not a featuredb file")
    check_format(path, record)
    return record


def _check_truncated(path: str, file_bytes: int, meta: Meta, verify: Callable[[str], list[str]]) -> None:
    problems = verify(path)
    if problems:
        raise CorruptionError(
            f"{path}: is truncated: {file_bytes} bytes of {(meta.last_page + 1) * meta.page_bytes} are there "
            f"({problems[0]}); restore it from a backup"
        )


def _read_meta(path: str, fd: int) -> Meta:
    head = os.pread(fd, 4096, 0)
    if len(head) < 32 or struct.unpack_from("<I", head, 16)[0] != MAGIC:
        raise _foreign(path, f"is not a featuredb file{_guess(head)}")
    (version,) = struct.unpack_from("<I", head, 20)
    if version != DATA_VERSION:
        raise _foreign(path, f"is not a featuredb file: its LMDB data version is {version}, not 1")
    first = parse_meta(head)
    second = parse_meta(os.pread(fd, META_BYTES, first.page_bytes)) if first is not None else None
    if first is None or second is None or first.page_bytes != second.page_bytes:
        raise CorruptionError(f"{path}: its meta pages are truncated or damaged; restore it from a backup")
    slot = int(second.transaction > first.transaction)
    newest = (first, second)[slot]
    # The engine takes the page of the number's parity: it would read another tree than the one that is proven.
    if newest.transaction % 2 != slot:
        raise CorruptionError(f"{path}: its meta pages are in each other's place; restore it from a backup")
    return newest


def parse_meta(page: bytes) -> Meta | None:
    """What a meta page says, None if it is damaged."""
    if len(page) < META_BYTES or not struct.unpack_from("<H", page, 10)[0] & META_PAGE:
        return None
    magic, version = struct.unpack_from("<II", page, 16)
    (page_bytes,) = struct.unpack_from("<I", page, 40)
    root, last_page, transaction = struct.unpack_from("<QQQ", page, 128)
    free_flags, flags = (struct.unpack_from("<H", page, at)[0] for at in _TREE_FLAGS_AT)
    sane = page_bytes & (page_bytes - 1) == 0 and PAGE_BYTES_MIN <= page_bytes <= PAGE_BYTES_MAX
    # By its flags the engine compares the keys of a tree and reads its leaves: with others it would come to no end, or
    # abort the process.
    ordered = free_flags & 0xFF == _INTEGER_KEYS and flags == 0
    # From its number the next transactions count on.
    in_range = 1 <= last_page < _LAST_PAGE_MAX and transaction <= COUNTER_MAX
    if (magic, version) != (MAGIC, DATA_VERSION) or not (sane and ordered and in_range):
        return None
    return Meta(page_bytes, last_page, root, transaction)


def _format_record(fd: int, meta: Meta) -> bytes | None:
    """The value of the least key, if that key is ``NS_FORMAT``: down the left edge of the tree."""
    page_number = meta.root
    for _ in range(_DEPTH_MAX):
        if page_number > meta.last_page:
            return None
        page = os.pread(fd, meta.page_bytes, page_number * meta.page_bytes)
        if len(page) < meta.page_bytes:
            return None
        own_number, _, flags, lower = struct.unpack_from("<QHHH", page)
        (node,) = struct.unpack_from("<H", page, _PAGE_HEADER_BYTES)
        if own_number != page_number or lower <= _PAGE_HEADER_BYTES or node + 8 > len(page):
            return None
        low, high, node_flags, key_bytes = struct.unpack_from("<HHHH", page, node)
        if flags & _BRANCH:
            page_number = low | high << 16 | node_flags << 32
            continue
        if not flags & _LEAF or node_flags & _BIG_VALUE:
            return None
        key, value = node + 8, node + 8 + key_bytes
        value_bytes = low | high << 16
        if page[key:value] != limits.NS_FORMAT or value_bytes > min(_FORMAT_RECORD_BYTES_MAX, len(page) - value):
            return None
        return page[value : value + value_bytes]
    return None


def check_format(path: str, record: bytes) -> None:
    """Raise unless a format record is that of a file which this library reads."""
    try:
        found = unpack(limits.NS_FORMAT, record, f"{path}: its format record")
        magic, version = found["magic"], found["version"]
    except CorruptionError:
        if limits.FORMAT_MAGIC.encode() in record:
            raise
        magic, version = None, None
    except (TypeError, KeyError):
        magic, version = None, None
    if magic != limits.FORMAT_MAGIC or type(version) is not int or version < 1:
        raise _foreign(path, "is an LMDB file of another program, not a featuredb file")
    if version > limits.FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: has format version {version}, this featuredb reads up to {limits.FORMAT_VERSION}; "
            "upgrade featuredb"
        )


def _foreign(path: str, what: str) -> NotADatabaseError:
    # Damage to what tells a file apart makes it look like another's.
    return NotADatabaseError(f"{path}: {what}; check the path, or if it was one, restore it from a backup")


def _guess(head: bytes) -> str:
    for at, signature, name in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            return f" but {name}"
    if len(head) >= 28 and struct.unpack_from("<I", head, 24)[0] == MAGIC:
        return " but an LMDB 1.0 file of another program"
    # A multi-byte character may be cut at the end of what was read.
    text = head.decode("utf-8", errors="ignore")
    if len(text.encode()) >= len(head) - 3 and all(char.isprintable() or char in "\r\n\t\f" for char in text):
        return " but a text file"
    return ""
