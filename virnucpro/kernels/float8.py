"""Triton kernels that leave their result in float8 (e4m3) with one scale a token, for scaled matrix products.

The largest absolute value of a token's row becomes 448, the largest number of e4m3. Below it that format keeps
its three bits of mantissa over four orders of magnitude, so a few outlier channels do not cost the others theirs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from virnucpro.kernels.pointwise import gelu_of, norm_pieces, pieces, warps

E4M3 = torch.float8_e4m3fn
Scaled = tuple[Tensor, Tensor]
"""float8 ``(rows, columns)`` and float32 ``(rows, 1)``: what each row is to be multiplied with."""


@triton.jit
def _store_scaled(out, scales, row, width, head, tail, columns, rest, fits):
    largest = tl.maximum(tl.max(tl.abs(head)), tl.max(tl.where(fits, tl.abs(tail), 0.0)))
    largest = tl.maximum(largest, 1e-12)
    tl.store(scales + row, largest / 448.0)
    factor = 448.0 / largest
    tl.store(out + row * width + columns, (head * factor).to(out.dtype.element_ty))
    tl.store(out + row * width + rest, (tail * factor).to(out.dtype.element_ty), mask=fits)


@triton.jit
def _add_norm(
    x,
    added,
    offset,
    weight,
    bias,
    out,
    scales,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, HEAD)
    rest = HEAD + tl.arange(0, TAIL)
    fits = rest < DIM
    start = row * DIM
    head = tl.load(x + start + columns) + tl.load(added + start + columns).to(tl.float32)
    tail = tl.load(x + start + rest, mask=fits, other=0.0)
    tail += tl.load(added + start + rest, mask=fits, other=0.0).to(tl.float32)
    tl.store(x + start + columns, head)
    tl.store(x + start + rest, tail, mask=fits)
    head, tail = norm_pieces(head, tail, fits, columns, rest, offset, weight, bias, EPS, DIM)
    _store_scaled(out, scales, row, DIM, head, tail, columns, rest, fits)


@triton.jit
def _gelu(x, bias, out, scales, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, HEAD)
    rest = HEAD + tl.arange(0, TAIL)
    fits = rest < WIDTH
    head = tl.load(x + row * WIDTH + columns).to(tl.float32) + tl.load(bias + columns).to(tl.float32)
    tail = tl.load(x + row * WIDTH + rest, mask=fits, other=0.0).to(tl.float32)
    tail += tl.load(bias + rest, mask=fits, other=0.0).to(tl.float32)
    _store_scaled(out, scales, row, WIDTH, gelu_of(head), gelu_of(tail), columns, rest, fits)


@triton.jit
def _scaled_rows(x, out, scales, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, HEAD)
    rest = HEAD + tl.arange(0, TAIL)
    fits = rest < WIDTH
    head = tl.load(x + row * WIDTH + columns).to(tl.float32)
    tail = tl.load(x + row * WIDTH + rest, mask=fits, other=0.0).to(tl.float32)
    _store_scaled(out, scales, row, WIDTH, head, tail, columns, rest, fits)


def add_norm(x: Tensor, added: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Scaled:
    """``x += added`` in place, and the LayerNorm of ``x + offset`` over the channels.

    Args:
        x: float32 ``(T, D)``, contiguous; overwritten.
        added: ``(T, D)``, contiguous.
        offset, weight, bias: float32 ``(D,)``.
    """
    out, scales = _empty(x)
    tokens, dim = x.shape
    head, tail = pieces(dim)
    _add_norm[(tokens,)](x, added, offset, weight, bias, out, scales, eps, dim, head, tail, num_warps=warps(dim))
    return out, scales


def gelu(x: Tensor, bias: Tensor) -> Scaled:
    """GELU of ``x + bias``; ``x`` is ``(T, 4 D)``, contiguous, and ``bias (4 D,)``."""
    out, scales = _empty(x)
    tokens, width = x.shape
    _gelu[(tokens,)](x, bias, out, scales, width, *pieces(width), num_warps=warps(width))
    return out, scales


def scaled_rows(x: Tensor) -> Scaled:
    """``x (rows, columns)``, contiguous, in float8."""
    out, scales = _empty(x)
    _scaled_rows[(len(x),)](x, out, scales, x.shape[1], *pieces(x.shape[1]), num_warps=warps(x.shape[1]))
    return out, scales


def _empty(x: Tensor) -> Scaled:
    return torch.empty(x.shape, dtype=E4M3, device=x.device), torch.empty(len(x), 1, device=x.device)
