"""Where the files of a sample are, and those of the chunks that samples share; and what is wanted of both.

Needs the standard library alone, as :mod:`virnucpro.storage.state` does, which compares it with what is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from virnucpro.base.settings import EmbeddingSettings, InputPolicies, TableSettings
from virnucpro.chunking.manifest import SPLIT_RECORD, SplitSettings
from virnucpro.chunking.size import ChunkSize
from virnucpro.storage.report_record import REPORT


@dataclass(frozen=True)
class SampleFiles:
    """A sample's files, in the ``folder`` where its results are."""

    folder: Path

    @property
    def translation(self) -> Path:
        """The record of the translated contigs."""
        return self.folder / "translated.json"

    @property
    def translated(self) -> Path:
        """The proteins of contigs."""
        return self.folder / "translated.faa"

    @property
    def report(self) -> Path:
        """The record of the tables."""
        return self.folder / REPORT

    @property
    def index(self) -> Path:
        return self.folder / "proteins.parquet"

    @property
    def skipped(self) -> Path:
        """The table of skipped records."""
        return self.folder / "skipped.tsv"

    @property
    def plots(self) -> Path:
        """The record of the plots."""
        return self.folder / "plots" / "plots.json"

    @property
    def neighbours_record(self) -> Path:
        """The record of the table of nearest neighbours."""
        return self.folder / "neighbours.json"


@dataclass(frozen=True)
class PoolFiles:
    """The chunks that samples share, in a ``folder``: that of the results, or of the one sample."""

    folder: Path

    @property
    def chunks(self) -> Path:
        """What is to be embedded, and the record of the split."""
        return self.folder / "chunks"

    @property
    def split(self) -> Path:
        """The record of the split."""
        return self.chunks / SPLIT_RECORD

    @property
    def tensors(self) -> Path:
        """The chunk files."""
        return self.folder / "tensors"

    def chunk_file(self, chunk: str) -> Path:
        return self.tensors / f"{chunk}.safetensors"


@dataclass(frozen=True)
class SampleRequest(SampleFiles):
    """What is wanted of one sample.

    Attributes:
        inputs: its FASTA files, in order; contigs when there is a ``window``.
        window: bases of a window that contigs are cut into; None for proteins.
        policies: what is done about records of contigs that can't simply be translated.
        metadata: the table that maps are coloured by.
        neighbours: how many of each protein are listed.
    """

    inputs: tuple[Path, ...]
    window: int | None
    tables: TableSettings
    policies: InputPolicies = InputPolicies()
    metadata: Path | None = None
    neighbours: int = 0


REUSE_INDEX = ".reuse"
"""In the folder of results: the index of earlier results."""


def sources_text(sources: Iterable[Path], devices: str) -> str:
    """What a split's record says of the earlier results that it has looked at; empty without any.

    Args:
        devices: the setting ``reuse_devices``.
    """
    paths = [str(path) for path in sources]
    return json.dumps([*paths, devices]) if paths else ""


def sources_in(text: str) -> list[str]:
    """The paths in what :func:`sources_text` gave."""
    return [str(path) for path in json.loads(text)[:-1]] if text else []


@dataclass(frozen=True)
class PoolRequest(PoolFiles):
    """How the sequences of all samples are wanted.

    Attributes:
        also: splits that will do as well as ``split``.
        sources: what :func:`sources_text` says of the earlier results that are to be used.
    """

    split_settings: SplitSettings
    embedding: EmbeddingSettings
    also: tuple[SplitSettings, ...] = ()
    sources: str = ""

    @classmethod
    def of(
        cls,
        folder: Path,
        embed_dim: int,
        sizes: Mapping[str, ChunkSize],
        device: str,
        embedding: EmbeddingSettings,
        policies: InputPolicies,
        sources: str = "",
    ) -> PoolRequest:
        """Chunks for one kind of device; those for others serve as well: what is done there is not lost here.

        Args:
            embed_dim: the model's width.
            sizes: of chunks, by the kind of device.
        """
        split = SplitSettings(*sizes[device], embed_dim, embedding.long_proteins, policies)
        also = tuple(replace(split, chunk_residues=size.residues) for size in sizes.values())
        return cls(folder, split, embedding, also, sources)
