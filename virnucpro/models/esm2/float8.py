"""ESM-2 with float8 matrix products, scaled by token and by output channel (``precision: fp8``).

Weights and inputs of the four products are rounded to e4m3, three bits of mantissa; sums are float32. Everything
else is as in :mod:`virnucpro.models.esm2.fused`, with bfloat16 between the kernels, which no product overflows.
The first layers, whose errors all later ones carry on, keep bfloat16 products.

Rounding a weight changes every token's product by the same matrix. For the part of the input that all tokens share,
their mean, that change is one vector for each product: computed once on some proteins and taken from the bias, it no
longer adds up over the residues of a protein (Nagel et al. 2019, arXiv:1906.04721, bias correction).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.kernels import float8 as kernels
from virnucpro.kernels.float8 import Scaled
from virnucpro.models.esm2.alphabet import CLS, EOS, FIRST_RESIDUE
from virnucpro.models.esm2.fused import FusedESM2
from virnucpro.models.esm2.model import ESM2, LAYER_NORM_EPS, Layer, Linear, Norm, Parameters
from virnucpro.models.esm2.sizes import Architecture

PROTEINS = 32

PERCENT = (9.7, 8.3, 7.1, 6.9, 6.7, 6.7, 5.5, 5.4, 5.9, 5.5, 4.7, 5.8, 3.9, 4.1, 3.9, 2.9, 2.4, 2.3, 1.1, 1.4)
"""Share of the first twenty residues of the alphabet (L A G V S E R T I D P K Q N F Y M H W C) in Swiss-Prot, by
its own statistics."""


def calibration_batch(device: torch.device) -> tuple[Tensor, Segments]:
    """Token ids of random proteins of 30 to 500 residues, always the same ones, packed."""
    generator = np.random.default_rng(0)
    shares = np.array(PERCENT) / sum(PERCENT)
    parts = []
    for length in np.linspace(30, 500, PROTEINS).astype(int):
        residues = FIRST_RESIDUE + generator.choice(len(shares), length, p=shares)
        parts.append(np.concatenate(([CLS], residues, [EOS])))
    tokens = torch.from_numpy(np.concatenate(parts)).to(device)
    return tokens, Segments.from_lengths([len(part) for part in parts], device)


def products_of(p: Layer) -> tuple[Linear, Linear, Linear, Linear]:
    """The four matrix products of a layer in the order in which they run."""
    return p.qkv, p.out, p.fc1, p.fc2


def with_products(p: Layer, products: Sequence[Linear]) -> Layer:
    """A layer with other products, in the order of :func:`products_of`."""
    qkv, out, fc1, fc2 = products
    return replace(p, qkv=qkv, out=out, fc1=fc1, fc2=fc2)


@dataclass(frozen=True)
class Watched(Linear):
    """A product that notes the mean over the tokens of what enters it, float32 ``(inputs,)``."""

    means: list[Tensor] = field(default_factory=list)

    def __call__(self, y: Tensor) -> Tensor:
        self.means.append(y.float().mean(0))
        return super().__call__(y)


def mean_inputs(model: ESM2) -> list[list[Tensor]]:
    """Run the calibration batch through a model: for each layer, the mean of what enters each of its products."""
    watched = [[Watched(one.weight, one.bias) for one in products_of(p)] for p in model.parameters.layers]
    layers = tuple(map(with_products, model.parameters.layers, watched))
    watching = ESM2(replace(model.parameters, layers=layers), model.sizes, model.attend)
    watching(*calibration_batch(model.facts.device), [model.sizes.layers])
    return [[one.means[0] for one in products] for products in watched]


def corrected(product: Linear, used: Tensor, mean: Tensor) -> Linear:
    """A product whose bias makes up for what rounding its weight does to the mean input.

    Args:
        used: float32, the weight as it will be used.
        mean: float32 ``(inputs,)``.

    Returns:
        ``product`` with another bias, float32.
    """
    return replace(product, bias=product.bias.float() + (product.weight.float() - used) @ mean)


class Float8Layer(NamedTuple):
    """The four weights of a layer, each float8 ``(outputs, inputs)`` with float32 scales ``(outputs, 1)``."""

    qkv: Scaled
    out: Scaled
    fc1: Scaled
    fc2: Scaled


class Float8ESM2(FusedESM2):
    """The fused form, in float8 from layer ``first`` on; a product is added to the stream by the norm that follows."""

    def __init__(self, parameters: Parameters, sizes: Architecture, attend: PackedAttention) -> None:
        """Args: ``parameters`` are bfloat16."""
        self.first = max(1, round(sizes.layers / 12))
        self.weights: dict[int, Float8Layer] = {}
        means = mean_inputs(ESM2(parameters, sizes, attend))
        layers = list(parameters.layers)
        for number in range(self.first, sizes.layers):
            p = layers[number]
            products = products_of(p)
            scaled = Float8Layer(*(kernels.scaled_rows(product.weight) for product in products))
            self.weights[number] = scaled
            used = [values.float() * scales for values, scales in scaled]
            layers[number] = with_products(p, list(map(corrected, products, used, means[number])))
        super().__init__(replace(parameters, layers=tuple(layers)), sizes, attend)
        self.layers_run = "fused fp8"

    @property
    def products_in(self) -> torch.dtype:
        return torch.float8_e4m3fn

    def step(
        self, number: int, x: Tensor, pending: Tensor | None, table: tuple[Tensor, Tensor], segments: Segments
    ) -> Tensor | None:
        """As :meth:`FusedESM2.step`."""
        if number < self.first:
            return super().step(number, x, pending, table, segments)
        p, weights = self.parameters.layers[number], self.weights[number]
        pending = torch.zeros_like(x, dtype=torch.bfloat16) if pending is None else pending
        y = self.add_norm(x, pending, self.offsets[2 * number], p.attention_norm)
        q, k, v = self.rotated(scaled_product(y, weights.qkv), p.qkv.bias, *table)
        attended = self.attend(q, k, v, segments).reshape(x.shape).contiguous()
        added = scaled_product(kernels.scaled_rows(attended), weights.out)
        y = self.add_norm(x, added, self.offsets[2 * number + 1], p.final_norm)
        hidden = kernels.gelu(scaled_product(y, weights.fc1), p.fc1.bias)
        return scaled_product(hidden, weights.fc2)

    def add_norm(self, x: Tensor, added: Tensor, offset: Tensor, norm: Norm) -> Scaled:
        """``x += added`` in place, and the norm of ``x + offset`` in float8."""
        return kernels.add_norm(x, added, offset, norm.weight, norm.bias, LAYER_NORM_EPS)


def scaled_product(a: Scaled, weight: Scaled) -> Tensor:
    """``a @ weight.T`` with the scales of both applied: bfloat16 ``(T, outputs)``."""
    product: Callable[..., Tensor] = torch._scaled_mm
    return product(
        a[0], weight[0].t(), scale_a=a[1], scale_b=weight[1].t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
