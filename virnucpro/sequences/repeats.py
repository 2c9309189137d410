"""Find equal rows among millions of 16-byte digests by sorting: arrays only, no Python object a record."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


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
    """The ids of a sample's records, 16 bytes each."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def add(self, record_id: str) -> None:
        self._digests += _id_digest(record_id)

    def __len__(self) -> int:
        return len(self._digests) // 16

    def first(self) -> NDArray[np.int64]:
        """For each id the number of the first one that is equal, (n,)."""
        return first_of(np.frombuffer(self._digests, np.uint8).reshape(-1, 16))

    def sorted(self) -> NDArray[np.bytes_]:
        """The ids' digests in order, (n,), for :func:`is_among`."""
        return np.sort(np.frombuffer(self._digests, "S16"))


def is_among(ids: NDArray[np.bytes_], record_id: str) -> bool:
    """Whether an id is one of those whose sorted digests are given."""
    wanted = np.bytes_(_id_digest(record_id))
    position = int(np.searchsorted(ids, wanted))
    return position < len(ids) and bool(ids[position] == wanted)


def _id_digest(record_id: str) -> bytes:
    return hashlib.blake2b(record_id.encode(), digest_size=16).digest()
