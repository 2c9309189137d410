"""Padded SDPA in buckets of similar length: public functions alone, for whatever GPU is left."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.cuda.attention_utils import STANDARD
from virnucpro.models.segments import Segments


class BucketedAttention:
    """One masked call for each bucket; padding is added to q, k and v alone and never leaves this class."""

    name = "sdpa_bucketed"
    implementation = STANDARD
    scales = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for bucket in segments.buckets:
            one_q, one_k, one_v = (x[bucket.tokens].transpose(1, 2) for x in (q, k, v))
            attended = F.scaled_dot_product_attention(one_q, one_k, one_v, attn_mask=bucket.mask, scale=1.0)
            out[bucket.packed] = attended.transpose(1, 2).flatten(0, 1)[bucket.padded]
        return out
