"""Read scattered rows out of many chunk files, with as much memory as the rows themselves take.

Rows are read by their place in the file, not through a memory map: a map's touched pages count as the process's
memory until it is closed, and a disk error under a map kills the process instead of raising.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

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

    def _fill(self, number: int, view: memoryview, place: int) -> None:
        descriptor = self._descriptor(number)
        done = 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done : done + LARGEST_READ]], place + done)
            except OSError as error:
                raise ChunkError(self._chunks[number].path, f"it cannot be read ({error.strerror})") from None
            if not count:
                raise ChunkError(self._chunks[number].path, "it was cut short while it was read")
            done += count

    def ragged(self, number: int, name: str, rows: NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Residues of proteins: (sum of their residues, D) and how many each has, (len(rows),)."""
        places = np.stack([rows, rows + 1], axis=1).reshape(-1)
        bounds = self.rows(number, "offsets", places).reshape(-1, 2)
        counts = bounds[:, 1] - bounds[:, 0]
        total = int(counts.sum())
        begins = np.cumsum(counts) - counts
        each = np.arange(total) - np.repeat(begins, counts) + np.repeat(bounds[:, 0], counts)
        return self.rows(number, name, each), counts
