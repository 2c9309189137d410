"""``scaled_dot_product_attention`` over neighbours of equal length: no padding, no mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.cuda.attention_utils import FLASH, STANDARD, only_flash
from virnucpro.models.segments import Segments


class RunsAttention:
    """One call for each run of equal lengths; the CPU's way, and right everywhere."""

    name = "sdpa"
    implementation = STANDARD
    scales = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        heads, head_dim = q.shape[1:]
        for start, count, length in segments.runs:
            rows = slice(start, start + count * length)
            shape = (count, length, heads, head_dim)
            one_q, one_k, one_v = (x[rows].view(shape).transpose(1, 2) for x in (q, k, v))
            attended = F.scaled_dot_product_attention(one_q, one_k, one_v, scale=1.0)
            out[rows] = attended.transpose(1, 2).reshape(count * length, heads, head_dim)
        return out


class FlashRunsAttention(RunsAttention):
    """The same, pinned to the flash kernel: public functions alone, for a torch without ``varlen_attn``."""

    name = "sdpa_flash_runs"
    implementation = FLASH

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        with only_flash():
            return super().__call__(q, k, v, segments)
