"""No table of its own: the chunk files are the result, and this folder says where each record stands in them.

``ids.txt`` (one id a line, UTF-8), ``length.npy``, ``treatment.txt`` and ``provenance.json`` are as in the format
``npy``; ``chunk.npy`` and ``row.npy`` give for each record the number of its chunk file and its row there, which equal
sequences share. ``chunks.json`` lists the chunk files, by their paths from the folder above, with the checksum that
each had when the merge verified it. Numbers are those of the chunk files: vectors of residues in the tables' dtype or
in float32, means in float32.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.digest import FileProof
from virnucpro.base.errors import UserError
from virnucpro.base.records import record_text
from virnucpro.storage.chunk_file import ChunkFile, read_chunk_file
from virnucpro.storage.report_record import Provenance
from virnucpro.storage.tables.npy import GrowingArray, read_array, read_ids, read_text
from virnucpro.storage.tables.rows import (
    COLUMNS,
    Embeddings,
    Layout,
    ResidueEmbeddings,
    Rows,
    column_name,
    damaged,
    read_provenance,
)

CHUNKS = "chunks.json"


class ChunksTable:
    """Appends to each file as rows come; vectors among the rows are passed over."""

    def __init__(self, folder: Path, layout: Layout, provenance: Provenance) -> None:
        (folder / "provenance.json").write_text(record_text(provenance))
        (folder / CHUNKS).write_text(json.dumps(layout.chunk_files, indent=0) + "\n", encoding="utf-8")
        self._stack = ExitStack()
        self._ids = self._stack.enter_context((folder / "ids.txt").open("w", encoding="utf-8", newline="\n"))
        self._treatment = self._stack.enter_context((folder / "treatment.txt").open("w", encoding="ascii"))
        self.proofs: dict[str, FileProof] = {}
        self._arrays: dict[str, GrowingArray] = {}
        for name in ("length", "chunk", "row"):
            array = GrowingArray(folder / f"{name}.npy", np.dtype("int32"), (layout.records,))
            self._arrays[name] = self._stack.enter_context(array)

    def __enter__(self) -> Self:
        return self

    def write(self, rows: Rows) -> None:
        self._ids.writelines(f"{record_id}\n" for record_id in rows.ids)
        self._treatment.writelines(f"{word}\n" for word in rows.treatment)
        for name, values in (("length", rows.length), ("chunk", rows.chunk), ("row", rows.row)):
            self._arrays[name].append(values)

    def finish(self) -> None:
        self.proofs |= {f"{name}.npy": array.finish() for name, array in self._arrays.items()}
        self._stack.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


write_table = ChunksTable


class StoredResidues:
    """Vectors of residues (residues, D) as they lie in chunk files; nothing is read until it is asked for.

    A slice gives an array: of one record a read-only map of the file, of several a copy. ``numpy.asarray`` reads all.
    """

    ndim = 2

    def __init__(self, values: list[NDArray[Any]], chunk: NDArray[Any], begins: NDArray[Any], offsets: Any) -> None:
        """Args: the residues of each chunk file; and of each record its chunk, where it begins there, and here."""
        self._values, self._chunk, self._begins, self._offsets = values, chunk, begins, offsets

    @property
    def shape(self) -> tuple[int, int]:
        return int(self._offsets[-1]), self._values[0].shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(*self._values)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> NDArray[Any]:
        if not isinstance(key, slice):
            place = range(len(self))[key]
            row: NDArray[Any] = self[place : place + 1][0]
            return row
        start, stop, step = key.indices(len(self))
        parts = [] if stop <= start or step < 0 else self._parts(start, stop)
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty((0, self.shape[1]), self.dtype)])
        return whole if step == 1 else self[:][key] if step < 0 else whole[::step]

    def _parts(self, start: int, stop: int) -> list[NDArray[Any]]:
        """What the records from one to the other bring to the rows from ``start`` to before ``stop``."""
        first = int(np.searchsorted(self._offsets, start, side="right")) - 1
        last = int(np.searchsorted(self._offsets, stop, side="left"))
        found = []
        for record in range(first, last):
            low, high = max(start, int(self._offsets[record])), min(stop, int(self._offsets[record + 1]))
            at = int(self._begins[record]) - int(self._offsets[record])
            found.append(self._values[int(self._chunk[record])][at + low : at + high])
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)


def read_embeddings(path: Path, layer: int | None, word: str = "vectors") -> Embeddings:
    """All vectors, read into one matrix."""
    origin, ids, places = _read(path)
    name = _tensor(path, word, layer, origin)
    matrix = np.empty((len(ids), origin.embed_dim), np.float32)
    for file, here, rows in places:
        matrix[here] = file.tensors(name)[rows]
    return Embeddings(ids, matrix)


def read_residues(path: Path, layer: int | None) -> ResidueEmbeddings:
    """The vectors as they lie in the chunk files, see :class:`StoredResidues`."""
    origin, ids, places = _read(path)
    name = _tensor(path, "residues", layer, origin)
    chunk, begins, counts = (np.zeros(len(ids), np.int64) for _ in range(3))
    for number, (file, here, rows) in enumerate(places):
        starts, residues = file.spans()
        chunk[here], begins[here], counts[here] = number, starts[rows], residues[rows]
        if (
            not ((begins[here] >= 0) & (counts[here] >= 0)).all()
            or (begins[here] > file.layout[name][1][0] - counts[here]).any()
        ):
            raise damaged(file.path, "its starts do not fit its residues")
    offsets = np.concatenate(([0], counts.cumsum()))
    values: list[NDArray[Any]] = [file.tensors(name) for file, _, _ in places]
    nothing = np.empty((0, origin.embed_dim), origin.dtype)
    stored = StoredResidues(values or [nothing], chunk, begins, offsets)
    return ResidueEmbeddings(ids, cast(NDArray[Any], stored), offsets)


def _tensor(path: Path, word: str, layer: int | None, origin: Provenance) -> str:
    """The tensor of a chunk file that a table's column would be of."""
    kinds = ["residues" if pooling == "per_residue" else pooling for pooling in origin.pooling]
    several = len(origin.layers) > 1
    names = {
        f"{COLUMNS[kind]}_{one}" if several else COLUMNS[kind]: f"{kind}.{one}"
        for kind in kinds
        for one in origin.layers
    }
    return names[column_name(word, layer, names, origin, path)]


def _read(path: Path) -> tuple[Provenance, list[str], list[tuple[ChunkFile, NDArray[Any], NDArray[Any]]]]:
    """Where the numbers come from, ids, and for each chunk file which records it has and in which of its rows."""
    origin, ids = read_provenance(read_text(path / "provenance.json"), path), read_ids(path)
    chunk, row = np.array(read_array(path, "chunk", 1)), np.array(read_array(path, "row", 1))
    try:
        listed = [(str(name), str(checksum)) for name, checksum in json.loads(read_text(path / CHUNKS))]
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from None
    if not len(ids) == len(chunk) == len(row) or not ((chunk >= 0) & (chunk < len(listed))).all():
        raise damaged(path, f"{len(ids)} ids, {len(chunk)} places in {len(listed)} chunk files")
    places = []
    for number, (name, checksum) in enumerate(listed):
        file = read_chunk_file(path.parent / name)
        if file.metadata["checksum"] != checksum:
            raise UserError(f"{file.path} was computed again since {path} was written: run the merge again")
        here = np.flatnonzero(chunk == number)
        if not ((row[here] >= 0) & (row[here] < file.proteins)).all():
            raise damaged(path, f"{file.path.name} has fewer proteins than it says")
        places.append((file, here, row[here]))
    return origin, ids, places
