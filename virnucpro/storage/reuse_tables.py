"""Rows of finished tables as earlier results, where their chunk files are gone.

A table has no digests of sequences. Its sample's index (``proteins.parquet``) has them, record by record in the table's
order, and the record beside both (``embeddings.json``) proves them by their sha256 and says what the rows were made
with. Tables in float32 hold the numbers of the chunk files, bit for bit; others are not used, and residues' vectors
neither.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.digest import FileProof, digest_of_digests, file_stamp
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space
from virnucpro.base.records import RecordError, read_record
from virnucpro.base.settings import VECTORS, EmbeddingSettings
from virnucpro.base.text import utc
from virnucpro.chunking.cost import embedded_residues, piece_counts
from virnucpro.chunking.index import read_index
from virnucpro.chunking.manifest import chunk_name, chunk_number
from virnucpro.storage.chunk_file import ChunkError, read_chunk_file
from virnucpro.storage.chunk_metadata import (
    ChunkMetadata,
    ChunkSource,
    DeviceRun,
    RunStatistics,
    embedding_identity,
    identity,
    serves,
)
from virnucpro.storage.chunk_writer import write_chunk_file
from virnucpro.storage.report_record import REPORT, ChunkRun, SampleReport
from virnucpro.storage.reuse import FILE_BYTES, Reuse, Taken, chunk_files_in
from virnucpro.storage.row_index import NONE, Rows
from virnucpro.storage.sample_files import SampleFiles
from virnucpro.storage.tables import TABLES, WITHOUT_VECTORS, read_parts
from virnucpro.storage.tables.parquet import read_precisions
from virnucpro.weights.manifest import WeightsManifest

READ = tuple(name for name in TABLES if name not in WITHOUT_VECTORS)
"""Formats that are read, the first one that a sample has; all but Parquet and npy are read into memory."""

NOT_RECORDED = "not recorded"
"""How layers ran (eager or fused) is said by chunk files and not by the records of tables."""


@dataclass(frozen=True)
class Table:
    """A sample's table in one format, its record, and what the source is called that it is in."""

    source: str
    report: Path
    record: SampleReport
    format: str

    @property
    def path(self) -> Path:
        return self.report.parent / TABLES[self.format].name

    @property
    def index(self) -> Path:
        return SampleFiles(self.report.parent).index

    def files(self) -> dict[Path, FileProof]:
        """The table's files, as its record proves them."""
        return {self.report.parent / name: proof for name, proof in self.record.tables[self.format].items()}

    def verify(self) -> None:
        """Read index and table through.

        Raises:
            ChunkError: one of them is not what the record says.
            OSError: one of them cannot be read.
        """
        if FileProof.of(self.index).sha256 != self.record.made_from.get("index"):
            raise ChunkError(self.index, f"it is not the index that {self.report} was made from")
        for path, proof in self.files().items():
            if FileProof.of(path) != proof:
                raise ChunkError(path, f"its bytes are not those that {self.report} names")

    def stamps(self) -> list[tuple[int, ...]]:
        return [file_stamp(path) for path in (self.index, *self.files())]


@dataclass(frozen=True)
class _Hits:
    """Rows of a table that are wanted, rising; the places of their sequences among those asked for; their chunks."""

    row: NDArray[np.int64]
    place: NDArray[np.int64]
    chunk: NDArray[np.int32]

    def of(self, chunks: Sequence[int]) -> _Hits:
        """Those of some chunks."""
        here = np.isin(self.chunk, chunks)
        return _Hits(self.row[here], self.place[here], self.chunk[here])


