"""The choice of a layer's steps: fused kernels where they run and agree, torch's operators elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from virnucpro.cuda.attention_utils import first_sentence
from virnucpro.errors import UserError
from virnucpro.models.rotary import rotary_tables
from virnucpro.models.segments import Segments
from virnucpro.models.steps.base import LayerSteps, Stream

if TYPE_CHECKING:
    from virnucpro.models.packed import PackedESM2

TOLERANCE = {torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
"""Largest distance of a layer's values from those of plain operators, as a share of their norm: some roundings."""

FP8_LIMIT = 1e-2
"""Largest 1 - cosine to bfloat16 of a pooled vector with which float8 is used at all."""

TRITONS = (8, 0)
"""Triton supports compute capability 8.0 and newer; on older GPUs its compiler can end the process."""

TOKENS = 70
"""Tokens that steps are compared on: no multiple of any kernel's tile."""


def choose_steps(model: PackedESM2, dtype: torch.dtype, logger: logging.Logger) -> None:
    """Give a model the fastest steps that run on its device in ``dtype`` (see :data:`DTYPES`).

    Raises:
        UserError: float8 was asked for and does not work here.
    """
    if dtype == torch.float8_e4m3fn:
        use_fp8_steps(model, logger)
    elif model.device.type == "cuda" and torch.cuda.get_device_capability(model.device) >= TRITONS:
        use_fused_steps(model, logger)


def use_fused_steps(model: PackedESM2, logger: logging.Logger) -> bool:
    """Give a model in half precision on a GPU the fused steps, if they agree with its own.

    Where they do not run (no Triton, no C compiler, an old GPU) or the numbers differ, the log says so and the
    model keeps the steps that it has. float32 keeps them too: there the products take nearly all of the time.

    Returns:
        Whether the model now runs fused.
    """
    if model.dtype not in TOLERANCE:
        return False
    started = time.perf_counter()
    try:
        from virnucpro.models.steps.fused import FusedSteps

        fused = FusedSteps(model.parameters, model.architecture.heads, model.q_scale)
        distance = distance_between(model, model.steps, fused)
    except Exception as error:
        logger.warning("the fused kernels do not run here (%s): layers run eager, slower", first_sentence(error))
        return False
    if not distance <= TOLERANCE[model.dtype]:
        logger.warning("the fused kernels are %.2g from plain operators: layers run eager, slower", distance)
        return False
    model.steps = fused
    logger.info("layers run fused, ready in %.1f s (agree to %.1g)", time.perf_counter() - started, distance)
    return True


def use_fp8_steps(model: PackedESM2, logger: logging.Logger) -> None:
    """Give a bfloat16 model steps with float8 products, if its embeddings stay near enough to bfloat16's.

    Raises:
        UserError: they do not run here, or pooled vectors are farther off than :data:`FP8_LIMIT`.
    """
    from virnucpro.models.steps.calibration import calibration_batch

    started = time.perf_counter()
    own = model.steps
    try:
        from virnucpro.models.steps.fp8 import Fp8Steps

        with torch.inference_mode():
            tokens, segments = calibration_batch(model.device)
            exact = pooled(model, tokens, segments)
            model.steps = Fp8Steps(model)
            found = pooled(model, tokens, segments)
    except Exception as error:
        model.steps = own
        raise UserError(f"precision fp8 does not run here ({first_sentence(error)}): take precision auto") from error
    distance = float(1 - torch.cosine_similarity(exact, found, dim=1).min())
    if not distance <= FP8_LIMIT:
        model.steps = own
        raise UserError(
            f"this model's embeddings in fp8 are too far from bfloat16's (1 - cosine {distance:.1g}): "
            "take precision auto"
        )
    seconds = time.perf_counter() - started
    logger.info("layers run fused in float8, ready in %.1f s (1 - cosine to bfloat16 %.1g)", seconds, distance)


def pooled(model: PackedESM2, tokens: Tensor, segments: Segments) -> Tensor:
    """Mean over each sequence's tokens of the last layer, float64 ``(sequences, D)``."""
    last = model.architecture.layers
    hidden = model(tokens, segments, [last])[last].double()
    return torch.stack([part.mean(0) for part in torch.split(hidden, list(segments.lengths))])


def distance_between(model: PackedESM2, one: LayerSteps, other: LayerSteps) -> float:
    """How far two ways to compute a model's first layer are apart, as a share of the values' norm.

    Returns:
        The largest share over q, k and the representation; not a number if any value is not.
    """
    pairs = zip(one_layer(model, one), one_layer(model, other), strict=True)
    shares = [float((a - b).norm() / a.norm()) for a, b in pairs]
    return float(np.max(shares))  # not Python's max, which can pass over what is not a number


def one_layer(model: PackedESM2, steps: LayerSteps) -> list[Tensor]:
    """q, k and the representation after the first layer, float32, of the same tokens for all steps.

    Every token attends to itself alone.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, model.architecture.embed_dim, generator=generator).to(model.device)
    cos, sin = rotary_tables(model.parameters.inv_freq[0], torch.arange(TOKENS, device=model.device))
    with torch.inference_mode(), torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        stream, q, k, v = steps.project(Stream(x), 0, cos, sin)
        q, k = q.float(), k.float()
        stream = steps.finish(stream, v, 0)
        return [q, k, steps.representation(stream, 1).float()]
