"""What a split leaves for later steps: a record of the whole sample, and one of each chunk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from virnucpro.base.digest import FileProof
from virnucpro.base.records import read_record
from virnucpro.base.settings import InputPolicies, LongProteins

SPLIT_RECORD = "split.json"
"""Its name in the folder of chunks."""


def chunk_name(number: int) -> str:
    """``chunk_00000``, ``chunk_00001``, ... (more digits when five do not do)."""
    return f"chunk_{number:05d}"


@dataclass(frozen=True)
class ChunkManifest:
    """One chunk, in ``chunk_00000.json`` beside its FASTA.

    ``residues`` counts those of its proteins, ``cost`` is in tokens of a very short protein (see
    :mod:`virnucpro.chunking.cost`), ``digest`` stands for its sequences in row order.
    """

    FORMAT: ClassVar[str] = "virnucpro-chunk-manifest-1"

    chunk: str
    proteins: int
    residues: int
    cost: int
    digest: str


@dataclass(frozen=True)
class SplitSettings:
    """What decides which of a sample's records are taken and how they are cut."""

    chunk_residues: int
    multiple_of: int
    embed_dim: int
    long_proteins: LongProteins
    policies: InputPolicies = InputPolicies()


@dataclass(frozen=True)
class SplitRecord:
    """A sample's split, in ``chunks/split.json``.

    Attributes:
        inputs: the sha256 of each FASTA file, in the order in which they were read.
        settings: how it was cut.
        counts: records, unique (different sequences), residues, unique_residues, longest, replaced (residues that
            became X), replaced_records, chunks, skipped (records that came in and were not taken), gapped and unknown
            (records that hold gaps, or more than half X).
        index: proves the sample's index, which is beside the folder of chunks.
        chunks: the digest of each chunk, in order.
    """

    FORMAT: ClassVar[str] = "virnucpro-split-2"

    inputs: tuple[str, ...]
    settings: SplitSettings
    counts: dict[str, int]
    index: FileProof
    chunks: tuple[str, ...]


def read_split(chunks: Path) -> SplitRecord:
    """The record of a split, from its folder of chunks.

    Raises:
        RecordError: there is none, or it is damaged.
    """
    return read_record(chunks / SPLIT_RECORD, SplitRecord)
