"""One ESM-2 transformer layer on packed tokens, as two steps with the attention between them.

``x`` is the residual stream ``(T, D)``; what enters a matrix product has the weights' dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.models.parameters import LayerParameters
from virnucpro.models.rotary import rotate_in_place

LAYER_NORM_EPS = 1e-5


def normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the channels, computed and returned in float32."""
    return F.layer_norm(x.float(), (x.shape[-1],), weight, bias, LAYER_NORM_EPS)


def project_qkv(
    x: Tensor, p: LayerParameters, cos: Tensor, sin: Tensor, heads: int, q_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(T, heads, head_dim)``: bias, then scale (q alone), then rotary (q and k).

    Args:
        q_scale: ``head_dim ** -0.5``, or 1.0 when the attention kernel scales.
    """
    tokens, dim = x.shape
    y = normalise(x, p.attention_norm_weight, p.attention_norm_bias).to(p.qkv_weight.dtype)
    q, k, v = F.linear(y, p.qkv_weight, p.qkv_bias).view(tokens, 3, heads, dim // heads).unbind(1)
    turn = torch.complex(cos, sin)
    rotate_in_place(q, turn * q_scale)
    rotate_in_place(k, turn)
    return q, k, v


def finish_layer(x: Tensor, attended: Tensor, p: LayerParameters) -> Tensor:
    """Output projection and feed-forward, each added to the residual stream.

    Args:
        attended: ``(T, heads, head_dim)`` from the attention.

    Returns:
        The new residual stream, in ``x``'s dtype; ``x`` itself is left as it was.
    """
    x = x + F.linear(attended.reshape(x.shape), p.out_weight, p.out_bias)
    y = normalise(x, p.final_norm_weight, p.final_norm_bias).to(p.fc1_weight.dtype)
    return x + F.linear(feed_forward_hidden(y, p), p.fc2_weight, p.fc2_bias)


def feed_forward_hidden(y: Tensor, p: LayerParameters) -> Tensor:
    """The feed-forward's hidden layer ``(T, 4 D)`` of normalised ``y``; GELU with erf, as fair-esm's."""
    return F.gelu(F.linear(y, p.fc1_weight, p.fc1_bias))


def embed_tokens(tokens: Tensor, weight: Tensor, sequence: Tensor, sequences: int, token_dropout: bool) -> Tensor:
    """The scaled token embedding, which is ESM-2's layer 0.

    With token dropout, rows of mask tokens are zeroed and the rest is scaled by
    ``(1 - 0.15 * 0.8) / (1 - masked share)``, the share counted over a whole sequence with BOS and
    EOS (fair-esm's ``ESM2.forward``); without a mask token that is 0.88 exactly.

    Returns:
        float32 ``(T, D)``.
    """
    x = F.embedding(tokens, weight).float()
    if not token_dropout:
        return x
    masked = tokens == MASK
    counts = torch.zeros(2, sequences, dtype=torch.float32, device=tokens.device)
    counts[0].index_add_(0, sequence, masked.float())
    counts[1].index_add_(0, sequence, torch.ones_like(masked, dtype=torch.float32))
    kept = 1 - counts[0] / counts[1]
    x = x.masked_fill(masked.unsqueeze(1), 0.0)
    return x * (1 - 0.15 * 0.8) / kept[sequence].unsqueeze(1)


MASK = 32
"""Index of ``<mask>`` in ESM-2's vocabulary."""
