"""Turn a checkpoint into a safetensors file of the embedding part, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.models.esm2.checkpoint import Checkpoint
from virnucpro.models.esm2.sizes import embedding_shapes

_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_ALIGNMENT = 64
_BLOCK = 1 << 24


def embedding_part(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors that representations need, ``inv_freq`` among them, in the model's order."""
    return {name: checkpoint.state[name] for name in embedding_shapes(checkpoint.architecture)}


def write_weights(path: Path, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Write tensors as a safetensors file, whole or not at all, in the dtype that they have.

    The layout is safetensors' own (https://huggingface.co/docs/safetensors, "Format"). The library
    is not used for writing because before 0.8 it copies all tensors to memory first, which is 30 GB
    for the 15B model, and because equal weights shall give equal bytes whatever its version.

    Args:
        source: the checkpoint, for messages.

    Raises:
        UserError: a tensor holds a number that is not finite, or the disk is full.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with atomic_path(path) as beside, beside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in tensors.items():
            flat = tensor.detach().reshape(-1)
            for start in range(0, flat.numel(), _BLOCK):
                block = flat[start : start + _BLOCK]
                if not bool(block.isfinite().all()):
                    raise UserError(f"checkpoint {source} is damaged: {name} holds a number that is not finite")
                file.write(block.view(torch.uint8).numpy().data)
