"""Chunk files of synthetic embeddings, each drawn from the residues, so that a test can tell whose it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.digest import residue_digest
from virnucpro.sequences.fasta import read_fasta
from virnucpro.storage.chunk_writer import write_chunk_file

EXPECTED = {
    "model": "esm2_stub",
    "weights_sha256": "5" * 64,
    "layers": "[6]",
    "pooling": '["mean"]',
    "precision": "auto",
    "long_proteins": '{"policy": "window", "longest": 1022, "overlap": 511}',
}


def stub_vectors(sequence: bytes, rows: int, embed_dim: int, layer: int) -> NDArray[np.float32]:
    """float32 (rows, D) that depend on the residues and the layer alone."""
    seed = int.from_bytes(residue_digest(sequence)[:8], "little") ^ layer
    return np.random.default_rng(seed).standard_normal((rows, embed_dim), dtype=np.float32)


def stub_statistics(proteins: int, residues: int) -> dict[str, float]:
    """What a job says of itself."""
    tokens = residues + 2 * proteins
    return {
        "proteins": proteins,
        "residues": residues,
        "tokens": tokens,
        "seconds": 1.5,
        "load_seconds": 0.5,
        "padding_avoided": 0.25,
        "peak_memory_bytes": 1 << 30,
        "out_of_memory_retries": 0,
        "recomputed": 0,
    }


def write_stub_chunk(
    fasta: Path,
    output: Path,
    *,
    embed_dim: int = 8,
    layers: Sequence[int] = (6,),
    pooling: Iterable[str] = ("mean",),
    longest: int = 1022,
    policy: str = "window",
    **metadata: str,
) -> None:
    """What the embed job would write for a chunk's FASTA."""
    sequences = [record.sequence for record in read_fasta(fasta)]
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    embedded = np.minimum(lengths, longest) if policy == "truncate" else lengths
    windows = np.where(lengths > longest, 2, 1) if policy == "window" else np.ones(len(lengths))
    tensors: dict[str, NDArray[np.generic]] = {
        "digests": np.frombuffer(b"".join(map(residue_digest, sequences)), np.uint8).reshape(-1, 16),
        "lengths": lengths,
        "windows": windows.astype(np.int32),
        "embedded": embedded.astype(np.int32),
        "precision": np.arange(len(lengths), dtype=np.uint8) % 2,
    }
    for layer in layers:
        if "mean" in pooling:
            tensors[f"mean.{layer}"] = np.concatenate([stub_vectors(s, 1, embed_dim, layer) for s in sequences])
        if "per_residue" in pooling:
            parts = [stub_vectors(s, n, embed_dim, layer) for s, n in zip(sequences, embedded.tolist(), strict=True)]
            order = np.argsort(-embedded, kind="stable")  # as a job computes them
            tensors[f"residues.{layer}"] = np.concatenate([parts[row] for row in order])
            tensors["starts"] = np.empty(len(order), np.int64)
            tensors["starts"][order] = np.cumsum(embedded[order]) - embedded[order]
    manifest = json.loads(fasta.with_suffix(".json").read_text())
    entries = {
        **EXPECTED,
        "layers": json.dumps(list(layers)),
        "pooling": json.dumps(list(pooling)),
        "precisions": '["float16", "float32"]',
        "attention": "standard_attention",
        "attention_kernel": "sdpa",
        "layers_run": "eager",
        "device": "cpu",
        "embed_dim": str(embed_dim),
        "model_layers": "6",
        "source_sha256": "6" * 64,
        "demo": "false",
        "chunk": fasta.stem,
        "chunk_digest": manifest["digest"],
        "versions": '{"virnucpro": "0", "torch": "2.13.0"}',
        "statistics": json.dumps(stub_statistics(len(sequences), int(embedded.sum()))),
    }
    write_chunk_file(output, tensors, {**entries, **metadata})
