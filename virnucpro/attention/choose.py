"""The choice of an attention: made once for a device, a dtype and a head size, tried, and logged."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from virnucpro.attention.candidates import (
    BucketedAttention,
    EfficientAttention,
    FlashOperatorAttention,
    FlashRunsAttention,
    PackedAttention,
    RunsAttention,
    TritonAttention,
    VarlenAttention,
)
from virnucpro.attention.segments import Segments
from virnucpro.cuda.attention_utils import (
    STANDARD,
    AttentionSupport,
    attention_support,
    first_sentence,
    in_float32,
    log_attention,
)

TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest difference from float32 mathematics on values of unit variance: a few roundings of the dtype."""

FLASH_CHOICES: tuple[Callable[[], PackedAttention], ...] = (
    TritonAttention,
    VarlenAttention,
    FlashOperatorAttention,
    FlashRunsAttention,
)
STANDARD_CHOICES: tuple[Callable[[], PackedAttention], ...] = (EfficientAttention, BucketedAttention)


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    logger: logging.Logger,
    *,
    slopes: Tensor | None = None,
) -> PackedAttention:
    """The fastest attention that runs here and agrees with plain mathematics.

    On a CPU that is SDPA over runs of equal length. On a GPU: FlashAttention-2 where the device has it and
    the dtype is float16 or bfloat16, first by our Triton kernel, whose smaller blocks suit proteins (1.3 to 1.9
    times ``varlen_attn`` on an H200), then by ``varlen_attn``, else by the operator behind it, else by SDPA over
    runs of equal length; then the memory-efficient kernel; and last padded SDPA. With ``slopes`` (see
    :class:`PackedAttention`) those are passed over that do not take them.

    The choice and its reason are logged, in words that :func:`log_attention` shares with other programs.
    """
    support = attention_support(device)
    if device.type != "cuda":
        log_attention(logger, support)
        return RunsAttention()
    if dtype == torch.float32:
        support = in_float32(support)
    refusals: list[str] = []
    for make in (*(FLASH_CHOICES if support.flash else ()), *STANDARD_CHOICES):
        refusal = try_attention(make, device, dtype, head_dim, slopes)
        if refusal is None:
            chosen = make()
            reason = "; ".join([support.reason, *refusals, f"running {chosen.name}"])
            log_attention(logger, AttentionSupport(chosen.implementation, reason, support.difference))
            return chosen
        refusals.append(refusal)
    log_attention(logger, AttentionSupport(STANDARD, "; ".join([support.reason, *refusals])))
    return BucketedAttention()


def try_attention(
    make: Callable[[], PackedAttention],
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    slopes: Tensor | None = None,
) -> str | None:
    """Run an attention on a small batch and compare it with float32 mathematics.

    Returns:
        None when it agrees; else what is wrong, for the log.
    """
    lengths = (3, 40, 40, 129)
    name = getattr(make, "name", "attention")
    try:
        attention = make()
        segments = Segments.from_lengths(lengths, device)
        generator = torch.Generator().manual_seed(0)
        # q, k and v as the model gives them: slices of one tensor.
        heads = 4 if slopes is None else len(slopes)
        slopes = None if slopes is None else slopes.to(device)
        packed = torch.randn(sum(lengths), 3, heads, head_dim, generator=generator).to(device, dtype)
        q, k, v = packed.unbind(1)
        scale = head_dim**-0.5
        with torch.inference_mode():
            out = attention(q if attention.scales else q * scale, k, v, segments, slopes).float()
            difference = float((out - plain_attention(q * scale, k, v, segments, slopes)).abs().max())
    except Exception as error:
        return f"{name} does not run ({first_sentence(error)})"
    if not difference <= TOLERANCE[dtype]:
        return f"{name} disagrees with plain mathematics by {difference:.2g}"
    return None


def plain_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
    """Attention by its formula in float32, sequence by sequence: slow, and the measure of the others.

    Args:
        q: already scaled.

    Returns:
        float32 ``(T, heads, head_dim)``.
    """
    parts = []
    start = 0
    for length in segments.lengths:
        rows = slice(start, start + length)
        one_q, one_k, one_v = (x[rows].float().transpose(0, 1) for x in (q, k, v))
        logits = one_q @ one_k.transpose(-1, -2)  # (heads, length, length)
        if slopes is not None:
            position = torch.arange(length, device=q.device, dtype=torch.float32)
            logits = logits - slopes[:, None, None] * torch.cdist(position[:, None], position[:, None], p=1)
        parts.append((logits.softmax(-1) @ one_v).transpose(0, 1))
        start += length
    return torch.cat(parts)
