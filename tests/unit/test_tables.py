"""What all table formats promise: a full disk, damage, a missing library and an empty sample end well."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.unit.report_cases import stub_provenance
from virnucpro.base.errors import UserError
from virnucpro.storage import tables
from virnucpro.storage.tables import TABLES, WITHOUT_VECTORS, open_table, read_embeddings, read_residues
from virnucpro.storage.tables.rows import Layout, Rows

ROOT = Path(__file__).parents[2]
WIDTH = 16
WITH_VECTORS = [name for name in TABLES if name not in WITHOUT_VECTORS]


def write_table(name: str, path: Path, n: int = 40, *, residues: bool = False, length: int = 3) -> Rows:
    """A table of n records, each of so many residues."""
    chance = np.random.default_rng(n)
    words, ones = ["whole"] * n, np.ones(n, np.int32)
    offsets = np.arange(n + 1, dtype=np.int64) * length
    each = {6: chance.standard_normal((n * length, WIDTH), dtype=np.float32)} if residues else {}
    mean = {6: chance.standard_normal((n, WIDTH), dtype=np.float32)}
    rows = Rows(
        [f"id{i}" if i % 9 else f"id/{i}" for i in range(n)], ones * length, words, words, ones, mean, each, offsets
    )
    layout = Layout(WIDTH, (6,), (6,) if residues else (), records=n, residue_rows=n * length)
    provenance = stub_provenance(layers=[6], embed_dim=WIDTH, counts={"records": n})
    with open_table(name, path, layout, provenance) as table:
        if n:
            table.write(rows)
    return rows


FULL = """
import resource, sys
from pathlib import Path
from tests.unit.test_tables import WITH_VECTORS, write_table
from virnucpro.base.errors import UserError

for room in (0, 150_000):
    for name, residues in [*((name, False) for name in WITH_VECTORS), ("hdf5", True)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            write_table(name, Path(sys.argv[1]) / name, 3000, residues=residues, length=2)
        except UserError as error:
            print(name, error, flush=True)
"""


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own, because what must not happen is that it crashes."""
    result = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split(" ")[0] for line in lines] == 2 * [*WITH_VECTORS, "hdf5"]
    for line in lines:
        name = line.split(" ")[0]
        assert line.startswith(f"{name} cannot write {tmp_path / name}: ")
        assert "File too large: this process may write files of " in line
        assert line.endswith("(`ulimit -f`); raise the limit and run the same command again")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["parquet", "hdf5", "virnucpro_pt"])
@pytest.mark.parametrize("residues", [False, True])
def test_no_flipped_bit_gives_other_numbers(name: str, residues: bool, tmp_path: Path) -> None:
    """Where numbers have no checksum (npy), the sha256 in embeddings.json tells."""
    if residues and name == "virnucpro_pt":
        pytest.skip("holds mean vectors only")
    # Large enough for datasets of both kinds: within their headers, and in chunks with a checksum of their own.
    wanted = write_table(name, tmp_path / "table", 3 if residues else 300, residues=residues, length=1100)
    path = next((tmp_path / "table").glob("*.pt")) if TABLES[name].is_folder else tmp_path / "table"
    raw = path.read_bytes()
    noticed = 0
    chance = random.Random(0)
    for place in [0, len(raw) - 1, *(chance.randrange(len(raw)) for _ in range(100))]:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            if residues:
                found = read_residues(tmp_path / "table")
                same = found.ids == wanted.ids and np.array_equal(found.values, wanted.residues[6])
            else:
                mean = read_embeddings(tmp_path / "table")
                same = mean.ids == wanted.ids and np.array_equal(mean.matrix, wanted.mean[6])
            assert same, f"byte {place} of {len(raw)}"
        except UserError as error:
            assert str(path.parent) in str(error)  # noqa: PT017 (either ending is right)
            noticed += 1
    assert noticed > 40


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_a_table_that_is_cut_short_is_one_sentence(name: str, tmp_path: Path) -> None:
    write_table(name, tmp_path / "table")
    table = tmp_path / "table"
    for file in sorted(table.iterdir()) if table.is_dir() else [table]:
        if file.name in ("treatment.txt", "description.txt", "origin.txt", "length.npy"):
            continue  # not read
        raw = file.read_bytes()
        for size in (len(raw) - 2, len(raw) // 2, 30, 0):
            file.write_bytes(raw[:size])
            with pytest.raises(UserError, match=str(tmp_path)):
                read_embeddings(table)
        file.write_bytes(raw)
    assert len(read_embeddings(table).ids) == 40


def test_code_in_a_file_for_virnucpro_does_not_run(tmp_path: Path) -> None:
    import os

    import torch

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "table").mkdir()
    torch.save({"proteins": ["a"], "data": Bomb()}, tmp_path / "table" / "output_1_ESM.pt")
    with pytest.raises(UserError, match="output_1_ESM"):
        read_embeddings(tmp_path / "table")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_an_empty_sample_has_an_empty_table(name: str, tmp_path: Path) -> None:
    residues = name != "virnucpro_pt"
    write_table(name, tmp_path / "table", 0, residues=residues)
    ids, matrix = read_embeddings(tmp_path / "table")
    assert (ids, matrix.shape) == ([], (0, WIDTH))
    if residues:
        found = read_residues(tmp_path / "table")
        assert (found.ids, found.values.shape, found.offsets.tolist()) == ([], (0, WIDTH), [0])


@pytest.mark.parametrize(("name", "library"), [("parquet", "pyarrow"), ("hdf5", "h5py"), ("virnucpro_pt", "torch")])
def test_a_library_that_is_not_installed_is_named(
    name: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(name, tmp_path / "table")
    monkeypatch.setattr(tables, "find_spec", lambda name: None if name == library else find_spec(name))
    for call in (
        lambda: read_embeddings(tmp_path / "table"),
        lambda: write_table(name, tmp_path / "other"),
    ):
        with pytest.raises(UserError, match=rf'needs the package {library}.*pip install "virnucpro\[data\]"'):
            call()


def test_names_of_formats_need_the_standard_library_alone() -> None:
    code = (
        "import sys, virnucpro.storage.tables, virnucpro.storage.report_record; "
        "print({'numpy', 'torch', 'pyarrow', 'h5py'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout == "set()\n"
