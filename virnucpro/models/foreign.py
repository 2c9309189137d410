"""Models that people take for one that is read here: known by the names of their tensors, or by their configuration."""

from __future__ import annotations

from virnucpro.base.text import short
from virnucpro.checkpoints.tensors import StoredTensors

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
