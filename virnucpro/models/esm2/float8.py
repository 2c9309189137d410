"""What float8 weights do to the average token, and biases that undo it.

Rounding a weight changes every token's product by the same matrix. For the part of the input that all tokens share,
their mean, that change is one vector for each product: computed once on some proteins and taken from the bias, it no
longer adds up over the residues of a protein (Nagel et al. 2019, arXiv:1906.04721, bias correction).

The steps of a layer with float8 matrix products, scaled by token and by output channel (``precision: fp8``).

Weights and inputs of the four products are rounded to e4m3, three bits of mantissa; sums are float32. Everything
else is as in :mod:`virnucpro.models.esm2.fused`, with bfloat16 between the kernels, which no product overflows.
The first layers, whose errors all later ones carry on, keep bfloat16 products, and the biases of the others are
corrected for the rounding of their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.attention.segments import Segments
from virnucpro.models.esm2.model import (
    LayerParameters,
    embed_tokens,
    feed_forward_hidden,
    normalise,
    project_qkv,
    rotary_tables,
)

if TYPE_CHECKING:
    from virnucpro.models.esm2.model import PackedESM2
from collections.abc import Callable
from typing import TYPE_CHECKING

from virnucpro.kernels import float8 as kernels_fp8
from virnucpro.kernels.float8 import Scaled
from virnucpro.models.esm2.fused import FusedSteps
from virnucpro.models.esm2.model import Stream

if TYPE_CHECKING:
    from virnucpro.models.esm2.model import PackedESM2

PROTEINS = 32


BOS, FIRST_RESIDUE, EOS = 0, 4, 2


PERCENT = (9.7, 8.3, 7.1, 6.9, 6.7, 6.7, 5.5, 5.4, 5.9, 5.5, 4.7, 5.8, 3.9, 4.1, 3.9, 2.9, 2.4, 2.3, 1.1, 1.4)
"""Share of L A G V S E R T I D P K Q N F Y M H W C (token ids 4 to 23) in Swiss-Prot, by its own statistics."""


class MeanInputs(NamedTuple):
    """Mean over tokens of what enters each product of a layer: float32 ``(D,)``, and ``(4 D,)`` for ``fc2``."""

    qkv: Tensor
    out: Tensor
    fc1: Tensor
    fc2: Tensor


def calibration_batch(device: torch.device) -> tuple[Tensor, Segments]:
    """Token ids of random proteins of 30 to 500 residues, always the same ones, packed."""
    generator = np.random.default_rng(0)
    shares = np.array(PERCENT) / sum(PERCENT)
    parts = []
    for length in np.linspace(30, 500, PROTEINS).astype(int):
        residues = FIRST_RESIDUE + generator.choice(len(shares), length, p=shares)
        parts.append(np.concatenate(([BOS], residues, [EOS])))
    tokens = torch.from_numpy(np.concatenate(parts)).to(device)
    return tokens, Segments.from_lengths([len(part) for part in parts], device)


def mean_inputs(model: PackedESM2) -> list[MeanInputs]:
    """Run the calibration batch through a model's own weights, layer by layer."""
    tokens, segments = calibration_batch(model.device)
    parameters, architecture = model.parameters, model.architecture
    x = embed_tokens(
        tokens, parameters.embed_tokens, segments.sequence, len(segments.lengths), architecture.token_dropout
    )
    found = []
    for p, inv_freq in zip(parameters.layers, parameters.inv_freq, strict=True):
        tables = rotary_tables(inv_freq, segments.positions)
        entering = normalise(x, p.attention_norm_weight, p.attention_norm_bias)
        q, k, v = project_qkv(x, p, *tables, architecture.heads, model.q_scale)
        attended = model.attention(q, k, v, segments).reshape(x.shape)
        x = x + F.linear(attended, p.out_weight, p.out_bias)
        y = normalise(x, p.final_norm_weight, p.final_norm_bias)
        hidden = feed_forward_hidden(y.to(p.fc1_weight.dtype), p)
        x = x + F.linear(hidden, p.fc2_weight, p.fc2_bias)
        found.append(MeanInputs(*(one.float().mean(0) for one in (entering, attended, y, hidden))))
    return found


