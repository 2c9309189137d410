"""The workflow's steps from frames to calls as commands, after those of ``steps.py``; each calls what the rule's script
calls, in the same folder of a sample."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from virnucpro.base.atomic import scratch_directory
from virnucpro.base.call_settings import DEMO_CLASSIFIER
from virnucpro.base.digest import recorded
from virnucpro.base.settings import EmbeddingSettings, InputPolicies, LongProteins
from virnucpro.calling.rule import CallRule
from virnucpro.calling.state import CallFiles, NucleotideFiles, frame_identity
from virnucpro.chunking.size import BASES, chunk_sizes
from virnucpro.cuda.visible import has_gpu
from virnucpro.models.reference import ModelRef, planning_architecture, planning_parameters
from virnucpro.options import EMBEDDING, POLICIES, RULE, add_files, add_options, embedding_settings, path, values
from virnucpro.storage.sample_files import PoolFiles
from virnucpro.weights.manifest import read_manifest

LOG = logging.getLogger("virnucpro")


def add_call_steps(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add a subcommand for each step."""
    split = commands.add_parser("split-nucleotides", help="step: cut the nucleotides of translated frames into chunks")
    _takes_folder(split)
    add_options(split, ["classify.nucleotide_model", "classify.chunk_bases", *POLICIES])
    split.set_defaults(run=_split)

    embed_chunk = commands.add_parser("embed-nucleotides", help="step: embed one chunk of nucleotides")
    _takes_folder(embed_chunk)
    embed_chunk.add_argument("chunk", help="its name, such as chunk_00000")
    embed_chunk.add_argument("--weights", type=path, required=True, help="DNABERT-S's, from virnucpro prepare")
    embed_chunk.add_argument("--devices", nargs="+", metavar="DEVICE", help="cpu, cuda:0, ... (default: all GPUs)")
    add_options(embed_chunk, ["precision"])
    embed_chunk.set_defaults(run=_embed_chunk)

    score = commands.add_parser("score", help="step: join a sample's two kinds of vectors and score its frames")
    _takes_folder(score)
    score.add_argument("--weights", type=path, required=True, help="ESM-2's, from virnucpro prepare")
    score.add_argument("--nucleotide-weights", type=path, required=True, help="DNABERT-S's, likewise")
    score.add_argument("--classifier", type=path, required=True, help=f"500_model.pth, ..., or {DEMO_CLASSIFIER}")
    add_options(score, ["nucleotide.window", *EMBEDDING])
    score.set_defaults(run=_score)

    call = commands.add_parser("call", help="step: call a sample's contigs from the scores of their frames")
    add_files(call, "the contigs")
    add_options(call, ["nucleotide.window", *RULE, *POLICIES])
    call.set_defaults(run=_call)


def _takes_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="FOLDER", help="the sample's folder")


def _whole(precision: str) -> EmbeddingSettings:
    return EmbeddingSettings(precision=precision, long_proteins=LongProteins("full"))


def _split(given: argparse.Namespace) -> None:
    from virnucpro.chunking.split import split_proteins
    from virnucpro.sequences.translation import FRAME_BASES

    sample = NucleotideFiles(given.folder)
    wanted = values(given, ["classify.nucleotide_model", "classify.chunk_bases"])
    model = ModelRef.of(wanted["nucleotide_model"])
    width, settings = planning_architecture(model, "dnabert_s").embed_dim, _whole("auto")
    size = chunk_sizes(
        wanted["chunk_bases"],
        parameters=planning_parameters(model),
        embed_dim=width,
        layers=1,
        pooling=settings.pooling,
        letters=BASES,
    )["gpu" if has_gpu() else "cpu"]
    split_proteins(
        [sample.translated],
        sample.index,
        sample.pool.chunks,
        sample.skipped,
        chunk_residues=size.residues,
        multiple_of=size.multiple_of,
        embed_dim=width,
        long_proteins=settings.long_proteins,
        policies=InputPolicies(**values(given, POLICIES)),
        made_as=[recorded(sample.translation, sample.translated).sha256],
        kind=FRAME_BASES,
        logger=LOG,
    )
    print(sample.pool.chunks)


def _embed_chunk(given: argparse.Namespace) -> None:
    from virnucpro.engine.job import embed_chunk

    pool = NucleotideFiles(given.folder).pool
    chunk, output = pool.chunks / given.chunk, pool.chunk_file(given.chunk)
    fasta, manifest = chunk.with_suffix(".fasta"), chunk.with_suffix(".json")
    settings = _whole(**values(given, ["precision"]))
    embed_chunk(fasta, manifest, given.weights, output, settings, devices=given.devices, logger=LOG)
    print(output)


def _score(given: argparse.Namespace) -> None:
    from virnucpro.calling.classifier import load_classifier
    from virnucpro.calling.classifier_file import prepare_classifier
    from virnucpro.calling.join import Embedded, classify_frames

    (window,) = values(given, ["nucleotide.window"]).values()
    settings = embedding_settings(given)

    def embedded(index: Path, pool: PoolFiles, weights: Path, settings: EmbeddingSettings) -> Embedded:
        manifest = read_manifest(weights)
        return Embedded(index, pool.chunks, pool.tensors, frame_identity(manifest, manifest.model, settings))

    frames = NucleotideFiles(given.folder)
    files = CallFiles(given.folder)
    source = None if given.classifier.name == DEMO_CLASSIFIER else given.classifier
    with scratch_directory(files.scores) as folder:
        prepared = folder / "classifier.safetensors"
        prepare_classifier(source, given.weights, given.nucleotide_weights, prepared, window, logger=LOG)
        classify_frames(
            embedded(files.index, PoolFiles(given.folder), given.weights, settings),
            embedded(frames.index, frames.pool, given.nucleotide_weights, _whole(settings.precision)),
            load_classifier(prepared),
            files.scores,
            logger=LOG,
        )
    print(files.scores)


def _call(given: argparse.Namespace) -> None:
    from virnucpro.calling.classify import call_contigs

    (window,) = values(given, ["nucleotide.window"]).values()
    files = CallFiles(given.output)
    call_contigs(
        given.fasta,
        files.translation,
        files.scores,
        files.calls,
        window=window,
        rule=CallRule(**values(given, RULE)),
        policies=InputPolicies(**values(given, POLICIES)),
        logger=LOG,
    )
    print(files.calls / "contigs.tsv")
