"""All that is drawn of samples: plots of each as files, and maps as pictures and as pages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.chunking.manifest import SplitRecord, read_split
from virnucpro.report.map import choose_vectors
from virnucpro.report.map_data import MOST_POINTS, Part, first_records, lay_out, map_data
from virnucpro.report.map_page import map_page
from virnucpro.report.read import read_sample
from virnucpro.report.sample_plots import lengths_of, plot_lengths, plot_map
from virnucpro.report.style import empty_figure, short, write
from virnucpro.storage.sample_files import SampleFiles

SAMPLE_PLOTS = ("lengths", "map")

NOTHING = """<!doctype html>
<meta charset="utf-8">
<title>no map</title>
<p>There is no protein to be shown.</p>
"""


def plot_sample(
    report: Path,
    index: Path,
    chunks: Path,
    tensors: Path,
    outputs: Mapping[str, Sequence[Path]],
    page: Path,
    *,
    metadata: Path | None = None,
    most_points: int = MOST_POINTS,
    split: SplitRecord | None = None,
    logger: logging.Logger,
) -> None:
    """Draw one sample.

    Args:
        report, index: its ``embeddings.json`` and its index.
        chunks, tensors: the folders of chunks and of chunk files.
        outputs: for each name of :data:`SAMPLE_PLOTS` the files to write (.svg, .png).
        page: the interactive map to write.
        metadata: a table by whose columns its points can be coloured (:func:`read_metadata`).
        most_points: bound on the proteins of the map.
        split: the record of the split, where it was read already.

    Raises:
        UserError: an input is missing or damaged, or an output cannot be written.
    """
    sample = read_sample(report)
    if not sample.chunks:
        for name, paths in outputs.items():
            write(empty_figure(f"{short(sample.name)}: {name}"), paths)
        _write_page(page, NOTHING)
        return
    write(plot_lengths(sample, lengths_of(index)), outputs["lengths"])
    chosen = choose_vectors(index, chunks, tensors, sample.provenance.layers[-1], most_points, split)
    places = lay_out(chosen.vectors, logger)
    write(plot_map(sample, places.components, chosen.lengths, umap=places.umap, total=chosen.total), outputs["map"])
    part = Part(sample, chosen, first_records(index, chosen))
    _write_page(page, map_page(map_data(sample.name, [part], places, metadata)))


def map_samples(
    reports: Sequence[Path],
    chunks: Path,
    tensors: Path,
    page: Path,
    *,
    metadata: Path | None = None,
    most_points: int = MOST_POINTS,
    logger: logging.Logger,
) -> None:
    """Write one map of the proteins of all samples; each has its share of the points.

    Args:
        reports: the ``embeddings.json`` of each sample, which lies in its folder.
        chunks, tensors: the folders of chunks and of chunk files.
        page: the interactive map to write.
        metadata, most_points: as for :func:`plot_sample`.

    Raises:
        UserError: an input is missing or damaged, the samples' vectors are not of one kind, or the page cannot be
            written.
    """
    samples = [sample for sample in map(read_sample, reports) if sample.chunks]
    if not samples:
        _write_page(page, NOTHING)
        return
    if len({(each.provenance.embed_dim, each.provenance.layers, each.provenance.pooling) for each in samples}) > 1:
        raise UserError("samples of different models, layers or poolings have no common map: embed them alike")
    total = sum(sample.counts["unique"] for sample in samples)
    parts, split = [], read_split(chunks)
    for sample in samples:
        index = SampleFiles(sample.folder).index
        share = max(1, min(most_points, total) * sample.counts["unique"] // total)
        chosen = choose_vectors(index, chunks, tensors, sample.provenance.layers[-1], share, split)
        parts.append(Part(sample, chosen, first_records(index, chosen)))
    places = lay_out(np.concatenate([part.chosen.vectors for part in parts]), logger)
    _write_page(page, map_page(map_data(f"{len(samples)} samples", parts, places, metadata)))


def _write_page(page: Path, text: str) -> None:
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
