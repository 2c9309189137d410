"""Weighted sums over the pieces of a packed batch, on the device, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from virnucpro.models.segments import Segments


def segment_sums(hidden: Tensor, weights: Tensor, segments: Segments) -> Tensor:
    """Sum of ``hidden`` times ``weights`` over each sequence.

    Args:
        hidden: ``(T, D)``.
        weights: float32 ``(T,)``: 0 for BOS and EOS; for a residue 1 over the number of pieces that cover it.

    Returns:
        float32 ``(sequences, D)``. A token that is not finite makes its sequence's sum not finite,
        whatever its weight, so the sums alone show whether the representations can be used.
    """
    weighted = hidden.float() * weights.unsqueeze(1)
    if weighted.is_cuda:
        offsets = segments.cu_seqlens.long()
        return torch.segment_reduce(weighted, "sum", offsets=offsets, axis=0, unsafe=True)
    # torch.sum adds pairwise on a CPU, which loses less than one running sum.
    return torch.stack([part.sum(0) for part in weighted.split(list(segments.lengths))])
