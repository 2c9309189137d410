"""Chunk files into one table a sample: every record that came in, in input order, each row proved to be its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import remove
from virnucpro.base.digest import files_of
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space
from virnucpro.base.records import write_record
from virnucpro.base.settings import VECTORS
from virnucpro.chunking.index import IndexRows, read_index
from virnucpro.chunking.manifest import SampleSplit, SplitRecord, read_split
from virnucpro.storage.chunk_file import ChunkError, ChunkFile, Verification, read_chunk_file
from virnucpro.storage.chunk_metadata import ChunkMetadata
from virnucpro.storage.provenance import chunk_run, origin_name, precision_name, provenance, table_layout
from virnucpro.storage.report_record import MergeCounts, SampleReport
from virnucpro.storage.row_reader import RowReader, finite, residues_used, rows_used
from virnucpro.storage.sizes import table_bytes
from virnucpro.storage.tables import TABLES, WITHOUT_VECTORS, check_formats, open_table
from virnucpro.storage.tables.rows import Layout, Rows

BATCH_BYTES = 1 << 25
"""Bytes of embeddings in hand at a time; also about the size of a Parquet row group."""


def merge_embeddings(
    index: Path,
    chunks: Path,
    tensors: Path,
    outputs: Mapping[str, Path],
    report: Path,
    *,
    expected: Mapping[str, str],
    made_from: Mapping[str, str] = MappingProxyType({}),
    dtype: str = "float32",
    records_per_file: int = 10_000,
    command: str | None = None,
    split: SplitRecord | None = None,
    verified: dict[int, ChunkFile] | None = None,
    threads: int = 4,
    logger: logging.Logger | None = None,
) -> MergeCounts:
    """Write a sample's tables, and their report, while its chunk files are verified.

    Tables are put in place when every chunk file has been found whole. Memory does not grow with the records.

    Args:
        index, chunks: the sample's index and the folder of chunks, as the split wrote them.
        tensors: the folder of chunk files.
        outputs: format (see :data:`virnucpro.storage.tables.TABLES`) to path.
        report: the record to write (:class:`SampleReport`), last, beside the tables or above them.
        expected: metadata entries that every chunk file must have (model, weights_sha256, layers, ...).
        made_from: settings that decide what the tables hold, for their record.
        dtype: ``float32`` or ``float16``, of the tables.
        records_per_file: records in a file of ``virnucpro_pt``.
        command: what the user ran, for the provenance; by default this process's command line.
        split: the record of the split, where it was read already.
        verified: chunk files by their numbers that this process has verified, which are not read again for each of
            several samples; those that this sample needs are added.
        threads: chunk files hashed at the same time.

    Raises:
        UserError: chunk files are missing, or bad (then renamed to ``NAME.bad``); nothing is written.
    """
    log = logger or logging.getLogger(__name__)
    if outputs:
        check_formats(list(outputs))
    record = split or read_split(chunks)
    sample = record.of_index(index)
    verified = {} if verified is None else verified
    unknown = [number for number in sample.chunks if number not in verified]
    records = windowed = truncated = 0
    with ExitStack() as stack:
        verification = stack.enter_context(_verifying(record, tensors, expected, unknown, threads))
        opened = verified | {number: read_chunk_file(path) for number, path in verification.paths.items()}
        chunk_files = [opened[number] for number in sample.chunks]
        rows_of = rows_used(index, sample.chunks)
        layout = _layout(index, sample, chunk_files, expected, dtype, records_per_file, report.parent)
        _check_space(report.parent, outputs, layout)
        metadata = [ChunkMetadata.from_entries(chunk.metadata, chunk.path) for chunk in chunk_files]
        origin = provenance(chunk_files, rows_of, metadata, expected, sample, layout, command)
        tables = [stack.enter_context(open_table(name, Path(path), layout, origin)) for name, path in outputs.items()]
        reader = stack.enter_context(RowReader(chunk_files))
        has_vectors = bool(outputs.keys() - WITHOUT_VECTORS)
        wanted = layout if has_vectors else replace(layout, means=(), bos=(), maxima=(), residues=())
        for rows in _one_ahead(_gather(index, sample.chunks, chunk_files, metadata, reader, wanted)):
            for table in tables:
                table.write(rows)
            records += len(rows)
            windowed += sum(word.startswith("windows") for word in rows.treatment)
            truncated += sum(word.startswith("truncated") for word in rows.treatment)
        if records != sample.counts["records"]:
            raise UserError(f"{index}: {records} rows where {sample.counts['records']} are promised; run again")
        verified |= verification.result()
        log.info("%d chunk files verified", len(chunk_files))
    counts = MergeCounts(records, sample.counts["unique"], windowed, truncated, layout.embed_dim)
    parts = {name: [chunk.path for chunk in chunk_files] for name in outputs if name in WITHOUT_VECTORS}
    files = {
        name: files_of(
            [Path(path), *parts.get(name, [])],
            report.parent,
            {Path(path) / file: proof for file, proof in table.proofs.items()},
        )
        for (name, path), table in zip(outputs.items(), tables, strict=True)
    }
    origin_of_tables = {**made_from, "index": sample.index.sha256, **expected}
    runs = tuple(map(chunk_run, metadata, map(len, rows_of)))
    write_record(report, SampleReport(origin_of_tables, origin, counts, files, runs))
    _remove_what_no_longer_belongs(report.parent, outputs, log)
    log.info("%d records written to %s", records, ", ".join(map(str, outputs.values())))
    return counts


@contextmanager
def _verifying(
    split: SplitRecord, tensors: Path, expected: Mapping[str, str], numbers: Sequence[int], threads: int
) -> Iterator[Verification]:
    """Chunk files verified while the block reads them; where it fails and one is bad, the error is that one's."""
    with Verification(split, tensors, expected, numbers=numbers, threads=threads) as verification:
        try:
            yield verification
        except Exception:
            verification.result()
            raise


