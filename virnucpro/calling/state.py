"""What calls are made from, and which of their files no longer are what the present inputs and settings give.

As :mod:`virnucpro.storage.state` does for embeddings: content decides. The nucleotides of a sample's frames are split,
embedded and judged stale as proteins are, in a folder of their own (:class:`NucleotideRequest`); both splits are of one
translation, and rows are joined by id. Needs the standard library alone: the process that plans a run asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from virnucpro.base.digest import FileDigests, FileProof, Products, why_stale
from virnucpro.base.errors import UserError
from virnucpro.base.records import RecordError, parse_record, read_record
from virnucpro.base.safetensors_header import HeaderError, read_header
from virnucpro.base.settings import DEMO_CLASSIFIER, EmbeddingSettings, InputPolicies, check_fields, default
from virnucpro.models.reference import LONGEST_NAME
from virnucpro.storage.chunk_metadata import identity, settings_identity
from virnucpro.storage.sample_files import PoolFiles, SampleFiles, SampleRequest
from virnucpro.storage.state import MISSING, RunState, reports_origin
from virnucpro.weights.manifest import WeightsManifest


@dataclass(frozen=True)
class CallRule:
    """When a contig is called viral or not; ``SETTINGS`` says what each is. Published constants, nothing calibrated.

    Raises:
        UserError: a value is not allowed, or ``non_viral_under`` is over ``viral_over``.
    """

    viral_over: float = default("classify.viral_over")
    non_viral_under: float = default("classify.non_viral_under")
    sure_over: float = default("classify.sure_over")
    sure_under: float = default("classify.sure_under")
    ambiguous_over: float = default("classify.ambiguous_over")

    def __post_init__(self) -> None:
        check_fields(self, "classify.")
        if self.non_viral_under > self.viral_over:
            raise UserError(
                f"viral_over is {self.viral_over} and non_viral_under {self.non_viral_under}: give two numbers, the "
                "second no larger than the first"
            )


WINDOWS = (300, 500)
"""Bases of the windows that VirNucPro's two classifiers were trained on."""

CALLS = "calls"
"""The folder of a sample's calls."""

RECORD = "calls.json"
"""In that folder: what the calls were made from, how many there are of each, and the sha256 of each file."""

CALL_WORDS = ("viral", "non-viral", "ambiguous", "unscored")
"""What is said of a contig."""

CLASSIFIER_ENTRY = "virnucpro_classifier"
"""The name of the manifest in a prepared classifier's safetensors metadata."""

DEMO_WARNING = f"{DEMO_CLASSIFIER} is random: its calls mean nothing biologically"


def check_window(classifier: Path, window: int) -> None:
    """Refuse a window that there is no classifier for, or another one than the file's name says.

    Raises:
        UserError: with what to do.
    """
    if window not in WINDOWS:
        raise UserError(f"window is {window}; give 300 or 500, which VirNucPro's classifiers were trained on")
    of_name = re.match(r"(\d+)_model", classifier.name)
    if of_name is not None and int(of_name[1]) != window:
        raise UserError(
            f"{classifier} is the classifier for windows of {of_name[1]} bases and the window is {window}: give "
            f"{window}_model.pth, or translate, embed and classify with window {of_name[1]}"
        )


@dataclass(frozen=True)
class ClassifierManifest:
    """A prepared classifier: the sha256 of VirNucPro's file (empty: random) and of its numbers, and its features."""

    FORMAT: ClassVar[str] = "virnucpro-classifier-1"

    source_sha256: str
    sha256: str
    width: int
    demo: bool


@dataclass(frozen=True)
class CallsRecord:
    """What was called, in ``calls/calls.json``.

    Attributes:
        made_from: sha256 of contigs, of features or scores and of the classifier; rule, window, policies, models.
        calls: contigs by call.
        unscored: contigs by the reason why they were not scored.
        files: the files beside the record.
        warning: what must be known before they are used, or empty.
    """

    FORMAT: ClassVar[str] = "virnucpro-calls-1"

    made_from: dict[str, str]
    calls: dict[str, int]
    unscored: dict[str, int]
    files: dict[str, FileProof]
    warning: str = ""


