"""Adapters as the library peft writes them (LoRA, rsLoRA, DoRA), merged into the weights of their base model.

With the base's weight W ``(out, in)``, A ``(r, in)``, B ``(out, r)`` and s = alpha / r (rsLoRA: alpha / sqrt(r)):

- LoRA (Hu et al. 2021, arXiv:2106.09685): ``W + s B A``; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732;
- DoRA (Liu et al. 2024, arXiv:2402.09353): rows of ``W + s B A``, each scaled to the length that its magnitude tells.

This is what peft's ``merge_and_unload`` computes (its version 0.21).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.base.text import number, short, some
from virnucpro.checkpoints.files import CheckpointFiles
from virnucpro.checkpoints.tensors import read_tensors
from virnucpro.checkpoints.torch_file import plain_tensor

HEADS = ("classifier", "lm_head", "contact_head", "pooler", "score", "qa_outputs", "cls")
"""Modules that transformers' models have beside the embedding part: what an adapter holds for them is not needed."""

PREFIX = "base_model.model."
"""What peft puts before every name."""

_KINDS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_B.bias": "added bias",
    "weight": "weight",
    "bias": "bias",
}
"""What a tensor is to the module whose name stands before these ends; the longer ones come first."""

_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save|default)(?=\.|$)")
"""Parts of names that tell how peft wraps a module, and not which one it is."""

