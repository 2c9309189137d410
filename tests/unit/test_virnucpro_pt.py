"""The files for VirNucPro: torch reads them safely, and VirNucPro's way of pairing them finds every id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.report_cases import stub_provenance
from tests.unit.sample import Sample
from tests.unit.stub_chunks import stub_vectors
from virnucpro.sequences.translation import translate_contigs
from virnucpro.storage.tables import open_table
from virnucpro.storage.tables.rows import Layout, Rows

SENSE = "ATGGCTGAAAAATTGGTTCGTACTGATCCACAGAACTTCTACATGCACTGGTGC"


def frames_of_contigs(folder: Path) -> tuple[Path, Path]:
    contigs = "".join(f">contig_{i} x\n{SENSE[i % 5 :] * (3 + i)}\n" for i in range(12))
    (folder / "contigs.fna").write_text(contigs)
    translate_contigs([folder / "contigs.fna"], folder / "in.faa", folder / "in.fna", window=300)
    return folder / "in.faa", folder / "in.fna"


def read_plain(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text().splitlines()
    return [(lines[i][1:], lines[i + 1]) for i in range(0, len(lines), 2)]


def test_its_merge_finds_every_id(tmp_path: Path) -> None:
    """VirNucPro cuts its nucleotide FASTA every so many records and looks its ids up in the file of that number."""
    proteins, nucleotides = frames_of_contigs(tmp_path)
    per_file = 7
    Sample(tmp_path, proteins, chunk_residues=500).merge("virnucpro_pt", records_per_file=per_file)
    records, bases = read_plain(proteins), read_plain(nucleotides)
    assert len(records) > 3 * per_file
    assert len(records) % per_file
    files = sorted((tmp_path / "virnucpro_pt").glob("output_*_ESM.pt"), key=lambda path: int(path.name.split("_")[1]))
    assert [path.name for path in files] == [f"output_{i + 1}_ESM.pt" for i in range(-(-len(records) // per_file))]
    for number, path in enumerate(files):
        content = torch.load(path, weights_only=True)
        assert set(content) == {"proteins", "data"}
        assert type(content["proteins"]) is list
        assert type(content["data"]) is list
        vectors = dict(zip(content["proteins"], content["data"], strict=True))
        nucleotide_ids = [name for name, _ in bases[number * per_file : (number + 1) * per_file]]
        assert list(vectors) == nucleotide_ids
        for name, sequence in records[number * per_file : (number + 1) * per_file]:
            assert vectors[name].dtype == torch.float32
            assert vectors[name].shape == (8,)
            np.testing.assert_array_equal(vectors[name], stub_vectors(sequence.encode(), 1, 8, 6)[0])
            assert torch.cat((torch.zeros(3), vectors[name]), dim=-1).shape == (11,)
        # Its last step groups by the id without its last two characters, which are the frame.
        assert {name[:-2].rsplit("_chunk_", 1)[1].isdecimal() for name in vectors} == {True}


@pytest.mark.parametrize("per_file", [1, 6, 12, 1000])
def test_files_hold_as_many_records_as_asked_for(tmp_path: Path, per_file: int) -> None:
    (tmp_path / "in.faa").write_text("".join(f">p{i}\n{'MK' * (i % 4 + 1)}\n" for i in range(12)))
    Sample(tmp_path, tmp_path / "in.faa").merge("virnucpro_pt", "parquet", records_per_file=per_file, dtype="float16")
    found = [torch.load(path, weights_only=True) for path in (tmp_path / "virnucpro_pt").glob("*.pt")]
    assert sorted(len(content["proteins"]) for content in found) == [per_file] * (12 // per_file) + [12] * (
        per_file > 12
    )
    assert {vector.dtype for content in found for vector in content["data"]} == {torch.float32}
    assert json.loads((tmp_path / "virnucpro_pt" / "provenance.json").read_text())["dtype"] == "float32"


def test_ten_thousand_vectors_take_little_more_than_their_bytes(tmp_path: Path) -> None:
    n = 10_000
    words, zeros = ["whole"] * n, np.zeros(n, np.int32)
    layout = Layout(64, (6,), (), records_per_file=n)
    with open_table("virnucpro_pt", tmp_path / "table", layout, stub_provenance()) as table:
        table.write(Rows([f"p{i}" for i in range(n)], zeros, words, words, zeros, {6: np.ones((n, 64), np.float32)}))
    assert (tmp_path / "table" / "output_1_ESM.pt").stat().st_size < n * 64 * 4 * 1.7
