"""Triton kernels of models that norm after each sum and gate their feed-forward: one pass over memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from virnucpro.kernels.pointwise import TILE, gelu_of, norm_pieces, pieces, warps


@triton.jit
def _sum_norm(
    x,
    added,
    offset,
    weight,
    bias,
    out,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * DIM
    columns = tl.arange(0, HEAD)
    rest = HEAD + tl.arange(0, TAIL)
    fits = rest < DIM
    head = tl.load(x + row + columns).to(tl.float32) + tl.load(added + row + columns).to(tl.float32)
    tail = tl.load(x + row + rest, mask=fits, other=0.0).to(tl.float32)
    tail += tl.load(added + row + rest, mask=fits, other=0.0).to(tl.float32)
    head, tail = norm_pieces(head, tail, fits, columns, rest, offset, weight, bias, EPS, DIM)
    tl.store(out + row + columns, head.to(out.dtype.element_ty))
    tl.store(out + row + rest, tail.to(out.dtype.element_ty), mask=fits)


@triton.jit
def _gated_gelu(x, out, tokens, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    here = (rows < tokens) & (columns < WIDTH)
    gate = tl.load(x + rows * (2 * WIDTH) + columns, mask=here, other=0.0).to(tl.float32)
    up = tl.load(x + rows * (2 * WIDTH) + WIDTH + columns, mask=here, other=0.0).to(tl.float32)
    tl.store(out + rows * WIDTH + columns, (gelu_of(gate) * up).to(out.dtype.element_ty), mask=here)


def sum_norm(x: Tensor, added: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of ``x + added + offset`` over the channels, summed and computed in float32.

    Args:
        x, added: float16 or bfloat16 ``(T, D)``, contiguous.
        offset, weight, bias: float32 ``(D,)``.

    Returns:
        ``(T, D)`` in the dtype of ``x``.
    """
    tokens, dim = x.shape
    out = torch.empty_like(x)
    _sum_norm[(tokens,)](x, added, offset, weight, bias, out, eps, dim, *pieces(dim), num_warps=warps(dim))
    return out


def gated_gelu(x: Tensor) -> Tensor:
    """``gelu(gate) * up`` of ``(T, 2 F)``, contiguous, which holds both in this order: ``(T, F)``."""
    tokens, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    block = int(min(1024, triton.next_power_of_2(width)))
    rows = max(1, TILE // block)
    grid = (triton.cdiv(tokens, rows), triton.cdiv(width, block))
    _gated_gelu[grid](x, out, tokens, width, block, rows, num_warps=4)
    return out
