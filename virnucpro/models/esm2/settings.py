"""What a checkpoint says of itself beside its tensors: fair-esm's ``cfg.model``, HuggingFace's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.base.errors import UserError
from virnucpro.base.text import short
from virnucpro.checkpoints.tensors import StoredTensors
from virnucpro.models.esm2.sizes import LARGEST, VOCABULARY

_FAIR_ESM = {"layers": "encoder_layers", "embed_dim": "encoder_embed_dim", "heads": "encoder_attention_heads"}
_HUGGINGFACE = {"layers": "num_hidden_layers", "embed_dim": "hidden_size", "heads": "num_attention_heads"}
"""What the two layouts call the sizes in their settings."""


@dataclass(frozen=True)
class Settings:
    """Sizes by our names, as far as they are told, and where that stands, for messages."""

    place: str
    sizes: Mapping[str, int]
    token_dropout: bool


def read_settings(stored: StoredTensors, is_huggingface: bool) -> Settings:
    """What stands beside the tensors: fair-esm's ``cfg.model`` or HuggingFace's ``config.json``; checked."""
    if is_huggingface:
        config = stored.config or {}
        _check_config(stored.path, config)
        return Settings(
            "config.json", _sizes(stored.path, config, _HUGGINGFACE), config.get("token_dropout") is not False
        )
    if "args" in stored.beside:
        arch = getattr(stored.beside["args"], "arch", "unknown")
        raise UserError(f"{stored.path} is an older ESM model (architecture {short(arch)}), not ESM-2")
    outer = stored.beside.get("cfg")
    given = outer.get("model") if isinstance(outer, Mapping) else None
    values = given if isinstance(given, Mapping) else getattr(given, "__dict__", {} if given is None else None)
    if values is None:
        raise UserError(f"{stored.path} is damaged: its settings (cfg.model) are {short(given)}")
    dropout = values.get("token_dropout", True)
    if not isinstance(dropout, bool):
        raise UserError(f"{stored.path} is no ESM-2 checkpoint: its setting token_dropout is {short(dropout)}")
    return Settings("cfg.model", _sizes(stored.path, values, _FAIR_ESM), dropout)


def _sizes(path: Path, values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, int]:
    """Sizes by our names out of a layout's settings, those that are given."""
    sizes = {}
    for own, name in names.items():
        value = values.get(name)
        if value is None:
            continue
        if type(value) is not int or not 0 < value <= LARGEST[own]:
            raise UserError(f"{path} is no ESM-2 checkpoint: its setting {name} is {short(value)}")
        sizes[own] = value
    return sizes


_EXPECTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("esm",),
    "vocab_size": (VOCABULARY,),
    "position_embedding_type": ("rotary",),
    "emb_layer_norm_before": (False,),
    "is_folding_model": (False,),
    "layer_norm_eps": (1e-5,),
    "pad_token_id": (1,),
    "mask_token_id": (32,),
    "token_dropout": (True, False),
    "rope_theta": (10000,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
"""What the configuration of an ESM-2 says, where it says anything (transformers' ``EsmConfig``)."""


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("is_folding_model"):
        raise UserError(
            f"{path} is ESMFold: give the language model in it, esm2_t36_3B_UR50D, or another ESM-2 checkpoint"
        )
    if config.get("position_embedding_type", "rotary") == "absolute":
        raise UserError(f"{path} is ESM-1b or ESM-1v, which have learned positions: only ESM-2 is read")
    if type(vocabulary := config.get("vocab_size", VOCABULARY)) is int and vocabulary != VOCABULARY:
        raise UserError(another_vocabulary(path, (vocabulary,)))
    for name, allowed in _EXPECTED.items():
        value = config.get(name)
        if value is not None and not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed
        ):
            raise UserError(f"{path} is no ESM-2 checkpoint: {name} in its config.json is {short(value)}")
    width, hidden = config.get("intermediate_size"), config.get("hidden_size")
    if type(width) is int and type(hidden) is int and width != 4 * hidden:
        raise UserError(f"{path} is no ESM-2 checkpoint: intermediate_size in its config.json is {width}")


def another_vocabulary(path: Path, shape: tuple[int, ...]) -> str:
    if shape[:1] == (446,):
        return f"{path} is SaProt, whose 446 tokens are of residues and structure: only ESM-2 (33 tokens) is read"
    return f"{path} is no ESM-2 checkpoint: its table of tokens has shape {short(shape)}, and ESM-2 has 33 tokens"
