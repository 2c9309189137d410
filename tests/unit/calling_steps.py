"""From contigs to calls by the functions that the workflow's rules call, one after the other, in one folder."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.splitting import split_proteins
from virnucpro.base.digest import write_products
from virnucpro.base.settings import EmbeddingSettings, InputPolicies, LongProteins
from virnucpro.calling.classifier import load_classifier
from virnucpro.calling.classifier_file import prepare_classifier
from virnucpro.calling.contigs import call_contigs
from virnucpro.calling.frames import Embedded, classify_frames
from virnucpro.calling.state import CallFiles, CallRule, NucleotideFiles
from virnucpro.engine.job import embed_chunk
from virnucpro.models.reference import ModelRef
from virnucpro.sequences.intake import PROTEINS
from virnucpro.sequences.translation import FRAME_BASES, translate_contigs
from virnucpro.storage.sample_files import PoolFiles, SampleFiles
from virnucpro.storage.state import translation_origin
from virnucpro.weights.prepare import prepare_weights

LOGGER = logging.getLogger("test")
POLICIES = InputPolicies(suspicious="accept", empty_samples="skip")
SETTINGS = (EmbeddingSettings(), EmbeddingSettings(long_proteins=LongProteins("full")))


@dataclass
class Steps:
    """A sample's folder; the models are names or checkpoints, of proteins and of nucleotides."""

    folder: Path
    fasta: Path
    models: tuple[str | Path, str | Path] = ("esm2_demo", "dnabert_s_demo")
    classifier: Path | None = None
    window: int = 300
    precisions: tuple[str, str] = ("fp32", "fp32")
    chunk_letters: tuple[int, int] = (900, 4000)
    kinds: list[Embedded] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = (self.folder / "proteins.safetensors", self.folder / "nucleotides.safetensors")
        self.files = CallFiles(self.folder)
        self.requests: tuple[SampleFiles, SampleFiles] = (
            self.files,
            NucleotideFiles(self.folder),
        )
        self.pools = (PoolFiles(self.folder), NucleotideFiles(self.folder).pool)

    def embed(self) -> None:
        for model, weights in zip(self.models, self.weights, strict=True):
            prepare_weights(ModelRef.of(model), weights, log=LOGGER.debug)
        translated = [request.translated for request in self.requests]
        counts = translate_contigs([self.fasta], *translated, window=self.window)
        origin = translation_origin(counts.inputs, self.window, InputPolicies())
        write_products(self.files.translation, origin, translated)
        for place in (0, 1):
            self.split(place)
            self.embed_chunks(place)

    def split(self, place: int) -> None:
        request = self.requests[place]
        split_proteins(
            [request.translated],
            request.index,
            self.pools[place].chunks,
            request.skipped,
            chunk_residues=self.chunk_letters[place],
            long_proteins=SETTINGS[place].long_proteins,
            policies=POLICIES,
            kind=(PROTEINS, FRAME_BASES)[place],
        )

    def settings(self, place: int) -> EmbeddingSettings:
        policy = SETTINGS[place].long_proteins
        return EmbeddingSettings(precision=self.precisions[place], long_proteins=policy)

    def embed_chunks(self, place: int) -> None:
        pool = self.pools[place]
        for fasta in sorted(pool.chunks.glob("*.fasta")):
            output = pool.chunk_file(fasta.stem)
            if not output.exists():
                embed_chunk(fasta, self.weights[place], output, self.settings(place), devices=["cpu"], logger=LOGGER)

    def embedded(self, place: int) -> Embedded:
        return Embedded.by(self.weights[place], self.settings(place), self.requests[place].index, self.pools[place])

    def classify(self) -> int:
        prepared = self.folder / "classifier.safetensors"
        weights, nucleotide_weights = self.weights
        prepare_classifier(self.classifier, weights, nucleotide_weights, prepared, self.window, logger=LOGGER)
        proteins, nucleotides = self.embedded(0), self.embedded(1)
        return classify_frames(proteins, nucleotides, load_classifier(prepared), self.files.scores, logger=LOGGER)

    def call(self, rule: CallRule | None = None) -> Counter[str]:
        return call_contigs(
            [self.fasta],
            self.files,
            window=self.window,
            rule=rule or CallRule(),
            policies=InputPolicies(),
            logger=LOGGER,
        )
