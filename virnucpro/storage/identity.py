"""What makes one chunk file, or one table, exchangeable for another: the same model, and the same settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from virnucpro.base.settings import EmbeddingSettings, InputPolicies, TableSettings, resolve_layers
from virnucpro.storage.chunk_metadata import EmbeddingIdentity, SettingsIdentity, header_entries
from virnucpro.weights.manifest import WeightsManifest


def embedding_identity(manifest: WeightsManifest, settings: EmbeddingSettings) -> EmbeddingIdentity:
    """What every chunk file made with these weights and settings has in common, and a merge demands.

    Raises:
        UserError: a layer that the model does not have.
    """
    return EmbeddingIdentity(
        **vars(_settings_part(settings)),
        model=manifest.model,
        weights_sha256=manifest.sha256,
        embed_dim=manifest.embed_dim,
        layers=resolve_layers(settings.layers, manifest.layers),
    )


def _settings_part(settings: EmbeddingSettings) -> SettingsIdentity:
    return SettingsIdentity(
        pooling=tuple(sorted(settings.pooling)),
        precision=settings.precision,
        long_proteins=settings.long_proteins,
    )


def identity(manifest: WeightsManifest, settings: EmbeddingSettings) -> dict[str, str]:
    """:func:`embedding_identity` as the metadata entries of a chunk file.

    Raises:
        UserError: a layer that the model does not have.
    """
    return header_entries(embedding_identity(manifest, settings))


def settings_identity(settings: EmbeddingSettings) -> dict[str, str]:
    """The part of :func:`identity` that is known without the weights."""
    return header_entries(_settings_part(settings))


def table_settings(embedding: EmbeddingSettings, tables: TableSettings) -> dict[str, str]:
    """The settings that decide what a sample's tables hold, as their record states them."""
    return {
        **settings_identity(embedding),
        "layers_asked_for": json.dumps(embedding.layers),
        "formats": json.dumps(sorted(tables.formats)),
        "dtype": tables.dtype,
        "records_per_file": str(tables.records_per_file),
    }


def translation_origin(sha256: Iterable[str], window: int, policies: InputPolicies) -> dict[str, str]:
    """What translated contigs are made from: the sha256 of each FASTA file in order, the window's bases, policies."""
    return {"contigs": json.dumps(list(sha256)), "window": str(window), **asdict(policies)}


def reports_origin(reports: Mapping[str, str]) -> dict[str, str]:
    """What plots and summaries are made from: the sha256 of each sample's report, by the sample's name, in order."""
    return {"reports": json.dumps(list(reports.items()))}
