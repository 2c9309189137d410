"""What a split leaves for later steps: a record of its samples and chunks, and one of each chunk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from virnucpro.base.digest import FileProof
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record
from virnucpro.base.settings import InputPolicies, LongProteins

SPLIT_RECORD = "split.json"
"""Its name in the folder of chunks."""

ONE_SAMPLE = "sample"
"""What the record calls the sample of a split of one."""

CHUNK_FILES = "chunk_*.safetensors"
"""The pattern of chunk files' names; :func:`chunk_name` gives what stands before the ending."""


def chunk_name(number: int) -> str:
    """``chunk_00000``, ``chunk_00001``, ... (more digits when five do not do)."""
    return f"chunk_{number:05d}"


def chunk_number(name: str) -> int:
    """The number in a chunk's name."""
    return int(name.removeprefix("chunk_"))


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
class SampleSplit:
    """One sample of a split.

    Attributes:
        inputs: the sha256 of each FASTA file, in the order in which they were read.
        counts: as :class:`virnucpro.chunking.split.SplitCounts` has them.
        index: proves the sample's index.
        chunks: the numbers of the chunks that hold its sequences, rising.
    """

    inputs: tuple[str, ...]
    counts: dict[str, int]
    index: FileProof
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class SplitChunk:
    """One chunk of a split.

    Attributes:
        digest: stands for its sequences in row order.
        proteins: how many there are.
        is_kept: it was embedded before this split, whose samples need some of its sequences or all: its FASTA is not
            there. Else its FASTA and manifest are in the folder of chunks.
    """

    digest: str
    proteins: int
    is_kept: bool = False


@dataclass(frozen=True)
class SplitRecord:
    """A split of one sample or of several, in ``chunks/split.json``.

    Attributes:
        settings: how it was cut.
        samples: what it was made of, by name.
        chunks: by name.
        counts: of all samples together: unique and unique_residues (different sequences), kept and kept_residues (those
            of them that are in chunks that were there before), reused and reused_residues (in earlier results).
    """

    FORMAT: ClassVar[str] = "virnucpro-split-3"

    settings: SplitSettings
    samples: dict[str, SampleSplit]
    chunks: dict[str, SplitChunk]
    counts: dict[str, int]
    sources: str = ""

    def of_index(self, index: Path) -> SampleSplit:
        """The sample of an index file.

        Raises:
            UserError: the file is not what the split wrote.
        """
        try:
            proof = FileProof.of(index)
        except OSError as error:
            raise UserError(f"{index} cannot be read ({error.strerror}): run the split first") from None
        for sample in self.samples.values():
            if sample.index == proof:
                return sample
        raise UserError(f"{index} is not what the split wrote, so it was damaged: run the same command again")

    def to_embed(self, sample: SampleSplit | None = None) -> list[str]:
        """The names of chunks that have a FASTA, of one sample or of all, in order."""
        names = self.chunks if sample is None else map(chunk_name, sample.chunks)
        return [name for name in names if not self.chunks[name].is_kept]


def read_split(chunks: Path) -> SplitRecord:
    """The record of a split, from its folder of chunks.

    Raises:
        RecordError: there is none, or it is damaged.
    """
    return read_record(chunks / SPLIT_RECORD, SplitRecord)
