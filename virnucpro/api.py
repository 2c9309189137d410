"""Embedding from Python without Snakemake: the workflow's steps one after the other, in one process."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.storage.tables import TABLES
from virnucpro.weights.manifest import WeightsManifest


def embed(
    fasta: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    model: str = "esm2_t36_3B_UR50D",
    layers: Sequence[int | str] | int | str = "last",
    pooling: Sequence[str] = ("mean",),
    precision: str = "auto",
    long_policy: str = "window",
    longest: int = 1022,
    overlap: int = 511,
    formats: Sequence[str] = ("parquet",),
    dtype: str = "float32",
    chunk_residues: int | None = None,
    devices: Sequence[str] | None = None,
    weights_folder: str | Path | None = None,
    logger: logging.Logger | None = None,
) -> Path:
    """Embed proteins and write tables of them; a call that was stopped goes on where it was when it is made again.

    The folder then holds what the workflow writes for a sample: the index ``proteins.parquet``, ``chunks/``,
    ``tensors/``, the tables, and ``embeddings.json`` with provenance and counts. Chunk files that are there are
    verified and kept; those that are damaged or were made from other sequences or settings are made anew.

    Args:
        fasta: one or several protein FASTA files, plain or gzip.
        folder: where results go.
        model: a released model's name, ``esm2_demo`` (random weights, to try things out), or a checkpoint's path.
        layers: ``"last"``, a number (negative ones count from the end), or several.
        pooling: ``"mean"``, ``"per_residue"``, or both.
        precision: ``"auto"``, ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"fp8"``.
        long_policy, longest, overlap: what is done to proteins of more than ``longest`` residues.
        formats: of the tables: ``"parquet"``, ``"hdf5"``, ``"virnucpro_pt"``, ``"npy"``.
        dtype: of the tables, ``"float32"`` or ``"float16"``.
        chunk_residues: residues that are embedded between two savings.
        devices: ``"cuda:0"``, ``"cpu"``, ...; None takes every GPU that the process sees, or the CPU.
        weights_folder: where converted weights are kept; by default ``folder / "weights"``.

    Returns:
        The path of the first format's table; :func:`virnucpro.read_embeddings` reads it.

    Raises:
        UserError: anything that the user can mend; the sentence says how.
    """
    # torch takes seconds to load, so nothing of it is imported with the package.
    from virnucpro.base.settings import EmbeddingSettings, resolve_layers
    from virnucpro.chunking.size import default_chunk_residues
    from virnucpro.chunking.split import split_proteins
    from virnucpro.engine.job import embed_chunk
    from virnucpro.storage.chunk_file import ChunkError
    from virnucpro.storage.identity import identity
    from virnucpro.storage.merge import merge_embeddings
    from virnucpro.storage.verify import verify_chunk

    log = logger or logging.getLogger(__name__)
    folder = Path(folder)
    unknown = [name for name in formats if name not in TABLES]
    if unknown or not formats:
        raise UserError(f"unknown table formats {unknown}: give one or more of {', '.join(TABLES)}")
    inputs = [Path(fasta)] if isinstance(fasta, (str, Path)) else [Path(file) for file in fasta]
    settings = EmbeddingSettings(
        layers=(layers,) if isinstance(layers, (int, str)) else tuple(layers),
        pooling=tuple(pooling),
        precision=precision,
        long_policy=long_policy,
        longest=longest,
        overlap=overlap,
    )
    weights, manifest_path, manifest = _weights(model, Path(weights_folder or folder / "weights"), log)
    if chunk_residues is None:
        kept = len(resolve_layers(settings.layers, manifest.layers))
        chunk_residues = default_chunk_residues(manifest.embed_dim, kept, settings.pooling)
    index, chunks = folder / "proteins.parquet", folder / "chunks"
    split_proteins(
        inputs,
        index,
        chunks,
        chunk_residues=chunk_residues,
        embed_dim=manifest.embed_dim,
        policy=long_policy,
        longest=longest,
        overlap=overlap,
        logger=log,
    )
    expected = identity(manifest, settings)
    tensors = []
    for chunk in sorted(chunks.glob("*.json")):
        output = folder / "tensors" / f"{chunk.stem}.safetensors"
        tensors.append(output)
        if output.exists():
            try:
                verify_chunk(output, chunk.stem, json.loads(chunk.read_text())["digest"], expected)
                log.info("%s is there already", output)
                continue
            except ChunkError as error:
                log.info("%s is made anew: %s", output, error.reason)
        fasta_of_chunk = chunk.with_suffix(".fasta")
        embed_chunk(fasta_of_chunk, chunk, weights, manifest_path, output, settings, devices=devices, logger=log)
    tables = {name: folder / TABLES[name].name for name in formats}
    command = f"virnucpro.embed({[str(path) for path in inputs]}, {str(folder)!r}, model={model!r}, ...)"
    report = folder / "embeddings.json"
    merge_embeddings(index, tensors, tables, report, expected=expected, dtype=dtype, command=command, logger=log)
    return tables[formats[0]]


def _weights(model: str, folder: Path, log: logging.Logger) -> tuple[Path, Path, WeightsManifest]:
    """Converted weights: those that are there, when they were made from this model, or new ones."""
    from virnucpro.weights.find import is_model_name
    from virnucpro.weights.manifest import read_manifest
    from virnucpro.weights.prepare import prepare_weights

    name = model if is_model_name(model) else Path(model).stem
    weights, manifest_path = folder / f"{name}.safetensors", folder / f"{name}.json"
    if weights.is_file() and manifest_path.is_file():
        manifest = read_manifest(manifest_path)
        if is_model_name(model) or not Path(model).is_file():
            return weights, manifest_path, manifest
        with Path(model).open("rb") as checkpoint:
            if hashlib.file_digest(checkpoint, "sha256").hexdigest() == manifest.source_sha256:
                return weights, manifest_path, manifest
    return weights, manifest_path, prepare_weights(model, weights, manifest_path, log=log.info)
