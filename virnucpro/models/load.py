"""A packed model from prepared weights (safetensors), on one device."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from virnucpro.errors import UserError
from virnucpro.models.attention import choose_attention
from virnucpro.models.packed import PackedESM2
from virnucpro.models.precision import dtype_name, parameter_dtype
from virnucpro.weights.files import load_state_dict
from virnucpro.weights.manifest import WeightsManifest


def parse_device(device: str | torch.device) -> torch.device:
    """A device that is there.

    Raises:
        UserError: not a device's name, or a CUDA device that this machine or this process does not have.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r} is not known: give cpu, cuda or cuda:N") from None
    if parsed.type == "cpu":
        return parsed
    if parsed.type != "cuda":
        raise UserError(f"device {device!r} is not supported: give cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UserError(f'device {str(device)!r} was asked for, but torch sees no CUDA GPU here: use device="cpu"')
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if parsed.index is None else parsed.index
    if index >= count:
        raise UserError(f"device {str(device)!r} was asked for, but torch sees {count} CUDA GPU(s) here")
    return torch.device("cuda", index)


def load_packed(
    weights: Path,
    manifest: WeightsManifest,
    *,
    device: torch.device,
    dtype: torch.dtype,
    logger: logging.Logger,
) -> PackedESM2:
    """Load the embedding part, memory-mapped, tensor by tensor to the device.

    Args:
        dtype: of the parameters; for float8 they are bfloat16, which :func:`choose_steps` then converts.

    Raises:
        UserError: the weights are not those of their manifest, or do not fit into the device's memory.
    """
    dtype = parameter_dtype(dtype)
    attention = choose_attention(device, dtype, manifest.architecture.head_dim, logger)
    state = load_state_dict(weights, manifest=manifest)
    architecture = manifest.architecture
    try:
        model = PackedESM2.from_state_dict(state, architecture, attention, device=device, dtype=dtype)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{weights} needs about {architecture.parameters * torch.finfo(dtype).bits / 8e9:.1f} GB in "
            f"{dtype_name(dtype)}, which {device} does not have free: use a GPU with more memory or a smaller model"
        ) from None
    logger.info(
        "%s: %s, attention %s (%s)", device_name(device), dtype_name(dtype), attention.name, attention.implementation
    )
    return model


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one, so that pinned memory and kernels start nothing on another."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def device_name(device: torch.device) -> str:
    """ "NVIDIA H200" or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
