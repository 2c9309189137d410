"""Read the proteins of samples, embed equal ones once, and cut the work into chunks of equal cost.

All samples of a run are split together: what two of them share is embedded once, and small ones share chunks. What is
embedded already (:class:`Found`) is cut no more. The files are read twice: once for digests and lengths (40 bytes a
record are kept, in arrays), once to write. So memory does not grow with the residues, and hardly with the records.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import count as count_from
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_directory, atomic_path
from virnucpro.base.digest import FileProof, digest_of_digests, residue_digest
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space
from virnucpro.base.records import write_record
from virnucpro.chunking.cost import assign_chunks, protein_costs
from virnucpro.chunking.index import BATCH_ROWS, IndexRows, IndexWriter
from virnucpro.chunking.manifest import (
    SPLIT_RECORD,
    ChunkManifest,
    SampleSplit,
    SplitChunk,
    SplitRecord,
    SplitSettings,
    chunk_name,
)
from virnucpro.chunking.size import chunk_count
from virnucpro.sequences.fasta import FastaRecord, description_of
from virnucpro.sequences.intake import PROTEINS, Intake, Kind, Skipped, first_of, skipped_table

MOST_LINES = 20
"""Samples of which the log has a line each."""


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
class ToSplit:
    """A sample that is to be split.

    Attributes:
        inputs: FASTA files, in the order that their records are to have.
        index: the Parquet file to write (see :mod:`virnucpro.chunking.index`).
        skipped: the table of skipped records to write.
        made_as: the sha256 of each file, where another step has made them and recorded it.
    """

    inputs: Sequence[Path]
    index: Path
    skipped: Path
    made_as: Sequence[str] | None = None


@dataclass
class Found:
    """Which of n different sequences are embedded already, and where.

    ``chunk`` is the number of the chunk file, -1 where there is none, and ``row`` the row there, each int32 (n,);
    ``chunks`` describes the chunk files by their numbers, ``taken`` are all numbers that no new chunk may have, and
    ``reused`` says which sequences came from elsewhere, bool (n,).
    """

    chunk: NDArray[np.int32]
    row: NDArray[np.int32]
    chunks: dict[int, SplitChunk] = field(default_factory=dict)
    taken: frozenset[int] = frozenset()
    reused: NDArray[np.bool_] | None = None
    sources: str = ""


Find = Callable[[NDArray[np.uint8], NDArray[np.int32]], Found]
"""Looks for sequences by their digests, (n, 16), and lengths, (n,)."""


@dataclass(frozen=True)
class _Plan:
    """Where each record's embedding will be, by place in the order of all samples' records.

    ``first`` is the place of the first record with the same sequence, int64 (n,); ``chunk`` and ``row`` are int32 (n,).
    ``manifests`` are of the chunks that are to be embedded, ``chunks`` of all, by number.
    """

    first: NDArray[np.int64]
    chunk: NDArray[np.int32]
    row: NDArray[np.int32]
    manifests: list[ChunkManifest]
    chunks: dict[int, SplitChunk]
    counts: dict[str, int]
    sources: str


def split_samples(
    samples: Mapping[str, ToSplit],
    chunks: Path,
    settings: SplitSettings,
    *,
    kind: Kind = PROTEINS,
    find: Find | None = None,
    logger: logging.Logger | None = None,
) -> SplitRecord:
    """Write each sample's index and what was skipped of it, and the chunks that are left to embed.

    The folder ``chunks`` gets ``chunk_00000.fasta`` and ``.json`` for each and the record of the split; an older one is
    replaced. Equal input gives equal chunks, byte for byte. The outputs appear when all of it was read and is right.
    Samples without proteins (see ``policies``) have an index without rows and no chunks.

    Args:
        kind: what the records are, where they are no proteins.
        find: looks for what is embedded already; None where nothing is.

    Raises:
        UserError: a file that cannot be read or is not FASTA, or is not as it was made; or what the policies refuse.
    """
    if settings.chunk_residues < 1:
        raise UserError(f"chunk_residues is {settings.chunk_residues}; give a number of residues over 0")
    log = logger or logging.getLogger(__name__)
    intakes = {name: Intake(sample.inputs, kind, settings.policies) for name, sample in samples.items()}
    seen = {name: _digest_records(intake) for name, intake in intakes.items()}
    for name, sample in samples.items():
        if sample.made_as is not None and intakes[name].digests != list(sample.made_as):
            listed = ", ".join(map(str, sample.inputs))
            raise UserError(f"{listed}: changed or damaged since it was made: run the same command again")
    plan = _plan(list(seen.values()), settings, find)
    ends = np.cumsum([len(one.lengths) for one in seen.values()]).tolist()
    places = {name: slice(end - len(one.lengths), end) for (name, one), end in zip(seen.items(), ends, strict=True)}
    counts = {
        name: _counts(seen[name], intakes[name].skipped, plan.chunk[place], plan.row[place])
        for name, place in places.items()
    }
    # Each different sequence with ">", an id and two line ends, and a digest a record that hardly packs.
    needed = sum(manifest.residues + 4 * manifest.proteins for manifest in plan.manifests)
    needed += 16 * sum(count.records for count in counts.values())
    check_space(Path(chunks).parent, needed, f"splitting {sum(count.records for count in counts.values()):,} records")
    with ExitStack() as stack:
        # Written first and in place last: the record names everything else.
        folder = stack.enter_context(atomic_directory(chunks))
        out = stack.enter_context(closing(_ChunkFasta(folder)))
        done = {}
        for name, sample in samples.items():
            with atomic_path(sample.index) as index, skipped_table(sample.skipped) as skip:
                described = settings.policies.duplicate_ids != "header"
                _write(intakes[name], skip, index, out, seen[name], plan, places[name], described=described)
                proof = FileProof.of(index)
            used = tuple(np.unique(plan.chunk[places[name]]).tolist())
            done[name] = SampleSplit(tuple(intakes[name].digests), asdict(counts[name]), proof, used)
        out.close()
        for manifest in plan.manifests:
            write_record(folder / f"{manifest.chunk}.json", manifest)
        named = {chunk_name(number): plan.chunks[number] for number in sorted(plan.chunks)}
        record = SplitRecord(settings, done, named, plan.counts, plan.sources)
        write_record(folder / SPLIT_RECORD, record)
    for name, sample in samples.items():
        _log(name if len(samples) > 1 else "", counts[name], sample.skipped, log, short=len(samples) > MOST_LINES)
    if len(samples) > 1 or plan.counts["kept"] or plan.counts["reused"]:
        log.info(
            "%d different sequences in all: %d embedded before in this folder, %d taken from earlier results, %d to "
            "embed in %d chunks",
            *(plan.counts[name] for name in ("unique", "kept", "reused")),
            plan.counts["unique"] - plan.counts["kept"] - plan.counts["reused"],
            len(plan.manifests),
        )
    return record


def _counts(seen: _Digested, skipped: int, chunk: NDArray[np.int32], row: NDArray[np.int32]) -> SplitCounts:
    _, first = np.unique(chunk.astype(np.int64) << 32 | row, return_index=True)
    return SplitCounts(
        records=len(seen.lengths),
        unique=len(first),
        residues=int(seen.lengths.sum(dtype=np.int64)),
        unique_residues=int(seen.lengths[first].sum(dtype=np.int64)),
        longest=int(seen.lengths.max(initial=0)),
        replaced=int(seen.replaced.sum(dtype=np.int64)),
        replaced_records=int((seen.replaced > 0).sum()),
        chunks=len(np.unique(chunk)),
        skipped=skipped,
        gapped=int(seen.is_gapped.sum()),
        unknown=int(seen.is_unknown.sum()),
    )


def _log(name: str, counts: SplitCounts, skipped: Path, log: logging.Logger, *, short: bool) -> None:
    """Say what was read; ``short`` where it must be known alone."""
    of = f"{name}: " if name else ""
    if not short:
        log.info(
            "%s%d records of %d residues: %d different sequences in %d chunks, the longest of %d residues",
            *(of, counts.records, counts.residues, counts.unique, counts.chunks, counts.longest),
        )
    if not counts.records:
        log.warning("%sno protein in this sample: its tables will have no rows", of)
    if counts.skipped:
        log.warning("%s%d records were skipped: %s lists them", of, counts.skipped, skipped)
    if counts.replaced:
        log.warning(
            "%s%d residues (inner '*' or 'J') in %d records have no token and became X",
            *(of, counts.replaced, counts.replaced_records),
        )
    if counts.gapped:
        log.warning("%s%d records hold gaps ('-' or '.'), which are embedded as such", of, counts.gapped)
    if counts.unknown:
        log.warning("%s%d records are mostly X (unknown residues): their embeddings say little", of, counts.unknown)


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


def _plan(samples: Sequence[_Digested], settings: SplitSettings, find: Find | None) -> _Plan:
    digests = np.concatenate([sample.digests for sample in samples])
    lengths = np.concatenate([sample.lengths for sample in samples])
    first = first_of(digests)
    unique = np.flatnonzero(first == np.arange(len(first)))
    if find is not None and len(unique):
        found = find(digests[unique], lengths[unique])
    else:
        found = Found(np.full(len(unique), -1, np.int32), np.zeros(len(unique), np.int32))
    chunk, row, chunks = found.chunk.copy(), found.row.copy(), dict(found.chunks)
    left = np.flatnonzero(chunk < 0)
    rows = unique[left]
    count = chunk_count(
        int(lengths[rows].sum(dtype=np.int64)), len(rows), settings.chunk_residues, settings.multiple_of
    )
    costs = protein_costs(lengths[rows], embed_dim=settings.embed_dim, long_proteins=settings.long_proteins)
    chunk_of = assign_chunks(costs, count)
    starts = np.flatnonzero(np.diff(chunk_of, prepend=-1))
    ends = np.append(starts, len(rows))[1:]
    free = (number for number in count_from(0) if number not in found.taken)
    manifests = []
    for start, end, number in zip(starts.tolist(), ends.tolist(), free, strict=False):
        manifest = ChunkManifest(
            chunk=chunk_name(number),
            proteins=end - start,
            residues=int(lengths[rows[start:end]].sum(dtype=np.int64)),
            cost=round(float(costs[start:end].sum())),
            digest=digest_of_digests([digests[rows[start:end]].tobytes()]),
        )
        manifests.append(manifest)
        chunks[number] = SplitChunk(manifest.digest, manifest.proteins)
        chunk[left[start:end]], row[left[start:end]] = number, np.arange(end - start)
    is_reused = np.zeros(len(unique), bool) if found.reused is None else found.reused
    is_kept = (found.chunk >= 0) & ~is_reused
    counts = {"unique": len(unique), "unique_residues": int(lengths[unique].sum(dtype=np.int64))}
    for name, are in (("kept", is_kept), ("reused", is_reused)):
        counts |= {name: int(are.sum()), f"{name}_residues": int(lengths[unique[are]].sum(dtype=np.int64))}
    rank = np.searchsorted(unique, first)
    return _Plan(first, chunk[rank], row[rank], manifests, chunks, counts, found.sources)


class _ChunkFasta:
    """The chunks' FASTA files. Different sequences are cut in the order in which they come, so one file is open."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, -1
        self._file: BinaryIO | None = None

    def add(self, chunk: int, record: FastaRecord) -> None:
        if self._file is None or chunk != self._number:
            self.close()
            self._number, self._file = chunk, (self._folder / f"{chunk_name(chunk)}.fasta").open("xb")
        self._file.write(b">%b\n%b\n" % (record.id.encode(), record.sequence))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _write(
    intake: Intake,
    skip: Callable[[Skipped], None],
    index: Path,
    out: _ChunkFasta,
    seen: _Digested,
    plan: _Plan,
    place: slice,
    *,
    described: bool,
) -> None:
    """The second reading of a sample: its index, and its part of the chunks; ``described`` unless ids are headers."""
    records = intake.second_reading(skip)
    first, chunks, in_chunk = plan.first[place], plan.chunk[place], plan.row[place]
    kept = [number for number, chunk in plan.chunks.items() if chunk.is_kept]
    with closing(IndexWriter(index)) as writer:
        for start in range(0, len(first), BATCH_ROWS):
            rows = slice(start, min(start + BATCH_ROWS, len(first)))
            ids, descriptions = [], []
            is_new = first[rows] == np.arange(place.start + rows.start, place.start + rows.stop)
            is_new &= ~np.isin(chunks[rows], kept)  # what is embedded already is not written
            lengths = seen.lengths[rows].tolist()
            for length, new, chunk in zip(lengths, is_new.tolist(), chunks[rows].tolist(), strict=True):
                record = next(records, None)
                if record is None or len(record.sequence) != length:
                    raise intake.changed()
                ids.append(record.id)
                descriptions.append(description_of(record.header) if described else "")
                if new:
                    out.add(chunk, record)
            writer.write(
                IndexRows(
                    ids,
                    length=seen.lengths[rows],
                    digest=seen.digests[rows],
                    chunk=chunks[rows],
                    row=in_chunk[rows],
                    replaced=seen.replaced[rows],
                    descriptions=descriptions,
                )
            )
    if next(records, None) is not None:
        raise intake.changed()
