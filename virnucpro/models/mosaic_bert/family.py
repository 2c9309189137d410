"""MosaicBERT as the rest of the package sees it (see :class:`virnucpro.models.base.Family`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.base.errors import UserError
from virnucpro.checkpoints.tensors import StoredTensors
from virnucpro.cuda import AMPERE
from virnucpro.cuda.devices import capability
from virnucpro.models.base import Model, Tokenizer
from virnucpro.models.forms import fused_if_equal
from virnucpro.models.mosaic_bert.checkpoint import Checkpoint, find_mosaic
from virnucpro.models.mosaic_bert.model import MosaicBert, Parameters
from virnucpro.models.mosaic_bert.sizes import DEMO_MODEL, MOSAIC_MODELS, MosaicSizes, alibi_slopes
from virnucpro.models.mosaic_bert.synthetic import write_demo_checkpoint
from virnucpro.models.mosaic_bert.tokenizer import NucleotideTokenizer


class MosaicBertFamily:
    """BERT with ALiBi and gated GELU (Portes et al. 2023, arXiv:2312.17482), such as DNABERT-S."""

    name: str = MosaicSizes.family
    models: Mapping[str, MosaicSizes] = MOSAIC_MODELS
    demo: str = DEMO_MODEL

    def write_demo(self, folder: Path) -> Path:
        return write_demo_checkpoint(folder)

    def tokenizer(self, text: str = "") -> Tokenizer:
        return NucleotideTokenizer(text)

    def read(self, stored: StoredTensors) -> Checkpoint | None:
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