def _layout(
    index: Path,
    sample: SampleSplit,
    chunk_files: Sequence[ChunkFile],
    expected: Mapping[str, str],
    dtype: str,
    records_per_file: int,
    folder: Path,
) -> Layout:
    """What the tables will hold, counted. ``folder`` is the sample's."""
    layout = table_layout(chunk_files, expected, dtype, records_per_file)
    if not layout.names:
        raise UserError(f"{chunk_files[0].path} holds no embeddings; run the embedding with a pooling")
    return replace(
        layout,
        chunk_files=tuple((os.path.relpath(chunk.path, folder), chunk.metadata["checksum"]) for chunk in chunk_files),
        records=sample.counts["records"],
        residue_rows=residues_used(index, sample.chunks, chunk_files) if layout.residues else 0,
    )


def _check_space(folder: Path, formats: Iterable[str], layout: Layout) -> None:
    """Refuse to begin what the disk can't hold. Old tables stay until the new ones are whole."""
    sizes = table_bytes(
        formats,
        layout.records,
        layout.residue_rows,
        embed_dim=layout.embed_dim,
        layers=max(map(len, layout.kinds.values())),
        pooling=[kind if kind in VECTORS else "per_residue" for kind, layers in layout.kinds.items() if layers],
        dtype=layout.dtype,
    )
    largest = max((size for name, size in sizes.items() if name != "virnucpro_pt"), default=0)
    check_space(folder, sum(sizes.values()), f"writing the tables of {layout.records:,} records", largest=largest)


def _remove_what_no_longer_belongs(folder: Path, outputs: Mapping[str, Path], log: logging.Logger) -> None:
    """Tables of formats that are no longer asked for."""
    kept = {Path(path).name for path in outputs.values()}
    names = [table.name for table in TABLES.values() if table.name not in kept]
    for path in [folder / name for name in names if (folder / name).exists()]:
        remove(path)
        log.info("removed %s, which is of earlier settings or inputs", path)


