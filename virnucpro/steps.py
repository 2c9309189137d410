"""The workflow's steps as commands, one after the other by hand: each calls what the rule's script calls.

A sample's folder holds what the workflow puts there, under the same names.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace

from virnucpro.base.atomic import scratch_directory
from virnucpro.base.digest import FileDigests, recorded, write_products
from virnucpro.base.settings import (
    DEMO_CLASSIFIER,
    SETTINGS,
    EmbeddingSettings,
    InputPolicies,
    LongProteins,
    TableSettings,
    checked,
    default,
)
from virnucpro.calling.state import CallFiles, CallRule, NucleotideFiles
from virnucpro.chunking.manifest import ONE_SAMPLE, SplitSettings
from virnucpro.chunking.size import BASES, RESIDUES, Letters, chunk_sizes
from virnucpro.cuda.visible import has_gpu
from virnucpro.engine.processes import device_processes, ordinals_of
from virnucpro.models.reference import ModelRef, planning_architecture, planning_parameters
from virnucpro.options import (
    DTYPE,
    EMBEDDING,
    LONG_PROTEINS,
    POLICIES,
    RULE,
    TABLES,
    add_files,
    add_options,
    embedding_settings,
    path,
    values,
)
from virnucpro.report import RUN_PLOTS, SAMPLE_PLOTS
from virnucpro.storage.chunk_metadata import identity
from virnucpro.storage.sample_files import PoolFiles, SampleFiles
from virnucpro.storage.state import DIGESTS, sha256_by_sample, summary_origin, table_settings, translation_origin
from virnucpro.weights.manifest import WeightsRequest, read_manifest

LOG = logging.getLogger("virnucpro")

WEIGHTS = "the file that virnucpro prepare has written"


def add_steps(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add a subcommand for each step."""

    def step(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=about)
        parser.set_defaults(run=run)
        return parser

    prepare = step("prepare", _prepare, "step: put a model's weights into a folder")
    prepare.add_argument("-o", "--output", type=path, required=True, metavar="FOLDER", help="where weights are kept")
    add_options(prepare, ["model", "adapter"])

    translate = step("translate", _translate, "step: cut contigs into windows and translate them")
    add_files(translate, "nucleotide FASTA")
    add_options(translate, ["nucleotide.window", *POLICIES])

    split = step("split", _split, "step: cut a sample's proteins into chunks")
    add_files(split, "protein FASTA")
    add_options(split, ["model", "layers", "pooling", "chunk_residues", *LONG_PROTEINS, *POLICIES])

    embed_chunk = step("embed-chunk", _embed_chunk, "step: embed one chunk of a split sample")
    _takes_chunk(embed_chunk)
    add_options(embed_chunk, [*EMBEDDING, DTYPE])

    merge = step("merge", _merge, "step: verify a sample's embedded chunks and write its tables")
    _takes_sample(merge)
    add_options(merge, [*EMBEDDING, *TABLES])

    summarise = step("summarise", _summarise, "step: sum up merged samples")
    summarise.add_argument("samples", nargs="+", type=path, metavar="FOLDER", help="folders of merged samples")
    summarise.add_argument("-o", "--output", type=path, required=True, metavar="FOLDER", help="where summaries go")

    drawn = step("map", _map, "step: draw a merged sample, with a map to look into; list neighbours")
    _takes_folder(drawn)
    drawn.add_argument("--metadata", type=path, metavar="TABLE", help=SETTINGS["metadata"].about)
    drawn.add_argument("--neighbours", type=int, default=0, metavar="K", help="how many of each protein; default: none")

    classify = step(
        "classify", _classify, "call contigs viral or not, from features in VirNucPro's files and its classifier"
    )
    add_files(classify, "nucleotide FASTA")
    classify.add_argument(
        "--features", nargs="+", type=path, required=True, metavar="PATH", help="output_*.pt files, or folders of them"
    )
    classify.add_argument(
        "--classifier", type=path, required=True, help="VirNucPro's 500_model.pth or 300_model.pth, or classifier_demo"
    )
    add_options(classify, ["nucleotide.window", *RULE, *POLICIES])

    split = step("split-nucleotides", _split_nucleotides, "step: cut the nucleotides of translated frames into chunks")
    _takes_folder(split)
    add_options(split, ["classify.nucleotide_model", "classify.chunk_bases", *POLICIES])

    embed_chunk = step("embed-nucleotides", _embed_nucleotides, "step: embed one chunk of nucleotides")
    _takes_chunk(embed_chunk, "DNABERT-S's, from virnucpro prepare")
    add_options(embed_chunk, ["precision"])

    score = step("score", _score, "step: join a sample's two kinds of vectors and score its frames")
    _takes_sample(score, "ESM-2's, from virnucpro prepare")
    score.add_argument("--nucleotide-weights", type=path, required=True, help="DNABERT-S's, likewise")
    score.add_argument("--classifier", type=path, required=True, help=f"500_model.pth, ..., or {DEMO_CLASSIFIER}")
    add_options(score, ["nucleotide.window", *EMBEDDING])

    call = step("call", _call, "step: call a sample's contigs from the scores of their frames")
    add_files(call, "the contigs")
    add_options(call, ["nucleotide.window", *RULE, *POLICIES])


