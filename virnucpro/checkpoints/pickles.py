"""How large a pickle's tuples become when they are written out, told before anything is made of them.

A tuple can hold another one twice, that one a third twice, and so on: sixty lines stand for 2^60 numbers. Hashing such
a tuple as a key never ends, and no signal interrupts it; one nested a million deep ends the process. Operations are
followed as torch's ``weights_only`` reader does; at any that it does not know, it stops by itself.
"""

from __future__ import annotations

import mmap
import re
from typing import NamedTuple

DEEPEST = 100
"""Tuples within each other."""

LARGEST = 1_000_000
"""Values in a tuple, those in its inner ones included."""

MOST = 50_000_000
"""Values in all tuples, each counted as often as it is used, and 20 more for each byte of the pickle."""


class _Value(NamedTuple):
    """What a value counts: anything but a tuple is one, because it is not looked into when it is hashed."""

    size: int
    depth: int


_ONE = _Value(1, 0)


class TooLarge(Exception):
    """Tuples within tuples beyond all bounds."""


_PUSHES = {
    b"N"[0]: 0,
    0x88: 0,
    0x89: 0,
    b"]"[0]: 0,
    b"}"[0]: 0,
    0x8F: 0,
    b"J"[0]: 4,
    b"K"[0]: 1,
    b"M"[0]: 2,
    b"G"[0]: 8,
}
"""Operations that put one value on the stack, and the bytes that follow them."""

_COUNTED = {b"X"[0]: 4, b"U"[0]: 1, 0x8A: 1}
"""The same where those bytes tell how many further ones follow."""

_POPS = {b"a"[0]: 1, b"s"[0]: 2, b"b"[0]: 1, b"R"[0]: 1, 0x81: 1}
"""Operations that take so many values and leave the one below, changed."""

_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_FLOATS = re.compile(rb"(?:G[\s\S]{8})+")


def check_pickle(data: bytes | mmap.mmap, start: int = 0) -> int | None:
    """Follow one pickle to its end.

    Returns:
        Where it ends; None where it does not, or holds what torch does not read.

    Raises:
        TooLarge: its tuples are.
    """
    try:
        return _follow(data, start)
    except (IndexError, KeyError):
        return None


def _follow(data: bytes | mmap.mmap, place: int) -> int | None:
    stack: list[_Value] = []
    below: list[list[_Value]] = []
    memo: dict[int, _Value] = {}
    left = MOST + 20 * len(data)
    while True:
        code = data[place]
        place += 1
        used: list[_Value] = []
        if code == 0x47 and (run := _FLOATS.match(data, place - 1)) is not None:
            stack += [_ONE] * ((run.end() - run.start()) // 9)
            place = run.end()
        elif code in _PUSHES:
            stack.append(_ONE)
            place += _PUSHES[code]
        elif code in _COUNTED:
            width = _COUNTED[code]
            place += width + int.from_bytes(data[place : place + width], "little")
            stack.append(_ONE)
        elif code in (0x68, 0x6A):  # from the memo
            width = 1 if code == 0x68 else 4
            stack.append(memo[int.from_bytes(data[place : place + width], "little")])
            place += width
        elif code in (0x71, 0x72):  # to the memo
            width = 1 if code == 0x71 else 4
            memo[int.from_bytes(data[place : place + width], "little")] = stack[-1]
            place += width
        elif code == 0x28:  # a mark
            below.append(stack)
            stack = []
        elif code in _TUPLES:
            count = _TUPLES[code]
            used = stack[-count:]
            if len(used) < count:
                return None
            stack[-count:] = [_tuple(used)]
        elif code == 0x29:
            stack.append(_ONE)
        elif code in (0x74, 0x65, 0x75):  # a tuple, or further values of a list or a dictionary, from the mark on
            used, stack = stack, below.pop()
            if code == 0x74:
                stack.append(_tuple(used))
        elif code in _POPS:
            count = _POPS[code]
            used = stack[-count:]
            del stack[-count:]
            if code in (0x52, 0x81):
                stack[-1] = _ONE
        elif code == 0x51:  # a storage
            stack[-1] = _ONE
        elif code == 0x63:  # a name: two lines
            place = data.find(b"\n", data.find(b"\n", place) + 1) + 1
            if place == 0:
                return None
            stack.append(_ONE)
        elif code == 0x80:
            place += 1
        elif code == 0x2E:
            return place
        else:
            return None
        left -= sum(value.size for value in used if value is not _ONE)
        if left < 0:
            raise TooLarge


def _tuple(values: list[_Value]) -> _Value:
    made = _Value(1 + sum(value.size for value in values), 1 + max((value.depth for value in values), default=0))
    if made.size > LARGEST or made.depth > DEEPEST:
        raise TooLarge
    return made
