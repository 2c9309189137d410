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
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from virnucpro.base.digest import FileDigests, Products, file_stamp, read_products, why_not, why_stale
from virnucpro.base.errors import UserError
from virnucpro.base.records import RecordError, read_record
from virnucpro.base.safetensors_header import HeaderError, read_header
from virnucpro.base.settings import EmbeddingSettings, InputPolicies, TableSettings, resolve_layers
from virnucpro.chunking.manifest import SPLIT_RECORD, ChunkManifest, SplitRecord, SplitSettings, chunk_name, read_split
from virnucpro.models.reference import ModelRef
from virnucpro.storage.chunk_metadata import DeviceRun, identity, read_header_entries, serves, settings_identity
from virnucpro.storage.report_record import REPORT, SampleReport
from virnucpro.storage.sample_files import SampleFiles
from virnucpro.storage.tables import TABLES
from virnucpro.weights.manifest import WeightsManifest, read_manifest, weights_name

R = TypeVar("R")

DIGESTS = ".digests.json"
"""In the folder of results: the sha256 of files that were read, so that they are not read again (see FileDigests)."""

MISSING = "missing"
"""The reason for what is not there at all; so it is made where something needs it, and else may stay away.

A step's record that is gone, or a file of several, is another reason: what is left of them proves nothing.
"""


def _gone(path: Path) -> str:
    return f"{path.name} is missing"


@dataclass(frozen=True)
class SampleRequest(SampleFiles):
    """What is wanted of one sample.

    Attributes:
        inputs: its FASTA files, in order; contigs when there is a ``window``.
        window: bases of a window that contigs are cut into; None for proteins.
        policies: what is done about records of contigs that can't simply be translated.
        also: splits that will do as well as ``split``.
        metadata: the table that maps are coloured by.
        neighbours: how many of each protein are listed.
    """

    inputs: tuple[Path, ...]
    window: int | None
    split: SplitSettings
    embedding: EmbeddingSettings
    tables: TableSettings
    policies: InputPolicies = InputPolicies()
    also: tuple[SplitSettings, ...] = ()
    metadata: Path | None = None
    neighbours: int = 0


@dataclass(frozen=True)
class WeightsRequest:
    """Which weights are wanted, and the file that holds them.

    ``source_sha256`` and ``adapter_sha256`` are the contents of checkpoint and adapter, each None where it was not
    given by its path and any will do.
    """

    model: str
    file: Path
    source_sha256: str | None
    adapter_sha256: str | None

    @classmethod
    def of(cls, model: ModelRef, folder: Path, digests: FileDigests) -> WeightsRequest:
        """The weights of a model in the folder that keeps them; a checkpoint given by its path is known by its content.

        Raises:
            OSError: the checkpoint cannot be read.
        """
        source, adapter = model.source_sha256(digests.sha256), model.adapter_sha256(digests.sha256)
        name = weights_name(model, source, adapter)
        return cls(name, folder / f"{name}.safetensors", source, adapter)

    @property
    def digests(self) -> tuple[str | None, str | None]:
        """Of checkpoint and adapter, for the step that prepares the weights."""
        return self.source_sha256, self.adapter_sha256

    def is_of(self, manifest: WeightsManifest) -> bool:
        """Whether weights are the wanted ones."""
        return (
            manifest.model == self.model
            and self.source_sha256 in (None, manifest.source_sha256)
            and self.adapter_sha256 in (None, manifest.adapter_sha256)
        )


