"""Attention over packed sequences: one protocol, its implementations, one function that chooses."""

from virnucpro.attention.candidates import PackedAttention, choose_attention

__all__ = ["PackedAttention", "choose_attention"]
