"""Where sequences are among many chunk files: an index over digests that is searched on the disk, not in memory.

A segment is one file of 24 bytes a sequence, sorted by the digest: its two halves as uint64, then the number of a chunk
file and the row there. It is read in blocks of :data:`BLOCK_ROWS`; the first key of each block is kept in memory (two
bytes a thousand sequences), so a search reads the blocks that its digests fall into and nothing else. Segments are
written once: more chunk files give one more segment, and :data:`MOST_SEGMENTS` are made into one. Rows are sorted in
parts of :data:`SORTED_AT_ONCE`, which digests (being uniform) fill equally, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path, remove, scratch_directory
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record, write_record

ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("file", "<i4"), ("row", "<i4")])
BLOCK_ROWS = 4096
OVERHANG = 64
"""Rows of the next block that are read with one: a key that is the next block's first one is looked for here."""

SORTED_AT_ONCE = 1 << 22
"""Rows that are sorted in memory: about 300 MB."""

SPILL_BITS = 8
"""Rows that are too many to be sorted at once are laid into 2^8 files by the first bits of their digests."""

MOST_SEGMENTS = 8
RECORD = "index.json"
NONE = -1
"""The file of a digest that is not in the index."""

Added = tuple[int, NDArray[np.uint8]]
"""The number of a chunk file, and the digests of its rows (n, 16)."""


@dataclass(frozen=True)
class IndexedFile:
    """A chunk file as it was when it was indexed: its path, and its checksum (its header's)."""

    path: str
    checksum: str


@dataclass(frozen=True)
class IndexRecord:
    """What an index is of: its chunk files, by their numbers, and its segments with the rows of each."""

    FORMAT: ClassVar[str] = "virnucpro-row-index-1"

    files: tuple[IndexedFile, ...]
    segments: dict[str, int]


