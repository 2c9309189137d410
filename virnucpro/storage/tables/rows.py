"""What merged tables have in common, whatever their format: their columns, what is written, and what is read."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.digest import FileProof
from virnucpro.base.errors import UserError
from virnucpro.base.records import RecordError, parse_record
from virnucpro.base.settings import VECTORS
from virnucpro.storage.report_record import Provenance

Floats = NDArray[Any]
"""float32, or float16 where a chunk file was written so."""

COLUMNS = {kind: kind for kind in (*VECTORS, "residues")} | {"mean": "embedding"}
"""The column of each kind of vectors."""


@dataclass(frozen=True)
class Layout:
    """What a table holds for each protein.

    ``means``, ``bos``, ``maxima`` and ``residues`` give the layers of each kind of vectors; ``embed_dim``
    is the model's width D; ``dtype`` is ``float32`` or ``float16``. ``records`` are to come, with ``residue_rows``
    embedded residues in all. Formats of several files have ``records_per_file`` records in each. ``chunk_files`` are
    their paths from the sample's folder, and their checksums.
    """

    embed_dim: int
    means: tuple[int, ...]
    residues: tuple[int, ...]
    dtype: str = "float32"
    records_per_file: int = 10_000
    chunk_files: tuple[tuple[str, str], ...] = ()
    bos: tuple[int, ...] = ()
    maxima: tuple[int, ...] = ()
    records: int = 0
    residue_rows: int = 0

    @property
    def kinds(self) -> dict[str, tuple[int, ...]]:
        """The layers of each kind of vectors, by the word that its tensors' names begin with."""
        return dict(zip(COLUMNS, (self.means, self.bos, self.maxima, self.residues), strict=True))

    @property
    def names(self) -> dict[tuple[str, int], str]:
        """Column names, see :data:`COLUMNS`, followed by ``_{layer}`` when there are several layers."""
        return {
            (kind, layer): COLUMNS[kind] if len(layers) == 1 else f"{COLUMNS[kind]}_{layer}"
            for kind, layers in self.kinds.items()
            for layer in layers
        }


COMPUTED = "computed"
"""The origin of a row that was computed in this folder; another one's names earlier results."""


@dataclass(frozen=True)
class Rows:
    """A run of n records in input order.

    ``mean``, ``bos`` and ``maxima`` have (n, D) for each layer; ``residues`` (sum of embedded, D), record i's being
    ``offsets[i]:offsets[i + 1]``. Record i is row ``row[i]`` of chunk file number ``chunk[i]``. ``treatment`` is
    ``whole``, ``windows:K`` or ``truncated:RESIDUES``. ``descriptions`` are what follows the ids in their headers;
    ``origin`` tells where each row was computed (without it, all here).
    """

    ids: list[str]
    length: NDArray[np.int32]
    treatment: list[str]
    precision: list[str]
    replaced: NDArray[np.int32]
    mean: dict[int, Floats]
    residues: dict[int, Floats] = field(default_factory=dict)
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    chunk: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    row: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    bos: dict[int, Floats] = field(default_factory=dict)
    maxima: dict[int, Floats] = field(default_factory=dict)
    descriptions: list[str] = field(default_factory=list)
    origin: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def values(self, kind: str, layer: int, dtype: str) -> Floats:
        """The vectors of one kind (``mean``, ``bos``, ``max``, ``residues``) and layer as the table's dtype.

        Raises:
            UserError: a value is too large for float16 (over 65504).
        """
        kinds = dict(zip(COLUMNS, (self.mean, self.bos, self.maxima, self.residues), strict=True))
        values = kinds[kind][layer]
        if values.dtype == dtype:
            return values
        with np.errstate(over="ignore"):
            narrow = values.astype(dtype)
        if not np.isfinite(narrow).all():
            row = int(np.flatnonzero(~np.isfinite(narrow).all(axis=1))[0])
            record = row if kind != "residues" else int(np.searchsorted(self.offsets, row, side="right")) - 1
            raise too_large_for(dtype, self.ids[record], layer)
        return narrow


def too_large_for(dtype: str, name: str, layer: int) -> UserError:
    """That the embedding of the protein called ``name`` has values beyond a number format."""
    return UserError(
        f"the embedding of {name[:80]!r} in layer {layer} has values that {dtype} cannot hold; "
        "set merge dtype to float32"
    )


class TableWriter(Protocol):
    """A writer of one format: a context manager that is given rows in order and finished when all were written.

    ``proofs`` are of the files that were hashed as they were written, by their paths from the table's (``""``: itself).
    """

    proofs: dict[str, FileProof]

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def write(self, rows: Rows) -> None: ...

    def finish(self) -> None: ...


class Embeddings(NamedTuple):
    """Mean vectors: ``ids[i]`` has the vector ``matrix[i]``, (n, D), in input order."""

    ids: list[str]
    matrix: NDArray[Any]


class ResidueEmbeddings(NamedTuple):
    """Per-residue vectors: ``ids[i]`` has the matrix ``values[offsets[i]:offsets[i + 1]]``, (residues, D)."""

    ids: list[str]
    values: NDArray[Any]
    offsets: NDArray[np.int64]


def damaged(path: Path, reason: object) -> UserError:
    """What a reader raises for a table that cannot be what the merge wrote."""
    lines = str(reason).splitlines() or [type(reason).__name__]
    return UserError(f"{path} was damaged or cut short ({lines[0][:200]}); delete it and run the merge again")


def read_provenance(text: str, path: Path) -> Provenance:
    """A table's provenance, as it stands in it.

    Raises:
        UserError: it is damaged.
    """
    try:
        return parse_record(text, Provenance, path)
    except RecordError as error:
        raise damaged(path, f"its provenance {error.reason}") from None


def column_name(word: str, layer: int | None, names: Collection[str], origin: Provenance | None, path: Path) -> str:
    """The column to read: ``embedding``, or ``embedding_{layer}`` in a table of several layers.

    Args:
        word: a word of :data:`COLUMNS`, or ``vectors``: the first of embedding, bos and max that there is.
        layer: the layer that is wanted; None for the only one.
        names: the table's columns.
        origin: the table's provenance; None where another program wrote the table again without it.

    Raises:
        UserError: the table has no such column.
    """
    layers = () if origin is None else origin.layers
    if word == "vectors":
        words = [COLUMNS[kind] for kind in VECTORS]
        word = next((each for each in words if any(re.fullmatch(rf"{each}(_\d+)?", name) for name in names)), words[0])
    found = sorted(name for name in names if re.fullmatch(rf"{word}(_\d+)?", name))
    wanted = word if layer is None or (found == [word] and layers == (layer,)) else f"{word}_{layer}"
    if wanted in found:
        return wanted
    have = f"it has {', '.join(found)} of layer {', '.join(map(str, layers))}" if found else "it has none of that kind"
    raise UserError(f"{path} has no column {wanted} ({have}); name a layer that it has")
