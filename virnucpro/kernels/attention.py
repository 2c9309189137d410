"""FlashAttention-2's forward pass (Dao 2023, arXiv:2307.08691) over packed sequences, in Triton.

No mask but a sequence's end, no dropout, no gradients, softmax in float32; ALiBi's slopes (Press et al. 2022,
arXiv:2108.12409) if there are any. One program takes a block of one sequence's queries of one head and passes over
that sequence's keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


class Blocks(NamedTuple):
    """Rows of a block of queries and of a block of keys, and the warps that compute it."""

    queries: int
    keys: int
    warps: int


SHORT, LONG = Blocks(64, 32, 4), Blocks(64, 64, 4)
"""For sequences up to :data:`BORDER` tokens, and for longer ones. With 64 queries a protein of 168 tokens fills 3 of 3
blocks to 7/8; blocks of 128 by 128, as FlashAttention-2's own, leave more than half of their work to nothing there."""

BORDER = 224
"""A sequence's own length decides which blocks it is computed in, so that its numbers do not depend on the others'."""


@triton.jit
def _taken(logits, value, largest, weight, found, LOG2_E: tl.constexpr):
    """The largest logit, the sum of shares and the weighted sum of values, with one block of keys more."""
    new = tl.maximum(largest, tl.max(logits, 1))
    # One multiplication and addition a logit: the product with LOG2_E is not needed before the difference.
    shares = tl.exp2(logits * LOG2_E - (new * LOG2_E)[:, None])
    shrink = tl.exp2((largest - new) * LOG2_E)
    weight = weight * shrink + tl.sum(shares, 1)
    return new, weight, tl.dot(shares.to(value.dtype), value, found * shrink[:, None])


@triton.jit(do_not_specialize=["shortest", "longest"])
def _attend(
    q,
    k,
    v,
    out,
    ends,
    slopes,
    shortest,
    longest,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    LOG2_E: tl.constexpr,
    SLOPES: tl.constexpr,
):
    begin = tl.load(ends + tl.program_id(2)).to(tl.int64)
    length = (tl.load(ends + tl.program_id(2) + 1) - begin).to(tl.int32)
    first = tl.program_id(0) * QUERIES
    if (first >= length) | (length < shortest) | (length > longest):
        return
    channel = tl.arange(0, BLOCK_HEAD)
    real = channel < HEAD_DIM
    column = tl.program_id(1) * HEAD_DIM + channel
    rows = first + tl.arange(0, QUERIES)
    here = (rows < length)[:, None] & real[None, :]
    query = tl.load(q + (begin + rows)[:, None] * q_stride + column[None, :], mask=here, other=0.0)
    position = tl.arange(0, KEYS)
    keys = k + (begin + position)[None, :] * k_stride + column[:, None]
    values = v + (begin + position)[:, None] * v_stride + column[None, :]
    if SLOPES:
        slope = tl.load(slopes + tl.program_id(1))
        # Places are float32, exact up to 2**24: turning integers into them takes as long as the products.
        own = rows.to(tl.float32)[:, None]
        other = position.to(tl.float32)[None, :]
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    found = tl.zeros([QUERIES, BLOCK_HEAD], tl.float32)
    whole = length // KEYS * KEYS
    for start in range(0, whole, KEYS):
        if BLOCK_HEAD == HEAD_DIM:
            key = tl.load(keys + start * k_stride)
            value = tl.load(values + start * v_stride)
        else:
            key = tl.load(keys + start * k_stride, mask=real[:, None], other=0.0)
            value = tl.load(values + start * v_stride, mask=real[None, :], other=0.0)
        logits = tl.dot(query, key)
        if SLOPES:
            logits -= slope * tl.abs(own - (other + start))
        largest, weight, found = _taken(logits, value, largest, weight, found, LOG2_E)
    if whole < length:
        left = position < length - whole
        # Behind the end is another sequence, whose values need not be finite: they count as zeros.
        key = tl.load(keys + whole * k_stride, mask=left[None, :] & real[:, None], other=0.0)
        value = tl.load(values + whole * v_stride, mask=left[:, None] & real[None, :], other=0.0)
        logits = tl.dot(query, key)
        if SLOPES:
            logits -= slope * tl.abs(own - (other + whole))
        logits = tl.where(left[None, :], logits, float("-inf"))
        largest, weight, found = _taken(logits, value, largest, weight, found, LOG2_E)
    target = out + (begin + rows)[:, None] * out_stride + column[None, :]
    tl.store(target, (found / weight[:, None]).to(out.dtype.element_ty), mask=here)


def attend(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, lengths: tuple[int, int], slopes: Tensor | None = None
) -> Tensor:
    """Softmax attention within each sequence; q comes scaled.

    Args:
        q, k, v: float16 or bfloat16 ``(T, heads, head_dim)``; a token's heads and channels lie together.
        cu_seqlens: int32 ``(sequences + 1,)``.
        lengths: of the shortest sequence and of the longest.
        slopes: float32 ``(heads,)``: the logit of tokens i and j of a sequence is lowered by ``slope * |i - j|``.

    Returns:
        ``(T, heads, head_dim)`` in their dtype, contiguous.
    """
    heads, head_dim = q.shape[1:]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    shortest, longest = lengths
    for blocks, lowest, highest in ((LONG, BORDER + 1, longest), (SHORT, shortest, min(BORDER, longest))):
        if lowest > highest:
            continue
        grid = (triton.cdiv(highest, blocks.queries), heads, len(cu_seqlens) - 1)
        _attend[grid](
            q,
            k,
            v,
            out,
            cu_seqlens,
            slopes,
            lowest,
            highest,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            heads * head_dim,
            head_dim,
            max(16, triton.next_power_of_2(head_dim)),
            blocks.queries,
            blocks.keys,
            LOG2_E,
            slopes is not None,
            num_warps=blocks.warps,
            num_stages=3 if head_dim <= 64 else 2,
        )
    return out
