"""A packed batch of pieces: token ids, segments and pooling weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from virnucpro.embedding.packing import SPECIAL_TOKENS, packing_order
from virnucpro.embedding.tokens import CLS, EOS
from virnucpro.embedding.windows import Pieces, coverage
from virnucpro.models.segments import Segments, to_device


class Batch(NamedTuple):
    """One forward's input: int64 ``tokens (T,)``, their segments, and float32 ``weights (T,)``."""

    tokens: Tensor
    segments: Segments
    weights: Tensor


class Work:
    """Tokenised proteins and their pieces in packing order.

    Attributes:
        row, start, length: of each piece (see :class:`Pieces`).
        tokens_before: int64 ``(pieces + 1,)``: tokens of all earlier pieces, BOS and EOS included.
    """

    def __init__(self, proteins: Sequence[np.ndarray], pieces: Pieces) -> None:
        """Order the pieces.

        Args:
            proteins: token ids of each protein's residues (see :func:`tokenise`).
        """
        order = packing_order(pieces.length)
        self.row, self.start, self.length = (column[order] for column in pieces)
        self.tokens_before = np.concatenate(([0], (self.length + SPECIAL_TOKENS).cumsum()))
        self._proteins = proteins
        self._weights = _weights(pieces)

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, begin: int, end: int, device: torch.device) -> Batch:
        """The pieces from ``begin`` to before ``end`` as a batch on ``device``."""
        base = self.tokens_before[begin]
        total = int(self.tokens_before[end] - base)
        tokens = np.full(total, CLS, dtype=np.int64)
        weights = np.ones(total, dtype=np.float32)
        for piece in range(begin, end):
            row, start, length = int(self.row[piece]), int(self.start[piece]), int(self.length[piece])
            first = int(self.tokens_before[piece] - base)
            tokens[first + 1 : first + 1 + length] = self._proteins[row][start : start + length]
            tokens[first + 1 + length] = EOS
            if row in self._weights:
                weights[first + 1 : first + 1 + length] = self._weights[row][start : start + length]
            weights[first] = weights[first + 1 + length] = 0.0
        lengths = (self.length[begin:end] + SPECIAL_TOKENS).tolist()
        return Batch(to_device(tokens, device), Segments.from_lengths(lengths, device), to_device(weights, device))


def _weights(pieces: Pieces) -> dict[int, np.ndarray]:
    """For each protein of several pieces: float32 weight of each residue, 1 over its coverage."""
    rows, firsts, counts = np.unique(pieces.row, return_index=True, return_counts=True)
    found = {}
    for row, first, count in zip(rows, firsts, counts, strict=True):
        if count > 1:
            own = slice(first, first + count)
            start, length = pieces.start[own], pieces.length[own]
            found[int(row)] = (1.0 / coverage(start, length, int((start + length).max()))).astype(np.float32)
    return found
