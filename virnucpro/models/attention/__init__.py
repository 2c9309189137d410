"""Attention over packed sequences: one protocol, one module an implementation, one function that chooses."""

from virnucpro.models.attention.base import PackedAttention
from virnucpro.models.attention.choose import choose_attention

__all__ = ["PackedAttention", "choose_attention"]
