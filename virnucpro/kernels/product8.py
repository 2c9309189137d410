"""Matrix products of 8-bit integers: exact sums in 32 bits, scaled once at their end.

On Hopper one persistent Triton kernel computes and scales them (as :mod:`virnucpro.kernels.product`); elsewhere
torch's integer product does, and a pass over its output. Both give the same bits, and because integer sums have no
order, no row depends on how many others there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from virnucpro.kernels.product import COUNTS, Tiling, halves_of, start, tile_at
from virnucpro.kernels.rows8 import Rows

DEPTH = 128
"""How much of the inner dimension is brought at a time."""

DEEP, SHALLOW = Tiling(128, 256, DEPTH, programs=1, warps=8), Tiling(128, 128, DEPTH, programs=2, warps=4)
"""Where the inner dimension is larger than the result's width, and elsewhere: there what ends a tile takes a larger
share of the time, and another program's products go on meanwhile. On an H100 in TFLOP/s, DEEP and SHALLOW: 3B's fc2
1,223 and 1,066, its fc1 1,091 and 1,260, 650M's 841 and 1,085."""

SHARE = 20
"""One channel in so many has two integers where a product has any."""


class Weight8(NamedTuple):
    """A weight ``(outputs, inputs)`` in 8-bit integers.

    Attributes:
        values: int8 ``(outputs, split + inputs)``; the first ``split`` columns are there twice.
        scales: float32 ``(outputs,)``.
        sums: int32 ``(outputs,)`` of the columns from ``split`` on, which a row's zero is multiplied with.
        split: as that of the rows which it is multiplied with.
    """

    values: Tensor
    scales: Tensor
    sums: Tensor
    split: int

    def rounded(self) -> Tensor:
        """The weight as it is used, float32 ``(outputs, inputs)``."""
        return self.values[:, self.split :] * self.scales[:, None]


def split_of(width: int) -> int:
    """How many of a row's channels have two integers: a power of two; none in rows of few channels."""
    return 0 if width < 8 * DEPTH else int(triton.next_power_of_2(triton.cdiv(width, SHARE * DEPTH))) * DEPTH


def weight_rows(weight: Tensor, split: int = 0) -> Weight8:
    """A floating-point weight ``(outputs, inputs)`` with the largest value of each row at 127."""
    scales = weight.abs().amax(1).float().clamp(min=1e-12) / 127
    values = (weight.float() / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
    sums = values[:, split:].sum(1, dtype=torch.int32)
    return Weight8(torch.cat((values[:, :split], values), dim=1), scales, sums, split)


@triton.jit
def _scaled(
    sums,
    row,
    column,
    scales,
    zeros,
    weight_scales,
    weight_sums,
    bias,
    tokens,
    width,
    SIZE: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Integer sums ``(ROWS, SIZE)`` of a tile as float32, with the bias."""
    rows, columns = row + tl.arange(0, sums.shape[0]), column + tl.arange(0, SIZE)
    here, inside = rows < tokens, columns < width
    zero = tl.load(zeros + rows, mask=here, other=0)
    sums -= zero[:, None] * tl.load(weight_sums + columns, mask=inside, other=0)[None, :]
    values = sums.to(tl.float32) * tl.load(scales + rows, mask=here, other=0.0)[:, None]
    values *= tl.load(weight_scales + columns, mask=inside, other=0.0)[None, :]
    if BIAS:
        values += tl.load(bias + columns, mask=inside, other=0.0)[None, :]
    return values


@triton.jit(do_not_specialize=COUNTS)
def _product(
    x,
    weight,
    out,
    scales,
    zeros,
    weight_scales,
    weight_sums,
    bias,
    tokens,
    width,
    depth,
    tiles,
    programs,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SPLIT: tl.constexpr,
    BIAS: tl.constexpr,
):
    for number in tl.range(tl.program_id(0), tiles, programs, flatten=SPLIT == 0):
        row, column = tile_at(number, tokens, width, ROWS, COLUMNS, GROUP)
        tile = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
        if SPLIT > 0:
            for start in range(0, SPLIT, DEPTH):
                tile = tl.dot(x.load([row, start]), weight.load([column, start]).T, tile, out_dtype=tl.int32)
            tile = tile * 256
        for start in range(SPLIT, depth, DEPTH):
            tile = tl.dot(x.load([row, start]), weight.load([column, start]).T, tile, out_dtype=tl.int32)
        left, right = halves_of(tile, ROWS, COLUMNS)
        left = _scaled(
            left, row, column, scales, zeros, weight_scales, weight_sums, bias, tokens, width, COLUMNS // 2, BIAS
        )
        out.store([row, column], left.to(out.dtype))
        column += COLUMNS // 2
        right = _scaled(
            right, row, column, scales, zeros, weight_scales, weight_sums, bias, tokens, width, COLUMNS // 2, BIAS
        )
        out.store([row, column], right.to(out.dtype))


def product_in_one(x: Rows, weight: Weight8, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, float16 ``(T, outputs)``, by one kernel; inputs are a multiple of 16, outputs of 8."""
    (tokens, depth), width = x.values.shape, len(weight.values)
    out = torch.empty(tokens, width, dtype=torch.float16, device=x.values.device)
    of_rows = (x.scales, x.zeros, weight.scales, weight.sums, weight.scales if bias is None else bias)
    tiling = DEEP if depth > width else SHALLOW
    start(_product, x.values, weight.values, out, *of_rows, tiling=tiling, SPLIT=weight.split, BIAS=bias is not None)
    return out


@triton.jit
def _scale_pass(
    low,
    high,
    out,
    scales,
    zeros,
    weight_scales,
    weight_sums,
    bias,
    tokens,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
    BIAS: tl.constexpr,
):
    row, column = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
    rows, columns = row + tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
    here = (rows < tokens) & (columns < width)
    address = rows.to(tl.int64) * width + columns
    sums = tl.load(low + address, mask=here, other=0)
    if SPLIT > 0:
        sums += 256 * tl.load(high + address, mask=here, other=0)
    values = _scaled(sums, row, column, scales, zeros, weight_scales, weight_sums, bias, tokens, width, COLUMNS, BIAS)
    tl.store(out + address, values.to(out.dtype.element_ty), mask=here)


def product_in_two(x: Rows, weight: Weight8, bias: Tensor | None = None) -> Tensor:
    """As :func:`product_in_one`, by torch's integer product and a pass; on a GPU of 17 rows or more."""
    tokens, width, split = len(x.values), len(weight.values), weight.split
    out = torch.empty(tokens, width, dtype=torch.float16, device=x.values.device)
    low = torch._int_mm(x.values[:, split:].contiguous() if split else x.values, weight.values[:, split:].t())
    high = torch._int_mm(x.values[:, :split].contiguous(), weight.values[:, :split].t()) if split else low
    _scale_pass[(triton.cdiv(tokens, 16), triton.cdiv(width, 128))](
        *(low, high, out, x.scales, x.zeros, weight.scales, weight.sums, weight.scales if bias is None else bias),
        *(tokens, width, 16, 128, split, bias is not None),
    )
    return out
