"""What merged tables have in common, whatever their format: their columns, and the rows that are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.errors import UserError

Floats = NDArray[Any]
"""float32, or float16 where a chunk file was written so."""


@dataclass(frozen=True)
class Layout:
    """What a table holds for each protein.

    ``means`` and ``residues`` give the layers of the mean vectors and of the per-residue matrices; ``embed_dim``
    is the model's width D; ``dtype`` is ``float32`` or ``float16``.
    """

    embed_dim: int
    means: tuple[int, ...]
    residues: tuple[int, ...]
    dtype: str = "float32"

    @property
    def names(self) -> dict[tuple[str, int], str]:
        """Column names: ``embedding`` and ``residues``, followed by ``_{layer}`` when there are several layers."""
        names = {}
        for kind, word, layers in (("mean", "embedding", self.means), ("residues", "residues", self.residues)):
            for layer in layers:
                names[kind, layer] = word if len(layers) == 1 else f"{word}_{layer}"
        return names


@dataclass(frozen=True)
class Rows:
    """A run of n records in input order.

    ``mean`` has (n, D) for each layer; ``residues`` (sum of embedded, D), record i's being
    ``offsets[i]:offsets[i + 1]``. ``treatment`` is ``whole``, ``windows:K`` or ``truncated:RESIDUES``.
    """

    ids: list[str]
    length: NDArray[np.int32]
    treatment: list[str]
    precision: list[str]
    replaced: NDArray[np.int32]
    mean: dict[int, Floats]
    residues: dict[int, Floats] = field(default_factory=dict)
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))

    def __len__(self) -> int:
        return len(self.ids)


class TableWriter(Protocol):
    """A writer of one format: made with the path to write to, given rows in order, closed."""

    def write(self, rows: Rows) -> None: ...

    def close(self) -> None: ...


def as_dtype(values: Floats, dtype: str, path: Path) -> NDArray[Any]:
    """Values as the table's dtype.

    Raises:
        UserError: a value is too large for float16 (over 65504).
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    if not np.isfinite(narrow).all():
        raise UserError(f"{path}: an embedding has values that {dtype} cannot hold; set merge dtype to float32")
    return narrow
