"""Entity keys as bytes: every dtype, round trip, order and no collisions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featuredb.columns import Column, Heap
from featuredb.errors import CorruptionError, InputError
from featuredb.offline import kernels
from featuredb.offline.dictionary import _encoder
from featuredb.offline.kernels.hashing import LANES
from featuredb.schema import DTYPES, INTEGER_NAMES, DType
from featuredb.storage.crc import seal
from featuredb.storage.keys import decode_keys, encode_keys, value_encoder
from featuredb.storage.keyspace import _pack_codes, code_of
from featuredb.storage.segment import frozen


def encode_key(values: Sequence[object], dtypes: Sequence[DType]) -> bytes:
    """One key as an online read of one key encodes it: value by value."""
    return b"".join([value_encoder(dtype)(value) for value, dtype in zip(values, dtypes, strict=True)])


VALUES = {
    **{
        name: st.integers(int(np.iinfo(name).min), int(np.iinfo(name).max))
        | st.sampled_from([int(np.iinfo(name).min), int(np.iinfo(name).max), 0, 1])
        for name in INTEGER_NAMES
    },
    "bool": st.booleans(),
    "string": st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x00\x01\x02"), max_size=8),
    "bytes": st.binary(max_size=8) | st.lists(st.sampled_from([0, 1, 2]), max_size=8).map(bytes),
}


def column(name: str, values: list) -> Column:
    dtype = DTYPES[name]
    if not dtype.is_variable:
        return Column(dtype, np.array(values, dtype=dtype.numpy))
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    return Column(dtype, np.arange(len(raw), dtype=dtype.numpy), None, Heap.of(raw))


def values_of(result: Column) -> list:
    if result.heap is None:
        return result.data.tolist()
    raw = [result.heap.tolist()[place] for place in result.data]
    return [value.decode() for value in raw] if result.dtype.name == "string" else raw


@st.composite
def key_tuples(draw: st.DrawFn) -> tuple[list[str], list[tuple]]:
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4))
    return names, draw(st.lists(st.tuples(*(VALUES[name] for name in names)), max_size=8))


def sortable(key: tuple) -> tuple:
    return tuple(value.encode() if isinstance(value, str) else value for value in key)


@given(key_tuples())
def test_keys_round_trip_in_order_and_one_by_one(case: tuple[list[str], list[tuple]]) -> None:
    names, keys = case
    dtypes = [DTYPES[name] for name in names]
    encoded = encode_keys([column(name, [key[i] for key in keys]) for i, name in enumerate(names)])
    raw = encoded.tolist()
    assert raw == [encode_key(key, dtypes) for key in keys]
    decoded = decode_keys(encoded, dtypes)
    assert list(zip(*(values_of(part) for part in decoded), strict=True)) == keys
    # UTF-8 orders as code points do, so byte order is value order.
    assert [sortable(k) for k in sorted(keys, key=sortable)] == [
        sortable(k) for _, k in sorted(zip(raw, keys, strict=True), key=lambda pair: pair[0])
    ]
    assert len(set(raw)) == len({sortable(key) for key in keys})


@given(key_tuples(), st.integers(1, 3))
def test_keys_of_many_rows_are_encoded_as_those_of_few(case: tuple[list[str], list[tuple]], step: int) -> None:
    names, keys = case
    columns = [column(name, [key[i] for key in keys]) for i, name in enumerate(names)]
    encode = _encoder(columns)
    parts = [encode(slice(low, min(low + step, len(keys)))).tolist() for low in range(0, len(keys), step)]
    assert [key for part in parts for key in part] == encode_keys(columns).tolist()


@given(st.lists(st.binary(max_size=20), unique=True, max_size=30), st.lists(st.binary(max_size=20), max_size=30))
def test_bytes_are_found_in_a_hash_table_if_they_are_in_it(known: list[bytes], asked: list[bytes]) -> None:
    held, keys = Heap.of(known), Heap.of([*asked, *known])
    slots = np.full(64, -1, dtype=np.int32)
    kernels.insert_bytes(frozen(held.offsets), frozen(held.data), 0, slots)
    out = np.empty(len(keys), dtype=np.int32)
    kernels.find_bytes(
        frozen(keys.offsets),
        frozen(keys.data),
        frozen(held.offsets),
        frozen(held.data),
        slots,
        np.empty(LANES, np.uint64),
        out,
    )
    assert out.tolist() == [known.index(key) if key in known else -1 for key in [*asked, *known]]


def test_composite_keys_that_look_alike_stay_apart() -> None:
    string = DTYPES["string"]
    keys = [("1", "11"), ("11", "1"), ("", "111"), ("111", ""), ("a\x00", "b"), ("a", "\x00b")]
    assert len({encode_key(key, [string, string]) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (300, "int8", "out of range of int8"),
        (-1, "uint64", "out of range of uint64"),
        (True, "int64", "give an int"),
        (1.0, "int64", "give an int"),
        (1, "string", "give a str"),
        ("a", "bytes", "give bytes"),
        (1, "bool", "give True or False"),
        ("\ud800", "string", "lone surrogate"),
    ],
)
def test_a_key_of_the_wrong_type_is_refused(value: object, name: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        encode_key([value], [DTYPES[name]])


@pytest.mark.parametrize("raw", [b"", b"a", b"a\x00b", b"\x00\x00"])
def test_damaged_key_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(CorruptionError):
        decode_keys(Heap.of([raw]), [DTYPES["string"]])


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 1 << 14])
@pytest.mark.parametrize("width", [0, 1, 8, 64, 65, 500])
def test_codes_are_stored_with_the_checksum_that_their_readers_expect(
    monkeypatch: pytest.MonkeyPatch, width: int, rows_at_a_time: int
) -> None:
    """Of keys of one width, of whatever batches, or (width 0) of different ones."""
    monkeypatch.setattr("featuredb.storage.crc._ROWS_AT_A_TIME", rows_at_a_time)
    rng = np.random.default_rng(width)
    keys = [rng.bytes(width or 1 + place % 5) for place in range(10)]
    codes = np.array([0, 1, 255, 256, 70_000, 2**31 - 3, 7, 8, 9, 10], dtype=np.int32)
    for start, stop in ((0, 10), (2, 9), (4, 5)):
        packed = _pack_codes(Heap.of(keys).part(start, stop), codes[start:stop])
        assert packed == [
            seal(key, code.tobytes()) for key, code in zip(keys[start:stop], codes[start:stop], strict=True)
        ]
        read = [code_of(key, memoryview(raw)) for key, raw in zip(keys[start:stop], packed, strict=True)]
        assert read == codes[start:stop].tolist()
