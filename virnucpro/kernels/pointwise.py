"""Short Triton kernels for what is computed between a layer's matrix products: one pass over memory each.

A matrix product needs its input once and its output once; a norm, a rotation or a GELU run by separate
operators reads and writes the same numbers several times. These kernels do each of them in one pass, with
sums and functions in float32, and take any count of tokens without being compiled again. Triton comes with
torch's CUDA wheels; what it compiles it keeps in its own cache, which later jobs share.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048
"""Values that one program of a pointwise kernel computes."""


@triton.jit
def gelu_of(x):
    """``x Phi(x)``, the exact form: ``max(x, 0) - z Phi(-z)`` with z = abs(x), within 4e-7 (or 1e-9 z) of float64's.

    ``1 + log2 Phi(-z)`` is smooth: between 0 and 6 it is a polynomial of degree 6, fitted by least squares whose
    weights were changed until the largest error of ``z Phi(-z)`` was smallest. One exponential is then all that a
    value needs: libdevice's erf takes longer than the pass over memory, and erfc by a rational form (Abramowitz and
    Stegun 7.1.26) needs a reciprocal too, with which products that end in GELU were 3 to 6 % slower on an H200.
    """
    z = tl.abs(x)
    near = tl.minimum(z, 6.0)  # only here, so that what is not finite stays so
    power = 3.39468411e-05 * near - 0.000770342248
    power = ((power * near + 0.00805787748) * near - 0.0533253566) * near - 0.45888229
    return tl.maximum(x, 0.0) - z * tl.exp2((power * near - 1.15114836) * near - 1.0)


@triton.jit
def norm_pieces(head, tail, fits, columns, rest, offset, weight, bias, EPS: tl.constexpr, DIM: tl.constexpr):
    """LayerNorm of a row in two pieces, ``offset`` added first; ``fits`` says which columns of the second exist."""
    head += tl.load(offset + columns)
    tail += tl.load(offset + rest, mask=fits, other=0.0)
    mean = (tl.sum(head) + tl.sum(tail)) / DIM
    head -= mean
    tail = tl.where(fits, tail - mean, 0.0)
    deviation = tl.sqrt((tl.sum(head * head) + tl.sum(tail * tail)) / DIM + EPS)
    head = head / deviation * tl.load(weight + columns) + tl.load(bias + columns)
    tail = tail / deviation * tl.load(weight + rest, mask=fits, other=0.0)
    tail += tl.load(bias + rest, mask=fits, other=0.0)
    return head, tail


@triton.jit
def _norm(x, offset, weight, bias, out, EPS: tl.constexpr, DIM: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * DIM
    columns = tl.arange(0, HEAD)
    rest = HEAD + tl.arange(0, TAIL)
    fits = rest < DIM
    head = tl.load(x + row + columns).to(tl.float32)
    tail = tl.load(x + row + rest, mask=fits, other=0.0).to(tl.float32)
    head, tail = norm_pieces(head, tail, fits, columns, rest, offset, weight, bias, EPS, DIM)
    tl.store(out + row + columns, head.to(out.dtype.element_ty))
    tl.store(out + row + rest, tail.to(out.dtype.element_ty), mask=fits)


@triton.jit
def _rotate(
    qkv, bias, cos, sin, tokens, q_scale, DIM: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    pairs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    part = tl.program_id(2)  # 0: q, 1: k
    here = (rows < tokens) & (pairs < DIM // 2)
    channel = pairs % HALF
    column = part * DIM + pairs // HALF * (2 * HALF) + channel
    address = qkv + rows * (3 * DIM) + column
    one = tl.load(address, mask=here, other=0.0).to(tl.float32)
    other = tl.load(address + HALF, mask=here, other=0.0).to(tl.float32)
    one += tl.load(bias + column, mask=pairs < DIM // 2, other=0.0).to(tl.float32)
    other += tl.load(bias + column + HALF, mask=pairs < DIM // 2, other=0.0).to(tl.float32)
    scale = tl.where(part == 0, q_scale, 1.0)
    c = tl.load(cos + rows * HALF + channel, mask=here, other=0.0) * scale
    s = tl.load(sin + rows * HALF + channel, mask=here, other=0.0) * scale
    tl.store(address, (one * c - other * s).to(qkv.dtype.element_ty), mask=here)
    tl.store(address + HALF, (other * c + one * s).to(qkv.dtype.element_ty), mask=here)


@triton.jit
def _gelu(x, bias, tokens, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    here = (rows < tokens) & (columns < WIDTH)
    add = tl.load(bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    values = tl.load(x + rows * WIDTH + columns, mask=here, other=0.0).to(tl.float32) + add
    tl.store(x + rows * WIDTH + columns, gelu_of(values).to(x.dtype.element_ty), mask=here)


def norm(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm of ``x + offset`` over the channels, in float32.

    Args:
        x: ``(T, D)`` in any floating dtype, contiguous.
        offset, weight, bias: float32 ``(D,)``.

    Returns:
        ``(T, D)`` in ``dtype``.
    """
    tokens, dim = x.shape
    out = torch.empty(tokens, dim, dtype=dtype, device=x.device)
    _norm[(tokens,)](x, offset, weight, bias, out, eps, dim, *pieces(dim), num_warps=warps(dim))
    return out


def rotate_qk(qkv: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, heads: int, q_scale: float) -> None:
    """Bias, scale (q alone) and rotary of q and k where they lie; v is left as it is.

    Args:
        qkv: ``(T, 3 D)``, contiguous: the projections without bias; overwritten.
        bias: ``(3 D,)``.
        cos, sin: float32 ``(T, 1, head_dim / 2)`` of each token's angles.
    """
    tokens, dim = qkv.shape[0], qkv.shape[1] // 3
    block = _block(dim // 2)
    rows = max(1, TILE // 2 // block)
    grid = (triton.cdiv(tokens, rows), triton.cdiv(dim // 2, block), 2)
    _rotate[grid](qkv, bias, cos, sin, tokens, q_scale, dim, dim // heads // 2, block, rows, num_warps=4)


def gelu(x: Tensor, bias: Tensor) -> None:
    """GELU of ``x + bias`` in place.

    Args:
        x: ``(T, 4 D)``, contiguous.
        bias: ``(4 D,)``.
    """
    tokens, width = x.shape
    block = _block(width)
    rows = max(1, TILE // block)
    grid = (triton.cdiv(tokens, rows), triton.cdiv(width, block))
    _gelu[grid](x, bias, tokens, width, block, rows, num_warps=4)


def pieces(width: int) -> tuple[int, int]:
    """A row's columns in two powers of two, because many models' widths are 3 or 5 times a power of two."""
    head = 1 << (width.bit_length() - 1)
    return head, max(16, int(triton.next_power_of_2(width - head)))


def warps(width: int) -> int:
    """Warps for a program that holds a row."""
    return int(min(8, max(1, triton.next_power_of_2(width) // 1024)))


def _block(width: int) -> int:
    """Columns of one program: a power of two that divides the width where that is not too small."""
    divisor = width & -width
    return int(min(divisor, 1024) if divisor >= 128 else min(triton.next_power_of_2(width), 512))
