"""Merged table as plain NumPy arrays in a folder, which ``numpy.load(..., mmap_mode="r")`` maps into memory.

``ids.txt`` (one id a line, UTF-8), ``length.npy``, and a file a column as in Parquet: ``embedding.npy`` (n, D);
with per-residue pooling ``residues.npy`` (sum of embedded residues, D) and ``offsets.npy`` (n + 1,), record i's
residues being ``offsets[i]:offsets[i + 1]``. ``treatment.txt`` says how each was run, ``description.txt`` what
follows the ids in their headers, ``origin.txt`` where each was computed; ``provenance.json`` is there.
"""

from __future__ import annotations

from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from virnucpro.base.digest import FileProof
from virnucpro.base.records import record_text
from virnucpro.storage.hashed_file import HashedFile
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


class GrowingArray:
    """A .npy file that rows are appended to, as many as were promised; a context manager.

    It is not mapped while it is written: a full disk under a map kills the process.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype, self._left = dtype, shape[0]
        header = BytesIO()
        descr = npy_format.dtype_to_descr(dtype)
        npy_format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
        self._file = HashedFile(path)
        self._file.write(header.getvalue())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.__exit__(kind, error, at)

    def append(self, values: NDArray[Any]) -> None:
        """Rows, which must never change afterwards (see :meth:`HashedFile.write`)."""
        self._left -= len(values)
        if values.size:
            self._file.write(np.ascontiguousarray(values, self._dtype).reshape(-1).view(np.uint8).data)

    def finish(self) -> FileProof:
        if self._left:
            raise ValueError(f"{self._left} more rows were promised")
        return self._file.finish()


class NpyTable:
    """Appends to each file as rows come."""

    def __init__(self, folder: Path, layout: Layout, provenance: Provenance) -> None:
        self._layout = layout
        self._folder = folder
        (folder / "provenance.json").write_text(record_text(provenance))
        self._stack = ExitStack()
        self._ids = self._stack.enter_context((folder / "ids.txt").open("w", encoding="utf-8", newline="\n"))
        self._treatment = self._stack.enter_context((folder / "treatment.txt").open("w", encoding="ascii"))
        described = (folder / "description.txt").open("w", encoding="utf-8", newline="\n")
        self._descriptions = self._stack.enter_context(described)
        origin = (folder / "origin.txt").open("w", encoding="utf-8", newline="\n")
        self._origin = self._stack.enter_context(origin)
        self._arrays: dict[str, GrowingArray] = {}
        self.proofs: dict[str, FileProof] = {}
        self._add("length", "int32", layout.records)
        for (kind, _), name in layout.names.items():
            rows = layout.residue_rows if kind == "residues" else layout.records
            self._add(name, layout.dtype, rows, layout.embed_dim)
        self._residues = 0
        if layout.residues:
            self._add("offsets", "int64", layout.records + 1)
            self._arrays["offsets"].append(np.zeros(1, np.int64))

    def _add(self, name: str, dtype: str, *shape: int) -> None:
        array = GrowingArray(self._folder / f"{name}.npy", np.dtype(dtype), shape)
        self._arrays[name] = self._stack.enter_context(array)

    def __enter__(self) -> Self:
        return self

    def write(self, rows: Rows) -> None:
        self._ids.writelines(f"{record_id}\n" for record_id in rows.ids)
        self._treatment.writelines(f"{word}\n" for word in rows.treatment)
        self._descriptions.writelines(f"{text}\n" for text in rows.descriptions)
        self._origin.writelines(f"{text}\n" for text in rows.origin or [COMPUTED] * len(rows))
        self._arrays["length"].append(rows.length)
        for (kind, layer), name in self._layout.names.items():
            self._arrays[name].append(rows.values(kind, layer, self._layout.dtype))
        if "offsets" in self._arrays:
            self._arrays["offsets"].append(rows.offsets[1:] + self._residues)
            self._residues += int(rows.offsets[-1])

    def finish(self) -> None:
        self.proofs |= {f"{name}.npy": array.finish() for name, array in self._arrays.items()}
        self._stack.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


write_table = NpyTable


def read_embeddings(path: Path, layer: int | None, word: str = "vectors") -> Embeddings:
    """The matrix as a read-only map."""
    ids, matrix = read_ids(path), read_array(path, _column(path, word, layer), 2)
    if len(ids) != len(matrix):
        raise damaged(path, f"{len(ids)} ids, {len(matrix)} vectors")
    return Embeddings(ids, matrix)


def read_residues(path: Path, layer: int | None) -> ResidueEmbeddings:
    """The vectors as a read-only map."""
    ids, values = read_ids(path), read_array(path, _column(path, "residues", layer), 2)
    offsets = np.array(read_array(path, "offsets", 1))
    if len(offsets) != len(ids) + 1 or offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        raise damaged(path, f"{len(ids)} ids, {len(values)} vectors, and offsets that do not fit them")
    return ResidueEmbeddings(ids, values, offsets)


def read_array(folder: Path, name: str, dimensions: int) -> NDArray[Any]:
    """One of the arrays as a read-only map.

    Raises:
        UserError: it is damaged.
    """
    path = folder / f"{name}.npy"
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, error) from None
    if array.ndim != dimensions or array.dtype.kind not in "fi":
        raise damaged(path, f"{array.dtype} {array.shape}")
    return array


def _column(folder: Path, word: str, layer: int | None) -> str:
    provenance = read_provenance(read_text(folder / "provenance.json"), folder)
    return column_name(word, layer, [file.stem for file in folder.glob("*.npy")], provenance, folder)


def read_ids(folder: Path) -> list[str]:
    """The ids, in input order.

    Raises:
        UserError: they are damaged.
    """
    return read_text(folder / "ids.txt").split("\n")[:-1]


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        UserError: it is damaged.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
