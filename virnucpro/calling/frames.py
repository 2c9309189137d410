"""The frames of a sample's contigs with their scores: each stop-free frame once, in input order, or an error.

Scores are those of features that are given, or of ESM-2's and DNABERT-S's vectors, joined by id.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path, scratch_directory
from virnucpro.base.digest import write_products
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space
from virnucpro.base.settings import EmbeddingSettings, InputPolicies
from virnucpro.base.text import number, short
from virnucpro.calling.classifier import CLASSES, Classifier
from virnucpro.calling.state import frame_identity, scores_origin
from virnucpro.chunking.index import IndexRows, read_index
from virnucpro.chunking.manifest import SampleSplit, read_split
from virnucpro.sequences.intake import Intake
from virnucpro.sequences.translation import FRAMES, SILENT_REASON, cut_windows, translate_contigs
from virnucpro.storage.chunk_file import ChunkFile, verify_chunks
from virnucpro.storage.row_reader import RowReader
from virnucpro.storage.sample_files import PoolFiles
from virnucpro.weights.manifest import read_manifest

if TYPE_CHECKING:
    from virnucpro.calling.features import Features  # reads VirNucPro's files with torch, which scores do without


JOINT = "_chunk_"
OTHERS, VIRUS = 0, 1
"""The classifier's classes: columns of scores."""


class Contig(NamedTuple):
    """A contig that came in: bases, windows, and why it has no scores (empty where it has)."""

    id: str
    length: int
    windows: int
    reason: str


@dataclass(frozen=True)
class Frames:
    """Stop-free frames in input order, n of them, and all contigs.

    Attributes:
        ids: as VirNucPro names frames, ``{contig}_chunk_{window}{frame}``.
        contig: (n,) int64, the row in ``contigs``.
        window: (n,) int64, from 1.
        frame: (n,) int64, into F1, F2, F3, R1, R2, R3.
        start, end: (n,) int64, the frame's codons on the contig's forward strand, from 0, half open.
        window_start, window_end: (n,) int64, the window's place, likewise.
        scores: (n, 2) float32, others and virus.
    """

    contigs: Sequence[Contig]
    ids: Sequence[str]
    contig: NDArray[np.int64]
    window: NDArray[np.int64]
    frame: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    window_start: NDArray[np.int64]
    window_end: NDArray[np.int64]
    scores: NDArray[np.float32]

    @property
    def is_virus(self) -> NDArray[np.bool_]:
        """VirNucPro's prediction for each frame, the larger score; equal ones are "others"."""
        return self.scores[:, VIRUS] > self.scores[:, OTHERS]


def score_frames(
    intake: Intake,
    inputs: Sequence[Path],
    features: Features,
    classifier: Classifier,
    window: int,
    policies: InputPolicies,
    scratch: Path,
    logger: logging.Logger,
) -> Frames:
    """Cut the contigs as they were cut for the models, and give each stop-free frame the score of its features, by id.

    Args:
        intake: of ``inputs``, read once already.
        scratch: where the frames may be written for the while.

    Raises:
        UserError: frames without features, or features of frames that these contigs don't have with this window.
    """
    with scratch_directory(scratch / "frames") as folder:
        bases = folder / "frames.fna"
        counts = translate_contigs(
            inputs, folder / "frames.faa", bases, window=window, policies=policies, logger=logger
        )
        if list(counts.inputs) != intake.digests:
            raise intake.changed()
        with bases.open(encoding="utf-8") as lines:
            ids = [line[1:].rstrip("\n") for line in lines if line.startswith(">")]
    row_of = {name: row for row, name in enumerate(ids)}
    _check_same(row_of, features, window)
    scores = np.empty((len(ids), CLASSES), np.float32)
    for names, rows in features.batches():
        scores[[row_of[name] for name in names]] = classifier.scores(rows)
    return placed_frames(intake, ids, scores, window)


def _check_same(wanted: dict[str, int], features: Features, window: int) -> None:
    lost = [name for name in wanted if name not in features.ids]
    foreign = sorted(features.ids - wanted.keys())
    advice = f"give the features of all frames of these contigs, cut with window {window}"
    if foreign:
        raise UserError(
            f"{number(len(foreign), 'frame')} with features (first: {short(foreign[0])}) are none of these contigs' "
            f"with windows of {window} bases: {advice}, and none of an earlier run"
        )
    if lost:
        raise UserError(
            f"{number(len(lost), 'frame')} of {len(wanted):,} (first: {short(lost[0])}) have no features: {advice}"
        )


