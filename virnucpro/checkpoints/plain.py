"""Tensors that are what they seem: dense, of floating-point numbers that lie in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.base.text import short

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Number formats of weights that are read."""


def plain_tensor(path: Path, name: str, tensor: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """The tensor itself, where it is a dense one of floating-point numbers that all lie in the file.

    Args:
        path, name: for messages.
        shape: what it has to have; None takes any.

    Raises:
        UserError: a sparse, quantised, nested or expanded one, one without numbers, or one of another shape or type.
    """
    tensor = Tensor.detach(tensor) if isinstance(tensor, Tensor) else tensor  # see _read_file
    reason = why_not_plain(tensor)
    if reason is not None:
        raise UserError(f"{path}: {short(name)} {reason}, and plain float16, bfloat16, float32 or float64 is read")
    if shape is not None and tuple(tensor.shape) != shape:
        raise UserError(
            f"{path} is damaged or of another model: {short(name)} has shape {short(tuple(tensor.shape))}, not {shape}"
        )
    found: Tensor = tensor
    return found


def why_not_plain(tensor: Any) -> str | None:
    if not isinstance(tensor, Tensor):
        return "is no tensor"
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_nested:
        return "is a nested or wrapped tensor"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"is {'quantised' if tensor.is_quantized else tensor.layout}"
    if tensor.device.type != "cpu":
        return "is a tensor without numbers (of the meta device)"
    if tensor.dtype not in FLOATS:
        return f"is {tensor.dtype}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "is expanded (it repeats the same numbers)"
    return None
