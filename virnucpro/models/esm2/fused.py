"""Biases that are the same for every token, summed once instead of added in every batch.

What a layer adds to the residual stream ends in a bias: the output projection's, the feed-forward's, and the
values' bias, which attention passes on unchanged because its weights sum to one. These constants need not be in
the stream: summed over the layers they are one vector for each place where the stream is read.

The steps of a layer for CUDA GPUs in half precision: matrix products without bias, and one kernel between two.

On an H200 a product with a bias in its epilogue ran up to 12 % slower than one without, so biases are added by
the kernels that follow, in float32. What a layer adds to the residual stream is added by the product itself,
into float32, and never rounded to half precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.kernels import pointwise as kernels
from virnucpro.models.esm2.model import ModelParameters, Stream


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


Accumulate = Callable[[Tensor, Tensor, Tensor], None]


class FusedSteps:
    """Steps whose stream is float32, changed in place, and lacks the constants of :func:`stream_offsets`."""

    name = "fused"

    def __init__(self, parameters: ModelParameters, heads: int, q_scale: float) -> None:
        """Args: see :class:`EagerSteps`. The weights are shared with ``parameters``."""
        self.parameters = parameters
        self.heads = heads
        self.q_scale = q_scale
        self.offsets = stream_offsets(parameters)
        weight = parameters.layers[0].out_weight
        self._accumulate = choose_accumulation(weight.device, weight.dtype)

    def project(self, stream: Stream, number: int, cos: Tensor, sin: Tensor) -> tuple[Stream, Tensor, Tensor, Tensor]:
        p = self.parameters.layers[number]
        y = kernels.norm(
            stream.x, self.offsets[2 * number], p.attention_norm_weight, p.attention_norm_bias, p.qkv_weight.dtype
        )
        return (stream, *self._rotated(F.linear(y, p.qkv_weight), p.qkv_bias, cos, sin))

    def finish(self, stream: Stream, attended: Tensor, number: int) -> Stream:
        p = self.parameters.layers[number]
        self._accumulate(stream.x, attended.reshape(stream.x.shape), p.out_weight)
        y = kernels.norm(
            stream.x, self.offsets[2 * number + 1], p.final_norm_weight, p.final_norm_bias, p.fc1_weight.dtype
        )
        hidden = F.linear(y, p.fc1_weight)
        kernels.gelu(hidden, p.fc1_bias)
        self._accumulate(stream.x, hidden, p.fc2_weight)
        return stream

    def _rotated(self, qkv: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v ``(T, heads, head_dim)`` of the projections ``(T, 3 D)``, which are changed in place."""
        kernels.rotate_qk(qkv, bias, cos, sin, self.heads, self.q_scale)
        q, k, v = qkv.view(len(qkv), 3, self.heads, -1).unbind(1)
        return q, k, v

    def representation(self, stream: Stream, layers: int) -> Tensor:
        return stream.x + self.offsets[2 * layers]

    def final(self, stream: Stream) -> Tensor:
        p = self.parameters
        return kernels.norm(stream.x, self.offsets[-1], p.after_norm_weight, p.after_norm_bias, torch.float32)


def choose_accumulation(device: torch.device, dtype: torch.dtype) -> Accumulate:
    """The best way to ``x += a @ weight.T`` with float32 ``x (T, D)`` and half-precision ``a`` and ``weight``.

    torch 2.8 and newer let a CUDA product sum into float32; elsewhere it is rounded to half precision first.
    """
    x = torch.zeros(8, 8, device=device)
    half = torch.ones(8, 8, device=device, dtype=dtype)
    try:
        _accumulate_in_product(x, half, half)
    except (RuntimeError, TypeError):
        return _accumulate_afterwards
    return _accumulate_in_product


def _accumulate_in_product(x: Tensor, a: Tensor, weight: Tensor) -> None:
    torch.addmm(x, a, weight.t(), out_dtype=torch.float32, out=x)


def _accumulate_afterwards(x: Tensor, a: Tensor, weight: Tensor) -> None:
    x.add_(F.linear(a, weight))
