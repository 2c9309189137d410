"""From FASTA to table, the numbers are fair-esm's: its own loader and float32 forward on the same checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from esm.pretrained import load_model_and_alphabet_local

from tests.oracle import random_protein
from tests.workflow.running import snakemake
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint

ARCHITECTURE = Architecture(layers=3, embed_dim=80, heads=4)
LENGTHS = [1, 2, 3, 7, 50, 51, 51, 333, 500, 767, 1021, 1022]
TOLERANCE = 2e-5


def fair_esm(checkpoint: Path, proteins: list[tuple[str, str]], layers: list[int]) -> dict[str, dict[int, np.ndarray]]:
    """Per-residue representations of proteins in one padded batch a length, as fair-esm's users compute them."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, alphabet = load_model_and_alphabet_local(str(checkpoint))
    model.eval()
    convert = alphabet.get_batch_converter()
    found = {}
    with torch.inference_mode():
        for name, sequence in proteins:
            tokens = convert([(name, sequence)])[2]
            result = model(tokens, repr_layers=layers)["representations"]
            found[name] = {layer: result[layer][0, 1 : len(sequence) + 1].numpy() for layer in layers}
    return found


@pytest.mark.parametrize(
    "outliers", [pytest.param(False, marks=pytest.mark.slow, id="random"), pytest.param(True, id="stressed")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_the_table_equals_fair_esm(outliers: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = tmp_path / "esm2_t3_test.pt"
    write_checkpoint(checkpoint, ARCHITECTURE, seed=3, outliers=outliers, dtype=dtype)
    proteins = [(f"p{number}", random_protein(length, number)) for number, length in enumerate(LENGTHS)]
    proteins.append(("odd", "MXBUZOA-.KV"))
    (tmp_path / "own.faa").write_text("".join(f">{name}\n{sequence}\n" for name, sequence in proteins))
    config = {"samples": "own.faa", "model": checkpoint, "layers": "[0,1,last]", "pooling": "[mean,per_residue]"}
    config["suspicious"] = "accept"  # all letters, gaps too
    result = snakemake(tmp_path, config=config)
    assert result.code == 0, result.text
    assert result.jobs["embed_esm2"] == 1

    table = pd.read_parquet(tmp_path / "results/own/embeddings.parquet").set_index("id")
    expected = fair_esm(checkpoint, proteins, [0, 1, 3])
    assert list(table.index) == [name for name, _ in proteins]
    for name, _ in proteins:
        for layer, residues in expected[name].items():
            scale = max(1.0, float(np.abs(residues).max()))
            pooled = np.abs(table.loc[name, f"embedding_{layer}"] - residues.mean(0)).max()
            assert pooled <= TOLERANCE * scale, (name, layer, pooled, scale)
            ours = np.stack(list(table[f"residues_{layer}"][name]))
            assert ours.shape == residues.shape
            assert np.abs(ours - residues).max() <= TOLERANCE * scale, (name, layer)
