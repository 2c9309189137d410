"""Triton kernels that leave their result in 8-bit integers with a scale and a zero for each row.

A value is ``scales * (values - zeros)``. The zero lets the whole range of the integers serve a row whose smallest and
largest values differ in size, as those behind GELU do, and 0 is always one of the numbers that are met exactly: most
values behind GELU are near it. A few channels that reach farther than all others would set the scale for the whole
row. These, a fixed set that stands first in the row, get two integers each, high and low: ``256 high + low``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from virnucpro.kernels.pointwise import gelu_of, norm_pieces, pieces, warps

LARGEST = tl.constexpr(8000.0)
"""Largest number of two integers: high is then within 32, and 1,280 of them times 127 times 256 fit into 32 bits."""

STEPS = tl.constexpr(253.0)
"""From a row's lowest to its highest value: one less than there are, so that no rounding needs a limit."""

ROUND = tl.constexpr(12582912.0)
"""1.5 times 2 ** 23: float32 numbers near it are a step of 1 apart, so that adding it rounds, and the lowest bits of
the sum are those of the integer. A conversion takes several times as long."""


class Rows(NamedTuple):
    """T rows of 8-bit integers.

    Attributes:
        values: int8 ``(T, split + width)``: the high integers of the first ``split`` channels, then the row with their
            low ones; those have no zero.
        scales: float32 ``(T,)``. Not a number where the row holds a value that is not finite.
        zeros: int32 ``(T,)``, of the channels from ``split`` on.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor


@triton.jit
def _integers(x):
    """Numbers that ROUND has been added to."""
    return x.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _step_of(head, tail, fits, smallest):
    """The step and the zero of a row; the step is at least ``smallest``."""
    lowest = tl.minimum(tl.minimum(tl.min(head), tl.min(tl.where(fits, tail, 0.0))), 0.0)
    highest = tl.maximum(tl.maximum(tl.max(head), tl.max(tl.where(fits, tail, 0.0))), 0.0)
    step = tl.maximum(tl.maximum((highest - lowest) / STEPS, smallest), 1e-12)
    # Minima and maxima pass over what is not a number; sums do not.
    step += (tl.sum(head) + tl.sum(tl.where(fits, tail, 0.0))) * 0.0
    return step, (lowest / -step + ROUND) - ROUND - 127.0


@triton.jit
def _store_row(values, scales, zeros, row, start, head, tail, columns, rest, fits, step, zero):
    """One integer for each channel, from ``values + start`` on."""
    tl.store(scales + row, step)
    tl.store(zeros + row, zero.to(tl.int32))
    factor, add = 1.0 / step, zero + ROUND
    tl.store(values + start + columns, _integers(head * factor + add))
    tl.store(values + start + rest, _integers(tail * factor + add), mask=fits)


@triton.jit
def _norm_rows(
    x,
    added,
    offset,
    weight,
    bias,
    values,
    scales,
    zeros,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    ADDED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, HEAD)
    rest = HEAD + tl.arange(0, TAIL)
    fits = rest < DIM
    start = row * DIM
    head = tl.load(x + start + columns)
    tail = tl.load(x + start + rest, mask=fits, other=0.0)
    if ADDED:
        head += tl.load(added + start + columns).to(tl.float32)
        tail += tl.load(added + start + rest, mask=fits, other=0.0).to(tl.float32)
        tl.store(x + start + columns, head)
        tl.store(x + start + rest, tail, mask=fits)
    head, tail = norm_pieces(head, tail, fits, columns, rest, offset, weight, bias, EPS, DIM)
    step, zero = _step_of(head, tail, fits, 0.0)
    _store_row(values, scales, zeros, row, start, head, tail, columns, rest, fits, step, zero)


@triton.jit
def _behind_gelu(x, factor, columns, fits):
    value = gelu_of(tl.load(x + columns, mask=fits, other=0.0).to(tl.float32))
    return value * tl.load(factor + columns, mask=fits, other=0.0).to(tl.float32)


@triton.jit
def _gelu_rows(
    x,
    factor,
    values,
    scales,
    zeros,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    SPLIT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = SPLIT + tl.arange(0, HEAD)
    rest = SPLIT + HEAD + tl.arange(0, TAIL)
    fits = rest < WIDTH
    x += row * WIDTH
    head = _behind_gelu(x, factor, columns, columns < WIDTH)
    tail = _behind_gelu(x, factor, rest, fits)
    start = row * (SPLIT + WIDTH)
    if SPLIT > 0:
        first = tl.arange(0, SPLIT)
        wide = _behind_gelu(x, factor, first, first < SPLIT)
        step, zero = _step_of(head, tail, fits, tl.max(tl.abs(wide)) / LARGEST)
        step += tl.sum(wide) * 0.0
        whole = (wide / step + ROUND) - ROUND
        high = (whole + 0.5) / 256.0 + ROUND
        tl.store(values + start + first, _integers(high))
        tl.store(values + start + SPLIT + first, _integers(whole - 256.0 * (high - ROUND) + ROUND))
    else:
        step, zero = _step_of(head, tail, fits, 0.0)
    _store_row(values, scales, zeros, row, start + SPLIT, head, tail, columns, rest, fits, step, zero)


def norm_rows(x: Tensor, added: Tensor | None, offset: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Rows:
    """``x += added`` in place where something is to be added, and the LayerNorm of ``x + offset`` over the channels.

    Args:
        x: float32 ``(T, D)``, contiguous; overwritten.
        added: ``(T, D)``, contiguous, or None.
        offset, weight, bias: float32 ``(D,)``.
    """
    tokens, dim = x.shape
    out = _empty(tokens, dim, x.device)
    more = x if added is None else added
    head, tail = pieces(dim)
    _norm_rows[(tokens,)](
        x, more, offset, weight, bias, *out, eps, dim, head, tail, added is not None, num_warps=max(2, warps(head))
    )
    return out


def gelu_rows(x: Tensor, factor: Tensor, split: int) -> Rows:
    """``gelu(x) * factor``.

    Args:
        x: ``(T, 4 D)``, contiguous.
        factor: ``(4 D,)``; in float16 it takes less time than the values themselves.
        split: how many of the first channels have two integers: 0, or a power of two.
    """
    tokens, width = x.shape
    out = _empty(tokens, split + width, x.device)
    head, tail = pieces(width - split)
    _gelu_rows[(tokens,)](x, factor, *out, width, head, tail, split, num_warps=max(2, warps(head)))
    return out


def _empty(tokens: int, columns: int, device: torch.device) -> Rows:
    values = torch.empty(tokens, columns, dtype=torch.int8, device=device)
    zeros = torch.empty(tokens, dtype=torch.int32, device=device)
    return Rows(values, torch.empty(tokens, device=device), zeros)
