"""The steps of a layer by torch's own operators: every device, every dtype."""

from __future__ import annotations

from torch import Tensor

from virnucpro.models.layer import finish_layer, normalise, project_qkv
from virnucpro.models.parameters import ModelParameters
from virnucpro.models.steps.base import Stream


class EagerSteps:
    """The steps as :mod:`virnucpro.models.layer` states them."""

    name = "eager"

    def __init__(self, parameters: ModelParameters, heads: int, q_scale: float) -> None:
        """Args: ``q_scale`` is ``head_dim ** -0.5``, or 1.0 when the attention kernel scales."""
        self.parameters = parameters
        self.heads = heads
        self.q_scale = q_scale

    def project(self, stream: Stream, number: int, cos: Tensor, sin: Tensor) -> tuple[Stream, Tensor, Tensor, Tensor]:
        return (stream, *project_qkv(stream.x, self.parameters.layers[number], cos, sin, self.heads, self.q_scale))

    def finish(self, stream: Stream, attended: Tensor, number: int) -> Stream:
        return Stream(finish_layer(stream.x, attended, self.parameters.layers[number]))

    def representation(self, stream: Stream, layers: int) -> Tensor:
        return stream.x

    def final(self, stream: Stream) -> Tensor:
        return normalise(stream.x, self.parameters.after_norm_weight, self.parameters.after_norm_bias)
