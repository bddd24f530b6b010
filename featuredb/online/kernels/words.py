"""Words at any place of an array of bytes: the compiler makes one load of each."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic


@njit(inline="always", nogil=True)
def u16(data, at):
    i = np.uint64(at)
    return np.int64(data[i]) | np.int64(data[i + np.uint64(1)]) << 8


@njit(inline="always", nogil=True)
def u32(data, at):
    return u16(data, at) | u16(data, at + 2) << 16


@njit(inline="always", nogil=True)
def u64(data, at):
    i = np.uint64(at)
    word = np.uint64(data[i])
    word |= np.uint64(data[i + np.uint64(1)]) << np.uint64(8)
    word |= np.uint64(data[i + np.uint64(2)]) << np.uint64(16)
    word |= np.uint64(data[i + np.uint64(3)]) << np.uint64(24)
    word |= np.uint64(data[i + np.uint64(4)]) << np.uint64(32)
    word |= np.uint64(data[i + np.uint64(5)]) << np.uint64(40)
    word |= np.uint64(data[i + np.uint64(6)]) << np.uint64(48)
    word |= np.uint64(data[i + np.uint64(7)]) << np.uint64(56)
    return word


@intrinsic
def _swapped(_, word):
    """The bytes of a word in reverse."""

    def codegen(context, builder, signature, args):
        return builder.bswap(args[0])

    return types.uint64(types.uint64), codegen


@njit(inline="always", nogil=True)
def big_endian(data, at):
    """Eight bytes as a number that orders as they do."""
    return _swapped(u64(data, at))


@intrinsic
def prefetch(_, data, at):
    """Ask for the cache line of ``data[at]``."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.gep(array.data, [args[1]]), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(data, types.int64), codegen
