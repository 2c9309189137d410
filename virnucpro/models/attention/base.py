"""What every attention over packed sequences offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from virnucpro.models.segments import Segments


class PackedAttention(Protocol):
    """Attention within each sequence of a packed batch, without mask and dropout, softmax in float32.

    Attributes:
        name: what runs, for logs and for the record in the chunk file ("varlen_attn", "sdpa", ...).
        implementation: "flash_attention_2" or "standard_attention".
        scales: True when the kernel itself multiplies the logits by ``head_dim ** -0.5``; else q
            must come scaled, as fair-esm does it.
    """

    name: str
    implementation: str
    scales: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        """Attend; q, k, v and the result are ``(T, heads, head_dim)``, T = ``sum(segments.lengths)``."""
        ...
