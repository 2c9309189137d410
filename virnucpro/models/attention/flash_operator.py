"""FlashAttention-2 over packed sequences through torch's internal operator (torch before 2.10)."""

from __future__ import annotations

import torch
from torch import Tensor

from virnucpro.cuda.attention_utils import FLASH
from virnucpro.models.segments import Segments


class FlashOperatorAttention:
    """The operator that ``varlen_attn`` wraps since torch 2.10; older wheels have it too, without a public name.

    It can change with torch, which is why :func:`choose_attention` tries it before it is used.
    """

    name = "flash_operator"
    implementation = FLASH
    scales = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        ends, longest = segments.cu_seqlens, segments.max_seqlen
        found = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            ends,
            ends,
            longest,
            longest,
            0.0,  # dropout
            False,  # not causal
            False,  # no debug mask
            scale=1.0,
        )
        out: Tensor = found[0]
        return out
