"""The front page at a desktop's and a phone's width, in a real browser: every number is there and in sight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.unit.report_cases import chunk, write_report
from tests.workflow.browser import Page, find_chromium
from virnucpro.base.records import from_entries
from virnucpro.report.front import write_front_page
from virnucpro.report.samples import times_of
from virnucpro.storage.report_record import ChunkRun

HASHES = ["0123456789abcdef" * 4, "fedcba9876543210" * 4, "00ff" * 16]
LONG = "a_sample_with_the_long_name_that_a_sequencing_centre_gives_it_S17_L001_R1"

IN_SIGHT = """[...document.querySelectorAll('td, dd, h1, li, summary, figcaption, img')].filter(place => {
    const box = place.getBoundingClientRect();
    return box.width && (box.left < 0 || box.right > innerWidth || place.scrollWidth > place.clientWidth + 1);
}).map(place => place.outerHTML)"""


def runs(*changes: dict[str, Any]) -> list[ChunkRun]:
    return [from_entries(chunk(number, **each), ChunkRun, Path("x")) for number, each in enumerate(changes)]


def test_the_time_is_that_in_which_any_job_ran() -> None:
    # Each of 2 s and 1 s to load: 10 to 13, 12 to 15, and 100 to 103.
    ends = ("2026-11-28T00:00:13.000Z", "2026-11-28T00:00:15.000Z", "2026-11-28T00:01:43.000Z")
    found = times_of(runs(*({"ended": end} for end in ends)))
    assert found is not None
    assert (found.began, found.ended) == ("2026-11-28T00:00:10.000Z", ends[2])
    assert found.seconds == pytest.approx(5 + 3)
    assert times_of(runs({"ended": ends[0]}, {"ended": ""})) is None
    assert times_of([]) is None


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three samples with different weights, whose sha256 are long; one has a map."""
    folder = tmp_path_factory.mktemp("front")
    changes: list[dict[str, Any]] = [{"windowed": 12_345}, {"replaced_records": 7}, {"unique": 15}]
    reports = []
    for name, digest, change in zip((LONG, "two", "<b>three"), HASHES, changes, strict=True):
        chunks = [chunk(0, proteins=1_234_567), chunk(1, tokens=3000, ended="2026-11-28T04:45:11.000Z")]
        reports.append(write_report(folder, name, chunks, weights_sha256=digest, **change))
    picture = folder / "two" / "plots" / "map.png"
    picture.parent.mkdir()
    Image.new("RGB", (900, 700), "#0072B2").save(picture)
    write_front_page(folder / "summary.html", reports)
    return folder / "summary.html"


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_every_number_is_in_sight_at_every_width(page: Path, tmp_path: Path) -> None:
    with Page(tmp_path / "profile", width=1280, height=900) as browser:
        browser.open(page)
        browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        for width in (1280, 390):
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
            )
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate(IN_SIGHT) == []
        facts = browser.evaluate(
            "Object.fromEntries([...document.querySelectorAll('.facts > div')].map(each => "
            "[each.querySelector('dt').textContent, each.querySelector('dd').textContent]))"
        )
        assert facts["proteins"] == "3,703,731"
        assert facts["device"] == "NVIDIA H200"
        assert facts["time"] == "4.0 s"
        assert facts["speed"] == f"{(3_703_731 - 1_234_577 + 15) / 4:,.1f} proteins/s"
        rows = browser.evaluate(
            "[...document.querySelector('table').tBodies[0].rows].map(row => Object.fromEntries([['sample', "
            "row.cells[0].textContent], ..."
            "[...row.cells].slice(1).map(cell => [cell.dataset.name, cell.textContent])]))"
        )
        assert [row["sample"] for row in rows] == [LONG, "two", "<b>three", "(all)"]
        assert [row["windowed proteins"] for row in rows] == ["12,345", "0", "0", "12,345"]
        assert [row["replaced proteins"] for row in rows] == ["0", "7", "0", "7"]
        assert rows[2]["unique proteins"] == "15"
        assert "truncated proteins" not in rows[0], "nothing was truncated"
        text = browser.evaluate("document.body.textContent")
        assert all(digest in text for digest in HASHES)
        assert "samples were embedded with different weights" in text
        assert "2026-11-28 04:45" in text
        assert browser.evaluate("document.querySelector('img').naturalWidth") == 900
        assert browser.evaluate("document.querySelector('figure a').href").startswith("file:")
        assert browser.errors == browser.requests == []
