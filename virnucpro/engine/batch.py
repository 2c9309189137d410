"""Batches under a token budget: pieces of proteins laid end to end, longest first.

Every way to treat long proteins (windows, cut, whole) ends in pieces of proteins, and for each residue the
number of pieces that cover it. A residue's representation is the average over its pieces, and a protein's
pooled vector the mean of these averages; so one weighted sum over the pieces serves them all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from virnucpro.attention.segments import Segments, to_device
from virnucpro.base.settings import LongProteins
from virnucpro.chunking.cost import piece_counts, piece_lengths
from virnucpro.models.base import Tokenizer


def packing_order(lengths: np.ndarray) -> np.ndarray:
    """Longest first, equal lengths in their given order.

    Memory is shortest at the start, so a budget that does not fit is found at once; runs of equal
    length stay together, which the CPU's attention works on.
    """
    return np.argsort(-np.asarray(lengths), kind="stable")


def batch_end(tokens_before: np.ndarray, start: int, budget: int) -> int:
    """End of the batch that begins at piece ``start``: as many pieces as fit into ``budget``, at least one.

    Args:
        tokens_before: int64 ``(pieces + 1,)``: tokens before each piece in packing order, and all tokens.
    """
    end = int(np.searchsorted(tokens_before, tokens_before[start] + budget, side="right")) - 1
    return max(end, start + 1)


def padding_avoided(tokens: np.ndarray, budget: int) -> float:
    """Share (0 to 1) of padding among the tokens of padded batches in file order, all of it avoided by packing.

    A batch is filled until proteins times the longest would exceed ``budget``, which is how
    esm-extract fills one (it sorts by length first; a plain loop over a file does not).

    Args:
        tokens: of each piece, special tokens included.
    """
    padding = count = longest = held = 0
    for piece in tokens.tolist():
        if count and (count + 1) * max(longest, piece) > budget:
            padding += count * longest - held
            count = longest = held = 0
        count += 1
        longest = max(longest, piece)
        held += piece
    padding += count * longest - held
    return padding / max(padding + int(tokens.sum()), 1)


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


def cut_into_pieces(lengths: np.ndarray, long_proteins: LongProteins) -> Pieces:
    """Pieces of proteins, windows evenly spread; arguments as for :func:`virnucpro.chunking.cost.piece_counts`."""
    lengths = np.asarray(lengths, dtype=np.int64)
    counts = piece_counts(lengths, long_proteins)
    row = np.repeat(np.arange(len(lengths)), counts)
    length = piece_lengths(lengths, long_proteins)
    number = np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts)
    last_start = np.where(counts > 1, lengths - length, 0)
    return Pieces(row, number * last_start[row] // np.maximum(counts - 1, 1)[row], length[row])


def coverage(starts: np.ndarray, lengths: np.ndarray, residues: int) -> np.ndarray:
    """For one protein: by how many of its pieces each residue is covered, int64 ``(residues,)``."""
    steps = np.zeros(residues + 1, dtype=np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return steps[:-1].cumsum()


ROWS = 1024
"""Tokens that a batch has at least on a GPU, where the libraries multiply fewer rows in another order: a protein alone
has the bits of the same protein in company."""


class PackedBatch(NamedTuple):
    """One forward's input: int64 ``tokens (T,)``, their segments, and float32 ``weights (T,)``.

    On a GPU the last segment may be of tokens that belong to no piece, up to :data:`ROWS`; their weights are 0.
    """

    tokens: Tensor
    segments: Segments
    weights: Tensor


class PackedPieces:
    """Tokenised proteins cut into pieces and laid end to end in packing order.

    All pieces are laid out once, so that a batch is a slice and the host keeps ahead of the fastest GPU.

    Attributes:
        first, proteins: number of the first protein, and how many there are.
        lengths: int64 ``(proteins,)``: residues of each.
        row, start, length: of each piece (see :class:`Pieces`).
        special: the number of special tokens of a piece; ``lead`` of them come before its residues.
        tokens_before: int64 ``(pieces + 1,)``: tokens of all earlier pieces, special ones included.
        tokens: ids of all pieces, each with its special tokens, in the tokenizer's dtype.
        weights: float32, one a token: 0 for special ones, else 1 over the number of pieces that cover the residue.
    """

    def __init__(self, proteins: Sequence[np.ndarray], pieces: Pieces, tokenizer: Tokenizer, *, first: int = 0) -> None:
        """Order the pieces and lay them out.

        Args:
            proteins: token ids of each protein's residues, as ``tokenizer`` encodes them.
            first: the number of the first of them; those of ``pieces`` count from 0.
        """
        order = packing_order(pieces.length)
        row, self.start, self.length = (column[order] for column in pieces)
        self.first, self.proteins = first, len(proteins)
        self.lengths = np.array([len(ids) for ids in proteins], np.int64)
        self.row = row + first
        self.lead = len(tokenizer.begin)
        self.special = self.lead + len(tokenizer.end)
        self.tokens_before = np.concatenate(([0], (self.length + self.special).cumsum()))
        dtype = proteins[0].dtype if len(proteins) else np.dtype(np.uint8)
        self.tokens = np.empty(self.tokens_before[-1], dtype)
        for step, token in enumerate(tokenizer.begin):
            self.tokens[self.tokens_before[:-1] + step] = token
        for step, token in enumerate(reversed(tokenizer.end), start=1):
            self.tokens[self.tokens_before[1:] - step] = token
        begins = self.tokens_before[:-1] + self.lead
        columns = (row.tolist(), self.start.tolist(), self.length.tolist(), begins.tolist())
        for protein, start, length, begin in zip(*columns, strict=True):
            self.tokens[begin : begin + length] = proteins[protein][start : start + length]
        self.weights = np.ones(len(self.tokens), dtype=np.float32)
        for step in range(self.lead):
            self.weights[self.tokens_before[:-1] + step] = 0.0
        for step in range(1, len(tokenizer.end) + 1):
            self.weights[self.tokens_before[1:] - step] = 0.0
        shared = _shared_weights(pieces)
        for piece in np.flatnonzero(np.isin(row, list(shared))):
            start, length, begin = self.start[piece], self.length[piece], begins[piece]
            self.weights[begin : begin + length] = shared[int(row[piece])][start : start + length]

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, begin: int, end: int, device: torch.device) -> PackedBatch:
        """The pieces from ``begin`` to before ``end`` as a batch on ``device``."""
        own = slice(self.tokens_before[begin], self.tokens_before[end])
        lengths = (self.length[begin:end] + self.special).tolist()
        tokens, weights = self.tokens[own], self.weights[own]
        missing = ROWS - len(tokens)
        if missing > 0 and device.type == "cuda":
            lengths.append(missing)
            tokens, weights = np.append(tokens, np.zeros(missing, tokens.dtype)), np.pad(weights, (0, missing))
        return PackedBatch(
            tokens=to_device(tokens, device).long(),
            segments=Segments.from_lengths(lengths, device),
            weights=to_device(weights, device),
        )

    def residues(self, begin: int, end: int, device: torch.device, of: np.ndarray | None = None) -> Tensor:
        """Which tokens of the same batch are residues: their int64 numbers ``(R,)``.

        Args:
            of: bool ``(end - begin,)``: the pieces whose residues are meant; None for all.
        """
        weights = self.weights[self.tokens_before[begin] : self.tokens_before[end]]
        if of is not None:
            weights = weights * np.repeat(of, self.length[begin:end] + self.special)
        return to_device(np.flatnonzero(weights), device)


PORTION = 16_000_000
"""Letters that are tokenised and laid out at a time: about a second's work, computed in two seconds and more."""

