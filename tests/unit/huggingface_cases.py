"""Checkpoints and adapters as transformers and peft write them, made of random weights, without those libraries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from virnucpro.models.esm2.checkpoint import huggingface_name
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import random_state_dict

SMALL = Architecture(layers=2, embed_dim=32, heads=4)


def config_of(sizes: Architecture, **changes: Any) -> dict[str, Any]:
    """``config.json`` as transformers writes it for an ESM-2, what matters of it."""
    return {
        "model_type": "esm", "vocab_size": 33, "hidden_size": sizes.embed_dim, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "intermediate_size": 4 * sizes.embed_dim, "token_dropout": True,
        "position_embedding_type": "rotary", "emb_layer_norm_before": False, "layer_norm_eps": 1e-5, "pad_token_id": 1,
        "mask_token_id": 32, **changes,
    }  # fmt: skip


def state_of(sizes: Architecture, *, seed: int = 0, prefix: str = "esm.") -> dict[str, Tensor]:
    """Random float32 weights by transformers' names."""
    state = random_state_dict(sizes, seed=seed)
    return {prefix + huggingface_name(name): state[name].clone() for name in sizes.shapes()}


def write_folder(
    folder: Path,
    sizes: Architecture = SMALL,
    *,
    state: Mapping[str, Tensor] | None = None,
    shards: int = 0,
    pickled: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A folder as ``save_pretrained`` leaves it: in one file, or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    state = state_of(sizes, seed=seed) if state is None else state
    (folder / "config.json").write_text(json.dumps(config_of(sizes, **config)), encoding="utf-8")
    stem, suffix = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")

    def save(part: dict[str, Tensor], path: Path) -> None:
        if pickled:
            torch.save(part, path)
        else:
            save_file(part, path, metadata={"format": "pt"})

    if not shards:
        save(dict(state), folder / f"{stem}{suffix}")
        return folder
    names = list(state)
    size = math.ceil(len(names) / shards)
    files: dict[str, str] = {}
    for number in range(shards):
        part = names[number * size : (number + 1) * size]
        file = f"{stem}-{number + 1:05}-of-{shards:05}{suffix}"
        save({name: state[name] for name in part}, folder / file)
        files |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def cache(hub: Path, repository: str, commit: str = "c" * 40) -> Path:
    """An empty snapshot of a repository in a folder that is the hub's cache; ``main`` points to it."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    return snapshot


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """An adapter as peft's ``save_pretrained`` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    base = "facebook/esm2_t6_8M_UR50D"
    whole = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": base, **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole), encoding="utf-8")
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder
