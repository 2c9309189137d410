"""MosaicBERT models: names, sizes, where DNABERT-S is published, and the tensors that representations need.

Names of tensors are those of the published checkpoints (MosaicML's ``bert_layers.py``), without any prefix.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from virnucpro.base.digest import FileProof

HUB_ID = "zhihan1996/DNABERT-S"
HUB_REVISION = "00e47f96cdea35e4b6f5df89e5419cbe47d490c6"
"""DNABERT-S (Zhou et al. 2024, arXiv:2402.08777) on huggingface.co, and the commit that is known."""

RELEASED = {
    "dnabert_s": FileProof(468_320_053, "f3cfc3d0541859df64759e758cc4bc40fe1d5760799a7d098a9f9f09501c1e5f"),
}
"""Size and sha256 of the released ``pytorch_model.bin``, by the names that users give."""

DEMO_MODEL = "dnabert_s_demo"

DEMO_WARNING = "dnabert_s_demo is random: its embeddings mean nothing biologically"

SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
"""The first tokens of every model's vocabulary, in order (DNABERT-S's tokenizer.json)."""

LAYER_NORM_EPS = 1e-12

KINDS = 2
"""Rows of the table of token types; every token is of the first."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MosaicSizes:
    """Sizes of one model.

    ``hidden`` is the feed-forward's width after the gate; ``vocabulary`` counts the tokens.
    """

    layers: int
    embed_dim: int
    heads: int
    hidden: int
    vocabulary: int
    family: Literal["mosaic_bert"] = field(default="mosaic_bert", repr=False)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.heads

    @property
    def parameters(self) -> int:
        """Count of the numbers that representations need (no pooler)."""
        d = self.embed_dim
        per_layer = 4 * d * d + 3 * d * self.hidden + 9 * d
        return (self.vocabulary + KINDS + 2) * d + self.layers * per_layer

    def shapes(self) -> Shapes:
        """Shapes of the tensors of prepared weights, by name."""
        d = self.embed_dim
        found: Shapes = {
            "embeddings.word_embeddings.weight": (self.vocabulary, d),
            "embeddings.token_type_embeddings.weight": (KINDS, d),
            "embeddings.LayerNorm.weight": (d,),
            "embeddings.LayerNorm.bias": (d,),
        }
        for number in range(self.layers):
            layer: Shapes = {
                "attention.self.Wqkv.weight": (3 * d, d),
                "attention.self.Wqkv.bias": (3 * d,),
                "attention.output.dense.weight": (d, d),
                "attention.output.dense.bias": (d,),
                "attention.output.LayerNorm.weight": (d,),
                "attention.output.LayerNorm.bias": (d,),
                "mlp.gated_layers.weight": (2 * self.hidden, d),
                "mlp.wo.weight": (d, self.hidden),
                "mlp.wo.bias": (d,),
                "mlp.layernorm.weight": (d,),
                "mlp.layernorm.bias": (d,),
            }
            found |= {f"encoder.layer.{number}.{name}": shape for name, shape in layer.items()}
        return found


MOSAIC_MODELS = {"dnabert_s": MosaicSizes(layers=12, embed_dim=768, heads=12, hidden=3072, vocabulary=4096)}
"""The models that are known by name."""

DEMO_SIZES = MosaicSizes(layers=2, embed_dim=48, heads=3, hidden=96, vocabulary=64)


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """ALiBi's slope of each head (Press et al. 2022, arXiv:2108.12409).

    For a power of two n: ``2 ** (-8 i / n)`` for i from 1. For other counts those of the next lower power of two,
    then every second one of the next higher.

    >>> alibi_slopes(3)
    (0.0625, 0.00390625, 0.25)
    """
    whole = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8 * i / whole) for i in range(1, whole + 1)]
    rest = [2.0 ** (-4 * i / whole) for i in range(1, 2 * (heads - whole), 2)]
    return (*first, *rest)
