"""ESM-2 with matrix products of 8-bit integers (``precision: int8``).

Weights have a scale for each output channel, what is multiplied with them a scale and a zero for each token
(:mod:`virnucpro.kernels.rows8`); sums are exact integers. The output projection, one twelfth of the operations, and
everything between the products stay as in :mod:`virnucpro.models.esm2.fused`, in float16. Three things keep the errors
small, all of them derived from what enters each product on a fixed list of proteins when the model is loaded:

- What rounding a weight changes for the mean input is taken from the bias (Nagel et al. 2019, arXiv:1906.04721); before
  qkv and fc1 the mean itself is subtracted, so that it takes no part of the integers' range.
- Channels that reach far share their range with the weight's column (Xiao et al. 2023, arXiv:2211.10438).
- Of fc2's inputs, the channels that reach farthest have two integers.

Which products are integers, and the exponents of the second step, were chosen on trained weights by what they cost and
what they save: docs/decisions/2026-11-int8.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.cuda import HOPPER
from virnucpro.cuda.devices import capability
from virnucpro.kernels import rows8 as kernels
from virnucpro.kernels.pointwise import rotate_qk
from virnucpro.kernels.product8 import Weight8, product_in_one, product_in_two, split_of, weight_rows
from virnucpro.kernels.rows8 import Rows
from virnucpro.models.esm2.alphabet import CLS, EOS, ESM2Tokenizer
from virnucpro.models.esm2.fused import FusedESM2
from virnucpro.models.esm2.model import ESM2, LAYER_NORM_EPS, Layer, Linear, Norm, Parameters
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.sequences.fasta import read_fasta

AFTER_NORM, AFTER_GELU = 0.5, 0.3
"""How much of a channel's reach goes to the weight: ``reach ** exponent / weight's reach ** (1 - exponent)``."""


def calibration_batch(device: torch.device) -> tuple[Tensor, Segments]:
    """Token ids of the proteins of ``calibration.faa``, packed."""
    sequences = [record.sequence for record in read_fasta(Path(__file__).with_name("calibration.faa"))]
    encoded = ESM2Tokenizer().encode(sequences, [""] * len(sequences))
    parts = [np.concatenate(([CLS], ids, [EOS])) for ids in encoded]
    tokens = torch.from_numpy(np.concatenate(parts)).to(device)
    return tokens, Segments.from_lengths([len(part) for part in parts], device)


class Inputs(NamedTuple):
    """What enters a product over the calibration's tokens, float32 ``(inputs,)`` each.

    ``mean`` of each channel, and ``reach``, its largest distance from the mean.
    """

    mean: Tensor
    reach: Tensor


@dataclass(frozen=True)
class Watched(Linear):
    """A product that notes what enters it."""

    seen: list[Inputs] = field(default_factory=list)

    def __call__(self, y: Tensor) -> Tensor:
        mean = y.mean(0, dtype=torch.float32)
        lowest, highest = (found.float() for found in torch.aminmax(y, dim=0))
        self.seen.append(Inputs(mean, torch.maximum(highest - mean, mean - lowest).clamp(min=1e-5)))
        return super().__call__(y)


SeenByLayer = list[tuple[Inputs, Inputs, Inputs]]
"""For each layer, what enters qkv, fc1 and fc2."""


def inputs_of_products(model: ESM2, tokens: Tensor, segments: Segments) -> tuple[SeenByLayer, Tensor]:
    """Run sequences through a model: what enters its products, and the last layer's representation ``(T, D)``."""
    watched = [tuple(Watched(one.weight, one.bias) for one in (p.qkv, p.fc1, p.fc2)) for p in model.parameters.layers]
    layers = tuple(
        replace(p, qkv=qkv, fc1=fc1, fc2=fc2)
        for p, (qkv, fc1, fc2) in zip(model.parameters.layers, watched, strict=True)
    )
    watching = ESM2(replace(model.parameters, layers=layers), model.sizes, model.attend)
    last = watching(tokens, segments, [model.sizes.layers])[model.sizes.layers]
    return [(qkv.seen[0], fc1.seen[0], fc2.seen[0]) for qkv, fc1, fc2 in watched], last


def shared_range(inputs: Inputs, weight: Tensor, exponent: float) -> Tensor:
    """What each input channel is divided by, and the weight's column multiplied with: float32 ``(inputs,)``."""
    columns = weight.abs().amax(0).float().clamp(min=1e-5)
    return inputs.reach**exponent / columns ** (1 - exponent)


def behind_norm(product: Linear, norm: Norm, inputs: Inputs) -> tuple[Weight8, Tensor, Norm]:
    """A product behind a norm: its integer weight, its float32 bias, and a norm that ends in what it takes."""
    weight = product.weight.float()
    factor = shared_range(inputs, weight, AFTER_NORM)
    bias = product.bias.float() + weight @ inputs.mean
    return weight_rows(weight * factor), bias, Norm(norm.weight / factor, (norm.bias - inputs.mean) / factor)


