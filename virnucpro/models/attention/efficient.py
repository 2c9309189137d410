"""The memory-efficient kernel over packed sequences: float32, and GPUs older than Ampere."""

from __future__ import annotations

import torch
from torch import Tensor

from virnucpro.cuda.attention_utils import STANDARD
from virnucpro.models.segments import Segments


class EfficientAttention:
    """One call of the kernel behind SDPA's ``EFFICIENT_ATTENTION``.

    SDPA itself gives that kernel no ``cu_seqlens``, so torch's internal operator is called. It can
    change with torch, which is why :func:`choose_attention` tries it before it is used.
    """

    name = "efficient_attention"
    implementation = STANDARD
    scales = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        ends, longest = segments.cu_seqlens, segments.max_seqlen
        found = torch.ops.aten._efficient_attention_forward(
            q.unsqueeze(0),
            k.unsqueeze(0),
            v.unsqueeze(0),
            None,  # bias
            ends,
            ends,
            longest,
            longest,
            0.0,  # dropout
            0,  # no causal mask
            False,  # no log-sum-exp
            scale=1.0,
        )
        out: Tensor = found[0].squeeze(0)
        return out
