"""Reading tables back from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.sample import Sample, write_input
from tests.unit.stub_chunks import stub_vectors, write_stub_chunk
from virnucpro.base.errors import UserError
from virnucpro.storage.tables import read_embeddings, read_residues


def test_numpy_folders_are_mapped_into_memory(tmp_path: Path) -> None:
    records = write_input(tmp_path / "in.faa")
    expected = {"pooling": '["mean", "per_residue"]'}
    Sample(tmp_path, tmp_path / "in.faa", pooling=("mean", "per_residue")).merge("npy", expected=expected)
    ids, matrix = read_embeddings(tmp_path / "npy")
    assert isinstance(matrix, np.memmap)
    assert not matrix.flags.writeable
    assert ids == [name for name, _ in records]
    residues = read_residues(str(tmp_path / "npy"))
    assert isinstance(residues.values, np.memmap)
    assert np.load(tmp_path / "npy" / "length.npy").tolist() == [len(sequence) for _, sequence in records]
    assert (tmp_path / "npy" / "treatment.txt").read_text().split() == ["whole"] * 60
    name, sequence = records[40]
    i = residues.ids.index(name)
    wanted = stub_vectors(sequence, len(sequence), 8, 6)
    np.testing.assert_array_equal(residues.values[residues.offsets[i] : residues.offsets[i + 1]], wanted)


def test_chunk_files_are_the_result_without_a_copy(tmp_path: Path) -> None:
    """What is written is a few bytes a record; vectors are read from the chunk files as they are used."""
    records = write_input(tmp_path / "in.faa")
    expected = {"pooling": '["mean", "per_residue"]'}
    sample = Sample(tmp_path, tmp_path / "in.faa", pooling=("mean", "per_residue"), embed_dim=64)
    sample.merge("chunk_files", expected=expected)
    written = sum(file.stat().st_size for file in (tmp_path / "chunk_files").glob("*"))
    assert len(sample.tensors) > 3
    ids, matrix = read_embeddings(tmp_path / "chunk_files")
    assert ids == [name for name, _ in records]
    np.testing.assert_array_equal(matrix, np.concatenate([stub_vectors(own, 1, 64, 6) for _, own in records]))
    ids, values, offsets = read_residues(tmp_path / "chunk_files")
    whole = np.concatenate([stub_vectors(own, len(own), 64, 6) for _, own in records])
    assert written < whole.nbytes / 10
    assert (values.shape, values.dtype, len(values)) == (whole.shape, whole.dtype, len(whole))
    for number in (0, 17, 59):
        own = slice(offsets[number], offsets[number + 1])
        assert isinstance(values[own], np.memmap)
        np.testing.assert_array_equal(values[own], whole[own])
    for key in (slice(3, 200), slice(None), slice(5, 90, 7), slice(50, 2, -3), slice(9, 9), 4, -1):
        np.testing.assert_array_equal(values[key], whole[key], err_msg=str(key))
    np.testing.assert_array_equal(np.asarray(values), whole)
    with pytest.raises(IndexError):
        values[len(whole)]
    with pytest.raises(UserError, match="has no column residues_5"):
        read_residues(tmp_path / "chunk_files", 5)
    write_stub_chunk(sample.fastas[1], sample.tensors[1], pooling=("mean", "per_residue"), embed_dim=64, device="other")
    with pytest.raises(UserError, match=r"chunk_00001\.safetensors was computed again .*: run the merge again"):
        read_residues(tmp_path / "chunk_files")


def test_residues_are_asked_of_a_table_that_has_them(tmp_path: Path) -> None:
    write_input(tmp_path / "in.faa")
    Sample(tmp_path, tmp_path / "in.faa").merge("parquet", "hdf5", "npy", "virnucpro_pt")
    for name in ("parquet", "hdf5", "npy"):
        with pytest.raises(UserError, match="has no column residues"):
            read_residues(tmp_path / name)
    with pytest.raises(UserError, match="holds mean vectors only"):
        read_residues(tmp_path / "virnucpro_pt")