@dataclass(frozen=True)
class CallFiles(SampleFiles):
    """The files of a sample's calls."""

    @property
    def scores(self) -> Path:
        """Scores of frames, as they were joined and classified."""
        return self.folder / "frame_scores.parquet"

    @property
    def scores_record(self) -> Path:
        return self.folder / "frame_scores.json"

    @property
    def calls(self) -> Path:
        return self.folder / CALLS

    @property
    def calls_record(self) -> Path:
        return self.calls / RECORD

    @property
    def call_plots(self) -> Path:
        """The record of the plots of calls."""
        return self.folder / "plots" / RECORD


NUCLEOTIDES = "nucleotides"
"""The folder of what is made of nucleotides, in a sample's folder and in that of the results."""


@dataclass(frozen=True)
class NucleotideFiles(SampleFiles):
    """The files of the nucleotides of a sample's frames: a split of their own, of the proteins' translation."""

    @property
    def translated(self) -> Path:
        """The nucleotides of frames."""
        return self.folder / "translated.fna"

    @property
    def index(self) -> Path:
        return self.folder / NUCLEOTIDES / "nucleotides.parquet"

    @property
    def skipped(self) -> Path:
        return self.folder / NUCLEOTIDES / "skipped.tsv"

    @property
    def pool(self) -> PoolFiles:
        """The chunks of a sample that was split by itself."""
        return PoolFiles(self.folder / NUCLEOTIDES)


@dataclass(frozen=True)
class NucleotideRequest(NucleotideFiles, SampleRequest):
    """What is wanted of the nucleotides of a sample's frames."""


@dataclass(frozen=True)
class ClassifierRequest:
    """Which classifier is wanted: VirNucPro's file (None: the random one), its sha256, and where it is prepared."""

    source: Path | None
    source_sha256: str
    file: Path

    @classmethod
    def of(cls, source: Path | None, models: Iterable[str], folder: Path, digests: FileDigests) -> ClassifierRequest:
        """The classifier in the folder that keeps weights.

        Args:
            models: names of the weights whose features it gets, which decide the size of the random one.

        Raises:
            OSError: the file cannot be read.
        """
        if source is None:
            return cls(None, "", folder / f"{DEMO_CLASSIFIER}-{'-'.join(models)}.safetensors")
        sha256 = digests.sha256(source)
        return cls(source, sha256, folder / f"{source.stem[:LONGEST_NAME]}-{sha256[:12]}.safetensors")


