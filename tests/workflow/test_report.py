"""`snakemake --report` as a reader sees it: one page, opened from disk in a real browser, with its figures drawn."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_report_plots import protein
from tests.workflow.browser import Page, find_chromium
from tests.workflow.running import Result, snakemake
from virnucpro.base.records import read_record, write_record
from virnucpro.storage.report_record import SampleReport

needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
CONFIG = {
    "samples": "my.faa,other.faa",
    "model": "esm2_demo",
    "chunk_residues": 1500,
    "neighbours": 2,
    "metadata": "known.tsv",
}
RUN_PLOTS = {"throughput", "packing"}
SAMPLE_PLOTS = {"lengths", "map"}
WIDTHS = {"desktop": (1280, 900, False), "phone": (390, 844, True)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two samples were embedded, one of them with a repeat, a long protein and a J."""
    folder = tmp_path_factory.mktemp("report")
    sequences = [protein(length, length) for length in (50, 80, 130, 210, 340, 550, 890, 1300)]
    sequences += [sequences[0], "MKJLV"]
    (folder / "my.faa").write_text("".join(f">p{number}\n{text}\n" for number, text in enumerate(sequences)))
    (folder / "other.faa").write_text(">a\nMKVLAAGIV\n>b\nMKVX\n")
    (folder / "known.tsv").write_text("id\tsample\thost\np1\tmy\tbat\na\tother\tman\n")
    result = snakemake(folder, config=CONFIG)
    assert result.code == 0, result.text
    return folder


