"""Where the numbers of a table come from: said in every table, and in the report beside it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virnucpro.base.records import from_entries
from virnucpro.base.settings import SETTINGS
from virnucpro.chunking.manifest import SplitRecord
from virnucpro.models.esm2.sizes import DEMO_WARNING
from virnucpro.storage.chunk_file import PROVENANCE, ChunkFile, decoded
from virnucpro.storage.report_record import REPORT, ChunkRun, Provenance
from virnucpro.storage.tables.rows import Layout


def table_layout(chunks: Sequence[ChunkFile], expected: Mapping[str, str], dtype: str, records_per_file: int) -> Layout:
    """What the tables of these chunk files (verified: all alike) will hold; without any, what was expected of them."""
    if not chunks:
        layers, pooling = tuple(json.loads(expected["layers"])), json.loads(expected["pooling"])
        means_of, residues_of = (layers if kind in pooling else () for kind in SETTINGS["pooling"].words)
        return Layout(json.loads(expected["embed_dim"]), means_of, residues_of, dtype, records_per_file)
    means: list[int] = []
    residues: list[int] = []
    embed_dim = 0
    for name in chunks[0].names:
        kind, _, layer = name.partition(".")
        if kind in ("mean", "residues"):
            (means if kind == "mean" else residues).append(int(layer))
            embed_dim = chunks[0].layout[name][1][1]
    return Layout(embed_dim, tuple(sorted(means)), tuple(sorted(residues)), dtype, records_per_file)


def provenance(
    chunks: Sequence[ChunkFile], expected: Mapping[str, str], split: SplitRecord, layout: Layout, command: str | None
) -> Provenance:
    """Model, weights, settings, versions and command, and by how many proteins each device and kernel was used.

    Without chunks (a sample without proteins) the first three are what was expected of them.
    """
    metadata = chunks[0].metadata if chunks else expected
    entries: dict[str, Any] = {key: decoded(metadata.get(key)) for key in PROVENANCE}
    entries |= {"embed_dim": layout.embed_dim, "dtype": layout.dtype, "counts": split.counts}
    for key in ("attention", "attention_kernel", "device"):
        entries[key] = _proteins_by(chunks, key)
    entries["precisions"] = _precisions(chunks)
    entries["versions"] = _distinct([decoded(chunk.metadata.get("versions")) for chunk in chunks])
    entries["command"] = command if command is not None else " ".join(sys.argv)
    entries["warning"] = DEMO_WARNING if metadata.get("demo") == "true" else ""
    return from_entries(entries, Provenance, chunks[0].path if chunks else Path(REPORT))


def chunk_runs(chunks: Sequence[ChunkFile]) -> tuple[ChunkRun, ...]:
    """For each chunk where and how it was computed, and its job's statistics.

    Raises:
        UserError: a chunk file whose metadata lack one of these, or hold something else.
    """
    keys = ("chunk", "device", "attention", "attention_kernel", "precisions", "statistics")
    return tuple(
        from_entries({key: decoded(chunk.metadata.get(key)) for key in keys}, ChunkRun, chunk.path) for chunk in chunks
    )


def _proteins_by(chunks: Sequence[ChunkFile], key: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for chunk in chunks:
        counts[chunk.metadata.get(key, "unknown")] += chunk.proteins
    return dict(counts)


def _precisions(chunks: Sequence[ChunkFile]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for chunk in chunks:
        names = precision_names(chunk)
        for number, proteins in Counter(chunk.read("precision").tolist()).items():
            counts[names[number] if number < len(names) else "unknown"] += proteins
    return dict(counts)


def precision_names(chunk: ChunkFile) -> list[str]:
    """What the numbers of the ``precision`` tensor mean in this file."""
    return [str(name) for name in decoded(chunk.metadata.get("precisions")) or []]


def _distinct(values: list[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]
