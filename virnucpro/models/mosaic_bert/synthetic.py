"""Seeded random MosaicBERT weights, for tests, benchmarks and ``dnabert_s_demo``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from virnucpro.base.atomic import atomic_path
from virnucpro.base.guarded_file import GuardedFile
from virnucpro.checkpoints.files import TOKENIZER
from virnucpro.models.mosaic_bert.sizes import DEMO_MODEL, DEMO_SIZES, MosaicSizes
from virnucpro.models.mosaic_bert.tokenizer import demo_tokenizer

DEMO_SEED = 20240213
"""Seed of ``dnabert_s_demo``; its weights never change, so neither do the demo's embeddings."""

_GAIN = {"Wqkv": 1.3, "dense": 0.7, "wo": 0.7}
"""Of a product's weights, times fan_in**-0.5: attention is neither flat nor a single peak."""


def random_state(sizes: MosaicSizes, *, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Random float32 weights by the published names; a seed gives the same bits on every CPU."""
    generator = torch.Generator(device).manual_seed(seed)
    found = {}
    for name, shape in sizes.shapes().items():
        kind, parameter = name.split(".")[-2:]
        centre, deviation = 0.0, 0.1
        if kind.lower() == "layernorm":
            centre, deviation = (1.0, 0.2) if parameter == "weight" else (0.0, 0.1)
        elif kind.endswith("embeddings"):
            deviation = 0.6
        elif parameter == "weight":
            deviation = _GAIN.get(kind, 1.0) * shape[-1] ** -0.5
        numbers = torch.rand(shape, generator=generator, device=device).sub_(0.5)  # exact in float32
        found[name] = numbers.mul_(deviation * math.sqrt(12.0)).add_(centre)
    return found


def write_checkpoint(folder: Path, sizes: MosaicSizes, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write random weights and a tokenizer as the published folder has them, with the unused pooler.

    Returns:
        The path of ``pytorch_model.bin``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(dtype) for name, tensor in random_state(sizes, seed=seed).items()}
    d = sizes.embed_dim
    state |= {"pooler.dense.weight": torch.zeros(d, d, dtype=dtype), "pooler.dense.bias": torch.zeros(d, dtype=dtype)}
    (folder / TOKENIZER).write_text(demo_tokenizer(sizes.vocabulary), encoding="utf-8")
    config = f'{{"model_type": "bert", "num_attention_heads": {sizes.heads}}}\n'
    (folder / "config.json").write_text(config, encoding="utf-8")
    path = folder / "pytorch_model.bin"
    # Through an open file, because torch.save puts the name of a path into the archive.
    with atomic_path(path) as beside, GuardedFile(beside) as file:
        torch.save(state, cast(IO[bytes], file))
        file.check()
    return path


def write_demo_checkpoint(folder: Path) -> Path:
    """Write ``dnabert_s_demo`` into a folder: small, always the same, and without biological meaning."""
    return write_checkpoint(folder / DEMO_MODEL, DEMO_SIZES, seed=DEMO_SEED)
