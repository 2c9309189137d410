"""The embed job on real GPUs: files in, file out, out of memory, overflow, several devices, memory."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.oracle import fair_esm, oracle_tokens, random_protein
from virnucpro.base.digest import digest_of_digests, residue_digest
from virnucpro.base.records import write_record
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.engine.embed import Protein, embed_proteins
from virnucpro.engine.job import embed_chunk
from virnucpro.gpu_report import detect_gpu
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import random_state_dict, write_checkpoint
from virnucpro.storage.chunk_file import ChunkFile, verify_chunk_file
from virnucpro.weights.manifest import read_weights
from virnucpro.weights.prepare import prepare_weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]

LOGGER = logging.getLogger("test")
ARCHITECTURE = Architecture(layers=6, embed_dim=320, heads=20)
LENGTHS = [166] * 40 + [1022, 1500, 5, 1, 700, 333]
SEQUENCES = [random_protein(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_checkpoint(folder / "esm2_small.pt", ARCHITECTURE, seed=1, dtype=torch.float16)
    prepare_weights(str(folder / "esm2_small.pt"), folder / "w.safetensors", log=lambda line: None)
    return folder


def embed(folder: Path, weights: Path, settings: EmbeddingSettings, devices: list[str]) -> ChunkFile:
    fasta, manifest, output = folder / "c.fasta", folder / "c.json", folder / "out.safetensors"
    fasta.write_text("".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(SEQUENCES)))
    digest = digest_of_digests(residue_digest(sequence.encode()) for sequence in SEQUENCES)
    write_record(manifest, ChunkManifest("c", len(SEQUENCES), sum(LENGTHS), 1, digest))
    embed_chunk(fasta, weights / "w.safetensors", output, settings, devices=devices, logger=LOGGER)
    return verify_chunk_file(output)


@pytest.mark.parametrize("kernels", ["eager", "auto"])
def test_a_chunk_on_the_gpu_is_near_fair_esm(tmp_path: Path, weights: Path, kernels: str) -> None:
    settings = EmbeddingSettings(layers=(3, 6), pooling=("mean", "bos", "max", "per_residue"), kernels=kernels)
    file = embed(tmp_path, weights, settings, ["cuda:0"])
    state = {name: tensor.half().float() for name, tensor in random_state_dict(ARCHITECTURE, seed=1).items()}
    whole = [row for row, length in enumerate(LENGTHS) if length <= 1022][-6:]
    expected = oracle_tokens(fair_esm(state, ARCHITECTURE), [SEQUENCES[row] for row in whole], [3, 6])
    for row in range(len(SEQUENCES)):  # those in windows too
        np.testing.assert_array_equal(file.read("max.6")[row], file.residues(row, 6).max(axis=0))
    for row, tokens in zip(whole, expected, strict=True):
        truth = {layer: own[1:-1] for layer, own in tokens.items()}
        for layer in (3, 6):
            bos = torch.from_numpy(file.read(f"bos.{layer}")[row])
            torch.testing.assert_close(bos, tokens[layer][0], rtol=0, atol=3e-2)
            mean = torch.from_numpy(file.read(f"mean.{layer}")[row])
            assert torch.cosine_similarity(mean, truth[layer].mean(0), dim=0) > 0.99999
            residues = torch.from_numpy(file.residues(row, layer).copy())
            torch.testing.assert_close(residues, truth[layer], rtol=0, atol=3e-2)
    assert json.loads(file.metadata["precisions"]) == ["float16"]
    assert json.loads(file.metadata["statistics"])["peak_memory_bytes"] > 0
    fused = kernels == "auto" and torch.cuda.get_device_capability(0) >= (8, 0)
    assert file.metadata["layers_run"].startswith("fused" if fused else "eager")
    assert file.metadata["device"] == torch.cuda.get_device_name(0)
    if torch.cuda.get_device_capability(0) >= (8, 0):
        assert file.metadata["attention"] == "flash_attention_2"


@pytest.mark.parametrize("devices", [["cuda:0"], None])
def test_a_process_that_has_not_used_cuda_yet(tmp_path: Path, weights: Path, devices: list[str] | None) -> None:
    embed(tmp_path, weights, EmbeddingSettings(), ["cpu"])  # leaves the chunk's files
    output = tmp_path / "fresh.safetensors"
    paths = [tmp_path / "c.fasta", weights / "w.safetensors", output]
    code = f"""
import logging
import subprocess
import sys
from pathlib import Path
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.engine.job import embed_chunk
paths = [Path(path) for path in {list(map(str, paths))!r}]
done = embed_chunk(*paths, EmbeddingSettings(), devices={devices!r}, logger=logging.getLogger())
assert done.peak_memory_bytes > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert verify_chunk_file(output).metadata["device"].startswith(torch.cuda.get_device_name(0))


def test_real_out_of_memory_halves_the_budget(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    proteins = [Protein(f"p{number}", random_protein(1000, number).encode()) for number in range(400)]
    prepared = read_weights(weights / "w.safetensors")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    used = total - torch.cuda.mem_get_info(0)[0]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (used + (600 << 20)) / total), 0)
    try:
        found = embed_proteins(
            proteins,
            prepared,
            EmbeddingSettings(token_budget=400_000),
            device="cuda:0",
            logger=LOGGER,
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert found.run.statistics.out_of_memory_retries >= 1
    assert "out of memory with" in caplog.text
    assert np.isfinite(found.tensors["mean.6"]).all()


def test_memory_does_not_grow_over_batches(weights: Path) -> None:
    proteins = [Protein(f"p{number}", random_protein(50 + number % 700, number).encode()) for number in range(600)]
    settings = EmbeddingSettings(token_budget=4096)
    peaks = []
    for count in (200, 600):
        found = embed_proteins(
            proteins[:count],
            read_weights(weights / "w.safetensors"),
            settings,
            device="cuda:0",
            logger=LOGGER,
        )
        peaks.append(found.run.statistics.peak_memory_bytes)
    assert peaks[1] <= peaks[0] * 1.2


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("second", ["cuda:0", "cuda:1"])
def test_two_processes_give_the_bits_of_one(tmp_path: Path, weights: Path, second: str, precision: str) -> None:
    if torch.cuda.device_count() < 2 and second == "cuda:1":
        pytest.skip("this machine has one GPU")
    settings = EmbeddingSettings(precision=precision, pooling=("mean", "per_residue"))
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    one = embed(folders[0], weights, settings, ["cuda:0"])
    two = embed(folders[1], weights, settings, ["cuda:0", second])
    np.testing.assert_array_equal(two.read("mean.6"), one.read("mean.6"))
    for row in range(len(SEQUENCES)):
        np.testing.assert_array_equal(two.residues(row, 6), one.residues(row, 6))


def test_the_report_of_this_machine(tmp_path: Path) -> None:
    report = detect_gpu(tmp_path / "gpu.json", LOGGER)
    assert len(report) == torch.cuda.device_count()
    assert all("error" not in entry for entry in report)
    assert report[0]["name"] == torch.cuda.get_device_name(0)