@dataclass
class CallsState:
    """The state of a run's calls. Each method gives the reason, as a clause, or None for current.

    Attributes:
        proteins, nucleotides: the state of either kind of a sample's sequences.
    """

    proteins: RunState
    nucleotides: RunState
    classifier: ClassifierRequest
    rule: CallRule

    def files(self, sample: str) -> CallFiles:
        """Where a sample's calls are."""
        return CallFiles(self.proteins.samples[sample].folder)

    def classifier_stale(self) -> str | None:
        """Whether the classifier has to be prepared."""
        if not self.classifier.file.exists():
            return MISSING
        try:
            with self.classifier.file.open("rb") as file:
                text = read_header(file).metadata.get(CLASSIFIER_ENTRY, "")
            manifest = parse_record(text, ClassifierManifest, self.classifier.file)
        except (OSError, HeaderError, RecordError):
            return "not prepared by this version"
        parts = [state.manifest() for state in (self.proteins, self.nucleotides)]
        widths = [part.embed_dim for part in parts if part is not None]
        is_it = manifest.source_sha256 == self.classifier.source_sha256
        if is_it and (len(widths) < len(parts) or manifest.width == sum(widths)):
            return None
        return "of another classifier"

    def scores_stale(self, sample: str) -> str | None:
        """Whether a sample's frames have to be classified: its two indices, weights, settings and classifier."""
        files = self.files(sample)
        if not files.scores.exists() and not files.scores_record.exists():
            return MISSING
        requests = [(state, state.samples[sample]) for state in (self.proteins, self.nucleotides)]
        if any(state.sample_stale(sample) is not None for state, _ in requests):
            return "its frames have to be split again"
        wanted = scores_origin(
            [self.proteins.sha256(request.index) for _, request in requests],
            [frame_identity(state.manifest(), state.weights.model, state.pool.embedding) for state, _ in requests],
            self.classifier.source_sha256,
        )
        return self.proteins.stale(files.scores_record, wanted)

    def calls_stale(self, sample: str) -> str | None:
        """Whether a sample's contigs have to be called."""
        record = self.files(sample).calls_record
        if not record.exists():
            return MISSING if not record.parent.exists() else f"{record.name} is missing"
        if self.scores_stale(sample) is not None:
            return "its frames have to be classified again"
        request = self.proteins.samples[sample]
        try:
            found = read_record(record, CallsRecord)
        except RecordError as error:
            return f"{record.name} {error.reason}"
        wanted = calls_origin(
            [self.proteins.sha256(path) for path in request.inputs],
            self.proteins.sha256(self.files(sample).scores),
            request.window or 0,
            self.rule,
            request.policies,
        )
        return why_stale(Products(found.made_from, found.files), record.parent, wanted, self.proteins.digests)

    def plots_stale(self, sample: str) -> str | None:
        """Whether the plots of a sample's calls have to be drawn."""
        files = self.files(sample)
        if not files.call_plots.exists():
            return f"{files.call_plots.name} is missing"
        if self.calls_stale(sample) is not None:
            return "its contigs have to be called again"
        return self.proteins.stale(files.call_plots, reports_origin({sample: self.proteins.sha256(files.calls_record)}))

    def summary_stale(self, record: Path) -> str | None:
        """Whether the run has to be summarised: see :meth:`virnucpro.storage.state.RunState.summary_stale`."""
        if any(self.calls_stale(sample) is not None for sample in self.proteins.samples):
            return "contigs have to be called again"
        calls = {sample: self.proteins.sha256(self.files(sample).calls_record) for sample in self.proteins.samples}
        return self.proteins.summary_stale(record, calls)


def frame_identity(manifest: WeightsManifest | None, model: str, embedding: EmbeddingSettings) -> dict[str, str]:
    """What the chunk files of one kind of sequences have to say of themselves, and which layers were asked for.

    Args:
        manifest: of the weights; None before they are prepared, when their sha256 is not known.
    """
    known = identity(manifest, embedding) if manifest is not None else settings_identity(embedding)
    return {**known, "model": model, "layers_asked_for": json.dumps(embedding.layers)}


def scores_origin(splits: Iterable[str], identities: Iterable[Mapping[str, str]], classifier: str) -> dict[str, str]:
    """What scores of frames are made from: of proteins, then of nucleotides.

    Args:
        splits: the sha256 of each index.
        identities: what the chunk files of each say of themselves.
        classifier: the sha256 of VirNucPro's file; empty for the random one.
    """
    found = {"splits": json.dumps(list(splits)), "classifier": classifier or "random"}
    for kind, entries in zip(("esm2", "dnabert_s"), identities, strict=True):
        found |= {f"{kind} {name}": value for name, value in entries.items()}
    return found


def calls_origin(
    contigs: Iterable[str], scores: str, window: int, rule: CallRule, policies: InputPolicies
) -> dict[str, str]:
    """What calls are made from: the sha256 of each FASTA file in order and of the scores; window, rule, policies."""
    return {
        "contigs": json.dumps(list(contigs)),
        "scores": scores,
        "window": str(window),
        **{f"rule {name}": str(value) for name, value in asdict(rule).items()},
        **{f"policy {name}": value for name, value in asdict(policies).items()},
    }
