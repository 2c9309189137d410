"""Embedding from Python: from FASTA to tables with random weights, stopped and continued."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from virnucpro.api import embed, embed_sequences
from virnucpro.base.errors import UserError
from virnucpro.storage.tables import TABLES, read_embeddings, read_residues

FASTA = ">a/1 one\nMKVLAAGIVGLCAKAYE*\n>b\nMKJLA\n>c\nmkvlaagivglcakaye\n>d\nM\n>e\n" + "MKVLWAALLVTF" * 5 + "\n"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    (tmp_path / "in.faa").write_text(FASTA)
    return tmp_path / "in.faa"


def test_from_fasta_to_tables_and_on_again(tmp_path: Path, fasta: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "out"
    options: dict[str, Any] = {
        "model": "esm2_demo",
        "chunk_residues": 20,
        "devices": ["cpu"],
        "formats": ["npy", "parquet"],
    }
    table = embed(fasta, folder, **options)
    assert table == folder / "embeddings_npy"
    ids, matrix = read_embeddings(table)
    assert ids == ["a/1", "b", "c", "d", "e"]
    assert matrix.shape == (5, 64)
    np.testing.assert_array_equal(matrix[0], matrix[2])  # equal residues
    assert not np.allclose(matrix[0], matrix[1])
    np.testing.assert_array_equal(read_embeddings(folder / "embeddings.parquet").matrix, matrix)
    assert "mean nothing" in json.loads((folder / "embeddings.json").read_text())["provenance"]["warning"]

    # Again: a chunk file that is gone and one that is damaged are recomputed, the rest is kept.
    tensors = sorted((folder / "tensors").iterdir())
    assert len(tensors) >= 3
    tensors[0].unlink()
    tensors[1].write_bytes(tensors[1].read_bytes()[:-1])
    kept = {path: path.stat().st_mtime_ns for path in tensors[2:]}
    with caplog.at_level(logging.INFO):
        embed(str(fasta), str(folder), **options)
    assert {path: path.stat().st_mtime_ns for path in tensors[2:]} == kept
    assert "embedding chunk_00001 (it is cut short" in caplog.text
    np.testing.assert_array_equal(read_embeddings(table).matrix, matrix)

    # Other settings: all is recomputed.
    embed([fasta], folder, **options, layers=[0, -1], pooling=["per_residue", "mean"])
    assert all(path.stat().st_mtime_ns != kept[path] for path in kept)
    residues = read_residues(table, layer=4)
    assert np.diff(residues.offsets).tolist() == [17, 5, 17, 1, 60]
    means = np.add.reduceat(residues.values, residues.offsets[:-1]) / np.diff(residues.offsets)[:, None]
    np.testing.assert_allclose(means, matrix, atol=1e-5)
    # Digests are kept of files that have not changed within the last seconds, which these may have.
    assert {path.name for path in folder.rglob(".*")} - {".digests.json"} == {".lock"}


def test_every_pooling_in_every_format_that_holds_it(tmp_path: Path, fasta: Path) -> None:
    formats = ["parquet", "hdf5", "npy", "chunk_files"]
    options: dict[str, Any] = {"model": "esm2_demo", "devices": ["cpu"], "formats": formats}
    folder = tmp_path / "all"
    embed(fasta, folder, **options, layers=[1, -1], pooling=["per_residue", "max", "bos", "mean"])
    tables = [folder / TABLES[name].name for name in formats]
    for layer in (1, 4):
        residues = read_residues(tables[0], layer)
        wanted = {
            "mean": np.add.reduceat(residues.values, residues.offsets[:-1]) / np.diff(residues.offsets)[:, None],
            "max": np.maximum.reduceat(residues.values, residues.offsets[:-1]),
            "bos": read_embeddings(tables[0], layer, "bos").matrix,
        }
        assert not np.allclose(wanted["bos"], wanted["mean"])
        for table in tables:
            for pooling, matrix in wanted.items():
                found = read_embeddings(table, layer, pooling)
                np.testing.assert_allclose(found.matrix, matrix, atol=1e-6, err_msg=f"{table} {pooling}")
            np.testing.assert_array_equal(
                read_embeddings(table, layer).matrix, read_embeddings(table, layer, "mean").matrix
            )
    first = (folder / "tensors" / "chunk_00000.safetensors").stat().st_mtime_ns
    table = embed(fasta, folder, **options, pooling="bos")
    assert (folder / "tensors" / "chunk_00000.safetensors").stat().st_mtime_ns != first, "what is kept is another"
    assert pq.read_schema(table).names[-1] == "bos"
    np.testing.assert_allclose(read_embeddings(table).matrix, wanted["bos"], atol=1e-6)
    with pytest.raises(UserError, match="has no column max"):
        read_embeddings(table, pooling="max")
    with pytest.raises(UserError, match="virnucpro_pt holds one mean vector"):
        embed(fasta, folder, model="esm2_demo", formats=["virnucpro_pt"], pooling="bos")


def test_the_tables_have_what_follows_the_ids_in_their_headers(tmp_path: Path) -> None:
    fasta = tmp_path / "in.faa"
    fasta.write_bytes(b">a\tcapsid  protein [Virus\xe9]\nMKV\n>b\nMKV\n>c x\x07y " + b"z" * 2000 + b"\nMLL\n")
    options: dict[str, Any] = {"model": "esm2_demo", "devices": ["cpu"], "formats": ["parquet", "npy", "hdf5"]}
    table = embed(fasta, tmp_path / "out", **options)
    wanted = ["capsid protein [Virus\u00e9]", "", "x y " + "z" * 996]
    assert pq.read_table(table)["description"].to_pylist() == wanted
    assert (tmp_path / "out" / "embeddings_npy" / "description.txt").read_text().splitlines() == wanted
    with h5py.File(tmp_path / "out" / "embeddings.h5") as file:
        assert file.attrs["model_name"] == "esm2_demo", "ProtSpace asks for it"
        assert [file[name].attrs.get("description", b"").decode() for name in "abc"] == wanted
    header = embed(fasta, tmp_path / "header", model="esm2_demo", devices=["cpu"], duplicate_ids="skip")
    assert pq.read_table(header)["id"].to_pylist() == ["a", "b", "c"]


def test_a_changed_checkpoint_is_noticed(tmp_path: Path, fasta: Path) -> None:
    from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE
    from virnucpro.models.esm2.synthetic import write_checkpoint

    found = []
    for seed in (1, 2):
        write_checkpoint(tmp_path / "my.pt", DEMO_ARCHITECTURE, seed=seed)
        os.utime(tmp_path / "my.pt", (1, 1))
        table = embed(fasta, tmp_path / "out", model=str(tmp_path / "my.pt"), devices=["cpu"])
        found.append(read_embeddings(table).matrix)
    assert not np.allclose(found[0], found[1])


def test_one_word_stands_for_a_list_of_one(tmp_path: Path, fasta: Path) -> None:
    options: dict[str, Any] = {
        "model": "esm2_demo",
        "devices": ["cpu"],
        "pooling": "mean",
        "formats": "hdf5",
        "layers": -1,
    }
    table = embed(fasta, tmp_path / "out", **options, long_proteins="truncate")
    assert table.name == "embeddings.h5"
    assert len(read_embeddings(table).ids) == 5


def test_mistakes_are_one_clear_sentence_before_anything_is_done(
    tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was looked for before the arguments were right")

    monkeypatch.setattr("virnucpro.weights.prepare.prepare_weights", never)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"formats": ["csv"]}, "argument 'formats' can't be 'csv'"),
        ({"formats": []}, "argument 'formats' can't be"),
        ({"model": "esm3"}, "esm3"),
        ({"model": tmp_path / "missing.pt"}, "missing.pt does not exist"),
        ({"pooling": ["sum"]}, "'pooling' can't be 'sum'"),
        ({"layers": [9]}, "layer 9 does not exist"),
        ({"dtype": "float64"}, "'dtype' can't be 'float64'"),
        ({"chunk_residues": 0}, "'chunk_residues' can't be 0"),
        ({"long_proteins": {"overlap": 2000}}, "must be less than"),
        ({"long_proteins": {"polcy": "full"}}, "'polcy' in long_proteins is not known"),
        ({"pooling": "per_residue", "formats": "virnucpro_pt"}, "virnucpro_pt holds one mean vector"),
        ({"layers": [0, 4], "formats": "virnucpro_pt"}, "give one layer"),
    ]
    for options, message in mistakes:
        with pytest.raises(UserError, match=message):
            embed(fasta, tmp_path / "out", **{"model": "esm2_demo", "devices": ["cpu"], **options})
    for input, message in (
        (tmp_path / "none", "there is no such file"),
        ([], "no FASTA file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(UserError, match=message):
            embed(input, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_chunk_files_as_the_result_are_computed_again_when_they_change(tmp_path: Path) -> None:
    fasta = tmp_path / "a.faa"
    fasta.write_text(">a\nMKVLAAGIV\n>b\nMKVW\n>c\nMKVLAAGIV\n")
    options: dict[str, Any] = {"model": "esm2_demo", "devices": ["cpu"], "formats": "chunk_files", "dtype": "float16"}
    table = embed(fasta, tmp_path / "out", pooling="per_residue", **options)
    ids, values, offsets = read_residues(table)
    assert (ids, offsets.tolist()) == (["a", "b", "c"], [0, 9, 13, 22])
    assert values.dtype == np.float16
    before = np.array(values)
    np.testing.assert_array_equal(before[:9], before[13:])
    (chunk,) = (tmp_path / "out" / "tensors").glob("*.safetensors")
    raw = bytearray(chunk.read_bytes())
    raw[-1] ^= 1
    chunk.write_bytes(raw)
    assert embed(fasta, tmp_path / "out", pooling="per_residue", **options) == table
    np.testing.assert_array_equal(read_residues(table).values, before)
    with pytest.raises(UserError, match="has no column embedding"):
        read_embeddings(table)
    # Tables of float32 need other chunks.
    embed(fasta, tmp_path / "out", pooling="per_residue", **options | {"dtype": "float32"})
    exact = read_residues(table).values
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(exact).astype(np.float16), before)


def test_sequences_in_memory_have_the_numbers_of_the_table(tmp_path: Path, fasta: Path) -> None:
    table = embed(fasta, tmp_path / "out", model="esm2_demo", devices=["cpu"], layers=2, weights_folder=tmp_path / "w")
    wanted = read_embeddings(table)
    sequences = {"a/1": "MKVLAAGIVGLCAKAYE*", "b": "MKJLA", "c": "mkvlaagivglcakaye", "d": "M", "e": "MKVLWAALLVTF" * 5}
    told: list[tuple[int, int]] = []
    options: dict[str, Any] = {"model": "esm2_demo", "device": "cpu", "layer": 2, "weights_folder": tmp_path / "w"}
    found = embed_sequences(sequences, **options, progress=lambda *counts: told.append(counts))
    assert found.ids == wanted.ids
    np.testing.assert_array_equal(found.matrix, wanted.matrix)
    assert told[-1][0] == told[-1][1] == 17 + 5 + 1 + 60 + 4 * 2  # of the four different ones
    again = embed_sequences([("x y", "MKV"), ("x y", "MKJLA")], **options)
    assert again.ids == ["x y", "x y"]
    np.testing.assert_allclose(again.matrix[1], wanted.matrix[1], atol=1e-5)
    assert embed_sequences({}, **options).matrix.shape == (0, 64)
    for wrong, words in (({"a": "MK7"}, "no residue"), ({"a": "*"}, "is empty"), ({"a": 3}, "must be texts")):
        with pytest.raises(UserError, match=words):
            embed_sequences(wrong, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="argument 'precision' can't be 'half'"):
        embed_sequences({"a": "M"}, model="esm2_demo", precision="half")


def test_progress_adds_up_over_chunks_and_weights_are_kept_once(
    tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told: list[tuple[int, int]] = []
    options: dict[str, Any] = {"model": "esm2_demo", "chunk_residues": 20, "devices": ["cpu"], "threads": 1}
    for folder in ("one", "two"):
        told.clear()
        embed(fasta, tmp_path / folder, **options, progress=lambda *counts: told.append(counts))
        assert told[0][0] == 0
        assert told[-1] == (told[0][1], told[0][1])
        assert told == sorted(told)
        assert not (tmp_path / folder / "weights").exists()
    assert len(list((tmp_path / "cache" / "virnucpro" / "weights").glob("*.safetensors"))) == 1
    with pytest.raises(UserError, match="threads can't be 0"):
        embed(fasta, tmp_path / "one", model="esm2_demo", threads=0)
