"""The steps of a layer with float8 matrix products, scaled by token and by output channel (``precision: fp8``).

Weights and inputs of the four products are rounded to e4m3, three bits of mantissa; sums are float32. Everything
else is as in :mod:`virnucpro.models.steps.fused`, with bfloat16 between the kernels, which no product overflows.
The first layers, whose errors all later ones carry on, keep bfloat16 products, and the biases of the others are
corrected for the rounding of their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from virnucpro.models.parameters import LayerParameters
from virnucpro.models.steps import kernels_fp8
from virnucpro.models.steps.base import Stream
from virnucpro.models.steps.calibration import corrected, mean_inputs
from virnucpro.models.steps.fused import FusedSteps
from virnucpro.models.steps.kernels_fp8 import Scaled

if TYPE_CHECKING:
    from virnucpro.models.packed import PackedESM2


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
