"""The same protein, the same bits: whatever it is embedded with, on one GPU model with one set of versions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from virnucpro.base.settings import EmbeddingSettings
from virnucpro.cuda.devices import capability
from virnucpro.engine.embed import Protein, embed_proteins
from virnucpro.models.esm2.sizes import ESM2_MODELS
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.precision import INT8
from virnucpro.weights.manifest import read_weights
from virnucpro.weights.prepare import prepare_weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]

LOGGER = logging.getLogger("test")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LENGTHS = [1, 2, 17, 64, 100, 166, 166, 167, 300, 479, 481, 700, 1022, 1500, *range(30, 900, 29)]


@pytest.fixture(scope="module", params=["esm2_t6_8M_UR50D", "esm2_t12_35M_UR50D", "esm2_t33_650M_UR50D"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    device = torch.device("cuda", 0)
    write_checkpoint(folder / "w.pt", ESM2_MODELS[request.param], regression=False, device=device)
    prepare_weights(str(folder / "w.pt"), folder / "w.safetensors", log=print)
    return folder / "w.safetensors"


def proteins() -> list[Protein]:
    generator = np.random.default_rng(5)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWYX", np.uint8)
    return [Protein(f"p{number}", generator.choice(letters, length).tobytes()) for number, length in enumerate(LENGTHS)]


def embedded(weights: Path, chosen: Sequence[Protein], precision: str, budget: int | None) -> list[bytes]:
    """Of each protein the bytes of its mean and of its residues."""
    settings = EmbeddingSettings(precision=precision, pooling=("mean", "per_residue"), token_budget=budget)
    found = embed_proteins(chosen, read_weights(weights), settings, device="cuda:0", logger=LOGGER).tensors
    last = max(int(name.split(".")[1]) for name in found if name.startswith("mean."))
    ends = found["starts"] + found["embedded"]
    return [
        mean.tobytes() + found[f"residues.{last}"][start:end].tobytes()
        for mean, start, end in zip(found[f"mean.{last}"], found["starts"], ends, strict=True)
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_protein_has_the_same_bits(weights: Path, precision: str) -> None:
    if precision == "int8" and capability(torch.device("cuda", 0)) < INT8:
        pytest.skip("products of integers need compute capability 7.5")
    all_of_them = proteins()
    expected = embedded(weights, all_of_them, precision, None)
    different: dict[str, list[int]] = {}

    def compare(how: str, rows: Sequence[int], budget: int | None) -> None:
        found = embedded(weights, [all_of_them[row] for row in rows], precision, budget)
        wrong = [LENGTHS[row] for row, own in zip(rows, found, strict=True) if own != expected[row]]
        if wrong:
            different[how] = wrong

    every = list(range(len(LENGTHS)))
    for budget in (1024, 1500, 4096, 32768):
        compare(f"budget {budget}", every, budget)
    compare("other order", every[::-1], None)
    compare("a part", every[::3], None)
    for row in range(0, len(LENGTHS), 4):
        compare(f"alone, {LENGTHS[row]} residues", [row], None)
    assert not different
