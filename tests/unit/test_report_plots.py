"""Plots are true to the data: what is drawn is read back from the figures and compared with the numbers."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from tests.unit.report_cases import chunk, write_report
from tests.unit.splitting import split_proteins
from tests.unit.stub_chunks import write_stub_chunk
from virnucpro.base.errors import UserError
from virnucpro.report import RUN_PLOTS, SAMPLE_PLOTS
from virnucpro.report.map import FEWEST_FOR_UMAP, ChosenVectors, choose_vectors, principal_components
from virnucpro.report.map_page import Places
from virnucpro.report.run_plots import plot_packing, plot_run, plot_throughput
from virnucpro.report.sample import histogram, length_bins, lengths_of, plot_lengths, plot_map, plot_sample
from virnucpro.report.samples import Sample, read_sample
from virnucpro.report.style import large, write
from virnucpro.storage.sample_files import PoolFiles

OLD = {"attention": "standard_attention", "attention_kernel": "efficient", "device": "Tesla T4"}
LENGTHS = [*range(1, 40), 120, 120, 333, 1022, 1023, 2500]


def protein(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng([seed, length]).choice(list("ACDEFGHIKLMNPQRSTVWY"), length))


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    """A split sample of 48 records, three of which repeat another one, with its chunk files and report."""
    sequences = [protein(length, seed) for seed, length in enumerate(LENGTHS)]
    sequences += [sequences[-1], sequences[-1], sequences[30]]
    fasta = tmp_path / "own.faa"
    fasta.write_text("".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
    folder = tmp_path / "own"
    counts = split_proteins([fasta], folder / "proteins.parquet", folder / "chunks", chunk_residues=2000, embed_dim=8)
    for manifest in sorted((folder / "chunks").glob("chunk_*.json")):
        write_stub_chunk(manifest.with_suffix(".fasta"), folder / "tensors" / f"{manifest.stem}.safetensors")
    entries = [chunk(0, tokens=1000, seconds=2.0, padding_avoided=0.5), chunk(1, tokens=900, seconds=9.0, **OLD)]
    changes = {"records": counts.records, "unique": counts.unique, "windowed": 4, "layers": [6]}
    return read_sample(write_report(tmp_path, "own", entries, **changes))


def rectangles(axes: Axes) -> list[Rectangle]:
    """All that is drawn in patches; a bar is nothing else."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(found) == len(axes.patches)
    return found


