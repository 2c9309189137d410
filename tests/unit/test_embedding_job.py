"""The embed job end to end: fair-esm is the truth, windows, half precision, several processes, and failures."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from esm.model.esm2 import ESM2

from tests.oracle import fair_esm, oracle_residues, oracle_tokens, random_protein
from virnucpro.base.digest import digest_of_digests, residue_digest
from virnucpro.base.errors import UserError
from virnucpro.base.records import write_record
from virnucpro.base.settings import EmbeddingSettings, LongProteins
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.engine import devices as devices_module
from virnucpro.engine import embed as embed_module
from virnucpro.engine import processes as processes_module
from virnucpro.engine.embed import Protein, embed_proteins
from virnucpro.engine.job import embed_chunk
from virnucpro.engine.load import load_model
from virnucpro.engine.processes import DeviceProcess
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import random_state_dict, write_checkpoint
from virnucpro.models.reference import resolve_layers
from virnucpro.storage.chunk_file import ChunkFile, verify_chunk_file
from virnucpro.weights.file import load_weights, write_weights
from virnucpro.weights.manifest import read_manifest, read_weights
from virnucpro.weights.prepare import prepare_weights

LOGGER = logging.getLogger("test")
TINY = Architecture(layers=3, embed_dim=64, heads=4)
LENGTHS = [7, 1, 166, 30, 166, 1022, 1023, 2, 1700]
PROTEINS = [random_protein(length, seed) for seed, length in enumerate(LENGTHS)]
ALL = ("mean", "bos", "max", "per_residue")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with w.safetensors."""
    folder = tmp_path_factory.mktemp("weights")
    write_checkpoint(folder / "esm2_tiny.pt", TINY, seed=1)
    prepare_weights(str(folder / "esm2_tiny.pt"), folder / "w.safetensors", log=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def oracle() -> ESM2:
    return fair_esm(random_state_dict(TINY, seed=1), TINY)


def write_chunk(folder: Path, sequences: list[str], ids: list[str] | None = None) -> Path:
    fasta, manifest = folder / "chunk_00003.fasta", folder / "chunk_00003.json"
    ids = ids or [f"p{number}" for number in range(len(sequences))]
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in zip(ids, sequences, strict=True)))
    digest = digest_of_digests(residue_digest(sequence.encode()) for sequence in sequences)
    write_record(manifest, ChunkManifest("chunk_00003", len(sequences), sum(map(len, sequences)), 1, digest))
    return fasta


def embed(
    folder: Path, weights: Path, sequences: list[str], settings: EmbeddingSettings, devices: list[str] | None = None
) -> ChunkFile:
    fasta = write_chunk(folder, sequences)
    output = folder / "out.safetensors"
    devices = devices or ["cpu"]
    embed_chunk(fasta, weights / "w.safetensors", output, settings, devices=devices, logger=LOGGER)
    return verify_chunk_file(output)


def residues(file: ChunkFile, row: int, layer: int) -> torch.Tensor:
    return torch.from_numpy(np.array(file.residues(row, layer)))


def mean(file: ChunkFile, row: int, layer: int) -> torch.Tensor:
    return torch.from_numpy(np.array(file.tensors(f"mean.{layer}")[row]))


def vector(file: ChunkFile, pooling: str, row: int, layer: int) -> torch.Tensor:
    return torch.from_numpy(np.array(file.tensors(f"{pooling}.{layer}")[row]))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_chunk_equals_fair_esm_in_every_layer_and_pooling(tmp_path: Path, weights: Path, oracle: ESM2) -> None:
    settings = EmbeddingSettings(layers=(0, 1, 2, "last"), pooling=ALL, long_proteins=LongProteins("full"))
    file = embed(tmp_path, weights, PROTEINS, settings)
    expected = oracle_tokens(oracle, PROTEINS, [0, 1, 2, 3])
    for row in range(len(PROTEINS)):
        for layer in (0, 1, 2, 3):
            bos, own = expected[row][layer][0], expected[row][layer][1:-1]
            close(residues(file, row, layer), own)
            close(mean(file, row, layer), own.mean(0))
            close(vector(file, "bos", row, layer), bos)
            close(vector(file, "max", row, layer), own.amax(0))
    assert file.read("lengths").tolist() == file.read("embedded").tolist() == LENGTHS
    assert set(file.read("windows").tolist()) == {1}


