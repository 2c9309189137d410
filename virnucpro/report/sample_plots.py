"""Plots of one sample: the lengths of its proteins, and a map of their embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from virnucpro.chunking.index import read_index
from virnucpro.report.map import Components
from virnucpro.report.read import Sample
from virnucpro.report.style import (
    COLOURS,
    LARGE,
    QUIET,
    house_style,
    new_figure,
    short,
)


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
    lengths, rows_of = [], []
    for rows in read_index(index):
        lengths.append(rows.length)
        rows_of.append(rows.chunk.astype(np.int64) << 32 | rows.row)
    length = np.concatenate(lengths)
    _, first = np.unique(np.concatenate(rows_of), return_index=True)
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


MANY_POINTS = 2000
"""More points than this are drawn as an image inside of an SVG, which else would be slow to open."""


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


def shown_of(shown: int, total: int) -> str:
    """``50,000 of 812,345 different proteins``."""
    return f"{shown:,} of {total:,} different proteins" if shown < total else f"{shown:,} different proteins"


def plot_map(
    sample: Sample,
    components: Components,
    lengths: NDArray[np.integer],
    *,
    umap: NDArray[np.float64] | None = None,
    total: int,
) -> Figure:
    """Embeddings as points, coloured by length: principal components, and below them UMAP where there is one.

    Args:
        lengths: residues of the proteins shown, (n,).
        umap: their UMAP coordinates, (n, 2).
        total: how many different proteins the sample has.
    """
    with house_style():
        figure, panels = new_figure(1 if umap is None else 2, height=5.2 if umap is None else 10)
        norm = LogNorm(max(1, int(lengths.min())), max(2, int(lengths.max()), int(lengths.min()) + 1))
        part = shown_of(len(lengths), total)
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