def _takes_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="FOLDER", help="the sample's folder")


def _takes_sample(parser: argparse.ArgumentParser, weights: str = WEIGHTS) -> None:
    _takes_folder(parser)
    parser.add_argument("--weights", type=path, required=True, help=weights)


def _takes_chunk(parser: argparse.ArgumentParser, weights: str = WEIGHTS) -> None:
    _takes_sample(parser, weights)
    parser.add_argument("chunk", help="its name, such as chunk_00000")
    parser.add_argument("--devices", nargs="+", metavar="DEVICE", help="cpu, cuda:0, ... (default: all GPUs)")


def _embedding(given: argparse.Namespace) -> EmbeddingSettings:
    (dtype,) = values(given, [DTYPE]).values()
    return replace(embedding_settings(given), residue_dtype=dtype)


# The imports stand in the functions because torch and pyarrow take seconds to load.


def _prepare(given: argparse.Namespace) -> None:
    from virnucpro.weights.prepare import prepare_weights

    model = ModelRef.of(given.model, given.adapter)
    wanted = WeightsRequest.of(model, given.output, FileDigests(given.output / DIGESTS))
    prepare_weights(model, wanted.file, digests=wanted.digests, log=LOG.info)
    print(wanted.file)


def _translate(given: argparse.Namespace) -> None:
    from virnucpro.sequences.translation import translate_contigs

    (window,) = values(given, ["nucleotide.window"]).values()
    policies = InputPolicies(**values(given, POLICIES))
    sample = SampleFiles(given.output)
    outputs = [given.output / name for name in ("translated.faa", "translated.fna", "skipped_contigs.tsv")]
    counts = translate_contigs(given.fasta, *outputs, window=window, policies=policies, logger=LOG)
    write_products(sample.translation, translation_origin(counts.inputs, window, policies), outputs)
    print(outputs[0])


def _split(given: argparse.Namespace) -> None:
    from virnucpro.chunking.split import ToSplit, split_samples

    files, pool = SampleFiles(given.output), PoolFiles(given.output)
    wanted = values(given, ["layers", "pooling", "chunk_residues"])
    long_proteins = LongProteins(**values(given, LONG_PROTEINS))
    embedding = EmbeddingSettings(wanted["layers"], wanted["pooling"], long_proteins=long_proteins)
    settings = _split_settings(given, ModelRef.of(given.model), wanted["chunk_residues"], embedding)
    sample = ToSplit(given.fasta, files.index, files.skipped)
    split_samples({ONE_SAMPLE: sample}, pool.chunks, settings, logger=LOG)
    print(pool.chunks)


def _split_settings(
    given: argparse.Namespace,
    model: ModelRef,
    wanted: int | str,
    embedding: EmbeddingSettings,
    letters: Letters = RESIDUES,
) -> SplitSettings:
    """How a sample is cut: into chunks of the size that is ``wanted``, or that suits the devices that are here."""
    width = planning_architecture(model, "dnabert_s" if letters is BASES else default("model")).embed_dim
    sizes = chunk_sizes(
        wanted,
        parameters=planning_parameters(model),
        embed_dim=width,
        layers=len(model.resolve(embedding.layers)),
        pooling=embedding.pooling,
        letters=letters,
    )
    size = sizes["gpu" if has_gpu() else "cpu"]
    return SplitSettings(*size, width, embedding.long_proteins, InputPolicies(**values(given, POLICIES)))


def _embed_chunk(given: argparse.Namespace) -> None:
    _embed(given, PoolFiles(given.folder), _embedding(given))


def _embed(given: argparse.Namespace, pool: PoolFiles, settings: EmbeddingSettings) -> None:
    output = pool.chunk_file(given.chunk)
    paths = pool.chunks / f"{given.chunk}.fasta", given.weights, output
    with device_processes(ordinals_of(given.devices)) as processes:
        from virnucpro.engine.job import embed_chunk

        embed_chunk(*paths, settings, devices=given.devices, processes=processes, logger=LOG)
    print(output)


def _merge(given: argparse.Namespace) -> None:
    from virnucpro.chunking.manifest import read_split
    from virnucpro.storage.merge import merge_embeddings
    from virnucpro.storage.tables import TABLES as FILES

    sample, pool = SampleFiles(given.folder), PoolFiles(given.folder)
    settings, tables = _embedding(given), TableSettings(**values(given, TABLES))
    tables.check(settings.layers, settings.pooling)
    split = read_split(pool.chunks)
    outputs = {name: given.folder / FILES[name].name for name in tables.formats}
    merge_embeddings(
        sample.index,
        pool.chunks,
        pool.tensors,
        outputs,
        sample.report,
        expected=identity(read_manifest(given.weights), settings),
        made_from=table_settings(settings, tables),
        dtype=tables.dtype,
        records_per_file=tables.records_per_file,
        command=f"virnucpro {shlex.join(sys.argv[1:])}",
        split=split,
        logger=LOG,
    )
    print(*outputs.values(), sep="\n")


