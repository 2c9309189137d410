"""All that is drawn of samples: plots of their lengths and of their embeddings as files, and maps as pages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.chunking.index import read_index
from virnucpro.chunking.manifest import SplitRecord, read_split
from virnucpro.report.map import ChosenVectors, choose_vectors, shown_of
from virnucpro.report.map_page import MOST_POINTS, Places, lay_out, map_data, map_page
from virnucpro.report.samples import Sample, read_sample
from virnucpro.report.style import (
    COLOURS,
    LARGE,
    MANY_POINTS,
    QUIET,
    empty_figure,
    house_style,
    new_figure,
    short,
    write,
)
from virnucpro.storage.sample_files import PoolFiles, SampleFiles

NOTHING = """<!doctype html>
<meta charset="utf-8">
<title>no map</title>
<p>There is no protein to be shown.</p>
"""


def plot_sample(
    report: Path,
    pool: PoolFiles,
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
        report: its ``embeddings.json``, beside which its index is.
        pool: the chunks that it was merged from.
        outputs: for each name of :data:`virnucpro.report.SAMPLE_PLOTS` the files to write (.svg, .png).
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
    write(plot_lengths(sample, lengths_of(SampleFiles(sample.folder).index)), outputs["lengths"])
    chosen = choose_vectors(sample, pool, most_points, split)
    places = lay_out(chosen.vectors, logger)
    write(plot_map(sample, chosen, places), outputs["map"])
    _write_page(page, map_page(map_data(sample.name, [(sample, chosen)], places, metadata)))


def map_samples(
    reports: Sequence[Path],
    pool: PoolFiles,
    page: Path,
    *,
    metadata: Path | None = None,
    logger: logging.Logger,
) -> None:
    """Write one map of the proteins of all samples; each has its share of the points.

    Args:
        reports: the ``embeddings.json`` of each sample, which lies in its folder.
        pool: the chunks that they were merged from.
        page: the interactive map to write.
        metadata: as for :func:`plot_sample`.

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
    parts, split = [], read_split(pool.chunks)
    for sample in samples:
        share = max(1, min(MOST_POINTS, total) * sample.counts["unique"] // total)
        parts.append((sample, choose_vectors(sample, pool, share, split)))
    places = lay_out(np.concatenate([chosen.vectors for _, chosen in parts]), logger)
    _write_page(page, map_page(map_data(f"{len(samples)} samples", parts, places, metadata)))


def _write_page(page: Path, text: str) -> None:
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Lengths:
    """How many proteins have each length: ``all`` and ``unique`` are int64 (longest + 1,), by residues."""

    all: NDArray[np.int64]
    unique: NDArray[np.int64]


def lengths_of(index: Path) -> Lengths:
    """Count the lengths in an index, all records' and those of different sequences.

    Raises:
        UserError: the index is missing or damaged.
    """
    lengths, keys = [], []
    for rows in read_index(index):
        lengths.append(rows.length)
        keys.append(rows.keys)
    length = np.concatenate(lengths)
    _, first = np.unique(np.concatenate(keys), return_index=True)
    size = int(length.max()) + 1
    return Lengths(np.bincount(length, minlength=size), np.bincount(length[first], minlength=size))


def length_bins(longest: int) -> NDArray[np.float64]:
    """Edges of some 40 bins of equal width on a logarithmic axis, from 1 to over ``longest`` residues.

    Edges lie between whole numbers, and none is so narrow that no length falls into it.
    """
    edges = np.geomspace(1, max(longest, 10) + 1, 41)
    return np.unique(np.floor(edges)) - 0.5


def histogram(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Proteins in each bin, (len(edges) - 1,), out of the numbers of each length."""
    bins = np.searchsorted(edges, np.arange(len(counts)), side="right") - 1
    inside = (bins >= 0) & (bins < len(edges) - 1)
    return np.bincount(bins[inside], counts[inside], minlength=len(edges) - 1).astype(np.int64)


LONG_POLICIES = {
    "window": "longer: in overlapping windows",
    "truncate": "longer: truncated",
    "full": "longer than the model was trained on",
}


def plot_lengths(sample: Sample, lengths: Lengths) -> Figure:
    """Histogram of the proteins' lengths; those that repeat a sequence are the lighter part."""
    with house_style():
        figure, (axes,) = new_figure(height=4.5)
        edges = length_bins(len(lengths.all) - 1)
        every, unique = histogram(lengths.all, edges), histogram(lengths.unique, edges)
        width = np.diff(edges)
        axes.bar(edges[:-1], unique, width, align="edge", color=COLOURS[0], label="different sequences")
        if (every > unique).any():
            axes.bar(edges[:-1], every - unique, width, unique, align="edge", color=COLOURS[1], label="their repeats")
        axes.set_xscale("log")
        axes.set_xlim(max(0.5, edges[np.flatnonzero(every)[0]] / 1.3), edges[-1] * 1.05)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(LARGE)
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(LARGE)
        if len(lengths.all) - 1 > sample.provenance.long_proteins.longest:
            axes.axvline(
                sample.provenance.long_proteins.longest + 0.5,
                color=QUIET,
                linestyle="--",
                linewidth=1.5,
                label=_limit(sample),
            )
        axes.set(
            xlabel="length (residues, logarithmic)", ylabel="proteins", title=f"{short(sample.name)}: protein lengths"
        )
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda index: labels[index] == _limit(sample))
        axes.legend([handles[index] for index in order], [labels[index] for index in order], loc="upper left")
        axes.set_ylim(top=every.max() * 1.35)
        return figure


def _limit(sample: Sample) -> str:
    return (
        f"{sample.provenance.long_proteins.longest:,} residues; {LONG_POLICIES[sample.provenance.long_proteins.policy]}"
    )


def plot_map(sample: Sample, chosen: ChosenVectors, places: Places) -> Figure:
    """Embeddings as points, coloured by length: principal components, and below them UMAP where there is one."""
    components, umap, lengths = places.components, places.umap, chosen.lengths
    with house_style():
        figure, panels = new_figure(1 if umap is None else 2, height=5.2 if umap is None else 10)
        norm = LogNorm(max(1, int(lengths.min())), max(2, int(lengths.max()), int(lengths.min()) + 1))
        part = shown_of(len(lengths), chosen.total)
        warning = "\nrandom weights: no biological meaning" if sample.provenance.warning else ""
        named = [f"component {i + 1} ({100 * components.explained[i]:.1f} % of variance)" for i in range(2)]
        _points(panels[0], components.coordinates[:, :2], lengths, norm)
        panels[0].set(xlabel=f"principal {named[0]}", ylabel=f"principal {named[1]}")
        panels[0].set_title(
            f"{short(sample.name)}: embeddings of layer {sample.provenance.layers[-1]}\n{part}{warning}"
        )
        if umap is not None:
            _points(panels[1], umap, lengths, norm)
            panels[1].set(xlabel="UMAP 1", ylabel="UMAP 2", title="The same proteins by UMAP")
        return figure


def _points(axes: Axes, points_at: NDArray[np.float64], lengths: NDArray[np.integer], norm: LogNorm) -> None:
    n = len(points_at)
    points = axes.scatter(
        points_at[:, 0],
        points_at[:, 1],
        c=lengths,
        norm=norm,
        cmap="viridis_r",
        s=float(np.clip(4e4 / max(n, 1), 3, 45)),
        alpha=0.9 if n < MANY_POINTS else 0.6,
        linewidths=0.4 if n < MANY_POINTS else 0,
        edgecolors="#333333",
        rasterized=n > MANY_POINTS,
    )
    bar = axes.figure.colorbar(points, ax=axes, label="length (residues)", pad=0.02)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(LARGE)
    bar.ax.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
