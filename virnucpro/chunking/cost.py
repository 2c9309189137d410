"""How long proteins are run, and what a protein costs in tokens: chunks and shares of equal cost take equal time.

A layer of width d multiplies each token by 12 d^2 weights: 24 d^2 operations. Attention over T tokens
adds 4 T d for each token (scores and weighted sum). Their ratio is 1 : T / (6 d), so in units of "one token
in a very short protein" T tokens cost T (1 + T / (6 d)).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.settings import LongProteins
from virnucpro.chunking.size import SPECIAL_TOKENS


def piece_lengths(lengths: NDArray[np.integer], long_proteins: LongProteins) -> NDArray[np.int64]:
    """Residues of each piece of each protein, int64 ``(n,)``: a protein's pieces are equally long.

    Args:
        lengths: residues of each protein, ``(n,)``.
        long_proteins: what is done to those of more than ``longest`` residues: "truncate" runs the first ``longest``
            residues alone, as esm-extract does, "full" the protein as it is.
    """
    residues = np.asarray(lengths, np.int64)
    return residues if long_proteins.policy == "full" else np.minimum(residues, long_proteins.longest)


def piece_counts(lengths: NDArray[np.integer], long_proteins: LongProteins) -> NDArray[np.int64]:
    """In how many pieces each protein is run, int64 ``(n,)``: as few windows as share ``overlap`` residues, else 1.

    Arguments as for :func:`piece_lengths`.
    """
    rest = np.asarray(lengths, np.int64) - piece_lengths(lengths, long_proteins)
    if long_proteins.policy != "window":
        return np.ones_like(rest)
    return 1 - (-rest // (long_proteins.longest - long_proteins.overlap))


def embedded_residues(lengths: NDArray[np.integer], long_proteins: LongProteins) -> NDArray[np.int64]:
    """Residues of each protein that enter its embedding, int64 ``(n,)``; arguments as for :func:`piece_lengths`."""
    return (
        piece_lengths(lengths, long_proteins) if long_proteins.policy == "truncate" else np.asarray(lengths, np.int64)
    )


def protein_costs(lengths: NDArray[np.integer], *, embed_dim: int, long_proteins: LongProteins) -> NDArray[np.float64]:
    """Cost of embedding each protein, in tokens of a very short one, float64 ``(n,)``.

    Args:
        embed_dim: the model's width d.
        lengths, long_proteins: see :func:`piece_lengths`.
    """
    tokens = (piece_lengths(lengths, long_proteins) + SPECIAL_TOKENS).astype(np.float64)
    return piece_counts(lengths, long_proteins) * tokens * (1 + tokens / (6 * embed_dim))


def assign_chunks(costs: NDArray[np.float64], count: int) -> NDArray[np.int32]:
    """The chunk of each protein, (n,), rising from 0 without gaps.

    Each chunk ends where its share of the total cost ends: a protein goes where its middle is, so no
    chunk is off its share by more than one protein. A protein that costs more than a whole share leaves fewer
    chunks than asked for, not empty ones.
    """
    if costs.size == 0:
        return np.zeros(0, np.int32)
    middle = np.cumsum(costs) - costs / 2
    total = float(middle[-1] + costs[-1] / 2)
    wanted = np.minimum((middle * (count / total)).astype(np.int64), count - 1)
    steps = np.diff(wanted, prepend=wanted[0]) > 0
    return np.cumsum(steps).astype(np.int32)
