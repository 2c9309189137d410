"""How all plots look, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
"""Told apart with every kind of colour vision (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/); used in order."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Shapes beside the colours, for those who print in grey."""

QUIET = "#767676"
"""Lines and words that are not data; still legible on white (contrast 4.5 : 1)."""

DPI = 150

MANY_POINTS = 2000
"""More points than this are drawn as an image inside of an SVG, which else would be slow to open."""

WIDTH = 7.5
"""Inches; narrow enough that 12-point type can still be read on a phone."""

_SETTINGS: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so plots are the same everywhere
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "svg.fonttype": "path",
    "svg.hashsalt": "virnucpro",
    "text.parse_math": False,  # a sample's name may hold a dollar sign
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with these settings and leave the caller's as they were."""
    with mpl.rc_context(_SETTINGS):
        yield


def large(value: float) -> str:
    """A number on an axis: ``2,500``, ``1.2 million``, ``3 billion``."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{value / size:,.6g} {word}"
    return f"{value:,.6g}"


LARGE = FuncFormatter(lambda value, _: large(value))


def new_figure(
    rows: int = 1, *, height: float = 4.5, ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure :data:`WIDTH` inches wide with ``rows`` axes below one another; it belongs to no window."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    # One part for each axes, so that long names beside one do not narrow the others.
    parts = figure.subfigures(rows, 1, squeeze=False, height_ratios=ratios)
    return figure, [part.subplots() for part in parts[:, 0]]


def empty_figure(title: str, words: str = "no protein") -> Figure:
    """In place of a plot of nothing."""
    with house_style():
        figure, (axes,) = new_figure(height=2.4)
        axes.set_axis_off()
        axes.set_title(title)
        axes.text(0, 0.5, words, color=QUIET, transform=axes.transAxes, va="center")
        return figure


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name."""
    return dict(zip(names, cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))


def short(name: str, most: int = 30) -> str:
    """A name that fits beside a plot: its middle left out when it is too long."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def horizontal_bars(axes: Axes, names: Sequence[str], sizes: Sequence[float], **look: Any) -> Any:
    """A bar for each name, the first one on top; names may repeat."""
    bars = axes.barh(range(len(names)), sizes, height=0.6, **look)
    axes.set_yticks(range(len(names)), [short(name) if "\n" not in name else name for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    return bars


def label_bars(axes: Axes, bars: Any, labels: Sequence[str], longest: float) -> None:
    """Write each horizontal bar's number at its end, and leave room for it beside the ``longest`` one."""
    axes.bar_label(bars, labels, padding=4, fontsize=11)
    # A letter takes about a fiftieth of the axes' width, where the names beside them are long.
    room = (max(map(len, labels), default=0) + 3) / 50
    axes.set_xlim(0, (longest or 1) / max(0.4, 1 - room))


def write(figure: Figure, paths: Sequence[Path]) -> None:
    """Write a figure to files, each whole or not at all; the ending says the format. Equal figures give equal files.

    Raises:
        UserError: an ending that matplotlib has no format for, or a folder that cannot be written to.
    """
    for path in paths:
        kind = path.suffix.removeprefix(".")
        if not re.fullmatch("svg|png|pdf", kind):
            raise UserError(f"{path}: plots are written as .svg, .png or .pdf; choose one of these endings")
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        with house_style(), atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
