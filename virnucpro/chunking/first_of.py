"""Find equal rows among millions of 16-byte digests by sorting: arrays only, no Python object a record."""

from __future__ import annotations

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
