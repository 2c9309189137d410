"""The HDF5 table, opened with h5py as UniProt's files are."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.report_cases import stub_provenance
from tests.unit.sample import ODD_IDS, Sample, write_input
from tests.unit.stub_chunks import stub_vectors
from virnucpro.storage.tables import open_table, read_embeddings, read_residues
from virnucpro.storage.tables.rows import Layout, Rows

UNREACHABLE = {"a", "/lead", "x//y", ".", "./z", "q/", "P1", "a/b/c"}
"""Of ODD_IDS: no proper path, or barred by another id ("a" by "a/b", "a/b/c" too, "P1" by "P1/1-50")."""


def test_one_dataset_an_id(tmp_path: Path) -> None:
    records = write_input(tmp_path / "in.faa")
    Sample(tmp_path, tmp_path / "in.faa").merge("hdf5")
    with h5py.File(tmp_path / "hdf5") as file:
        for name, residues in records:
            if name not in UNREACHABLE:
                assert file[name].shape == (8,)
                np.testing.assert_array_equal(file[name][:], stub_vectors(residues, 1, 8, 6)[0])
        plain = [name for name, _ in records if name not in UNREACHABLE and "/" not in name]
        assert [name for name in file if name in plain] == plain  # in input order
        by_attribute: dict[str, np.ndarray] = {}

        def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
            if "id" in item.attrs:
                by_attribute[item.attrs["id"]] = item[:]

        file.visititems(note)
        assert set(by_attribute) == UNREACHABLE | {"a/b", "P1/1-50"}
        for name, residues in records:
            if name in by_attribute:
                np.testing.assert_array_equal(by_attribute[name], stub_vectors(residues, 1, 8, 6)[0])
        assert json.loads(file.attrs["virnucpro"])["model"] == "esm2_stub"
    assert set(ODD_IDS) >= UNREACHABLE


def test_ids_without_a_slash_are_all_that_is_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "in.faa").write_text("".join(f">sp|P{i}|X\n{'MK' * (i + 1)}\n" for i in range(30)))
    Sample(tmp_path, tmp_path / "in.faa").merge("hdf5", dtype="float16")
    with h5py.File(tmp_path / "hdf5") as file:
        assert list(file) == [f"sp|P{i}|X" for i in range(30)]
        assert {dataset.dtype for dataset in file.values()} == {np.dtype(np.float16)}
        assert not any(len(dataset.attrs) for dataset in file.values())


def test_residues_of_each_protein_are_a_matrix(tmp_path: Path) -> None:
    records = write_input(tmp_path / "in.faa", 20)
    Sample(tmp_path, tmp_path / "in.faa", pooling=("per_residue",)).merge(
        "hdf5", expected={"pooling": '["per_residue"]'}
    )
    with h5py.File(tmp_path / "hdf5") as file:
        assert file["a/b"].shape == (len(records[1][1]), 8)
        np.testing.assert_array_equal(file["été"][:], stub_vectors(records[9][1], len(records[9][1]), 8, 6))


def test_what_was_done_is_an_attribute(tmp_path: Path) -> None:
    (tmp_path / "in.faa").write_text(">whole\nMKV\n>long\nMKVMKV\n>odd\nMJV\n")
    Sample(tmp_path, tmp_path / "in.faa", longest=4, policy="truncate").merge("hdf5")
    with h5py.File(tmp_path / "hdf5") as file:
        attributes = {name: dict(dataset.attrs) for name, dataset in file.items()}
    assert attributes == {"whole": {}, "long": {"treatment": "truncated:4"}, "odd": {"replaced": 1}}


@pytest.mark.parametrize("kinds", [("mean",), ("mean", "residues")])
def test_ids_that_fight_for_a_name(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """Whatever the order of ids that bar each other's paths, each comes back, in order."""
    names = [
        "a",
        "a/b",
        "a/b/c",
        "a%2Fb",
        "%",
        "%2F",
        "/",
        "//",
        ".",
        "a/.",
        "a//b",
        "a%2F%2Fb",
        "%2E",
        "%25",
        "b/c/d",
        "b/c",
        "b",
    ]
    residues = (6,) if "residues" in kinds else ()
    layout = Layout(4, (6,), residues)
    for order in (names, names[::-1], sorted(names, key=len)):
        n = len(order)
        values = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
        rows = Rows(
            *(order, np.ones(n, np.int32), ["whole"] * n, ["float32"] * n, np.zeros(n, np.int32), {6: values}),
            residues={6: values} if residues else {},
            offsets=np.arange(n + 1),
        )
        provenance = stub_provenance(layers=[6], embed_dim=4, counts={"records": n})
        with open_table("hdf5", tmp_path / "t.h5", layout, provenance) as table:
            table.write(rows)
        ids, matrix = read_embeddings(tmp_path / "t.h5")
        assert ids == order
        np.testing.assert_array_equal(matrix, values)
        if residues:
            assert read_residues(tmp_path / "t.h5").ids == order


@pytest.mark.slow  # its imports
def test_protspace_opens_it(tmp_path: Path) -> None:
    """ProtSpace's own command line; it needs other versions than ours, so it is in an environment of its own."""
    protspace = shutil.which("protspace")
    if protspace is None:
        pytest.skip("no protspace on PATH (pip install protspace, in an environment of its own): not tried")
    (tmp_path / "in.faa").write_text("".join(f">sp|P{i}|X\n{'MK' * (i + 1)}\n" for i in range(30)))
    Sample(tmp_path, tmp_path / "in.faa").merge("hdf5")
    (tmp_path / "hdf5").rename(tmp_path / "embeddings.h5")
    command = [protspace, "project", "-i", "embeddings.h5", "-m", "pca2", "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (about,) = pq.read_table(tmp_path / "out" / "projections_metadata.parquet").to_pylist()
    assert about["source"] == "esm2_stub"
    places = pq.read_table(tmp_path / "out" / "projections_data.parquet")
    assert places["identifier"].to_pylist() == [f"sp|P{i}|X" for i in range(30)]
