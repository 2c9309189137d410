"""Where the numbers of a table come from: said in every table, and in the report beside it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.chunking.manifest import SampleSplit
from virnucpro.models.reference import DEMO_WARNINGS
from virnucpro.storage.chunk_file import ChunkFile
from virnucpro.storage.chunk_metadata import ChunkMetadata, EmbeddingIdentity, read_header_entries
from virnucpro.storage.report_record import REPORT, ChunkRun, Provenance
from virnucpro.storage.tables.rows import COLUMNS, COMPUTED, Layout

RANDOM = "the weights are random: the embeddings mean nothing biologically"


def table_layout(chunks: Sequence[ChunkFile], expected: Mapping[str, str], dtype: str, records_per_file: int) -> Layout:
    """What the tables of these chunk files (verified: all alike) will hold; without any, what was expected of them."""
    if not chunks:
        layers, pooling = tuple(json.loads(expected["layers"])), json.loads(expected["pooling"])
        embed_dim = json.loads(expected["embed_dim"])
        found = {"residues" if kind == "per_residue" else kind: layers for kind in pooling}
    else:
        embed_dim, found = 0, {}
        for name in chunks[0].names:
            kind, _, layer = name.partition(".")
            if kind in COLUMNS:
                found[kind] = tuple(sorted((*found.get(kind, ()), int(layer))))
                embed_dim = chunks[0].layout[name][1][1]
    mean, bos, maxima, residues = (found.get(kind, ()) for kind in COLUMNS)
    return Layout(embed_dim, mean, residues, dtype, records_per_file, bos=bos, maxima=maxima)


def provenance(
    chunks: Sequence[ChunkFile],
    rows_of: Sequence[NDArray[np.int32]],
    metadata: Sequence[ChunkMetadata],
    expected: Mapping[str, str],
    split: SampleSplit,
    layout: Layout,
    command: str | None,
) -> Provenance:
    """Model, weights, settings, versions and command, and by how many proteins each device and kernel was used.

    Args:
        rows_of: of each chunk the rows that are the sample's.
        metadata: of each chunk; without chunks (a sample without proteins) model and settings are the expected ones.
    """
    identity = metadata[0].identity if metadata else read_header_entries(expected, EmbeddingIdentity, Path(REPORT))
    runs = [one.run for one in metadata]
    proteins = [len(rows) for rows in rows_of]
    return Provenance(
        model=identity.model,
        weights_sha256=identity.weights_sha256,
        source=metadata[0].source.weights_source if metadata else "",
        layers=identity.layers,
        pooling=identity.pooling,
        precision=identity.precision,
        long_proteins=identity.long_proteins,
        embed_dim=layout.embed_dim,
        dtype=layout.dtype,
        counts=split.counts,
        attention=_sums(zip((run.attention for run in runs), proteins, strict=True)),
        attention_kernel=_sums(zip((run.attention_kernel for run in runs), proteins, strict=True)),
        device=_sums(zip((run.device for run in runs), proteins, strict=True)),
        precisions=_sums(
            (precision_name(run.precisions, code), count)
            for chunk, rows, run in zip(chunks, rows_of, runs, strict=True)
            for code, count in Counter(chunk.read("precision")[rows].tolist()).items()
        ),
        versions=_distinct([run.versions for run in runs]),
        command=command if command is not None else " ".join(sys.argv),
        warning=DEMO_WARNINGS.get(identity.model, RANDOM) if any(one.source.demo for one in metadata) else "",
    )


def chunk_run(metadata: ChunkMetadata, proteins: int) -> ChunkRun:
    """What the report says of a chunk's job; ``proteins`` of the chunk are the sample's."""
    run, source = metadata.run, metadata.source
    return ChunkRun(
        *(source.chunk, run.device, run.attention, run.attention_kernel, run.precisions, run.statistics),
        *(proteins, source.chunk_digest, source.reused_from, run.host, run.ended, source.numbers),
    )


def origin_name(metadata: ChunkMetadata) -> str:
    """Where rows of a chunk file come from, as tables say it: computed here, or taken from earlier results."""
    return f"reused: {metadata.source.reused_from}" if metadata.source.reused_from else COMPUTED


def precision_name(precisions: Sequence[str], code: int) -> str:
    """What a number of the ``precision`` tensor means in a file whose metadata give these ``precisions``."""
    return precisions[code] if code < len(precisions) else "unknown"


def _sums(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in counts:
        total[name] += count
    return dict(total)


def _distinct(values: Sequence[dict[str, str]]) -> tuple[dict[str, str], ...]:
    return tuple(value for number, value in enumerate(values) if value not in values[:number])
