"""Where the files of a sample are, and the chunks that samples share. Needs the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.chunking.manifest import SPLIT_RECORD
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
