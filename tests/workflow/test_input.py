"""The whole workflow over what people give besides clean proteins, in one run."""

from __future__ import annotations

import bz2
import csv
import lzma
from pathlib import Path

from tests.workflow.running import snakemake
from virnucpro.storage.tables import read_embeddings

POLICIES = {"empty_records": "skip", "duplicate_ids": "number", "empty_samples": "skip"}


def test_controls_repeats_and_packed_files_run_through(tmp_path: Path) -> None:
    (tmp_path / "control.faa").write_text("; a negative control\n")
    (tmp_path / "odd.faa.xz").write_bytes(lzma.compress(b">a\nMKV\n>b\n*\n>a\nMLL\n"))
    (tmp_path / "more.faa.bz2").write_bytes(bz2.compress(b">a\nMKV\n"))
    samples = "{control: control.faa, odd: [odd.faa.xz, more.faa.bz2]}"
    config = {"samples": samples, "model": "esm2_demo", **POLICIES}
    embedded = snakemake(tmp_path, "--until", "embed_esm2", config=config)
    assert embedded.code == 0, embedded.text
    assert embedded.jobs.keys() == {"prepare_weights", "detect_gpu", "split_proteins", "embed_esm2"}
    result = snakemake(tmp_path, config=config)
    assert result.code == 0, result.text
    assert not result.jobs.keys() & embedded.jobs.keys()
    assert read_embeddings(tmp_path / "results/odd/embeddings.parquet").ids == ["a", "a_2", "a_3"]
    assert read_embeddings(tmp_path / "results/control/embeddings.parquet").matrix.shape == (0, 64)
    with (tmp_path / "results/odd/skipped.tsv").open(newline="") as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert row == {"id": "b", "file": "odd.faa.xz", "line": "3", "reason": "no residues"}
    assert "sample control has no protein" in result.text
    again = snakemake(tmp_path, "--until", "split_proteins", config={**config, "duplicate_ids": "skip"})
    assert again.code == 0, again.text
    assert len((tmp_path / "results/odd/skipped.tsv").read_text().splitlines()) == 1 + 3


def test_contigs_that_give_no_protein_are_listed(tmp_path: Path) -> None:
    (tmp_path / "own.fna").write_text(">short\nAT\n>empty\n\n>good x\nATGGCCATG\n>good y\nATGGCC\n")
    (tmp_path / "none.fna").write_text(">n\nAT\n")
    config = {"samples": "own.fna,none.fna", "input": "nucleotide", "model": "esm2_demo", **POLICIES}
    result = snakemake(tmp_path, "--until", "translate_contigs", config={**config, "duplicate_ids": "header"})
    assert result.code == 0, result.text
    with (tmp_path / "results/own/skipped_contigs.tsv").open(newline="") as file:
        rows = [(row["id"], row["line"], row["reason"]) for row in csv.DictReader(file, delimiter="\t")]
    assert rows == [("short", "1", "no stop-free frame"), ("empty", "3", "no residues")]
    ids = [
        [line for line in (tmp_path / f"results/own/translated.{kind}").read_text().splitlines() if line[0] == ">"]
        for kind in ("faa", "fna")
    ]
    assert ids[0] == ids[1]
    assert {name.rpartition("_chunk_")[0] for name in ids[0]} == {">good_x", ">good_y"}
    assert (tmp_path / "results/none/translated.faa").read_bytes() == b""
