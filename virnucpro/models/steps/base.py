"""What runs around the attention of a layer."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Stream(NamedTuple):
    """The residual stream between two steps.

    Attributes:
        x: ``(T, D)``. What it holds is the business of the steps that made it; :meth:`LayerSteps.representation`
            reads it.
        addend: ``(T, D)``, a product that is still to be added to ``x``, or None.
    """

    x: Tensor
    addend: Tensor | None = None


class LayerSteps(Protocol):
    """The steps of each layer before and after its attention.

    Attributes:
        name: for logs and for the record in the chunk file ("eager", "fused", "fused fp8").
    """

    name: str

    def project(self, stream: Stream, number: int, cos: Tensor, sin: Tensor) -> tuple[Stream, Tensor, Tensor, Tensor]:
        """Norm and projections of layer ``number`` (from 0).

        Args:
            cos, sin: from :func:`virnucpro.models.rotary.rotary_tables`.

        Returns:
            The stream, which may be the given one changed in place, and q, k and v ``(T, heads, head_dim)``.
        """
        ...

    def finish(self, stream: Stream, attended: Tensor, number: int) -> Stream:
        """The stream after layer ``number``, given its attention's output ``(T, heads, head_dim)``.

        The given stream may be changed in place.
        """
        ...

    def representation(self, stream: Stream, layers: int) -> Tensor:
        """The raw representation after ``layers`` layers, ``(T, D)``; later steps leave it as it is."""
        ...

    def final(self, stream: Stream) -> Tensor:
        """The last layer's representation, through ``emb_layer_norm_after``: float32 ``(T, D)``."""
        ...
