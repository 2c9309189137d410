"""From tokens to one vector a protein, on the device: weighted sums, channel-wise maxima, the first token."""

from __future__ import annotations

import torch
from torch import Tensor

from virnucpro.attention.segments import Segments


def weigh(hidden: Tensor, weights: Tensor) -> Tensor:
    """Each token's representation times its weight.

    Args:
        hidden: ``(T, D)``.
        weights: float32 ``(T,)``: 0 for special tokens; for a residue 1 over the number of pieces that cover it.

    Returns:
        float32 ``(T, D)``. A value that is not finite stays so, whatever its weight.
    """
    return hidden.float() * weights.unsqueeze(1)


def segment_sums(weighted: Tensor, segments: Segments) -> Tensor:
    """Sum over the tokens of each sequence.

    Args:
        weighted: float32 ``(T, D)`` from :func:`weigh`.

    Returns:
        float32 ``(sequences, D)``. A token that is not finite makes its sequence's sum not finite, so
        the sums alone show whether the representations can be used.
    """
    if weighted.is_cuda:
        return torch.segment_reduce(weighted, "sum", offsets=segments.cu_seqlens.long(), axis=0, unsafe=True)
    # torch.sum adds in blocks on a CPU, which loses less than one running sum.
    return torch.stack([part.sum(0) for part in torch.split(weighted, list(segments.lengths))])


def segment_maxima(hidden: Tensor, weights: Tensor, segments: Segments) -> Tensor:
    """Channel by channel the largest value of each sequence's residues, special tokens apart.

    Args:
        hidden: ``(T, D)``.
        weights: float32 ``(T,)``, as for :func:`weigh`; above 0 for residues.

    Returns:
        float32 ``(sequences, D)``.
    """
    residues = hidden.float().masked_fill((weights == 0).unsqueeze(1), -torch.inf)
    if residues.is_cuda:
        return torch.segment_reduce(residues, "max", offsets=segments.cu_seqlens.long(), axis=0, unsafe=True)
    return torch.stack([part.amax(0) for part in torch.split(residues, list(segments.lengths))])


def first_tokens(hidden: Tensor, segments: Segments) -> Tensor:
    """The representation of each sequence's first token, BOS (``<cls>``): float32 ``(sequences, D)``."""
    return hidden.index_select(0, segments.cu_seqlens[:-1].long()).float()
