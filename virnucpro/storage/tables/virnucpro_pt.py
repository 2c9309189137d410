"""Merged table as the files that VirNucPro's own scripts read (https://github.com/Li-Jing-1997/VirNucPro).

A folder of ``output_1_ESM.pt``, ``output_2_ESM.pt``, ... in input order, ``records_per_file`` records each,
each ``{"proteins": [id, ...], "data": [float32 tensor (D,), ...]}``. VirNucPro splits its FASTA files by the same
count, pairs nucleotide and protein files by number and looks the ids up in the pair, so the count must be
its own (10,000) for them to match. ``provenance.json`` lies beside; VirNucPro ignores it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.base.errors import UserError
from virnucpro.base.records import record_text
from virnucpro.storage.report_record import Provenance
from virnucpro.storage.tables.rows import Layout, Rows


class VirnucproTable:
    """Writes a file whenever ``records_per_file`` records are there, the rest (or an empty first one) on closing."""

    def __init__(self, folder: Path, layout: Layout, provenance: Provenance, records_per_file: int) -> None:
        if len(layout.means) != 1:
            raise UserError(
                "the format virnucpro_pt holds one mean vector a protein: set pooling to mean and give one layer"
            )
        self._folder = folder
        self._layer = layout.means[0]
        self._records_per_file = records_per_file
        self._ids: list[str] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._files = 0
        (folder / "provenance.json").write_text(record_text(replace(provenance, dtype="float32")))

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
        rows = list(torch.from_numpy(np.concatenate(self._vectors)).unbind(0)) if self._vectors else []
        torch.save({"proteins": self._ids, "data": rows}, self._folder / f"output_{self._files}_ESM.pt")
        self._ids, self._vectors = [], []

    def close(self) -> None:
        if self._ids or not self._files:
            self._save()
