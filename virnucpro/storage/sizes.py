"""How many bytes chunk files and tables take, before they are written: never more than they will, and little less.

Needs the standard library alone: the process that plans a run asks too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from virnucpro.base.settings import VECTORS, EmbeddingSettings, TableSettings
from virnucpro.storage.chunk_layout import chunk_shapes
from virnucpro.storage.tables import TABLES, WITHOUT_VECTORS


@dataclass(frozen=True)
class Kept:
    """What a run keeps of each sequence: of so many ``layers`` of a model whose vectors have ``embed_dim`` numbers."""

    embed_dim: int
    layers: int
    embedding: EmbeddingSettings
    tables: TableSettings = field(default_factory=TableSettings)

    @property
    def is_exact(self) -> bool:
        """Whether as many residues are kept as are counted, and not some of each protein."""
        return self.embedding.long_proteins.policy != "truncate" or "per_residue" not in self.embedding.pooling

    def chunk_bytes(self, proteins: int, residues: int) -> int:
        """Of a chunk file of so many proteins with so many residues in all."""
        shapes = chunk_shapes(
            proteins,
            self._embedded(proteins, residues),
            embed_dim=self.embed_dim,
            layers=range(self.layers),
            pooling=self.embedding.pooling,
            residue_dtype=self.embedding.residue_dtype,
        )
        return sum(shape.nbytes for shape in shapes.values())

    def table_bytes(self, records: int, residues: int) -> int:
        """Of a sample's tables."""
        sizes = table_bytes(
            self.tables.formats,
            records,
            self._embedded(records, residues),
            embed_dim=self.embed_dim,
            layers=self.layers,
            pooling=self.embedding.pooling,
            dtype=self.tables.dtype,
        )
        return sum(sizes.values())

    def _embedded(self, proteins: int, residues: int) -> int:
        long_proteins = self.embedding.long_proteins
        return min(residues, proteins * long_proteins.longest) if long_proteins.policy == "truncate" else residues


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
    """Bytes of a sample's table in each of these formats.

    Args:
        residues: of all records that are embedded; they count where each one's vector is kept.
        embed_dim: the model's width.
        layers: how many are kept.
        pooling: what is kept of each.
        dtype: of the vectors, ``float32`` or ``float16``.
    """
    vectors = records * len({*VECTORS} & {*pooling}) + residues * ("per_residue" in pooling)
    value = int(dtype.removeprefix("float")) // 8
    numbers = dict.fromkeys(formats, value * vectors * layers) | {
        name: 4 * records for name in formats if name == "virnucpro_pt"
    }
    numbers |= {name: 0 for name in formats if name in WITHOUT_VECTORS}
    return {name: TABLES[name].per_record * records + number * embed_dim for name, number in numbers.items()}