class Rows:
    """The same in memory, for few files."""

    def __init__(self, added: Iterable[Added]) -> None:
        self._rows = _sorted(np.concatenate([np.zeros(0, ROW), *_records(added)]))

    def find(self, digests: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """As :meth:`RowIndex.find`; of equal digests the first one that was added is given."""
        halves, file, row = _halves(digests), *_nowhere(len(digests))
        _match(self._rows, halves, np.arange(len(halves)), file, row)
        return file, row


class RowIndex:
    """An index in a folder of its own; one that is damaged is begun again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segments: list[_Segment] = []
        self._record = IndexRecord((), {})
        try:
            record = read_record(folder / RECORD, IndexRecord)
            segments = [_Segment(folder / name, rows) for name, rows in record.segments.items()]
        except (OSError, UserError, ValueError):
            return
        self._record, self._segments = record, segments

    @property
    def files(self) -> Sequence[IndexedFile]:
        """Those that are indexed; their numbers are their places here."""
        return self._record.files

    def extend(self, files: Sequence[IndexedFile], added: Iterable[Added]) -> None:
        """Add chunk files.

        Args:
            files: those that are new; their numbers follow on those that are there.
            added: their digests; a file's may come in parts, in the order of its rows.

        Raises:
            UserError: the folder cannot be written to, or the disk is full.
        """
        segments = dict(self._record.segments)
        name = f"segment_{max([-1, *(int(name[8:13]) for name in segments)]) + 1:05d}"
        old = self._segments if len(segments) >= MOST_SEGMENTS else []
        rows = _write(self._folder / name, _records(added), old)
        merged = {segment.path.name for segment in old}
        kept = {name: rows for name, rows in segments.items() if name not in merged}
        self._record = IndexRecord((*self.files, *files), {**kept, name: rows})
        write_record(self._folder / RECORD, self._record)
        self._segments = [_Segment(self._folder / name, rows) for name, rows in self._record.segments.items()]
        for path in self._folder.glob("segment_*"):
            if path.name not in self._record.segments:
                remove(path)

    def find(self, digests: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Where sequences are: for each digest, (n, 16), its file (or :data:`NONE`) and its row, each (n,).

        Raises:
            OSError: the index cannot be read.
        """
        halves, file, row = _halves(digests), *_nowhere(len(digests))
        order = np.argsort(halves[:, 0])
        for segment in self._segments:
            order = order[file[order] == NONE]
            segment.find(halves, order, file, row)
        return file, row


class _Segment:
    """One sorted file."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows = path, rows
        if path.stat().st_size != rows * ROW.itemsize + 8 * -(-rows // BLOCK_ROWS):
            raise ValueError(f"{path} is not as long as it was")
        with path.open("rb") as file:
            file.seek(rows * ROW.itemsize)
            self._firsts = np.fromfile(file, "<u8")

    def find(
        self, halves: NDArray[np.uint64], order: NDArray[np.int64], file: NDArray[np.int32], row: NDArray[np.int32]
    ) -> None:
        """Fill in where those of ``halves`` are that ``order`` names, by rising first half."""
        if not self.rows or not len(order):
            return
        wanted = halves[order, 0]
        blocks = np.maximum(np.searchsorted(self._firsts, wanted, "left") - 1, 0)
        starts = np.flatnonzero(np.diff(blocks, prepend=-1))
        with self.path.open("rb") as source:
            for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
                begin = int(blocks[start]) * BLOCK_ROWS
                source.seek(begin * ROW.itemsize)
                rows = np.fromfile(source, ROW, min(BLOCK_ROWS + OVERHANG, self.rows - begin))
                _match(rows, halves, order[start:end], file, row)

    def parts(self) -> Iterator[NDArray[np.void]]:
        """All rows, so many at a time."""
        with self.path.open("rb") as file:
            for begin in range(0, self.rows, SORTED_AT_ONCE):
                yield np.fromfile(file, ROW, min(SORTED_AT_ONCE, self.rows - begin))


def _halves(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Digests (n, 16) as two numbers each, (n, 2)."""
    return np.ascontiguousarray(digests).view("<u8").reshape(-1, 2)


def _nowhere(n: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """File and row of digests of which none is found yet, each (n,)."""
    return np.full(n, NONE, np.int32), np.zeros(n, np.int32)


def _match(
    rows: NDArray[np.void],
    halves: NDArray[np.uint64],
    order: NDArray[np.int64],
    file: NDArray[np.int32],
    row: NDArray[np.int32],
) -> None:
    high = np.ascontiguousarray(rows["high"])
    places = np.searchsorted(high, halves[order, 0])
    while len(order):
        inside = places < len(rows)
        order, places = order[inside], places[inside]
        same = high[places] == halves[order, 0]
        order, places = order[same], places[same]
        is_it = rows["low"][places] == halves[order, 1]
        found = order[is_it]
        file[found], row[found] = rows["file"][places[is_it]], rows["row"][places[is_it]]
        order, places = order[~is_it], places[~is_it] + 1  # another digest with the same first half


def _records(added: Iterable[Added]) -> Iterator[NDArray[np.void]]:
    begins: dict[int, int] = {}
    for number, digests in added:
        rows = np.empty(len(digests), ROW)
        halves = _halves(digests)
        begin = begins.get(number, 0)
        begins[number] = begin + len(rows)
        rows["high"], rows["low"], rows["file"] = halves[:, 0], halves[:, 1], number
        rows["row"] = np.arange(begin, begin + len(rows))
        yield rows


def _write(path: Path, new: Iterable[NDArray[np.void]], old: Sequence[_Segment]) -> int:
    """Write a segment of new rows and those of old segments; of equal digests the first one stays."""
    with scratch_directory(path) as scratch, atomic_path(path) as beside:
        parts = _parted((rows for source in (*[segment.parts() for segment in old], new) for rows in source), scratch)
        total, firsts = 0, [np.zeros(0, "<u8")]
        with beside.open("wb") as out:
            for part in parts:
                rows = _sorted(part)
                rows.tofile(out)
                firsts.append(rows["high"][-total % BLOCK_ROWS :: BLOCK_ROWS].copy())
                total += len(rows)
            np.concatenate(firsts).tofile(out)
        return total


def _parted(rows: Iterable[NDArray[np.void]], scratch: Path) -> Iterator[NDArray[np.void]]:
    """The rows by the first bits of their digests, each part as large as can be sorted in memory."""
    held: list[NDArray[np.void]] = []
    count = 0
    bits = 0
    for some in rows:
        held.append(some)
        count += len(some)
        if count > SORTED_AT_ONCE:
            _spill(held, scratch)
            held, count, bits = [], 0, SPILL_BITS
    if not bits:
        yield np.concatenate([np.zeros(0, ROW), *held])
        return
    _spill(held, scratch)
    largest = max(path.stat().st_size for path in scratch.iterdir()) // ROW.itemsize
    together = max(1, SORTED_AT_ONCE // max(1, largest))
    for first in range(0, 1 << SPILL_BITS, together):
        names = [scratch / f"{number:05d}" for number in range(first, min(first + together, 1 << SPILL_BITS))]
        yield np.concatenate([np.zeros(0, ROW), *(np.fromfile(name, ROW) for name in names if name.exists())])
        for name in names:
            remove(name)


def _spill(held: Sequence[NDArray[np.void]], scratch: Path) -> None:
    rows = np.concatenate([np.zeros(0, ROW), *held])
    part = (rows["high"] >> np.uint64(64 - SPILL_BITS)).astype(np.uint16)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange((1 << SPILL_BITS) + 1))
    for number in range(1 << SPILL_BITS):
        with (scratch / f"{number:05d}").open("ab") as file:
            rows[order[bounds[number] : bounds[number + 1]]].tofile(file)


def _sorted(rows: NDArray[np.void]) -> NDArray[np.void]:
    """Rows by their digests, without those whose digest an earlier one has."""
    rows = rows[np.argsort(rows["high"], kind="stable")]
    high, low = rows["high"], rows["low"]
    same = np.flatnonzero(high[1:] == high[:-1])
    if len(same):  # seldom: sort these by both halves too
        order = np.lexsort((low, high))
        rows = rows[order]
        high, low = rows["high"], rows["low"]
        keep = np.ones(len(rows), bool)
        keep[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        rows = rows[keep]
    return rows
