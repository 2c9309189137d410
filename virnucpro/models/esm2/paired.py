"""ESM-2 for CPUs: what the rotary turns together lies side by side, so that it is turned in one pass.

In the checkpoints a head's channel ``i`` turns with channel ``i + d / 2``. Here the rows that give them are neighbours:
q and k are then complex numbers as they lie in memory, and one product in place turns them, where the readable form
makes complex numbers and takes them apart again. Dot products of q and k do not change, up to the order of their sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from virnucpro.models.esm2.model import ESM2, Linear


def adjacent_pairs(qkv: Linear, heads: int) -> Linear:
    """The projection whose q and k have channels ``0, d / 2, 1, d / 2 + 1, ...`` of each head; v is as it was.

    Args:
        qkv: ``(3 D, D)``.
    """

    def ordered(rows: Tensor) -> Tensor:
        q_and_k, v = rows.tensor_split([2 * len(rows) // 3])
        halves = q_and_k.reshape(2 * heads, 2, -1, *rows.shape[1:])  # (2 H, 2, d / 2, ...)
        return torch.cat([halves.transpose(1, 2).reshape(q_and_k.shape), v])

    return Linear(ordered(qkv.weight), ordered(qkv.bias))


class PairedESM2(ESM2):
    """ESM-2 whose parameters' q and k have gone through :func:`adjacent_pairs`."""

    def rotate(self, qkv: Tensor, turn: Tensor) -> None:
        """As :meth:`ESM2.rotate`, of pairs that are neighbours."""
        q_and_k = qkv[:, :2]  # (T, 2, H, d)
        wide = q_and_k.float()  # itself in float32
        turns = torch.stack([turn * self.q_scale, turn], dim=1)  # (T, 2, 1, d / 2)
        torch.view_as_complex(wide.view(*wide.shape[:-1], -1, 2)).mul_(turns)
        if wide is not q_and_k:
            q_and_k.copy_(wide)
