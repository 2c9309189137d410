"""Where VirNucPro cuts a contig: windows of one length whose overlaps are as even as whole numbers allow.

A contig of L bases is cut into n = ceil(L / w) windows of w bases. They are E = n w - L bases too long, which the
overlaps share: low = floor(E / n), the first E - low (n - 1) overlaps are low + 1 and the others low. The sum of the
overlaps can exceed E, so the last window, cut at L, can be short. A contig shorter than w is one window.
(Li-Jing-1997/VirNucPro, ``units.py``; its classifier was trained on windows cut so.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Windows(NamedTuple):
    """Windows of several contigs, contig by contig, (m,) each: contig, number in it (from 0), first base, end."""

    contig: NDArray[np.int64]
    number: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]


def cut_windows(lengths: NDArray[np.integer], window: int) -> Windows:
    """The windows of contigs of these lengths (each over 0), places counted from each contig's first base."""
    length = np.asarray(lengths, np.int64)
    count = -(-length // window)
    excess = count * window - length
    low = excess // count
    wider = excess - low * (count - 1)
    contig = np.repeat(np.arange(len(length)), count)
    number = np.arange(len(contig)) - np.repeat(np.cumsum(count) - count, count)
    overlapped = number * low[contig] + np.minimum(number, wider[contig])
    start = number * window - overlapped
    return Windows(contig, number, start, np.minimum(start + window, length[contig]))
