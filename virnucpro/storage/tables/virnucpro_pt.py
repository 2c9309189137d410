"""Merged table as the files that VirNucPro's own scripts read (https://github.com/Li-Jing-1997/VirNucPro).

A folder of ``output_1_ESM.pt``, ``output_2_ESM.pt``, ... in input order, ``records_per_file`` records each,
each ``{"proteins": [id, ...], "data": [float32 tensor (D,), ...]}``. VirNucPro splits its FASTA files by the same
count, pairs nucleotide and protein files by number and looks the ids up in the pair, so the count must be
its own (10,000) for them to match. ``provenance.json`` is beside them; VirNucPro ignores it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.base.digest import FileProof
from virnucpro.base.errors import UserError
from virnucpro.base.records import record_text
from virnucpro.checkpoints.torch_file import (
    LARGEST_EXPANSION,
    is_zip,
    load_torch_file,
    plain_tensor,
    save_torch_file,
    verify_archive,
)
from virnucpro.storage.report_record import Provenance
from virnucpro.storage.tables.rows import (
    Embeddings,
    Layout,
    ResidueEmbeddings,
    Rows,
    column_name,
    damaged,
    read_provenance,
)


class VirnucproTable:
    """Writes a file whenever ``records_per_file`` records are there, the rest (or an empty first one) at the end."""

    def __init__(self, folder: Path, layout: Layout, provenance: Provenance) -> None:
        if len(layout.means) != 1:
            raise UserError(
                "the format virnucpro_pt holds one mean vector a protein: set pooling to mean and give one layer"
            )
        self._folder = folder
        self.proofs: dict[str, FileProof] = {}
        self._layer = layout.means[0]
        self._records_per_file = layout.records_per_file
        self._ids: list[str] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._files = 0
        (folder / "provenance.json").write_text(record_text(replace(provenance, dtype="float32")))

    def __enter__(self) -> Self:
        return self

    def write(self, rows: Rows) -> None:
        start = 0
        while start < len(rows):
            end = min(len(rows), start + self._records_per_file - len(self._ids))
            self._ids += rows.ids[start:end]
            # Copied, so that a slice does not keep the whole run of rows in memory.
            self._vectors.append(rows.mean[self._layer][start:end].astype(np.float32, copy=True))
            start = end
            if len(self._ids) == self._records_per_file:
                self._save()

    def _save(self) -> None:
        self._files += 1
        # The tensors are rows of one storage, which torch.save writes once.
        vectors = list(torch.from_numpy(np.concatenate(self._vectors)).unbind(0)) if self._vectors else []
        content = {"proteins": self._ids, "data": vectors}
        save_torch_file(self._folder / f"output_{self._files}_ESM.pt", content)
        self._ids, self._vectors = [], []

    def finish(self) -> None:
        if self._ids or not self._files:
            self._save()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing is open between two files."""


write_table = VirnucproTable


def read_embeddings(path: Path, layer: int | None, word: str = "vectors") -> Embeddings:
    """All files in order, joined."""
    beside = path / "provenance.json"
    provenance = read_provenance(beside.read_text(errors="replace"), beside) if beside.is_file() else None
    if layer is not None or word not in ("vectors", "embedding"):
        column_name(word, layer, ["embedding"], provenance, path)
    numbers = sorted(
        int(found[1]) for file in path.iterdir() if (found := re.fullmatch(r"output_(\d+)_ESM\.pt", file.name))
    )
    if numbers != list(range(1, len(numbers) + 1)):
        raise damaged(path, f"of {len(numbers)} files the last is output_{numbers[-1]}_ESM.pt")
    ids: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    for number in numbers:
        file = path / f"output_{number}_ESM.pt"
        names, its_vectors = _read_file(file)
        if len(names) != len(its_vectors):
            raise damaged(file, f"{len(names)} ids, {len(its_vectors)} vectors")
        ids += names
        vectors += its_vectors
    if any(vector.ndim != 1 or vector.shape != vectors[0].shape for vector in vectors):
        raise damaged(path, "vectors of several shapes")
    width = provenance.embed_dim if provenance is not None else 0
    return Embeddings(ids, np.stack(vectors) if vectors else np.empty((0, width), np.float32))


def _read_file(path: Path) -> tuple[list[str], list[NDArray[np.float32]]]:
    try:
        if not is_zip(path):
            raise damaged(path, "it is no archive of torch's")
        content = load_torch_file(path)  # runs no code, whatever the file holds
        verify_archive(path)  # torch itself does not compare the checksums
    except OSError as error:
        raise damaged(path, error) from None
    ids, data = (content.get("proteins"), content.get("data")) if isinstance(content, dict) else (None, None)
    if not isinstance(ids, list) or not isinstance(data, list) or not all(isinstance(name, str) for name in ids):
        raise damaged(path, "it does not hold ids and vectors")
    vectors = [plain_tensor(path, name, vector).float().numpy() for name, vector in zip(ids, data, strict=False)]
    if sum(vector.nbytes for vector in vectors) > LARGEST_EXPANSION * path.stat().st_size:
        raise damaged(path, "its vectors repeat the same numbers")
    return ids, vectors if len(ids) == len(data) else []


def read_residues(path: Path, layer: int | None) -> ResidueEmbeddings:
    raise UserError(f"{path} holds mean vectors only; read the per-residue ones from parquet, hdf5 or npy")