class Tables:
    """The tables of earlier results that were made as this run makes its own."""

    def __init__(
        self, reuse: Reuse, manifest: WeightsManifest, embedding: EmbeddingSettings, log: logging.Logger
    ) -> None:
        self._reuse, self._manifest, self._embedding, self._log = reuse, manifest, embedding, log

    def tables(self) -> Iterator[Table]:
        """Those that may be used; a folder that has chunk files stands for these alone."""
        if "per_residue" in self._embedding.pooling:
            return
        formats = {TABLES[name].name: name for name in READ}
        for source in self._reuse.sources:
            if source.name in formats:
                found = [(source.parent / REPORT, [formats[source.name]])]
            elif source.is_file() or chunk_files_in(source):
                continue
            else:
                found = [(path, [*READ]) for path in sorted(source.rglob(REPORT))]
            for path, names in found:
                try:
                    record = read_record(path, SampleReport)
                except (RecordError, OSError) as error:
                    self._log.warning("the tables in %s are not used (%s)", path.parent, error)
                    continue
                there = [name for name in names if name in record.tables]
                if there and self._serves(record):
                    yield Table(str(source), path, record, there[0])

    def _serves(self, record: SampleReport) -> bool:
        wanted = identity(self._manifest, self._embedding)
        alike = all(serves(name, record.made_from, value) for name, value in wanted.items())
        return alike and record.provenance.dtype == "float32"

    def find(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which sequences the tables have, bool (n,); the tables themselves are not looked at."""
        found = np.zeros(len(digests), bool)
        for table in self.tables():
            try:
                found[self._hits(table, digests, None).place] = True
            except (UserError, OSError) as error:
                self._bad(table, error)
        return found

    def _bad(self, table: Table, error: Exception) -> None:
        path, reason = (error.path, error.reason) if isinstance(error, ChunkError) else (table.path, str(error))
        self._log.warning("%s can't be used (%s): its sequences are embedded", path, reason)

    def _hits(self, table: Table, digests: NDArray[np.uint8], lengths: NDArray[np.int32] | None) -> _Hits:
        """The rows of wanted sequences, the first one of each.

        Raises:
            UserError: the index is damaged.
        """
        runs = {chunk_number(run.chunk): run for run in table.record.chunks}
        allowed = [number for number, run in runs.items() if self._reuse.allows(_entries(run, self._embedding))]
        wanted = Rows([(0, digests)])
        rows, places, chunks = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        begin = 0
        for batch in read_index(table.index):
            file, found = wanted.find(batch.digest)
            here = np.flatnonzero((file != NONE) & np.isin(batch.chunk, allowed))
            if lengths is not None:
                here = here[batch.length[here] == lengths[found[here]]]
            rows.append((here + begin).astype(np.int64))
            places.append(found[here].astype(np.int64))
            chunks.append(batch.chunk[here])
            begin += len(batch)
        place = np.concatenate(places)
        first = np.sort(np.unique(place, return_index=True)[1])
        return _Hits(np.concatenate(rows)[first], place[first], np.concatenate(chunks)[first])

    def take(
        self, digests: NDArray[np.uint8], lengths: NDArray[np.int32], tensors: Path, numbers: Iterator[int]
    ) -> Taken:
        """As :meth:`virnucpro.storage.reuse.Sources.take`."""
        taken = Taken({}, {})
        left = np.arange(len(digests))
        for table in self.tables():
            if not len(left):
                break
            copied: list[tuple[Path, int, NDArray[np.int64]]] = []
            try:
                stamps = table.stamps()
                hits = self._hits(table, digests[left], lengths[left])
                if len(hits.row):
                    table.verify()
            except (UserError, OSError) as error:
                self._bad(table, error)
                continue
            per_row = 4 * table.record.provenance.embed_dim * len(self._columns(table))
            check_space(tensors, per_row * len(hits.row), f"copying rows from {table.source}")
            try:
                for output, number, places in self._copy(table, hits, digests[left], lengths[left], tensors, numbers):
                    copied.append((output, number, left[places]))
                if table.stamps() != stamps:
                    raise ChunkError(table.path, "it was changed while it was read")
            except (UserError, OSError) as error:
                for output, _, _ in copied:
                    output.unlink()
                self._bad(table, error)
                continue
            for output, number, places in copied:
                taken.chunks[number], taken.places[number] = read_chunk_file(output), places
                left = np.setdiff1d(left, places, assume_unique=True)
        return taken

    def _copy(
        self,
        table: Table,
        hits: _Hits,
        digests: NDArray[np.uint8],
        lengths: NDArray[np.int32],
        tensors: Path,
        numbers: Iterator[int],
    ) -> Iterator[tuple[Path, int, NDArray[np.int64]]]:
        """Write chunk files of the rows: each one's path, number, and the places of its sequences."""
        runs = {chunk_number(run.chunk): run for run in table.record.chunks}
        alike: dict[tuple[Any, ...], list[int]] = {}
        for number in np.unique(hits.chunk).tolist():
            run = runs[number]
            alike.setdefault((run.device, run.attention, run.attention_kernel, run.precisions), []).append(number)
        formats = _precisions(table)
        for some in alike.values():
            run, part = runs[some[0]], hits.of(some)
            try:
                codes = [run.precisions.index(formats[row]) for row in part.row.tolist()]
            except ValueError:
                raise ChunkError(table.report, f"{run.chunk} has other number formats than its rows") from None
            for begin, end, vectors in self._vectors(table, part.row):
                number, places = next(numbers), part.place[begin:end]
                output = tensors / f"{chunk_name(number)}.safetensors"
                of_rows: dict[str, NDArray[Any]] = {
                    "digests": np.ascontiguousarray(digests[places]),
                    "lengths": lengths[places],
                    "windows": piece_counts(lengths[places], self._embedding.long_proteins).astype(np.int32),
                    "embedded": embedded_residues(lengths[places], self._embedding.long_proteins).astype(np.int32),
                    "precision": np.array(codes[begin:end], np.uint8),
                }
                metadata = self._metadata(table, run, of_rows, output.stem)
                write_chunk_file(output, of_rows | vectors, metadata.to_entries())
                yield output, number, places

    def _vectors(
        self, table: Table, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, int, dict[str, NDArray[np.float32]]]]:
        """The vectors of rows, in files of :data:`FILE_BYTES`: from which of the rows to which, and tensors by name."""
        names = self._columns(table)
        at_once = max(1, FILE_BYTES // (4 * table.record.provenance.embed_dim * len(names)))
        sources = {name: _Picked(table, *column, rows) for name, column in names.items()}
        for begin in range(0, len(rows), at_once):
            end = min(begin + at_once, len(rows))
            yield begin, end, {name: source.take(end - begin) for name, source in sources.items()}

    def _columns(self, table: Table) -> dict[str, tuple[str, int]]:
        """Pooling and layer of the vectors that are wanted, by the names of their tensors."""
        kinds = [kind for kind in VECTORS if kind in self._embedding.pooling]
        return {f"{kind}.{layer}": (kind, layer) for kind in kinds for layer in table.record.provenance.layers}

    def _metadata(self, table: Table, run: ChunkRun, rows: Mapping[str, NDArray[Any]], chunk: str) -> ChunkMetadata:
        count, manifest = len(rows["lengths"]), self._manifest
        digest = digest_of_digests([rows["digests"].tobytes()])
        source = ChunkSource(chunk, digest, manifest.source_sha256, manifest.layers, manifest.demo)
        source = replace(source, weights_source=table.record.provenance.source, numbers=run.numbers)
        versions = table.record.provenance.versions
        names = sorted({name for some in versions for name in some})
        merged = {name: " + ".join(sorted({some[name] for some in versions if name in some})) for name in names}
        nothing = RunStatistics(count, int(rows["lengths"].sum()), 0, 0.0, 0.0, 0.0, 0, 0, 0)
        return ChunkMetadata(
            replace(source, reused_from=table.source),
            embedding_identity(manifest, self._embedding),
            DeviceRun(
                *(run.precisions, run.attention, run.attention_kernel, run.device, NOT_RECORDED, merged, nothing),
                host=platform.node(),
                ended=utc(time.time()),
            ),
        )


def _entries(run: ChunkRun, embedding: EmbeddingSettings) -> dict[str, str]:
    """What a chunk file of this run would say of its device and code."""
    return {"numbers": run.numbers, "device": run.device, "precision": embedding.precision}


def _precisions(table: Table) -> Sequence[str]:
    """The number format of each row.

    Raises:
        ChunkError: it differs, and the format of the table does not say whose is which.
    """
    formats = list(table.record.provenance.precisions)
    if len(formats) == 1:
        return formats * table.record.merged.records
    if table.format != "parquet":
        raise ChunkError(table.path, f"its rows are in {' and '.join(formats)}, and which is which Parquet alone says")
    return read_precisions(table.path)


class _Picked:
    """Vectors of rows of a table, rising, as they come from the disk."""

    def __init__(self, table: Table, kind: str, layer: int, rows: NDArray[np.int64]) -> None:
        self._table, self._rows = table, rows
        self._parts = self._read(kind, layer)
        self._rest = np.empty((0, table.record.provenance.embed_dim), np.float32)

    def _read(self, kind: str, layer: int) -> Iterator[NDArray[np.float32]]:
        begin = 0
        for part in read_parts(self._table.path, layer, kind):
            first, last = np.searchsorted(self._rows, (begin, begin + len(part)))
            yield np.asarray(part[self._rows[first:last] - begin], np.float32)
            begin += len(part)

    def take(self, count: int) -> NDArray[np.float32]:
        """The next rows, (count, D).

        Raises:
            ChunkError: the table has fewer, or numbers that are not finite.
        """
        held = [self._rest]
        while sum(map(len, held)) < count:
            part = next(self._parts, None)
            if part is None:
                raise ChunkError(self._table.path, f"it has fewer rows than {self._table.index}")
            held.append(part)
        whole = np.concatenate(held)
        self._rest = whole[count:]
        if not np.isfinite(whole[:count]).all():
            raise ChunkError(self._table.path, "it holds numbers that are not finite")
        return whole[:count]
