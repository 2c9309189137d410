"""How long proteins are run, and what a protein costs in tokens: chunks and shares of equal cost take equal time.

A layer of width d multiplies each token by 12 d^2 weights: 24 d^2 operations. Attention over T tokens
adds 4 T d for each token (scores and weighted sum). Their ratio is 1 : T / (6 d), so in units of "one token
in a very short protein" T tokens cost T (1 + T / (6 d)).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.errors import UserError
from virnucpro.chunking.size import SPECIAL_TOKENS


def piece_lengths(lengths: NDArray[np.integer], policy: str, longest: int) -> NDArray[np.int64]:
    """Residues of each piece of each protein, int64 ``(n,)``: a protein's pieces are equally long.

    Args:
        lengths: residues of each protein, ``(n,)``.
        policy: what is done to proteins over ``longest`` residues: "window", "truncate" (the first ``longest``
            residues alone, as esm-extract does) or "full" (as they are).

    Raises:
        UserError: an unknown policy.
    """
    if policy not in ("window", "truncate", "full"):
        raise UserError(f"unknown policy for long proteins {policy!r}: give window, truncate or full")
    residues = np.asarray(lengths, np.int64)
    return residues if policy == "full" else np.minimum(residues, longest)


def piece_counts(lengths: NDArray[np.integer], policy: str, longest: int, overlap: int) -> NDArray[np.int64]:
    """In how many pieces each protein is run, int64 ``(n,)``: as few windows as share ``overlap`` residues, else 1.

    Args:
        lengths, policy, longest: see :func:`piece_lengths`.
        overlap: residues that neighbouring windows share at least; fewer than ``longest``.
    """
    rest = np.asarray(lengths, np.int64) - piece_lengths(lengths, policy, longest)
    if policy != "window":
        return np.ones_like(rest)
    return 1 - (-rest // (longest - overlap))


def embedded_residues(lengths: NDArray[np.integer], policy: str, longest: int) -> NDArray[np.int64]:
    """Residues of each protein that enter its embedding, int64 ``(n,)``; arguments as for :func:`piece_lengths`."""
    return piece_lengths(lengths, policy if policy == "truncate" else "full", longest)


def protein_costs(
    lengths: NDArray[np.integer], *, embed_dim: int, policy: str, longest: int, overlap: int
) -> NDArray[np.float64]:
    """Cost of embedding each protein, in tokens of a very short one, float64 ``(n,)``.

    Args:
        embed_dim: the model's width d.
        lengths, policy, longest, overlap: see :func:`piece_counts`.

    Raises:
        UserError: an unknown policy.
    """
    tokens = (piece_lengths(lengths, policy, longest) + SPECIAL_TOKENS).astype(np.float64)
    return piece_counts(lengths, policy, longest, overlap) * tokens * (1 + tokens / (6 * embed_dim))