def test_windows_average_what_fair_esm_gives_for_each(tmp_path: Path, weights: Path, oracle: ESM2) -> None:
    settings = EmbeddingSettings(layers=(2, 3), pooling=ALL, long_proteins=LongProteins("window", 100, 40))
    file = embed(tmp_path, weights, [PROTEINS[2], PROTEINS[3]], settings)
    starts = [0, 33, 66]  # of 166 residues: two steps of 60 at most, evenly spread
    windows = oracle_tokens(oracle, [PROTEINS[2][start : start + 100] for start in starts], [2, 3])
    for layer in (2, 3):
        total, count = torch.zeros(166, 64), torch.zeros(166, 1)
        for start, window in zip(starts, windows, strict=True):
            total[start : start + 100] += window[layer][1:-1]
            count[start : start + 100] += 1
        close(residues(file, 0, layer), total / count)
        close(mean(file, 0, layer), (total / count).mean(0))
        # The largest of the averaged residues, which no window's own maximum is; BOS averaged over windows.
        close(vector(file, "max", 0, layer), (total / count).amax(0))
        assert (
            torch.stack([window[layer][1:-1].amax(0) for window in windows]).amax(0) > (total / count).amax(0)
        ).any()
        close(vector(file, "bos", 0, layer), torch.stack([window[layer][0] for window in windows]).mean(0))
        close(residues(file, 1, layer), oracle_residues(oracle, [PROTEINS[3]], [layer])[0][layer])
    assert file.read("windows").tolist() == [3, 1]


def test_truncation_is_esm_extracts(tmp_path: Path, weights: Path, oracle: ESM2) -> None:
    settings = EmbeddingSettings(pooling=ALL, long_proteins=LongProteins("truncate", 50))
    file = embed(tmp_path, weights, [PROTEINS[2], PROTEINS[0]], settings)
    expected = oracle_tokens(oracle, [PROTEINS[2][:50], PROTEINS[0]], [3])
    for row in (0, 1):
        own = expected[row][3][1:-1]
        close(residues(file, row, 3), own)
        close(mean(file, row, 3), own.mean(0))
        close(vector(file, "bos", row, 3), expected[row][3][0])
        close(vector(file, "max", row, 3), own.amax(0))
    assert file.read("lengths").tolist() == [166, 7]
    assert file.read("embedded").tolist() == [50, 7]


