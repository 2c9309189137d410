"""What is to be written fits, or is refused before the work: estimates against the files, and real small disks."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import virnucpro
from tests.unit.sample import Sample, write_input
from tests.unit.test_tables import WITH_VECTORS
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space, free_bytes
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.models.esm2.synthetic import write_demo_checkpoint
from virnucpro.storage.sizes import Kept, table_bytes
from virnucpro.storage.tables import TABLES
from virnucpro.weights.prepare import prepare_weights

ROOT = Path(__file__).parents[2]

FULL = """
import sys
from pathlib import Path
from tests.unit.test_tables import WITH_VECTORS, write_table
from virnucpro.base.errors import UserError

for name, residues in [*((name, False) for name in WITH_VECTORS), ("hdf5", True)]:
    try:
        write_table(name, Path(sys.argv[1]) / name, 2500 if name == "hdf5" else 12_000, residues=residues, length=2)
    except UserError as error:
        print(name, error, flush=True)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kilobytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))


@pytest.mark.parametrize("pooling", [("mean",), ("mean", "per_residue")])
def test_estimates_are_little_less_than_what_is_written(pooling: tuple[str, ...], tmp_path: Path) -> None:
    width = 320
    write_input(tmp_path / "in.faa", 1500)
    sample = Sample(tmp_path, tmp_path / "in.faa", chunk_residues=10**6, embed_dim=width, pooling=pooling)
    counts = sample.counts
    of_each = {"embed_dim": width, "layers": 1, "pooling": pooling}
    kept = Kept(width, 1, EmbeddingSettings(pooling=pooling))
    guess = kept.chunk_bytes(counts.unique, counts.unique_residues)
    assert guess <= bytes_of(sample.tensors[0]) <= 1.05 * guess
    formats = [name for name in TABLES if name != "virnucpro_pt" or pooling == ("mean",)]
    sample.merge(*formats, expected={"pooling": '["mean"]' if len(pooling) == 1 else '["mean", "per_residue"]'})
    for name, size in table_bytes(
        formats,
        counts.records,
        counts.residues,
        dtype="float32",
        **of_each,  # type: ignore[arg-type]
    ).items():
        most = 1.2 if name in WITH_VECTORS else 1.5  # where ids and the provenance count
        assert size <= bytes_of(tmp_path / name) <= most * size, name


def test_what_cannot_fit_is_refused(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "not" / "there" / "yet")
    assert free > 0
    check_space(tmp_path, free // 2, "writing it")
    with pytest.raises(UserError, match=r"^writing it takes .* or more in .*, where .* is free: free space there or"):
        check_space(tmp_path / "new", 10**18, "writing it")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"takes a file of 2\.0 kB .*may write files of 1\.0 kB \(`ulimit -f`\)"):
            check_space(tmp_path, 3000, "writing it", largest=2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_each_step_is_refused_before_it_writes(small_disk: Path, tmp_path: Path) -> None:
    """The split, the embedding as a whole, a merge, and weights."""
    write_demo_checkpoint(tmp_path / "demo.pt")
    (small_disk / "else").write_bytes(b"x" * 300_000)
    with pytest.raises(UserError, match=r"^writing the weights of demo-\w+ takes 40\d\.\d kB or more in .*small/w"):
        prepare_weights(str(tmp_path / "demo.pt"), small_disk / "weights" / "demo.safetensors", log=print)
    fasta = tmp_path / "large.faa"
    proteins = ["MKLVAAGI" * 40 + "ACDEFGHIKL"[name % 10] * (name // 10) for name in range(1000)]
    fasta.write_text("".join(f">{name}\n{protein}\n" for name, protein in enumerate(proteins)))
    options = {"model": "esm2_demo", "weights_folder": tmp_path / "weights", "logger": logging.getLogger("space")}
    with pytest.raises(UserError, match=r"^splitting 1,000 records takes 3\d\d\.\d kB or more in .*small/out"):
        virnucpro.embed(fasta, small_disk / "out", **options)  # type: ignore[arg-type]
    (small_disk / "else").unlink()
    with pytest.raises(UserError, match=r"^embedding 1,000 records takes \d\d\d\.\d kB or more in .*small/out"):
        virnucpro.embed(fasta, small_disk / "out", formats=["parquet", "npy"], **options)  # type: ignore[arg-type]
    assert not list(small_disk.rglob("*.safetensors"))


def test_a_disk_that_is_full_after_all(small_disk: Path) -> None:
    """Somebody else was faster. In a process of its own, because what must not happen is that it crashes."""
    result = subprocess.run([sys.executable, "-c", FULL, str(small_disk)], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split(" ")[0] for line in lines] == [*WITH_VECTORS, "hdf5"]
    for line in lines:
        name = line.split(" ")[0]
        assert line.startswith(f"{name} cannot write {small_disk / name}: No space left on device; free space there")
    assert not list(small_disk.iterdir())
