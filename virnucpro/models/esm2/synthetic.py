"""Seeded random ESM-2 checkpoints in fair-esm's own layout, for tests, benchmarks and ``esm2_demo``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.base.atomic import atomic_path
from virnucpro.checkpoints.torch_file import save_torch_file
from virnucpro.models.esm2.checkpoint import rounded_inv_freq
from virnucpro.models.esm2.sizes import (
    DEMO_ARCHITECTURE,
    PREFIXES,
    Architecture,
    contact_shapes,
    state_shapes,
)

DEMO_SEED = 20230317
"""Seed of ``esm2_demo``; its weights never change, so neither do the demo's embeddings."""

OUTLIER_SCALE = 100.0
"""Trained transformers have a few residual channels far larger than the rest
(Dettmers et al. 2022, arXiv:2208.07339; Sun et al. 2024, arXiv:2402.17762)."""

_STANDARD_DEVIATION = {"embed_tokens.weight": 0.6, "bias": 0.1, "contact_head.regression.weight": 0.5}
_GAIN = {"q_proj": 1.3, "k_proj": 1.3, "out_proj": 0.5, "fc2": 0.7}
"""Of a projection's weights, times fan_in**-0.5: attention logits get a standard deviation near
1.5, so that attention is neither flat nor a single peak, and the residual stream grows slowly."""


def random_state_dict(
    architecture: Architecture, *, seed: int = 0, outliers: bool = False, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Random weights of a whole ESM-2, LM head and contact head included.

    The same seed gives the same bits on every CPU (uniform numbers, and one rounding each); on a
    CUDA device the numbers are others, but again fixed by the seed.

    Args:
        outliers: scale a few channels of the residual stream a hundredfold, and the layer norms'
            gains against it, as training does.

    Returns:
        float32 tensors named as in fair-esm's ``ESM2.state_dict()``; ``lm_head.weight`` is
        ``embed_tokens.weight`` itself. ``inv_freq`` is rounded to float16, as in the released models.
    """
    return dict(_tensors(architecture, seed, outliers, torch.device(device)))


def write_checkpoint(
    path: Path,
    architecture: Architecture,
    *,
    seed: int = 0,
    outliers: bool = False,
    dtype: torch.dtype = torch.float32,
    prefix: str = "encoder.sentence_encoder.",
    regression: bool = True,
    device: torch.device | str = "cpu",
) -> None:
    """Write a random checkpoint that ``esm.pretrained.load_model_and_alphabet_local`` reads.

    fair-esm takes a file for ESM-2 if its name starts with ``esm2``. Since torch 2.6 its loader
    needs ``torch.serialization.safe_globals([argparse.Namespace])`` around it.

    Args:
        path: ``NAME.pt``.
        dtype: of every stored tensor, ``inv_freq`` too (the released 3B and 15B are float16).
        prefix: one of :data:`virnucpro.models.esm2.sizes.PREFIXES`.
        regression: also write ``NAME-contact-regression.pt`` beside, which fair-esm insists on.
    """
    if prefix not in PREFIXES:
        raise ValueError(f"prefix {prefix!r} is none of {PREFIXES}")
    contact = contact_shapes(architecture)
    model: dict[str, Tensor] = {}
    contact_model: dict[str, Tensor] = {}
    for name, tensor in _tensors(architecture, seed, outliers, torch.device(device)):
        if name in contact:
            contact_model[name] = tensor.to("cpu", dtype)
        elif name == "lm_head.weight":
            model["encoder.lm_head.weight"] = model[prefix + "embed_tokens.weight"]
        else:
            model[("encoder." if name.startswith("lm_head.") else prefix) + name] = tensor.to("cpu", dtype)
    cfg = argparse.Namespace(
        arch="roberta_large",
        encoder_layers=architecture.layers,
        encoder_embed_dim=architecture.embed_dim,
        encoder_attention_heads=architecture.heads,
        token_dropout=architecture.token_dropout,
    )
    _save(path, {"cfg": {"model": cfg}, "model": model})
    if regression:
        _save(path.with_name(f"{path.stem}-contact-regression.pt"), {"model": contact_model})


def write_demo_checkpoint(path: Path) -> None:
    """Write ``esm2_demo``: small, always the same, and without biological meaning."""
    write_checkpoint(path, DEMO_ARCHITECTURE, seed=DEMO_SEED, dtype=torch.float16)


def _save(path: Path, content: object) -> None:
    with atomic_path(path) as beside:
        save_torch_file(beside, content)


def _tensors(
    architecture: Architecture, seed: int, outliers: bool, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator(device).manual_seed(seed)
    embed_dim = architecture.embed_dim
    loud = torch.randperm(embed_dim, generator=generator, device=device)[: 2 if embed_dim < 640 else 4]
    embed_tokens = torch.empty(0)
    for name, shape in state_shapes(architecture).items():
        if name == "lm_head.weight":
            yield name, embed_tokens
            continue
        if name.endswith("inv_freq"):
            yield name, rounded_inv_freq(architecture.head_dim).to(device)
            continue
        tensor = _random(name, shape, generator, device)
        if name == "embed_tokens.weight":
            tensor[1] = 0.0  # the padding token's row, as torch.nn.Embedding keeps it
            embed_tokens = tensor
        if outliers:
            _make_loud(name, tensor, loud)
        yield name, tensor


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    kind, parameter = name.split(".")[-2:]
    centre = 0.0
    if name in _STANDARD_DEVIATION:
        deviation = _STANDARD_DEVIATION[name]
    elif parameter == "bias":
        deviation = _STANDARD_DEVIATION["bias"]
    elif "layer_norm" in kind:
        centre, deviation = 1.0, 0.2
    else:
        deviation = _GAIN.get(kind, 1.0) * shape[-1] ** -0.5
    numbers = torch.rand(shape, generator=generator, device=device).sub_(0.5)  # exact in float32
    numbers.mul_(deviation * math.sqrt(12.0))
    return numbers.add_(centre) if centre else numbers


def _make_loud(name: str, tensor: Tensor, loud: Tensor) -> None:
    """Scale what writes to the residual stream's ``loud`` channels, and the norms that read it."""
    if name == "embed_tokens.weight":
        # Near the same size for every token, as in trained models: else the norm's divisor would
        # vanish for some tokens. Both signs, or a small model's mean would be all theirs.
        sign = _alternating(loud)
        tensor[:, loud] = OUTLIER_SCALE * (_STANDARD_DEVIATION[name] * sign + 0.3 * tensor[:, loud])
        tensor[1] = 0.0
    elif name.endswith(("out_proj.weight", "fc2.weight")):
        tensor[loud] *= OUTLIER_SCALE / 20
    elif name.endswith(("out_proj.bias", "fc2.bias")):
        tensor[loud] = OUTLIER_SCALE * tensor[loud].abs() * _alternating(loud)
    elif "layer_norm" in name and name.endswith(".weight") and not name.startswith("lm_head."):
        # The norm divides by a deviation that the loud channels dominate; without this gain all
        # the others would vanish, and a test would see the loud ones alone. With all of it
        # the network would grow chaotic, and float32 no reference (both measured).
        tensor *= 0.8 * math.sqrt(1.0 + OUTLIER_SCALE**2 * loud.numel() / tensor.numel())
        tensor[loud] /= OUTLIER_SCALE


def _alternating(loud: Tensor) -> Tensor:
    return 1.0 - 2.0 * (torch.arange(loud.numel(), device=loud.device) % 2)
