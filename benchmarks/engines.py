"""Ways to embed, each as a function that makes a run: ours, and fair-esm's as esm-extract drives it.

A run computes the last layer's mean over residues of all proteins and returns nothing; weights are
random, which changes no one's speed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from esm.model.esm2 import ESM2
from torch import Tensor

from virnucpro.base.settings import LongProteins
from virnucpro.engine.batch import PackedPieces, cut_into_pieces
from virnucpro.engine.load import build_model
from virnucpro.engine.outputs import Outputs
from virnucpro.engine.run import default_budget, run_model
from virnucpro.models.esm2.family import ESM2_FAMILY
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import random_state_dict

LOGGER = logging.getLogger("bench")
Proteins = Sequence[np.ndarray]
Run = Callable[[], None]


def ours(
    architecture: Architecture,
    proteins: Proteins,
    device: torch.device,
    dtype: torch.dtype,
    *,
    fused: bool,
    budget: int | None = None,
) -> Run:
    """Our whole loop: batches made on the host, copied, run, pooled and brought back.

    Raises:
        RuntimeError: fused kernels were asked for and do not run.
    """
    state = random_state_dict(architecture, device=device)
    kernels = "auto" if fused or device.type == "cpu" else "eager"  # on a CPU as jobs run it, which is no fused form
    model = build_model(state, architecture, device=device, dtype=dtype, kernels=kernels, logger=LOGGER)
    if fused and model.facts.layers_run == "eager":
        raise RuntimeError("the fused kernels do not run; see the log")
    lengths = np.array([len(ids) for ids in proteins])
    names = [""] * len(proteins)
    # Once, because what the first run leaves in torch's cache is not free for CUDA.
    budget = budget or default_budget(architecture.embed_dim, device, 1, dtype)

    def run() -> None:
        packed = PackedPieces(proteins, cut_into_pieces(lengths, LongProteins("full")), ESM2_FAMILY.tokenizer())
        outputs = Outputs(lengths, (architecture.layers,), architecture.embed_dim)
        run_model(model, [packed], outputs, names=names, token_budget=budget, logger=LOGGER)
        outputs.finish()

    return run


def fair_esm(
    architecture: Architecture, proteins: Proteins, device: torch.device, dtype: torch.dtype, *, budget: int = 4096
) -> Run:
    """fair-esm as its ``scripts/extract.py`` drives it: sorted by length, padded, 4096 tokens a batch by default."""
    with torch.device(device):
        model = ESM2(architecture.layers, architecture.embed_dim, architecture.heads).eval().to(dtype)
    batches = padded_batches(proteins, budget)
    last = architecture.layers

    def run() -> None:
        with torch.inference_mode():
            for tokens, lengths in batches:
                hidden = model(tokens.to(device), repr_layers=[last])["representations"][last]
                means = [hidden[row, 1 : length + 1].mean(0) for row, length in enumerate(lengths)]
                torch.stack(means).float().cpu()

    return run


def padded_batches(proteins: Proteins, budget: int) -> list[tuple[Tensor, list[int]]]:
    """Longest first, padded with 1; sequences times the longest stay within the budget."""
    found = []
    batch: list[np.ndarray] = []
    for ids in sorted(proteins, key=len, reverse=True):
        if batch and (len(batch) + 1) * (len(batch[0]) + 2) > budget:
            found.append(_pad(batch))
            batch = []
        batch.append(ids)
    return [*found, _pad(batch)]


def _pad(batch: list[np.ndarray]) -> tuple[Tensor, list[int]]:
    tokens = torch.ones(len(batch), len(batch[0]) + 2, dtype=torch.int64)
    for row, ids in enumerate(batch):
        tokens[row, : len(ids) + 2] = torch.tensor([0, *ids.tolist(), 2])
    return tokens, [len(ids) for ids in batch]
