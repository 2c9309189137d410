"""How large a chunk is when nobody says so. Needs no numpy: dry runs plan with it where only Snakemake is installed."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

SPECIAL_TOKENS = 2
"""BOS and EOS."""

MEAN_RESIDUES = 20_000_000
"""About ten minutes of the 3B model on a data-centre GPU; loading the model costs a job some seconds."""

PER_RESIDUE_BYTES = 2_000_000_000
"""A chunk file with every residue's vector is held in memory by the job that writes it."""


AUTO_MULTIPLE = 8
"""Chunks of automatic size come in multiples of this, so that 2, 4 or 8 equal GPUs end together."""


class ChunkSize(NamedTuple):
    """Residues that a chunk holds, about, and what the number of chunks is to be a multiple of."""

    residues: int
    multiple_of: int


def chunk_size(wanted: int | str, *, embed_dim: int, layers: int, pooling: Collection[str]) -> ChunkSize:
    """The size of chunks for a model of width ``embed_dim`` of which so many layers are kept.

    Args:
        wanted: residues, or "auto".
    """
    if wanted != "auto":
        return ChunkSize(int(wanted), 1)
    residues = MEAN_RESIDUES
    if "per_residue" in pooling:
        residues = max(1, min(MEAN_RESIDUES, PER_RESIDUE_BYTES // (4 * embed_dim * layers)))
    return ChunkSize(residues, AUTO_MULTIPLE)


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
