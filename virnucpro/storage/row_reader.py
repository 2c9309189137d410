"""Rows of chunk files, read by their place, with as much memory as the rows themselves take, each proved to be its own.

Not through a memory map: a map's touched pages count as the process's memory until it is closed, and a disk error under
a map kills the process instead of raising.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro.chunking.index import IndexRows, read_index
from virnucpro.storage.chunk_file import ChunkError, ChunkFile

OPEN_FILES = 128

LARGEST_READ = 1 << 30  # Linux reads no more than 2 GiB at once


class RowReader:
    """Reads rows of the tensors of several chunk files; a context manager, because it keeps some files open."""

    def __init__(self, chunks: Sequence[ChunkFile]) -> None:
        self._chunks = chunks
        self._open: OrderedDict[int, int] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _descriptor(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        path = self._chunks[number].path
        try:
            self._open[number] = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ChunkError(path, f"it cannot be read ({error.strerror})") from None
        return self._open[number]

    def rows(self, number: int, name: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Rows of one tensor of chunk ``number``, (len(rows), ...), in the order asked for.

        Neighbouring rows are read at once, so input order is nearly as fast as the disk.

        Raises:
            ChunkError: the file cannot be read or was cut since it was verified.
        """
        dtype, shape, offset = self._chunks[number].layout[name]
        out = np.empty((len(rows), *shape[1:]), dtype)
        width = math.prod(shape[1:]) * dtype.itemsize
        if out.size == 0:
            return out
        view = out.reshape(-1).view(np.uint8).data
        starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
        ends = np.append(starts[1:], len(rows))
        for start, end, row in zip(starts.tolist(), ends.tolist(), rows[starts].tolist(), strict=True):
            self._fill(number, view[start * width : end * width], offset + row * width)
        return out

    def _fill(self, number: int, view: memoryview, offset: int) -> None:
        descriptor = self._descriptor(number)
        done = 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done : done + LARGEST_READ]], offset + done)
            except OSError as error:
                raise ChunkError(self._chunks[number].path, f"it cannot be read ({error.strerror})") from None
            if not count:
                raise ChunkError(self._chunks[number].path, "it was cut short while it was read")
            done += count

    def check(self, number: int, rows: NDArray[np.integer], batch: IndexRows, here: NDArray[np.int64]) -> None:
        """Check that rows of chunk ``number`` are the sequences that the index names.

        Args:
            here: places in ``batch`` of the records that the rows are for, (len(rows),).

        Raises:
            ChunkError: they are others', or the chunk has no such rows.
        """
        path = self._chunks[number].path
        if int(rows.max()) >= self._chunks[number].proteins or int(rows.min()) < 0:
            raise ChunkError(path, "it has fewer proteins than the index names")
        right = (self.rows(number, "digests", rows) == batch.digest[here]).all()
        if not right or not np.array_equal(self.rows(number, "lengths", rows), batch.length[here]):
            raise ChunkError(path, "its rows are not the sequences that the index names")

    def vectors(self, batch: IndexRows) -> NDArray[np.float32]:
        """The mean vectors of index rows, of the one layer that the chunk files have, (n, D), each row checked.

        Raises:
            ChunkError: see :meth:`check` and :func:`finite`.
        """
        (name,) = [name for name in self._chunks[0].names if name.startswith("mean.")]
        width = self._chunks[0].layout[name][1][1]
        out = np.empty((len(batch), width), np.float32)
        for number in np.unique(batch.chunk).tolist():
            here = np.flatnonzero(batch.chunk == number)
            rows = batch.row[here]
            self.check(number, rows, batch, here)
            out[here] = finite(self._chunks[number], self.rows(number, name, rows))
        return out

    def ragged(self, number: int, name: str, rows: NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Residues of proteins: (sum of their residues, D) and how many each has, (len(rows),)."""
        begins, counts = self.spans(number, name, rows)
        dtype, (_, width), _ = self._chunks[number].layout[name]
        out = np.empty((int(counts.sum()), width), dtype)
        self.ragged_into(number, name, begins, counts, out, np.cumsum(counts) - counts)
        return out, counts

    def spans(self, number: int, name: str, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each protein begins among the file's residues, and how many it has, both (len(rows),).

        Raises:
            ChunkError: the file cannot be read, or has no such residues.
        """
        if self._chunks[number].version == 1:
            bounds = self.rows(number, "offsets", np.stack([rows, rows + 1], axis=1).reshape(-1)).reshape(-1, 2)
            begins, counts = bounds[:, 0], bounds[:, 1] - bounds[:, 0]
        else:
            begins = self.rows(number, "starts", rows)
            counts = self.rows(number, "embedded", rows).astype(np.int64)
        total = self._chunks[number].layout[name][1][0]
        if not ((begins >= 0) & (counts >= 0) & (begins <= total - counts)).all():
            raise ChunkError(self._chunks[number].path, "its starts do not fit its residues")
        return begins, counts

    def ragged_into(
        self,
        number: int,
        name: str,
        begins: NDArray[np.int64],
        counts: NDArray[np.int64],
        out: NDArray[Any],
        places: NDArray[np.int64],
    ) -> None:
        """Read residues of proteins, see :meth:`spans`, into ``out`` (any, D), each protein's from its place on.

        Raises:
            ChunkError: the file cannot be read, or holds numbers that are not finite.
        """
        chunk = self._chunks[number]
        dtype, (_, width), offset = chunk.layout[name]
        row_bytes = width * dtype.itemsize
        # Proteins that lie one behind the other, there and here, are read at once.
        follows = (begins[1:] == begins[:-1] + counts[:-1]) & (places[1:] == places[:-1] + counts[:-1])
        firsts = [0, *(np.flatnonzero(~follows) + 1).tolist()]
        for first, after in zip(firsts, [*firsts[1:], len(begins)], strict=True):
            size = int(counts[first:after].sum())
            if not size:
                continue
            here = out[places[first] : places[first] + size]
            values = here if out.dtype == dtype else np.empty((size, width), dtype)
            self._fill(number, values.reshape(-1).view(np.uint8).data, offset + int(begins[first]) * row_bytes)
            finite(chunk, values)
            if values is not here:
                here[...] = values


def finite(chunk: ChunkFile, values: NDArray[Any]) -> NDArray[Any]:
    """The values, which an embed job never leaves infinite or undefined."""
    if not np.isfinite(values).all():
        raise ChunkError(chunk.path, "it holds numbers that are not finite")
    return values


def rows_used(index: Path, chunks: Sequence[int]) -> list[NDArray[np.int32]]:
    """The rows of each of a sample's chunk files that hold its sequences, rising.

    Args:
        chunks: the numbers of the sample's chunks, rising.

    Raises:
        UserError: the index is missing or damaged.
    """
    found: list[list[NDArray[np.int64]]] = [[] for _ in chunks]
    for batch in read_index(index, chunks=chunks):
        both = np.unique(batch.keys)
        places = both >> 32
        for place in np.unique(places).tolist():
            found[place].append(both[places == place] & 0xFFFFFFFF)
    return [np.unique(np.concatenate(rows)).astype(np.int32) for rows in found]


def residues_used(index: Path, numbers: Sequence[int], chunks: Sequence[ChunkFile]) -> int:
    """How many residues were embedded of a sample's records, equal ones included.

    Args:
        numbers: of the sample's chunks, rising; ``chunks`` are their files.

    Raises:
        UserError: the index is missing or damaged.
    """
    embedded = [chunk.read("embedded") for chunk in chunks]
    total = 0
    for batch in read_index(index, chunks=numbers):
        for number in np.unique(batch.chunk).tolist():
            total += int(embedded[number][batch.row[batch.chunk == number]].sum(dtype=np.int64))
    return total
