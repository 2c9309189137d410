"""All that is drawn of one sample: plots as files, and its map as a picture and as a page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.chunking.index import read_index
from virnucpro.chunking.manifest import read_split
from virnucpro.report.map import (
    COMPONENTS_FOR_UMAP,
    FEWEST_FOR_UMAP,
    ChosenVectors,
    choose_vectors,
    clusters_of,
    principal_components,
    umap_coordinates,
    umap_is_installed,
)
from virnucpro.report.map_page import Layout, MapData, map_page
from virnucpro.report.metadata import read_metadata
from virnucpro.report.read import read_sample
from virnucpro.report.sample_plots import lengths_of, plot_lengths, plot_map, shown_of
from virnucpro.report.style import empty_figure, short, write

SAMPLE_PLOTS = ("lengths", "map")

MOST_POINTS = 50_000
"""Proteins on a map: with 2560 numbers each they take 512 MB, and more could not be told apart anyway."""


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

    Raises:
        UserError: an input is missing or damaged, or an output cannot be written.
    """
    sample = read_sample(report)
    if not sample.chunks:
        for name, paths in outputs.items():
            write(empty_figure(f"{short(sample.name)}: {name}"), paths)
        with atomic_path(page) as temporary:
            temporary.write_text(
                f"<!doctype html><title>no map</title><p>Sample {escape(sample.name)} has no protein.</p>\n"
            )
        return
    write(plot_lengths(sample, lengths_of(index)), outputs["lengths"])
    chosen = choose_vectors(index, chunks, tensors, sample.provenance.layers[-1], most_points)
    components = principal_components(chosen.vectors, COMPONENTS_FOR_UMAP)
    umap = clusters = None
    if not umap_is_installed():
        logger.info("the map shows principal components; with the package umap-learn it shows UMAP and clusters too")
    elif len(chosen.vectors) >= FEWEST_FOR_UMAP:
        umap = umap_coordinates(components.coordinates)
        clusters = clusters_of(umap)
    write(plot_map(sample, components, chosen.lengths, umap=umap, total=chosen.total), outputs["map"])
    records = first_records(index, chunks, chosen)
    shares = [f"{100 * share:.1f} %" for share in components.explained[:2]]
    layouts = {
        "principal components": Layout(
            components.coordinates[:, :2],
            "The two directions in which the embeddings vary most: across "
            f"{shares[0]}, upwards {shares[1]} of the variance.",
        )
    }
    columns: dict[str, NDArray[np.integer | np.floating] | list[str]] = {"length": chosen.lengths}
    if umap is not None and clusters is not None:
        about = (
            f"UMAP of the first {COMPONENTS_FOR_UMAP} principal components, neighbours by Euclidean distance. Close "
            "together means alike; distances between groups mean little. Clusters are dense regions of this layout "
            "(HDBSCAN)."
        )
        layouts = {"UMAP": Layout(umap, about), **layouts}
        columns["cluster"] = [f"cluster {number}" if number else "" for number in clusters.tolist()]
    if metadata is not None:
        columns |= read_metadata(metadata, sample.name, records.ids)
    data = MapData(
        name=sample.name,
        shown=shown_of(len(records.ids), chosen.total),
        warning=sample.provenance.warning,
        layouts=layouts,
        ids=records.ids,
        columns=columns,
        descriptions=records.descriptions,
        repeats=records.repeats,
    )
    with atomic_path(page) as temporary:
        temporary.write_text(map_page(data), encoding="utf-8")


@dataclass(frozen=True)
class Records:
    """Of each of n sequences its first record's id and description, and how many more records have it."""

    ids: list[str]
    descriptions: list[str]
    repeats: list[int]


def first_records(index: Path, chunks: Path, chosen: ChosenVectors) -> Records:
    """The records of the chosen sequences.

    Raises:
        UserError: the index is missing or damaged.
    """
    wanted = chosen.chunk.astype(np.int64) << 32 | chosen.row
    order = np.argsort(wanted)
    ids, descriptions = [""] * len(wanted), [""] * len(wanted)
    counts = np.zeros(len(wanted), np.int64)
    for rows in read_index(index, chunks=read_split(chunks).of_index(index).chunks):
        keys = rows.chunk.astype(np.int64) << 32 | rows.row
        places = np.minimum(np.searchsorted(wanted[order], keys), len(wanted) - 1)
        here = np.flatnonzero(wanted[order[places]] == keys)
        for record, point in zip(here.tolist(), order[places[here]].tolist(), strict=True):
            if not counts[point]:
                ids[point], descriptions[point] = rows.ids[record], rows.descriptions[record]
            counts[point] += 1
    return Records(ids, descriptions, (counts - 1).tolist())