def _classify(given: argparse.Namespace) -> None:
    from virnucpro.calling.classifier import demo_classifier
    from virnucpro.calling.classifier_file import read_classifier
    from virnucpro.calling.contigs import classify
    from virnucpro.calling.features import Features, feature_files

    (window,) = values(given, ["nucleotide.window"]).values()
    rule = CallRule(**values(given, RULE))
    features = Features(feature_files(given.features))
    if given.classifier.name == DEMO_CLASSIFIER:
        classifier = demo_classifier(features.width)
    else:
        classifier = read_classifier(given.classifier, window)
    policies = InputPolicies(**values(given, POLICIES))
    classify(given.fasta, features, classifier, given.output, window=window, rule=rule, policies=policies, logger=LOG)
    print(given.output / "contigs.tsv")


def _map(given: argparse.Namespace) -> None:
    from virnucpro.report.neighbours import find_neighbours
    from virnucpro.report.sample import plot_sample

    files = SampleFiles(given.folder)
    count = checked("neighbours", given.neighbours)
    pool = PoolFiles(given.folder)
    plots = files.plots.parent
    pictures = {name: [plots / f"{name}.{kind}" for kind in ("svg", "png")] for name in SAMPLE_PLOTS}
    page = plots / "map.html"
    plot_sample(files.report, pool, pictures, page, metadata=given.metadata, logger=LOG)
    print(page)
    if count:
        table = files.folder / "neighbours.tsv"
        find_neighbours(files.report, pool, table, count, logger=LOG)
        print(table)


def _summarise(given: argparse.Namespace) -> None:
    from virnucpro.report.front import write_front_page
    from virnucpro.report.run_plots import plot_run
    from virnucpro.report.summary import summarise

    reports = [SampleFiles(folder).report for folder in given.samples]
    folder = given.output
    table, text, page = (folder / f"summary.{kind}" for kind in ("tsv", "txt", "html"))
    chunks = folder / "chunks.tsv"
    plots = {name: [folder / "plots" / f"{name}.{kind}" for kind in ("svg", "png")] for name in RUN_PLOTS}
    summarise(reports, table, text, chunks, logger=LOG)
    write_front_page(page, reports)
    plot_run(reports, plots)
    origin = summary_origin(sha256_by_sample(reports))
    written = [table, chunks, page, text, *(file for files in plots.values() for file in files)]
    write_products(folder / "summary.json", origin, written)
    print(text.read_text(encoding="utf-8"))


def _whole(precision: str) -> EmbeddingSettings:
    """Of nucleotides, which are embedded whole."""
    return EmbeddingSettings(precision=precision, long_proteins=LongProteins("full"))


def _split_nucleotides(given: argparse.Namespace) -> None:
    from virnucpro.chunking.split import ToSplit, split_samples
    from virnucpro.sequences.translation import FRAME_BASES

    files = NucleotideFiles(given.folder)
    wanted = values(given, ["classify.nucleotide_model", "classify.chunk_bases"])
    model = ModelRef.of(wanted["nucleotide_model"])
    settings = _split_settings(given, model, wanted["chunk_bases"], _whole("auto"), BASES)
    made_as = [recorded(files.translation, files.translated).sha256]
    sample = ToSplit([files.translated], files.index, files.skipped, made_as)
    split_samples({ONE_SAMPLE: sample}, files.pool.chunks, settings, kind=FRAME_BASES, logger=LOG)
    print(files.pool.chunks)


def _embed_nucleotides(given: argparse.Namespace) -> None:
    _embed(given, NucleotideFiles(given.folder).pool, _whole(**values(given, ["precision"])))


def _score(given: argparse.Namespace) -> None:
    from virnucpro.calling.classifier import load_classifier
    from virnucpro.calling.classifier_file import prepare_classifier
    from virnucpro.calling.frames import Embedded, classify_frames

    (window,) = values(given, ["nucleotide.window"]).values()
    settings = embedding_settings(given)

    frames = NucleotideFiles(given.folder)
    files = CallFiles(given.folder)
    source = None if given.classifier.name == DEMO_CLASSIFIER else given.classifier
    with scratch_directory(files.scores) as folder:
        prepared = folder / "classifier.safetensors"
        prepare_classifier(source, given.weights, given.nucleotide_weights, prepared, window, logger=LOG)
        classify_frames(
            Embedded.by(given.weights, settings, files.index, PoolFiles(given.folder)),
            Embedded.by(given.nucleotide_weights, _whole(settings.precision), frames.index, frames.pool),
            load_classifier(prepared),
            files.scores,
            logger=LOG,
        )
    print(files.scores)


def _call(given: argparse.Namespace) -> None:
    from virnucpro.calling.contigs import call_contigs

    files = CallFiles(given.output)
    call_contigs(
        given.fasta,
        files,
        **values(given, ["nucleotide.window"]),
        rule=CallRule(**values(given, RULE)),
        policies=InputPolicies(**values(given, POLICIES)),
        logger=LOG,
    )
    print(files.calls / "contigs.tsv")
