"""Which files of a run are what the present inputs and settings give: decided by content, never by a date or a name.

Every step leaves a record of what it read and of what it made (:mod:`virnucpro.base.digest`,
:mod:`virnucpro.chunking.manifest`); chunk files are their own record. Here each is compared with the sha256 of the
present inputs and with the present settings. The workflow asks this before it plans jobs, ``virnucpro.embed`` before
each step. Needs the standard library alone: the process that plans a cluster's jobs may have no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from virnucpro.base.digest import FileDigests, Products, file_sha256, file_stamp, read_products, why_not, why_stale
from virnucpro.base.errors import UserError
from virnucpro.base.records import RecordError, read_record
from virnucpro.base.safetensors_header import HeaderError, read_header
from virnucpro.base.settings import EmbeddingSettings, InputPolicies, TableSettings
from virnucpro.base.text import brief
from virnucpro.chunking.manifest import SPLIT_RECORD, ChunkManifest, SplitRecord, chunk_name, read_split
from virnucpro.storage.chunk_metadata import DeviceRun, read_header_entries, settings_identity, why_of_others
from virnucpro.storage.report_record import REPORT, SampleReport
from virnucpro.storage.sample_files import PoolRequest, SampleRequest, sources_in
from virnucpro.storage.tables import TABLES
from virnucpro.weights.manifest import WeightsManifest, WeightsRequest, read_manifest

R = TypeVar("R")

DIGESTS = ".digests.json"
"""In the folder of results: the sha256 of files that were read, so that they are not read again (see FileDigests)."""

MISSING = "missing"
"""The reason for what is not there at all; so it is made where something needs it, and else may stay away.

