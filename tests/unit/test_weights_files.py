"""Prepared weights: exact, deterministic, whole or absent, checked when loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from virnucpro.base.errors import UserError
from virnucpro.models.esm2.checkpoint import read_checkpoint
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE, DEMO_WARNING, Architecture, embedding_shapes
from virnucpro.models.esm2.synthetic import random_state_dict, write_checkpoint
from virnucpro.weights.find import locate_checkpoint
from virnucpro.weights.manifest import read_manifest
from virnucpro.weights.prepare import load_state_dict, prepare_weights, verify_weights

SMALL = Architecture(layers=2, embed_dim=32, heads=4)


def silent(_: str) -> None:
    pass


def prepare(tmp_path: Path, source: Path) -> tuple[Path, Path]:
    weights, manifest = tmp_path / "resources" / "x.safetensors", tmp_path / "resources" / "x.json"
    prepare_weights(str(source), weights, manifest, log=silent)
    return weights, manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "esm2_small.pt"
    write_checkpoint(path, SMALL, seed=5, dtype=torch.float16, outliers=True)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_embedding_part_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    source = tmp_path / "esm2_small.pt"
    write_checkpoint(source, SMALL, seed=5, dtype=dtype)
    weights, manifest = prepare(tmp_path, source)
    expected = random_state_dict(SMALL, seed=5)
    for found in (load_state_dict(weights, manifest=read_manifest(manifest)), load_file(weights)):
        assert set(found) == set(embedding_shapes(SMALL))  # no LM head, no contact head
        for name, tensor in found.items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, expected[name].to(dtype)), name
    assert read_manifest(manifest).dtype == str(dtype).removeprefix("torch.")


def test_manifest_tells_what_it_is_and_never_when(tmp_path: Path, source: Path) -> None:
    weights, manifest = prepare(tmp_path, source)
    content = read_manifest(manifest)
    assert content.architecture == SMALL
    assert content.model == "esm2_small"
    assert content.parameters == SMALL.parameters
    assert content.bytes == weights.stat().st_size
    assert not content.demo
    first = manifest.read_bytes(), weights.read_bytes()
    os.utime(source, (1, 1))
    prepare(tmp_path, source)
    assert (manifest.read_bytes(), weights.read_bytes()) == first
    assert list(json.loads(first[0])) == [
        "model", "sha256", "source_sha256", "layers", "embed_dim", "heads",
        "token_dropout", "dtype", "parameters", "demo", "bytes",
    ]  # fmt: skip
    verify_weights(weights, content)


def test_the_data_are_aligned_for_mapping(tmp_path: Path, source: Path) -> None:
    weights, _ = prepare(tmp_path, source)
    head = int.from_bytes(weights.read_bytes()[:8], "little")
    assert (8 + head) % 64 == 0
    with safe_open(weights, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_demo_is_made_on_the_spot_and_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    lines: list[str] = []
    content = prepare_weights("esm2_demo", tmp_path / "d.safetensors", tmp_path / "d.json", log=lines.append)
    assert content.demo
    assert content.model == "esm2_demo"
    assert content.architecture == DEMO_ARCHITECTURE
    assert any(DEMO_WARNING in line for line in lines)
    assert not (tmp_path / "torch").exists()  # the cache that is shared with fair-esm stays clean
    found = locate_checkpoint("esm2_demo", lines.append)
    assert found.is_file()
    assert (
        prepare_weights(str(found), tmp_path / "e.safetensors", tmp_path / "e.json", log=silent).sha256
        == content.sha256
    )


def test_a_relative_path_a_home_path_and_wrong_ones(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in ("esm2_small.pt", "./esm2_small.pt", "~/esm2_small.pt", str(source)):
        assert locate_checkpoint(model, silent).samefile(source)
    for model, says in [
        ("esm2_smal.pt", "no checkpoint at"),
        (str(tmp_path), "is a folder"),
        ("esm2_t36_3B", "esm2_t36_3B_UR50D"),
        ("nowhere/x", "no checkpoint at"),
    ]:
        with pytest.raises(UserError, match=says):
            locate_checkpoint(model, silent)


def test_a_file_of_another_size_under_a_released_name_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    source.rename(cache / "esm2_t6_8M_UR50D.pt")
    with pytest.raises(UserError, match="is not esm2_t6_8M_UR50D"):
        prepare_weights("esm2_t6_8M_UR50D", tmp_path / "w.safetensors", tmp_path / "w.json", log=silent)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_leaves_nothing(tmp_path: Path, source: Path, bad: float) -> None:
    content = torch.load(source, weights_only=False)
    content["model"]["encoder.sentence_encoder.layers.1.fc2.weight"][3, 4] = bad
    torch.save(content, source)
    with pytest.raises(UserError, match=r"layers\.1\.fc2\.weight holds a number that is not finite"):
        prepare(tmp_path, source)
    assert not list((tmp_path / "resources").iterdir())


def test_a_bad_checkpoint_leaves_the_older_weights_alone(tmp_path: Path, source: Path) -> None:
    weights, manifest = prepare(tmp_path, source)
    before = weights.read_bytes(), manifest.read_bytes()
    whole = bytearray(source.read_bytes())
    weight = read_checkpoint(source).state["layers.0.fc1.weight"].numpy().tobytes()
    whole[whole.index(weight) + 9] ^= 4
    source.write_bytes(whole)
    with pytest.raises(UserError, match="damaged"):
        prepare(tmp_path, source)
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut short"):
        prepare(tmp_path, source)
    assert (weights.read_bytes(), manifest.read_bytes()) == before
    assert len(list(weights.parent.iterdir())) == 2


def test_weights_cut_short_or_swapped_or_flipped_are_noticed(tmp_path: Path, source: Path) -> None:
    weights, manifest = prepare(tmp_path, source)
    content = read_manifest(manifest)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    for checked in (content, None):
        with pytest.raises(UserError, match=r"bytes|cut short"):
            load_state_dict(weights, manifest=checked)
    weights.write_bytes(whole[:100])
    with pytest.raises(UserError, match="cut short"):
        load_state_dict(weights)
    weights.write_bytes(whole)
    other = replace(content, layers=3)
    with pytest.raises(UserError, match=r"layers\.2\.fc1\.bias has shape None"):
        load_state_dict(weights, manifest=other)
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    weights.write_bytes(flipped)
    load_state_dict(weights, manifest=content)  # too quick to see it
    with pytest.raises(UserError, match="sha256"):
        verify_weights(weights, content)
    weights.unlink()
    with pytest.raises(UserError, match="prepare_weights"):
        load_state_dict(weights)
    with pytest.raises(UserError, match="prepare_weights"):
        verify_weights(weights, content)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": "x"}', None])
def test_what_is_no_manifest(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="manifest"):
        read_manifest(path)


def test_a_manifest_with_a_wrong_value(tmp_path: Path, source: Path) -> None:
    _, path = prepare(tmp_path, source)
    path.write_text(path.read_text().replace('"layers": 2', '"layers": true'))
    with pytest.raises(UserError, match="layers is True"):
        read_manifest(path)


MEASURE = """
import sys, threading, time
from pathlib import Path
from virnucpro.weights.prepare import load_state_dict, prepare_weights
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024
folder, before, peak = Path(sys.argv[1]), anonymous(), [0]
def watch():
    while True:
        peak[0] = max(peak[0], anonymous() - before)
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
prepare_weights(str(folder / "esm2_big.pt"), folder / "w.safetensors", folder / "w.json", log=lambda line: None)
state = load_state_dict(folder / "w.safetensors")
total = sum(float(tensor.flatten()[0]) for tensor in state.values())
time.sleep(0.05)
print(peak[0])
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Memory of its own (not the mapped files, which the kernel can drop) while converting and loading 400 MB."""
    architecture = Architecture(layers=8, embed_dim=1024, heads=16)
    write_checkpoint(tmp_path / "esm2_big.pt", architecture, regression=False)
    assert (tmp_path / "esm2_big.pt").stat().st_size > 380_000_000
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120, f"{done.stdout} MiB"
