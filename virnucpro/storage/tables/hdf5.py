"""Merged table as HDF5 in UniProt's layout: one dataset an id, at the file's root.

UniProt publishes its embeddings so (per-protein.h5 and per-residue.h5 on its download page): ``file[id]`` is the mean
vector, (D,), or with per-residue pooling the matrix (residues, D). With several layers or both poolings
``file[id]`` is a group of datasets named as the Parquet columns are.

HDF5 takes ``/`` for a path, so ``file["a/b"]`` finds the dataset ``b`` in the group ``a``: ids with a slash are
found by their own text, but stand one level down. An id that is no proper path (``/a``, ``a//b``, ``.``), or
whose path another id bars (``a`` beside ``a/b``), is stored at the root as ``record 17`` (number in input order, from
0). Both kinds carry the attributes ``id`` and ``record``; :func:`virnucpro.read_embeddings` gives all of them by their
own ids, in order.

Attributes of a record: ``description``, what follows the id in its header, and ``origin``, where its numbers were
taken from, both as UTF-8 of fixed length (``.decode()``); ``treatment`` and ``replaced``. Those are left out that would
be empty, ``computed``, ``whole``, and 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import GuardedFile
from virnucpro.base.digest import FileProof
from virnucpro.base.errors import UserError
from virnucpro.base.records import record_text
from virnucpro.storage.report_record import Provenance
from virnucpro.storage.tables.rows import (
    COMPUTED,
    Embeddings,
    Layout,
    ResidueEmbeddings,
    Rows,
    column_name,
    damaged,
    read_provenance,
)

_LARGEST_COMPACT = 60_000
"""Bytes of a dataset that fits into its own header (64 KiB), which HDF5 protects with a checksum."""

_LARGEST_CHUNK = 1 << 31
"""Bytes; HDF5 allows up to 4 GiB."""

_CACHE = 1 << 25
"""Bytes of headers and names that HDF5 keeps in memory; with the 2 MiB that it begins with it reads names again."""


def _write_text(file: h5py.File, name: str, text: str) -> None:
    """An attribute of the file, of fixed length where it fits into the file's own header, which has a checksum.

    h5py's usual texts lie in a heap without one, and HDF5 (seen with 2.0) reads some damaged heaps without end.
    """
    if len(text.encode("utf-8")) > _LARGEST_COMPACT:
        file.attrs[name] = text
    else:
        _write_fixed(file.id, name, text)


def _write_fixed(place: Any, name: str, text: str) -> None:
    """An attribute of fixed length; low-level calls, for a million descriptions."""
    raw = text.encode("utf-8")
    dtype = h5py.string_dtype("utf-8", max(1, len(raw)))
    kind = h5py.h5t.py_create(dtype, logical=True)
    attribute = h5py.h5a.create(place, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    attribute.write(np.array(raw, dtype), mtype=kind)


def _text(file: h5py.File, name: str) -> str:
    """What :func:`_write_text` wrote, or an earlier version."""
    found = file.attrs[name]
    return found.decode("utf-8") if isinstance(found, bytes) else str(found)


class Hdf5Table:
    """Writes one dataset a record and column, through h5py's low-level calls (a third of the time).

    Every byte has a checksum that HDF5 compares when it reads: headers and names by the file format (of 1.10 and later,
    2016), small datasets because they are stored in their headers (which takes no more space, nor time), large ones,
    which are matrices of residues, by the filter fletcher32 (4 bytes; about 1 ns a byte).
    """

    def __init__(self, path: Path, layout: Layout, provenance: Provenance) -> None:
        self._layout = layout
        self.proofs: dict[str, FileProof] = {}
        self._out = GuardedFile(path)
        options = {"driver": "fileobj", "fileobj": self._out, "libver": ("v110", "v110")}
        # Names are kept in the order of writing.
        self._file = h5py.File(path, "w", track_order=True, **options)
        cache = self._file.id.get_mdc_config()
        cache.set_initial_size, cache.initial_size, cache.min_size = True, _CACHE, _CACHE
        self._file.id.set_mdc_config(cache)
        _write_text(self._file, "virnucpro", record_text(provenance))
        _write_text(self._file, "columns", json.dumps(list(layout.names.values())))
        self._file.attrs["model_name"] = provenance.model  # a text of the usual kind, which ProtSpace asks for
        self._links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        self._links.set_create_intermediate_group(True)
        self._links.set_char_encoding(h5py.h5t.CSET_UTF8)
        self._compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._compact.set_layout(h5py.h5d.COMPACT)
        self._type = h5py.h5t.py_create(np.dtype(layout.dtype), logical=True)
        self._records = 0

    def __enter__(self) -> Self:
        return self

    def write(self, rows: Rows) -> None:
        columns = list(self._layout.names.items())
        values = {name: rows.values(kind, layer, self._layout.dtype) for (kind, layer), name in columns}
        for i, record_id in enumerate(rows.ids):
            name, is_plain = self._free_name(record_id)
            for (kind, _), column in columns:
                part = values[column][i]
                if kind == "residues":
                    part = values[column][rows.offsets[i] : rows.offsets[i + 1]]
                path = name if len(columns) == 1 else f"{name}/{column}"
                made = self._create(path, np.ascontiguousarray(part))
            facts: dict[str, Any] = {} if is_plain else {"id": record_id, "record": self._records}
            if rows.treatment[i] != "whole":
                facts["treatment"] = rows.treatment[i]
            if rows.replaced[i]:
                facts["replaced"] = int(rows.replaced[i])
            texts = {"description": rows.descriptions[i]} if rows.descriptions and rows.descriptions[i] else {}
            if rows.origin and rows.origin[i] != COMPUTED:
                texts["origin"] = rows.origin[i]
            for key, fact in facts.items():
                self._file[name].attrs[key] = fact
            if texts:
                record = made if len(columns) == 1 else h5py.h5o.open(self._file.id, name.encode())
                for key, text in texts.items():
                    _write_fixed(record, key, text)
            self._records += 1
            self._out.check()

    def _create(self, name: str, values: NDArray[Any]) -> Any:
        """A dataset, by its low-level identifier."""
        space = h5py.h5s.create_simple(values.shape)
        storage = self._compact
        if values.nbytes > _LARGEST_COMPACT:
            storage = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            rows = min(len(values), _LARGEST_CHUNK // values[0].nbytes)
            storage.set_chunk((rows, *values.shape[1:]))
            storage.set_fletcher32()
        dataset = h5py.h5d.create(self._file.id, name.encode(), self._type, space, storage, self._links)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return dataset

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

    def finish(self) -> None:
        self._file.close()
        self._out.finish()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._out:
            self._file.close()


write_table = Hdf5Table


def read_embeddings(path: Path, layer: int | None, word: str = "vectors") -> Embeddings:
    """All vectors, read into one matrix."""
    ids, parts, nothing = _read(path, word, layer)
    if any(part.shape != nothing.shape[1:] for part in parts):
        raise damaged(path, f"not all vectors have {nothing.shape[1]} numbers")
    return Embeddings(ids, np.stack(parts) if parts else nothing)


def read_residues(path: Path, layer: int | None) -> ResidueEmbeddings:
    """All matrices, joined."""
    ids, parts, nothing = _read(path, "residues", layer)
    if any(part.shape[1:] != nothing.shape[1:] for part in parts):
        raise damaged(path, f"not all residues have {nothing.shape[1]} numbers")
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return ResidueEmbeddings(ids, np.concatenate([nothing, *parts]), offsets)


def _read(path: Path, word: str, layer: int | None) -> tuple[list[str], list[NDArray[Any]], NDArray[Any]]:
    """Ids and arrays of a column, in input order, and an array of no vectors, which has their width and dtype."""
    # h5py raises these for what is damaged.
    try:
        with h5py.File(path, "r") as file:
            if "columns" not in file.attrs or "virnucpro" not in file.attrs:
                raise UserError(f"{path} was not written by virnucpro; read it with h5py")
            provenance = read_provenance(_text(file, "virnucpro"), path)
            columns = json.loads(_text(file, "columns"))
            column = column_name(word, layer, columns, provenance, path)
            ids, arrays = _read_column(file, column if len(columns) > 1 else None)
            if len(ids) != provenance.counts["records"]:
                raise damaged(path, f"{len(ids)} records of {provenance.counts['records']}")
            return ids, arrays, np.empty((0, provenance.embed_dim), provenance.dtype)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, error) from None


def _read_column(file: h5py.File, column: str | None) -> tuple[list[str], list[NDArray[Any]]]:
    """Ids and arrays, in input order; ``column`` is None where each record is a dataset itself."""
    plain: list[tuple[str, NDArray[Any]]] = []
    placed: list[tuple[int, str, NDArray[Any]]] = []
    for name, found in _records(file, column):
        # Low-level calls: with a million datasets, the objects that h5py makes of each take most of the time.
        values = found if column is None else h5py.h5d.open(found, column.encode())
        array = np.empty(values.shape, values.dtype)
        values.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
        if h5py.h5a.get_num_attrs(found) and h5py.h5a.exists(found, b"record"):
            attributes = file[name].attrs
            placed.append((int(attributes["record"]), str(attributes["id"]), array))
        else:
            plain.append((name, array))
    # Ids that are stored under another name, or one level down, know their place; the rest is in order.
    for number, record_id, array in sorted(placed, key=lambda item: item[0]):
        plain.insert(number, (record_id, array))
    return [record_id for record_id, _ in plain], [array for _, array in plain]


def _records(group: h5py.Group, column: str | None, above: str = "") -> Iterator[tuple[str, Any]]:
    """Path and identifier of every record (a dataset, or a group of columns), those one level down included."""
    for name in group:
        found = h5py.h5o.open(group.id, name.encode())
        if isinstance(found, h5py.h5d.DatasetID) or (column is not None and _has_column(found, column)):
            yield f"{above}{name}", found
        else:
            yield from _records(group[name], column, f"{above}{name}/")


def _has_column(group: Any, column: str) -> bool:
    return column.encode() in group and isinstance(h5py.h5o.open(group, column.encode()), h5py.h5d.DatasetID)
