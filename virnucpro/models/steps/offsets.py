"""Biases that are the same for every token, summed once instead of added in every batch.

What a layer adds to the residual stream ends in a bias: the output projection's, the feed-forward's, and the
values' bias, which attention passes on unchanged because its weights sum to one. These constants need not be in
the stream: summed over the layers they are one vector for each place where the stream is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from virnucpro.models.parameters import ModelParameters


def stream_offsets(parameters: ModelParameters) -> list[Tensor]:
    """What the stream lacks at each of its readings, when no bias was added to it.

    Returns:
        float32 ``(D,)``, 2 a layer and one more: before the attention's norm of layer n at ``2 n``, before its
        final norm at ``2 n + 1``, and after the last layer.
    """
    offset = torch.zeros_like(parameters.after_norm_bias)
    found = [offset]
    for p in parameters.layers:
        values_bias = p.qkv_bias.float().chunk(3)[2]
        offset = offset + p.out_bias.float() + p.out_weight.float() @ values_bias
        found.append(offset)
        offset = offset + p.fc2_bias.float()
        found.append(offset)
    return found
