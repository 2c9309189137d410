"""The nearest neighbours of each protein among the other sequences of its sample, as a table."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.chunking.index import read_index
from virnucpro.report.map import choose_vectors
from virnucpro.report.samples import read_sample
from virnucpro.storage.sample_files import PoolFiles, SampleFiles

MOST_WITHOUT_FAISS = 20_000
"""Sequences that NumPy compares all with all; more take FAISS, which is many times faster."""

MOST_COMPARED = 100_000
"""Sequences that FAISS compares all with all; more are searched through a graph, which finds nearly all neighbours."""

BLOCK = 1024

HEADER = "id\trank\tneighbour\tcosine\tneighbour_description\n"


def find_neighbours(report: Path, pool: PoolFiles, output: Path, count: int, *, logger: logging.Logger) -> None:
    """Write the ``count`` nearest neighbours of each record, the nearest first, as a tab-separated table.

    Near is what has a large cosine once the mean of all is taken off, which ESM-2's vectors share. Each different
    sequence is a neighbour once, under the id of its first record, and never of itself; so records with the same
    sequence have the same neighbours.

    Args:
        report: the sample's ``embeddings.json``, beside which its index is.
        pool: the chunks that it was merged from.

    Raises:
        UserError: an input is missing or damaged, or there are too many sequences and FAISS is not installed.
    """
    sample = read_sample(report)
    with atomic_path(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(HEADER)
        if not sample.chunks:
            return
        chosen = choose_vectors(sample, pool, 1 << 40)
        neighbours, cosines = nearest(chosen.vectors, count)
        logger.info("%d neighbours of %d different sequences", neighbours.shape[1], chosen.keys.size)
        for rows in read_index(SampleFiles(sample.folder).index, chunks=chosen.chunks):
            places = np.searchsorted(chosen.keys, rows.keys)
            for name, place in zip(rows.ids, places.tolist(), strict=True):
                for rank, (other, cosine) in enumerate(zip(neighbours[place], cosines[place], strict=True), start=1):
                    file.write(f"{name}\t{rank}\t{chosen.ids[other]}\t{cosine:.6f}\t{chosen.descriptions[other]}\n")


def nearest(vectors: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The others of n vectors, (n, D), with the largest cosine after their mean is taken off.

    Returns:
        Their numbers and cosines, (n, count), the nearest first; fewer columns where there are not so many others.

    Raises:
        UserError: too many for NumPy, and FAISS is not installed.
    """
    n = len(vectors)
    count = min(count, n - 1)
    if count <= 0:
        return np.empty((n, 0), np.int64), np.empty((n, 0), np.float32)
    units = (vectors - vectors.mean(axis=0, dtype=np.float64)).astype(np.float32)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-30)
    if importlib.util.find_spec("faiss") is not None:
        return _by_faiss(units, count)
    if n > MOST_WITHOUT_FAISS:
        raise UserError(
            f"neighbours of {n:,} sequences are searched by FAISS, which is not installed: "
            'pip install "virnucpro[neighbours]", or set neighbours to 0'
        )
    return by_numpy(units, count)


def by_numpy(units: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All compared with all: neighbours of unit vectors, as :func:`nearest` gives them."""
    found, cosines = [], []
    for start in range(0, len(units), BLOCK):
        products = units[start : start + BLOCK] @ units.T
        own = np.arange(len(products))
        products[own, start + own] = -np.inf
        best = np.argpartition(-products, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(products, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, axis=1))
        cosines.append(np.take_along_axis(values, order, axis=1))
    return np.concatenate(found), np.concatenate(cosines)


def _by_faiss(units: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    import faiss

    index: Any = faiss.IndexFlatIP(units.shape[1])
    if len(units) > MOST_COMPARED:
        index = faiss.IndexHNSWFlat(units.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = max(128, 2 * count)
    index.add(units)
    cosines, found = index.search(units, count + 1)
    # A vector's own place is taken out; where equal ones have pushed it out, the last.
    is_own = found == np.arange(len(units))[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    shape = (len(units), count)
    return found[~is_own].reshape(shape), cosines[~is_own].reshape(shape)
