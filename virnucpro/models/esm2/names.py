"""What ESM-2's tensors are called: fair-esm's names, which are ours, beside those of HuggingFace's transformers.

The names are those of transformers' ``convert_esm.py`` and of the files that versions 4.30 to 5.24 write.
"""

from __future__ import annotations

from virnucpro.models.esm2.sizes import Architecture, embedding_shapes

_MODULES = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn.rot_emb": "attention.self.rotary_embeddings",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}
"""Modules of a layer."""

_OUTSIDE = {
    "embed_tokens.weight": "embeddings.word_embeddings.weight",
    "emb_layer_norm_after.weight": "encoder.emb_layer_norm_after.weight",
    "emb_layer_norm_after.bias": "encoder.emb_layer_norm_after.bias",
}

EMBEDDING, FIRST_NORM = "embed_tokens.weight", "layers.0.self_attn_layer_norm.weight"
"""Two tensors by which a checkpoint is known to be of ESM-2's kind: BERT has no norm before its attention."""

SHARED_INV_FREQ = ("encoder.layer.*.attention.self.rotary_embeddings.inv_freq", "rotary_embeddings.inv_freq")
"""One tensor for all layers, as transformers from 5.8 on writes it: the asterisk is a part of the name."""

_NORM_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def huggingface_name(name: str) -> str:
    """Transformers' name of a tensor, without what ``EsmFor...`` put before it (``esm.``).

    >>> huggingface_name("layers.3.fc1.bias"), huggingface_name("embed_tokens.weight")
    ('encoder.layer.3.intermediate.dense.bias', 'embeddings.word_embeddings.weight')
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, rest = name.split(".", 2)
    module, _, parameter = rest.rpartition(".")
    return f"encoder.layer.{layer}.{_MODULES[module]}.{parameter}"


def older_name(name: str) -> str:
    """Another name that transformers has written for a tensor of a layer norm, or the name itself."""
    end = ".".join(name.split(".")[-2:])
    return name.removesuffix(end) + _NORM_NAMES.get(end, end)


def own_names(architecture: Architecture) -> dict[str, str]:
    """Our names of the tensors that embedding needs, by their names in both layouts."""
    own = list(embedding_shapes(architecture))
    return {name: name for name in own} | {huggingface_name(name): name for name in own}
