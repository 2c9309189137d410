"""Collecting what comes back from the device into arrays in row order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Outputs:
    """Sums over residues, and residues where asked for, of n proteins.

    Attributes:
        mean: for each layer float32 ``(n, D)``: the sum over the residues until :meth:`finish`, then the mean.
        residues: for each layer float32 ``(sum of embedded, D)``.
        offsets: int64 ``(n + 1,)``: where each protein's residues begin.
    """

    def __init__(self, embedded: np.ndarray, layers: Sequence[int], embed_dim: int, *, per_residue: bool) -> None:
        """Args: ``embedded`` gives the residues of each protein that enter."""
        self.embedded = np.asarray(embedded, dtype=np.int64)
        self.offsets = np.concatenate(([0], self.embedded.cumsum()))
        self.mean = {layer: np.zeros((len(embedded), embed_dim), dtype=np.float32) for layer in layers}
        self.residues = {
            layer: np.zeros((int(self.offsets[-1]), embed_dim), dtype=np.float32)
            for layer in (layers if per_residue else ())
        }

    def add_sums(self, rows: np.ndarray, sums: Mapping[int, np.ndarray]) -> None:
        """Add pieces' sums ``(pieces, D)`` to their proteins; a protein of several pieces has several ``rows``."""
        distinct = len(np.unique(rows)) == len(rows)
        for layer, values in sums.items():
            if distinct:
                self.mean[layer][rows] += values
            else:
                np.add.at(self.mean[layer], rows, values)

    def add_residues(self, row: int, start: int, values: Mapping[int, np.ndarray]) -> None:
        """Add a piece's weighted residues ``(residues, D)``; its first is residue ``start`` of protein ``row``."""
        first = int(self.offsets[row]) + start
        for layer, piece in values.items():
            self.residues[layer][first : first + len(piece)] += piece

    def finish(self) -> None:
        """Turn the sums into means."""
        for sums in self.mean.values():
            sums /= self.embedded[:, None]

    def not_finite(self) -> np.ndarray:
        """Rows with a value that is not finite in any layer."""
        bad = np.zeros(len(self.embedded), dtype=bool)
        for sums in self.mean.values():
            bad |= ~np.isfinite(sums.sum(axis=1, dtype=np.float64))
        return np.flatnonzero(bad)

    def replace(self, rows: np.ndarray, other: Outputs) -> None:
        """Take ``other``'s proteins, in order, as those of ``rows``."""
        for layer, values in other.mean.items():
            self.mean[layer][rows] = values
        for layer, values in other.residues.items():
            for number, row in enumerate(rows):
                own = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
                self.residues[layer][own] = values[int(other.offsets[number]) : int(other.offsets[number + 1])]
