"""Embedding proteins: tokens, windows, packing, pooling, and the job that ties them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virnucpro.embedding.settings import EmbeddingSettings, resolve_layers

if TYPE_CHECKING:
    from virnucpro.embedding.job import embed_chunk

__all__ = ["EmbeddingSettings", "embed_chunk", "resolve_layers"]


def __getattr__(name: str) -> Any:
    # The settings are read where torch is not wanted; the job imports it when it is asked for.
    if name == "embed_chunk":
        from virnucpro.embedding.job import embed_chunk

        return embed_chunk
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
