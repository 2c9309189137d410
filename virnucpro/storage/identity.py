"""What makes one chunk file exchangeable for another: the same model, and the same settings."""

from __future__ import annotations

import json

from virnucpro.base.settings import EmbeddingSettings, resolve_layers
from virnucpro.weights.manifest import WeightsManifest


def identity(manifest: WeightsManifest, settings: EmbeddingSettings) -> dict[str, str]:
    """The metadata entries that every chunk file made with these weights and settings has, and that a merge demands.

    Raises:
        UserError: a layer that the model does not have.
    """
    long_proteins = {"policy": settings.long_policy, "longest": settings.longest, "overlap": settings.overlap}
    return {
        "model": manifest.model,
        "weights_sha256": manifest.sha256,
        "layers": json.dumps(resolve_layers(settings.layers, manifest.architecture.layers)),
        "pooling": json.dumps(sorted(settings.pooling)),
        "precision": settings.precision,
        "long_proteins": json.dumps(long_proteins),
    }