@pytest.fixture(scope="module")
def mixed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The same run, as if one of its chunks had run on a GPU with another kind of attention."""
    folder = tmp_path_factory.mktemp("mixed") / "run"
    shutil.copytree(finished, folder, symlinks=True)
    path = folder / "results" / "my" / "embeddings.json"
    report = read_record(path, SampleReport)
    other = replace(
        report.chunks[0],
        device="NVIDIA H200",
        attention="flash_attention_2",
        attention_kernel="varlen_attn",
        precisions=("float16",),
    )
    write_record(path, replace(report, chunks=(other, *report.chunks[1:])))
    result = snakemake(folder, config=CONFIG)
    assert result.code == 0, result.text
    assert result.jobs["embed_esm2"] == 0
    return folder, result


@pytest.fixture(scope="module")
def report(mixed: tuple[Path, Result]) -> Path:
    """The report of the run with two kinds of attention, made without any network."""
    folder = mixed[0]
    # A proxy that nobody listens at stands for a machine without network.
    env = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    result = snakemake(folder, "--report", "report.html", config=CONFIG, env=env)
    assert result.code == 0, result.text
    return folder / "report.html"


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, report: Path, tmp_path: Path) -> Iterator[Page]:
    width, height, mobile = WIDTHS[request.param]
    with Page(tmp_path / "profile", width=width, height=height, mobile=mobile) as page:
        # Elsewhere than it was made, where nothing lies beside it.
        page.open(Path(shutil.copy(report, tmp_path / "alone.html")))
        page.wait_for("document.querySelector('#app nav')")
        yield page


def show(page: Page, result: str) -> None:
    """Go to a result as a reader does: by clicks on its category, its sample, its eye."""
    page.evaluate("app.setView({navbarMode: 'menu'})")
    labels = page.evaluate(f"results[{json.dumps(result)}].labels")
    categories = page.evaluate("categories")
    category, sub = next((c, s) for c, subs in categories.items() for s, paths in subs.items() if result in paths)
    click(page, category)
    if len(categories[category]) > 1:
        click(page, sub)
    click(page, next(iter(labels.values())))


def click(page: Page, text: str) -> None:
    script = f"""(() => {{
        const named = [...document.querySelectorAll('nav a, nav td, nav span')]
            .filter(place => place.textContent.trim() === {json.dumps(text)});
        const place = named.at(-1);
        if (place === undefined) return false;
        (place.closest('tr')?.querySelector('a') ?? place).click();
        return true;
    }})()"""
    page.wait_for(script)


FIGURE = "document.querySelector('#app > div > div img')"


@needs_chromium
def test_every_figure_is_drawn_and_fits_the_window(page: Page) -> None:
    figures = [path for path in page.evaluate("Object.keys(results)") if path.endswith(".svg")]
    assert len(figures) == len(RUN_PLOTS) + 2 * len(SAMPLE_PLOTS)
    for figure in figures:
        show(page, figure)
        page.wait_for(f"{FIGURE} && {FIGURE}.src === results[{json.dumps(figure)}].data_uri && {FIGURE}.complete")
        assert page.evaluate(f"{FIGURE}.naturalWidth") > 300, figure
        box = page.evaluate(f"(({{left, right, width}}) => ({{left, right, width}}))({FIGURE}.getBoundingClientRect())")
        inner = page.evaluate("innerWidth")
        assert box["left"] >= 0, figure
        assert box["right"] <= inner + 1, figure
        assert box["width"] > 0.5 * min(inner, 720), figure
        colours = page.evaluate(f"""(async () => {{
            const canvas = document.createElement('canvas');
            canvas.width = 200; canvas.height = 200;
            const brush = canvas.getContext('2d');
            brush.drawImage({FIGURE}, 0, 0, 200, 200);
            const pixels = new Uint32Array(brush.getImageData(0, 0, 200, 200).data.buffer);
            return new Set(pixels).size;
        }})()""")
        assert colours > 20, f"{figure} is empty"
    assert page.errors == []
    assert page.requests == [], "the page is not self-contained"


@needs_chromium
def test_captions_labels_and_the_summary_say_what_a_reader_must_know(page: Page) -> None:
    results = page.evaluate("results")
    assert all(entry["caption"] and entry["labels"] for entry in results.values())
    assert "results/my/plots/map.svg" in results
    assert set(page.evaluate("Object.keys(categories)")) == {"Summary", "How it ran", "Samples"}
    assert "mean nothing biologically" in page.evaluate("document.querySelector('#app').innerText")
    show(page, "results/summary.html")
    page.wait_for("document.querySelector('#app iframe')?.src")
    source = page.evaluate("document.querySelector('#app iframe').src")
    text = page.evaluate(f"fetch({json.dumps(source)}).then(answer => answer.text())")
    assert "more than one kind of attention" in text
    assert "flash_attention_2 on NVIDIA H200 (1 chunk)" in text
    assert page.errors == []


def test_two_kinds_of_attention_are_said_in_terminal_and_tables(mixed: tuple[Path, Result]) -> None:
    folder, result = mixed
    closing = " ".join(result.text[result.text.index("Embedded ") :].split())
    table = (folder / "results" / "summary.tsv").read_text()
    for said in (closing, table):
        assert "jobs used more than one kind of attention" in said
        assert "flash_attention_2 on NVIDIA H200 (1 chunk)" in said
        assert "standard_attention on cpu" in said
    chunks = [line.split("\t") for line in (folder / "results" / "chunks.tsv").read_text().splitlines()]
    assert [row[chunks[0].index("attention")] for row in chunks].count("flash_attention_2") == 1


def test_a_run_of_one_kind_says_nothing_of_two(finished: Path) -> None:
    assert "more than one" not in (finished / "results" / "summary.txt").read_text()
    assert "more than one" not in (finished / "results" / "summary.html").read_text()


def test_plots_are_there_as_svg_and_png(finished: Path) -> None:
    for folder, names in (("plots", RUN_PLOTS), ("my/plots", SAMPLE_PLOTS), ("other/plots", SAMPLE_PLOTS)):
        found = {path.name for path in (finished / "results" / folder).iterdir()}
        assert found - {"plots.json", "map.html"} == {f"{name}.{end}" for name in names for end in ("svg", "png")}


def test_neighbours_and_metadata_are_of_the_present_settings(finished: Path) -> None:
    results = finished / "results"
    rows = [line.split("\t") for line in (results / "my" / "neighbours.tsv").read_text().splitlines()]
    assert [row[:2] for row in rows[:3]] == [["id", "rank"], ["p0", "1"], ["p0", "2"]]
    assert len(rows) == 1 + 2 * 10
    assert known(results / "my") == ["bat"]
    assert known(results / "other") == ["man"]
    shown = columns_of(results / "map.html")
    assert (shown["sample"]["levels"], shown["host"]["levels"]) == (["my", "other"], ["bat", "man"])
    assert shown["sample"]["codes"] == [0] * 9 + [1, 1]


def known(sample: Path) -> list[str]:
    """The hosts that a sample's map knows of."""
    levels: list[str] = columns_of(sample / "plots" / "map.html")["host"]["levels"]
    return levels


def columns_of(page: Path) -> dict[str, dict[str, Any]]:
    """What a map is coloured by."""
    packed = re.search(r'id="data">([^<]+)<', page.read_text())
    assert packed is not None
    shown = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    return {column["name"]: column for column in shown["columns"]}


def test_a_dry_run_predicts_chunks_proteins_residues_and_time(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, symlinks=True)
    tensors = sorted((folder / "results" / "tensors").iterdir())
    tensors[0].unlink()
    result = snakemake(folder, "--dry-run", config=CONFIG)
    assert result.code == 0, result.text
    text = " ".join(result.text.split())
    assert f"my: {len(tensors)} chunks of 9 different proteins, 3,555 residues" in text
    assert f"{len(tensors) - 1} done, 1 to embed" in text
    assert "other: 1 chunk of 2 different proteins, 13 residues; 1 done" in text
    assert "on one device such as did the finished chunks (cpu)" in text
    assert "Left to embed" not in snakemake(folder, config=CONFIG).text, "only a dry run predicts"
