"""MosaicBERT for CUDA GPUs in half precision: matrix products, and one kernel between two.

The biases of the output products are added by the norms that follow, in float32; the scale of q is in its weights.
A norm follows every sum, so what rounding the stream loses does not grow: pooled errors to float32, released shape
with random weights, were 1.4e-3 in float16 with a stream in float16 and in float32 alike, and frames of 106 tokens
17,300 a second in place of 16,700 (H200). On Hopper GPUs the gated GELU is computed within the product
(:mod:`virnucpro.kernels.product`).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.kernels import gated as kernels
from virnucpro.kernels import pointwise
from virnucpro.kernels.product import gated_product, gated_rows
from virnucpro.models.forms import belongs_in_product
from virnucpro.models.mosaic_bert.model import MosaicBert, Norm, Parameters
from virnucpro.models.mosaic_bert.sizes import LAYER_NORM_EPS, MosaicSizes


class FusedMosaicBert(MosaicBert):
    """MosaicBERT whose stream is in the products' dtype between two kernels, and float32 within them."""

    layers_run: str = "fused"

    def __init__(self, parameters: Parameters, sizes: MosaicSizes, attend: PackedAttention) -> None:
        super().__init__(parameters, sizes, attend)
        d = sizes.embed_dim
        scale = torch.ones(3 * d, device=parameters.words.device)
        scale[:d] = self.q_scale  # a power of two in every published model, so that nothing is rounded
        self.projections = [
            ((p.qkv * scale[:, None]).to(p.qkv.dtype), (p.qkv_bias * scale).to(p.qkv.dtype)) for p in parameters.layers
        ]
        self.offsets = [(p.out_bias.float(), p.down_bias.float()) for p in parameters.layers]
        self.gated = [partial(product_then_gate, gated=p.gated) for p in parameters.layers]
        weight = parameters.layers[0].gated
        if belongs_in_product(lambda y: gated_product(y, gated_rows(weight)), self.gated[0], weight):
            self.gated = [partial(gated_product, rows=gated_rows(p.gated)) for p in parameters.layers]
            self.layers_run = "fused products"

    def embed(self, tokens: Tensor) -> Tensor:
        """As :meth:`MosaicBert.embed`, in two passes over memory."""
        words, norm = F.embedding(tokens, self.parameters.words), self.parameters.norm
        return pointwise.norm(words, self.parameters.kind, norm.weight, norm.bias, LAYER_NORM_EPS, torch.float32)

    def run(self, x: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        """As :meth:`MosaicBert.run`."""
        found = {0: x} if 0 in layers else {}
        y = x.to(self.parameters.words.dtype)
        for number in range(max(layers, default=0)):
            y = self.step(number, y, segments)
            if number + 1 in layers:
                found[number + 1] = y.float()
        return found

    def step(self, number: int, y: Tensor, segments: Segments) -> Tensor:
        """The stream ``(T, D)`` in the products' dtype after layer ``number`` (from 0)."""
        p = self.parameters.layers[number]
        out_bias, down_bias = self.offsets[number]
        qkv = F.linear(y, *self.projections[number])  # (T, 3 D)
        q, k, v = qkv.view(len(y), 3, self.sizes.heads, -1).unbind(1)  # (T, H, d) each
        attended = self.attend(q, k, v, segments, self.slopes).reshape(y.shape)
        y = normed(y, F.linear(attended, p.out), out_bias, p.attention_norm)
        hidden = self.gated[number](y)  # (T, F)
        return normed(y, F.linear(hidden, p.down), down_bias, p.final_norm)


def product_then_gate(y: Tensor, gated: Tensor) -> Tensor:
    """The product with both halves of the weight, and a pass over its output."""
    return kernels.gated_gelu(F.linear(y, gated))


def normed(y: Tensor, added: Tensor, bias: Tensor, norm: Norm) -> Tensor:
    """The norm of ``y + added + bias`` in the products' dtype."""
    return kernels.sum_norm(y, added, bias, norm.weight, norm.bias, LAYER_NORM_EPS)
