"""A flat map of embeddings: those that it shows and their records, their components, and UMAP where it is installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.settings import VECTORS
from virnucpro.chunking.index import read_index
from virnucpro.chunking.manifest import SplitRecord, chunk_name, read_split
from virnucpro.report.samples import Sample
from virnucpro.storage.chunk_file import read_chunk_file
from virnucpro.storage.row_reader import RowReader, rows_used
from virnucpro.storage.sample_files import PoolFiles, SampleFiles

BLOCK = 4096
"""Vectors that are centred at a time, so that no second copy of all is made."""

COMPONENTS_FOR_UMAP = 50
"""What UMAP and clusters are computed from: distances in more of them hardly differ, and take many times as long."""

FEWEST_FOR_UMAP = 200
"""Of fewer proteins, 15 neighbours are a good part of all, and components show as much."""


@dataclass(frozen=True)
class Components:
    """The first principal components of n vectors.

    ``coordinates`` is float64 (n, count); ``explained``, (count,), each component's share (0 to 1) of the variance.
    """

    coordinates: NDArray[np.float64]
    explained: NDArray[np.float64]


def principal_components(vectors: NDArray[np.floating], count: int = 2) -> Components:
    """Project vectors, (n, D), onto the directions in which they vary most.

    The vectors are centred and not scaled. Equal input gives equal output: of a direction's two signs, that one is
    taken in which its largest entry is positive. The eigenvectors of the D x D covariance are used (of the n x n
    products where n < D), whose cost does not grow with the longer side.
    """
    n, width = vectors.shape
    mean = np.mean(vectors, axis=0, dtype=np.float64)
    blocks = range(0, n, BLOCK)
    if n <= width:
        centred = vectors - mean
        directions = centred.T @ np.linalg.eigh(centred @ centred.T).eigenvectors[:, : -count - 1 : -1]
        lengths = np.linalg.norm(directions, axis=0)
        directions = directions / np.where(lengths > 0, lengths, 1)
    else:
        products = np.zeros((width, width))
        for start in blocks:
            block = vectors[start : start + BLOCK] - mean
            products += block.T @ block
        directions = np.linalg.eigh(products).eigenvectors[:, : -count - 1 : -1]
    directions = np.pad(directions, ((0, 0), (0, count - directions.shape[1])))
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    directions *= np.where(largest < 0, -1, 1)
    coordinates, variance = np.empty((n, count)), 0.0
    for start in blocks:
        block = vectors[start : start + BLOCK] - mean
        coordinates[start : start + BLOCK] = block @ directions
        variance += float(np.square(block).sum())
    explained = np.square(coordinates).sum(axis=0) / variance if variance > 0 else np.zeros(count)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the seed, which allows one thread only
        reducer = UMAP(n_neighbors=neighbours, init=start, random_state=0, n_jobs=1)
        return np.asarray(reducer.fit_transform(np.asarray(vectors, np.float32)), np.float64)


def clusters_of(places: NDArray[np.floating]) -> NDArray[np.int64]:
    """Clusters of a map's points, (n, 2), by their density (HDBSCAN; Campello et al. 2013): from 1, the largest first.

    0 is in none. What is a cluster has at least 5 points, and a two hundredth of all.

    Raises:
        ImportError: scikit-learn, which umap-learn brings, is not installed.
    """
    from sklearn.cluster import HDBSCAN

    found = HDBSCAN(min_cluster_size=max(5, len(places) // 200), copy=True).fit_predict(places)
    sizes = np.bincount(found[found >= 0])
    rank = np.zeros(len(sizes) + 1, np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(1, len(sizes) + 1)
    numbers: NDArray[np.int64] = rank[found]  # -1, in none, is the last
    return numbers


@dataclass(frozen=True)
class ChosenVectors:
    """Embeddings, float32 (n, D), of n different proteins of a sample that has ``total``.

    ``lengths`` are residues, (n,). ``keys``, (n,), rise and tell each protein as :attr:`IndexRows.keys` of the index do
    when it is read with ``chunks``. ``ids`` and ``descriptions`` are its first record's; ``repeats`` counts the others.
    """

    vectors: NDArray[np.float32]
    lengths: NDArray[np.int32]
    keys: NDArray[np.int64]
    total: int
    chunks: Sequence[int]
    ids: list[str]
    descriptions: list[str]
    repeats: list[int]


def choose_vectors(sample: Sample, pool: PoolFiles, most: int, split: SplitRecord | None = None) -> ChosenVectors:
    """Read one vector each of at most ``most`` proteins, chosen evenly with a fixed seed, in bounded memory.

    The chunk files hold each different sequence once, whatever tables were written. Of the last layer means are taken
    where they are, else BOS or maxima; where there are residues alone, their means.

    Args:
        most: bound on n.
        split: the record of the split, where it was read already: reading that of a thousand samples takes a while.

    Raises:
        ChunkError: a chunk file that cannot be read.
        UserError: the index is damaged, or not what the split wrote.
    """
    index, layer = SampleFiles(sample.folder).index, sample.provenance.layers[-1]
    chunks = (split or read_split(pool.chunks)).of_index(index).chunks
    files = [read_chunk_file(pool.chunk_file(chunk_name(number))) for number in chunks]
    rows_of = rows_used(index, chunks)
    starts = np.concatenate([[0], np.cumsum([len(rows) for rows in rows_of])]).astype(np.int64)
    total = int(starts[-1])
    chosen = np.arange(total)
    if total > most:
        chosen = np.sort(np.random.default_rng(0).choice(total, most, replace=False))
    vectors, lengths, keys = [], [], []
    with RowReader(files) as reader:
        for number, chunk in enumerate(files):
            rows = rows_of[number][chosen[(chosen >= starts[number]) & (chosen < starts[number + 1])] - starts[number]]
            if not len(rows):
                continue
            lengths.append(reader.rows(number, "lengths", rows))
            keys.append(np.int64(number) << 32 | rows)
            own = next((name for kind in VECTORS if (name := f"{kind}.{layer}") in chunk.names), None)
            if own is not None:
                vectors.append(reader.rows(number, own, rows))
            else:
                vectors.append(_means(reader, number, f"residues.{layer}", rows))
    wanted = np.concatenate(keys)
    named = _named(index, chunks, wanted)
    return ChosenVectors(np.concatenate(vectors), np.concatenate(lengths), wanted, total, chunks, *named)


def _named(index: Path, chunks: Sequence[int], keys: NDArray[np.int64]) -> tuple[list[str], list[str], list[int]]:
    """Ids, descriptions and repeats of :class:`ChosenVectors`."""
    ids, descriptions = [""] * len(keys), [""] * len(keys)
    counts = [0] * len(keys)
    for rows in read_index(index, chunks=chunks):
        places = np.minimum(np.searchsorted(keys, rows.keys), len(keys) - 1)
        here = np.flatnonzero(keys[places] == rows.keys)
        for record, place in zip(here.tolist(), places[here].tolist(), strict=True):
            if not counts[place]:
                ids[place], descriptions[place] = rows.ids[record], rows.descriptions[record]
            counts[place] += 1
    return ids, descriptions, [count - 1 for count in counts]


def shown_of(shown: int, total: int) -> str:
    """``50,000 of 812,345 different proteins``."""
    return f"{shown:,} of {total:,} different proteins" if shown < total else f"{shown:,} different proteins"


def _means(reader: RowReader, number: int, name: str, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    """Means over residues, one protein at a time: residues of all would not fit."""
    each = [reader.ragged(number, name, rows[at : at + 1])[0].mean(axis=0, dtype=np.float32) for at in range(len(rows))]
    return np.stack(each)
