"""Every bound and on-disk constant, with its unit. A limit stands here and nowhere else."""

from __future__ import annotations

import sys
from typing import Final

# --- the file ---------------------------------------------------------------------------------
FORMAT_MAGIC: Final = "featuredb"
FORMAT_VERSION: Final = 1
# Virtual address space only: the file grows as pages are written. Halved until the system grants it.
MAP_SIZE_BYTES: Final = 1 << 40
MAP_SIZE_MIN_BYTES: Final = 1 << 26
# For databases in memory, of which a notebook may leave hundreds open: address space is finite.
MEMORY_MAP_SIZE_BYTES: Final = 1 << 30
READERS_MAX: Final = 1022
WRITE_TIMEOUT_SECONDS: Final = 60.0

# Key prefixes of the one LMDB tree (see FORMAT.md). One tree and not a named sub-database per table: py-lmdb
# opens one for good only inside a write transaction, so a reader would wait for another process's writer
# (measured: 2 s behind a writer of 2 s). Online rows sort last, so the newest table's bulk load appends and
# packs its pages.
NS_FORMAT: Final = b"a"
NS_CODE_BLOCK: Final = b"b"
NS_COMMIT: Final = b"c"
NS_DEFINITION: Final = b"d"
NS_PENDING: Final = b"e"
NS_SEGMENT: Final = b"f"
NS_STAGED: Final = b"g"
NS_CHUNK: Final = b"h"
NS_PINNED: Final = b"i"
NS_REJECTED: Final = b"j"
NS_KEY: Final = b"k"
NS_SNAPSHOT: Final = b"l"
NS_MANIFEST: Final = b"m"
NS_UNDO: Final = b"n"
NS_TAIL: Final = b"o"
NS_ONLINE: Final = b"p"

# --- definitions ------------------------------------------------------------------------------
NAME_CHARS_MAX: Final = 128
TABLES_MAX: Final = 100_000
FEATURES_PER_TABLE_MAX: Final = 4096
ENTITIES_PER_TABLE_MAX: Final = 16
# Online rows tell their layout by two bytes; the features as defined first are layout 0.
LAYOUTS_MAX: Final = 1 << 16
# Each makes an online look-up in an older one a look-up more.
SNAPSHOTS_MAX: Final = 1000

# --- keys and values --------------------------------------------------------------------------
# LMDB allows 511 bytes; the longest prefix of a key, that of a saved online row, takes 11.
KEY_BYTES_MAX: Final = 500
KEYS_PER_BLOCK: Final = 512
ENTITIES_MAX: Final = (1 << 31) - 2
VALUE_BYTES_MAX: Final = 1 << 24
# Elements of a vector such as float32[384].
VECTOR_LENGTH_MAX: Final = 65_536
# What the fixed-width features of one row may take together: vectors, above all.
ROW_BYTES_MAX: Final = 1 << 24
# Years 1 to 9999, the range every library we hand timestamps to can hold at microseconds.
TIMESTAMP_MIN_US: Final = -62_135_596_800_000_000
TIMESTAMP_MAX_US: Final = 253_402_300_799_999_999
# An absent created timestamp is older than any; as an event timestamp in a result it means "no row".
ABSENT_US: Final = -(1 << 63)
# When a replaced row "becomes known": later than any time that can be asked for.
NEVER_US: Final = (1 << 63) - 1

# --- segments ---------------------------------------------------------------------------------
CHUNK_BYTES_TARGET: Final = 1 << 22
CHUNK_BYTES_MAX: Final = 1 << 30
CHUNK_ROWS_MAX: Final = 1 << 19
SEGMENT_ROWS_MAX: Final = 1 << 25
# Decimals are stored as integers of a magnitude below the second, over ten to the power of at most the first: both
# are exact as floats, so that a quotient is rounded once.
DECIMAL_EXPONENT_MAX: Final = 15
DECIMAL_INTEGER_MAX: Final = 1 << 51
# Packed values must take less than plain ones by this share, or they are stored plain, which is faster to read.
PACKED_SAVING_MIN: Final = 1 / 16
# A transaction holds what it writes in memory until it ends, and then waits for the disk: while a long segment is
# encoded, it is written in transactions of this size.
STAGE_BYTES: Final = 1 << 25
# More rows than these are merged while others write: none of them waits for longer than one part takes to be written.
# After each there is a pause, in which whoever waits gets the lock. With parts of 4 MiB one small commit in a hundred
# took 7.7 ms beside merges of a million rows, with these 0.9 ms (alone 0.7 ms); the merges take as long.
MERGE_LOCKED_ROWS_MAX: Final = 1 << 14
MERGE_STAGE_BYTES: Final = 1 << 20
MERGE_PAUSE_SECONDS: Final = 0.005
# A merge that has not written for so long is dead, and what it has staged is removed.
MERGE_STALE_SECONDS: Final = 60
# A segment is merged with its neighbours of like size once this many have gathered.
MERGE_FANOUT: Final = 4
# Rows of small ingests gather in the tail of their table, which becomes a segment when it has so many rows or bytes.
TAIL_ROWS_MAX: Final = 4096
TAIL_BYTES_MAX: Final = 1 << 22
# Larger ingests make a segment of their own.
SMALL_INGEST_ROWS_MAX: Final = 1024
SMALL_INGEST_BYTES_MAX: Final = 1 << 20
# A segment with more than this share of replaced rows is rewritten.
DEAD_SHARE_MAX: Final = 0.25

# --- batches and reports ----------------------------------------------------------------------
INGEST_BATCH_ROWS: Final = 1_000_000
# Data that is already in memory: larger batches, for one sort is cheaper than a merge.
INGEST_MEMORY_ROWS: Final = 1 << 24
JOIN_BATCH_ROWS: Final = 1_000_000
REJECTIONS_KEPT_MAX: Final = 1000
# Rejected rows a table keeps in the file: the newest.
REJECTED_ROWS_MAX: Final = 10_000
# Problems that one verification lists, and differences that its text shows.
VERIFY_FINDINGS_MAX: Final = 1000
# Rows held at a time are fewer than the bounds above when their fixed-width values are wide.
BATCH_BYTES_TARGET: Final = 1 << 30
# Resolved online queries a database keeps, so that repeated reads need not resolve names.
QUERIES_HELD_MAX: Final = 256
# Decoded segment descriptors a database keeps; merged-away segments leave theirs behind until then.
SEGMENTS_HELD_MAX: Final = 4096
# Tails that a database keeps decoded.
TAILS_HELD_MAX: Final = 64
# Closed files of which a process keeps what it has learned, and the largest dictionary of entity keys it keeps of one.
FILES_REMEMBERED_MAX: Final = 4
REMEMBERED_BYTES_MAX: Final = 1 << 26

if sys.byteorder != "little":
    raise ImportError("featuredb files are little-endian; this machine is not")
