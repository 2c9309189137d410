"""A chunk file opens with safetensors, keeps its values, and no damaged byte goes unseen."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from virnucpro.storage.chunk_file import ChunkError, decoded, read_chunk_file, verify_chunk_file, write_chunk_file


def some_tensors(n: int = 3, d: int = 5) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(n)
    lengths = rng.integers(1, 9, n, dtype=np.int32)
    return {
        "digests": rng.integers(0, 256, (n, 16), dtype=np.uint8),
        "lengths": lengths,
        "windows": np.ones(n, np.int32),
        "embedded": lengths,
        "precision": np.zeros(n, np.uint8),
        "mean.4": rng.standard_normal((n, d), dtype=np.float32),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "residues.4": rng.standard_normal((int(lengths.sum()), d), dtype=np.float32),
    }


ROOT = Path(__file__).parents[2]
METADATA = {"model": "esm2_demo", "layers": "[4]", "versions": '{"checksum":"é\\""}'}


@pytest.mark.parametrize("n", [0, 1, 7])
def test_what_is_written_is_read(tmp_path: Path, n: int) -> None:
    path = tmp_path / "chunk.safetensors"
    tensors = some_tensors(n)
    write_chunk_file(path, tensors, METADATA)
    chunk = verify_chunk_file(path)
    assert chunk.proteins == n
    assert {key: chunk.metadata[key] for key in METADATA} == METADATA
    assert decoded(chunk.metadata["layers"]) == [4]
    assert set(chunk.names) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(chunk.tensors(name), array)
        assert chunk.tensors(name).dtype == array.dtype


def test_big_tensors_are_mapped_not_read(tmp_path: Path) -> None:
    write_chunk_file(tmp_path / "c", some_tensors(), METADATA)
    assert isinstance(read_chunk_file(tmp_path / "c").tensors("mean.4"), np.memmap)


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "chunk.safetensors"
    tensors = some_tensors()
    write_chunk_file(path, tensors, METADATA)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["model"] == "esm2_demo"
        assert file.metadata()["format"] == "virnucpro-chunk-1"
        for name, array in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name).numpy(), array)


def test_torch_tensors_and_strided_arrays_are_written_as_they_read(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_chunk_file(tmp_path / "a", tensors, METADATA)
    strided = {**tensors, "mean.4": np.asfortranarray(tensors["mean.4"])}
    write_chunk_file(tmp_path / "b", {k: torch.from_numpy(v) for k, v in strided.items()}, METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_checksum_is_what_the_contract_says(tmp_path: Path) -> None:
    path = tmp_path / "chunk.safetensors"
    write_chunk_file(path, some_tensors(), METADATA)
    digits = read_chunk_file(path).metadata["checksum"].encode()
    raw = path.read_bytes()
    assert raw.count(digits) == 1
    assert hashlib.sha256(raw.replace(digits, b"0" * 64)).hexdigest().encode() == digits


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "chunk.safetensors"
    write_chunk_file(path, some_tensors(), METADATA)
    raw = path.read_bytes()
    chance = random.Random(0)
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ChunkError, match=r"chunk\.safetensors"):
            verify_chunk_file(path)


def test_every_length_of_a_file_cut_short_is_found(tmp_path: Path) -> None:
    path = tmp_path / "chunk.safetensors"
    write_chunk_file(path, some_tensors(), METADATA)
    raw = path.read_bytes()
    for size in range(0, len(raw), 7):
        path.write_bytes(raw[:size])
        with pytest.raises(ChunkError):
            verify_chunk_file(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(ChunkError, match="too long"):
        verify_chunk_file(path)


def test_other_files_are_not_ours(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, foreign, metadata={"format": "pt"})
    with pytest.raises(ChunkError, match="not a chunk file"):
        verify_chunk_file(foreign)
    with pytest.raises(ChunkError, match="cannot be read"):
        verify_chunk_file(tmp_path / "missing")
    with pytest.raises(ChunkError, match="cannot be read"):
        verify_chunk_file(tmp_path)
    chance = random.Random(1)
    for size in (0, 5, 8, 9, 100, 5000):
        foreign.write_bytes(chance.randbytes(size))
        with pytest.raises(ChunkError):
            verify_chunk_file(foreign)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("mean.4", np.zeros((2, 5), np.float32)),
        ("lengths", np.zeros(3, np.int64)),
        ("digests", np.zeros((3, 8), np.uint8)),
        ("something", np.zeros(3, np.int32)),
    ],
)
def test_tensors_that_no_chunk_has_are_refused(tmp_path: Path, name: str, array: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match=name):
        write_chunk_file(tmp_path / "c", {**some_tensors(), name: array}, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_the_embed_job_needs_no_table_libraries() -> None:
    """Where only the GPU part is installed there is no pyarrow, h5py or pandas."""
    code = (
        "import sys\n"
        "for name in ('pyarrow', 'h5py', 'pandas', 'snakemake', 'yaml'):\n"
        "    sys.modules[name] = None\n"
        "import virnucpro.storage.chunk_file, virnucpro.base.atomic, virnucpro.sequences.fasta\n"
        "import virnucpro.sequences.residues, virnucpro.engine.job\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
