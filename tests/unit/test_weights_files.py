"""Prepared weights: exact, deterministic, whole or absent, checked when loaded."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from virnucpro.base.errors import UserError
from virnucpro.models.base import Checkpoint
from virnucpro.models.esm2.checkpoint import read_checkpoint
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE, DEMO_WARNING, Architecture
from virnucpro.models.esm2.synthetic import random_state_dict, write_checkpoint
from virnucpro.weights import file as weights_file
from virnucpro.weights.file import load_weights, verified_weights, write_weights
from virnucpro.weights.locate import locate_checkpoint
from virnucpro.weights.manifest import WeightsManifest, read_manifest
from virnucpro.weights.prepare import prepare_weights

SMALL = Architecture(layers=2, embed_dim=32, heads=4)


def silent(_: str) -> None:
    pass


def prepare(tmp_path: Path, source: Path) -> Path:
    weights = tmp_path / "resources" / "x.safetensors"
    prepare_weights(str(source), weights, log=silent)
    return weights


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "esm2_small.pt"
    write_checkpoint(path, SMALL, seed=5, dtype=torch.float16, outliers=True)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_embedding_part_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    source = tmp_path / "esm2_small.pt"
    write_checkpoint(source, SMALL, seed=5, dtype=dtype)
    weights = prepare(tmp_path, source)
    expected = random_state_dict(SMALL, seed=5)
    for found in (load_weights(weights)[1], load_file(weights)):
        assert set(found) == set(SMALL.shapes())  # no LM head, no contact head
        for name, tensor in found.items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, expected[name].to(dtype)), name
    assert read_manifest(weights).dtype == str(dtype).removeprefix("torch.")


def test_manifest_tells_what_it_is_and_never_when(tmp_path: Path, source: Path) -> None:
    weights = prepare(tmp_path, source)
    content = read_manifest(weights)
    assert content.architecture == SMALL
    assert content.model == f"esm2_small-{content.source_sha256[:12]}"
    assert content.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert content.parameters == SMALL.parameters
    assert not content.demo
    first = weights.read_bytes()
    os.utime(source, (1, 1))
    prepare(tmp_path, source)
    assert weights.read_bytes() == first


def test_the_data_are_aligned_for_mapping(tmp_path: Path, source: Path) -> None:
    weights = prepare(tmp_path, source)
    head = int.from_bytes(weights.read_bytes()[:8], "little")
    assert (8 + head) % 64 == 0
    with safe_open(weights, framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_the_demo_is_made_on_the_spot_and_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    lines: list[str] = []
    content = prepare_weights("esm2_demo", tmp_path / "d.safetensors", log=lines.append)
    assert content.demo
    assert content.model == "esm2_demo"
    assert content.architecture == DEMO_ARCHITECTURE
    assert any(DEMO_WARNING in line for line in lines)
    assert not (tmp_path / "torch").exists()  # the cache that is shared with fair-esm stays clean
    found = locate_checkpoint("esm2_demo", lines.append)
    assert found.is_file()
    assert prepare_weights(str(found), tmp_path / "e.safetensors", log=silent).sha256 == content.sha256


def test_a_relative_path_a_home_path_and_wrong_ones(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in ("esm2_small.pt", "./esm2_small.pt", "~/esm2_small.pt", str(source)):
        assert locate_checkpoint(model, silent).samefile(source)
    for model, says in [
        ("esm2_smal.pt", "esm2_smal.pt does not exist"),
        (str(tmp_path), "holds no checkpoint: give the path of the file in it"),
        ("esm2_t36_3B", "esm2_t36_3B_UR50D"),
        ("./nowhere/x", "nowhere/x does not exist"),
        ("nowhere/x", "cannot get nowhere/x from the hub, and no path here is called so"),
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
        prepare_weights("esm2_t6_8M_UR50D", tmp_path / "w.safetensors", log=silent)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_leaves_nothing(tmp_path: Path, source: Path, bad: float) -> None:
    content = torch.load(source, weights_only=False)
    content["model"]["encoder.sentence_encoder.layers.1.fc2.weight"][3, 4] = bad
    torch.save(content, source)
    with pytest.raises(UserError, match=r"layers\.1\.fc2\.weight holds a number that is not finite"):
        prepare(tmp_path, source)
    assert not list((tmp_path / "resources").iterdir())


def test_a_bad_checkpoint_leaves_the_older_weights_alone(tmp_path: Path, source: Path) -> None:
    weights = prepare(tmp_path, source)
    before = weights.read_bytes()
    whole = bytearray(source.read_bytes())
    weight = read_checkpoint(source).state["layers.0.fc1.weight"].numpy().tobytes()
    whole[whole.index(weight) + 9] ^= 4
    source.write_bytes(whole)
    with pytest.raises(UserError, match="damaged"):
        prepare(tmp_path, source)
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut short"):
        prepare(tmp_path, source)
    assert weights.read_bytes() == before
    assert len(list(weights.parent.iterdir())) == 1


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path, source: Path) -> None:
    weights = prepare(tmp_path, source)
    whole = weights.read_bytes()
    places = random.Random(0).sample(range(len(whole)), 300)
    header = int.from_bytes(whole[:8], "little")
    for place in {*places, *range(8), 8, 8 + header - 1, 8 + header, len(whole) - 1}:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        weights.write_bytes(flipped)
        try:
            content = load_weights(weights)[0]
        except UserError:
            continue
        # A bit of the padding behind the header's JSON says nothing.
        assert whole[place : place + 1] == b" ", place
        assert content == manifest_of(tmp_path, source)
    for end in (0, 5, 100, 8 + header, len(whole) - 1):
        weights.write_bytes(whole[:end])
        with pytest.raises(UserError, match="cut short"):
            load_weights(weights)
    weights.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="too long"):
        load_weights(weights)
    weights.unlink()
    for read in (load_weights, read_manifest):
        with pytest.raises(UserError, match="prepare_weights"):
            read(weights)


def manifest_of(tmp_path: Path, source: Path) -> WeightsManifest:
    return prepare_weights(str(source), tmp_path / "again.safetensors", log=silent)


def test_weights_of_another_program_and_of_other_sizes(tmp_path: Path, source: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="is no record"):
        read_manifest(tmp_path / "foreign.safetensors")
    checkpoint = read_checkpoint(source)
    manifest = manifest_of(tmp_path, source)
    manifest = replace(manifest, architecture=replace(SMALL, layers=3))
    write_weights(tmp_path / "w.safetensors", embedding_part(checkpoint), manifest, source=source)
    with pytest.raises(UserError, match=r"layers\.2\.fc1\.bias has shape None"):
        load_weights(tmp_path / "w.safetensors")


def embedding_part(checkpoint: Checkpoint[Architecture]) -> dict[str, torch.Tensor]:
    return {name: checkpoint.state[name] for name in checkpoint.architecture.shapes()}


def test_weights_are_named_by_content(tmp_path: Path, source: Path) -> None:
    """Two files of one name are two models, and no file is taken for a released model because it is called so."""
    named = tmp_path / "esm2_t6_8M_UR50D.pt"
    source.rename(named)
    first = prepare_weights(str(named), tmp_path / "a.safetensors", log=silent)
    write_checkpoint(named, SMALL, seed=6)
    second = prepare_weights(str(named), tmp_path / "b.safetensors", log=silent)
    assert first.model.startswith("esm2_t6_8M_UR50D-")
    assert first.model != second.model
    assert first.model.endswith(first.source_sha256[:12])


def test_a_checkpoint_that_is_not_the_one_named_or_changes_meanwhile(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UserError, match="changed while it was read"):
        prepare_weights(str(source), tmp_path / "w.safetensors", digests=("0" * 64, None), log=silent)

    def write_meanwhile(line: str) -> None:
        if line.startswith("writing"):
            os.utime(source)

    with pytest.raises(UserError, match="changed while it was read"):
        prepare_weights(str(source), tmp_path / "w.safetensors", log=write_meanwhile)
    assert not (tmp_path / "w.safetensors").exists()


def test_weights_replaced_while_they_are_read(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = prepare(tmp_path, source)
    other = tmp_path / "other.safetensors"
    write_checkpoint(source, SMALL, seed=9)
    prepare_weights(str(source), other, log=silent)

    def replaced(*arguments: Any, **options: Any) -> object:
        other.replace(weights)
        return safe_open(*arguments, **options)

    monkeypatch.setattr(weights_file, "safe_open", replaced)
    with pytest.raises(UserError, match="replaced while they were read"):
        load_weights(weights)


def test_damaged_weights_are_the_reason_of_what_fails_with_them(tmp_path: Path, source: Path) -> None:
    weights = prepare(tmp_path, source)
    with pytest.raises(RuntimeError, match="something else"), verified_weights(weights):
        raise RuntimeError("something else")
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(UserError, match="are damaged"), verified_weights(weights):
        raise RuntimeError("something else")


MEASURE = """
import sys, threading, time
from pathlib import Path
from virnucpro.weights.file import load_weights
from virnucpro.weights.prepare import prepare_weights
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024
folder, before, peak = Path(sys.argv[1]), anonymous(), [0]
def watch():
    while True:
        peak[0] = max(peak[0], anonymous() - before)
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
prepare_weights(str(folder / "esm2_big.pt"), folder / "w.safetensors", log=lambda line: None)
state = load_weights(folder / "w.safetensors")[1]
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
