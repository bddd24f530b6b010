"""How kernels read a column where it lies in the file: as packed integers, at any position, by address.

A column of a segment is described by seven integers, in the order of `TABLE` to `ALIGN`. Its chunks begin at
``addresses[table]``, ``addresses[table + 1]``, ...; a chunk has ``1 << shift`` values of `width` bits, one after the
other from the least significant bit of the first byte on. The packed integer ``v`` stands for ``base + v``. Width 0
means that every value is `base`; the addresses are then those of any word. A plain array of integers is packed as
well, with the width of its dtype and base 0.

A value is read with the 8 bytes that begin with its first; only one of more than 57 bits may need a ninth. Packed
chunks have a word more than they need, so that all of these are there. Plain arrays end where they end: of these the
aligned word that holds the value is read (`align` is -8 instead of -1), which no page boundary divides. Callers see to
it that positions are within the column.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Place of the first chunk's address; of the first chunk's validity bits (-1: none, address 0: no nulls in the chunk).
TABLE, VALID, SHIFT, WIDTH, MASK, BASE, ALIGN = range(7)


def _pointer(builder, address, place):
    return builder.gep(builder.inttoptr(address, ir.IntType(8).as_pointer()), [place])


@intrinsic
def load_word(_, address, place):
    """The 8 bytes from an address on, at the byte number `place`, as an integer."""

    def codegen(_, builder, __, args):
        pointer = builder.bitcast(_pointer(builder, *args), ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(types.uint64, types.int64), codegen


@intrinsic
def load_byte(_, address, place):
    """The byte number `place` from an address on."""

    def codegen(_, builder, __, args):
        return builder.load(_pointer(builder, *args))

    return types.uint8(types.uint64, types.int64), codegen


@intrinsic
def prefetch(_, address, place):
    """Ask for the cache line of the byte number `place` from an address on."""

    def codegen(context, builder, __, args):
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [_pointer(builder, *args), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64), codegen


@njit(nogil=True)
def unpacked(addresses, table, shift, width, mask, align, position):
    """The packed integer at `position`, without the base."""
    bit = (position & ((1 << shift) - 1)) * width
    byte = (bit >> 3) & align
    first = bit - (byte << 3)
    address = addresses[table + (position >> shift)]
    word = load_word(address, byte) >> np.uint64(first)
    if first + width > 64:
        word |= np.uint64(load_byte(address, byte + 8)) << np.uint64(64 - first)
    return np.int64(word & np.uint64(mask))


@njit(nogil=True)
def value_at(addresses, cells, position):
    """The integer at `position` of the column that `cells` describes."""
    return cells[BASE] + unpacked(
        addresses, cells[TABLE], cells[SHIFT], cells[WIDTH], cells[MASK], cells[ALIGN], position
    )


@njit(nogil=True)
def prefetch_at(addresses, table, shift, width, position):
    """Ask for the line of the packed integer at `position`."""
    bit = (position & ((1 << shift) - 1)) * width
    prefetch(addresses[table + (position >> shift)], bit >> 3)


@njit(nogil=True)
def is_valid(addresses, valid, shift, position):
    """Whether the value at `position` is not null, in a column with validity bits."""
    address = addresses[valid + (position >> shift)]
    place = position & ((1 << shift) - 1)
    return address == 0 or (load_byte(address, place >> 3) >> (place & 7)) & 1 != 0
