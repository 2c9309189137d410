"""The record that a merge leaves beside a sample's tables (``embeddings.json``); states, summaries and plots read it.

Needs the standard library alone: the process that plans a run reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from virnucpro.base.digest import FileProof
from virnucpro.base.settings import LongProteins
from virnucpro.storage.chunk_metadata import FIRST_NUMBERS, RunStatistics

REPORT = "embeddings.json"
"""The record's name in a sample's folder."""


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of a sample come from; every table holds it too, as :func:`virnucpro.base.records.record_text`.

    ``source`` names the checkpoint, and the adapter, that the weights were prepared from, with their sha256.
    ``counts`` are the split's, of records unless they say unique. ``attention``, ``attention_kernel``, ``device`` and
    ``precisions`` give how many different proteins ran with each; ``versions`` has an entry for each different set.
    ``warning`` is what must be known before the numbers are used, or empty.
    """

    FORMAT: ClassVar[str] = "virnucpro-embeddings-1"

    model: str
    weights_sha256: str
    source: str
    layers: tuple[int, ...]
    pooling: tuple[str, ...]
    precision: str
    long_proteins: LongProteins
    embed_dim: int
    dtype: str
    counts: dict[str, int]
    attention: dict[str, int]
    attention_kernel: dict[str, int]
    device: dict[str, int]
    precisions: dict[str, int]
    versions: tuple[dict[str, str], ...]
    command: str
    warning: str


@dataclass(frozen=True)
class MergeCounts:
    """What the tables hold: ``windowed`` and ``truncated`` count the records that were not run whole."""

    records: int
    unique: int
    windowed: int
    truncated: int
    embed_dim: int


@dataclass(frozen=True)
class ChunkRun:
    """Where, how and when one chunk was embedded; ``precisions`` are the number formats, the usual one first.

    ``digest`` stands for its sequences, ``statistics`` are of the whole chunk, of which ``proteins`` are the sample's
    (the others are other samples'). ``reused_from`` names the earlier results that it was taken from, if it was.
    ``host`` and ``ended`` are empty where the chunk file is of an earlier version (see ``DeviceRun``). ``numbers`` is
    that of the code that computed it (see ``ChunkSource``).
    """

    chunk: str
    device: str
    attention: str
    attention_kernel: str
    precisions: tuple[str, ...]
    statistics: RunStatistics
    proteins: int
    digest: str
    reused_from: str = ""
    host: str = ""
    ended: str = ""
    numbers: str = FIRST_NUMBERS


@dataclass(frozen=True)
class SampleReport:
    """All of it.

    ``made_from`` states the index, weights and settings that the tables are of (:mod:`virnucpro.storage.state`),
    ``tables`` the files of each format, by their paths from the report's folder. A sample without proteins has no
    chunks.
    """

    FORMAT: ClassVar[str] = "virnucpro-report-2"

    made_from: dict[str, str]
    provenance: Provenance
    merged: MergeCounts
    tables: dict[str, dict[str, FileProof]]
    chunks: tuple[ChunkRun, ...]
