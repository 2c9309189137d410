"""A fair-esm ``ESM2`` module's own parameters, arranged for the packed forward without copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from esm.model.esm2 import ESM2
from esm.rotary_embedding import RotaryEmbedding
from torch import Tensor

from virnucpro.models.parameters import LayerParameters, ModelParameters
from virnucpro.models.rotary import rotary_tables, rotate

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def fuse_parameters(model: ESM2) -> ModelParameters:
    """Fuse q, k and v of each layer, and make the module's own weights views of the fused tensor."""
    return ModelParameters(
        embed_tokens=model.embed_tokens.weight.detach(),
        layers=tuple(_fuse_layer(layer) for layer in model.layers),
        inv_freq=tuple(layer.self_attn.rot_emb.inv_freq.float() for layer in model.layers),
        after_norm_weight=model.emb_layer_norm_after.weight.detach().float(),
        after_norm_bias=model.emb_layer_norm_after.bias.detach().float(),
    )


def _fuse_layer(layer: Any) -> LayerParameters:
    attention = layer.self_attn
    return LayerParameters(
        attention_norm_weight=layer.self_attn_layer_norm.weight.detach().float(),
        attention_norm_bias=layer.self_attn_layer_norm.bias.detach().float(),
        qkv_weight=_fuse(attention, "weight"),
        qkv_bias=_fuse(attention, "bias"),
        out_weight=attention.out_proj.weight.detach(),
        out_bias=attention.out_proj.bias.detach(),
        final_norm_weight=layer.final_layer_norm.weight.detach().float(),
        final_norm_bias=layer.final_layer_norm.bias.detach().float(),
        fc1_weight=layer.fc1.weight.detach(),
        fc1_bias=layer.fc1.bias.detach(),
        fc2_weight=layer.fc2.weight.detach(),
        fc2_bias=layer.fc2.bias.detach(),
    )


def _fuse(attention: Any, kind: str) -> Tensor:
    with torch.no_grad():
        fused = torch.cat([getattr(getattr(attention, name), kind).detach() for name in PROJECTIONS])
    for name, part in zip(PROJECTIONS, fused.chunk(3), strict=True):
        parameter = getattr(getattr(attention, name), kind)
        parameter.data = part
    return fused


class WideRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]
    """fair-esm's rotary embedding with float32 tables, for a model in half precision.

    fair-esm builds its tables in the model's dtype: at length 400 bfloat16 tables disturb the attention
    logits by 19 % of their size.
    """

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor) -> None:
        super().__init__(2 * len(inv_freq))
        self.register_buffer("inv_freq", inv_freq.float())

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Turn q and k ``(batch x heads, T, head_dim)``; the result has their dtype."""
        cos, sin = rotary_tables(self.inv_freq, torch.arange(k.shape[1], device=k.device))
        cos, sin = cos.transpose(0, 1), sin.transpose(0, 1)
        return rotate(q, cos, sin).to(q.dtype), rotate(k, cos, sin).to(k.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WideRotaryEmbedding:
        """Move with the model, but stay float32 with the stored values when it is cast."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = exact.to(self.inv_freq.device)
        return self


def widen_rotary(model: ESM2) -> None:
    """Give every layer rotary tables that stay float32, with the stored frequencies, however the model is cast."""
    for layer in model.layers:
        rotary = layer.self_attn.rot_emb
        if not isinstance(rotary, WideRotaryEmbedding):
            layer.self_attn.rot_emb = WideRotaryEmbedding(rotary.inv_freq.detach())
