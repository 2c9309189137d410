"""Choose and read the embeddings that a map shows, out of the chunk files, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.storage.chunk_file import read_chunk_file
from virnucpro.storage.gather import RowReader


@dataclass(frozen=True)
class DrawnRows:
    """Mean embeddings, float32 (n, D), of n different proteins of a sample that has ``total``; their lengths, (n,)."""

    vectors: NDArray[np.float32]
    lengths: NDArray[np.int32]
    total: int


def draw_rows(tensors: Sequence[Path], layer: int, most: int) -> DrawnRows:
    """Read the mean embeddings of at most ``most`` proteins, evenly drawn with a fixed seed.

    The chunk files hold each different sequence once, whatever tables were written. Where they hold residues
    alone, the means are taken of those.

    Args:
        tensors: a sample's chunk files.
        layer: the layer to read.
        most: bound on n.

    Raises:
        ChunkError: a chunk file that cannot be read.
    """
    chunks = [read_chunk_file(path) for path in sorted(tensors)]
    starts = np.concatenate([[0], np.cumsum([chunk.proteins for chunk in chunks])])
    total = int(starts[-1])
    drawn = np.arange(total)
    if total > most:
        drawn = np.sort(np.random.default_rng(0).choice(total, most, replace=False))
    vectors, lengths = [], []
    with RowReader(chunks) as reader:
        for place, chunk in enumerate(chunks):
            rows = drawn[(drawn >= starts[place]) & (drawn < starts[place + 1])] - starts[place]
            if not len(rows):
                continue
            lengths.append(reader.rows(place, "lengths", rows))
            if f"mean.{layer}" in chunk.names:
                vectors.append(reader.rows(place, f"mean.{layer}", rows))
            else:
                vectors.append(_means(reader, place, f"residues.{layer}", rows))
    return DrawnRows(np.concatenate(vectors), np.concatenate(lengths), total)


def _means(reader: RowReader, place: int, name: str, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    """Means over residues, one protein at a time: residues of all would not fit."""
    each = [reader.ragged(place, name, rows[at : at + 1])[0].mean(axis=0, dtype=np.float32) for at in range(len(rows))]
    return np.stack(each)
