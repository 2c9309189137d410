"""The devices that a job runs on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from virnucpro.chunking.cost import protein_costs
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

    The most costly protein goes to the share that has least so far.

    Args:
        lengths: residues of each protein, (n,).
        shares: how many.
        embed_dim: the model's width (see :func:`virnucpro.chunking.cost.protein_costs`).

    Returns:
        For each share the ascending row numbers of its proteins; shares of few proteins may be empty.
    """
    cost = protein_costs(lengths, embed_dim=embed_dim)
    held = np.zeros(shares)
    rows: list[list[int]] = [[] for _ in range(shares)]
    for row in np.argsort(-cost, kind="stable"):
        share = int(held.argmin())
        held[share] += cost[row]
        rows[share].append(int(row))
    return [np.array(sorted(own), dtype=np.int64) for own in rows]
