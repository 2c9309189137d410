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

from virnucpro.base.atomic import atomic_path, remove
from virnucpro.base.digest import FileProof, file_sha256, write_products
from virnucpro.base.errors import UserError
from virnucpro.base.space import check_space
from virnucpro.base.text import short
from virnucpro.calling.classifier import Classifier
from virnucpro.calling.frames import OTHERS, VIRUS
from virnucpro.calling.state import scores_origin
from virnucpro.chunking.index import IndexRows, read_index
from virnucpro.chunking.manifest import SPLIT_RECORD, read_split
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
        tensors: the chunk files, in any order.
        identity: what every chunk file must say of itself, and ``layers_asked_for``.
    """

    index: Path
    chunks: Path
    tensors: Sequence[Path]
    identity: Mapping[str, str]

    def verified(self, threads: int) -> list[ChunkFile]:
        """The chunk files, every byte of them and of the index checked.

        Raises:
            UserError: the index or a chunk file is missing or bad (then renamed to ``NAME.bad``).
        """
        split = read_split(self.chunks)
        if FileProof.of(self.index) != split.index:
            raise UserError(f"{self.index} is not what the split wrote, so it was damaged: run the same command again")
        wanted = {name: value for name, value in self.identity.items() if name != "layers_asked_for"}
        return verify_chunks(split, self.tensors, wanted, threads=threads)


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
    both = (nucleotides, proteins)  # in the order of the classifier's features
    verified = [kind.verified(threads) for kind in both]
    splits = [read_split(kind.chunks) for kind in (proteins, nucleotides)]
    check_space(output.parent, 40 * splits[0].counts["records"], "writing the scores of frames")
    count = 0
    with (
        RowReader(verified[0]) as bases,
        RowReader(verified[1]) as residues,
        atomic_path(output) as beside,
        pq.ParquetWriter(beside, SCORES) as out,
    ):
        for of_bases, of_proteins in _paired(nucleotides.index, proteins.index):
            features = np.concatenate([bases.vectors(of_bases), residues.vectors(of_proteins)], axis=1)
            out.write_batch(_batch(of_proteins.ids, classifier.scores(features)))
            count += len(of_proteins)
        if not count:
            out.write_table(SCORES.empty_table())
    if count != splits[0].counts["records"]:
        raise UserError(f"{proteins.index} has {count} rows where {splits[0].counts['records']} are promised")
    origin = scores_origin(
        [file_sha256(kind.chunks / SPLIT_RECORD) for kind in (proteins, nucleotides)],
        [proteins.identity, nucleotides.identity],
        classifier.sha256,
    )
    write_products(output.with_suffix(".json"), origin, [output])
    _remove_other_chunks(nucleotides.tensors, logger)
    logger.info("%d frames scored", count)
    return count


def _paired(bases: Path, proteins: Path) -> Iterator[tuple[IndexRows, IndexRows]]:
    """The rows of both indices, so many at a time, every id compared with its partner's."""
    for one, other in zip_longest(read_index(bases, AT_ONCE), read_index(proteins, AT_ONCE)):
        ids = [rows.ids if rows is not None else [] for rows in (one, other)]
        if ids[0] != ids[1]:
            pairs = zip_longest(*ids)
            base, protein = next((a, b) for a, b in pairs if a != b)
            lone = short(base if base is not None else protein)
            raise UserError(
                f"{bases} and {proteins} are not of the same frames (where one has {lone} the other has not): "
                "delete both and run the same command again"
            )
        yield one, other


def _batch(ids: Sequence[str], scores: NDArray[np.float32]) -> pa.RecordBatch:
    columns = [pa.array(ids, pa.string()), pa.array(scores[:, OTHERS]), pa.array(scores[:, VIRUS])]
    return pa.record_batch(columns, schema=SCORES)


def _remove_other_chunks(tensors: Sequence[Path], logger: logging.Logger) -> None:
    """Chunk files that are none of the sample's any more; those of proteins the merge removes."""
    kept = {path.resolve() for path in tensors}
    for parent in {path.parent for path in kept}:
        for path in sorted(parent.glob("chunk_*.safetensors")):
            if path not in kept:
                remove(path)
                logger.info("removed %s, which is of earlier settings or inputs", path)