def bars(axes: Axes) -> dict[str, float]:
    """Horizontal bars by the names beside them."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(names, (patch.get_width() for patch in rectangles(axes)), strict=True))


def test_the_length_histogram_counts_every_protein(sample: Sample) -> None:
    figure = plot_lengths(sample, lengths_of(sample.folder / "proteins.parquet"))
    (axes,) = figure.axes
    lengths = np.array([*LENGTHS, 2500, 2500, LENGTHS[30]])
    drawn: dict[tuple[float, float], float] = defaultdict(float)
    for patch in rectangles(axes):
        drawn[patch.get_x(), patch.get_x() + patch.get_width()] += patch.get_height()
    for (low, high), height in drawn.items():
        assert height == ((lengths > low) & (lengths < high)).sum(), (low, high)
    assert sum(drawn.values()) == len(lengths)
    repeats = rectangles(axes)[len(axes.patches) // 2 :]
    assert sum(patch.get_height() for patch in repeats) == 3
    assert any(np.asarray(line.get_xdata())[0] == 1022.5 for line in axes.lines)
    assert "residues" in axes.get_xlabel()
    assert axes.get_ylabel() == "proteins"


@pytest.mark.parametrize("longest", [1, 2, 9, 57, 40_000])
def test_bins_hold_every_length_once(longest: int) -> None:
    edges = length_bins(longest)
    assert (np.diff(edges) >= 1).all()
    assert histogram(np.r_[0, np.ones(longest, int)], edges).sum() == longest


def test_throughput_of_chunks_and_devices(sample: Sample) -> None:
    figure = plot_throughput([sample])
    each, together = figure.axes
    points = {tuple(point) for dots in each.collections for point in np.asarray(dots.get_offsets()).tolist()}
    assert points == {(1.0, 500.0), (2.0, 100.0)}
    assert bars(together) == {
        "NVIDIA H200,\nflash_attention_2 (varlen_attn)": 500,
        "Tesla T4,\nstandard_attention (efficient)": 100,
    }
    assert each.get_ylabel() == "tokens/s"
    assert "tokens/s" in together.get_xlabel()


def test_padding(sample: Sample) -> None:
    (axes,) = plot_packing([sample]).axes
    tokens, padding = (patch.get_width() for patch in rectangles(axes))
    assert tokens == 1900
    assert tokens + padding == pytest.approx(1000 / 0.5 + 900 / 0.5)


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    for n, width in ((200, 12), (7, 30)):
        vectors = np.random.default_rng(n).standard_normal((n, width)) * np.linspace(3, 0.1, width)
        found = principal_components(vectors)
        centred = vectors - vectors.mean(axis=0)
        left, singular, _ = np.linalg.svd(centred, full_matrices=False)
        wanted = left[:, :2] * singular[:2]
        signs = np.sign((wanted * found.coordinates).sum(axis=0))
        np.testing.assert_allclose(found.coordinates, wanted * signs, atol=1e-9)
        np.testing.assert_allclose(found.explained, singular[:2] ** 2 / (singular**2).sum())


@pytest.mark.parametrize("n", [1, 2])
def test_components_of_hardly_any_proteins(n: int) -> None:
    found = principal_components(np.random.default_rng(0).standard_normal((n, 5)))
    assert found.coordinates.shape == (n, 2)
    assert np.isfinite(found.coordinates).all()
    assert np.isfinite(found.explained).all()


def vectors_of(sample: Sample, most: int = 1000) -> ChosenVectors:
    return choose_vectors(sample, PoolFiles(sample.folder), most)


def test_the_map_shows_the_embeddings_of_different_proteins(sample: Sample) -> None:
    assert len(list((sample.folder / "tensors").iterdir())) > 1
    rows = vectors_of(sample)
    assert rows.vectors.shape == (45, 8)
    assert sorted(rows.lengths.tolist()) == sorted(LENGTHS)
    components = principal_components(rows.vectors)
    figure = plot_map(sample, rows, Places(components, None, None))
    dots = figure.axes[0].collections[0]
    np.testing.assert_array_equal(np.asarray(dots.get_offsets()), components.coordinates)
    np.testing.assert_array_equal(np.asarray(dots.get_array()), rows.lengths)
    assert "% of variance" in figure.axes[0].get_xlabel()


def test_drawn_rows_are_bounded_the_same_each_time_and_have_their_own_lengths(sample: Sample) -> None:
    all_rows, some, again = (vectors_of(sample, most) for most in (1000, 11, 11))
    assert some.vectors.shape == (11, 8)
    assert some.total == 45
    np.testing.assert_array_equal(some.vectors, again.vectors)
    known = {row.tobytes(): length for row, length in zip(all_rows.vectors, all_rows.lengths, strict=True)}
    assert [known[row.tobytes()] for row in some.vectors] == some.lengths.tolist()


def test_a_map_of_per_residue_chunks_takes_their_means(sample: Sample) -> None:
    folder = PoolFiles(sample.folder).tensors
    for fasta in sorted((sample.folder / "chunks").glob("*.fasta")):
        write_stub_chunk(fasta, folder / f"{fasta.stem}.safetensors", pooling=("per_residue",))
    rows = vectors_of(sample)
    assert rows.vectors.shape == (45, 8)
    # Means of standard normal numbers: the longer the protein, the nearer to 0.
    assert np.abs(rows.vectors[rows.lengths > 1000]).max() < np.abs(rows.vectors[rows.lengths < 10]).max()


def test_files_are_whole_drawn_and_equal_each_time(sample: Sample, tmp_path: Path) -> None:
    report, pool = sample.folder / "embeddings.json", PoolFiles(sample.folder)
    places = {name: [tmp_path / f"{name}.png"] for name in [*SAMPLE_PLOTS, *RUN_PLOTS]}
    drawn_here = {name: places[name] for name in SAMPLE_PLOTS}
    plot_sample(report, pool, drawn_here, tmp_path / "map.html", logger=logging.getLogger("test"))
    plot_run([report], {name: places[name] for name in RUN_PLOTS})
    for (png,) in places.values():
        colours = Image.open(png).convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 10, f"{png} is empty"
    svgs = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for svg in svgs:
        plot_run([report], {"throughput": [svg]})
    assert ElementTree.parse(svgs[0]).getroot().tag.endswith("svg")
    assert svgs[0].read_bytes() == svgs[1].read_bytes()


def test_an_ending_without_a_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.gif"):
        write(Figure(), [tmp_path / "x.gif"])


def test_numbers_on_axes() -> None:
    assert [large(value) for value in (0, 0.5, 2500, 1.2e6, 3e9)] == ["0", "0.5", "2,500", "1.2 million", "3 billion"]


@pytest.mark.slow
def test_umap_and_clusters_are_shown_where_there_are_proteins_enough(tmp_path: Path) -> None:
    pytest.importorskip("umap", reason="the optional package umap-learn is not installed")
    folder = tmp_path / "many"
    fasta = tmp_path / "many.faa"
    fasta.write_text("".join(f">p{number}\n{protein(20, number)}\n" for number in range(FEWEST_FOR_UMAP)))
    split_proteins([fasta], folder / "proteins.parquet", folder / "chunks", chunk_residues=2000, embed_dim=8)
    for manifest in sorted((folder / "chunks").glob("chunk_*.json")):
        write_stub_chunk(manifest.with_suffix(".fasta"), folder / "tensors" / f"{manifest.stem}.safetensors")
    report = write_report(tmp_path, "many", [chunk(0)], layers=[6])
    places = {name: [tmp_path / f"{name}.png"] for name in SAMPLE_PLOTS}
    plot_sample(report, PoolFiles(folder), places, tmp_path / "map.html", logger=logging.getLogger("test"))
    packed = re.search(r'id="data">([^<]+)<', (tmp_path / "map.html").read_text())
    assert packed is not None
    shown = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert shown["ids"] == [f"p{number}" for number in range(FEWEST_FOR_UMAP)]
    assert list(shown["layouts"]) == ["UMAP", "principal components"]
    assert [column["name"] for column in shown["columns"]] == ["length", "cluster"]
    # Two panels, one below the other.
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.height > picture.width
