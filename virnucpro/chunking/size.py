"""How large a chunk is when nobody says so. Needs no numpy: dry runs plan with it where only Snakemake is installed."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

SPECIAL_TOKENS = 2
"""BOS and EOS."""

MINUTES = 10
"""What a chunk of automatic size takes, about: it is lost when its job is stopped, and loading the model costs a job
seconds."""

OPERATIONS_PER_SECOND = {"gpu": 190e12, "cpu": 4 * 50e9}
"""What embedding keeps up on a data-centre GPU in half precision (an A100 has 312e12), and on four cores in float32."""


class Letters(NamedTuple):
    """Letters that make one token, about, and the most that a chunk of automatic size has."""

    a_token: int
    most: int


RESIDUES = Letters(1, 40_000_000)
"""The job holds its chunk in main memory: some 100 bytes a token. So small models get less than ten minutes."""

BASES = Letters(4, 200_000_000)
"""DNABERT-S has 4.7 bases a token where they are drawn by chance; letters but A, C, G and T have a token each."""

PER_RESIDUE_BYTES = 50_000_000_000
"""Of a chunk file with every residue's vector: large enough that the start of a job does not matter (half a minute of
650M on an H100), and small enough for most disks. It streams to the disk, so memory does not matter."""

AUTO_MULTIPLE = 8
"""Chunks of automatic size come in multiples of this, so that 2, 4 or 8 equal GPUs end together."""


class ChunkSize(NamedTuple):
    """Residues that a chunk holds, about, and what the number of chunks is to be a multiple of."""

    residues: int
    multiple_of: int


def chunk_sizes(
    wanted: int | str,
    *,
    parameters: int,
    embed_dim: int,
    layers: int,
    pooling: Collection[str],
    letters: Letters = RESIDUES,
) -> dict[str, ChunkSize]:
    """The size of chunks for jobs on a GPU and on a CPU, by "gpu" and "cpu".

    Args:
        wanted: residues, or "auto": about :data:`MINUTES`, at two operations a parameter and residue.
        parameters: of the model.
        embed_dim: its width.
        layers: of how many the representation is kept.
        pooling: what is kept; each residue's vector makes chunks smaller.
        letters: what the sequences are made of.

    >>> auto = chunk_sizes("auto", parameters=2_832_442_880, embed_dim=2560, layers=1, pooling=["mean"])
    >>> auto["gpu"].residues, auto["cpu"].residues
    (20000000, 21000)
    """
    if wanted != "auto":
        return dict.fromkeys(OPERATIONS_PER_SECOND, ChunkSize(int(wanted), 1))
    most = letters.most
    if "per_residue" in pooling:
        most = max(1, min(most, PER_RESIDUE_BYTES // (4 * embed_dim * layers)))
    sizes = {}
    for device, rate in OPERATIONS_PER_SECOND.items():
        residues = 60 * MINUTES * rate / (2 * parameters) * letters.a_token
        sizes[device] = ChunkSize(min(most, int(float(f"{residues:.1e}"))), AUTO_MULTIPLE)
    return sizes


def chunk_count(residues: int, proteins: int, chunk_residues: int, multiple_of: int = 1) -> int:
    """How many chunks hold so many residues at ``chunk_residues`` each.

    With ``multiple_of`` over 1 (the GPUs that share the work) the number is rounded up to a multiple of it,
    so that no GPU works on a last chunk while the others wait; not where chunks would fall below a tenth of
    ``chunk_residues``, because each job also loads the model.

    >>> chunk_count(45_000_000, 150_000, 20_000_000), chunk_count(45_000_000, 150_000, 20_000_000, multiple_of=8)
    (3, 8)
    """
    count = max(1, -(-residues // chunk_residues))
    rounded = -(-count // multiple_of) * multiple_of
    if residues * 10 >= rounded * chunk_residues:
        count = rounded
    return min(count, max(1, proteins))