def _one_ahead(batches: Iterator[Rows]) -> Iterator[Rows]:
    """The same, each read by a thread while the one before it is being written."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (rows := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield rows


def _gather(
    index: Path,
    numbers: Sequence[int],
    chunks: Sequence[ChunkFile],
    metadata: Sequence[ChunkMetadata],
    reader: RowReader,
    layout: Layout,
) -> Iterator[Rows]:
    """The table's rows in input order, so many at a time as :data:`BATCH_BYTES` allows."""
    facts = [(one.run.precisions, origin_name(one)) for one in metadata]
    per_vector = 4 * layout.embed_dim
    kept = sum(len(layout.kinds[kind]) for kind in VECTORS)
    at_once = max(1, BATCH_BYTES // (per_vector * max(1, kept)))
    for batch in read_index(index, batch_rows=at_once, chunks=numbers):
        if not layout.residues:
            yield _rows(batch, slice(0, len(batch)), chunks, reader, layout, facts)
            continue
        cost = np.cumsum(batch.length.astype(np.int64)) * per_vector * len(layout.residues)
        breaks = np.flatnonzero(np.diff(cost // BATCH_BYTES)) + 1
        for start, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(batch)], strict=True):
            yield _rows(batch, slice(start, end), chunks, reader, layout, facts)


def _rows(
    batch: IndexRows,
    part: slice,
    chunks: Sequence[ChunkFile],
    reader: RowReader,
    layout: Layout,
    facts: Sequence[tuple[Sequence[str], str]],
) -> Rows:
    numbers, row_numbers = batch.chunk[part], batch.row[part]
    n = len(numbers)
    windows, embedded = np.empty(n, np.int32), np.empty(n, np.int32)
    used, origin = [""] * n, [""] * n
    vectors = {
        kind: {layer: np.empty((n, layout.embed_dim), np.float32) for layer in layout.kinds[kind]} for kind in VECTORS
    }
    counts = np.zeros(n, np.int64)
    spans = []
    for number in np.unique(numbers).tolist():
        here = np.flatnonzero(numbers == number)
        rows = row_numbers[here]
        reader.check(number, rows, batch, here + part.start)
        windows[here] = reader.rows(number, "windows", rows)
        embedded[here] = reader.rows(number, "embedded", rows)
        for position, code in zip(here.tolist(), reader.rows(number, "precision", rows).tolist(), strict=True):
            used[position] = precision_name(facts[number][0], code)
            origin[position] = facts[number][1]
        for kind, layers in vectors.items():
            for layer, values in layers.items():
                values[here] = finite(chunks[number], reader.rows(number, f"{kind}.{layer}", rows))
        if layout.residues:
            begins, counts[here] = reader.spans(number, f"residues.{layout.residues[0]}", rows)
            if not np.array_equal(counts[here], embedded[here]):
                raise ChunkError(chunks[number].path, "its residues are not those that it says were embedded")
            spans.append((number, begins, here))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    residues = {
        layer: _residues(f"residues.{layer}", chunks, reader, spans, counts, offsets) for layer in layout.residues
    }
    lengths = batch.length[part]
    runs = zip(windows.tolist(), embedded.tolist(), lengths.tolist(), strict=True)
    return Rows(
        ids=batch.ids[part],
        length=lengths,
        treatment=[_treatment(*run) for run in runs],
        precision=used,
        origin=origin,
        replaced=batch.replaced[part],
        descriptions=batch.descriptions[part],
        mean=vectors["mean"],
        bos=vectors["bos"],
        maxima=vectors["max"],
        residues=residues,
        offsets=offsets,
        chunk=numbers,
        row=row_numbers,
    )


def _treatment(windows: int, embedded: int, length: int) -> str:
    if embedded < length:
        return f"truncated:{embedded}"
    return "whole" if windows == 1 else f"windows:{windows}"


def _residues(
    name: str,
    chunks: Sequence[ChunkFile],
    reader: RowReader,
    spans: Sequence[tuple[int, NDArray[np.int64], NDArray[np.int64]]],
    counts: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> NDArray[Any]:
    """One layer of the records' residues, each read to its place.

    Args:
        spans: chunk by chunk its number, where its proteins begin in it, and which records they are.
    """
    dtypes = [chunks[number].layout[name][0] for number, _, _ in spans]
    out = np.empty((int(offsets[-1]), chunks[spans[0][0]].layout[name][1][1]), np.result_type(*dtypes))
    for number, begins, here in spans:
        reader.ragged_into(number, name, begins, counts[here], out, offsets[here])
    return out
