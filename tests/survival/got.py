"""Redirects what a loaded extension calls in the C library, without a compiler: its global offset table is rewritten.

An extension calls libc through a table of addresses, filled by the loader. The dynamic section (ELF, 64-bit, as
mapped) says where: relocations of type JUMP_SLOT or GLOB_DAT give the address of a slot and the name of its symbol.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterable

_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23
_PT_LOAD, _PT_DYNAMIC = 1, 2
_RELA_BYTES, _SYMBOL_BYTES = 24, 24
# Relocation types that fill a slot with a symbol's address: x86-64, then aarch64.
_SLOT_TYPES = (6, 7, 1025, 1026)
_PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def slots(library: str, names: Iterable[str]) -> dict[str, list[int]]:
    """Addresses of the slots that hold the functions `names` in a loaded library, by name.

    Raises
    ------
    LookupError
        The library is not loaded, or calls none of them.
    """
    base = _base_of(library)
    dynamic = _dynamic_section(base)
    wanted = set(names)
    found: dict[str, list[int]] = {}
    for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        for at in range(dynamic.get(table, 0), dynamic.get(table, 0) + dynamic.get(size, 0), _RELA_BYTES):
            offset, info, _ = struct.unpack("<QQq", ctypes.string_at(at, _RELA_BYTES))
            if info & 0xFFFFFFFF in _SLOT_TYPES:
                symbol = ctypes.string_at(dynamic[_DT_SYMTAB] + (info >> 32) * _SYMBOL_BYTES, 4)
                name = ctypes.string_at(dynamic[_DT_STRTAB] + int.from_bytes(symbol, "little")).decode()
                if name in wanted:
                    found.setdefault(name, []).append(base + offset)
    if not found:
        raise LookupError(f"{library} calls none of {', '.join(sorted(wanted))} through its table")
    return found


def redirect(addresses: Iterable[int], function: int) -> None:
    """Point slots at `function`; the pages of the table may have been made read-only by the loader."""
    libc = ctypes.CDLL(None, use_errno=True)
    for address in addresses:
        # A slot does not cross pages.
        page = address & -mmap.PAGESIZE
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), _PROT_READ_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")
        ctypes.c_uint64.from_address(address).value = function


def _base_of(library: str) -> int:
    with open("/proc/self/maps") as maps:
        for line in maps:
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[5].strip() == library and int(parts[2], 16) == 0:
                return int(parts[0].partition("-")[0], 16)
    raise LookupError(f"{library} is not loaded")


def _dynamic_section(base: int) -> dict[int, int]:
    """Tag to value; addresses are absolute."""
    headers_at, entry_bytes, entries = (
        struct.unpack("<Q", ctypes.string_at(base + 32, 8))[0],
        *struct.unpack("<HH", ctypes.string_at(base + 54, 4)),
    )
    at = 0
    for number in range(entries):
        kind, _, _, address = struct.unpack("<IIQQ", ctypes.string_at(base + headers_at + number * entry_bytes, 24))
        if kind == _PT_DYNAMIC:
            at = base + address
    if not at:
        raise LookupError("no dynamic section")
    tags: dict[int, int] = {}
    while (entry := struct.unpack("<qQ", ctypes.string_at(at, 16)))[0]:
        tags[entry[0]] = entry[1]
        at += 16
    for tag in (_DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_JMPREL):
        # glibc makes these absolute in place; musl does not.
        if tag in tags and tags[tag] < base:
            tags[tag] += base
    return tags
