"""How many bytes chunk files and tables take, before they are written: never more than they will, and little less.

Needs the standard library alone: the process that plans a run asks too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from virnucpro.base.settings import VECTORS
from virnucpro.storage.tables import TABLES, WITHOUT_VECTORS

PER_PROTEIN = 16 + 4 + 4 + 4 + 1
"""Bytes of a chunk file's other tensors: digests, lengths, windows, embedded, precision."""


def chunk_file_bytes(
    proteins: int,
    residues: int,
    *,
    embed_dim: int,
    layers: int,
    pooling: Collection[str],
    residue_dtype: str = "float32",
) -> int:
    """Bytes of a chunk file.

    Args:
        proteins: in the chunk.
        residues: of them all that are embedded; they count where each one's vector is kept.
        embed_dim: the model's width.
        layers: how many are kept.
        pooling: what is kept of each.
        residue_dtype: of residues' vectors, ``float32`` or ``float16``.
    """
    numbers = 4 * proteins * _vectors(pooling)
    numbers += bytes_of(residue_dtype) * residues * ("per_residue" in pooling)
    return PER_PROTEIN * proteins + numbers * layers * embed_dim


def _vectors(pooling: Collection[str]) -> int:
    """How many vectors a protein are kept."""
    return len({*VECTORS} & {*pooling})


def bytes_of(dtype: str) -> int:
    """Bytes of one number of ``float32`` or ``float16``."""
    return int(dtype.removeprefix("float")) // 8


def table_bytes(
    formats: Iterable[str],
    records: int,
    residues: int,
    *,
    embed_dim: int,
    layers: int,
    pooling: Collection[str],
    dtype: str,
) -> dict[str, int]:
    """Bytes of a sample's table in each of these formats; arguments as for :func:`chunk_file_bytes`, of its records."""
    vectors = records * _vectors(pooling) + residues * ("per_residue" in pooling)
    value = bytes_of(dtype)
    numbers = dict.fromkeys(formats, value * vectors * layers) | {
        name: 4 * records for name in formats if name == "virnucpro_pt"
    }
    numbers |= {name: 0 for name in formats if name in WITHOUT_VECTORS}
    return {name: TABLES[name].per_record * records + number * embed_dim for name, number in numbers.items()}
