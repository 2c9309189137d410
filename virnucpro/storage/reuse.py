"""Rows taken from earlier results: found by the digests of their sequences, verified, copied into a run's own files.

What is copied does not depend on its source any more, so sources may be read-only, and be moved or deleted once the
samples are split. A source file that cannot be trusted is named, and its sequences are embedded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import remove
from virnucpro.base.digest import digest_of_digests, file_stamp
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space
from virnucpro.base.settings import VECTORS
from virnucpro.base.text import utc
from virnucpro.chunking.manifest import CHUNK_FILES, chunk_name
from virnucpro.storage.chunk_file import LISTED, ChunkError, ChunkFile, read_chunk_file, verify_chunk_file
from virnucpro.storage.chunk_layout import TensorShape
from virnucpro.storage.chunk_metadata import FIRST_NUMBERS, NUMBERS, ChunkMetadata, RunStatistics
from virnucpro.storage.chunk_writer import NAMES, ResidueStream, open_chunk_file, shape_of
from virnucpro.storage.row_index import NONE, IndexedFile, RowIndex
from virnucpro.storage.row_reader import RowReader, finite
from virnucpro.storage.tables import TABLES

FILE_BYTES = 1 << 28
"""Of vectors in one file that is copied to; means of it are in memory at once, residues are not."""

RESIDUES_AT_ONCE = 1 << 14

VECTOR_NAMES = tuple(f"{kind}." for kind in VECTORS)


@dataclass(frozen=True)
class Reuse:
    """Which earlier results may be used.

    Attributes:
        sources: folders, chunk files and tables.
        index: the folder for the index of their digests.
        devices: what this run embeds with ("cpu", or the GPUs' names).
        any_device: whether numbers in half precision that other devices have computed count as equal.
    """

    sources: tuple[Path, ...]
    index: Path
    devices: tuple[str, ...] = ()
    any_device: bool = False

    def allows(self, entries: Mapping[str, str]) -> bool:
        """Whether numbers are those that this run would compute, as far as device and code decide.

        Args:
            entries: of a chunk file's metadata.
        """
        if entries.get("numbers", FIRST_NUMBERS) != NUMBERS:
            return False
        devices = entries.get("device", "").split(" + ")
        return self.any_device or entries.get("precision") == "fp32" or set(devices) <= set(self.devices)


@dataclass(frozen=True)
class Taken:
    """Rows that were copied: the chunk files by their numbers, and which of the sequences asked for each one holds."""

    chunks: dict[int, ChunkFile]
    places: dict[int, NDArray[np.int64]]


@dataclass(frozen=True)
class _Wanted:
    """n sequences that are asked for: digests (n, 16), residues (n,), which file of the index has each, which row."""

    digests: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    file: NDArray[np.int32]
    row: NDArray[np.int32]

    def of(self, places: NDArray[np.int64]) -> _Wanted:
        """Those of some places."""
        return _Wanted(self.digests[places], self.lengths[places], self.file[places], self.row[places])


def reported_devices(report: Path) -> tuple[str, ...]:
    """What chunk files call the devices of a GPU report.

    Raises:
        UserError: the report cannot be read.
    """
    try:
        entries = json.loads(report.read_text(encoding="utf-8"))
        return tuple("cpu" if entry["device"] == "cpu" else entry["name"] for entry in entries if "error" not in entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{report} cannot be read ({error}): delete it and run the same command again") from None


def chunk_files_in(source: Path) -> list[Path]:
    """The chunk files that a path stands for: itself, or those in a folder and in the folders below it.

    A table stands for none (see :mod:`virnucpro.storage.reuse_tables`).
    """
    if source.name in {table.name for table in TABLES.values()}:
        return []
    if source.is_file():
        return [source]
    return sorted(path for path in source.rglob(CHUNK_FILES) if path.is_file())


class Sources:
    """The chunk files of earlier results that were made as this run makes its own."""

    def __init__(
        self, reuse: Reuse, wanted: Mapping[str, str], why_not: Callable[[ChunkFile], str | None], log: logging.Logger
    ) -> None:
        """Args: the identity that decides which index is theirs, and what says why a chunk file will not do."""
        key = hashlib.sha256(json.dumps([sorted(wanted.items()), reuse.devices, reuse.any_device]).encode()).hexdigest()
        self._reuse, self._why_not, self._log = reuse, why_not, log
        self._folder = reuse.index / key[:16]
        self._files: dict[Path, ChunkFile] = {}
        self._names: dict[Path, str] = {}

    def index(self) -> RowIndex:
        """The index of their digests, with what is new since it was last used."""
        there: set[Path] = set()
        gone = [source for source in self._reuse.sources if not source.exists()]
        for source in gone:
            self._log.warning("%s is not there any more: what it had is embedded", source)
        for source in self._reuse.sources:
            for path in chunk_files_in(source):
                there.add(path)
                try:
                    chunk = read_chunk_file(path)
                except ChunkError as error:
                    self._log.warning("%s is not used (%s)", path, error.reason)
                    continue
                if self._why_not(chunk) is None and self._reuse.allows(chunk.metadata):
                    self._files.setdefault(path, chunk)
                    self._names.setdefault(path, str(source))
        index = RowIndex(self._folder)
        now = {IndexedFile(str(path), chunk.metadata["checksum"]) for path, chunk in self._files.items()}
        if not now.issuperset(index.files):
            paths = [Path(file.path) for file in index.files if file not in now]
            # Others are of sources that are named already, or are not asked for any more.
            paths = [path for path in paths if not any(path.is_relative_to(source) for source in gone)]
            self._name_changed([path for path in paths if path in there or not path.exists()])
            remove(self._folder)  # what they had may be elsewhere
            index = RowIndex(self._folder)
        known = {file.path for file in index.files}
        new = [path for path in self._files if str(path) not in known]
        if new:
            indexed = [IndexedFile(str(path), self._files[path].metadata["checksum"]) for path in new]
            index.extend(indexed, self._digests(new, len(index.files)))
        return index

    def _name_changed(self, paths: Sequence[Path]) -> None:
        """Say which files are not what they were when they were indexed."""
        for path in paths[:LISTED]:
            what = "is another file than when it was indexed" if path.exists() else "is not there any more"
            self._log.warning("%s %s: what it had is embedded, unless it is elsewhere", path, what)
        if len(paths) > LISTED:
            self._log.warning("and so it is with %d more files", len(paths) - LISTED)

    def _digests(self, paths: Sequence[Path], first: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for number, path in enumerate(paths, start=first):
            try:
                digests = self._files[path].digests()
            except (ChunkError, OSError, ValueError):
                continue
            yield number, digests

    def take(
        self, digests: NDArray[np.uint8], lengths: NDArray[np.int32], tensors: Path, numbers: Iterator[int]
    ) -> Taken:
        """Copy what the sources have of these sequences, by digests (n, 16) and lengths (n,), to files in ``tensors``.

        Args:
            numbers: free ones of chunk files.

        Raises:
            UserError: the disk is full.
        """
        index = self.index()
        wanted = _Wanted(digests, lengths, *index.find(digests))
        taken = Taken({}, {})
        good: dict[int, ChunkFile] = {}
        stamps = {}
        for number in np.unique(wanted.file[wanted.file != NONE]).tolist():
            path = Path(index.files[number].path)
            try:
                stamps[number] = file_stamp(path)
                chunk = verify_chunk_file(path)
                if chunk.metadata["checksum"] != index.files[number].checksum:
                    raise ChunkError(path, "it is another file than when it was indexed")
                good[number] = chunk
            except (ChunkError, OSError) as error:
                self._bad(path, error)
        # Rows that were computed alike go together, so that each file says how its rows were computed.
        alike: dict[tuple[str, ...], list[int]] = {}
        for number, chunk in good.items():
            run = asdict(ChunkMetadata.from_entries(chunk.metadata, chunk.path).run)
            how = json.dumps(run | {"statistics": None, "host": "", "ended": ""})
            alike.setdefault((self._names[chunk.path], how), []).append(number)
        for (name, _), files in alike.items():
            places, own = np.flatnonzero(np.isin(wanted.file, files)), {at: good[at] for at in files}
            for part in _parts(places, lengths, good[files[0]]):
                number = next(numbers)
                output = tensors / f"{chunk_name(number)}.safetensors"
                try:
                    part = part[_are_there(wanted.of(part), own)]
                    if not len(part):
                        continue
                    _copy(wanted.of(part), own, output, name)
                    for at in files:
                        if not _is(Path(index.files[at].path), stamps[at]):
                            raise ChunkError(Path(index.files[at].path), "it was changed while it was read")
                except ChunkError as error:
                    remove(output)
                    self._bad(error.path, error)
                    continue
                taken.chunks[number] = read_chunk_file(output)
                taken.places[number] = part
        return taken

    def _bad(self, path: Path, why: object) -> None:
        reason = why.reason if isinstance(why, ChunkError) else why
        self._log.warning("%s can't be used (%s): its sequences are embedded", path, reason)


def _are_there(wanted: _Wanted, files: Mapping[int, ChunkFile]) -> NDArray[np.bool_]:
    """Whether the rows that the index names are the sequences, bool (n,)."""
    found = np.zeros(len(wanted.row), bool)
    for number, chunk in files.items():
        here = np.flatnonzero(wanted.file == number)
        own = wanted.of(here)
        if not len(here) or int(own.row.max()) >= chunk.proteins:
            continue
        with RowReader([chunk]) as reader:
            same = (reader.rows(0, "digests", own.row) == own.digests).all(axis=1)
            found[here] = same & (reader.rows(0, "lengths", own.row) == own.lengths)
    return found


def _is(path: Path, stamp: tuple[int, ...]) -> bool:
    try:
        return file_stamp(path) == stamp
    except OSError:
        return False


def _parts(places: NDArray[np.int64], lengths: NDArray[np.int32], like: ChunkFile) -> Iterator[NDArray[np.int64]]:
    """The places, cut where a file is as large as :data:`FILE_BYTES`."""
    cost = np.zeros(len(places), np.int64)
    for name, (dtype, shape, _) in like.layout.items():
        if name.startswith((*VECTOR_NAMES, "residues.")):
            rows = lengths[places].astype(np.int64) if name.startswith("residues.") else 1
            cost += rows * shape[1] * dtype.itemsize
    breaks = np.flatnonzero(np.diff(np.cumsum(cost) // FILE_BYTES)) + 1
    yield from (part for part in np.split(places, breaks) if len(part))


def _copy(wanted: _Wanted, files: Mapping[int, ChunkFile], output: Path, name: str) -> None:
    """Write rows of verified chunk files to one of our own; ``name`` is what the source is called."""
    first = next(iter(files.values()))
    numbers = sorted(files)
    at, rows = np.searchsorted(numbers, wanted.file), wanted.row
    residue_names = [key for key in first.names if key.startswith("residues.")]
    with RowReader([files[number] for number in numbers]) as reader:
        tensors = {
            key: _gathered(reader, key, at, rows)
            for key in first.names
            if key not in ("starts", "offsets", *residue_names)
        }
        for key, values in tensors.items():
            if key.startswith(VECTOR_NAMES):
                finite(first, values)
        counts = tensors["embedded"].astype(np.int64)
        shapes = {key: shape_of(values) for key, values in tensors.items()}
        if residue_names:
            dtype, (_, width), _ = first.layout[residue_names[0]]
            shapes["starts"] = TensorShape("I64", (len(rows),))
            shapes |= {key: TensorShape(NAMES[dtype], (int(counts.sum()), width)) for key in residue_names}
            tensors["starts"] = np.cumsum(counts) - counts
        metadata = _metadata(first, wanted, name, output.stem)
        check_space(output.parent, sum(shape.nbytes for shape in shapes.values()), f"copying rows from {name}")
        with open_chunk_file(output, shapes, metadata) as writer:
            if residue_names:
                (region,) = writer.regions([int(counts.sum())])
                _copy_residues(reader, residue_names, at, rows, counts, writer.stream(region))
            writer.finish(tensors, metadata)


def _gathered(reader: RowReader, key: str, at: NDArray[np.int64], rows: NDArray[np.int32]) -> NDArray[np.generic]:
    found = None
    for number in np.unique(at).tolist():
        here = np.flatnonzero(at == number)
        values = reader.rows(number, key, rows[here])
        if found is None:
            found = np.empty((len(rows), *values.shape[1:]), values.dtype)
        found[here] = values
    assert found is not None
    return found


def _copy_residues(
    reader: RowReader,
    names: Sequence[str],
    at: NDArray[np.int64],
    rows: NDArray[np.int32],
    counts: NDArray[np.int64],
    stream: ResidueStream,
) -> None:
    """Residues in the order of the rows, some proteins at a time: those that are neighbours in one file."""
    ends = np.cumsum(counts)
    is_new = (np.diff(at, prepend=-1) != 0) | (np.diff(ends // RESIDUES_AT_ONCE, prepend=-1) != 0)
    starts = np.flatnonzero(is_new)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
        number = int(at[start])
        values = {int(name.split(".")[1]): reader.ragged(number, name, rows[start:end])[0] for name in names}
        stream.append(values)


def _metadata(like: ChunkFile, wanted: _Wanted, name: str, chunk: str) -> dict[str, str]:
    found = ChunkMetadata.from_entries(like.metadata, like.path)
    digest = digest_of_digests([wanted.digests.tobytes()])
    nothing = RunStatistics(len(wanted.row), int(wanted.lengths.sum()), 0, 0.0, 0.0, 0.0, 0, 0, 0)
    source = replace(found.source, chunk=chunk, chunk_digest=digest, reused_from=name)
    run = replace(found.run, statistics=nothing, host=platform.node(), ended=utc(time.time()))
    return replace(found, source=source, run=run).to_entries()
