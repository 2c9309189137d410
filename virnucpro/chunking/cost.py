"""What a protein costs on a GPU, in tokens, so that chunks of equal cost take equal time.

A layer of width d multiplies each token by 12 d^2 weights: 24 d^2 operations. Attention over T tokens
adds 4 T d for each token (scores and weighted sum). Their ratio is 1 : T / (6 d), so in units of "one token
in a very short protein" T tokens cost T (1 + T / (6 d)).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.errors import UserError
from virnucpro.chunking.size import SPECIAL_TOKENS as SPECIAL_TOKENS


def protein_costs(
    lengths: NDArray[np.integer], *, embed_dim: int, policy: str = "full", longest: int = 1022, overlap: int = 511
) -> NDArray[np.float64]:
    """Cost of embedding each protein, in tokens of a very short one.

    Args:
        lengths: residues of each protein, (n,).
        embed_dim: the model's width d.
        policy: what is done to proteins over ``longest`` residues: ``window``, ``truncate`` or ``full``.
        longest: residues that a window (or a truncated protein) holds.
        overlap: residues that neighbouring windows share.
    """
    residues = np.asarray(lengths, np.float64)
    windows = np.ones_like(residues)
    if policy == "truncate":
        residues = np.minimum(residues, longest)
    elif policy == "window":
        step = max(1, longest - overlap)
        windows = np.maximum(1, np.ceil((residues - longest) / step) + 1)
        residues = np.minimum(residues, longest)  # every window of a long protein is of full length
    elif policy != "full":
        raise UserError(f"unknown policy for long proteins {policy!r}: give window, truncate or full")
    tokens = residues + SPECIAL_TOKENS
    return np.asarray(windows * tokens * (1 + tokens / (6 * embed_dim)), np.float64)
