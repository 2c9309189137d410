"""ESM-2 for CUDA GPUs in half precision: matrix products without bias, and one kernel between two.

On an H200 a product with a bias in its epilogue ran up to 12 % slower than one without, so biases are added by the
kernels that follow, in float32. What a layer adds to the residual stream is added by the product itself, into
float32, and never rounded to half precision. On Hopper GPUs GELU is computed within fc1's product, and the rotary
embedding within that of q and k (:mod:`virnucpro.kernels.product`). What a layer adds ends in a bias, though: the
output projection's, the feed-forward's, and the values' bias, which attention passes on unchanged because its weights
sum to one. These constants need not be in the stream: summed over the layers they are one vector for each place where
it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.kernels import pointwise as kernels
from virnucpro.kernels.product import gelu_product, rotary_product
from virnucpro.models.esm2.model import ESM2, LAYER_NORM_EPS, Linear, Norm, Parameters, rotary_tables, tables_of
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.forms import TRIED_TOKENS, belongs_in_product


def stream_offsets(parameters: Parameters) -> list[Tensor]:
    """What the stream lacks at each of its readings, when no bias was added to it.

    Returns:
        float32 ``(D,)``, 2 a layer and one more: before the attention's norm of layer n (from 0) at ``2 n``,
        before its final norm at ``2 n + 1``, and after the last layer.
    """
    offset = torch.zeros_like(parameters.after_norm.bias)
    found = [offset]
    for p in parameters.layers:
        values_bias = p.qkv.bias.float().chunk(3)[2]
        offset = offset + p.out.bias.float() + p.out.weight.float() @ values_bias
        found.append(offset)
        offset = offset + p.fc2.bias.float()
        found.append(offset)
    return found


Accumulate = Callable[[Tensor, Tensor, Tensor], None]

Expand = Callable[[Tensor, Linear], Tensor]
"""From the norm's output ``(T, D)`` to the feed-forward's hidden layer ``(T, 4 D)``."""

Project = Callable[[Tensor, Linear, Tensor, Tensor], Tensor]
"""From the norm's output ``(T, D)`` and the rotary tables to q, k and v, ``(T, 3 D)``; v without its bias."""


class FusedESM2(ESM2):
    """ESM-2 whose stream is changed in place and lacks the constants of :func:`stream_offsets`."""

    layers_run: str = "fused"

    def __init__(self, parameters: Parameters, sizes: Architecture, attend: PackedAttention) -> None:
        super().__init__(parameters, sizes, attend)
        self.offsets = stream_offsets(parameters)
        weight = parameters.layers[0].out.weight
        self.accumulate = choose_accumulation(weight.device, weight.dtype)
        self.choose_products()

    def choose_products(self) -> None:
        """Take what follows a product into it where that belongs there."""
        layer = self.parameters.layers[0]
        self.project: Project = partial(product_then_rotary, heads=self.sizes.heads, q_scale=self.q_scale)
        in_product = partial(rotary_in_product, q_scale=self.q_scale)
        self.expand: Expand = product_then_gelu
        cos, sin = rotary_tables(layer.inv_freq, torch.arange(TRIED_TOKENS, device=layer.inv_freq.device))
        if belongs_in_product(in_product, self.project, layer.qkv.weight, layer.qkv, cos, sin):
            self.project, self.layers_run = in_product, "fused products"
        if belongs_in_product(gelu_in_product, self.expand, layer.fc1.weight, layer.fc1):
            self.expand, self.layers_run = gelu_in_product, "fused products"

    def run(self, x: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        """As :meth:`ESM2.run`."""
        found = {0: x.clone()} if 0 in layers else {}
        needed = self.parameters.layers[: max(layers, default=0)]
        tables = tables_of(needed, segments.positions)
        pending: Tensor | None = None
        for number, layer in enumerate(needed):
            pending = self.step(number, x, pending, tables[layer.inv_freq], segments)
            if number + 1 in layers:
                found[number + 1] = self.representation(number + 1, x, pending)
        return found

    def step(
        self, number: int, x: Tensor, pending: Tensor | None, table: tuple[Tensor, Tensor], segments: Segments
    ) -> Tensor | None:
        """Change the stream ``x`` to what it is after layer ``number`` (from 0).

        Args:
            pending: ``(T, D)``, a product that is still to be added to ``x``, or None.
            table: from :func:`virnucpro.models.esm2.model.rotary_tables`.

        Returns:
            What is then still to be added; here nothing.
        """
        p = self.parameters.layers[number]
        y = self.normed(x, self.offsets[2 * number], p.attention_norm)
        q, k, v = self.by_heads(self.project(y, p.qkv, *table))
        self.accumulate(x, self.attend(q, k, v, segments).reshape(x.shape), p.out.weight)
        y = self.normed(x, self.offsets[2 * number + 1], p.final_norm)
        self.accumulate(x, self.expand(y, p.fc1), p.fc2.weight)
        return None

    def representation(self, number: int, x: Tensor, pending: Tensor | None) -> Tensor:
        """The representation after ``number`` layers, ``(T, D)``; later steps leave it as it is."""
        if number < self.sizes.layers:
            found = x + self.offsets[2 * number]
            return found if pending is None else found.add_(pending)
        p = self.parameters.after_norm
        whole = x if pending is None else x + pending
        return kernels.norm(whole, self.offsets[-1], p.weight, p.bias, LAYER_NORM_EPS, torch.float32)

    def normed(self, x: Tensor, offset: Tensor, norm: Norm) -> Tensor:
        """The norm of ``x + offset`` in the products' dtype."""
        return kernels.norm(x, offset, norm.weight, norm.bias, LAYER_NORM_EPS, self.parameters.embedding.dtype)

    def by_heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """q, k and v ``(T, H, d)`` of ``(T, 3 D)``."""
        return qkv.view(len(qkv), 3, self.sizes.heads, -1).unbind(1)


def product_then_rotary(y: Tensor, qkv: Linear, cos: Tensor, sin: Tensor, *, heads: int, q_scale: float) -> Tensor:
    """The product, and a pass over its q and k."""
    found = F.linear(y, qkv.weight)  # (T, 3 D)
    kernels.rotate_qk(found, qkv.bias, cos, sin, heads, q_scale)
    return found


def rotary_in_product(y: Tensor, qkv: Linear, cos: Tensor, sin: Tensor, *, q_scale: float) -> Tensor:
    """What the product has summed is turned before it is rounded and stored."""
    return rotary_product(y, qkv.weight, qkv.bias, cos, sin, q_scale)


def product_then_gelu(y: Tensor, fc1: Linear) -> Tensor:
    """The product, and a pass over its output."""
    hidden = F.linear(y, fc1.weight)  # (T, 4 D)
    kernels.gelu(hidden, fc1.bias)
    return hidden


def gelu_in_product(y: Tensor, fc1: Linear) -> Tensor:
    """GELU on what the product has summed, before it is rounded and stored."""
    return gelu_product(y, fc1.weight, fc1.bias)


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