QUICK = 1e-4
"""Seconds after which Python's threads take turns while batches run (its default: 5e-3). Each kernel's start gives the
turn away; with the default the thread that packs made the GPU wait for a tenth of the time (DNABERT-S, H100)."""


class PackedAhead:
    """Packed pieces of proteins, a portion of them at a time, made in a thread while earlier ones are computed."""

    def __init__(
        self,
        sequences: Sequence[bytes],
        names: Sequence[str],
        tokenizer: Tokenizer,
        long_proteins: LongProteins,
        *,
        portion: int = PORTION,
    ) -> None:
        """Begin with the first portion.

        Args:
            names: ids, for errors.
            portion: letters.
        """
        self._sequences, self._names = sequences, names
        self._tokenizer, self._long_proteins = tokenizer, long_proteins
        ends = np.array([len(sequence) for sequence in sequences], np.int64).cumsum()
        numbers = (ends - 1) // portion
        self._bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(sequences)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._next = self._thread.submit(self._pack, 0)

    def __iter__(self) -> Iterator[PackedPieces]:
        """All portions in order; once.

        Raises:
            UserError: a residue without a token.
        """
        interval = sys.getswitchinterval()
        sys.setswitchinterval(QUICK)
        try:
            for number in range(len(self._bounds) - 1):
                packed = self._next.result()
                if number + 2 < len(self._bounds):
                    self._next = self._thread.submit(self._pack, number + 1)
                yield packed
        finally:
            sys.setswitchinterval(interval)
            self.close()

    def close(self) -> None:
        """Begin no further portion."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _pack(self, number: int) -> PackedPieces:
        own = slice(self._bounds[number], self._bounds[number + 1])
        tokens = self._tokenizer.encode(self._sequences[own], self._names[own])
        lengths = np.array([len(ids) for ids in tokens], np.int64)
        pieces = cut_into_pieces(lengths, self._long_proteins)
        return PackedPieces(tokens, pieces, self._tokenizer, first=own.start)


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
