"""The choice of a form: fused or float8 where it runs and agrees with the readable one, which is left elsewhere."""

from __future__ import annotations

import copy
import logging
import time

import numpy as np
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

TOLERANCE = {torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
"""Largest distance of a layer's values from those of plain operators, as a share of their norm: some roundings."""

FLOAT8_LIMIT = 1e-2
"""Largest 1 - cosine to bfloat16 of a pooled vector with which float8 is used at all."""

TOKENS = 70
"""Tokens that forms are compared on: no multiple of any kernel's tile."""


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
        UserError: float8 was asked for and does not work here, or with "eager", which has no such products.
    """
    model = ESM2(parameters, sizes, attend)
    if dtype == torch.float8_e4m3fn:
        if kernels == "eager":
            raise UserError("precision fp8 is computed by fused kernels alone: take kernels auto, or precision auto")
        return float8_form(model, logger)
    # On older GPUs Triton's compiler can end the process.
    if kernels == "eager" or capability(model.facts.device) < AMPERE:
        return model
    return fused_form(model, logger)


def fused_form(model: ESM2, logger: logging.Logger) -> ESM2:
    """The fused form of a model in half precision, if it agrees with the readable one.

    Where it does not run (no Triton, no C compiler, an old GPU) or the numbers differ, the log says so and the
    given model comes back. So it does in float32: there the products take nearly all of the time.
    """
    dtype = model.facts.dtype
    if dtype not in TOLERANCE:
        return model
    started = time.perf_counter()
    try:
        from virnucpro.models.esm2.fused import FusedESM2  # needs Triton

        fused = FusedESM2(model.parameters, model.sizes, model.attend)
        distance = distance_between(model, fused)
    except Exception as error:
        logger.warning("the fused kernels do not run here (%s): layers run eager, slower", first_sentence(error))
        return model
    if not distance <= TOLERANCE[dtype]:
        logger.warning("the fused kernels are %.2g from plain operators: layers run eager, slower", distance)
        return model
    logger.info("layers run fused, ready in %.1f s (agree to %.1g)", time.perf_counter() - started, distance)
    return fused


def float8_form(model: ESM2, logger: logging.Logger) -> ESM2:
    """The float8 form of a bfloat16 model, if its embeddings stay near enough to bfloat16's.

    Raises:
        UserError: it does not run here, or pooled vectors are farther off than :data:`FLOAT8_LIMIT`.
    """
    started = time.perf_counter()
    try:
        from virnucpro.models.esm2.float8 import Float8ESM2, calibration_batch  # needs Triton

        with torch.inference_mode():
            tokens, segments = calibration_batch(model.facts.device)
            form = Float8ESM2(model.parameters, model.sizes, model.attend)
            exact, found = (pooled(one, tokens, segments) for one in (model, form))
    except Exception as error:
        raise UserError(f"precision fp8 does not run here ({first_sentence(error)}): take precision auto") from error
    distance = float(1 - torch.cosine_similarity(exact, found, dim=1).min())
    if not distance <= FLOAT8_LIMIT:
        raise UserError(
            f"this model's embeddings in fp8 are too far from bfloat16's (1 - cosine {distance:.1g}): "
            "take precision auto"
        )
    seconds = time.perf_counter() - started
    logger.info("layers run fused in float8, ready in %.1f s (1 - cosine to bfloat16 %.1g)", seconds, distance)
    return form


def pooled(model: ESM2, tokens: Tensor, segments: Segments) -> Tensor:
    """Mean over each sequence's tokens of the last layer, float64 ``(sequences, D)``."""
    last = model.sizes.layers
    hidden = model(tokens, segments, [last])[last].double()
    return torch.stack([part.mean(0) for part in torch.split(hidden, list(segments.lengths))])


def distance_between(one: ESM2, other: ESM2) -> float:
    """How far two forms of a model are apart after its first layer, as a share of the values' norm.

    Returns:
        The largest share over q, k and the representation; not a number if any value is not.
    """
    shares = [float((a - b).norm() / a.norm()) for a, b in zip(first_layer(one), first_layer(other), strict=True)]
    return float(np.max(shares))  # not Python's max, which can pass over what is not a number


class Witness:
    """Stands in for a model's attention: notes q and k, and lets every token attend to itself alone."""

    def __init__(self, attend: PackedAttention) -> None:
        self.name, self.implementation, self.scales = attend.name, attend.implementation, attend.scales
        self.seen: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        self.seen += [q.float(), k.float()]
        return v


def first_layer(model: ESM2) -> list[Tensor]:
    """q, k and the representation after the first layer, float32, of the same tokens for all forms."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, model.sizes.embed_dim, generator=generator).to(model.facts.device)
    witnessed, witness = copy.copy(model), Witness(model.attend)
    witnessed.attend = witness
    with torch.inference_mode(), torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        after = witnessed.run(x, Segments.from_lengths([TOKENS], x.device), [1])[1]
    return [*witness.seen, after]
