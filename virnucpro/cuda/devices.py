"""Devices by name."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from virnucpro.base.errors import UserError
from virnucpro.cuda.attention_utils import why_no_cuda


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


def job_devices(devices: Sequence[str] | None, *, require_gpu: bool = False) -> list[str]:
    """Devices by name: those given, or every CUDA device that this process sees, or the CPU.

    Raises:
        UserError: a device that is not there; or no GPU can be used, and one is required.
    """
    if devices:
        return [str(parse_device(device)) for device in devices]
    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if require_gpu:
        raise UserError(
            f"setting 'require_gpu' is true, and no GPU can be used on {platform.node()} ({why_no_cuda()}): run it "
            "where one can, or set require_gpu to false for the CPU"
        )
    return ["cpu"]


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; (0, 0) of any other."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one, so that pinned memory and kernels start nothing on another."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def device_name(device: torch.device) -> str:
    """ "NVIDIA H200" or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
