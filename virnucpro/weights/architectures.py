"""The ESM-2 architectures: names, sizes and where their checkpoints are published."""

from __future__ import annotations

from dataclasses import dataclass

from virnucpro.errors import UserError

CHECKPOINT_URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
"""Where fair-esm itself downloads a model from (``esm.pretrained``)."""

DEMO_MODEL = "esm2_demo"
DEMO_WARNING = (
    "esm2_demo has random weights: its embeddings mean nothing biologically; it exists to try the workflow offline"
)


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

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.heads

    @property
    def parameters(self) -> int:
        """Parameters of the embedding part (no LM head, no contact head, no ``inv_freq``)."""
        d = self.embed_dim
        per_layer = 12 * d * d + 13 * d
        return 33 * d + self.layers * per_layer + 2 * d


ESM2_MODELS: dict[str, Architecture] = {
    "esm2_t6_8M_UR50D": Architecture(6, 320, 20),
    "esm2_t12_35M_UR50D": Architecture(12, 480, 20),
    "esm2_t30_150M_UR50D": Architecture(30, 640, 20),
    "esm2_t33_650M_UR50D": Architecture(33, 1280, 20),
    "esm2_t36_3B_UR50D": Architecture(36, 2560, 40),
    "esm2_t48_15B_UR50D": Architecture(48, 5120, 40),
}
"""The released models (Lin et al. 2023, doi:10.1126/science.ade2574), by fair-esm's names."""

DEMO_ARCHITECTURE = Architecture(layers=4, embed_dim=64, heads=4)


def architecture_by_name(name: str) -> Architecture:
    """The sizes of a model known by name, ``esm2_demo`` among them.

    Raises:
        UserError: for any other name.
    """
    if name == DEMO_MODEL:
        return DEMO_ARCHITECTURE
    try:
        return ESM2_MODELS[name]
    except KeyError:
        known = ", ".join([*ESM2_MODELS, DEMO_MODEL])
        raise UserError(f"unknown model {name!r}: give one of {known}, or the path of a checkpoint (.pt)") from None
