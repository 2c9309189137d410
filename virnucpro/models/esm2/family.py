"""ESM-2 as the rest of the package sees it (see :class:`virnucpro.models.base.Family`), in the fastest form that runs.

A CPU has a form of its own. A fused form, or one of integers, is taken where it runs and agrees with the readable one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.checkpoints.tensors import StoredTensors
from virnucpro.cuda import AMPERE
from virnucpro.cuda.attention_utils import first_sentence
from virnucpro.cuda.devices import capability
from virnucpro.models.base import Checkpoint, Model, Tokenizer
from virnucpro.models.esm2.alphabet import ESM2Tokenizer
from virnucpro.models.esm2.checkpoint import find_esm2, own_names
from virnucpro.models.esm2.model import ESM2, Parameters
from virnucpro.models.esm2.paired import PairedESM2, adjacent_pairs
from virnucpro.models.esm2.sizes import DEMO_MODEL, ESM2_MODELS, Architecture
from virnucpro.models.esm2.synthetic import write_demo_checkpoint
from virnucpro.models.forms import fused_if_equal
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

    def read(self, stored: StoredTensors) -> Checkpoint[Architecture] | None:
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
        arranged = partial(Parameters.arrange, state, sizes, device=device, dtype=parameter_dtype(dtype))
        if device.type == "cpu" and kernels == "auto" and dtype != torch.int8:
            return PairedESM2(arranged(qkv=partial(adjacent_pairs, heads=sizes.heads)), sizes, attention())
        model = ESM2(arranged(), sizes, attention())
        if dtype == torch.int8:
            if kernels == "eager":
                raise UserError(
                    "precision int8 is computed by fused kernels alone: take kernels auto, or precision auto"
                )
            return int8_form(model, logger)
        # On older GPUs Triton's compiler can end the process.
        if kernels == "eager" or capability(device) < AMPERE:
            return model
        return fused_form(model, logger)


ESM2_FAMILY = ESM2Family()

INT8_LIMIT = 1e-2
"""Largest 1 - cosine to float16 of a pooled vector with which integers are used at all."""


def fused_form(model: ESM2, logger: logging.Logger) -> ESM2:
    """The fused form of a model in half precision, if it agrees with the readable one (see :func:`fused_if_equal`)."""

    def make() -> ESM2:
        from virnucpro.models.esm2.fused import FusedESM2  # needs Triton

        return FusedESM2(model.parameters, model.sizes, model.attend)

    return fused_if_equal(model, make, logger)


def int8_form(model: ESM2, logger: logging.Logger) -> ESM2:
    """The form in 8-bit integers of a float16 model, if its embeddings stay near enough to float16's.

    Raises:
        UserError: it does not run here, or pooled vectors are farther off than :data:`INT8_LIMIT`.
    """
    started = time.perf_counter()
    try:
        from virnucpro.models.esm2.int8 import Int8ESM2, calibration_batch, inputs_of_products  # needs Triton

        with torch.inference_mode():
            tokens, segments = calibration_batch(model.facts.device)
            seen, hidden = inputs_of_products(model, tokens, segments)
            form = Int8ESM2(model.parameters, model.sizes, model.attend, seen)
            last = model.sizes.layers
            exact, found = (pooled(one, segments) for one in (hidden, form(tokens, segments, [last])[last]))
    except Exception as error:
        raise UserError(f"precision int8 does not run here ({first_sentence(error)}): take precision auto") from error
    distance = float(1 - torch.cosine_similarity(exact, found, dim=1).min())
    if not distance <= INT8_LIMIT:
        raise UserError(
            f"this model's embeddings in int8 are too far from float16's (1 - cosine {distance:.1g}): "
            "take precision auto"
        )
    seconds = time.perf_counter() - started
    logger.info("layers run fused in int8, ready in %.1f s (1 - cosine to float16 %.1g)", seconds, distance)
    return form


def pooled(hidden: Tensor, segments: Segments) -> Tensor:
    """Mean over each sequence's tokens of ``hidden (T, D)``, float64 ``(sequences, D)``."""
    return torch.stack([part.mean(0) for part in torch.split(hidden.double(), list(segments.lengths))])
