"""Read a sample's proteins, embed equal ones once, and cut the work into chunks of equal cost.

The files are read twice: once for digests and lengths (40 bytes a record are kept, in arrays), once to
write. So memory does not grow with the residues, and hardly with the records.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_directory, atomic_path
from virnucpro.base.digest import FileProof, digest_of_digests, residue_digest
from virnucpro.base.errors import UserError
from virnucpro.base.records import write_record
from virnucpro.base.settings import InputPolicies, LongProteins
from virnucpro.base.space import check_space
from virnucpro.chunking.cost import protein_costs
from virnucpro.chunking.index import BATCH_ROWS, IndexRows, IndexWriter
from virnucpro.chunking.manifest import SPLIT_RECORD, ChunkManifest, SplitRecord, SplitSettings, chunk_name
from virnucpro.chunking.size import chunk_count
from virnucpro.sequences.fasta import FastaRecord, description_of
from virnucpro.sequences.intake import PROTEINS, SKIPPED_TABLE, Intake, Kind, skipped_table
from virnucpro.sequences.repeats import first_of


@dataclass(frozen=True)
class SplitCounts:
    """What went into a sample's chunks.

    ``unique`` counts different sequences; ``replaced`` residues became ``X`` in ``replaced_records`` records;
    ``skipped`` records came in besides and are listed in the table; ``gapped`` records hold gaps, ``unknown`` ones are
    mostly ``X``.
    """

    records: int
    unique: int
    residues: int
    unique_residues: int
    longest: int
    replaced: int
    replaced_records: int
    chunks: int
    skipped: int = 0
    gapped: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class _Digested:
    """The first reading: one entry a record that is taken."""

    digests: NDArray[np.uint8]  # (n, 16) of the residues
    lengths: NDArray[np.int32]
    replaced: NDArray[np.int32]
    is_gapped: NDArray[np.bool_]
    is_unknown: NDArray[np.bool_]  # more than half of the residues are X


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
    skipped: Path | None = None,
    *,
    chunk_residues: int,
    embed_dim: int = 2560,
    multiple_of: int = 1,
    long_proteins: LongProteins = LongProteins(),
    policies: InputPolicies = InputPolicies(),
    made_as: Sequence[str] | None = None,
    kind: Kind = PROTEINS,
    logger: logging.Logger | None = None,
) -> SplitCounts:
    """Write a sample's index, its folder of chunks (``chunk_00000.fasta`` and ``.json`` each), and what was skipped.

    Equal input gives equal chunks, byte for byte. The outputs appear when all of it was read and is right. A sample
    without proteins (see ``policies``) has an index without rows and no chunks.

    Args:
        inputs: FASTA files, in the order that their records are to have.
        index: the Parquet file to write (see :mod:`virnucpro.chunking.index`).
        chunks: the folder to write; an older one is replaced.
        skipped: the table of skipped records to write; by default :data:`SKIPPED_TABLE` beside ``chunks``.
        chunk_residues: residues in a chunk, about.
        embed_dim: the model's width, for the quadratic part of the cost.
        multiple_of: round the number of chunks up to a multiple of this (see :func:`chunk_count`).
        long_proteins: how they will be run (see :func:`protein_costs`).
        policies: what is done about empty records, repeated ids and the like; by default they are errors.
        kind: what the records are, where they are no proteins.
        made_as: the sha256 of each file, where another step has made them and recorded it.

    Raises:
        UserError: a file that cannot be read or is not FASTA, or is not as it was made; or what the policies refuse.
    """
    if chunk_residues < 1:
        raise UserError(f"chunk_residues is {chunk_residues}; give a number of residues over 0")
    intake = Intake(inputs, kind, policies)
    seen = _digest_records(intake)
    if made_as is not None and intake.digests != list(made_as):
        raise UserError(
            f"{', '.join(map(str, inputs))}: changed or damaged since it was made: run the same command again"
        )
    costs = protein_costs(seen.lengths, embed_dim=embed_dim, long_proteins=long_proteins)
    plan = _plan(seen, costs, chunk_residues, multiple_of)
    is_new = plan.first == np.arange(len(plan.first))
    counts = SplitCounts(
        records=len(seen.lengths),
        unique=int(is_new.sum()),
        residues=int(seen.lengths.sum(dtype=np.int64)),
        unique_residues=int(seen.lengths[is_new].sum(dtype=np.int64)),
        longest=int(seen.lengths.max(initial=0)),
        replaced=int(seen.replaced.sum(dtype=np.int64)),
        replaced_records=int((seen.replaced > 0).sum()),
        chunks=len(plan.manifests),
        skipped=intake.skipped,
        gapped=int(seen.is_gapped.sum()),
        unknown=int(seen.is_unknown.sum()),
    )
    # Each different sequence with ">", an id and two line ends, and a digest a record that hardly packs.
    needed = counts.unique_residues + 4 * counts.unique + 16 * counts.records
    check_space(Path(chunks).parent, needed, f"splitting {counts.records:,} records")
    skipped = skipped or Path(chunks).with_name(SKIPPED_TABLE)
    settings = SplitSettings(chunk_residues, multiple_of, embed_dim, long_proteins, policies)
    with (
        atomic_path(index) as index_file,
        skipped_table(skipped) as skip,
        atomic_directory(chunks) as folder,
    ):
        _write(
            intake.second_reading(skip),
            intake.changed,
            index_file,
            folder,
            seen,
            plan,
            described=policies.duplicate_ids != "header",
        )
        chunk_digests = tuple(manifest.digest for manifest in plan.manifests)
        digests = tuple(intake.digests)
        write_record(
            folder / SPLIT_RECORD,
            SplitRecord(digests, settings, asdict(counts), FileProof.of(index_file), chunk_digests),
        )
    _log(counts, skipped, logger or logging.getLogger(__name__))
    return counts


def _log(counts: SplitCounts, skipped: Path, log: logging.Logger) -> None:
    log.info(
        "%d records of %d residues: %d different sequences in %d chunks, the longest of %d residues",
        *(counts.records, counts.residues, counts.unique, counts.chunks, counts.longest),
    )
    if not counts.records:
        log.warning("no protein in this sample: its tables will have no rows")
    if counts.skipped:
        log.warning("%d records were skipped: %s lists them", counts.skipped, skipped)
    if counts.replaced:
        log.warning(
            "%d residues (inner '*' or 'J') in %d records have no token and became X",
            *(counts.replaced, counts.replaced_records),
        )
    if counts.gapped:
        log.warning("%d records hold gaps ('-' or '.'), which are embedded as such", counts.gapped)
    if counts.unknown:
        log.warning("%d records are mostly X (unknown residues): their embeddings say little", counts.unknown)


def _digest_records(intake: Intake) -> _Digested:
    digests = bytearray()
    lengths, replaced = array("i"), array("i")
    is_gapped, is_unknown = bytearray(), bytearray()
    for record in intake.first_reading():
        sequence = record.sequence
        digests += residue_digest(sequence)
        lengths.append(len(sequence))
        replaced.append(record.replaced)
        is_gapped.append(b"-" in sequence or b"." in sequence)
        is_unknown.append(2 * sequence.count(b"X") > len(sequence))
    taken = intake.is_taken
    return _Digested(
        np.frombuffer(digests, np.uint8).reshape(-1, 16)[taken],
        np.frombuffer(lengths, np.int32)[taken],
        np.frombuffer(replaced, np.int32)[taken],
        np.frombuffer(is_gapped, bool)[taken],
        np.frombuffer(is_unknown, bool)[taken],
    )


def _plan(seen: _Digested, costs: NDArray[np.float64], chunk_residues: int, multiple_of: int) -> _Plan:
    first = first_of(seen.digests)
    unique = np.flatnonzero(first == np.arange(len(first)))
    lengths = seen.lengths[unique].astype(np.int64)
    count = chunk_count(int(lengths.sum()), len(unique), chunk_residues, multiple_of)
    chunk_of = assign_chunks(costs[unique], count)
    starts = np.flatnonzero(np.diff(chunk_of, prepend=-1))
    ends = np.append(starts, len(unique))[1:]
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
    records: Iterator[FastaRecord],
    changed: Callable[[], UserError],
    index: Path,
    folder: Path,
    seen: _Digested,
    plan: _Plan,
    *,
    described: bool,
) -> None:
    """The second reading: the index, and the folder of chunks; not ``described`` where ids are the whole headers."""
    count = len(plan.first)
    with closing(IndexWriter(index)) as writer, closing(_ChunkFolder(folder)) as out:
        for start in range(0, count, BATCH_ROWS):
            rows = slice(start, min(start + BATCH_ROWS, count))
            ids, descriptions = [], []
            is_new = (plan.first[rows] == np.arange(rows.start, rows.stop)).tolist()
            lengths = seen.lengths[rows].tolist()
            for length, new, chunk in zip(lengths, is_new, plan.chunk[rows].tolist(), strict=True):
                record = next(records, None)
                if record is None or len(record.sequence) != length:
                    raise changed()
                ids.append(record.id)
                descriptions.append(description_of(record.header) if described else "")
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
                    descriptions=descriptions,
                )
            )
    if next(records, None) is not None:
        raise changed()
    for manifest in plan.manifests:
        write_record(folder / f"{manifest.chunk}.json", manifest)


def assign_chunks(costs: NDArray[np.float64], count: int) -> NDArray[np.int32]:
    """The chunk of each protein, (n,), rising from 0 without gaps.

    Each chunk ends where its share of the total cost ends: a protein goes where its middle is, so no
    chunk is off its share by more than one protein. A protein that costs more than a whole share leaves fewer
    chunks than asked for, not empty ones.
    """
    if costs.size == 0:
        return np.zeros(0, np.int32)
    middle = np.cumsum(costs) - costs / 2
    total = float(middle[-1] + costs[-1] / 2)
    wanted = np.minimum((middle * (count / total)).astype(np.int64), count - 1)
    steps = np.diff(wanted, prepend=wanted[0]) > 0
    return np.cumsum(steps).astype(np.int32)
