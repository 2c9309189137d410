"""Nearest neighbours and metadata: what the tables say is what the vectors and the user's table have."""

from __future__ import annotations

import csv
import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.unit.report_cases import chunk, write_report
from tests.unit.splitting import split_proteins
from tests.unit.stub_chunks import stub_vectors, write_stub_chunk
from virnucpro.base.errors import UserError
from virnucpro.report import neighbours as neighbours_module
from virnucpro.report.map_page import read_metadata
from virnucpro.report.neighbours import by_numpy, find_neighbours, nearest
from virnucpro.storage.sample_files import PoolFiles

LOGGER = logging.getLogger("test")


def units(n: int = 500, width: int = 24) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((n, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


@pytest.mark.parametrize("block", [37, 1024])
def test_numpy_compares_all_with_all(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "BLOCK", block)
    vectors = units()
    found, cosines = by_numpy(vectors, 7)
    products = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(products, -2)
    np.testing.assert_array_equal(found, np.argsort(-products, axis=1)[:, :7])
    np.testing.assert_allclose(cosines, np.sort(products, axis=1)[:, :-8:-1], atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="the optional package faiss-cpu is not installed")
@pytest.mark.parametrize("most", [10, 1000], ids=["graph", "all with all"])
def test_faiss_finds_the_same(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "MOST_COMPARED", most)
    vectors = units()
    vectors[3] = vectors[4] = vectors[5]  # more that are equal than are asked for
    found, cosines = neighbours_module._by_faiss(vectors, 2)
    wanted, exact = by_numpy(vectors, 2)
    np.testing.assert_allclose(np.sort(cosines), np.sort(exact), atol=1e-5)
    assert not (found == np.arange(500)[:, None]).any()
    assert (np.delete(found, [3, 4, 5], axis=0) == np.delete(wanted, [3, 4, 5], axis=0)).mean() > 0.99


def test_the_mean_is_taken_off_and_few_have_few(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.array([[100, 1], [100, 2], [100, -3]], np.float32)
    found, cosines = nearest(vectors, 5)
    assert found.shape == (3, 2)
    assert found[0, 0] == 1
    assert cosines[0].tolist() == pytest.approx([1, -1], abs=1e-5)
    assert nearest(vectors[:1], 5)[0].shape == (1, 0)
    monkeypatch.setattr(neighbours_module, "MOST_WITHOUT_FAISS", 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*\[neighbours\]"):
        nearest(vectors, 5)


def test_the_table_names_neighbours_of_every_record(tmp_path: Path) -> None:
    sequences = ["MKV", "MKVL", "MKV", "MAAAA", "MLLLLL"]
    fasta, folder = tmp_path / "in.faa", tmp_path / "own"
    fasta.write_text("".join(f">p{number} words {number}\n{text}\n" for number, text in enumerate(sequences)))
    split_proteins([fasta], folder / "proteins.parquet", folder / "chunks", chunk_residues=8, embed_dim=8)
    for manifest in sorted((folder / "chunks").glob("chunk_*.json")):
        write_stub_chunk(manifest.with_suffix(".fasta"), folder / "tensors" / f"{manifest.stem}.safetensors")
    report = write_report(tmp_path, "own", [chunk(0)], layers=[6])
    table = folder / "neighbours.tsv"
    assert len(list((folder / "tensors").iterdir())) > 1
    find_neighbours(report, PoolFiles(folder), table, 2, logger=LOGGER)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["id"], row["rank"]) for row in rows] == [(f"p{n}", str(rank)) for n in range(5) for rank in (1, 2)]
    different = dict(zip(["p0", "p1", "p3", "p4"], [sequences[0], sequences[1], *sequences[3:]], strict=True))
    vectors = {name: stub_vectors(text.encode(), 1, 8, 6)[0].astype(float) for name, text in different.items()}
    mean = np.mean(list(vectors.values()), axis=0)
    for row in rows:
        own, other = (vectors[{"p2": "p0"}.get(name, name)] - mean for name in (row["id"], row["neighbour"]))
        cosine = own @ other / np.linalg.norm(own) / np.linalg.norm(other)
        assert float(row["cosine"]) == pytest.approx(cosine, abs=1e-5)
        assert row["neighbour_description"] == f"words {row['neighbour'][1:]}"
        assert row["neighbour"] != {"p2": "p0"}.get(row["id"], row["id"])
    assert [row["neighbour"] for row in rows[:2]] == [row["neighbour"] for row in rows[4:6]], "the same sequence"


def test_metadata_are_numbers_or_words_of_this_sample(tmp_path: Path) -> None:
    table = tmp_path / "known.tsv"
    table.write_text(
        "\ufeffid\tsample\thost\tpH\tnothing\n"
        "a\tone\tbat\t7.5\t\n"
        "b\tone\t\t\t\n"
        "c\ttwo\tman\t1\t\n"
        "c\t\tsoil\t6\t\n"
        "unknown\tone\tx\ty\tz\n"
    )
    found = read_metadata(table, "one", ["c", "a", "b"])
    assert list(found) == ["host", "pH"]
    assert found["host"] == ["soil", "bat", ""]
    np.testing.assert_array_equal(found["pH"], [6, 7.5, np.nan])
    (tmp_path / "known.csv").write_text("id,n\na,1\n")
    assert read_metadata(tmp_path / "known.csv", "any", ["a"])["n"] == [1]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"name\tx\na\t1\n", "no column id"), (b"id\tx\n\xff\t1\n", "UTF-8"), (b"", "id")],
)
def test_metadata_that_cannot_be_read_are_one_sentence(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_metadata(tmp_path / "t.tsv", "s", ["a"])
