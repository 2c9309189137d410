"""Cut a list of proteins into contiguous chunks of equal cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def chunk_count(residues: int, proteins: int, chunk_residues: int, multiple_of: int = 1) -> int:
    """How many chunks hold so many residues at ``chunk_residues`` each.

    With ``multiple_of`` over 1 (the GPUs that share the work) the number is rounded up to a multiple of it,
    so that no GPU works on a last chunk while the others wait; not where chunks would fall below a tenth of
    ``chunk_residues``, because each job also loads the model.
    """
    count = max(1, -(-residues // chunk_residues))
    rounded = -(-count // multiple_of) * multiple_of
    if residues * 10 >= rounded * chunk_residues:
        count = rounded
    return min(count, max(1, proteins))


def assign_chunks(costs: NDArray[np.float64], count: int) -> NDArray[np.int32]:
    """The chunk of each protein, (n,), rising from 0 without gaps.

    Each chunk ends where its share of the total cost ends: a protein goes where its middle lies, so no
    chunk is off its share by more than one protein. A protein dearer than a whole share leaves fewer
    chunks than asked for, not empty ones.
    """
    if costs.size == 0:
        return np.zeros(0, np.int32)
    middle = np.cumsum(costs) - costs / 2
    total = float(middle[-1] + costs[-1] / 2)
    wanted = np.minimum((middle * (count / total)).astype(np.int64), count - 1)
    steps = np.diff(wanted, prepend=wanted[0]) > 0
    return np.cumsum(steps).astype(np.int32)
