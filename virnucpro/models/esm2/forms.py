"""The choice of a form: fused, or of integers, where it runs and agrees with the readable one."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.cuda import AMPERE
from virnucpro.cuda.attention_utils import first_sentence
from virnucpro.cuda.devices import capability
from virnucpro.models.esm2.model import ESM2, Parameters
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.forms import fused_if_equal

INT8_LIMIT = 1e-2
"""Largest 1 - cosine to float16 of a pooled vector with which integers are used at all."""


def fastest_form(
    parameters: Parameters,
    sizes: Architecture,
    attend: PackedAttention,
    *,
    dtype: torch.dtype,
    kernels: str,
    logger: logging.Logger,
) -> ESM2:
    """The fastest form of a model that runs on its device with products in ``dtype``.

    Args:
        kernels: "auto", or "eager" for the readable form.

    Raises:
        UserError: int8 was asked for and does not work here, or with "eager", which has no such products.
    """
    model = ESM2(parameters, sizes, attend)
    if dtype == torch.int8:
        if kernels == "eager":
            raise UserError("precision int8 is computed by fused kernels alone: take kernels auto, or precision auto")
        return int8_form(model, logger)
    # On older GPUs Triton's compiler can end the process.
    if kernels == "eager" or capability(model.facts.device) < AMPERE:
        return model
    return fused_form(model, logger)


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
