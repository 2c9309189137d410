"""The two steps of a layer, as they come or compiled."""

from __future__ import annotations

from torch import Tensor

from virnucpro.models.layer import finish_layer, project_qkv
from virnucpro.models.parameters import LayerParameters


class LayerSteps:
    """The steps of :mod:`virnucpro.models.layer`, run eagerly."""

    name = "eager"

    def project_qkv(
        self, x: Tensor, p: LayerParameters, cos: Tensor, sin: Tensor, heads: int, q_scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return project_qkv(x, p, cos, sin, heads, q_scale)

    def finish_layer(self, x: Tensor, attended: Tensor, p: LayerParameters) -> Tensor:
        return finish_layer(x, attended, p)