def corrected(p: LayerParameters, rounded: Sequence[Tensor], means: MeanInputs) -> LayerParameters:
    """A layer whose biases make up for what rounding its weights does to the mean input.

    Args:
        rounded: the weights as they will be used: those of q, k and v, of the output, of fc1 and of fc2.

    Returns:
        ``p`` with other biases, float32.
    """
    weights = (p.qkv_weight, p.out_weight, p.fc1_weight, p.fc2_weight)
    biases = (p.qkv_bias, p.out_bias, p.fc1_bias, p.fc2_bias)
    qkv, out, fc1, fc2 = (
        bias.float() + (weight.float() - used.float()) @ mean
        for bias, weight, used, mean in zip(biases, weights, rounded, means, strict=True)
    )
    return p._replace(qkv_bias=qkv, out_bias=out, fc1_bias=fc1, fc2_bias=fc2)


class Fp8Layer(NamedTuple):
    """The four weights of a layer, each float8 ``(outputs, inputs)`` with float32 scales ``(outputs, 1)``."""

    qkv: Scaled
    out: Scaled
    fc1: Scaled
    fc2: Scaled


class Fp8Steps(FusedSteps):
    """Fused steps, in float8 from layer ``wide`` on; a product is added to the stream by the norm that follows it."""

    name = "fused fp8"

    def __init__(self, model: PackedESM2) -> None:
        """Args: ``model`` has bfloat16 parameters."""
        layers = model.parameters.layers
        self.wide = max(1, round(len(layers) / 12))
        means = mean_inputs(model)
        self.layers: dict[int, Fp8Layer] = {}
        changed = list(layers)
        for number in range(self.wide, len(layers)):
            self.layers[number] = scale_weights(layers[number])
            rounded = [values.float() * scales for values, scales in self.layers[number]]
            changed[number] = corrected(layers[number], rounded, means[number])
        parameters = model.parameters._replace(layers=tuple(changed))
        super().__init__(parameters, model.architecture.heads, model.q_scale)

    def project(self, stream: Stream, number: int, cos: Tensor, sin: Tensor) -> tuple[Stream, Tensor, Tensor, Tensor]:
        if number < self.wide:
            return super().project(stream, number, cos, sin)
        p = self.parameters.layers[number]
        addend = torch.zeros_like(stream.x, dtype=torch.bfloat16) if stream.addend is None else stream.addend
        y = kernels_fp8.add_norm(
            stream.x, addend, self.offsets[2 * number], p.attention_norm_weight, p.attention_norm_bias
        )
        qkv = scaled_product(y, self.layers[number].qkv)
        return (Stream(stream.x), *self._rotated(qkv, p.qkv_bias, cos, sin))

    def finish(self, stream: Stream, attended: Tensor, number: int) -> Stream:
        if number < self.wide:
            return super().finish(stream, attended, number)
        p, weights = self.parameters.layers[number], self.layers[number]
        added = scaled_product(kernels_fp8.rows(attended.reshape(stream.x.shape).contiguous()), weights.out)
        y = kernels_fp8.add_norm(stream.x, added, self.offsets[2 * number + 1], p.final_norm_weight, p.final_norm_bias)
        hidden = kernels_fp8.gelu(scaled_product(y, weights.fc1), p.fc1_bias)
        return Stream(stream.x, scaled_product(hidden, weights.fc2))

    def representation(self, stream: Stream, layers: int) -> Tensor:
        x = super().representation(stream, layers)
        return x if stream.addend is None else x.add_(stream.addend)

    def final(self, stream: Stream) -> Tensor:
        return super().final(stream if stream.addend is None else Stream(stream.x + stream.addend))


def scale_weights(p: LayerParameters) -> Fp8Layer:
    """A layer's weights in float8, each output channel with its own scale."""
    return Fp8Layer(*(kernels_fp8.rows(weight) for weight in (p.qkv_weight, p.out_weight, p.fc1_weight, p.fc2_weight)))


def scaled_product(a: Scaled, weight: Scaled) -> Tensor:
    """``a @ weight.T`` with the scales of both applied: bfloat16 ``(T, outputs)``."""
    product: Callable[..., Tensor] = torch._scaled_mm
    return product(
        a[0], weight[0].t(), scale_a=a[1], scale_b=weight[1].t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
