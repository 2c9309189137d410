"""How proteins longer than the model was trained on are run: in windows, cut, or whole.

Every policy ends in the same thing: pieces of proteins, and for each residue the number of pieces
that cover it. A residue's representation is the average over its pieces, and a protein's pooled vector
the mean of these averages; so one weighted sum over the pieces serves all policies.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
    """Pieces of proteins, protein by protein and from left to right.

    Attributes:
        row: int64 ``(pieces,)``: number of the protein.
        start: int64 ``(pieces,)``: first residue, counted from 0.
        length: int64 ``(pieces,)``: residues.
    """

    row: np.ndarray
    start: np.ndarray
    length: np.ndarray


def window_starts(length: int, longest: int, overlap: int) -> list[int]:
    """Where the windows of a protein begin: as few as share ``overlap`` residues with the next, evenly spread."""
    if length <= longest:
        return [0]
    steps = -(-(length - longest) // (longest - overlap))
    return [step * (length - longest) // steps for step in range(steps + 1)]


def cut_into_pieces(lengths: np.ndarray, policy: str, longest: int, overlap: int) -> Pieces:
    """Pieces of proteins of these lengths.

    Args:
        lengths: residues of each protein.
        policy: "window", "truncate" (the first ``longest`` residues, esm-extract's way) or "full".
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    rows = np.arange(len(lengths))
    if policy == "full":
        return Pieces(rows, np.zeros_like(rows), lengths)
    if policy == "truncate":
        return Pieces(rows, np.zeros_like(rows), np.minimum(lengths, longest))
    starts = [window_starts(int(length), longest, overlap) for length in lengths]
    counts = np.array([len(found) for found in starts], dtype=np.int64)
    row = np.repeat(rows, counts)
    start = np.array([place for found in starts for place in found], dtype=np.int64)
    return Pieces(row, start, np.minimum(lengths[row], longest))


def coverage(starts: np.ndarray, lengths: np.ndarray, residues: int) -> np.ndarray:
    """For one protein: by how many of its pieces each residue is covered, int64 ``(residues,)``."""
    steps = np.zeros(residues + 1, dtype=np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return steps[:-1].cumsum()