@dataclass
class RunState:
    """The state of a run's samples and weights. Each method gives the reason, as a clause, or None for current."""

    samples: Mapping[str, SampleRequest]
    weights: WeightsRequest
    digests: FileDigests
    _read: dict[tuple[str, Path], tuple[tuple[int, ...], Any]] = field(default_factory=dict)

    def _once(self, read: Callable[[Path], R], path: Path) -> R:
        """What ``read`` gives of a file, read again when that has changed: a plan asks of each chunk many times."""
        stamp = file_stamp(path)
        key = (read.__name__, path)
        if key not in self._read or self._read[key][0] != stamp:
            self._read[key] = (stamp, read(path))
        found: R = self._read[key][1]
        return found

    def _split(self, request: SampleRequest) -> SplitRecord:
        try:
            return self._once(_read_split_record, request.chunks / SPLIT_RECORD)
        except OSError as error:
            raise RecordError(request.chunks / SPLIT_RECORD, f"cannot be read ({error.strerror})") from None

    def weights_stale(self) -> str | None:
        """Whether the weights have to be prepared."""
        if not self.weights.file.exists():
            return MISSING
        return None if self.manifest() is not None else "not prepared from this checkpoint by this version"

    def manifest(self) -> WeightsManifest | None:
        """The manifest of the weights, where they are prepared as they are wanted."""
        try:
            manifest = self._once(read_manifest, self.weights.file)
        except (OSError, UserError):
            return None
        return manifest if self.weights.is_of(manifest) else None

    def translation_stale(self, sample: str) -> str | None:
        """Whether contigs have to be translated."""
        request = self.samples[sample]
        if not request.translation.exists():
            return _gone(request.translation)
        wanted = translation_origin(map(self.sha256, request.inputs), request.window or 0, request.policies)
        return self._stale(request.translation, wanted)

    def _stale(self, record: Path, wanted: Mapping[str, str]) -> str | None:
        products = read_products(record)
        return products if isinstance(products, str) else why_stale(products, record.parent, wanted, self.digests)

    def sha256(self, path: Path) -> str:
        """The digest of a file that is there; of another one a word that no digest is."""
        try:
            return self.digests.sha256(path)
        except OSError:
            return "unreadable"  # the step that reads it says why

    def split_stale(self, sample: str) -> str | None:
        """Whether a sample has to be split."""
        request = self.samples[sample]
        for path in (request.chunks, request.index, request.skipped):
            if not path.exists():
                return _gone(path)
        inputs = request.inputs
        if request.window is not None:
            if self.translation_stale(sample) is not None:
                return "its contigs have to be translated again"
            inputs = (request.translated,)
        try:
            split = self._split(request)
        except RecordError as error:
            return f"{SPLIT_RECORD} {error.reason}"
        if split.inputs != tuple(self.sha256(path) for path in inputs):
            return "its FASTA files have changed"
        if split.settings not in (request.split, *request.also):
            wanted = asdict(request.split) | asdict(request.split.policies)
            made_with = asdict(split.settings.policies) | asdict(split.settings)
            changed = [name for name, value in made_with.items() if wanted[name] != value]
            return f"made with another {changed[0].replace('_', ' ')}"
        reason = why_not(request.index, split.index, self.digests)
        if reason is not None:
            return f"{request.index.name} {reason}"
        for number, digest in enumerate(split.chunks):
            fasta = request.chunks / f"{chunk_name(number)}.fasta"
            if not fasta.is_file():
                return _gone(fasta)
            try:
                chunk = self._once(_read_chunk_manifest, fasta.with_suffix(".json"))
            except RecordError as error:
                return f"{error.path.name} {error.reason}"
            except OSError:
                return _gone(fasta.with_suffix(".json"))
            if chunk.digest != digest:
                return f"{fasta.stem}.json is of another split"
        return None

    def chunk_stale(self, sample: str, chunk: str) -> str | None:
        """Whether a chunk has to be embedded. Its bytes are compared with its checksum when it is merged."""
        request = self.samples[sample]
        path = request.chunk_file(chunk)
        if not path.exists():
            return MISSING
        header = self._chunk_header(path)
        if isinstance(header, str):
            return header
        try:
            digest = self._split(request).chunks[int(chunk.removeprefix("chunk_"))]
        except (RecordError, IndexError):
            return "of another split"
        if header.get("chunk") != chunk or header.get("chunk_digest") != digest:
            return "made of other sequences"
        return self._identity_differs(request.embedding, header)

    def chunk_run(self, sample: str, chunk: str) -> DeviceRun | None:
        """How a chunk that is there ran; None where its metadata do not say it."""
        path = self.samples[sample].chunk_file(chunk)
        header = self._chunk_header(path)
        try:
            return None if isinstance(header, str) else read_header_entries(header, DeviceRun, path)
        except RecordError:
            return None

    def _identity_differs(self, embedding: EmbeddingSettings, header: Mapping[str, str]) -> str | None:
        """What a chunk file was made with that is not wanted now."""
        try:
            layers = json.dumps(resolve_layers(embedding.layers, int(header["model_layers"])))
        except (KeyError, ValueError, UserError):
            return "made by another version"
        manifest = self.manifest()
        wanted: dict[str, str] = {**settings_identity(embedding), "model": self.weights.model, "layers": layers}
        if self.weights.source_sha256 is not None:
            wanted["source_sha256"] = self.weights.source_sha256
        if manifest is not None:
            wanted |= identity(manifest, embedding)
            wanted.pop("source_sha256", None)  # the same numbers may come from another file
        for name, value in wanted.items():
            if not serves(name, header, value):
                return f"made with another {name.replace('_', ' ')}"
        return None

    def _chunk_header(self, path: Path) -> dict[str, str] | str:
        try:
            return self._once(_read_chunk_header, path)
        except HeaderError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def tables_stale(self, sample: str) -> str | None:
        """Whether a sample has to be merged: its split, weights and settings, and every byte of its tables."""
        request = self.samples[sample]
        if not request.report.exists():
            is_there = any((request.folder / table.name).exists() for table in TABLES.values())
            return _gone(request.report) if is_there else MISSING
        if self.split_stale(sample) is not None:
            return "its proteins have to be split again"
        try:
            report = read_record(request.report, SampleReport)
        except RecordError as error:
            return f"{REPORT} {error.reason}"
        files = {name: proof for table in report.tables.values() for name, proof in table.items()}
        wanted = {
            "split": self.sha256(request.chunks / SPLIT_RECORD),
            **table_settings(request.embedding, request.tables),
            "model": self.weights.model,
        }
        manifest = self.manifest()
        if manifest is not None:
            wanted["weights_sha256"] = manifest.sha256
        return why_stale(Products(report.made_from, files), request.folder, wanted, self.digests)

    def _report_sha256(self, sample: str) -> dict[str, str]:
        return {sample: self.sha256(self.samples[sample].report)}

    def plots_stale(self, sample: str) -> str | None:
        """Whether a sample's plots have to be drawn."""
        request = self.samples[sample]
        if not request.plots.exists():
            return _gone(request.plots)
        if self.tables_stale(sample) is not None:
            return "its tables have to be written again"
        metadata = "" if request.metadata is None else self.sha256(request.metadata)
        return self._stale(request.plots, plots_origin(self._report_sha256(sample), metadata))

    def neighbours_stale(self, sample: str) -> str | None:
        """Whether a sample's neighbours have to be found."""
        request = self.samples[sample]
        if not request.neighbours_record.exists():
            return _gone(request.neighbours_record)
        if self.tables_stale(sample) is not None:
            return "its tables have to be written again"
        wanted = neighbours_origin(self._report_sha256(sample), request.neighbours)
        return self._stale(request.neighbours_record, wanted)

    def summary_stale(self, record: Path, calls: Mapping[str, str] = MappingProxyType({})) -> str | None:
        """Whether the run has to be summarised: it is of these samples, and of their present tables.

        Args:
            calls: the sha256 of the record of each sample's calls, where there are to be any.
        """
        if not record.exists():
            return _gone(record)
        if any(self.tables_stale(sample) is not None for sample in self.samples):
            return "tables have to be written again"
        if any(self.plots_stale(sample) is not None for sample in self.samples):
            return "maps have to be drawn again"
        reports = {sample: self.sha256(request.report) for sample, request in self.samples.items()}
        return self._stale(record, summary_origin(reports, calls))


def _read_split_record(path: Path) -> SplitRecord:
    return read_split(path.parent)


def _read_chunk_manifest(path: Path) -> ChunkManifest:
    return read_record(path, ChunkManifest)


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
