"""How kernels read a column where it lies in the file: as packed integers, at any position, by address.

A column of a segment is described by one record of `CELLS`. Its chunks are words of 64 bits at the addresses
``addresses[table]``, ``addresses[table + 1]``, ...; a chunk has ``1 << shift`` values of `width` bits, one after the
other from the least significant bit on. Value ``v`` stands for ``base + v``. A plain array of integers is packed too:
its width is that of the dtype, its base 0. Width 0 means that every value is `base`; the address is then that of
any word. Callers see to it that positions are within the column and chunks as long as they must be.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

CELLS = np.dtype(
    [
        ("table", "<i8"),  # place of the first chunk's address
        ("valid", "<i8"),  # that of the first chunk's validity bits (address 0: no nulls), or -1: no nulls at all
        ("shift", "<i8"),
        ("width", "<i8"),
        ("mask", "<u8"),  # the `width` lowest bits
        ("base", "<i8"),
    ]
)


@intrinsic
def load_word(_, address, place):
    """The 64-bit word number `place` from an address on."""

    def codegen(_, builder, __, args):
        word = ir.IntType(64)
        return builder.load(builder.gep(builder.inttoptr(args[0], word.as_pointer()), [args[1]]))

    return types.uint64(types.uint64, types.int64), codegen


@intrinsic
def load_byte(_, address, place):
    """The byte number `place` from an address on."""

    def codegen(_, builder, __, args):
        byte = ir.IntType(8)
        return builder.load(builder.gep(builder.inttoptr(args[0], byte.as_pointer()), [args[1]]))

    return types.uint8(types.uint64, types.int64), codegen


@njit(inline="always", nogil=True)
def unpacked(addresses, table, shift, width, mask, position):
    """The packed integer at `position`, without the base.

    Free of branches: a value within one word reads that word twice, so nothing behind the last word is read.
    """
    bit = (position & ((np.int64(1) << shift) - 1)) * width
    address = addresses[table + (position >> shift)]
    word = bit >> 6
    start = bit & 63
    low = load_word(address, word)
    high = load_word(address, word + np.int64(start + width > 64))
    return ((low >> np.uint64(start)) | ((high << np.uint64(1)) << np.uint64(63 - start))) & mask


@njit(inline="always", nogil=True)
def value_at(addresses, cells, position):
    """The integer at `position` of the column that the record `cells` describes."""
    packed = unpacked(addresses, cells.table, cells.shift, cells.width, cells.mask, position)
    return cells.base + np.int64(packed)


@intrinsic
def prefetch(_, address, place):
    """Ask for the cache line of the byte number `place` from an address on."""

    def codegen(context, builder, __, args):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        where = builder.gep(builder.inttoptr(args[0], byte), [args[1]])
        builder.call(function, [where, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64), codegen


@njit(inline="always", nogil=True)
def prefetch_at(addresses, table, shift, width, position):
    """Ask for the word of the packed integer at `position`."""
    bit = (position & ((np.int64(1) << shift) - 1)) * width
    prefetch(addresses[table + (position >> shift)], bit >> 3)


@njit(inline="always", nogil=True)
def is_valid(addresses, valid, shift, position):
    """Whether the value at `position` is not null, in a column with validity bits."""
    address = addresses[valid + (position >> shift)]
    place = position & ((np.int64(1) << shift) - 1)
    return address == 0 or (load_byte(address, place >> 3) >> np.uint8(place & 7)) & 1 != 0
