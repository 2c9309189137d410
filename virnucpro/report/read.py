"""The samples of a run, as their merges reported them (``embeddings.json``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from virnucpro.base.records import read_record
from virnucpro.calling.state import CallsRecord
from virnucpro.storage.report_record import ChunkRun, Provenance, SampleReport
from virnucpro.storage.tables import TABLES


@dataclass(frozen=True)
class Sample:
    """What became of one sample.

    ``folder`` holds its files, and ``tables`` says where the table of each format is. ``counts`` are the split's and
    the merge's, of records (rows of the table) unless they say ``unique``.
    """

    name: str
    folder: Path
    provenance: Provenance
    counts: dict[str, int]
    tables: dict[str, Path]
    chunks: tuple[ChunkRun, ...]
    calls: CallsRecord | None = None
    calls_folder: Path | None = None


def read_sample(path: Path, calls: Path | None = None) -> Sample:
    """Read one sample's ``embeddings.json``, and the record of its calls; the sample is named after its folder.

    Raises:
        UserError: missing, damaged, or of another version.
    """
    report = read_record(path, SampleReport)
    merged = {name: count for name, count in asdict(report.merged).items() if name != "embed_dim"}
    recomputed = sum(chunk.statistics.recomputed for chunk in report.chunks)
    return Sample(
        name=path.parent.name,
        folder=path.parent,
        provenance=report.provenance,
        counts={**report.provenance.counts, **merged, "recomputed": recomputed},
        tables={name: path.parent / TABLES[name].name for name in report.tables if name in TABLES},
        chunks=report.chunks,
        calls=read_record(calls, CallsRecord) if calls is not None else None,
        calls_folder=calls.parent if calls is not None else None,
    )


def read_samples(reports: Sequence[Path], calls: Sequence[Path] = ()) -> list[Sample]:
    """Read the samples of a run, each with the record of its calls where there is one.

    Raises:
        UserError: see :func:`read_sample`.
    """
    called = {path.parents[1].name: path for path in calls}
    return [read_sample(path, called.get(path.parent.name)) for path in reports]
