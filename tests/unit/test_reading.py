"""Reading tables back from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.sample import Sample, write_input
from tests.unit.stub_chunks import stub_vectors
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


def test_residues_are_asked_of_a_table_that_has_them(tmp_path: Path) -> None:
    write_input(tmp_path / "in.faa")
    Sample(tmp_path, tmp_path / "in.faa").merge("parquet", "hdf5", "npy", "virnucpro_pt")
    for name in ("parquet", "hdf5", "npy"):
        with pytest.raises(UserError, match="has no column residues"):
            read_residues(tmp_path / name)
    with pytest.raises(UserError, match="holds mean vectors only"):
        read_residues(tmp_path / "virnucpro_pt")
