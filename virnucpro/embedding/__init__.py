"""Embedding proteins: tokens, windows, packing, pooling, and the job that ties them together."""

from virnucpro.embedding.job import embed_chunk
from virnucpro.embedding.settings import EmbeddingSettings, resolve_layers

__all__ = ["EmbeddingSettings", "embed_chunk", "resolve_layers"]
