"""A flat map of embeddings: those that it shows, their principal components, and UMAP where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.storage.chunk_file import read_chunk_file
from virnucpro.storage.row_reader import RowReader


@dataclass(frozen=True)
class Components:
    """The first two principal components of n vectors.

    ``coordinates`` is float64 (n, 2); ``explained`` gives each component's share (0 to 1) of the variance, (2,).
    """

    coordinates: NDArray[np.float64]
    explained: NDArray[np.float64]


def principal_components(vectors: NDArray[np.floating]) -> Components:
    """Project vectors, (n, D), onto the two directions in which they vary most.

    The vectors are centred and not scaled. Equal input gives equal output: of a direction's two signs, that one is
    taken in which its largest entry is positive. The eigenvectors of the D x D covariance are used (of the n x n
    products where n < D), whose cost does not grow with the longer side.
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    n, width = centred.shape
    if n <= width:
        directions = centred.T @ np.linalg.eigh(centred @ centred.T).eigenvectors[:, :-3:-1]
        lengths = np.linalg.norm(directions, axis=0)
        directions = directions / np.where(lengths > 0, lengths, 1)
    else:
        directions = np.linalg.eigh(centred.T @ centred).eigenvectors[:, :-3:-1]
    directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    coordinates = centred @ (directions * np.where(largest < 0, -1, 1))
    variance = np.square(centred).sum()
    explained = np.square(coordinates).sum(axis=0) / variance if variance > 0 else np.zeros(2)
    return Components(coordinates, explained)


def umap_is_installed() -> bool:
    """Whether the optional package umap-learn can be imported; it is not imported here."""
    return importlib.util.find_spec("umap") is not None


def umap_coordinates(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """UMAP (McInnes et al. 2018, arXiv:1802.03426) of vectors (n, D) to (n, 2), with its defaults and a fixed seed.

    Needs 4 vectors or more.

    Raises:
        ImportError: umap-learn is not installed.
    """
    from umap import UMAP

    neighbours = min(15, len(vectors) - 1)
    # Its spectral start needs more vectors than this; the random one works for any number.
    start = "spectral" if len(vectors) > 16 else "random"
    reducer = UMAP(n_neighbors=neighbours, init=start, random_state=0, n_jobs=1)
    return np.asarray(reducer.fit_transform(np.asarray(vectors, np.float32)), np.float64)


@dataclass(frozen=True)
class ChosenVectors:
    """Mean embeddings, float32 (n, D), of n different proteins of a sample that has ``total``; their lengths, (n,)."""

    vectors: NDArray[np.float32]
    lengths: NDArray[np.int32]
    total: int


def choose_vectors(tensors: Sequence[Path], layer: int, most: int) -> ChosenVectors:
    """Read the mean embeddings of at most ``most`` proteins, chosen evenly with a fixed seed, in bounded memory.

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
    chosen = np.arange(total)
    if total > most:
        chosen = np.sort(np.random.default_rng(0).choice(total, most, replace=False))
    vectors, lengths = [], []
    with RowReader(chunks) as reader:
        for number, chunk in enumerate(chunks):
            rows = chosen[(chosen >= starts[number]) & (chosen < starts[number + 1])] - starts[number]
            if not len(rows):
                continue
            lengths.append(reader.rows(number, "lengths", rows))
            if f"mean.{layer}" in chunk.names:
                vectors.append(reader.rows(number, f"mean.{layer}", rows))
            else:
                vectors.append(_means(reader, number, f"residues.{layer}", rows))
    return ChosenVectors(np.concatenate(vectors), np.concatenate(lengths), total)


def _means(reader: RowReader, number: int, name: str, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    """Means over residues, one protein at a time: residues of all would not fit."""
    each = [reader.ragged(number, name, rows[at : at + 1])[0].mean(axis=0, dtype=np.float32) for at in range(len(rows))]
    return np.stack(each)
