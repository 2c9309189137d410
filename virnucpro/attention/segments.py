"""Which tokens of a packed batch belong to which sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Bucket(NamedTuple):
    """Sequences of similar length, padded to the longest.

    Attributes:
        tokens: int64 ``(sequences, longest)``: the packed token at each place (any token where padded).
        mask: bool ``(sequences, 1, 1, longest)``, True for real tokens; None when nothing is padded.
        packed: int64 ``(real tokens,)``: their positions in the packed batch.
        padded: int64 ``(real tokens,)``: their positions in the flattened bucket.
    """

    tokens: Tensor
    mask: Tensor | None
    packed: Tensor
    padded: Tensor


@dataclass(frozen=True)
class Segments:
    """The sequences of a packed batch of T tokens, one after the other, without padding.

    Attributes:
        lengths: tokens of each of the n sequences, on the host (BOS and EOS count).
        cu_seqlens: int32 ``(n + 1,)``: where each sequence begins and, last, where the batch ends.
        positions: int64 ``(T,)``: place of each token in its sequence; BOS is 0.
        sequence: int64 ``(T,)``: number of the sequence that each token belongs to.
        max_seqlen: the longest length, or a bound not much above it.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    positions: Tensor
    sequence: Tensor
    max_seqlen: int

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Lay sequences of these lengths end to end; copies to a CUDA device do not block the host."""
        if not lengths or min(lengths) < 1:
            raise ValueError("a packed batch needs at least one sequence, and every sequence a token")
        device = torch.device(device)
        counts = np.asarray(lengths, dtype=np.int64)
        ends = counts.cumsum()
        positions = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        sequence = np.repeat(np.arange(len(counts)), counts)
        cu_seqlens = np.concatenate(([0], ends)).astype(np.int32)
        return cls(
            lengths=tuple(int(length) for length in lengths),
            cu_seqlens=to_device(cu_seqlens, device),
            positions=to_device(positions, device),
            sequence=to_device(sequence, device),
            max_seqlen=int(counts.max()),
        )

    @cached_property
    def extremes(self) -> tuple[int, int]:
        """The shortest and the longest length."""
        return min(self.lengths), max(self.lengths)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Sequences grouped by length, none padded by more than an eighth of the longest one."""
        lengths = np.asarray(self.lengths)
        starts = lengths.cumsum() - lengths
        order = np.argsort(-lengths, kind="stable")
        found: list[Bucket] = []
        begin = 0
        while begin < len(order):
            longest = int(lengths[order[begin]])
            end = begin + int((lengths[order[begin:]] * 8 >= longest * 7).sum())
            found.append(_bucket(starts[order[begin:end]], lengths[order[begin:end]], self.cu_seqlens.device))
            begin = end
        return found

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Neighbours of equal length as ``(first token, sequences, length)``."""
        found: list[tuple[int, int, int]] = []
        start = 0
        for length in self.lengths:
            if found and found[-1][2] == length:
                found[-1] = (found[-1][0], found[-1][1] + 1, length)
            else:
                found.append((start, 1, length))
            start += length
        return found


def _bucket(starts: np.ndarray, lengths: np.ndarray, device: torch.device) -> Bucket:
    position = np.arange(lengths.max())
    real = position < lengths[:, None]
    tokens = starts[:, None] + np.where(real, position, 0)
    return Bucket(
        tokens=to_device(tokens, device),
        mask=None if real.all() else to_device(real[:, None, None, :], device),
        packed=to_device(tokens[real], device),
        padded=to_device(np.flatnonzero(real), device),
    )


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of ``array`` on ``device``; for CUDA through pinned memory, so that the host need not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
