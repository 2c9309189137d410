"""What float8 weights do to the average token, and biases that undo it.

Rounding a weight changes every token's product by the same matrix. For the part of the input that all tokens share,
their mean, that change is one vector for each product: computed once on some proteins and taken from the bias, it no
longer adds up over the residues of a protein (Nagel et al. 2019, arXiv:1906.04721, bias correction).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.models.layer import embed_tokens, feed_forward_hidden, normalise, project_qkv
from virnucpro.models.parameters import LayerParameters
from virnucpro.models.rotary import rotary_tables
from virnucpro.models.segments import Segments

if TYPE_CHECKING:
    from virnucpro.models.packed import PackedESM2

PROTEINS = 32
BOS, FIRST_RESIDUE, EOS = 0, 4, 2
PERCENT = (9.7, 8.3, 7.1, 6.9, 6.7, 6.7, 5.5, 5.4, 5.9, 5.5, 4.7, 5.8, 3.9, 4.1, 3.9, 2.9, 2.4, 2.3, 1.1, 1.4)
"""Share of L A G V S E R T I D P K Q N F Y M H W C (token ids 4 to 23) in Swiss-Prot, by its own statistics."""


class MeanInputs(NamedTuple):
    """Mean over tokens of what enters each product of a layer: float32 ``(D,)``, and ``(4 D,)`` for ``fc2``."""

    qkv: Tensor
    out: Tensor
    fc1: Tensor
    fc2: Tensor


def calibration_batch(device: torch.device) -> tuple[Tensor, Segments]:
    """Token ids of random proteins of 30 to 500 residues, always the same ones, packed."""
    generator = np.random.default_rng(0)
    shares = np.array(PERCENT) / sum(PERCENT)
    parts = []
    for length in np.linspace(30, 500, PROTEINS).astype(int):
        residues = FIRST_RESIDUE + generator.choice(len(shares), length, p=shares)
        parts.append(np.concatenate(([BOS], residues, [EOS])))
    tokens = torch.from_numpy(np.concatenate(parts)).to(device)
    return tokens, Segments.from_lengths([len(part) for part in parts], device)


def mean_inputs(model: PackedESM2) -> list[MeanInputs]:
    """Run the calibration batch through a model's own weights, layer by layer."""
    tokens, segments = calibration_batch(model.device)
    parameters, architecture = model.parameters, model.architecture
    x = embed_tokens(
        tokens, parameters.embed_tokens, segments.sequence, len(segments.lengths), architecture.token_dropout
    )
    found = []
    for p, inv_freq in zip(parameters.layers, parameters.inv_freq, strict=True):
        tables = rotary_tables(inv_freq, segments.positions)
        entering = normalise(x, p.attention_norm_weight, p.attention_norm_bias)
        q, k, v = project_qkv(x, p, *tables, architecture.heads, model.q_scale)
        attended = model.attention(q, k, v, segments).reshape(x.shape)
        x = x + F.linear(attended, p.out_weight, p.out_bias)
        y = normalise(x, p.final_norm_weight, p.final_norm_bias)
        hidden = feed_forward_hidden(y.to(p.fc1_weight.dtype), p)
        x = x + F.linear(hidden, p.fc2_weight, p.fc2_bias)
        found.append(MeanInputs(*(one.float().mean(0) for one in (entering, attended, y, hidden))))
    return found


def corrected(p: LayerParameters, rounded: Sequence[Tensor], means: MeanInputs) -> LayerParameters:
    """A layer whose biases make up for what rounding its weights does to the mean input.

    Args:
        rounded: the weights as they will be used: those of q, k and v, of the output, of fc1 and of fc2.

    Returns:
        ``p`` with other biases, float32.
    """
    weights = (p.qkv_weight, p.out_weight, p.fc1_weight, p.fc2_weight)
    biases = (p.qkv_bias, p.out_bias, p.fc1_bias, p.fc2_bias)
    qkv, out, fc1, fc2 = (
        bias.float() + (weight.float() - used.float()) @ mean
        for bias, weight, used, mean in zip(biases, weights, rounded, means, strict=True)
    )
    return p._replace(qkv_bias=qkv, out_bias=out, fc1_bias=fc1, fc2_bias=fc2)
