"""Sums over chunks and samples, and what of a run was not the same everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from virnucpro.report.merged import ChunkRun, SampleReport


@dataclass(frozen=True)
class Work:
    """What the embed jobs of some chunks did together.

    ``seconds`` adds up the jobs' times, so ``tokens_per_second`` is the mean rate of one job, whatever ran beside it.
    """

    chunks: int
    tokens: int
    seconds: float
    padding_avoided: float
    peak_memory_bytes: int
    out_of_memory_retries: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def work_of(chunks: Iterable[ChunkRun]) -> Work:
    """Add up chunks; the share of padding avoided is that of all their tokens together."""
    runs = list(chunks)
    tokens = sum(run.tokens for run in runs)
    # A share s of padding means tokens / (1 - s) places in padded batches, and places add up where shares do not.
    padded = sum(run.tokens / (1 - run.padding_avoided) for run in runs if run.padding_avoided < 1)
    return Work(
        chunks=len(runs),
        tokens=tokens,
        seconds=sum(run.seconds for run in runs),
        padding_avoided=1 - tokens / padded if padded else 0.0,
        peak_memory_bytes=max((run.peak_memory_bytes for run in runs), default=0),
        out_of_memory_retries=sum(run.out_of_memory_retries for run in runs),
    )


def count_of(samples: Iterable[SampleReport], name: str) -> int:
    """One of the counts over all samples; 0 where a sample does not have it."""
    return sum(sample.counts.get(name, 0) for sample in samples)


def chunks_by(samples: Iterable[SampleReport], key: Callable[[ChunkRun], str]) -> Counter[str]:
    """Chunks by something that they have, the most frequent first."""
    counted = Counter(key(chunk) for sample in samples for chunk in sample.chunks)
    return Counter(dict(counted.most_common()))


def precisions_of(samples: Iterable[SampleReport]) -> Counter[str]:
    """Unique proteins by the number format in which they were embedded, the most frequent first."""
    counted: Counter[str] = Counter()
    for sample in samples:
        counted.update(sample.precisions)
    return Counter(dict(counted.most_common()))


def attention_of(chunk: ChunkRun) -> str:
    """The kind of attention with the kernel that ran, as ``flash_attention_2 (varlen_attn)``."""
    return f"{chunk.attention} ({chunk.kernel})"


def notes(samples: Sequence[SampleReport]) -> list[str]:
    """What a reader must know before using the numbers: a random model, jobs that were not run alike."""
    found: list[str] = []
    found += dict.fromkeys(sample.warning for sample in samples if sample.warning)
    attentions = chunks_by(samples, lambda chunk: f"{chunk.attention} on {chunk.device}")
    if len({chunk.attention for sample in samples for chunk in sample.chunks}) > 1:
        found.append(
            f"jobs used more than one kind of attention: {listed(attentions, 'chunk')}; "
            "their values agree to the rounding of the number format, not to the last digit"
        )
    elif len(devices := chunks_by(samples, lambda chunk: chunk.device)) > 1:
        found.append(f"jobs ran on more than one kind of device: {listed(devices, 'chunk')}")
    formats = Counter("+".join(chunk.precisions[:1]) for sample in samples for chunk in sample.chunks)
    if len(formats) > 1:
        found.append(f"jobs used more than one number format: {listed(formats, 'chunk')}")
    models = {(sample.model, sample.weights_sha256) for sample in samples}
    if len(models) > 1:
        found.append(f"samples were embedded with different weights: {', '.join(sorted({name for name, _ in models}))}")
    return found


def listed(counts: Counter[str], of: str) -> str:
    """``flash_attention_2 (3 chunks), standard_attention (1 chunk)``."""
    return ", ".join(f"{name} ({number(count, of)})" for name, count in counts.items())


def number(count: int, of: str) -> str:
    """``1 chunk``, ``1,234 chunks``."""
    return f"{count:,} {of}" + ("" if count == 1 else "s")
