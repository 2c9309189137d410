"""How large a chunk is when nobody says so."""

from __future__ import annotations

from collections.abc import Collection

MEAN_RESIDUES = 20_000_000
"""About ten minutes of the 3B model on a data-centre GPU; loading the model costs a job some seconds."""

PER_RESIDUE_BYTES = 2_000_000_000
"""A chunk file with every residue's vector is held in memory by the job that writes it."""


def default_chunk_residues(embed_dim: int, layers: int, pooling: Collection[str]) -> int:
    """Residues in a chunk for a model of width ``embed_dim`` of which so many layers are kept."""
    if "per_residue" not in pooling:
        return MEAN_RESIDUES
    return max(1, min(MEAN_RESIDUES, PER_RESIDUE_BYTES // (4 * embed_dim * layers)))
