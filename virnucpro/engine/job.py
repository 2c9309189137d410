"""One embed job: a chunk's FASTA in, a chunk file out, on every device that the job has."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from virnucpro import __version__
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record
from virnucpro.base.settings import EmbeddingSettings, resolve_layers
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.engine.devices import embed_on_devices, job_devices
from virnucpro.engine.embed import Embeddings, Protein, embed_proteins
from virnucpro.sequences.fasta import read_fasta
from virnucpro.storage.chunk_file import write_chunk_file
from virnucpro.storage.identity import identity
from virnucpro.weights.manifest import WeightsManifest, read_manifest


def embed_chunk(
    fasta: Path,
    chunk_manifest: Path,
    weights: Path,
    output: Path,
    settings: EmbeddingSettings,
    *,
    devices: Sequence[str] | None = None,
    threads: int | None = None,
    logger: logging.Logger,
) -> dict[str, float]:
    """Embed one chunk and write its chunk file (see :mod:`virnucpro.storage.chunk_file`).

    Args:
        devices: "cpu", "cuda:0", ...; one process each when there are several. None takes every
            CUDA device that the process sees, and the CPU where there is none.
        threads: of the CPU, shared among the devices; None leaves torch's own number.

    Returns:
        The statistics that are also in the chunk file's metadata.

    Raises:
        UserError: the FASTA is not the one that the manifest describes, or see :func:`embed_proteins`.
    """
    manifest = read_manifest(weights)
    chunk = read_record(chunk_manifest, ChunkManifest)
    proteins, digests = read_chunk(fasta, chunk)
    layers = resolve_layers(settings.layers, manifest.architecture.layers)
    places = job_devices(devices)
    if threads is not None:
        torch.set_num_threads(max(1, threads // len(places)))
    logger.info(
        "%s: %d proteins, %d residues; %s, layers %s, %s, on %s",
        chunk.chunk,
        len(proteins),
        sum(len(protein.sequence) for protein in proteins),
        manifest.model,
        ", ".join(str(layer) for layer in layers),
        " and ".join(settings.pooling),
        ", ".join(places),
    )
    if len(places) == 1:
        found = embed_proteins(proteins, weights, manifest, settings, device=places[0], logger=logger)
    else:
        found = embed_on_devices(proteins, weights, manifest, settings, devices=places, logger=logger)
    write_chunk_file(output, chunk_tensors(found, digests), _metadata(found, manifest, chunk, settings))
    logger.info(
        "done: %d tokens in %.1f s, %.0f tokens/s",
        found.statistics["tokens"],
        found.statistics["seconds"],
        found.statistics["tokens_per_second"],
    )
    return found.statistics


def read_chunk(fasta: Path, chunk: ChunkManifest) -> tuple[list[Protein], np.ndarray]:
    """The chunk's proteins and their digests, checked against its manifest.

    Returns:
        Proteins in row order and uint8 digests ``(n, 16)``: blake2b-16 of each one's residues.

    Raises:
        UserError: the FASTA holds other proteins than the manifest was written for.
    """
    proteins = [Protein(record.id, record.sequence) for record in read_fasta(fasta)]
    digests = [hashlib.blake2b(protein.sequence, digest_size=16).digest() for protein in proteins]
    whole = hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
    if whole != chunk.digest or len(proteins) != chunk.proteins:
        raise UserError(
            f"{fasta} does not hold the proteins that {chunk.chunk} was made with: "
            "it was changed or cut short; delete the sample's chunks folder and run the same command again"
        )
    return proteins, np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)


def chunk_tensors(found: Embeddings, digests: np.ndarray) -> dict[str, np.ndarray]:
    """The chunk file's tensors by name."""
    tensors = {
        "digests": digests,
        "lengths": found.lengths,
        "windows": found.windows,
        "embedded": found.embedded,
        "precision": found.precision,
    }
    tensors |= {f"mean.{layer}": values for layer, values in found.mean.items()}
    if found.residues:
        tensors["offsets"] = found.offsets
        tensors |= {f"residues.{layer}": values for layer, values in found.residues.items()}
    return tensors


def _metadata(
    found: Embeddings, manifest: WeightsManifest, chunk: ChunkManifest, settings: EmbeddingSettings
) -> dict[str, str]:
    return {
        **identity(manifest, settings),
        "precisions": json.dumps(found.precisions),
        **found.provenance,
        "chunk": chunk.chunk,
        "chunk_digest": chunk.digest,
        "source_sha256": manifest.source_sha256,
        "model_layers": json.dumps(manifest.layers),
        "versions": json.dumps(versions()),
        "statistics": json.dumps(found.statistics),
        "demo": json.dumps(manifest.demo),
    }


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    try:
        fair_esm = version("fair-esm")
    except PackageNotFoundError:
        fair_esm = "not installed"
    return {
        "virnucpro": __version__,
        "torch": torch.__version__,
        "fair-esm": fair_esm,
        "python": platform.python_version(),
    }