A step's record that is gone, or a file of several, is another reason: what is left of them proves nothing.
"""


def _gone(path: Path) -> str:
    return f"{path.name} is missing"


@dataclass
class RunState:
    """The state of a run's samples and weights. Each method gives the reason, as a clause, or None for current."""

    samples: Mapping[str, SampleRequest]
    weights: WeightsRequest
    digests: FileDigests
    pool: PoolRequest
    draws_samples: bool = True
    _read: dict[Path, tuple[tuple[int, ...], Any]] = field(default_factory=dict)

    def _once(self, read: Callable[[Path], R], path: Path) -> R:
        """What ``read`` gives of a file, read again when that has changed: a plan asks of each chunk many times.

        Each file is read in one way alone.
        """
        stamp = file_stamp(path)
        if path not in self._read or self._read[path][0] != stamp:
            self._read[path] = (stamp, read(path))
        found: R = self._read[path][1]
        return found

    def split(self) -> SplitRecord:
        """The record of the split.

        Raises:
            RecordError: there is none, or it is damaged.
        """
        try:
            return self._once(lambda path: read_split(path.parent), self.pool.split)
        except OSError as error:
            raise RecordError(self.pool.split, f"cannot be read ({error.strerror})") from None

    def weights_stale(self) -> str | None:
        """Whether the weights have to be prepared."""
        if not self.weights.file.exists():
            return MISSING
        return None if self.manifest() is not None else "not prepared from this checkpoint by this version"

    def manifest(self) -> WeightsManifest | None:
        """The manifest of the weights, where they are prepared as they are wanted."""
        return self.weights.prepared(partial(self._once, read_manifest))

    def translation_stale(self, sample: str) -> str | None:
        """Whether contigs have to be translated."""
        request = self.samples[sample]
        if not request.translation.exists():
            return _gone(request.translation)
        wanted = translation_origin(map(self.sha256, request.inputs), request.window or 0, request.policies)
        return self.stale(request.translation, wanted)

    def stale(self, record: Path, wanted: Mapping[str, str]) -> str | None:
        """Whether a step's record is not of what is wanted, or its files are not what it proves."""
        products = read_products(record)
        return products if isinstance(products, str) else why_stale(products, record.parent, wanted, self.digests)

    def sha256(self, path: Path) -> str:
        """The digest of a file that is there; of another one a word that no digest is."""
        try:
            return self.digests.sha256(path)
        except OSError:
            return "unreadable"  # the step that reads it says why

    def split_stale(self) -> str | None:
        """Whether the samples have to be split: one of them, or what is known of their sequences, has changed."""
        if not self.pool.chunks.exists():
            return _gone(self.pool.chunks)
        try:
            split = self.split()
        except RecordError as error:
            return f"{SPLIT_RECORD} {error.reason}"
        for sample in self.samples:
            if (reason := self.sample_stale(sample)) is not None:
                return reason
        if split.settings not in (self.pool.split_settings, *self.pool.also):
            wanted = asdict(self.pool.split_settings) | asdict(self.pool.split_settings.policies)
            made_with = asdict(split.settings.policies) | asdict(split.settings)
            changed = [name for name, value in made_with.items() if wanted[name] != value]
            return f"made with another {changed[0].replace('_', ' ')}"
        for name in self.names(split):
            chunk = split.chunks[name]
            reason = self._kept_stale(name) if chunk.is_kept else self._chunk_of_split(name, chunk.digest)
            if reason is not None:
                return reason
        if split.sources != self.pool.sources and any(self.chunk_stale(name) for name in split.to_embed()):
            return "other earlier results are to be used"
        return None

    def check_sources(self) -> None:
        """See that earlier results are there; those that the split has looked at may be gone since.

        Raises:
            UserError: others are not there.
        """
        try:
            known = sources_in(self.split().sources)
        except RecordError:
            known = []
        for path in sources_in(self.pool.sources):
            if path not in known and not Path(path).exists():
                raise UserError(f"setting 'reuse': there is no {brief(path)}")

    def sample_stale(self, sample: str) -> str | None:
        """Whether a sample is not what was split; its chunks are not asked about."""
        try:
            split = self.split()
        except RecordError as error:
            return f"{SPLIT_RECORD} {error.reason}"
        request = self.samples[sample]
        for path in (request.index, request.skipped):
            if not path.exists():
                return _gone(path)
        inputs = request.inputs
        if request.window is not None:
            if self.translation_stale(sample) is not None:
                return "contigs have to be translated again"
            inputs = (request.translated,)
        if sample not in split.samples:
            return f"{sample} was not split with the others"
        if split.samples[sample].inputs != tuple(self.sha256(path) for path in inputs):
            return "FASTA files have changed"
        reason = why_not(request.index, split.samples[sample].index, self.digests)
        return None if reason is None else f"{request.index.name} {reason}"

    def _chunk_of_split(self, name: str, digest: str) -> str | None:
        """Whether what a chunk is computed from is not there."""
        fasta = self.pool.chunks / f"{name}.fasta"
        if not fasta.is_file():
            return _gone(fasta)
        try:
            chunk = self._once(lambda path: read_record(path, ChunkManifest), fasta.with_suffix(".json"))
        except RecordError as error:
            return f"{error.path.name} {error.reason}"
        except OSError:
            return _gone(fasta.with_suffix(".json"))
        return None if chunk.digest == digest else f"{name}.json is of another split"

    def _kept_stale(self, name: str) -> str | None:
        """Whether a chunk file that was there before the split is not there any more: its sequences are to be found."""
        reason = self.chunk_stale(name)
        return None if reason is None else f"{name}, which was embedded before, is {reason}"

    def names(self, split: SplitRecord) -> list[str]:
        """The chunks that the samples need, in order."""
        numbers = {number for sample in self.samples for number in split.samples[sample].chunks}
        return [chunk_name(number) for number in sorted(numbers)]

    def chunk_stale(self, chunk: str) -> str | None:
        """Whether a chunk has to be embedded. Its bytes are compared with its checksum when it is merged."""
        path = self.pool.chunk_file(chunk)
        if not path.exists():
            return MISSING
        header = self._chunk_header(path)
        if isinstance(header, str):
            return header
        try:
            digest = self.split().chunks[chunk].digest
        except (RecordError, KeyError):
            return "of another split"
        if header.get("chunk") != chunk or header.get("chunk_digest") != digest:
            return "made of other sequences"
        return why_of_others(
            header,
            self.pool.embedding,
            self.weights.model,
            manifest=self.manifest(),
            source_sha256=self.weights.source_sha256,
        )

    def chunk_run(self, chunk: str) -> DeviceRun | None:
        """How a chunk that is there ran; None where its metadata do not say it."""
        path = self.pool.chunk_file(chunk)
        header = self._chunk_header(path)
        try:
            return None if isinstance(header, str) else read_header_entries(header, DeviceRun, path)
        except RecordError:
            return None

    def _chunk_header(self, path: Path) -> dict[str, str] | str:
        try:
            return self._once(_read_chunk_header, path)
        except HeaderError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def tables_stale(self, sample: str) -> str | None:
        """Whether a sample has to be merged: its index, weights and settings, and every byte of its tables."""
        request = self.samples[sample]
        if not request.report.exists():
            is_there = any((request.folder / table.name).exists() for table in TABLES.values())
            return _gone(request.report) if is_there else MISSING
        if self.sample_stale(sample) is not None:
            return "its proteins have to be split again"
        try:
            report = read_record(request.report, SampleReport)
        except RecordError as error:
            return f"{REPORT} {error.reason}"
        files = {name: proof for table in report.tables.values() for name, proof in table.items()}
        wanted = {
            "index": self.sha256(request.index),
            **table_settings(self.pool.embedding, request.tables),
            "model": self.weights.model,
        }
        manifest = self.manifest()
        if manifest is not None:
            wanted["weights_sha256"] = manifest.sha256
        return why_stale(Products(report.made_from, files), request.folder, wanted, self.digests)

    def _report_sha256(self, *samples: str) -> dict[str, str]:
        return {sample: self.sha256(self.samples[sample].report) for sample in samples}

    def plots_stale(self, sample: str) -> str | None:
        """Whether a sample's plots have to be drawn."""
        request = self.samples[sample]
        if not request.plots.exists():
            return _gone(request.plots)
        if self.tables_stale(sample) is not None:
            return "its tables have to be written again"
        return self.stale(request.plots, plots_origin(self._report_sha256(sample), self._metadata_sha256()))

    def map_stale(self, record: Path) -> str | None:
        """Whether the map of all samples has to be drawn."""
        if not record.exists():
            return _gone(record)
        if any(self.tables_stale(sample) is not None for sample in self.samples):
            return "tables have to be written again"
        return self.stale(record, plots_origin(self._report_sha256(*self.samples), self._metadata_sha256()))

    def _metadata_sha256(self) -> str:
        (metadata,) = {request.metadata for request in self.samples.values()}
        return "" if metadata is None else self.sha256(metadata)

    def neighbours_stale(self, sample: str) -> str | None:
        """Whether a sample's neighbours have to be found."""
        request = self.samples[sample]
        if not request.neighbours_record.exists():
            return _gone(request.neighbours_record)
        if self.tables_stale(sample) is not None:
            return "its tables have to be written again"
        wanted = neighbours_origin(self._report_sha256(sample), request.neighbours)
        return self.stale(request.neighbours_record, wanted)

    def summary_stale(self, record: Path, calls: Mapping[str, str] = MappingProxyType({})) -> str | None:
        """Whether the run has to be summarised: it is of these samples, and of their present tables.

        Args:
            calls: the sha256 of the record of each sample's calls, where there are to be any.
        """
        if not record.exists():
            return _gone(record)
        if any(self.tables_stale(sample) is not None for sample in self.samples):
            return "tables have to be written again"
        if self.draws_samples and any(self.plots_stale(sample) is not None for sample in self.samples):
            return "maps have to be drawn again"
        return self.stale(record, summary_origin(self._report_sha256(*self.samples), calls))


