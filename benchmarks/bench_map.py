"""The map's page in a headless Chromium: its size, the time until it is drawn, frames a second while it is moved.

Proteins are drawn at random, in 30 clouds, with ids, descriptions and columns such as real ones have. Without a GPU the
browser computes WebGL on the CPU, which is the slowest case that a person can meet.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.workflow.browser import Page
from virnucpro.report.map_page import Layout, MapData, map_page

SECONDS = 5.0
"""How long the map is moved."""

WIDTH, HEIGHT = 1280, 900
"""Pixels of the window."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proteins", type=int, nargs="+", default=[5_000, 50_000])
    print("proteins   page in MB   drawn after   frames/s while moved   slowest   with less drawn")
    for proteins in parser.parse_args().proteins:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            measure(proteins, Path(folder))


def pretended(proteins: int) -> MapData:
    """A map's data of so many proteins."""
    chance = np.random.default_rng(0)
    centres = chance.normal(scale=6, size=(30, 2))
    own = chance.integers(30, size=proteins)
    return MapData(
        name="pretended",
        shown=f"{proteins:,} different proteins",
        warning="",
        layouts={
            "UMAP": Layout(centres[own] + chance.standard_normal((proteins, 2)), "UMAP of random numbers"),
            "principal components": Layout(chance.standard_normal((proteins, 2)), "random numbers"),
        },
        ids=[f"YP_{number:09d}.1" for number in chance.integers(10**9, size=proteins)],
        columns={
            "length": np.exp(chance.normal(5.6, 0.6, proteins)).astype(int),
            "cluster": [f"cluster {number + 1}" for number in own],
        },
        descriptions=[f"hypothetical protein ORF{number} [virus {own[number]}]" for number in range(proteins)],
    )


def measure(proteins: int, folder: Path) -> None:
    file = folder / "map.html"
    file.write_text(map_page(pretended(proteins)), encoding="utf-8")
    with Page(folder / "profile", width=WIDTH, height=HEIGHT) as page:
        started = time.perf_counter()
        page.open(file)
        page.wait_for("window.virnucproMap?.isDrawn", timeout=120)
        drawn = time.perf_counter() - started
        page.evaluate(
            "(window.at = [], window.thin = 0, virnucproMap.plot.subscribe('draw', () => {"
            "at.push(performance.now()); thin += virnucproMap.isThin; }), 1)"
        )
        page.mouse("mousePressed", 500, 450)
        until, step = time.perf_counter() + SECONDS, 0
        while time.perf_counter() < until:
            step += 1
            page.mouse("mouseMoved", 500 + 150 * math.sin(step / 20), 450 + 100 * math.cos(step / 20))
        page.mouse("mouseReleased", 500, 450)
        intervals, thin = np.diff(page.evaluate("at")), page.evaluate("thin / at.length")
        page.wait_for("!virnucproMap.isThin && !virnucproMap.plot.get('isPointsFiltered')")
        assert page.errors == []
    print(
        f"{proteins:>8,}   {file.stat().st_size / 1e6:>7.2f} MB   {drawn:>8.2f} s   {1000 / intervals.mean():>17.1f}"
        f"   {intervals.max():>4.0f} ms   {thin:>16.0%}"
    )


if __name__ == "__main__":
    main()
