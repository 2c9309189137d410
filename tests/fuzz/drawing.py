"""What is drawn for the fuzzer's targets, and what a target is."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32)


@dataclass(frozen=True)
class Target:
    """One kind of input: ``inputs`` draws it, ``run`` reads it (files go to the folder) and checks what is accepted."""

    name: str
    inputs: st.SearchStrategy[Any]
    run: Callable[[Any, Path], None]
    share: float


def bombs() -> st.SearchStrategy[Any]:
    """JSON values that a reader does not expect."""
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        2**63,
        -(2**63),
        10**400,
        0.5,
        1e308,
        "",
        "x" * 3000,
        "\x1b[2J\n",
        "\ud800",
        [],
        {},
        deep,
    ]
    return st.one_of(st.sampled_from(odd), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())


def damaged(whole: bytes, seed: int) -> bytes:
    chance = random.Random(seed)
    data = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                data[place : place + 4] = struct.pack("<I", chance.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
            case 2:
                data[place : place + 8] = struct.pack("<Q", chance.choice((0, 2**32, 2**63 - 1, 2**64 - 1)))
            case 3:
                del data[place : place + chance.randint(1, 200)]
            case 4:
                del data[max(8, place) :]
    return bytes(data)
