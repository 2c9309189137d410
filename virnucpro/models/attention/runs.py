"""``scaled_dot_product_attention`` over neighbours of equal length: no padding, no mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.models.segments import Segments


class RunsAttention:
    """One call for each run of equal lengths; the CPU's way, and right everywhere."""

    name = "sdpa"
    implementation = "standard_attention"
    scales = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        heads, head_dim = q.shape[1:]
        for start, count, length in segments.runs():
            rows = slice(start, start + count * length)

            def batch(x: Tensor, rows: slice = rows, shape: tuple[int, int] = (count, length)) -> Tensor:
                return x[rows].view(*shape, heads, head_dim).transpose(1, 2)

            attended = F.scaled_dot_product_attention(batch(q), batch(k), batch(v), scale=1.0)
            out[rows] = attended.transpose(1, 2).reshape(count * length, heads, head_dim)
        return out
