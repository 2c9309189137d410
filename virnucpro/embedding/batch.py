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
    """Tokenised proteins cut into pieces and laid end to end in packing order.

    All pieces are laid out once, so that a batch is a slice and the host keeps ahead of the fastest GPU.

    Attributes:
        row, start, length: of each piece (see :class:`Pieces`).
        tokens_before: int64 ``(pieces + 1,)``: tokens of all earlier pieces, BOS and EOS included.
        tokens: uint8 ids of all pieces, each with its BOS and EOS.
        weights: float32, one a token: 0 for BOS and EOS, else 1 over the number of pieces that cover the residue.
    """

    def __init__(self, proteins: Sequence[np.ndarray], pieces: Pieces) -> None:
        """Order the pieces and lay them out.

        Args:
            proteins: token ids of each protein's residues (see :func:`tokenise`).
        """
        order = packing_order(pieces.length)
        self.row, self.start, self.length = (column[order] for column in pieces)
        self.tokens_before = np.concatenate(([0], (self.length + SPECIAL_TOKENS).cumsum()))
        begin, end = np.array([CLS], dtype=np.uint8), np.array([EOS], dtype=np.uint8)
        parts = [begin[:0]]
        for row, start, length in zip(self.row, self.start, self.length, strict=True):
            parts += (begin, proteins[row][start : start + length], end)
        self.tokens = np.concatenate(parts)
        self.weights = np.ones(len(self.tokens), dtype=np.float32)
        self.weights[self.tokens_before[:-1]] = 0.0
        self.weights[self.tokens_before[1:] - 1] = 0.0
        shared = _shared_weights(pieces)
        for piece in np.flatnonzero(np.isin(self.row, list(shared))):
            start, length, first = self.start[piece], self.length[piece], self.tokens_before[piece] + 1
            self.weights[first : first + length] = shared[int(self.row[piece])][start : start + length]

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, begin: int, end: int, device: torch.device) -> Batch:
        """The pieces from ``begin`` to before ``end`` as a batch on ``device``."""
        own = slice(self.tokens_before[begin], self.tokens_before[end])
        lengths = (self.length[begin:end] + SPECIAL_TOKENS).tolist()
        return Batch(
            tokens=to_device(self.tokens[own], device).long(),
            segments=Segments.from_lengths(lengths, device),
            weights=to_device(self.weights[own], device),
        )


def _shared_weights(pieces: Pieces) -> dict[int, np.ndarray]:
    """For each protein of several pieces: float32 weight of each residue, 1 over its coverage."""
    rows, firsts, counts = np.unique(pieces.row, return_index=True, return_counts=True)
    found = {}
    for row, first, count in zip(rows, firsts, counts, strict=True):
        if count > 1:
            own = slice(first, first + count)
            start, length = pieces.start[own], pieces.length[own]
            found[int(row)] = (1.0 / coverage(start, length, int((start + length).max()))).astype(np.float32)
    return found
