"""ESM-2's and DNABERT-S's vectors of a sample's frames, joined by id, to a score for each frame."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.digest import write_products
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space
from virnucpro.base.text import short
from virnucpro.calling.classifier import Classifier
from virnucpro.calling.frames import OTHERS, VIRUS
from virnucpro.calling.state import scores_origin
from virnucpro.chunking.index import IndexRows, read_index
from virnucpro.chunking.manifest import SampleSplit, read_split
from virnucpro.storage.chunk_file import ChunkFile, verify_chunks
from virnucpro.storage.row_reader import RowReader

AT_ONCE = 1 << 13
"""Frames in hand: with 3,328 features each, 100 MB."""

SCORES = pa.schema([("id", pa.string()), ("score_others", pa.float32()), ("score_virus", pa.float32())])


@dataclass(frozen=True)
class Embedded:
    """One kind of a sample's sequences, split and embedded.

    Attributes:
        index, chunks: as the split wrote them.
        tensors: the folder of chunk files.
        identity: what every chunk file must say of itself, and ``layers_asked_for``.
    """

    index: Path
    chunks: Path
    tensors: Path
    identity: Mapping[str, str]

    def verified(self, threads: int) -> tuple[SampleSplit, list[ChunkFile]]:
        """What the split says of the sample, and its chunk files, every byte of them and of the index checked.

        Raises:
            UserError: the index or a chunk file is missing or bad (then renamed to ``NAME.bad``).
        """
        wanted = {name: value for name, value in self.identity.items() if name != "layers_asked_for"}
        record = read_split(self.chunks)
        sample = record.of_index(self.index)
        found = verify_chunks(record, self.tensors, wanted, numbers=sample.chunks, threads=threads)
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
            out.write_batch(_batch(of_proteins.ids, classifier.scores(features)))
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


def _batch(ids: Sequence[str], scores: NDArray[np.float32]) -> pa.RecordBatch:
    columns = [pa.array(ids, pa.string()), pa.array(scores[:, OTHERS]), pa.array(scores[:, VIRUS])]
    return pa.record_batch(columns, schema=SCORES)
