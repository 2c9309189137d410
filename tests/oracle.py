"""fair-esm in float32: the truth that our numbers are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from esm.data import Alphabet
from esm.model.esm2 import ESM2
from torch import Tensor

from virnucpro.models.esm2.sizes import Architecture

if TYPE_CHECKING:
    from virnucpro.kernels.rows8 import Rows  # needs Triton

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO.-"


def random_protein(length: int, seed: int) -> str:
    """A random sequence over every residue that has a token, the rare ones among them."""
    letters = np.random.default_rng([seed, length]).choice(list(RESIDUES), size=length)
    return "".join(letters)


def fair_esm(
    state: Mapping[str, Tensor], architecture: Architecture, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> ESM2:
    """fair-esm's own ESM-2 with these parameters, in eval mode and ``dtype`` (its own ``.to``)."""
    with torch.device("meta"):
        model = ESM2(
            architecture.layers, architecture.embed_dim, architecture.heads, token_dropout=architecture.token_dropout
        )
    model.load_state_dict(dict(state), assign=True)
    return model.eval().to(device=device, dtype=dtype)


def oracle_tokens(model: ESM2, sequences: Sequence[str], layers: Sequence[int]) -> list[dict[int, Tensor]]:
    """Representations of all tokens, each sequence run alone.

    Returns:
        For each sequence and layer ``(residues + 2, D)`` in the model's dtype, BOS first and EOS last.
    """
    convert = Alphabet.from_architecture("ESM-1b").get_batch_converter()
    device = model.embed_tokens.weight.device
    found = []
    with torch.inference_mode():
        for sequence in sequences:
            tokens = convert([("", sequence)])[2].to(device)
            representations = model(tokens, repr_layers=list(layers))["representations"]
            found.append({layer: representations[layer][0] for layer in layers})
    return found


def oracle_residues(model: ESM2, sequences: Sequence[str], layers: Sequence[int]) -> list[dict[int, Tensor]]:
    """The same without BOS and EOS: ``(residues, D)``."""
    return [{layer: found[layer][1:-1] for layer in layers} for found in oracle_tokens(model, sequences, layers)]


def oracle_mean(model: ESM2, sequences: Sequence[str], layers: Sequence[int]) -> list[dict[int, Tensor]]:
    """Mean over the residues, as fair-esm's ``esm-extract --include mean`` has it: ``(D,)`` a layer."""
    return [{k: v.mean(0) for k, v in found.items()} for found in oracle_residues(model, sequences, layers)]


def as_numbers(rows: Rows, split: int = 0) -> Tensor:
    """What rows of integers stand for, float32; the first ``split`` channels have two integers."""
    values = rows.values.float()
    whole = values[:, split:] - rows.zeros[:, None]
    if split:
        whole[:, :split] = 256 * values[:, :split] + values[:, split : 2 * split]
    return whole * rows.scales[:, None]
