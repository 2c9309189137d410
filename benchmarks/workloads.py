"""What the benchmarks run: proteins of three kinds of lengths, and the operations that they cost."""

from __future__ import annotations

import numpy as np

from virnucpro.models.esm2.sizes import ESM2_MODELS, Architecture

SIZES = {name.split("_")[2]: architecture for name, architecture in ESM2_MODELS.items()}

KINDS = {
    "orf": "166 residues each, as the frames of 500 bp windows",
    "swiss": "log-normal about 295, 20 to 1022, as Swiss-Prot",
    "long": "1022 residues each",
}


def lengths_of(kind: str, count: int) -> np.ndarray:
    """Residues of ``count`` proteins: of a kind above, or a number for that length each."""
    if kind == "swiss":
        drawn = np.exp(np.random.default_rng(0).normal(np.log(295), 0.75, count))
        return np.clip(drawn.round().astype(np.int64), 20, 1022)
    return np.full(count, {"orf": 166, "long": 1022}.get(kind) or int(kind), dtype=np.int64)


def proteins_of(lengths: np.ndarray) -> list[np.ndarray]:
    """Token ids of random residues (the twenty amino acids), uint8, without BOS and EOS."""
    generator = np.random.default_rng(1)
    return [generator.integers(4, 24, length, dtype=np.uint8) for length in lengths]


def useful_operations(architecture: Architecture, lengths: np.ndarray) -> float:
    """Floating-point operations on real tokens: ``24 d^2 + 4 L d`` a token and layer, L with BOS and EOS."""
    tokens = np.asarray(lengths, dtype=np.float64) + 2
    dim = architecture.embed_dim
    return float(architecture.layers * (24 * dim**2 * tokens + 4 * tokens**2 * dim).sum())


def count_for(kind: str, architecture: Architecture, operations: float) -> int:
    """How many proteins of a kind make about this many operations."""
    sample = lengths_of(kind, 200)
    return max(4, int(operations / useful_operations(architecture, sample) * len(sample)))
