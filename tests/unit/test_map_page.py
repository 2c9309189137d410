"""The interactive map in a real browser: what is read back from the page are the numbers that were put into it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.workflow.browser import Page, find_chromium
from virnucpro.report.map import clusters_of
from virnucpro.report.map_page import Layout, MapData, map_page

needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
HOSTILE = "</script><b>&\"'\\"
N = 400


@pytest.fixture(scope="module")
def data() -> MapData:
    rng = np.random.default_rng(0)
    return MapData(
        name=f"a sample {HOSTILE}",
        shown="400 of 500 different proteins",
        warning="",
        layouts={
            "UMAP": Layout(rng.standard_normal((N, 2)) * [1, 3], "about UMAP"),
            "principal components": Layout(rng.standard_normal((N, 2)), "about components"),
        },
        ids=[HOSTILE, *(f"p{i}" for i in range(1, N))],
        columns={
            "length": np.arange(10, 10 + N),
            "cluster": [f"cluster {i % 3}" if i % 3 else "" for i in range(N)],
            "pH": np.where(np.arange(N) % 2, np.nan, np.arange(N) / 8),
        },
        descriptions=[f"capsid {i}" if i % 2 else "" for i in range(N)],
        repeats=[0, 2, *[0] * (N - 2)],
    )


@pytest.fixture(scope="module")
def page(data: MapData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("map")
    (folder / "map.html").write_text(map_page(data), encoding="utf-8")
    with Page(folder / "profile", width=1280, height=900) as browser:
        browser.open(folder / "map.html")
        browser.wait_for("window.virnucproMap?.isDrawn")
        yield browser


def place(page: Page, point: int) -> tuple[float, float]:
    """Where a point is in the window."""
    x, y = page.evaluate(f"virnucproMap.plot.getScreenPosition({point})")
    box = page.evaluate("(({left, top}) => [left, top])(document.getElementById('plot').getBoundingClientRect())")
    return x + box[0], y + box[1]


def facts(page: Page) -> dict[str, str]:
    found: dict[str, str] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#facts dt')].map(name => "
        "[name.textContent, name.nextElementSibling.textContent]))"
    )
    return found


@needs_chromium
def test_points_are_where_they_belong_and_are_drawn(page: Page, data: MapData) -> None:
    wanted = data.layouts["UMAP"].coordinates
    shown = np.array([place(page, point) for point in range(N)])
    # Equal scales, upwards is up, and nothing is outside of the window.
    (a, b), _ = np.linalg.lstsq(np.column_stack([wanted[:, 0], np.ones(N)]), shown[:, 0], rcond=None)[:2]
    np.testing.assert_allclose(shown[:, 0], a * wanted[:, 0] + b, atol=0.5)
    np.testing.assert_allclose(shown[:, 1] - shown[0, 1], -a * (wanted[:, 1] - wanted[0, 1]), atol=0.5)
    assert (shown > 0).all()
    assert (shown < [1280, 900]).all()
    colours = page.evaluate("""(() => {
        const canvas = document.getElementById('canvas'), copy = document.createElement('canvas');
        [copy.width, copy.height] = [canvas.width, canvas.height];
        const brush = copy.getContext('2d');
        brush.drawImage(canvas, 0, 0);
        return new Set(new Uint32Array(brush.getImageData(0, 0, copy.width, copy.height).data.buffer)).size;
    })()""")
    assert colours > 30, "the points have colours by their lengths"


@needs_chromium
def test_a_protein_is_named_where_the_mouse_points(page: Page) -> None:
    page.mouse("mouseMoved", *place(page, 1))
    page.wait_for("virnucproMap.shown !== null")
    point = page.evaluate("virnucproMap.shown")
    assert np.hypot(*np.subtract(place(page, point), place(page, 1))) < 10
    search(page, "p1")
    page.evaluate("document.getElementById('search').onkeydown({key: 'Enter'})")
    assert page.evaluate("document.querySelector('#found h2').textContent") == "111 found"
    page.wait_for("virnucproMap.shown === 1")
    wanted = {"id": "p1", "description": "capsid 1", "length": "11", "cluster": "cluster 1", "same sequence": "2 more"}
    assert facts(page) == wanted, "its pH is not known"
    page.evaluate(
        "document.getElementById('search').value = 'CAPSID 39'; document.getElementById('search').oninput(); 1"
    )
    assert page.evaluate("virnucproMap.found") == [39, *range(391, 400, 2)]


@needs_chromium
def test_colours_by_numbers_and_by_words(page: Page, data: MapData) -> None:
    assert page.evaluate("[...document.getElementById('colour').options].map(each => each.text)") == [*data.columns]
    for column in ("cluster", "pH"):
        choose(page, "colour", column)
        page.wait_for(f"document.getElementById('by').textContent === {json.dumps(column)}")
        if column == "cluster":
            said = page.evaluate("[...document.querySelectorAll('#legend button')].map(each => each.textContent)")
            assert said == ["cluster 1133", "cluster 2133", "none134"]
            page.evaluate("document.querySelector('#legend button').click()")
            page.wait_for("virnucproMap.plot.get('filteredPoints').length === 133")
            page.evaluate("document.querySelector('#legend button').click()")
            page.wait_for("!virnucproMap.plot.get('isPointsFiltered')")
        else:
            assert page.evaluate("document.getElementById('ends').textContent") == "049.75"
            assert page.evaluate("virnucproMap.coded.codes.slice(0, 4)") == [0, 64, 0, 64], "64: not known"
    choose(page, "layout", "principal components")
    page.wait_for("document.getElementById('about').textContent === 'about components'")


def search(page: Page, text: str) -> None:
    page.evaluate(f"document.getElementById('search').value = {json.dumps(text)}")
    page.evaluate("document.getElementById('search').oninput()")


def choose(page: Page, menu: str, text: str) -> None:
    page.evaluate(
        f"(menu => {{ menu.selectedIndex = [...menu.options].findIndex(each => each.text === {json.dumps(text)}); "
        f"return menu.onchange(); }})(document.getElementById('{menu}')).then(() => 1)"
    )


@needs_chromium
def test_it_is_moved_by_the_mouse_and_fits_a_phone(page: Page) -> None:
    page.evaluate("document.getElementById('whole').click()")
    before = np.array(place(page, 7))
    for kind, x, y in (("mousePressed", 400, 400), ("mouseMoved", 450, 430), ("mouseMoved", 500, 460)):
        page.mouse(kind, x, y)
    page.mouse("mouseReleased", 500, 460)
    page.wait_for(f"Math.abs(virnucproMap.plot.getScreenPosition(7)[0] - {before[0]}) > 20")
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    page.wait_for("document.getElementById('canvas').clientWidth === 390")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.evaluate("document.getElementById('whole').click()")
    page.wait_for("virnucproMap.plot.get('cameraDistance') > 1.2")
    assert all(0 < place(page, point)[0] < 390 for point in range(N)), "a screen that is higher than wide shows all"
    assert page.errors == page.requests == []
    assert HOSTILE in page.evaluate("document.getElementById('title').textContent")


def test_a_page_of_50_000_proteins_is_small_and_equal_data_give_equal_pages() -> None:
    rng = np.random.default_rng(0)
    n = 50_000
    layout = Layout(rng.standard_normal((n, 2)), "")
    ids = [f"YP_{number:09d}.1" for number in rng.integers(0, 10**9, n)]
    columns: dict[str, Any] = {"length": rng.integers(20, 2000, n)}
    pages = [map_page(MapData("s", "", "", {"a": layout, "b": layout}, ids, columns)) for _ in range(2)]
    assert pages[0] == pages[1]
    assert len(pages[0]) < 3e6


def test_clusters_are_numbered_by_size() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn comes with umap-learn, which is not installed")
    rng = np.random.default_rng(0)
    sizes = {(0, 0): 50, (9, 9): 200, (-9, 5): 100}
    places = np.concatenate([rng.normal(centre, 0.3, (size, 2)) for centre, size in sizes.items()])
    found = clusters_of(np.append(places, [[40.0, -40.0]], axis=0))
    assert [np.bincount(part).argmax() for part in np.split(found[:-1], [50, 250])] == [3, 1, 2]
    assert found[-1] == 0