def _read_chunk_header(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return read_header(file).metadata


def table_settings(embedding: EmbeddingSettings, tables: TableSettings) -> dict[str, str]:
    """The settings that decide what a sample's tables hold, as their record states them."""
    return {
        **settings_identity(embedding),
        "layers_asked_for": json.dumps(embedding.layers),
        "formats": json.dumps(sorted(tables.formats)),
        "dtype": tables.dtype,
        "records_per_file": str(tables.records_per_file),
    }


def translation_origin(sha256: Iterable[str], window: int, policies: InputPolicies) -> dict[str, str]:
    """What translated contigs are made from: the sha256 of each FASTA file in order, the window's bases, policies."""
    return {"contigs": json.dumps(list(sha256)), "window": str(window), **asdict(policies)}


def sha256_by_sample(reports: Iterable[Path]) -> dict[str, str]:
    """The sha256 of samples' reports, each by the name of the folder that it lies in."""
    return {report.parent.name: file_sha256(report) for report in reports}


def summary_origin(reports: Mapping[str, str], calls: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """What a summary is made from: the sha256 of each sample's report, and of the record of its calls."""
    return {**reports_origin(reports), "calls": json.dumps(list(calls.items()))}


def reports_origin(reports: Mapping[str, str]) -> dict[str, str]:
    """What plots are made from: the sha256 of each sample's report, by the sample's name, in order."""
    return {"reports": json.dumps(list(reports.items()))}


def plots_origin(reports: Mapping[str, str], metadata: str = "") -> dict[str, str]:
    """What a sample's plots are made from: its report, and the sha256 of the table of metadata, where there is one."""
    return {**reports_origin(reports), **({"metadata": metadata} if metadata else {})}


def neighbours_origin(reports: Mapping[str, str], count: int) -> dict[str, str]:
    """What a table of so many neighbours is made from."""
    return {**reports_origin(reports), "neighbours": str(count)}
