"""ESM-2 as the rest of the package sees it (see :class:`virnucpro.models.base.Family`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.checkpoints.tensors import StoredTensors
from virnucpro.models.base import Model, Tokenizer
from virnucpro.models.esm2.alphabet import ESM2Tokenizer
from virnucpro.models.esm2.checkpoint import Checkpoint, find_esm2
from virnucpro.models.esm2.forms import fastest_form
from virnucpro.models.esm2.model import Parameters
from virnucpro.models.esm2.names import own_names
from virnucpro.models.esm2.sizes import DEMO_MODEL, ESM2_MODELS, Architecture
from virnucpro.models.esm2.synthetic import write_demo_checkpoint
from virnucpro.models.precision import parameter_dtype


class ESM2Family:
    """ESM-2 (Lin et al. 2023, doi:10.1126/science.ade2574)."""

    name: str = Architecture.family
    models: Mapping[str, Architecture] = ESM2_MODELS
    demo: str = DEMO_MODEL

    def write_demo(self, folder: Path) -> Path:
        path = folder / f"{DEMO_MODEL}.pt"
        write_demo_checkpoint(path)
        return path

    def tokenizer(self, text: str = "") -> Tokenizer:
        return ESM2Tokenizer()

    def read(self, stored: StoredTensors) -> Checkpoint | None:
        """A checkpoint in fair-esm's or HuggingFace's layout."""
        return find_esm2(stored)

    def tensor_names(self, sizes: Architecture) -> Mapping[str, str]:
        return own_names(sizes)

    def slopes(self, sizes: Architecture) -> Tensor | None:
        return None

    def build(
        self,
        state: Mapping[str, Tensor],
        sizes: Architecture,
        attention: Callable[[], PackedAttention],
        *,
        device: torch.device,
        dtype: torch.dtype,
        kernels: str,
        logger: logging.Logger,
    ) -> Model:
        parameters = Parameters.arrange(state, sizes, device=device, dtype=parameter_dtype(dtype))
        return fastest_form(parameters, sizes, attention(), dtype=dtype, kernels=kernels, logger=logger)


ESM2_FAMILY = ESM2Family()
