"""Read a sample's proteins, embed equal ones once, and cut the work into chunks of equal cost.

The files are read twice: once for digests and lengths (40 bytes a record are kept, in arrays), once to
write. So memory does not grow with the residues, and hardly with the records.

Cut a list of proteins into contiguous chunks of equal cost.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_directory, atomic_path
from virnucpro.base.digest import FileProof, digest_of_digests, file_sha256, residue_digest
from virnucpro.base.errors import UserError
from virnucpro.base.records import write_record
from virnucpro.chunking.cost import protein_costs
from virnucpro.chunking.manifest import SPLIT_RECORD, ChunkManifest, SplitRecord, SplitSettings, chunk_name
from virnucpro.chunking.size import chunk_count
from virnucpro.sequences.fasta import FastaRecord, read_fasta
from virnucpro.sequences.repeats import SeenIds, first_of
from virnucpro.storage.index import BATCH_ROWS, IndexRows, IndexWriter


@dataclass(frozen=True)
class SplitCounts:
    """What went into a sample's chunks.

    ``unique`` counts different sequences; ``replaced`` residues became ``X`` in ``replaced_records`` records.
    """

    records: int
    unique: int
    residues: int
    unique_residues: int
    longest: int
    replaced: int
    replaced_records: int
    chunks: int


@dataclass(frozen=True)
class _Digested:
    """The first reading: one entry a record."""

    digests: NDArray[np.uint8]  # (n, 16) of the residues
    lengths: NDArray[np.int32]
    replaced: NDArray[np.int32]


@dataclass(frozen=True)
class _Plan:
    """Where each record's embedding will be, (n,); and for each chunk where its unique proteins begin and end."""

    first: NDArray[np.int64]
    chunk: NDArray[np.int32]
    row: NDArray[np.int32]
    manifests: list[ChunkManifest]


def split_proteins(
    inputs: Sequence[Path],
    index: Path,
    chunks: Path,
    *,
    chunk_residues: int,
    embed_dim: int = 2560,
    multiple_of: int = 1,
    policy: str = "window",
    longest: int = 1022,
    overlap: int = 511,
    logger: logging.Logger | None = None,
) -> SplitCounts:
    """Write a sample's index and its folder of chunks (``chunk_00000.fasta`` and ``.json`` each).

    Equal input gives equal chunks, byte for byte. Both outputs appear when all of it was read and is right.

    Args:
        inputs: protein FASTA files, in the order their records shall have.
        index: the Parquet file to write (see :mod:`virnucpro.storage.index`).
        chunks: the folder to write; an older one is replaced.
        chunk_residues: residues in a chunk, about.
        embed_dim: the model's width, for the quadratic part of the cost.
        multiple_of: round the number of chunks up to a multiple of this (see :func:`chunk_count`).
        policy, longest, overlap: how long proteins will be run (see :func:`protein_costs`).

    Raises:
        UserError: a file that cannot be read or is not FASTA, an id that occurs twice, an empty record.
    """
    if not inputs:
        raise UserError("no FASTA file was given for this sample; name at least one")
    if chunk_residues < 1:
        raise UserError(f"chunk_residues is {chunk_residues}; give a number of residues over 0")
    before = _stamps(inputs)
    seen = _digest_records(inputs)
    costs = protein_costs(seen.lengths, embed_dim=embed_dim, policy=policy, longest=longest, overlap=overlap)
    plan = _plan(seen, costs, chunk_residues, multiple_of)
    is_new = plan.first == np.arange(len(plan.first))
    counts = SplitCounts(
        records=len(seen.lengths),
        unique=int(is_new.sum()),
        residues=int(seen.lengths.sum(dtype=np.int64)),
        unique_residues=int(seen.lengths[is_new].sum(dtype=np.int64)),
        longest=int(seen.lengths.max()),
        replaced=int(seen.replaced.sum(dtype=np.int64)),
        replaced_records=int((seen.replaced > 0).sum()),
        chunks=len(plan.manifests),
    )
    settings = SplitSettings(chunk_residues, multiple_of, embed_dim, policy, longest, overlap)
    with atomic_path(index) as index_file, atomic_directory(chunks) as folder:
        _write(inputs, index_file, folder, seen, plan, counts)
        digests = tuple(file_sha256(path) for path in inputs)
        if _stamps(inputs) != before:
            raise _changed(inputs)
        chunk_digests = tuple(manifest.digest for manifest in plan.manifests)
        record = SplitRecord(digests, settings, asdict(counts), FileProof.of(index_file), chunk_digests)
        write_record(folder / SPLIT_RECORD, record)
    log = logger or logging.getLogger(__name__)
    log.info(
        "%d records of %d residues: %d different sequences in %d chunks, the longest of %d residues",
        *(counts.records, counts.residues, counts.unique, counts.chunks, counts.longest),
    )
    if counts.replaced:
        log.warning(
            "%d residues (inner '*' or 'J') in %d records have no token and became X",
            *(counts.replaced, counts.replaced_records),
        )
    return counts


