"""fair-esm's ESM-2 parameters, arranged for the packed forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from virnucpro.errors import UserError
from virnucpro.weights.architectures import Architecture


class LayerParameters(NamedTuple):
    """One transformer layer, D = embed_dim. Norms are float32, the rest has the model's dtype.

    ``qkv_weight`` ``(3 D, D)`` and ``qkv_bias`` ``(3 D,)`` hold q, k and v in this order.
    """

    attention_norm_weight: Tensor
    attention_norm_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    final_norm_weight: Tensor
    final_norm_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


class ModelParameters(NamedTuple):
    """The embedding part of an ESM-2: no LM head, no contact head.

    ``inv_freq`` has one float32 ``(head_dim / 2,)`` tensor a layer, as stored in the checkpoint.
    """

    embed_tokens: Tensor
    layers: tuple[LayerParameters, ...]
    inv_freq: tuple[Tensor, ...]
    after_norm_weight: Tensor
    after_norm_bias: Tensor


def arrange_parameters(
    state: Mapping[str, Tensor], architecture: Architecture, *, device: torch.device, dtype: torch.dtype
) -> ModelParameters:
    """Copy a state dict tensor by tensor to ``device`` and ``dtype``, with q, k and v fused.

    One layer at a time is read, so that a memory-mapped state dict never has to fit into RAM.

    Args:
        state: named as in fair-esm's ``ESM2.state_dict()``; other tensors in it are ignored.

    Raises:
        UserError: a tensor is missing or has another shape than the architecture's.
    """
    dim = architecture.embed_dim

    def get(name: str, *shape: int) -> Tensor:
        try:
            tensor = state[name]
        except KeyError:
            raise UserError(f"the weights lack the tensor {name}: prepare them again from the checkpoint") from None
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"the weights' tensor {name} has shape {tuple(tensor.shape)} and not {shape}: "
                "these are not the weights of the model that their manifest names"
            )
        return tensor

    def half(name: str, *shape: int) -> Tensor:
        return get(name, *shape).to(device=device, dtype=dtype)

    def wide(name: str, *shape: int) -> Tensor:
        return get(name, *shape).to(device=device, dtype=torch.float32)

    layers = []
    inv_freq = []
    for number in range(architecture.layers):
        layers.append(_layer(f"layers.{number}.", dim, half, wide, device, dtype))
        inv_freq.append(wide(f"layers.{number}.self_attn.rot_emb.inv_freq", architecture.head_dim // 2))
    return ModelParameters(
        embed_tokens=half("embed_tokens.weight", 33, dim),
        layers=tuple(layers),
        inv_freq=tuple(inv_freq),
        after_norm_weight=wide("emb_layer_norm_after.weight", dim),
        after_norm_bias=wide("emb_layer_norm_after.bias", dim),
    )


Getter = Callable[..., Tensor]


def _layer(
    prefix: str, dim: int, half: Getter, wide: Getter, device: torch.device, dtype: torch.dtype
) -> LayerParameters:
    qkv_weight = torch.empty(3 * dim, dim, device=device, dtype=dtype)
    qkv_bias = torch.empty(3 * dim, device=device, dtype=dtype)
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        rows = slice(part * dim, (part + 1) * dim)
        qkv_weight[rows] = half(f"{prefix}self_attn.{name}.weight", dim, dim)
        qkv_bias[rows] = half(f"{prefix}self_attn.{name}.bias", dim)
    return LayerParameters(
        attention_norm_weight=wide(f"{prefix}self_attn_layer_norm.weight", dim),
        attention_norm_bias=wide(f"{prefix}self_attn_layer_norm.bias", dim),
        qkv_weight=qkv_weight,
        qkv_bias=qkv_bias,
        out_weight=half(f"{prefix}self_attn.out_proj.weight", dim, dim),
        out_bias=half(f"{prefix}self_attn.out_proj.bias", dim),
        final_norm_weight=wide(f"{prefix}final_layer_norm.weight", dim),
        final_norm_bias=wide(f"{prefix}final_layer_norm.bias", dim),
        fc1_weight=half(f"{prefix}fc1.weight", 4 * dim, dim),
        fc1_bias=half(f"{prefix}fc1.bias", 4 * dim),
        fc2_weight=half(f"{prefix}fc2.weight", dim, 4 * dim),
        fc2_bias=half(f"{prefix}fc2.bias", dim),
    )
