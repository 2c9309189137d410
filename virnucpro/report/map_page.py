"""The map as one self-contained page: points by WebGL, hover, search, colours; it opens from disk, without network.

The library that draws, regl-scatterplot (MIT, https://github.com/flekschas/regl-scatterplot), and the two that it needs
are in the folder ``vendor`` as they are published on the npm registry, versions in the files' names.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
