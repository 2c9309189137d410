"""The ESM-2 architectures: names, sizes and where their checkpoints are published.

The tensors of an ESM-2 checkpoint: names as in fair-esm's ``ESM2.state_dict()``, and their shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from virnucpro.base.digest import FileProof

CHECKPOINT_URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
"""Where fair-esm itself downloads a model from (``esm.pretrained``)."""

HUB_OWNER = "facebook"
"""Who publishes the models on huggingface.co, under the same names."""

DEMO_MODEL = "esm2_demo"

DEMO_WARNING = "esm2_demo is random: its embeddings mean nothing biologically"

Shapes = dict[str, tuple[int, ...]]

LARGEST = {"layers": 1000, "embed_dim": 100_000, "heads": 1000}
"""Far more than any released model has."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of one ESM-2 model.

    ``token_dropout`` is the checkpoint's flag of that name (every released ESM-2 has it): the
    embedding is rescaled by the share of masked tokens.
    """

    layers: int
    embed_dim: int
    heads: int
    token_dropout: bool = True
    family: Literal["esm2"] = field(default="esm2", repr=False)

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that no such model has: tensors are counted out by them."""
        if not all(0 < getattr(self, name) <= most for name, most in LARGEST.items()):
            raise ValueError(f"no ESM-2 has {self.layers} layers, {self.embed_dim} channels and {self.heads} heads")
        if self.embed_dim % (2 * self.heads):
            raise ValueError(f"{self.embed_dim} channels cannot be shared by {self.heads} heads of even size")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.heads

    @property
    def parameters(self) -> int:
        """Parameters of the embedding part (no LM head, no contact head, no ``inv_freq``)."""
        d = self.embed_dim
        per_layer = 12 * d * d + 13 * d
        return 33 * d + self.layers * per_layer + 2 * d

    def shapes(self) -> Shapes:
        """Tensors that the representations need, with the rotary ``inv_freq`` of every layer: shapes by name."""
        d, ffn = self.embed_dim, 4 * self.embed_dim
        shapes: Shapes = {"embed_tokens.weight": (VOCABULARY, d)}
        for layer in range(self.layers):
            name = f"layers.{layer}."
            for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
                shapes[f"{name}self_attn.{projection}.weight"] = (d, d)
                shapes[f"{name}self_attn.{projection}.bias"] = (d,)
            shapes[f"{name}self_attn.rot_emb.inv_freq"] = (self.head_dim // 2,)
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


ESM2_MODELS: dict[str, Architecture] = {
    "esm2_t6_8M_UR50D": Architecture(6, 320, 20),
    "esm2_t12_35M_UR50D": Architecture(12, 480, 20),
    "esm2_t30_150M_UR50D": Architecture(30, 640, 20),
    "esm2_t33_650M_UR50D": Architecture(33, 1280, 20),
    "esm2_t36_3B_UR50D": Architecture(36, 2560, 40),
    "esm2_t48_15B_UR50D": Architecture(48, 5120, 40),
}
"""The released models (Lin et al. 2023, doi:10.1126/science.ade2574), by fair-esm's names."""

RELEASED = {
    "esm2_t6_8M_UR50D": FileProof(30_099_493, "46f002a9870c9bdecd0ea887acb1f9a38a6b561e8f8bf8a6990b679b9d31b928"),
    "esm2_t12_35M_UR50D": FileProof(134_095_705, "7f21e80e61d16a71735163ef555d3009afb0c98da74c48e29df08606973cc55e"),
    "esm2_t30_150M_UR50D": FileProof(592_774_773, "881c7176cf198ef8dec26a3c375d40eb58d0c33df95c22562ca6cc6d3f812c62"),
    "esm2_t33_650M_UR50D": FileProof(2_604_537_549, "ea9d0522b335a8778dea6535a65301f10208dece28cd5865482b0b1fc446168c"),
    "esm2_t36_3B_UR50D": FileProof(5_678_116_398, "7de8b4082ba15891959ab368b77ce3886697af1efb16d3c9e9e7b0c5d3f07500"),
}
"""Size and sha256 of the released files, as FastPLMs pins them (github.com/Synthyra/FastPLMs, src/fastplms/models.toml)
and others measured them after downloads of their own. fair-esm itself publishes none, and of 15B none was found."""

DEMO_ARCHITECTURE = Architecture(layers=4, embed_dim=64, heads=4)

VOCABULARY = 33
"""Tokens of the ESM-1b alphabet, which ESM-2 uses."""

PREFIXES = ("encoder.sentence_encoder.", "encoder.")
"""What stands before the names in a published file; fair-esm's loader strips it, and so do we."""


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
    return {**architecture.shapes(), **contact_shapes(architecture), **lm_head_shapes(architecture)}
