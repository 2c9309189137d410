"""The small JSON file beside the weights: what they are, and the proof of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.models.esm2.sizes import Architecture


@dataclass(frozen=True)
class WeightsManifest:
    """Facts about prepared weights; equal weights give an equal file, byte for byte (no dates).

    ``sha256`` and ``bytes`` are of the safetensors file, ``source_sha256`` of the checkpoint that it
    was made from. ``parameters`` counts the embedding part. ``dtype`` is as in ``torch.float16``
    without ``torch.``. ``demo`` marks random weights.
    """

    model: str
    sha256: str
    source_sha256: str
    layers: int
    embed_dim: int
    heads: int
    token_dropout: bool
    dtype: str
    parameters: int
    demo: bool
    bytes: int

    @property
    def architecture(self) -> Architecture:
        return Architecture(self.layers, self.embed_dim, self.heads, self.token_dropout)


def write_manifest(path: Path, manifest: WeightsManifest) -> None:
    """Write the manifest atomically."""
    with atomic_path(path) as beside:
        beside.write_text(json.dumps(asdict(manifest), indent=2) + "\n")


def read_manifest(path: Path) -> WeightsManifest:
    """Read a manifest.

    Raises:
        UserError: there is none, or it is not one of ours.
    """
    path = Path(path)
    way_out = "run the workflow's rule prepare_weights again"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no manifest of weights at {path}: {way_out}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the manifest of weights {path} ({error}): {way_out}") from None
    expected = {field.name: field.type for field in fields(WeightsManifest)}
    if not isinstance(content, dict) or set(content) != set(expected):
        raise UserError(f"{path} is no manifest of weights, or another version's: {way_out}")
    for name, kind in expected.items():
        if type(content[name]).__name__ != kind:
            raise UserError(f"{path} is no manifest of weights: {name} is {content[name]!r}; {way_out}")
    return WeightsManifest(**content)
