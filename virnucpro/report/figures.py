"""Write the plots of a sample and of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from virnucpro.report.map import draw_rows, principal_components, umap_coordinates, umap_is_installed
from virnucpro.report.read import Sample, read_sample
from virnucpro.report.run_plots import plot_duplicates, plot_packing, plot_provenance, plot_throughput
from virnucpro.report.sample_plots import lengths_of, plot_lengths, plot_map, plot_treatments
from virnucpro.report.style import empty_figure, short, write

MOST_POINTS = 20_000
"""Proteins on a map: with 2560 numbers each they take 200 MB, and more could not be told apart anyway."""

FEWEST_FOR_UMAP = 10

RUN_PLOTS: dict[str, Callable[[Sequence[Sample]], Figure]] = {
    "throughput": plot_throughput,
    "provenance": plot_provenance,
    "packing": plot_packing,
    "duplicates": plot_duplicates,
}
SAMPLE_PLOTS = ("lengths", "sequences", "map")


def plot_run(reports: Sequence[Path], outputs: Mapping[str, Sequence[Path]]) -> None:
    """Draw the whole run.

    Args:
        reports: ``embeddings.json`` of each sample.
        outputs: for each name of :data:`RUN_PLOTS` the files to write (.svg, .png).

    Raises:
        UserError: a report is missing or damaged, or an output cannot be written.
    """
    samples = [read_sample(path) for path in reports]
    is_empty = not any(sample.chunks for sample in samples)
    for name, paths in outputs.items():
        write(empty_figure(f"The run: {name}") if is_empty else RUN_PLOTS[name](samples), paths)


def plot_sample(
    report: Path,
    index: Path,
    tensors: Sequence[Path],
    outputs: Mapping[str, Sequence[Path]],
    *,
    most_points: int = MOST_POINTS,
    logger: logging.Logger,
) -> None:
    """Draw one sample.

    Args:
        report, index, tensors: its ``embeddings.json``, its index and its chunk files.
        outputs: for each name of :data:`SAMPLE_PLOTS` the files to write (.svg, .png).
        most_points: bound on the proteins of the map.

    Raises:
        UserError: an input is missing or damaged, or an output cannot be written.
    """
    sample = read_sample(report)
    if not sample.chunks:
        for name, paths in outputs.items():
            write(empty_figure(f"{short(sample.name)}: {name}"), paths)
        return
    write(plot_lengths(sample, lengths_of(index)), outputs["lengths"])
    write(plot_treatments(sample), outputs["sequences"])
    rows = draw_rows(tensors, sample.provenance.layers[-1], most_points)
    components = principal_components(rows.vectors)
    umap = None
    if umap_is_installed() and len(rows.vectors) >= FEWEST_FOR_UMAP:
        umap = umap_coordinates(rows.vectors)
    else:
        logger.info("the map shows principal components; with the package umap-learn it shows UMAP too")
    write(plot_map(sample, components, rows.lengths, umap=umap, shown_of=rows.total), outputs["map"])