def _stamps(inputs: Sequence[Path]) -> list[tuple[int, int, int, int]]:
    """Which file each is, its size and times of change; a missing one is reported when it is opened."""
    stats = [Path(path).stat() for path in inputs if Path(path).exists()]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]


def _changed(inputs: Sequence[Path]) -> UserError:
    names = ", ".join(map(str, inputs))
    return UserError(f"{names}: changed while being read; run the same command again when no one writes to it")


def _records(inputs: Sequence[Path]) -> Iterator[FastaRecord]:
    for path in inputs:
        yield from read_fasta(path)


def _digest_records(inputs: Sequence[Path]) -> _Digested:
    digests, ids = bytearray(), SeenIds()
    lengths, replaced = array("i"), array("i")
    for record in _records(inputs):
        digests += residue_digest(record.sequence)
        ids.add(record.id)
        lengths.append(len(record.sequence))
        replaced.append(record.replaced)
    ids.refuse_repeats(inputs)
    return _Digested(
        np.frombuffer(digests, np.uint8).reshape(-1, 16),
        np.frombuffer(lengths, np.int32),
        np.frombuffer(replaced, np.int32),
    )


def _plan(seen: _Digested, costs: NDArray[np.float64], chunk_residues: int, multiple_of: int) -> _Plan:
    first = first_of(seen.digests)
    unique = np.flatnonzero(first == np.arange(len(first)))
    lengths = seen.lengths[unique].astype(np.int64)
    count = chunk_count(int(lengths.sum()), len(unique), chunk_residues, multiple_of)
    chunk_of = assign_chunks(costs[unique], count)
    starts = np.flatnonzero(np.diff(chunk_of, prepend=-1))
    ends = np.append(starts[1:], len(unique))
    row_of = (np.arange(len(unique)) - starts[chunk_of]).astype(np.int32)
    manifests = []
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        rows = unique[start:end]
        manifests.append(
            ChunkManifest(
                chunk=chunk_name(number),
                proteins=end - start,
                residues=int(lengths[start:end].sum()),
                cost=round(float(costs[rows].sum())),
                digest=digest_of_digests([seen.digests[rows].tobytes()]),
            )
        )
    rank = np.searchsorted(unique, first)
    return _Plan(first, chunk_of[rank], row_of[rank], manifests)


class _ChunkFolder:
    """Writes unique proteins to their chunks' FASTA files, one open at a time: chunks are runs of the input."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = -1
        self._out: BinaryIO | None = None

    def add(self, chunk: int, record: FastaRecord) -> None:
        if self._out is None or chunk != self._number:
            self.close()
            self._number = chunk
            self._out = (self._folder / f"{chunk_name(chunk)}.fasta").open("wb")
        self._out.write(b">%b\n%b\n" % (record.id.encode(), record.sequence))

    def close(self) -> None:
        if self._out is not None:
            self._out.close()


def _write(
    inputs: Sequence[Path],
    index: Path,
    folder: Path,
    seen: _Digested,
    plan: _Plan,
    counts: SplitCounts,
) -> None:
    """The second reading: the index, and the folder of chunks."""
    records = _records(inputs)
    with closing(IndexWriter(index)) as writer, closing(_ChunkFolder(folder)) as out:
        for start in range(0, counts.records, BATCH_ROWS):
            rows = slice(start, min(start + BATCH_ROWS, counts.records))
            ids = []
            is_new = (plan.first[rows] == np.arange(rows.start, rows.stop)).tolist()
            lengths = seen.lengths[rows].tolist()
            for length, new, chunk in zip(lengths, is_new, plan.chunk[rows].tolist(), strict=True):
                record = next(records, None)
                if record is None or len(record.sequence) != length:
                    raise _changed(inputs)
                ids.append(record.id)
                if new:
                    out.add(chunk, record)
            writer.write(
                IndexRows(
                    ids,
                    length=seen.lengths[rows],
                    digest=seen.digests[rows],
                    chunk=plan.chunk[rows],
                    row=plan.row[rows],
                    replaced=seen.replaced[rows],
                )
            )
    if next(records, None) is not None:
        raise _changed(inputs)
    for manifest in plan.manifests:
        write_record(folder / f"{manifest.chunk}.json", manifest)


def assign_chunks(costs: NDArray[np.float64], count: int) -> NDArray[np.int32]:
    """The chunk of each protein, (n,), rising from 0 without gaps.

    Each chunk ends where its share of the total cost ends: a protein goes where its middle lies, so no
    chunk is off its share by more than one protein. A protein dearer than a whole share leaves fewer
    chunks than asked for, not empty ones.
    """
    if costs.size == 0:
        return np.zeros(0, np.int32)
    middle = np.cumsum(costs) - costs / 2
    total = float(middle[-1] + costs[-1] / 2)
    wanted = np.minimum((middle * (count / total)).astype(np.int64), count - 1)
    steps = np.diff(wanted, prepend=wanted[0]) > 0
    return np.cumsum(steps).astype(np.int32)
