"""A negative control without a protein: tables without rows in every format, plots and a summary that say so."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from virnucpro.api import embed
from virnucpro.base.errors import UserError
from virnucpro.report import RUN_PLOTS, SAMPLE_PLOTS
from virnucpro.report.front import write_front_page
from virnucpro.report.run_plots import plot_run
from virnucpro.report.sample import plot_sample
from virnucpro.report.summary import summarise
from virnucpro.storage.sample_files import PoolFiles
from virnucpro.storage.tables import TABLES, read_embeddings, read_residues


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control")
    (folder / "in.faa").write_text(">a\n*\n")
    policies: dict[str, Any] = {"empty_records": "skip", "empty_samples": "skip"}
    embed(folder / "in.faa", folder / "out", model="esm2_demo", devices=["cpu"], formats=[*TABLES], **policies)
    return folder


def test_tables_without_rows(control: Path) -> None:
    for table in TABLES.values():
        ids, matrix = read_embeddings(control / "out" / table.name)
        assert ids == []
        assert matrix.shape == (0, 64)
        assert matrix.dtype == np.float32
    rows = pq.read_table(control / "out/embeddings.parquet")
    assert rows.num_rows == 0
    assert rows.column_names == [
        "id",
        "length",
        "description",
        "treatment",
        "precision",
        "origin",
        "replaced",
        "embedding",
    ]
    assert rows.schema.field("embedding").type.list_size == 64
    content = torch.load(control / "out/virnucpro_pt/output_1_ESM.pt", weights_only=True)
    assert content == {"proteins": [], "data": []}
    assert (control / "out/skipped.tsv").read_text().splitlines()[1:] == [f"a\t{control}/in.faa\t1\tno residues"]


def test_residues_of_nothing(control: Path) -> None:
    options: dict[str, Any] = {
        "model": "esm2_demo",
        "devices": ["cpu"],
        "empty_records": "skip",
        "empty_samples": "skip",
    }
    formats = ["parquet", "hdf5", "npy", "chunk_files"]
    embed(control / "in.faa", control / "residues", pooling=["per_residue"], formats=formats, **options)
    for name in formats:
        found = read_residues(control / "residues" / TABLES[name].name)
        assert (found.ids, found.values.shape, found.offsets.tolist()) == ([], (0, 64), [0])


def test_proteins_that_come_later_are_embedded(control: Path) -> None:
    path = control / "later.faa"
    path.write_text("")
    options: dict[str, Any] = {"model": "esm2_demo", "devices": ["cpu"], "empty_samples": "skip"}
    table = embed(path, control / "later", **options)
    path.write_text(">a\nMKV\n>b\nMLLA\n")
    assert embed(path, control / "later", **options) == table
    assert read_embeddings(table).ids == ["a", "b"]
    path.write_text("")
    embed(path, control / "later", **options)
    assert read_embeddings(table).ids == []
    with pytest.raises(UserError, match="give empty_samples=skip"):
        embed(path, control / "later", model="esm2_demo", devices=["cpu"])


def test_plots_and_summary(control: Path, tmp_path: Path) -> None:
    report = control / "out/embeddings.json"
    outputs = {name: [tmp_path / f"{name}.svg"] for name in SAMPLE_PLOTS}
    plot_sample(report, PoolFiles(control / "out"), outputs, tmp_path / "map.html", logger=logging.getLogger())
    plot_run([report], {name: [tmp_path / f"{name}.svg"] for name in RUN_PLOTS})
    assert len(list(tmp_path.glob("*.svg"))) == len(SAMPLE_PLOTS) + len(RUN_PLOTS)
    table, text, chunks = (tmp_path / name for name in ("summary.tsv", "summary.txt", "chunks.tsv"))
    summarise([report], table, text, chunks, logger=logging.getLogger())
    write_front_page(tmp_path / "summary.html", [report])
    for said in (text, tmp_path / "summary.html"):
        assert "sample out has no protein: its tables have no rows" in said.read_text()
    assert "1 record without residues or with a repeated id: skipped.tsv lists" in text.read_text()
    with table.open(newline="") as file:
        (row, every) = csv.DictReader(file, delimiter="\t")
    assert (row["proteins"], row["skipped_records"], row["chunks"], every["proteins"]) == ("0", "1", "0", "0")
    assert chunks.read_text().startswith("sample\tchunk\t")
    assert len(chunks.read_text().splitlines()) == 1
