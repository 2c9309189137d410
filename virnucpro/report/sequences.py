"""The numbers behind the plots of one sample's sequences, out of its index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.report.merged import SampleReport
from virnucpro.storage.index import read_index


@dataclass(frozen=True)
class Lengths:
    """How many proteins have each length: ``all`` and ``unique`` are int64 (longest + 1,), by residues."""

    all: NDArray[np.int64]
    unique: NDArray[np.int64]


def lengths_of(index: Path) -> Lengths:
    """Count the lengths in an index, all records' and those of different sequences.

    Raises:
        UserError: the index is missing or damaged.
    """
    lengths, places = [], []
    for rows in read_index(index):
        lengths.append(rows.length)
        places.append(rows.chunk.astype(np.int64) << 32 | rows.row)
    length = np.concatenate(lengths)
    _, first = np.unique(np.concatenate(places), return_index=True)
    size = int(length.max()) + 1
    return Lengths(np.bincount(length, minlength=size), np.bincount(length[first], minlength=size))


def length_bins(longest: int) -> NDArray[np.float64]:
    """Edges of some 40 bins of equal width on a logarithmic axis, from 1 to over ``longest`` residues.

    Edges lie between whole numbers, and none is so narrow that no length falls into it.
    """
    edges = np.geomspace(1, max(longest, 10) + 1, 41)
    return np.unique(np.floor(edges)) - 0.5


def histogram(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Proteins in each bin, (len(edges) - 1,), out of the numbers of each length."""
    bins = np.searchsorted(edges, np.arange(len(counts)), side="right") - 1
    inside = (bins >= 0) & (bins < len(edges) - 1)
    return np.bincount(bins[inside], counts[inside], minlength=len(edges) - 1).astype(np.int64)


def treatments(sample: SampleReport) -> dict[str, int]:
    """Proteins (records) by what was done to them; one protein can be in several."""
    counts = sample.counts
    return {
        "same sequence as another": counts["records"] - counts["unique"],
        "residues changed to X": counts["replaced_records"],
        "run in overlapping windows": counts["windowed"],
        "truncated": counts["truncated"],
        "run again in a wider format": counts["recomputed"],
    }
