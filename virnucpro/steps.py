"""The workflow's steps as commands, one after the other by hand: each calls what the rule's script calls.

A sample's folder holds what the workflow puts there, under the same names.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from dataclasses import replace

from virnucpro.base.call_settings import DEMO_CLASSIFIER
from virnucpro.base.digest import FileDigests, write_products
from virnucpro.base.settings import (
    SETTINGS,
    EmbeddingSettings,
    InputPolicies,
    LongProteins,
    TableSettings,
    checked,
)
from virnucpro.calling.rule import CallRule
from virnucpro.chunking.size import chunk_sizes
from virnucpro.cuda.visible import has_gpu
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
from virnucpro.storage.chunk_metadata import identity
from virnucpro.storage.request import WeightsRequest
from virnucpro.storage.sample_files import PoolFiles, SampleFiles
from virnucpro.storage.state import DIGESTS, sha256_by_sample, summary_origin, table_settings, translation_origin
from virnucpro.weights.manifest import read_manifest

LOG = logging.getLogger("virnucpro")


def add_steps(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add a subcommand for each step."""
    prepare = commands.add_parser("prepare", help="step: put a model's weights into a folder")
    prepare.add_argument("-o", "--output", type=path, required=True, metavar="FOLDER", help="where weights are kept")
    add_options(prepare, ["model", "adapter"])
    prepare.set_defaults(run=_prepare)

    translate = commands.add_parser("translate", help="step: cut contigs into windows and translate them")
    add_files(translate, "nucleotide FASTA")
    add_options(translate, ["nucleotide.window", *POLICIES])
    translate.set_defaults(run=_translate)

    split = commands.add_parser("split", help="step: cut a sample's proteins into chunks")
    add_files(split, "protein FASTA")
    add_options(split, ["model", "layers", "pooling", "chunk_residues", *LONG_PROTEINS, *POLICIES])
    split.set_defaults(run=_split)

    embed_chunk = commands.add_parser("embed-chunk", help="step: embed one chunk of a split sample")
    _takes_sample(embed_chunk)
    embed_chunk.add_argument("chunk", help="its name, such as chunk_00000")
    embed_chunk.add_argument("--devices", nargs="+", metavar="DEVICE", help="cpu, cuda:0, ... (default: all GPUs)")
    add_options(embed_chunk, [*EMBEDDING, DTYPE])
    embed_chunk.set_defaults(run=_embed_chunk)

    merge = commands.add_parser("merge", help="step: verify a sample's embedded chunks and write its tables")
    _takes_sample(merge)
    add_options(merge, [*EMBEDDING, *TABLES])
    merge.set_defaults(run=_merge)

    summarise = commands.add_parser("summarise", help="step: sum up merged samples")
    summarise.add_argument("samples", nargs="+", type=path, metavar="FOLDER", help="folders of merged samples")
    summarise.add_argument("-o", "--output", type=path, required=True, metavar="FOLDER", help="where summaries go")
    summarise.set_defaults(run=_summarise)

    drawn = commands.add_parser("map", help="step: draw a merged sample, with a map to look into; list neighbours")
    drawn.add_argument("folder", type=path, metavar="FOLDER", help="the sample's folder")
    drawn.add_argument("--metadata", type=path, metavar="TABLE", help=SETTINGS["metadata"].about)
    drawn.add_argument("--neighbours", type=int, default=0, metavar="K", help="how many of each protein; default: none")
    drawn.set_defaults(run=_map)

    classify = commands.add_parser(
        "classify", help="call contigs viral or not, from features in VirNucPro's files and its classifier"
    )
    add_files(classify, "nucleotide FASTA")
    classify.add_argument(
        "--features", nargs="+", type=path, required=True, metavar="PATH", help="output_*.pt files, or folders of them"
    )
    classify.add_argument(
        "--classifier", type=path, required=True, help="VirNucPro's 500_model.pth or 300_model.pth, or classifier_demo"
    )
    add_options(classify, ["nucleotide.window", *RULE, *POLICIES])
    classify.set_defaults(run=_classify)


def _takes_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="FOLDER", help="the sample's folder")
    parser.add_argument("--weights", type=path, required=True, help="the file that virnucpro prepare has written")


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
    from virnucpro.chunking.split import split_proteins

    sample, pool = SampleFiles(given.output), PoolFiles(given.output)
    model = ModelRef.of(given.model)
    wanted = values(given, ["layers", "pooling", "chunk_residues"])
    width = planning_architecture(model).embed_dim
    layers = len(model.resolve(wanted["layers"]))
    size = chunk_sizes(
        wanted["chunk_residues"],
        parameters=planning_parameters(model),
        embed_dim=width,
        layers=layers,
        pooling=wanted["pooling"],
    )["gpu" if has_gpu() else "cpu"]
    split_proteins(
        given.fasta,
        sample.index,
        pool.chunks,
        chunk_residues=size.residues,
        multiple_of=size.multiple_of,
        embed_dim=width,
        long_proteins=LongProteins(**values(given, LONG_PROTEINS)),
        policies=InputPolicies(**values(given, POLICIES)),
        logger=LOG,
    )
    print(pool.chunks)


def _embed_chunk(given: argparse.Namespace) -> None:
    from virnucpro.engine.job import embed_chunk

    pool = PoolFiles(given.folder)
    chunk, output = pool.chunks / given.chunk, pool.chunk_file(given.chunk)
    fasta, manifest = chunk.with_suffix(".fasta"), chunk.with_suffix(".json")
    embed_chunk(fasta, manifest, given.weights, output, _embedding(given), devices=given.devices, logger=LOG)
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
    from virnucpro.calling.classify import classify
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
    from virnucpro.report.sample import SAMPLE_PLOTS, plot_sample

    files = SampleFiles(given.folder)
    count = checked("neighbours", given.neighbours)
    pool = PoolFiles(given.folder)
    folders = (files.index, pool.chunks, pool.tensors)
    plots = files.plots.parent
    pictures = {name: [plots / f"{name}.{kind}" for kind in ("svg", "png")] for name in SAMPLE_PLOTS}
    page = plots / "map.html"
    plot_sample(files.report, *folders, pictures, page, metadata=given.metadata, logger=LOG)
    print(page)
    if count:
        table = files.folder / "neighbours.tsv"
        find_neighbours(files.report, *folders, table, count, logger=LOG)
        print(table)


def _summarise(given: argparse.Namespace) -> None:
    from virnucpro.report.front import write_front_page
    from virnucpro.report.run_plots import RUN_PLOTS, plot_run
    from virnucpro.report.summary import summarise

    reports = [SampleFiles(folder).report for folder in given.samples]
    folder = given.output
    table, text, page = (folder / f"summary.{kind}" for kind in ("tsv", "txt", "html"))
    chunks = folder / "chunks.tsv"
    plots = {name: [folder / "plots" / f"{name}.{kind}" for kind in ("svg", "png")] for name in RUN_PLOTS}
    summarise(reports, table, text, chunks=chunks, logger=LOG)
    write_front_page(page, reports)
    plot_run(reports, plots)
    origin = summary_origin(sha256_by_sample(reports))
    written = [table, chunks, page, text, *(file for files in plots.values() for file in files)]
    write_products(folder / "summary.json", origin, written)
    print(text.read_text(encoding="utf-8"))
