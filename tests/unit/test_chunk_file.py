"""A chunk file opens with safetensors, keeps its values, and no damaged byte goes unseen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from virnucpro.base import atomic as atomic_module
from virnucpro.base.errors import UserError
from virnucpro.storage import blocks as blocks_module
from virnucpro.storage import chunk_layout as layout_module
from virnucpro.storage import chunk_writer as writer_module
from virnucpro.storage.blocks import BlockWriter
from virnucpro.storage.chunk_file import ChunkError, read_chunk_file, verify_chunk_file
from virnucpro.storage.chunk_layout import BLOCK, chunk_shapes
from virnucpro.storage.chunk_metadata import decoded
from virnucpro.storage.chunk_writer import ResidueStream, open_chunk_file, write_chunk_file
from virnucpro.storage.row_reader import RowReader


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
        "starts": (np.cumsum(lengths) - lengths).astype(np.int64),
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
        assert file.metadata()["format"] == "virnucpro-chunk-2"
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
    write_chunk_file(path, some_tensors(400, 1000), METADATA)
    digits = read_chunk_file(path).metadata["checksum"].encode()
    raw = path.read_bytes()
    assert raw.count(digits) == 1
    start = 8 + int.from_bytes(raw[:8], "little")
    assert len(raw) > start + 2 * BLOCK
    blocks = [hashlib.sha256(raw[at : at + BLOCK]).digest() for at in range(start, len(raw), BLOCK)]
    head = raw[:start].replace(digits, b"0" * 64)
    assert hashlib.sha256(head + b"".join(blocks)).hexdigest().encode() == digits


def write_format_1(path: Path, tensors: dict[str, NDArray[np.generic]], metadata: dict[str, str]) -> None:
    """As this package wrote chunk files at first."""
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    words = {"uint8": "U8", "int32": "I32", "int64": "I64", "float32": "F32"}
    header: dict[str, Any] = {"__metadata__": {**metadata, "format": "virnucpro-chunk-1", "checksum": "0" * 64}}
    end = 0
    for name in names:
        array = tensors[name]
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": words[array.dtype.name], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text + b"".join(tensors[name].tobytes() for name in names)
    place = raw.index(b'"checksum":"') + len('"checksum":"')
    path.write_bytes(raw[:place] + hashlib.sha256(raw).hexdigest().encode() + raw[place + 64 :])


def test_format_1_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "c"
    tensors = some_tensors()
    lengths = tensors["lengths"]
    starts = tensors.pop("starts")
    tensors["offsets"] = np.concatenate([[0], np.cumsum(lengths)])
    write_format_1(path, tensors, METADATA)
    chunk = verify_chunk_file(path)
    assert chunk.version == 1
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        own = tensors["residues.4"][start : start + length]
        np.testing.assert_array_equal(chunk.residues(row, 4), own)
    with RowReader([chunk]) as reader:
        values, counts = reader.ragged(0, "residues.4", np.array([2, 0]))
    assert counts.tolist() == lengths[[2, 0]].tolist()
    np.testing.assert_array_equal(values[: lengths[2]], chunk.residues(2, 4))
    np.testing.assert_array_equal(values[lengths[2] :], chunk.residues(0, 4))
    raw = path.read_bytes()
    for place in (3, 100, len(raw) - 1):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(ChunkError):
            verify_chunk_file(path)


@pytest.mark.parametrize("threads", [1, 5])
def test_what_streams_in_gives_the_file_that_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Two devices, two layers, pieces of all sizes beside those of a block."""
    for module in (blocks_module, layout_module):
        monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(atomic_module, "FLUSH", 256)
    monkeypatch.setattr(blocks_module, "writing_threads", lambda: threads)
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 30, 40)
    shapes = chunk_shapes(40, int(lengths.sum()), embed_dim=3, layers=(0, 4), pooling=("mean", "per_residue"))
    tensors = {
        name: rng.integers(0, 99, shape.shape).astype(layout_module.DTYPES[shape.dtype])
        for name, shape in shapes.items()
    }
    at_once, streamed = tmp_path / "a", tmp_path / "b"
    write_chunk_file(at_once, tensors, METADATA)
    streams = {name: tensors.pop(name) for name in list(tensors) if name.startswith("residues.")}
    with open_chunk_file(streamed, shapes, {}) as writer:
        digests: dict[int, bytes] = {}
        here, there = writer.regions([int(lengths[:25].sum()), int(lengths[25:].sum())])
        with BlockWriter(Path(there.file), there.data_start, there.data_size) as other:
            sinks = [writer.stream(here)] * 25 + [ResidueStream(there, other)] * 15
            start = 0
            for length, sink in zip(lengths.tolist(), sinks, strict=True):
                own = {layer: streams[f"residues.{layer}"][start : start + length] for layer in (0, 4)}
                assert sink.append(own) == start
                start += length
            with pytest.raises(ValueError, match="residues where"):
                sinks[-1].append(own)
            digests |= other.finish()
        assert len(digests) > 10
        writer.finish(tensors, METADATA, digests)
    chunk, expected = verify_chunk_file(streamed), verify_chunk_file(at_once)
    for name in shapes:
        np.testing.assert_array_equal(chunk.tensors(name), expected.tensors(name), err_msg=name)
    assert list(tmp_path.iterdir()) == [at_once, streamed] or list(tmp_path.iterdir()) == [streamed, at_once]


@pytest.mark.parametrize("when", ["pwrite", "fsync"])
def test_a_disk_that_fills_up_meanwhile_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """In a thread that writes, or in the one that flushes."""
    monkeypatch.setattr(atomic_module, "FLUSH", 0)
    right, calls = getattr(os, when), iter(range(10**6))

    def full(*arguments: Any) -> Any:
        if next(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(*arguments)

    monkeypatch.setattr(os, when, full)
    shapes = chunk_shapes(1, 40_000, embed_dim=100, layers=(4,), pooling=("per_residue",))

    def write() -> None:
        with open_chunk_file(tmp_path / "c", shapes, METADATA) as writer:
            sink = writer.stream(writer.regions([40_000])[0])
            for _ in range(8):
                sink.append({4: np.ones((5_000, 100), np.float32)})
                time.sleep(0.01)
            writer.finish({}, METADATA)

    with pytest.raises(UserError, match=r"^cannot write .*/c: No space left on device; free space there"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_outgrow_their_room_are_a_defect(tmp_path: Path) -> None:
    tensors = some_tensors()
    shapes = {name: writer_module.shape_of(array) for name, array in tensors.items()}
    with pytest.raises(ValueError, match="were kept for it"), open_chunk_file(tmp_path / "c", shapes, {}) as writer:
        writer.finish(tensors, {"much": "x" * 20_000})
    assert list(tmp_path.iterdir()) == []


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
        "import virnucpro.cli, virnucpro.api, virnucpro.engine.worker\n"
        "assert 'torch' not in sys.modules, 'its threads would not be told how to wait'\n"
        "import virnucpro.storage.chunk_file, virnucpro.base.atomic, virnucpro.sequences.fasta\n"
        "import virnucpro.sequences.fasta, virnucpro.engine.job\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