def test_several_processes_give_the_same_rows_in_the_same_order(tmp_path: Path, weights: Path) -> None:
    """The longest protein goes to the first process and stands last here; the third process has no protein at all."""
    settings = EmbeddingSettings(layers=(1, -1), pooling=ALL)
    proteins = [PROTEINS[2], PROTEINS[-1]]
    one = embed(tmp_path, weights, proteins, settings)
    arrays = {name: one.read(name) for name in one.names}
    each = [one.residues(row, layer).copy() for row in (0, 1) for layer in (1, 3)]
    tokens = json.loads(one.metadata["statistics"])["tokens"]
    three = embed(tmp_path, weights, proteins, settings, devices=["cpu"] * 3)
    assert set(three.names) == set(arrays)
    for name, array in arrays.items():
        if name != "starts" and not name.startswith("residues."):
            np.testing.assert_allclose(three.read(name), array, rtol=0, atol=2e-5)
    again = [three.residues(row, layer) for row in (0, 1) for layer in (1, 3)]
    for found, expected in zip(again, each, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert json.loads(three.metadata["statistics"])["tokens"] == tokens


def test_the_file_says_what_ran(tmp_path: Path, weights: Path) -> None:
    file = embed(tmp_path, weights, PROTEINS[:3], EmbeddingSettings(layers=(-1, 0)))
    manifest = read_manifest(weights / "w.safetensors")
    assert file.metadata["weights_sha256"] == manifest.sha256
    assert file.metadata["model"] == manifest.model
    assert file.metadata["attention"] == "standard_attention"
    assert file.metadata["attention_kernel"] == "sdpa"
    assert file.metadata["device"] == "cpu"
    assert file.metadata["demo"] == "false"
    assert file.metadata["precision"] == "auto"
    assert json.loads(file.metadata["precisions"]) == ["float32"]
    assert json.loads(file.metadata["layers"]) == [0, 3]
    assert json.loads(file.metadata["long_proteins"]) == {"policy": "window", "longest": 1022, "overlap": 511}
    statistics = json.loads(file.metadata["statistics"])
    assert statistics["proteins"] == 3
    assert statistics["residues"] == 7 + 1 + 166
    assert statistics["tokens"] == 7 + 1 + 166 + 6
    assert statistics["recomputed"] == statistics["out_of_memory_retries"] == 0
    assert statistics["peak_memory_bytes"] > 0
    assert 0 <= statistics["padding_avoided"] < 1


def overflowing_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint whose first layer overflows float16 for tryptophan and for nothing else."""
    state = random_state_dict(TINY, seed=5)
    for name in ("weight", "bias"):
        state[f"layers.0.self_attn.out_proj.{name}"].zero_()  # so that the layer sees the residue alone
    norm = torch.nn.functional.layer_norm(
        state["embed_tokens.weight"] * 0.88,
        (64,),
        state["layers.0.final_layer_norm.weight"],
        state["layers.0.final_layer_norm.bias"],
    )
    tryptophan = norm[22]
    state["layers.0.fc1.weight"][0] = 2000 * tryptophan / tryptophan.square().sum()
    state["layers.0.fc1.bias"][0] = -1400
    state["layers.0.fc2.weight"][:, 0] = 1000 * torch.linspace(-1, 1, 64)
    namespace = argparse.Namespace(
        encoder_layers=3, encoder_embed_dim=64, encoder_attention_heads=4, token_dropout=True
    )
    prefixed = {
        ("encoder." if name.startswith("lm_head") else "encoder.sentence_encoder.") + name: tensor
        for name, tensor in state.items()
        if not name.startswith("contact_head")
    }
    torch.save({"cfg": {"model": namespace}, "model": prefixed}, path)
    return state


def test_what_overflows_in_float16_is_done_again_in_float32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = overflowing_checkpoint(tmp_path / "esm2_loud.pt")
    prepare_weights(str(tmp_path / "esm2_loud.pt"), tmp_path / "w.safetensors", log=print)
    sequences = ["MKLVAG", "MKLWVAG", "ACDEFGHIK", "WW" + "A" * 90, "G" * 80]
    settings = EmbeddingSettings(precision="fp16", pooling=ALL, long_proteins=LongProteins("window", 60, 20))
    file = embed(tmp_path, tmp_path, sequences, settings)
    assert file.read("precision").tolist() == [0, 1, 0, 1, 0]
    assert json.loads(file.metadata["precisions"]) == ["float16", "float32"]
    assert json.loads(file.metadata["statistics"])["recomputed"] == 2
    assert "2 of 5 proteins overflow in float16: once more in a wider type" in caplog.text
    expected = oracle_residues(fair_esm(state, TINY), sequences[:3], [3])
    for pooling in ("mean", "bos", "max"):
        assert np.isfinite(file.read(f"{pooling}.3")).all()
    for row in range(len(sequences)):
        torch.testing.assert_close(vector(file, "max", row, 3), residues(file, row, 3).amax(0), rtol=0, atol=0)
    torch.testing.assert_close(residues(file, 1, 3), expected[1][3], rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(residues(file, 0, 3), expected[0][3], rtol=0, atol=2e-2)


def test_what_overflows_is_done_in_bfloat16_where_float32_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    overflowing_checkpoint(tmp_path / "esm2_loud.pt")
    prepare_weights(str(tmp_path / "esm2_loud.pt"), tmp_path / "w.safetensors", log=print)
    right = load_model

    def too_large(*args: Any, precision: str, **options: Any) -> Any:
        if precision == "fp32":
            raise UserError("w.safetensors needs about 60.0 GB in float32")
        return right(*args, precision=precision, **options)

    monkeypatch.setattr(embed_module, "load_model", too_large)
    file = embed(tmp_path, tmp_path, ["MKLVAG", "MKLWVAG"], EmbeddingSettings(precision="fp16"))
    assert file.read("precision").tolist() == [0, 1]
    assert json.loads(file.metadata["precisions"]) == ["float16", "bfloat16"]
    assert np.isfinite(file.read("mean.3")).all()
    assert "60.0 GB in float32; what overflowed is computed in bfloat16 instead" in caplog.text


def test_values_that_are_not_finite_even_in_float32_are_an_error_that_names_proteins(
    tmp_path: Path, weights: Path
) -> None:
    manifest, tensors = load_weights(weights / "w.safetensors")
    tensors["layers.1.fc2.bias"] = torch.full_like(tensors["layers.1.fc2.bias"], 3e38)
    write_weights(tmp_path / "w.safetensors", tensors, manifest, source=tmp_path)
    with pytest.raises(UserError, match=r"no finite embedding even in float32 \(first: 'p0'"):
        embed(tmp_path, tmp_path, PROTEINS[:2], EmbeddingSettings(precision="bf16"))
    assert not (tmp_path / "out.safetensors").exists()


def test_a_fasta_that_is_not_the_manifests_is_refused(tmp_path: Path, weights: Path) -> None:
    fasta = write_chunk(tmp_path, PROTEINS[:3])
    fasta.write_text(fasta.read_text().replace(PROTEINS[2], PROTEINS[2][:-1]))
    with pytest.raises(UserError, match="does not hold the proteins that chunk_00003 was made with"):
        embed_chunk(
            fasta,
            weights / "w.safetensors",
            tmp_path / "out.safetensors",
            EmbeddingSettings(),
            devices=["cpu"],
            logger=LOGGER,
        )
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"chunk": "a"}'])
def test_a_damaged_chunk_manifest_is_a_sentence(tmp_path: Path, weights: Path, text: str) -> None:
    fasta = write_chunk(tmp_path, ["MK"])
    fasta.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match=r"chunk_00003\.json"):
        embed_chunk(
            fasta,
            weights / "w.safetensors",
            tmp_path / "out.safetensors",
            EmbeddingSettings(),
            devices=["cpu"],
            logger=LOGGER,
        )


def test_a_workers_error_is_the_jobs_error(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(UserError, match=r"^cpu: precision int8 needs a GPU"):
        embed(tmp_path, weights, ["MKLV", "MK"], EmbeddingSettings(precision="int8"), devices=["cpu", "cpu"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunk_00003.fasta", "chunk_00003.json"]


@pytest.mark.parametrize("devices", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_process_of_several_loses_its_part_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture, devices: int
) -> None:
    """The first that says something, with its task begun, is killed; one more process is started, for its share."""
    sequences = [random_protein(30 + number, number) for number in range(20)]
    settings = EmbeddingSettings(pooling=("mean", "per_residue"))
    expected = embed(tmp_path, weights, sequences, settings)
    vectors = [vector(expected, "mean", row, 3) for row in range(20)]
    kept = [residues(expected, row, 3) for row in range(20)]
    listen = DeviceProcess.listen
    killed: list[DeviceProcess] = []
    fresh: list[DeviceProcess] = []

    def listen_and_kill(process: DeviceProcess, logger: logging.Logger) -> bool:
        goes_on = listen(process, logger)
        if not killed:
            killed.append(process)
            process._process.kill()
        return goes_on

    def start(device: str) -> DeviceProcess:
        fresh.append(DeviceProcess(device))
        return fresh[-1]

    monkeypatch.setattr(DeviceProcess, "listen", listen_and_kill)
    monkeypatch.setattr(devices_module, "DeviceProcess", start)
    found = embed(tmp_path, weights, sequences, settings, devices=["cpu"] * devices)
    assert len(killed) == len(fresh) == 1
    (warning,) = [message for message in caplog.messages if "once more" in message]
    assert warning.startswith("the process of cpu ended with signal SIGKILL before it was done")
    for row in range(20):
        torch.testing.assert_close(vector(found, "mean", row, 3), vectors[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(residues(found, row, 3), kept[row], rtol=0, atol=1e-5)


def test_a_killed_worker_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -KILL $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(processes_module, "sys", SimpleNamespace(executable=str(program)))
    with pytest.raises(UserError, match="ended with signal SIGKILL"):
        embed(tmp_path, weights, ["MKLV", "MK"], EmbeddingSettings(), devices=["cpu", "cpu"])


def test_what_a_worker_says_is_logged_and_a_defect_brings_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "python"
    program.write_text("""#!/bin/sh\necho '["log", 30, "odd"]'\necho '["defect", "Traceback"]'\n""")
    program.chmod(0o755)
    monkeypatch.setattr(processes_module, "sys", SimpleNamespace(executable=str(program)))
    with pytest.raises(RuntimeError, match="the process of cpu failed:\nTraceback"):
        embed(tmp_path, weights, ["MKLV", "MK"], EmbeddingSettings(), devices=["cpu", "cpu"])
    assert "cpu: odd" in caplog.messages


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Standard input ends: a worker that has just begun ends too, long before it could have done its task."""
    root = str(Path(__file__).resolve().parents[2])
    worker = subprocess.Popen(
        [sys.executable, "-m", "virnucpro.engine.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": root},
    )
    time.sleep(0.5)
    assert worker.poll() is None
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=LONGEST_WAIT) == 1


def test_settings_are_checked() -> None:
    mistakes: tuple[dict[str, Any], ...] = (
        {"precision": "fp64"},
        {"pooling": ("sum",)},
        {"pooling": ()},
        {"layers": ()},
        {"long_proteins": "drop"},
        {"long_proteins": {"longest": 0}},
        {"long_proteins": {"overlap": 1022}},
        {"long_proteins": {"overlap": -1}},
        {"kernels": "fast"},
        {"token_budget": 0},
    )
    for wrong in mistakes:
        with pytest.raises(UserError):
            EmbeddingSettings(**wrong)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("last", (36,)),
        (36, (36,)),
        (-1, (36,)),
        ((0, -1, "last", 36, 5), (0, 5, 36)),
        (-37, (0,)),
    ],
)
def test_layers_are_resolved(given: object, expected: tuple[int, ...]) -> None:
    assert resolve_layers(given, 36) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [37, -38, (1, 99), "first", True, 1.0, (None,)])
def test_layers_that_do_not_exist_are_refused(given: object) -> None:
    with pytest.raises(UserError, match="layer"):
        resolve_layers(given if not isinstance(given, float) else (given,), 36)  # type: ignore[arg-type]


LONGEST_WAIT = 300
"""Seconds that a test waits for another process; a machine at full load may need many."""


def until(happened: Callable[[], bool]) -> bool:
    """Wait for something for :data:`LONGEST_WAIT` at most; whether it happened."""
    deadline = time.monotonic() + LONGEST_WAIT
    while not (done := happened()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done


def test_a_job_stopped_by_sigterm_leaves_no_process_behind(tmp_path: Path, weights: Path) -> None:
    fasta = write_chunk(tmp_path, [random_protein(1000, seed) for seed in range(400)])
    code = f"""
from pathlib import Path
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.engine.job import embed_chunk
from virnucpro.engine.load import load_model
from virnucpro.jobs import job
with job("t") as log:
    embed_chunk(Path({str(fasta)!r}), Path({str(weights / "w.safetensors")!r}),
                Path({str(tmp_path / "o")!r}), EmbeddingSettings(),
                devices=["cpu", "cpu"], threads=2, logger=log)
"""
    root = str(Path(__file__).resolve().parents[2])
    with (tmp_path / "log").open("w") as log:
        parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, stderr=log)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    until(lambda: parent.poll() is not None or len(children.read_text().split()) == 2)
    assert parent.poll() is None, (
        tmp_path / "log"
    ).read_text()  # without this, its own failure would look like slowness
    found = children.read_text().split()
    assert len(found) == 2
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=LONGEST_WAIT) == 143, (tmp_path / "log").read_text()
    # A process that was being started when the signal came ends by itself, at the end of its input.
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunk_00003.fasta", "chunk_00003.json", "log"]


def test_one_protein_needs_no_files_but_the_weights(weights: Path, oracle: ESM2) -> None:
    found = embed_proteins(
        [Protein("a", b"MKLV")],
        read_weights(weights / "w.safetensors"),
        EmbeddingSettings(),
        logger=LOGGER,
    )
    close(torch.from_numpy(found.tensors["mean.3"][0]), oracle_residues(oracle, ["MKLV"], [3])[0][3].mean(0))


def test_a_job_never_starts_more_threads_than_there_are_cores(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr("virnucpro.engine.job.usable_cores", lambda: 2)
    fasta = write_chunk(tmp_path, ["MKLV"])
    for threads, started in ((16, 2), (1, 1)):
        output, settings = tmp_path / "out.safetensors", EmbeddingSettings()
        file = weights / "w.safetensors"
        embed_chunk(fasta, file, output, settings, devices=["cpu"], threads=threads, logger=LOGGER)
        assert torch.get_num_threads() == started
