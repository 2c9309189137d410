"""The samples of a run, as their merges reported them (``embeddings.json``), and sums over their chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from virnucpro.base.records import read_record
from virnucpro.base.text import listed, utc
from virnucpro.calling.state import CallsRecord
from virnucpro.storage.chunk_metadata import RunStatistics
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


@dataclass(frozen=True)
class Times:
    """The first moment and the last one, as :func:`virnucpro.base.text.utc` writes them, and the seconds between.

    ``seconds`` counts moments in which at least one job loaded its model or embedded: neither jobs beside each other
    twice, nor the days between a run and the call that finished it.
    """

    began: str
    ended: str
    seconds: float


def times_of(chunks: Iterable[ChunkRun]) -> Times | None:
    """The times of some chunks; None where they are of a version that did not note them."""
    spans = []
    for chunk in chunks:
        if not chunk.ended:
            return None
        end = datetime.fromisoformat(chunk.ended).timestamp()
        spans.append((end - chunk.statistics.seconds - chunk.statistics.load_seconds, end))
    if not spans:
        return None
    seconds, until = 0.0, min(spans)[0]
    for begin, end in sorted(spans):
        seconds += max(0.0, end - max(begin, until))
        until = max(until, end)
    return Times(utc(min(spans)[0]), utc(until), seconds)


def work_of(chunks: Iterable[ChunkRun]) -> RunStatistics:
    """What the embed jobs of some chunks did together; the rate is the mean one of a job, whatever ran beside it."""
    return RunStatistics.sum([chunk.statistics for chunk in chunks])


def chunks_of(samples: Iterable[Sample]) -> list[ChunkRun]:
    """The chunks of some samples, in order; one that they share is there once."""
    return list({replace(chunk, proteins=0): chunk for sample in samples for chunk in sample.chunks}.values())


def work_for(sample: Sample) -> RunStatistics:
    """The sample's part of the work of its chunks, by its share of their proteins."""
    return work_of(replace(chunk, statistics=_part(chunk)) for chunk in sample.chunks)


def _part(chunk: ChunkRun) -> RunStatistics:
    whole = chunk.statistics
    share = chunk.proteins / max(1, whole.proteins)
    return replace(whole, tokens=round(whole.tokens * share), seconds=whole.seconds * share)


def count_of(samples: Iterable[Sample], name: str) -> int:
    """One of the counts over all samples; 0 where a sample does not have it."""
    return sum(sample.counts.get(name, 0) for sample in samples)


def chunks_by(samples: Iterable[Sample], key: Callable[[ChunkRun], str]) -> Counter[str]:
    """Chunks by something that they have, the most frequent first."""
    counted = Counter(map(key, chunks_of(samples)))
    return Counter(dict(counted.most_common()))


def precisions_of(samples: Iterable[Sample]) -> Counter[str]:
    """Unique proteins by the number format in which they were embedded, the most frequent first."""
    counted: Counter[str] = Counter()
    for sample in samples:
        counted.update(sample.provenance.precisions)
    return Counter(dict(counted.most_common()))


def attention_of(chunk: ChunkRun) -> str:
    """The kind of attention with the kernel that ran, as ``flash_attention_2 (varlen_attn)``."""
    return f"{chunk.attention} ({chunk.attention_kernel})"


def notes(samples: Sequence[Sample]) -> list[str]:
    """What a reader must know before using the numbers: a random model, jobs that were not run alike."""
    empty = [sample.name for sample in samples if not sample.chunks]
    found = [f"sample {name} has no protein: its tables have no rows" for name in empty]
    found += dict.fromkeys(sample.provenance.warning for sample in samples if sample.provenance.warning)
    found += dict.fromkeys(sample.calls.warning for sample in samples if sample.calls and sample.calls.warning)
    attentions = chunks_by(samples, lambda chunk: f"{chunk.attention} on {chunk.device}")
    if len({chunk.attention for chunk in chunks_of(samples)}) > 1:
        found.append(
            f"jobs used more than one kind of attention: {listed(attentions, 'chunk')}; "
            "their values agree to the rounding of the number format, not to the last digit"
        )
    elif len(devices := chunks_by(samples, lambda chunk: chunk.device)) > 1:
        found.append(f"jobs ran on more than one kind of device: {listed(devices, 'chunk')}")
    formats = Counter("+".join(chunk.precisions[:1]) for chunk in chunks_of(samples))
    if len(formats) > 1:
        found.append(f"jobs used more than one number format: {listed(formats, 'chunk')}")
    models = {(sample.provenance.model, sample.provenance.weights_sha256) for sample in samples}
    if len(models) > 1:
        found.append(f"samples were embedded with different weights: {', '.join(sorted({name for name, _ in models}))}")
    return found
