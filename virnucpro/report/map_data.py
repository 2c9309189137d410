"""What a map shows: proteins of one sample or several, laid out together, with what is known of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.chunking.index import read_index
from virnucpro.report.map import (
    COMPONENTS_FOR_UMAP,
    FEWEST_FOR_UMAP,
    ChosenVectors,
    Components,
    clusters_of,
    principal_components,
    umap_coordinates,
    umap_is_installed,
)
from virnucpro.report.map_page import Layout, MapData
from virnucpro.report.metadata import read_metadata
from virnucpro.report.read import Sample
from virnucpro.report.sample_plots import shown_of

MOST_POINTS = 50_000
"""Proteins on a map: with 2560 numbers each they take 512 MB, and more could not be told apart anyway."""


@dataclass(frozen=True)
class Records:
    """Of each of n sequences its first record's id and description, and how many more records have it."""

    ids: list[str]
    descriptions: list[str]
    repeats: list[int]


def first_records(index: Path, chosen: ChosenVectors) -> Records:
    """The records of the chosen sequences.

    Raises:
        UserError: the index is missing or damaged.
    """
    wanted = chosen.chunk.astype(np.int64) << 32 | chosen.row
    order = np.argsort(wanted)
    ids, descriptions = [""] * len(wanted), [""] * len(wanted)
    counts = np.zeros(len(wanted), np.int64)
    for rows in read_index(index, chunks=chosen.chunks):
        keys = rows.chunk.astype(np.int64) << 32 | rows.row
        places = np.minimum(np.searchsorted(wanted[order], keys), len(wanted) - 1)
        here = np.flatnonzero(wanted[order[places]] == keys)
        for record, point in zip(here.tolist(), order[places[here]].tolist(), strict=True):
            if not counts[point]:
                ids[point], descriptions[point] = rows.ids[record], rows.descriptions[record]
            counts[point] += 1
    return Records(ids, descriptions, (counts - 1).tolist())


@dataclass(frozen=True)
class Part:
    """The proteins of one sample that a map shows."""

    sample: Sample
    chosen: ChosenVectors
    records: Records


@dataclass(frozen=True)
class Places:
    """Where n proteins are: by their components, and by UMAP (n, 2) with a cluster each (n,), where there is one."""

    components: Components
    umap: NDArray[np.float64] | None
    clusters: NDArray[np.int64] | None


def lay_out(vectors: NDArray[np.float32], logger: logging.Logger) -> Places:
    """Lay out vectors, (n, D): principal components, and UMAP where it is installed and they are many enough."""
    components = principal_components(vectors, COMPONENTS_FOR_UMAP)
    umap = clusters = None
    if not umap_is_installed():
        logger.info("the map shows principal components; with the package umap-learn it shows UMAP and clusters too")
    elif len(vectors) >= FEWEST_FOR_UMAP:
        umap = umap_coordinates(components.coordinates)
        clusters = clusters_of(umap)
    return Places(components, umap, clusters)


def map_data(name: str, parts: Sequence[Part], places: Places, metadata: Path | None) -> MapData:
    """What the page of a map needs.

    Args:
        name: of the map.
        parts: the samples whose proteins it shows, one after the other in ``places``.
        metadata: a table by whose columns points can be coloured (:func:`read_metadata`).
    """
    shares = [f"{100 * share:.1f} %" for share in places.components.explained[:2]]
    layouts = {
        "principal components": Layout(
            places.components.coordinates[:, :2],
            "The two directions in which the embeddings vary most: across "
            f"{shares[0]}, upwards {shares[1]} of the variance.",
        )
    }
    columns: dict[str, NDArray[np.integer | np.floating] | list[str]] = {
        "length": np.concatenate([part.chosen.lengths for part in parts])
    }
    if len(parts) > 1:
        columns["sample"] = [part.sample.name for part in parts for _ in part.records.ids]
    if places.umap is not None and places.clusters is not None:
        about = (
            f"UMAP of the first {COMPONENTS_FOR_UMAP} principal components, neighbours by Euclidean distance. Close "
            "together means alike; distances between groups mean little. Clusters are dense regions of this layout "
            "(HDBSCAN)."
        )
        layouts = {"UMAP": Layout(places.umap, about), **layouts}
        columns["cluster"] = [f"cluster {number}" if number else "" for number in places.clusters.tolist()]
    if metadata is not None:
        columns |= _known(metadata, parts)
    warnings = dict.fromkeys(part.sample.provenance.warning for part in parts)
    return MapData(
        name=name,
        shown=shown_of(sum(len(part.records.ids) for part in parts), sum(part.chosen.total for part in parts)),
        warning="; ".join(filter(None, warnings)),
        layouts=layouts,
        ids=[each for part in parts for each in part.records.ids],
        columns=columns,
        descriptions=[each for part in parts for each in part.records.descriptions],
        repeats=[each for part in parts for each in part.records.repeats],
    )


def _known(metadata: Path, parts: Sequence[Part]) -> dict[str, NDArray[np.integer | np.floating] | list[str]]:
    """The columns of a table for all parts: numbers where they are numbers in every part that has any."""
    found = [read_metadata(metadata, part.sample.name, part.records.ids) for part in parts]
    columns: dict[str, NDArray[np.integer | np.floating] | list[str]] = {}
    for name in dict.fromkeys(name for each in found for name in each):
        own = [each.get(name) for each in found]
        sizes = [len(part.records.ids) for part in parts]
        if any(isinstance(values, list) for values in own):
            columns[name] = [text for values, size in zip(own, sizes, strict=True) for text in _texts(values, size)]
        else:
            numbers = [
                np.full(size, np.nan) if values is None else np.asarray(values, np.float64)
                for values, size in zip(own, sizes, strict=True)
            ]
            columns[name] = np.concatenate(numbers)
    return columns


def _texts(values: NDArray[np.float64] | list[str] | None, size: int) -> list[str]:
    if values is None:
        return [""] * size
    return values if isinstance(values, list) else ["" if value != value else f"{value:g}" for value in values.tolist()]
