"""The steps of a layer between two attentions, run eagerly."""

from __future__ import annotations

from torch import Tensor

from virnucpro.models.layer import finish_layer, project_qkv_in_place
from virnucpro.models.parameters import LayerParameters

Projected = tuple[Tensor, Tensor, Tensor]


class LayerSteps:
    """What :class:`PackedESM2` runs around the attention; :mod:`virnucpro.models.compiled` has a faster one.

    Attributes:
        heads: attention heads.
        q_scale: ``head_dim ** -0.5``, or 1.0 when the attention kernel scales.
    """

    name = "eager"

    def __init__(self, heads: int, q_scale: float) -> None:
        self.heads = heads
        self.q_scale = q_scale

    def project(self, x: Tensor, p: LayerParameters, cos: Tensor, sin: Tensor) -> Projected:
        """q, k and v of a layer (see :func:`project_qkv`)."""
        return project_qkv_in_place(x, p, cos, sin, self.heads, self.q_scale)

    def finish(self, x: Tensor, attended: Tensor, p: LayerParameters) -> Tensor:
        """The end of a layer (see :func:`finish_layer`)."""
        return finish_layer(x, attended, p)

    def advance(
        self, x: Tensor, attended: Tensor, p: LayerParameters, following: LayerParameters, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The end of a layer and the projections of the next one: ``x, q, k, v``."""
        x = self.finish(x, attended, p)
        return (x, *self.project(x, following, cos, sin))