_UNLIKE_LORA = (
    *("layer_replication", "alora_invocation_tokens", "megatron_config", "target_parameters"),
    *("trainable_token_indices", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
    *("lora_ga_config", "corda_config"),
)
"""Settings of peft with which an adapter is no sum of its base and a product."""

_LIKE_LORA = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base's own weights as they were; pissa, olora and others do not."""

LARGEST_SCALE = 1e6
"""Far more than any alpha."""

LONGEST_PATTERN = 200
"""Letters of a regular expression in ``alpha_pattern``; with a loop in a loop it could run for ever."""

_LOOP_OF_LOOPS = re.compile(r"\)[*+?{]|[*+}][*+{]")


@dataclass
class _Change:
    """What is done to one tensor of the base: replaced, multiplied out, lengthened, added to."""

    new: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0
    magnitude: Tensor | None = None
    added: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The changed tensor, float32."""
        found = (tensor if self.new is None else self.new).float()
        if self.added is not None:
            found = found + self.scale * self.added.float()
        if self.a is not None and self.b is not None:
            product = self.b.float() @ self.a.float()
            found = found + self.scale * (product if product.shape == found.shape else product.T)
        if self.magnitude is not None:
            found = found * (self.magnitude.float().reshape(-1) / torch.linalg.vector_norm(found, dim=1))[:, None]
        return found


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to the tensors of its base, by the base's names of them.

    ``unneeded`` counts its tensors for heads, which representations do without.
    """

    path: Path
    changes: Mapping[str, _Change]
    unneeded: int

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """One tensor of the base with what the adapter does to it: float32 then, or else the tensor itself."""
        change = self.changes.get(name)
        return tensor if change is None else change.of(tensor)

    def __str__(self) -> str:
        heads = f"; {number(self.unneeded, 'tensor')} for heads are not needed" if self.unneeded else ""
        return f"adapter {self.path}: {number(len(self.changes), 'tensor')} of the model changed in float32{heads}"


def read_adapter(files: CheckpointFiles, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Read an adapter for a base model; every tensor of it has to be for the embedding part, or for a head.

    Args:
        names: the base's names of its tensors, by every name that an adapter may have for them.
        shapes: of the base's tensors, by its own names.

    Raises:
        UserError: of another kind than LoRA, damaged, or for another model: tensors of it would not be used.
    """
    stored = read_tensors(files)
    config = stored.config or {}
    _check_config(files.path, config)
    changes: dict[str, _Change] = defaultdict(_Change)
    unused, unneeded = [], 0
    parsed = {key: _parsed(key) for key in stored.tensors}
    a_of = {module: stored.tensors[key] for key, (module, kind) in parsed.items() if kind == "a"}
    for key, tensor in stored.tensors.items():
        module, kind = parsed[key]
        own = _own_name(module, "bias" if "bias" in kind else "weight", names)
        if own is not None:
            field = {"weight": "new", "bias": "new", "added bias": "added"}.get(kind, kind)
            if getattr(changes[own], field) is not None:
                raise UserError(f"adapter {files.path} is damaged: it holds {short(key)} twice")
            setattr(changes[own], field, plain_tensor(files.path, key, tensor))
            if field != "new":
                changes[own].scale = _scale(files.path, config, module, a_of.get(module))
        elif set(HEADS) & set(module.split(".")[:2]):
            unneeded += 1
        else:
            unused.append(key)
    if unused or not changes:
        what = f"{some(unused, 'tensor')} would not be used" if unused else "it holds nothing but heads"
        raise UserError(f"adapter {files.path} is for another model: {what}; give the base that it was trained on")
    for own, change in changes.items():
        _check_shapes(files.path, own, change, shapes[own])
    return Adapter(files.path, changes, unneeded)


def _parsed(key: str) -> tuple[str, str]:
    """The module that a tensor of an adapter is for, and what it is to it; an unknown end is its own kind."""
    name = _WRAPPED.sub("", key.removeprefix(PREFIX))
    for end, kind in _KINDS.items():
        if name.endswith(f".{end}"):
            return name.removesuffix(f".{end}"), kind
    return name, "unknown"


def _own_name(module: str, parameter: str, names: Mapping[str, str]) -> str | None:
    """Our name of a module's tensor, whatever stands before the module's name (``esm.``)."""
    parts = module.split(".")
    tails = (".".join((*parts[start:], parameter)) for start in range(len(parts)))
    return next((names[tail] for tail in tails if tail in names), None)


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is no LoRA, rsLoRA or DoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"adapter {path} is of the kind {short(kind)}, and LoRA, rsLoRA and DoRA are merged here: call peft's "
            "merge_and_unload(), save that, and give it by `model:`"
        )
    used = [name for name, value in config.items() if name.startswith("use_") and value is True]
    strange = [name for name in used if name not in ("use_rslora", "use_dora")]
    strange += [name for name in _UNLIKE_LORA if config.get(name)]
    if not any(config.get("init_lora_weights") is one or config.get("init_lora_weights") == one for one in _LIKE_LORA):
        strange.append(f"init_lora_weights {short(config['init_lora_weights'])}")
    if strange:
        raise UserError(
            f"adapter {path} has {short(strange[0])[1:-1]}, which is not merged here: call peft's merge_and_unload(), "
            "save that, and give it by `model:`"
        )


def _scale(path: Path, config: Mapping[str, Any], module: str, a: Tensor | None) -> float:
    """What the product of B and A counts: alpha by its rank, or by the root of that."""
    if a is None or a.ndim != 2 or 0 in a.shape:
        raise UserError(f"adapter {path} is damaged: it lacks the matrix A of {short(module)}")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise UserError(f"adapter {path} is damaged: its alpha_pattern is {short(patterns)}")
    alpha = next((value for pattern, value in patterns.items() if _matches(path, pattern, module)), None)
    alpha = config.get("lora_alpha", 8) if alpha is None else alpha
    if type(alpha) not in (int, float) or not abs(alpha) <= LARGEST_SCALE:
        raise UserError(f"adapter {path} is damaged: its lora_alpha is {short(alpha)}")
    return float(alpha / math.sqrt(len(a)) if config.get("use_rslora") is True else alpha / len(a))


def _matches(path: Path, pattern: str, module: str) -> bool:
    """Whether a pattern of ``alpha_pattern`` means a module, as peft has it: its whole name or its end."""
    if len(pattern) > LONGEST_PATTERN or _LOOP_OF_LOOPS.search(pattern):
        raise UserError(f"adapter {path}: {short(pattern)} in its alpha_pattern is not read: write out the names")
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise UserError(f"adapter {path} is damaged: {short(pattern)} in its alpha_pattern is none ({error})") from None


def _check_shapes(path: Path, own: str, change: _Change, shape: tuple[int, ...]) -> None:
    """Refuse parts that do not fit together or to the base's tensor."""
    a, b = change.a, change.b
    fits = (a is None) == (b is None) and (change.magnitude is None or (a is not None and len(shape) == 2))
    if a is not None and b is not None and fits:
        fits = a.ndim == b.ndim == 2 and len(a) == b.shape[1] and (len(b), a.shape[1]) in (shape, shape[::-1])
    for tensor in (change.new, change.added):
        fits = fits and (tensor is None or tuple(tensor.shape) == shape)
    if change.magnitude is not None and change.magnitude.numel() != shape[0]:
        fits = False
    if not fits:
        raise UserError(f"adapter {path} is damaged or for another model: what it holds for {own} does not fit {shape}")
