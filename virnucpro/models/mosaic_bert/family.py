"""MosaicBERT as the rest of the package sees it (see :class:`virnucpro.models.base.Family`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.checkpoints.files import TOKENIZER
from virnucpro.checkpoints.tensors import StoredTensors
from virnucpro.checkpoints.torch_file import save_torch_file
from virnucpro.cuda import AMPERE
from virnucpro.cuda.devices import capability
from virnucpro.models.base import Checkpoint, Model, Tokenizer
from virnucpro.models.forms import fused_if_equal
from virnucpro.models.mosaic_bert.checkpoint import find_mosaic
from virnucpro.models.mosaic_bert.model import MosaicBert, Parameters
from virnucpro.models.mosaic_bert.sizes import DEMO_MODEL, DEMO_SIZES, MOSAIC_MODELS, MosaicSizes, alibi_slopes
from virnucpro.models.mosaic_bert.tokenizer import NucleotideTokenizer, demo_tokenizer


class MosaicBertFamily:
    """BERT with ALiBi and gated GELU (Portes et al. 2023, arXiv:2312.17482), such as DNABERT-S."""

    name: str = MosaicSizes.family
    models: Mapping[str, MosaicSizes] = MOSAIC_MODELS
    demo: str = DEMO_MODEL

    def write_demo(self, folder: Path) -> Path:
        """Small, and without biological meaning."""
        return write_checkpoint(folder / DEMO_MODEL, DEMO_SIZES, seed=DEMO_SEED)

    def tokenizer(self, text: str = "") -> Tokenizer:
        return NucleotideTokenizer(text)

    def read(self, stored: StoredTensors) -> Checkpoint[MosaicSizes] | None:
        """A checkpoint with the names of the published files, and the ``tokenizer.json`` beside it."""
        return find_mosaic(stored)

    def tensor_names(self, sizes: MosaicSizes) -> Mapping[str, str]:
        return {name: name for name in sizes.shapes()}

    def slopes(self, sizes: MosaicSizes) -> Tensor | None:
        return torch.tensor(alibi_slopes(sizes.heads), dtype=torch.float32)

    def build(
        self,
        state: Mapping[str, Tensor],
        sizes: MosaicSizes,
        attention: Callable[[], PackedAttention],
        *,
        device: torch.device,
        dtype: torch.dtype,
        kernels: str,
        logger: logging.Logger,
    ) -> Model:
        if dtype == torch.int8:
            raise UserError("precision int8 is computed for ESM-2 alone: take precision auto")
        parameters = Parameters.arrange(state, sizes, device=device, dtype=dtype)
        model = MosaicBert(parameters, sizes, attention())
        # On older GPUs Triton's compiler can end the process.
        if kernels == "eager" or capability(device) < AMPERE:
            return model
        return fused_form(model, logger)


def fused_form(model: MosaicBert, logger: logging.Logger) -> MosaicBert:
    """The fused form of a model in half precision, if it agrees with the readable one."""

    def make() -> MosaicBert:
        from virnucpro.models.mosaic_bert.fused import FusedMosaicBert  # needs Triton

        return FusedMosaicBert(model.parameters, model.sizes, model.attend)

    return fused_if_equal(model, make, logger)


MOSAIC_BERT_FAMILY = MosaicBertFamily()

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
    with atomic_path(path) as beside:
        save_torch_file(beside, state)
    return path
