"""Merged table as HDF5 in UniProt's layout: one dataset an id, at the file's root.

UniProt publishes its embeddings so (per-protein.h5 and per-residue.h5 on its download page): ``file[id]`` is the mean
vector, (D,), or with per-residue pooling the matrix (residues, D). With several layers or both poolings
``file[id]`` is a group of datasets named as the Parquet columns are.

HDF5 takes ``/`` for a path, so ``file["a/b"]`` finds the dataset ``b`` in the group ``a``: ids with a slash are
found by their own text, but stand one level down. An id that is no proper path (``/a``, ``a//b``, ``.``), or
whose path another id bars (``a`` beside ``a/b``), is stored at the root as ``record 17`` (number in input order, from
0). Both kinds carry the attributes ``id`` and ``record``;
:func:`virnucpro.storage.tables.reading.read_embeddings` gives all of them by their own ids, in order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro.base.records import record_text
from virnucpro.storage.report_record import Provenance
from virnucpro.storage.tables.rows import Layout, Rows, as_dtype


class Hdf5Table:
    """Writes one dataset a record and column, through h5py's low-level calls (a third of the time)."""

    def __init__(self, path: Path, layout: Layout, provenance: Provenance) -> None:
        self._path = path
        self._layout = layout
        # Readers of HDF5 1.10 and later (2016) open it; names are kept in the order of writing.
        self._file = h5py.File(path, "w", libver=("v110", "v110"), track_order=True)
        self._file.attrs["virnucpro"] = record_text(provenance)
        self._file.attrs["columns"] = json.dumps(list(layout.names.values()))
        self._links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        self._links.set_create_intermediate_group(True)
        self._links.set_char_encoding(h5py.h5t.CSET_UTF8)
        self._type = h5py.h5t.py_create(np.dtype(layout.dtype), logical=True)
        self._records = 0

    def write(self, rows: Rows) -> None:
        columns = list(self._layout.names.items())
        values = {
            name: as_dtype((rows.mean if kind == "mean" else rows.residues)[layer], self._layout.dtype, self._path)
            for (kind, layer), name in columns
        }
        for i, record_id in enumerate(rows.ids):
            name, is_plain = self._free_name(record_id)
            for (kind, _), column in columns:
                part = values[column][i]
                if kind == "residues":
                    part = values[column][rows.offsets[i] : rows.offsets[i + 1]]
                self._create(name if len(columns) == 1 else f"{name}/{column}", np.ascontiguousarray(part))
            facts: dict[str, Any] = {} if is_plain else {"id": record_id, "record": self._records}
            if rows.treatment[i] != "whole":
                facts["treatment"] = rows.treatment[i]
            if rows.replaced[i]:
                facts["replaced"] = int(rows.replaced[i])
            for key, fact in facts.items():
                self._file[name].attrs[key] = fact
            self._records += 1

    def _create(self, name: str, values: NDArray[Any]) -> None:
        space = h5py.h5s.create_simple(values.shape)
        dataset = h5py.h5d.create(self._file.id, name.encode(), self._type, space, lcpl=self._links)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)

    def _free_name(self, record_id: str) -> tuple[str, bool]:
        """The name to store an id under, and whether it is the id itself at the root."""
        if "/" not in record_id and record_id != "." and not self._exists(record_id):
            return record_id, True
        parts = record_id.split("/")
        if "" not in parts and "." not in parts and not self._is_barred(parts):
            return record_id, False
        name = f"record {self._records}"
        while self._exists(name):  # a whole header can be an id, and have a blank
            name += "'"
        return name, False

    def _exists(self, name: str) -> bool:
        return bool(self._file.id.links.exists(name.encode()))

    def _is_barred(self, parts: list[str]) -> bool:
        """Whether a dataset (or a record's group) stands where this path needs a group, or at its end."""
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if not self._exists(name):
                return False
            if depth == len(parts) or self._is_record(name):
                return True
        return False

    def _is_record(self, name: str) -> bool:
        found = self._file[name]
        if len(self._layout.names) == 1:
            return isinstance(found, h5py.Dataset)
        return any(isinstance(child, h5py.Dataset) for child in found.values())

    def close(self) -> None:
        self._file.close()
