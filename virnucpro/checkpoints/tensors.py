"""The tensors of a checkpoint by the names that they have in its files, and what stands beside them.

Models that people take for one that is read here are known by the names of their tensors, or by their configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.base.safetensors_header import HeaderError, read_header
from virnucpro.base.text import short
from virnucpro.checkpoints.files import CheckpointFiles, checkpoint_files, read_json, what_it_is
from virnucpro.checkpoints.torch_file import REPLACE, check_records, load_torch_file, plain_tensor, why_not_plain

WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "net", "weights")
"""Entries of a training program's checkpoint that hold the tensors (fair-esm, Lightning, PyTorch's tutorials, ...)."""


@dataclass(frozen=True)
class StoredTensors:
    """A checkpoint before anybody knows which model it is of.

    Attributes:
        tensors: by the names that they have in the files, mapped and not looked at.
        beside: what stands in a file of torch's beside its tensors, such as fair-esm's ``cfg``; values of any kind.
        config: the content of ``config.json``, where there is one.
    """

    files: CheckpointFiles
    tensors: Mapping[str, Tensor]
    beside: Mapping[str, Any]
    config: Mapping[str, Any] | None

    @property
    def path(self) -> Path:
        """What the user named, for messages."""
        return self.files.path

    def prefixes(self, name: str) -> list[str]:
        """What stands before ``name`` in the names of tensors that end in it: ``""``, ``"module.esm."``, ..."""
        found = [own.removesuffix(name) for own in self.tensors if own.endswith(name)]
        return sorted(prefix for prefix in found if not prefix or prefix.endswith("."))

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, checked: a plain one of floating-point numbers, of this shape.

        Raises:
            UserError: it is not there or not so.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise UserError(f"{self.path} is not complete: its tensor {short(name)} is missing")
        return plain_tensor(self.path, name, tensor, shape)


def layer_count(names: Iterable[str], start: str) -> int:
    """How many layers there are, by the names of tensors: ``start``, a layer's number from 0, and a dot."""
    numbers = (name.removeprefix(start).partition(".")[0] for name in names if name.startswith(start))
    return 1 + max(int(number) for number in numbers if number.isdecimal() and len(number) < 5)


def read_tensors(path: Path | CheckpointFiles) -> StoredTensors:
    """Open a checkpoint: one file, or a folder with its configuration and shards.

    Raises:
        UserError: as :func:`virnucpro.checkpoints.files.checkpoint_files`; or a file is damaged, unsafe, holds no
            tensors, or lacks one that the index promises.
    """
    files = path if isinstance(path, CheckpointFiles) else checkpoint_files(path)
    tensors: dict[str, Tensor] = {}
    beside: Mapping[str, Any] = {}
    for file in files.weights:
        found, beside = _read_file(file)
        twice = next((name for name in found if name in tensors), None)
        if twice is not None:
            raise UserError(f"{files.path} holds the tensor {short(twice)} twice, the second time in {file.name}")
        tensors |= found
    missing = next((entry for entry in (files.weight_map() or {}).items() if entry[0] not in tensors), None)
    if missing is not None:
        raise UserError(
            f"{files.path} is not complete: its index promises {short(missing[0])} in {short(missing[1])}, "
            "and it is not there; download the file again"
        )
    return StoredTensors(files, tensors, beside, None if files.config is None else read_json(files.config))


def _read_file(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    if _is_safetensors(path):
        return _read_safetensors(path), {}
    content = load_torch_file(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {_kind(content)}, not the tensors of a model by their names")
    tensors, beside = _unwrapped(content)
    # Detached by torch's own function: a file can hang anything on a tensor, in place of its methods too.
    found = {
        name: Tensor.detach(tensor)
        for name, tensor in tensors.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    if not found:
        raise UserError(f"{path} holds no tensors by their names: give the state_dict of a model")
    # Only plain ones lie in records of their own, and others are refused by whoever needs them.
    check_records(path, [tensor for tensor in found.values() if why_not_plain(tensor) is None])
    return found, beside


def _unwrapped(content: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """The mapping of tensors in what a training program saved, and what stands around it."""
    beside: dict[Any, Any] = {}
    for _ in range(4):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        beside |= {name: value for name, value in content.items() if value is not inner}
        content = inner
    return content, beside


def _kind(content: object) -> str:
    if isinstance(content, torch.nn.Module):
        return "a whole module"
    return f"a {type(content).__name__}"


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            names = list(read_header(file).tensors)
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in names}
    except HeaderError as error:
        raise UserError(f"{path} is no safetensors file: {what_it_is(path) or f'{error}; {REPLACE}'}") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({short(str(error))[1:-1]}): {REPLACE}") from None


_MODEL_TYPES = {
    "t5": "ProtT5 or another T5",
    "bert": "a BERT",
    "roberta": "a RoBERTa",
    "esmc": "ESM C",
    "esm3": "ESM3",
}
"""``model_type`` in config.json."""

_TENSORS = {
    "transformer.blocks.0.geom_attn.proj.weight": "ESM3",
    "encoder.sequence_embed.weight": "ESM3",
    "transformer.blocks.0.attn.layernorm_qkv.1.weight": "ESM C",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "ProtT5 or another T5",
    "trunk.blocks.0.sequence_to_pair.layernorm.weight": "ESMFold's folding trunk",
    "embeddings.token_type_embeddings.weight": "a BERT",
    "encoder.layer.0.attention.output.LayerNorm.weight": "a BERT",
    "layers.0.row_self_attention.layer.k_proj.weight": "the MSA Transformer",
    "transformer.h.0.attn.qkv_proj.weight": "ProGen",
    "model.layers.0.self_attn.q_proj.weight": "a language model of text",
}
"""Names that a model has and no other, under any prefix; the first that is there decides."""


def foreign_model(stored: StoredTensors) -> str | None:
    """What a checkpoint is of, as the rest of a sentence that begins with its path; None where nothing tells."""
    for name, model in _TENSORS.items():
        if stored.prefixes(name):
            return f"is {model}"
    names = list(stored.tensors)
    if names and all(".lora_" in name or "lora_magnitude" in name for name in names):
        return "is an adapter (LoRA) without its base model: name its folder by `adapter:` and the base by `model:`"
    model_type = (stored.config or {}).get("model_type")
    if isinstance(model_type, str):
        return f"is {_MODEL_TYPES.get(model_type, f'of the model type {short(model_type)}')}"
    return None
