"""Read what the merge reported on each sample (``embeddings.json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.base.errors import UserError
from virnucpro.storage.tables import TABLES


@dataclass(frozen=True)
class ChunkRun:
    """How one chunk was embedded.

    ``seconds`` is the time of the forward passes, without loading the model; ``padding_avoided`` the share (0 to 1)
    of tokens that batches padded to their longest protein would have had in vain.
    """

    chunk: str
    attention: str
    kernel: str
    device: str
    precisions: tuple[str, ...]
    proteins: int
    residues: int
    tokens: int
    seconds: float
    padding_avoided: float
    peak_memory_bytes: int
    out_of_memory_retries: int
    recomputed: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class SampleReport:
    """What became of one sample.

    ``counts`` are the split's and the merge's, of records (rows of the table) unless they say ``unique``;
    ``precisions`` gives the unique proteins that were embedded in each number format, ``tables`` the formats
    written and where; ``folder`` holds the sample's files.
    """

    name: str
    folder: Path
    model: str
    weights_sha256: str
    warning: str
    layers: tuple[int, ...]
    pooling: tuple[str, ...]
    precision: str
    embed_dim: int
    long_policy: str
    longest: int
    counts: dict[str, int]
    precisions: dict[str, int]
    tables: dict[str, Path]
    chunks: tuple[ChunkRun, ...]


def read_report(path: Path) -> SampleReport:
    """Read one sample's ``embeddings.json``; the sample is named after its folder.

    Raises:
        UserError: missing, not JSON, or without an entry that every report has.
    """
    way_out = "delete it and run the same command again"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); run the same command again") from None
    except ValueError:
        raise UserError(f"{path} is not a report of a merge (not JSON); {way_out}") from None
    try:
        return _sample(report, path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a report of this program's version (at {error}); {way_out}") from None


def _sample(report: Mapping[str, Any], path: Path) -> SampleReport:
    origin, merged = report["provenance"], report["merged"]
    long_proteins = origin["long_proteins"]
    chunks = tuple(_chunk(chunk) for chunk in report["chunks"])
    counts = {name: int(count) for name, count in origin["counts"].items()}
    counts |= {name: int(merged[name]) for name in ("records", "unique", "windowed", "truncated")}
    counts["recomputed"] = sum(chunk.recomputed for chunk in chunks)
    return SampleReport(
        name=path.parent.name,
        folder=path.parent,
        model=str(origin["model"]),
        weights_sha256=str(origin["weights_sha256"]),
        warning=str(origin.get("warning", "")),
        layers=tuple(int(layer) for layer in origin["layers"]),
        pooling=tuple(origin["pooling"]),
        precision=str(origin["precision"]),
        embed_dim=int(origin["embed_dim"]),
        long_policy=str(long_proteins["policy"]),
        longest=int(long_proteins["longest"]),
        counts=counts,
        precisions={name: int(count) for name, count in origin["precisions"].items()},
        tables={name: path.parent / TABLES[name] for name in report["tables"]},
        chunks=chunks,
    )


def _chunk(chunk: Mapping[str, Any]) -> ChunkRun:
    statistics = chunk["statistics"]
    return ChunkRun(
        chunk=str(chunk["chunk"]),
        attention=str(chunk["attention"]),
        kernel=str(chunk["attention_kernel"]),
        device=str(chunk["device"]),
        precisions=tuple(chunk["precisions"]),
        proteins=int(statistics["proteins"]),
        residues=int(statistics["residues"]),
        tokens=int(statistics["tokens"]),
        seconds=float(statistics["seconds"]),
        padding_avoided=float(statistics["padding_avoided"]),
        peak_memory_bytes=int(statistics["peak_memory_bytes"]),
        out_of_memory_retries=int(statistics["out_of_memory_retries"]),
        recomputed=int(statistics["recomputed"]),
    )
