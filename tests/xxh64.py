"""XXH64 with seed 0 as its specification has it, in plain and slow Python."""

from __future__ import annotations

WORD = (1 << 64) - 1
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & WORD


def lane(state: int, word: int) -> int:
    return rotated((state + word * P2) & WORD, 31) * P1 & WORD


def xxh64(data: bytes) -> int:
    at = 0
    if len(data) >= 32:
        lanes = [(P1 + P2) & WORD, P2, 0, -P1 & WORD]
        while at + 32 <= len(data):
            words = (int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little") for i in range(4))
            lanes = [lane(state, word) for state, word in zip(lanes, words, strict=True)]
            at += 32
        state = sum(rotated(one, bits) for one, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & WORD
        for one in lanes:
            state = ((state ^ lane(0, one)) * P1 + P4) & WORD
    else:
        state = P5
    state = (state + len(data)) & WORD
    while at + 8 <= len(data):
        state = (rotated(state ^ lane(0, int.from_bytes(data[at : at + 8], "little")), 27) * P1 + P4) & WORD
        at += 8
    if at + 4 <= len(data):
        state = (rotated(state ^ int.from_bytes(data[at : at + 4], "little") * P1 & WORD, 23) * P2 + P3) & WORD
        at += 4
    for byte in data[at:]:
        state = rotated(state ^ byte * P5 & WORD, 11) * P1 & WORD
    state = (state ^ state >> 33) * P2 & WORD
    state = (state ^ state >> 29) * P3 & WORD
    return state ^ state >> 32
