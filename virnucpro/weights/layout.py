"""The tensors of an ESM-2 checkpoint: names as in fair-esm's ``ESM2.state_dict()``, and their shapes."""

from __future__ import annotations

from virnucpro.weights.architectures import Architecture

VOCABULARY = 33
"""Tokens of the ESM-1b alphabet, which ESM-2 uses."""

PREFIXES = ("encoder.sentence_encoder.", "encoder.")
"""What stands before the names in a published file; fair-esm's loader strips it, and so do we."""

Shapes = dict[str, tuple[int, ...]]


def embedding_shapes(architecture: Architecture) -> Shapes:
    """Tensors that the representations need, with the rotary ``inv_freq`` of every layer."""
    d, ffn = architecture.embed_dim, 4 * architecture.embed_dim
    shapes: Shapes = {"embed_tokens.weight": (VOCABULARY, d)}
    for layer in range(architecture.layers):
        name = f"layers.{layer}."
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes[f"{name}self_attn.{projection}.weight"] = (d, d)
            shapes[f"{name}self_attn.{projection}.bias"] = (d,)
        shapes[f"{name}self_attn.rot_emb.inv_freq"] = (architecture.head_dim // 2,)
        shapes[f"{name}self_attn_layer_norm.weight"] = (d,)
        shapes[f"{name}self_attn_layer_norm.bias"] = (d,)
        shapes[f"{name}fc1.weight"] = (ffn, d)
        shapes[f"{name}fc1.bias"] = (ffn,)
        shapes[f"{name}fc2.weight"] = (d, ffn)
        shapes[f"{name}fc2.bias"] = (d,)
        shapes[f"{name}final_layer_norm.weight"] = (d,)
        shapes[f"{name}final_layer_norm.bias"] = (d,)
    shapes["emb_layer_norm_after.weight"] = (d,)
    shapes["emb_layer_norm_after.bias"] = (d,)
    return shapes


def contact_shapes(architecture: Architecture) -> Shapes:
    """Tensors of the contact head, published in a file of their own (``NAME-contact-regression.pt``)."""
    return {
        "contact_head.regression.weight": (1, architecture.layers * architecture.heads),
        "contact_head.regression.bias": (1,),
    }


def lm_head_shapes(architecture: Architecture) -> Shapes:
    """Tensors of the language-model head; ``lm_head.weight`` equals ``embed_tokens.weight``."""
    d = architecture.embed_dim
    return {
        "lm_head.weight": (VOCABULARY, d),
        "lm_head.bias": (VOCABULARY,),
        "lm_head.dense.weight": (d, d),
        "lm_head.dense.bias": (d,),
        "lm_head.layer_norm.weight": (d,),
        "lm_head.layer_norm.bias": (d,),
    }


def state_shapes(architecture: Architecture) -> Shapes:
    """Every tensor of fair-esm's ``ESM2.state_dict()``."""
    return {**embedding_shapes(architecture), **contact_shapes(architecture), **lm_head_shapes(architecture)}
