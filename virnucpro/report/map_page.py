"""The map as one self-contained page: points by WebGL, hover, search, colours; it opens from disk, without network.

It shows proteins of one sample or several, laid out together, with what is known of each. The library that draws,
regl-scatterplot (MIT, https://github.com/flekschas/regl-scatterplot), and the two that it needs are in the folder
``vendor`` as they are published on the npm registry, versions in the files' names."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.errors import UserError
from virnucpro.report.map import (
    COMPONENTS_FOR_UMAP,
    FEWEST_FOR_UMAP,
    ChosenVectors,
    Components,
    clusters_of,
    principal_components,
    shown_of,
    umap_coordinates,
    umap_is_installed,
)
from virnucpro.report.samples import Sample

STEPS = 65535
"""A coordinate is one of so many steps and 0: finer than any screen."""


@dataclass(frozen=True)
class Layout:
    """Where the points are, float (n, 2), and a sentence on how that was found."""

    coordinates: NDArray[np.floating]
    about: str


@dataclass(frozen=True)
class MapData:
    """What a map shows of n proteins.

    Attributes:
        name: of the sample.
        shown: in words, how many proteins of how many.
        warning: what must be known first, or empty.
        layouts: by their names, the first one is shown first.
        columns: by their names what points are coloured by: numbers (float, NaN where unknown), or texts (empty where
            unknown).
        descriptions: of FASTA headers; empty where there are none.
        repeats: how many other records have the same sequence.
    """

    name: str
    shown: str
    warning: str
    layouts: Mapping[str, Layout]
    ids: Sequence[str]
    columns: Mapping[str, NDArray[np.floating | np.integer] | Sequence[str]]
    descriptions: Sequence[str] = ()
    repeats: Sequence[int] = field(default=())


def map_page(data: MapData) -> str:
    """The page. Equal data give an equal page."""
    own = files("virnucpro.report")
    page = own.joinpath("map_page.html").read_text(encoding="utf-8")
    parts = {
        "@DATA@": base64.b64encode(gzip.compress(json.dumps(_entries(data)).encode(), 6, mtime=0)).decode("ascii"),
        "@LIBRARY@": _library(),
        "@SCRIPT@": own.joinpath("map_page.js").read_text(encoding="utf-8"),
    }
    for place, text in parts.items():
        page = page.replace(place, text, 1)
    return page


def _library() -> str:
    """regl-scatterplot and what it needs, as scripts of a page; the second one comes as a module."""
    vendor = files("virnucpro.report").joinpath("vendor")
    regl, scatter, publish = (
        vendor.joinpath(name).read_text(encoding="utf-8")
        for name in ("regl-2.1.1.min.js", "regl-scatterplot-1.16.0.min.js", "pub-sub-es-3.0.0.js")
    )
    body = publish[: publish.index("export { globalPubSub")]
    return f"{regl}\nglobalThis.createPubSub = (() => {{\n{body}return createPubSub;\n}})();\n{scatter}"


def _entries(data: MapData) -> dict[str, Any]:
    return {
        "name": data.name,
        "shown": data.shown,
        "warning": data.warning,
        "layouts": {name: _layout(layout) for name, layout in data.layouts.items()},
        "ids": list(data.ids),
        "descriptions": list(data.descriptions) if any(data.descriptions) else None,
        "repeats": list(map(int, data.repeats)) if any(data.repeats) else None,
        "columns": [_column(name, values) for name, values in data.columns.items()],
    }


def _layout(layout: Layout) -> dict[str, Any]:
    """Coordinates as steps of a square that holds all of them, in the middle, with equal scales."""
    places = np.asarray(layout.coordinates, np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    size = float((high - low).max()) or 1.0
    steps = np.rint(STEPS * ((places - (low + high) / 2) / size * 0.95 + 0.5)).astype(int)
    return {"x": steps[:, 0].tolist(), "y": steps[:, 1].tolist(), "about": layout.about}


def _column(name: str, values: NDArray[Any] | Sequence[str]) -> dict[str, Any]:
    if isinstance(values, np.ndarray):
        numbers = [None if value != value else value for value in values.tolist()]
        return {"name": name, "kind": "number", "values": numbers}
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    levels = sorted(filter(None, counts), key=lambda level: (-counts[level], level))
    codes = {level: code for code, level in enumerate(levels)}
    return {"name": name, "kind": "category", "levels": levels, "codes": [codes.get(value, -1) for value in values]}


MOST_COLUMNS = 50


def read_metadata(path: Path, sample: str, ids: Sequence[str]) -> dict[str, NDArray[np.float64] | list[str]]:
    """The columns of a table for some proteins of a sample, each in the order of ``ids``.

    Args:
        path: a table with a header, tab-separated, or comma-separated where its name ends in .csv. Its column ``id``
            says which protein a row is of; where it has a column ``sample``, rows of other samples are passed over.

    Returns:
        By the columns' names numbers, NaN where there are none, or texts, empty where there are none. Columns
        without any value here are left out.

    Raises:
        UserError: the table cannot be read, has no column id, or too many.
    """
    places = {name: place for place, name in enumerate(ids)}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="," if path.suffix.lower() == ".csv" else "\t")
            names = [name for name in reader.fieldnames or [] if name and name not in ("id", "sample")]
            if "id" not in (reader.fieldnames or []):
                raise UserError(f"{path}: it has no column id: give its first line the columns' names")
            if len(names) > MOST_COLUMNS:
                raise UserError(f"{path} has {len(names)} columns: leave those in that maps are to be coloured by")
            columns = {name: [""] * len(ids) for name in names}
            for row in reader:
                place = places.get(row["id"] or "")
                if place is None or row.get("sample", sample) not in (sample, "", None):
                    continue
                for name in names:
                    columns[name][place] = (row[name] or "").strip()
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: it cannot be read ({reason}): give a table of UTF-8 text") from None
    return {name: _numbers(values) for name, values in columns.items() if any(values)}


def _numbers(values: list[str]) -> NDArray[np.float64] | list[str]:
    """The values as numbers where all of them are some, else as they are."""
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return values
    return values if np.isinf(numbers).any() else numbers


MOST_POINTS = 50_000
"""Proteins on a map: with 2560 numbers each they take 512 MB, and more could not be told apart anyway."""


Part = tuple[Sample, ChosenVectors]
"""A sample, and those of its proteins that a map shows."""


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
        "length": np.concatenate([chosen.lengths for _, chosen in parts])
    }
    if len(parts) > 1:
        columns["sample"] = [sample.name for sample, chosen in parts for _ in chosen.ids]
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
    warnings = dict.fromkeys(sample.provenance.warning for sample, _ in parts)
    return MapData(
        name=name,
        shown=shown_of(sum(len(chosen.ids) for _, chosen in parts), sum(chosen.total for _, chosen in parts)),
        warning="; ".join(filter(None, warnings)),
        layouts=layouts,
        ids=[each for _, chosen in parts for each in chosen.ids],
        columns=columns,
        descriptions=[each for _, chosen in parts for each in chosen.descriptions],
        repeats=[each for _, chosen in parts for each in chosen.repeats],
    )


def _known(metadata: Path, parts: Sequence[Part]) -> dict[str, NDArray[np.integer | np.floating] | list[str]]:
    """The columns of a table for all parts: numbers where they are numbers in every part that has any."""
    found = [read_metadata(metadata, sample.name, chosen.ids) for sample, chosen in parts]
    columns: dict[str, NDArray[np.integer | np.floating] | list[str]] = {}
    for name in dict.fromkeys(name for each in found for name in each):
        own = [each.get(name) for each in found]
        sizes = [len(chosen.ids) for _, chosen in parts]
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
