"""How much memory and time an embed job asks for, by model, chunk and attempt.

Generous rather than tight: a job that ends early gives back what it did not use, and one that is killed has
wasted all of it. A second attempt asks for twice as much.
"""

from __future__ import annotations

import math

from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.chunking.size import RESIDUES, Letters
from virnucpro.models.reference import AnySizes

MEGABYTE = 1_000_000

PROCESS_MB = 4_000
"""Python, torch and its CUDA libraries in host memory, for each process (measured: 2 to 3 GB)."""

BYTES_PER_TOKEN = 100
"""A token on its way in: text, tokens and weights as int64 and float32, and copies of them."""

BATCHES_HELD = 6
"""Batches of which residues' vectors are in memory: on their way from the device, and being written."""

BATCH_TOKENS = {"gpu": 32_768, "cpu": 4_096}
"""Of a batch, at 1280 channels or more; smaller models have larger batches, and as many bytes."""

GPU_OPERATIONS_PER_SECOND = 40e12
"""What a GPU of the Ampere generation keeps up in 16-bit (A10, A30); older ones may need the second attempt."""

CPU_OPERATIONS_PER_SECOND = 20e9
"""What one core keeps up in float32."""

START_MINUTES = 15


def embed_memory_mb(
    architecture: AnySizes,
    chunk: ChunkManifest,
    *,
    layers: int = 1,
    vectors: int = 1,
    per_residue: bool = False,
    gpus: int = 1,
    attempt: int = 1,
    letters: Letters = RESIDUES,
) -> int:
    """Host memory in MB (10^6 bytes).

    Args:
        layers: how many layers are kept.
        vectors, per_residue: what is kept of each: so many vectors a protein, and whether one a residue.
        gpus: processes with a GPU each; 0 for a job on the CPU, which holds the weights in float32.
        attempt: 1 for the first.
        letters: what the chunk's sequences are made of.
    """
    processes = max(1, gpus)
    # Vectors are held by the devices' processes, joined, and being written.
    held = 3 * 4 * chunk.proteins * vectors * layers * architecture.embed_dim
    if per_residue:
        tokens = BATCH_TOKENS["gpu" if gpus else "cpu"]
        batch = _power_of_two(4 * tokens * max(1280, architecture.embed_dim))  # pinned memory comes in such sizes
        held += processes * layers * min(BATCHES_HELD * batch, 4 * chunk.residues * architecture.embed_dim)
    held += BYTES_PER_TOKEN * chunk.residues // letters.a_token
    if gpus == 0:
        held += 5 * architecture.parameters  # 4 bytes each, and activations
    return _round_up(attempt * (processes * PROCESS_MB + held / MEGABYTE), 1_000)


def embed_minutes(
    architecture: AnySizes,
    chunk: ChunkManifest,
    *,
    gpus: int = 1,
    threads: int = 1,
    attempt: int = 1,
    letters: Letters = RESIDUES,
) -> int:
    """Time limit in minutes: start, then two operations a parameter and token of the chunk's cost on a slow device."""
    rate = gpus * GPU_OPERATIONS_PER_SECOND if gpus else threads * CPU_OPERATIONS_PER_SECOND
    seconds = 2 * architecture.parameters * chunk.cost / letters.a_token / rate
    return _round_up(2 ** (attempt - 1) * (START_MINUTES + seconds / 60), 5)


def _power_of_two(value: int) -> int:
    """The least one that is no smaller."""
    return 1 << (value - 1).bit_length()


def _round_up(value: float, step: int) -> int:
    return math.ceil(value / step) * step
