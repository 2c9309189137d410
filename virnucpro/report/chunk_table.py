"""The table of a run's chunks: where each ran, with what, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from virnucpro.report.read import Sample
from virnucpro.storage.report_record import ChunkRun

GIB = 1 << 30

CHUNK_COLUMNS = (
    "sample",
    "chunk",
    "host",
    "ended",
    "device",
    "attention",
    "attention_kernel",
    "precision",
    "proteins",
    "residues",
    "tokens",
    "seconds",
    "tokens_per_second",
    "padding_avoided_percent",
    "peak_memory_gib",
    "out_of_memory_retries",
    "recomputed_proteins",
)
"""Of the table of chunks, which may have no row."""


def chunk_rows(samples: Sequence[Sample]) -> list[dict[str, str]]:
    """The rows of the table of chunks."""
    users: dict[ChunkRun, list[str]] = {}
    for sample in samples:
        for chunk in sample.chunks:
            users.setdefault(replace(chunk, proteins=0), []).append(sample.name)
    return [
        chunk_row(names[0] if len(names) == 1 else f"({len(names)} samples)", chunk) for chunk, names in users.items()
    ]


def chunk_row(sample: str, chunk: ChunkRun) -> dict[str, str]:
    """One row of the table of chunks; ``sample`` says whose sequences it has."""
    return {
        "sample": sample,
        "chunk": chunk.chunk,
        "host": chunk.host,
        "ended": chunk.ended,
        "device": chunk.device,
        "attention": chunk.attention,
        "attention_kernel": chunk.attention_kernel,
        "precision": ", ".join(chunk.precisions),
        "proteins": str(chunk.statistics.proteins),
        "residues": str(chunk.statistics.residues),
        "tokens": str(chunk.statistics.tokens),
        "seconds": f"{chunk.statistics.seconds:.3f}",
        "tokens_per_second": f"{chunk.statistics.tokens_per_second:.1f}",
        "padding_avoided_percent": f"{100 * chunk.statistics.padding_avoided:.2f}",
        "peak_memory_gib": f"{chunk.statistics.peak_memory_bytes / GIB:.3f}",
        "out_of_memory_retries": str(chunk.statistics.out_of_memory_retries),
        "recomputed_proteins": str(chunk.statistics.recomputed),
    }