def placed_frames(intake: Intake, ids: Sequence[str], scores: NDArray[np.float32], window: int) -> Frames:
    """Where each frame lies on its contig; contigs without one say so.

    Args:
        intake: of the contigs, read once already.
        ids: of all frames of these contigs, in input order.
        scores: (n, 2).

    Raises:
        UserError: a file is no longer what it was at the first reading.
    """
    contigs: list[Contig] = []
    for record in intake.second_reading(lambda one: contigs.append(Contig(one.id, 0, 0, one.reason))):
        contigs.append(Contig(record.id, len(record.sequence), -(-len(record.sequence) // window), ""))
    is_taken = [row for row, contig in enumerate(contigs) if not contig.reason]
    row_of = {contigs[row].id: place for place, row in enumerate(is_taken)}
    windows = cut_windows(np.array([contigs[row].length for row in is_taken], np.int64), window)
    first = np.searchsorted(windows.contig, np.arange(len(is_taken)))
    parts = [(name[:-2].rpartition(JOINT), FRAMES.index(name[-2:].encode())) for name in ids]
    taken = np.array([row_of[contig] for (contig, _, _), _ in parts], np.int64)
    number_ = np.array([int(text) for (_, _, text), _ in parts], np.int64)
    frame = np.array([frame for _, frame in parts], np.int64)
    at = first[taken] + number_ - 1
    begin, finish = windows.start[at], windows.end[at]
    offset = frame % 3
    codons = 3 * ((finish - begin - offset) // 3)
    start = np.where(frame < 3, begin + offset, finish - offset - codons)
    contig_row = np.array(is_taken, np.int64)[taken]
    has_frame = np.zeros(len(contigs), bool)
    has_frame[contig_row] = True
    for row in is_taken:
        if not has_frame[row]:
            contigs[row] = contigs[row]._replace(reason=SILENT_REASON)
    places = (contig_row, number_, frame, start, start + codons, begin, finish)
    return Frames(contigs, ids, *places, scores)


AT_ONCE = 1 << 13
"""Frames in hand: with 3,328 features each, 100 MB."""

SCORES = pa.schema([("id", pa.string()), ("score_others", pa.float32()), ("score_virus", pa.float32())])


@dataclass(frozen=True)
class Embedded:
    """One kind of a sample's sequences, split and embedded.

    Attributes:
        index: as the split wrote it.
        pool: the chunks.
        identity: what every chunk file must say of itself, and ``layers_asked_for``.
    """

    index: Path
    pool: PoolFiles
    identity: Mapping[str, str]

    @classmethod
    def by(cls, weights: Path, settings: EmbeddingSettings, index: Path, pool: PoolFiles) -> Embedded:
        """Embedded by prepared weights."""
        manifest = read_manifest(weights)
        return cls(index, pool, frame_identity(manifest, manifest.model, settings))

    def verified(self, threads: int) -> tuple[SampleSplit, list[ChunkFile]]:
        """What the split says of the sample, and its chunk files, every byte of them and of the index checked.

        Raises:
            UserError: the index or a chunk file is missing or bad (then renamed to ``NAME.bad``).
        """
        wanted = {name: value for name, value in self.identity.items() if name != "layers_asked_for"}
        record = read_split(self.pool.chunks)
        sample = record.of_index(self.index)
        found = verify_chunks(record, self.pool.tensors, wanted, numbers=sample.chunks, threads=threads)
        return sample, list(found.values())

    def rows(self, sample: SampleSplit) -> Iterator[IndexRows]:
        """The rows of the index, so many at a time."""
        return read_index(self.index, AT_ONCE, chunks=sample.chunks)


def classify_frames(
    proteins: Embedded,
    nucleotides: Embedded,
    classifier: Classifier,
    output: Path,
    *,
    threads: int = 1,
    logger: logging.Logger,
) -> int:
    """Write the scores of all frames, in input order, and beside them the record of what they were made from.

    Args:
        proteins, nucleotides: of the same frames.
        output: a Parquet file with the columns of :data:`SCORES`; its record has the same name and ends in ``.json``.
        threads: chunk files hashed at the same time.

    Returns:
        how many frames there are.

    Raises:
        UserError: see :meth:`Embedded.verified`; an id that one of the two has and the other not; features that the
            classifier does not take.
    """
    split_bases, files_of_bases = nucleotides.verified(threads)
    split_proteins, files_of_proteins = proteins.verified(threads)
    records = split_proteins.counts["records"]
    check_space(output.parent, 40 * records, "writing the scores of frames")
    count = 0
    with (
        RowReader(files_of_bases) as bases,
        RowReader(files_of_proteins) as residues,
        atomic_path(output) as beside,
        pq.ParquetWriter(beside, SCORES) as out,
    ):
        for of_bases, of_proteins in zip_longest(nucleotides.rows(split_bases), proteins.rows(split_proteins)):
            _check_pair(of_bases, of_proteins, nucleotides.index, proteins.index)
            # In the order of the classifier's features.
            features = np.concatenate([bases.vectors(of_bases), residues.vectors(of_proteins)], axis=1)
            scores = classifier.scores(features)
            columns = [pa.array(of_proteins.ids, pa.string()), *(pa.array(scores[:, kind]) for kind in (OTHERS, VIRUS))]
            out.write_batch(pa.record_batch(columns, schema=SCORES))
            count += len(of_proteins)
        if not count:
            out.write_table(SCORES.empty_table())
    if count != records:
        raise UserError(f"{proteins.index} has {count} rows where {records} are promised")
    origin = scores_origin(
        [split.index.sha256 for split in (split_proteins, split_bases)],
        [proteins.identity, nucleotides.identity],
        classifier.sha256,
    )
    write_products(output.with_suffix(".json"), origin, [output])
    logger.info("%d frames scored", count)
    return count


def _check_pair(bases: IndexRows | None, proteins: IndexRows | None, index: Path, other: Path) -> None:
    """Compare every id of some rows of one index with its partner's in the other."""
    ids = [rows.ids if rows is not None else [] for rows in (bases, proteins)]
    if ids[0] != ids[1]:
        pairs = zip_longest(*ids)
        base, protein = next((a, b) for a, b in pairs if a != b)
        lone = short(base if base is not None else protein)
        raise UserError(
            f"{index} and {other} are not of the same frames (where one has {lone} the other has "
            "not): delete both and run the same command again"
        )
