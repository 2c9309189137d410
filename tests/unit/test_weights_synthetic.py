"""Random checkpoints: fair-esm itself reads them, and they behave as trained ones where it matters."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import esm
import pytest
import torch

from tests.oracle import fair_esm, oracle_residues, random_protein
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE, ESM2_MODELS, Architecture, state_shapes
from virnucpro.models.esm2.synthetic import random_state_dict, write_checkpoint, write_demo_checkpoint

SMALL = Architecture(layers=3, embed_dim=64, heads=4)


@pytest.mark.parametrize("prefix", ["encoder.", "encoder.sentence_encoder."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fair_esm_loads_what_we_write(tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
    path = tmp_path / "esm2_small.pt"
    write_checkpoint(path, SMALL, seed=7, dtype=dtype, prefix=prefix)
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, _ = esm.pretrained.load_model_and_alphabet_local(path)
    expected = random_state_dict(SMALL, seed=7)
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name].to(dtype).float()), name


def test_inv_freq_survives_float16_and_differs_from_the_formula() -> None:
    inv_freq = random_state_dict(SMALL)["layers.0.self_attn.rot_emb.inv_freq"]
    formula = 1.0 / (10000 ** (torch.arange(0, SMALL.head_dim, 2).float() / SMALL.head_dim))
    assert torch.equal(inv_freq, formula.half().float())
    assert not torch.equal(inv_freq, formula)


def test_same_seed_same_file_and_another_seed_another(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("esm2_a.pt", 1), ("esm2_b.pt", 1), ("esm2_c.pt", 2)):
        write_checkpoint(tmp_path / name, SMALL, seed=seed)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_demo_weights_never_change(tmp_path: Path) -> None:
    # Not the file's sha256, which torch.save's own layout enters.
    write_demo_checkpoint(tmp_path / "esm2_demo.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "esm2_demo.pt", weights_only=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(content["model"].items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert digest.hexdigest() == "2eac91f09d7b386bf6aab375cd16054ca54ee647506e380b44acecf815f0dbd0"


@pytest.mark.parametrize("architecture", [SMALL, ESM2_MODELS["esm2_t6_8M_UR50D"]])
def test_outlier_channels_are_a_hundredfold_and_float32_stays_accurate(architecture: Architecture) -> None:
    state = random_state_dict(architecture, seed=1, outliers=True)
    layers = range(architecture.layers + 1)
    protein = [random_protein(150, seed=1)]
    found = oracle_residues(fair_esm(state, architecture), protein, layers)[0]
    for layer in range(architecture.layers):  # the last one is normalised
        channels = found[layer].pow(2).mean(0).sqrt().sort().values
        assert channels[-2] > 80 * channels.median(), layer
        assert channels[-3] < 4 * channels.median(), layer
    exact = oracle_residues(fair_esm(state, architecture, dtype=torch.float64), protein, layers)[0]
    last = architecture.layers
    assert found[last].isfinite().all()
    assert (found[last] - exact[last]).abs().max() < 5e-6


def test_without_outliers_attention_is_neither_flat_nor_one_peak() -> None:
    architecture = ESM2_MODELS["esm2_t6_8M_UR50D"]
    model = fair_esm(random_state_dict(architecture, seed=1), architecture)
    tokens = torch.randint(4, 24, (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        attention = model(tokens, need_head_weights=True)["attentions"]
    entropy = -(attention * attention.clamp_min(1e-12).log()).sum(-1).mean((0, 2, 3)) / torch.tensor(200.0).log()
    assert entropy.min() > 0.4
    assert entropy.max() < 0.9


@pytest.mark.parametrize("architecture", [DEMO_ARCHITECTURE, *ESM2_MODELS.values()])
def test_layout_is_fair_esms_own_at_every_size(architecture: Architecture) -> None:
    with torch.device("meta"):
        model = esm.model.esm2.ESM2(architecture.layers, architecture.embed_dim, architecture.heads)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == state_shapes(architecture)
    counted = sum(parameter.numel() for name, parameter in model.named_parameters() if name in architecture.shapes())
    assert counted == architecture.parameters


def test_unknown_prefix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prefix"):
        write_checkpoint(tmp_path / "esm2_x.pt", SMALL, prefix="decoder.")
