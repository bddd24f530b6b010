"""How a file is replaced under its readers: the mark that tells them to look whether it has been.

Whoever opened a file goes on with it, whatever is at its path by now. So before a writer puts another file there,
it marks the definitions' state, which every call reads anyway, in the old one. Who finds the mark compares the two
files, and goes over to the new one. If the writer was killed in between they are the same, and the next writer
takes the mark away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featuredb.limits import NS_DEFINITION
from featuredb.storage.records import pack, unpack
from featuredb.storage.txn import Bytes, ReadTxn, WriteTxn

if TYPE_CHECKING:
    from featuredb.storage.handle import Env

STATE_KEY = NS_DEFINITION + b"#"
# The first byte of the msgpack, behind the checksum: an array of three, the last of them the mark.
_MARKED = 0x93


def is_marked(raw: Bytes | None) -> bool:
    """Whether the state has a mark."""
    return raw is not None and len(raw) > 4 and raw[4] == _MARKED


def settle(txn: ReadTxn) -> bytes:
    """The definitions' state, without a mark, once it is sure that `txn` reads the file that is at its path.

    If it does not, it begins anew in that file. So nothing else may have been read from it.
    """
    raw = txn.get(STATE_KEY)
    if is_marked(raw):
        txn.follow()
        raw = txn.get(STATE_KEY)
    if raw is None or not is_marked(raw):
        return b"" if raw is None else bytes(raw)
    return pack(STATE_KEY, _parts(raw)[:2])


def raise_version(txn: WriteTxn) -> None:
    """Let no state from before be taken for one of the file that is about to be written."""
    version, next_id, *_ = _parts(txn.get(STATE_KEY))
    txn.put(STATE_KEY, pack(STATE_KEY, [version + 1, next_id]))


def mark(txn: WriteTxn) -> None:
    """Say that the file is about to be replaced; each mark is another."""
    version, next_id, *before = _parts(txn.get(STATE_KEY))
    txn.put(STATE_KEY, pack(STATE_KEY, [version, next_id, before[0] + 1 if before else 1]))


def clear_mark(txn: WriteTxn) -> None:
    """Take away the mark, as the file was not replaced."""
    txn.put(STATE_KEY, pack(STATE_KEY, _parts(txn.get(STATE_KEY))[:2]))


def clear_left_mark(env: Env) -> None:
    """Take away the mark of a writer that was killed. Needs the writer lock."""
    with env.read() as txn:
        found = is_marked(txn.get(STATE_KEY))
    if found:
        env.write(clear_mark)


def _parts(raw: Bytes | None) -> list[int]:
    return [0, 1] if raw is None else list(unpack(STATE_KEY, bytes(raw), "the registry's state"))
