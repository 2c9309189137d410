"""Merged table as plain NumPy arrays in a folder, which ``numpy.load(..., mmap_mode="r")`` maps into memory.

``ids.txt`` (one id a line, UTF-8), ``length.npy``, and a file a column as in Parquet: ``embedding.npy`` (n, D);
with per-residue pooling ``residues.npy`` (sum of embedded residues, D) and ``offsets.npy`` (n + 1,), record i's
residues being ``offsets[i]:offsets[i + 1]``. ``treatment.txt`` says how each was run; ``provenance.json`` is there.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from virnucpro.base.records import record_text
from virnucpro.storage.report_record import Provenance
from virnucpro.storage.tables.rows import Layout, Rows, as_dtype

_HEADER = 128
"""Bytes of a .npy file before its values, for every shape that fits (numpy's format pads them to a multiple of 64)."""


class _GrowingArray:
    """A .npy file whose number of rows is known when it is closed."""

    def __init__(self, path: Path, dtype: np.dtype[Any], width: tuple[int, ...]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._width, self._rows = dtype, width, 0
        self._file.write(b" " * _HEADER)

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._rows += len(values)

    def close(self) -> None:
        shape = (self._rows, *self._width)
        text = repr({"descr": npy_format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}).encode()
        magic = npy_format.magic(1, 0)
        length = _HEADER - len(magic) - 2
        self._file.seek(0)
        self._file.write(magic + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n")
        self._file.close()


class NpyTable:
    """Appends to each file as rows come."""

    def __init__(self, folder: Path, layout: Layout, provenance: Provenance) -> None:
        self._layout = layout
        self._folder = folder
        self._stack = ExitStack()
        self._ids = self._stack.enter_context((folder / "ids.txt").open("w", encoding="utf-8", newline="\n"))
        self._treatment = self._stack.enter_context((folder / "treatment.txt").open("w", encoding="ascii"))
        self._arrays = {name: self._array(name, layout.dtype, layout.embed_dim) for name in layout.names.values()}
        self._length = self._array("length", "int32")
        self._residues = 0
        self._offsets = self._array("offsets", "int64") if layout.residues else None
        if self._offsets is not None:
            self._offsets.append(np.zeros(1, np.int64))
        (folder / "provenance.json").write_text(record_text(provenance))

    def _array(self, name: str, dtype: str, *width: int) -> _GrowingArray:
        array = _GrowingArray(self._folder / f"{name}.npy", np.dtype(dtype), width)
        self._stack.callback(array.close)
        return array

    def write(self, rows: Rows) -> None:
        self._ids.writelines(f"{record_id}\n" for record_id in rows.ids)
        self._treatment.writelines(f"{word}\n" for word in rows.treatment)
        self._length.append(rows.length)
        for (kind, layer), name in self._layout.names.items():
            values = (rows.mean if kind == "mean" else rows.residues)[layer]
            self._arrays[name].append(as_dtype(values, self._layout.dtype, self._folder))
        if self._offsets is not None:
            self._offsets.append(rows.offsets[1:] + self._residues)
            self._residues += int(rows.offsets[-1])

    def close(self) -> None:
        self._stack.close()
