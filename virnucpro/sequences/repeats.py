"""Find equal rows among millions of 16-byte digests by sorting: arrays only, no Python object a record."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.errors import UserError
from virnucpro.sequences.fasta import RawRecord, read_raw


def first_of(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each digest, (n, 16), the number of the first row with the same digest, (n,)."""
    n = len(digests)
    halves = np.ascontiguousarray(digests).view(np.uint64).reshape(n, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal digests stay in input order
    is_new = np.ones(n, bool)
    for half in (0, 1):
        ranked = halves[order, half]
        same = ranked[1:] == ranked[:-1]
        is_new[1:] = ~same if half == 0 else is_new[1:] | ~same
    starts = order[is_new]
    first = np.empty(n, np.int64)
    first[order] = starts[np.cumsum(is_new) - 1]
    return first


class SeenIds:
    """The ids of a sample's records, 16 bytes each, to find one that was used twice."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def add(self, record_id: str) -> None:
        self._digests += hashlib.blake2b(record_id.encode(), digest_size=16).digest()

    def __len__(self) -> int:
        return len(self._digests) // 16

    def refuse_repeats(self, inputs: Sequence[Path]) -> None:
        """Read the files again to name the first repeat, if there is one.

        Raises:
            UserError: two records of these files have the same id.
        """
        first = first_of(np.frombuffer(self._digests, np.uint8).reshape(-1, 16))
        again = np.flatnonzero(first != np.arange(len(first)))
        if not again.size:
            return
        (path_a, record_a), (path_b, record_b) = _records_at(inputs, (int(first[again[0]]), int(again[0])))
        more = f" ({again.size} records repeat an id in all)" if again.size > 1 else ""
        raise UserError(
            f"{path_b}, line {record_b.line}: the id {record_b.id!r} was already used in {path_a}, "
            f"line {record_a.line}{more}; give every record of a sample its own id"
        )


def _records_at(inputs: Sequence[Path], numbers: Sequence[int]) -> list[tuple[Path, RawRecord]]:
    every = ((path, record) for path in inputs for record in read_raw(path))
    found = []
    for number, item in enumerate(every):
        if number in numbers:
            found.append(item)
        if number >= max(numbers):
            break
    return found
