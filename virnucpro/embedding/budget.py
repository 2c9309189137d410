"""How many tokens a batch may hold on a device."""

from __future__ import annotations

import torch

from virnucpro.weights.architectures import Architecture

CPU_BUDGET = 4096
"""Larger batches leave the caches of a CPU and gain nothing (measured on two cores with 8M to 150M)."""

GPU_BUDGET = 32768
"""Enough rows for the matrix products of the larger models to run at full rate."""

LOWEST_BUDGET = 1024


def bytes_per_token(architecture: Architecture, layers_kept: int, dtype: torch.dtype) -> int:
    """Device memory that one more token in a batch takes, at the highest point of a layer run eagerly.

    Counted in float32 channels: residual stream old and new, the norm's output (4 in all); q, k, v
    and the rotary's temporaries (8) or the feed-forward's two hidden layers (8, in the model's
    dtype), of which the larger counts; the layers kept, and their weighted copy.
    """
    width = torch.finfo(dtype).bits // 8
    channels = 4 * 4 + max(8 * 4, 8 * width + 4 * width) + 4 * (layers_kept + 2)
    return channels * architecture.embed_dim


def default_budget(
    architecture: Architecture,
    device: torch.device,
    layers_kept: int,
    dtype: torch.dtype,
    free_bytes: int | None = None,
) -> int:
    """Tokens of a batch for a device.

    Args:
        free_bytes: free memory of the GPU, the model's weights already on it; asked of CUDA when None.
    """
    if device.type != "cuda":
        return CPU_BUDGET
    if free_bytes is None:
        free_bytes = torch.cuda.mem_get_info(device)[0]
    wanted = GPU_BUDGET * min(4, max(1, 1280 // architecture.embed_dim))
    fitting = int(0.7 * free_bytes) // bytes_per_token(architecture, layers_kept, dtype)
    return max(LOWEST_BUDGET, min(wanted, fitting // 1024 * 1024))
