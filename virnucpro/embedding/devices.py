"""The devices that a job runs on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from virnucpro.models.load import parse_device


def job_devices(devices: Sequence[str] | None) -> list[str]:
    """Devices by name: those given, or every CUDA device that this process sees, or the CPU.

    Raises:
        UserError: a device that is not there.
    """
    if devices:
        return [str(parse_device(device)) for device in devices]
    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu"]


def share_out(lengths: np.ndarray, shares: int, embed_dim: int) -> list[np.ndarray]:
    """Split proteins into shares of about equal cost.

    The most costly protein goes to the share that has least so far. A protein of L tokens costs
    ``24 D^2 L + 4 D L^2`` operations a layer: its matrix products and its attention.

    Returns:
        For each share the ascending row numbers of its proteins; shares of few proteins may be empty.
    """
    tokens = np.asarray(lengths, dtype=np.float64) + 2
    cost = 24 * embed_dim * tokens + 4 * tokens**2
    held = np.zeros(shares)
    rows: list[list[int]] = [[] for _ in range(shares)]
    for row in np.argsort(-cost, kind="stable"):
        share = int(held.argmin())
        held[share] += cost[row]
        rows[share].append(int(row))
    return [np.array(sorted(own), dtype=np.int64) for own in rows]