class Layer8(NamedTuple):
    """What a layer of integers has besides its parameters: ``factor`` of what GELU gives, float16 ``(4 D,)``."""

    qkv: Weight8
    fc1: Weight8
    fc2: Weight8
    factor: Tensor


def in_integers(p: Layer, seen: tuple[Inputs, Inputs, Inputs]) -> tuple[Layer, Layer8]:
    """A layer with changed norms and biases, the hidden channels in another order, and its integer weights.

    The first layer returned computes the same as ``p`` with the weights of the second.
    """
    qkv, qkv_bias, attention_norm = behind_norm(p.qkv, p.attention_norm, seen[0])
    hidden, back = seen[2], p.fc2.weight.float()
    # Rounded before the weight is divided by it, so that no error comes of that.
    factor = (1 / shared_range(hidden, back, AFTER_GELU)).clamp(1e-3, 1e3).half()
    order = torch.argsort(hidden.reach * factor, descending=True, stable=True)
    first = Linear(p.fc1.weight[order], p.fc1.bias[order])
    fc1, fc1_bias, final_norm = behind_norm(first, p.final_norm, seen[1])
    shared = (back / factor)[:, order]
    fc2 = weight_rows(shared, split_of(len(order)))
    changed = replace(
        p,
        attention_norm=attention_norm,
        final_norm=final_norm,
        qkv=replace(p.qkv, bias=qkv_bias),
        fc1=Linear(first.weight, fc1_bias),
        fc2=replace(p.fc2, bias=p.fc2.bias.float() + (shared - fc2.rounded()) @ (hidden.mean * factor)[order]),
    )
    return changed, Layer8(qkv, fc1, fc2, factor[order])


class Int8ESM2(FusedESM2):
    """The fused form with integer products; fc2's is added to the stream by the norm that follows."""

    def __init__(self, parameters: Parameters, sizes: Architecture, attend: PackedAttention, seen: SeenByLayer) -> None:
        """Args: ``parameters`` are float16, ``seen`` is what enters their products (:func:`inputs_of_products`)."""
        made = [in_integers(p, inputs) for p, inputs in zip(parameters.layers, seen, strict=True)]
        self.eight: Sequence[Layer8] = [eight for _, eight in made]
        super().__init__(replace(parameters, layers=tuple(layer for layer, _ in made)), sizes, attend)
        unused = parameters.embedding.new_empty(0)  # half of the memory
        layers = [
            replace(p, **{name: replace(getattr(p, name), weight=unused) for name in ("qkv", "fc1", "fc2")})
            for p in self.parameters.layers
        ]
        self.parameters = replace(self.parameters, layers=tuple(layers))

    def choose_products(self) -> None:
        """As :func:`choose_product`."""
        self.product = choose_product(self.eight[0].fc2)
        self.layers_run = "fused int8"

    @property
    def products_in(self) -> torch.dtype:
        return torch.int8

    def step(
        self, number: int, x: Tensor, pending: Tensor | None, table: tuple[Tensor, Tensor], segments: Segments
    ) -> Tensor | None:
        """As :meth:`FusedESM2.step`."""
        p, eight = self.parameters.layers[number], self.eight[number]
        y = self.rows(x, pending, self.offsets[2 * number], p.attention_norm)
        qkv = self.product(y, eight.qkv, None)
        rotate_qk(qkv, p.qkv.bias, *table, self.sizes.heads, self.q_scale)
        q, k, v = self.by_heads(qkv)
        self.accumulate(x, self.attend(q, k, v, segments).reshape(x.shape), p.out.weight)
        y = self.rows(x, None, self.offsets[2 * number + 1], p.final_norm)
        hidden = self.product(y, eight.fc1, p.fc1.bias)
        return self.product(kernels.gelu_rows(hidden, eight.factor, eight.fc2.split), eight.fc2, None)

    def rows(self, x: Tensor, added: Tensor | None, offset: Tensor, norm: Norm) -> Rows:
        """``x += added`` in place, and the norm of ``x + offset`` in integers."""
        return kernels.norm_rows(x, added, offset, norm.weight, norm.bias, LAYER_NORM_EPS)


Product8 = Callable[[Rows, Weight8, Tensor | None], Tensor]


def choose_product(weight: Weight8) -> Product8:
    """One kernel on Hopper, where it was measured and if it gives the same bits; else torch's product and a pass."""
    device = weight.values.device
    if capability(device)[0] != HOPPER:
        return product_in_two
    columns = weight.values.shape[1] - weight.split
    numbers = torch.randn(70, columns, generator=torch.Generator().manual_seed(0)).to(device)
    x, bias = kernels.gelu_rows(numbers, torch.ones(columns, device=device), weight.split), weight.scales
    try:
        same = torch.equal(product_in_one(x, weight, bias), product_in_two(x, weight, bias))
    except Exception:  # such as a Triton without the tensor memory accelerator's descriptors
        return product_in_two
    return product_in_one if same else product_in_two
