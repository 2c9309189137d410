"""What makes one chunk file exchangeable for another: the same model, and the same settings."""

from __future__ import annotations

from virnucpro.base.settings import EmbeddingSettings, resolve_layers
from virnucpro.storage.chunk_metadata import EmbeddingIdentity, LongProteins, header_entries
from virnucpro.weights.manifest import WeightsManifest


def embedding_identity(manifest: WeightsManifest, settings: EmbeddingSettings) -> EmbeddingIdentity:
    """What every chunk file made with these weights and settings has in common, and a merge demands.

    Raises:
        UserError: a layer that the model does not have.
    """
    return EmbeddingIdentity(
        model=manifest.model,
        weights_sha256=manifest.sha256,
        demo=manifest.demo,
        layers=resolve_layers(settings.layers, manifest.architecture.layers),
        pooling=tuple(sorted(settings.pooling)),
        precision=settings.precision,
        long_proteins=LongProteins(settings.long_policy, settings.longest, settings.overlap),
    )


def identity(manifest: WeightsManifest, settings: EmbeddingSettings) -> dict[str, str]:
    """The same as metadata entries of a chunk file."""
    return header_entries(embedding_identity(manifest, settings))
