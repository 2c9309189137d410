"""Rotary position embedding as ESM-2 was trained with it (Su et al. 2021, arXiv:2104.09864).

The frequencies are the checkpoint's own: training rounded them to float16, and computing them anew
turns a head's slower halves by up to 0.16 rad at position 1023. The tables are float32 whatever the
model's precision.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(inv_freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each token's angles.

    Args:
        inv_freq: ``(head_dim / 2,)`` from the checkpoint (``layers.N.self_attn.rot_emb.inv_freq``).
        positions: ``(T,)`` integers; BOS has position 0.

    Returns:
        Two float32 tensors ``(T, 1, head_dim / 2)``. fair-esm repeats them over both halves of a head.
    """
    angles = torch.outer(positions.float(), inv_freq.float())
    return angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs ``(x[i], x[i + head_dim / 2])`` by their angles, in float32.

    Args:
        x: ``(T, heads, head_dim)`` in any floating dtype.
        cos, sin: from :func:`rotary_tables`.

    Returns:
        ``(T, heads, head_dim)``, float32.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_in_place(x: Tensor, turn: Tensor) -> None:
    """The same as a product of complex numbers, written back to ``x`` in its own dtype.

    Without a compiler this is several times faster than :func:`rotate` on a CPU: four passes in place
    of seven, and none over rows as short as half a head.

    Args:
        x: ``(T, heads, head_dim)``, overwritten.
        turn: complex64 ``(T, 1, head_dim / 2)``: cosine + i sine, times a scale if there is one.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first.float(), second.float()) * turn
    first.copy_(turned.real)
    second.copy_(turned.imag)
