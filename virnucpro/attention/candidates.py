"""Attention over packed sequences in several ways; all take and give the same (:class:`PackedAttention`).

One is chosen once for a device, a dtype and a head size, tried, and logged (:func:`choose_attention`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.attention.segments import Segments
from virnucpro.cuda.attention_utils import (
    FLASH,
    STANDARD,
    AttentionSupport,
    attention_support,
    first_sentence,
    in_float32,
    log_attention,
    only_flash,
)


class PackedAttention(Protocol):
    """Attention within each sequence of a packed batch, without mask and dropout, softmax in float32.

    With ``slopes``, float32 ``(heads,)`` on q's device, the logit of tokens i and j is lowered by ``slope * |i - j|``
    (ALiBi: Press et al. 2022, arXiv:2108.12409).

    Attributes:
        name: what runs, for logs and for the record in the chunk file ("varlen_attn", "sdpa", ...).
        implementation: "flash_attention_2" or "standard_attention".
        scales: True when the kernel itself multiplies the logits by ``head_dim ** -0.5``; else q
            must come scaled, as fair-esm does it.
    """

    name: str
    implementation: str
    scales: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        """Attend; q, k, v and the result are ``(T, heads, head_dim)``, T = ``sum(segments.lengths)``.

        Raises:
            ValueError: there are slopes, and this implementation has no such term.
        """
        ...


def alibi(slopes: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """What slopes add to the logits of a sequence, ``(1, heads, length, length)``; computed in float32."""
    position = torch.arange(length, device=slopes.device)
    distance = (position[:, None] - position).abs()
    return (-slopes[:, None, None] * distance).unsqueeze(0).to(dtype)


def refuse(slopes: Tensor | None) -> None:
    """Raise ValueError if there are slopes."""
    if slopes is not None:
        raise ValueError("it takes no slopes")


class RunsAttention:
    """SDPA once for each run of neighbours of equal length: no padding, no mask; the CPU's way, right everywhere."""

    name = "sdpa"
    implementation = STANDARD
    scales = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        heads, head_dim = q.shape[1:]
        for start, count, length in segments.runs:
            rows = slice(start, start + count * length)
            shape = (count, length, heads, head_dim)
            one_q, one_k, one_v = (x[rows].view(shape).transpose(1, 2) for x in (q, k, v))
            bias = None if slopes is None else alibi(slopes, length, q.dtype)
            attended = F.scaled_dot_product_attention(one_q, one_k, one_v, attn_mask=bias, scale=1.0)
            out[rows] = attended.transpose(1, 2).reshape(count * length, heads, head_dim)
        return out


class FlashRunsAttention(RunsAttention):
    """The same, pinned to the flash kernel: public functions alone, for a torch without ``varlen_attn``. No slopes."""

    name = "sdpa_flash_runs"
    implementation = FLASH

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        refuse(slopes)
        with only_flash():
            return super().__call__(q, k, v, segments)


class BucketedAttention:
    """SDPA once for each bucket of similar lengths, with public functions alone, for whatever GPU is left.

    Padding is added to q, k and v alone, masked, and never leaves this class.
    """

    name = "sdpa_bucketed"
    implementation = STANDARD
    scales = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for bucket in segments.buckets:
            one_q, one_k, one_v = (x[bucket.tokens].transpose(1, 2) for x in (q, k, v))
            mask = bucket.mask
            if slopes is not None:
                bias = alibi(slopes, one_q.shape[2], q.dtype)
                mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
            attended = F.scaled_dot_product_attention(one_q, one_k, one_v, attn_mask=mask, scale=1.0)
            out[bucket.packed] = attended.transpose(1, 2).flatten(0, 1)[bucket.padded]
        return out


class EfficientAttention:
    """One call of the kernel behind SDPA's ``EFFICIENT_ATTENTION``: float32, and GPUs older than Ampere. No slopes.

    SDPA itself gives that kernel no ``cu_seqlens``, so torch's internal operator is called. It can
    change with torch, which is why :func:`choose_attention` tries it before it is used.
    """

    name = "efficient_attention"
    implementation = STANDARD
    scales = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        refuse(slopes)
        ends, longest = segments.cu_seqlens, segments.max_seqlen
        found = torch.ops.aten._efficient_attention_forward(
            q.unsqueeze(0),
            k.unsqueeze(0),
            v.unsqueeze(0),
            None,  # bias
            ends,
            ends,
            longest,
            longest,
            0.0,  # dropout
            0,  # no causal mask
            False,  # no log-sum-exp
            scale=1.0,
        )
        out: Tensor = found[0].squeeze(0)
        return out


class FlashOperatorAttention:
    """FlashAttention-2 by the operator that ``varlen_attn`` wraps since torch 2.10; older wheels have it, unnamed.

    It can change with torch, which is why :func:`choose_attention` tries it before it is used. No slopes.
    """

    name = "flash_operator"
    implementation = FLASH
    scales = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        refuse(slopes)
        ends, longest = segments.cu_seqlens, segments.max_seqlen
        found = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            ends,
            ends,
            longest,
            longest,
            0.0,  # dropout
            False,  # not causal
            False,  # no debug mask
            scale=1.0,
        )
        out: Tensor = found[0]
        return out


class VarlenAttention:
    """FlashAttention-2 by ``torch.nn.attention.varlen`` (torch 2.10 and newer), once for the batch. No slopes."""

    name = "varlen_attn"
    implementation = FLASH

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        """Take torch's function (or the one given) with the arguments that it has.

        Raises:
            ImportError: this torch has none.
        """
        if function is None:
            from torch.nn.attention.varlen import varlen_attn

            function = varlen_attn
        self._function: Callable[..., Any] = function
        # torch 2.10 has no `scale` and always multiplies by head_dim ** -0.5.
        self.scales = "scale" not in inspect.signature(function).parameters
        self._options: dict[str, Any] = {} if self.scales else {"scale": 1.0}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        refuse(slopes)
        ends, longest = segments.cu_seqlens, segments.max_seqlen
        out: Tensor = self._function(q, k, v, ends, ends, longest, longest, **self._options)
        return out


class TritonAttention:
    """FlashAttention-2 by our own Triton kernel: once for the short sequences of the batch, once for the long ones."""

    name = "triton_flash"
    implementation = FLASH
    scales = False

    def __init__(self) -> None:
        """Raises: ImportError where Triton is not installed."""
        from virnucpro.kernels.attention import attend

        self._attend = attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, slopes: Tensor | None = None) -> Tensor:
        out: Tensor = self._attend(q, k, v, segments.cu_seqlens, segments.extremes, slopes)
        return out


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
