"""A packed model from prepared weights (safetensors), on one device.

The choice of a layer's steps: fused kernels where they run and agree, torch's operators elsewhere.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from virnucpro.attention import choose_attention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.cuda.attention_utils import first_sentence
from virnucpro.models.esm2.model import LayerSteps, PackedESM2, Stream, rotary_tables
from virnucpro.models.precision import dtype_name, parameter_dtype
from virnucpro.weights.file import load_weights
from virnucpro.weights.manifest import WeightsManifest

if TYPE_CHECKING:
    from virnucpro.models.esm2.model import PackedESM2


def parse_device(device: str | torch.device) -> torch.device:
    """A device that is there.

    Raises:
        UserError: not a device's name, or a CUDA device that this machine or this process does not have.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r} is not known: give cpu, cuda or cuda:N") from None
    if parsed.type == "cpu":
        return parsed
    if parsed.type != "cuda":
        raise UserError(f"device {device!r} is not supported: give cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UserError(f'device {str(device)!r} was asked for, but torch sees no CUDA GPU here: use device="cpu"')
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if parsed.index is None else parsed.index
    if index >= count:
        raise UserError(f"device {str(device)!r} was asked for, but torch sees {count} CUDA GPU(s) here")
    return torch.device("cuda", index)


def load_packed(
    weights: Path,
    manifest: WeightsManifest,
    *,
    device: torch.device,
    dtype: torch.dtype,
    logger: logging.Logger,
) -> PackedESM2:
    """Load the embedding part, memory-mapped, tensor by tensor to the device.

    Args:
        dtype: of the parameters; for float8 they are bfloat16, which :func:`choose_steps` then converts.

    Raises:
        UserError: the weights are not those of their manifest, or do not fit into the device's memory.
    """
    dtype = parameter_dtype(dtype)
    attention = choose_attention(device, dtype, manifest.architecture.head_dim, logger)
    found, state = load_weights(weights)
    if found != manifest:
        raise UserError(f"weights {weights} were replaced since the job began: run the same command again")
    architecture = manifest.architecture
    try:
        model = PackedESM2.from_state_dict(state, architecture, attention, device=device, dtype=dtype)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{weights} needs about {architecture.parameters * torch.finfo(dtype).bits / 8e9:.1f} GB in "
            f"{dtype_name(dtype)}, which {device} does not have free: use a GPU with more memory or a smaller model"
        ) from None
    logger.info(
        "%s: %s, attention %s (%s)", device_name(device), dtype_name(dtype), attention.name, attention.implementation
    )
    return model


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one, so that pinned memory and kernels start nothing on another."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def device_name(device: torch.device) -> str:
    """ "NVIDIA H200" or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


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
        from virnucpro.models.esm2.fused import FusedSteps

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
    from virnucpro.models.esm2.float8 import calibration_batch

    started = time.perf_counter()
    own = model.steps
    try:
        from virnucpro.models.esm2.float8 import Fp8Steps

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
