"""What is embedded already: rows of chunk files, found by the digests of their sequences.

The folder of chunk files that a run's samples share is a pool: a split asks it first (:class:`Finder`), so that no
sequence is embedded twice, whatever sample it is in and however the chunks were cut when it was embedded.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.errors import UserError
from virnucpro.base.settings import EmbeddingSettings
from virnucpro.chunking.manifest import CHUNK_FILES, SplitChunk, chunk_number
from virnucpro.chunking.split import Found
from virnucpro.storage.chunk_file import ChunkError, ChunkFile, read_chunk_file
from virnucpro.storage.chunk_metadata import identity, why_of_others
from virnucpro.storage.reuse import Reuse, Sources
from virnucpro.storage.reuse_tables import Tables
from virnucpro.storage.row_index import NONE, Rows
from virnucpro.storage.sample_files import sources_text
from virnucpro.weights.manifest import WeightsRequest


class Finder:
    """Finds sequences in a folder of chunk files; a split calls it with all that it needs."""

    def __init__(
        self,
        tensors: Path,
        embedding: EmbeddingSettings,
        weights: WeightsRequest,
        *,
        reuse: Reuse | None = None,
        logger: logging.Logger,
    ) -> None:
        """Args: how sequences are to be embedded, and with what; weights may not be prepared yet without ``reuse``."""
        self._reuse = reuse
        self._tensors, self._embedding, self._weights, self._log = tensors, embedding, weights, logger
        self._manifest = weights.prepared()

    def __call__(self, digests: NDArray[np.uint8], lengths: NDArray[np.int32]) -> Found:
        """See :data:`virnucpro.chunking.split.Find`."""
        found = self._own(digests)
        return self._with_reused(found, digests, lengths) if self._reuse is not None else found

    def look(self, digests: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which sequences are in the folder, and which others in earlier results; nothing is copied. Each bool (n,)."""
        kept = self._own(digests).chunk != NONE
        reused = np.zeros(len(digests), bool)
        if self._reuse is not None:
            sources, tables = self._sources(self._reuse)
            reused = (sources.index().find(digests)[0] != NONE) & ~kept
            left = np.flatnonzero(~kept & ~reused)
            reused[left] = tables.find(digests[left])
        return kept, reused

    def _own(self, digests: NDArray[np.uint8]) -> Found:
        """What the folder has. A file's bytes are compared with its checksum when it is merged."""
        files, rows = {}, []
        for path in sorted(self._tensors.glob(CHUNK_FILES)):
            usable = self._usable(path)
            if usable is not None:
                number = chunk_number(path.stem)
                files[number] = _kept(usable[0])
                rows.append((number, usable[1]))
        chunk, row = Rows(rows).find(digests)
        used = {number: files[number] for number in np.unique(chunk[chunk != NONE]).tolist()}
        return Found(chunk, row, used, frozenset(files))

    def _with_reused(self, found: Found, digests: NDArray[np.uint8], lengths: NDArray[np.int32]) -> Found:
        """The same with what earlier results have of the rest, copied to files of our own."""
        assert self._reuse is not None
        free = (number for number in count() if number not in found.taken)
        reused = np.zeros(len(digests), bool)
        copied: dict[int, ChunkFile] = {}
        for sources in self._sources(self._reuse):
            left = np.flatnonzero(found.chunk == NONE)
            taken = sources.take(digests[left], lengths[left], self._tensors, free)
            for number, places in taken.places.items():
                found.chunk[left[places]], found.row[left[places]] = number, np.arange(len(places))
                reused[left[places]] = True
            copied |= taken.chunks
        chunks = found.chunks | {number: _kept(chunk) for number, chunk in copied.items()}
        devices = "any" if self._reuse.any_device else "same"
        return replace(
            found,
            chunks=chunks,
            taken=found.taken | copied.keys(),
            reused=reused,
            sources=sources_text(self._reuse.sources, devices),
        )

    def _sources(self, reuse: Reuse) -> tuple[Sources, Tables]:
        """Chunk files, and tables whose chunk files are gone."""
        if self._manifest is None:
            raise UserError(f"{self._weights.file}: weights are prepared before earlier results are looked at")
        wanted = identity(self._manifest, self._embedding)
        files = Sources(reuse, wanted, self._why_not, self._log)
        return files, Tables(reuse, self._manifest, self._embedding, self._log)

    def _why_not(self, chunk: ChunkFile) -> str | None:
        return why_of_others(
            chunk.metadata,
            self._embedding,
            self._weights.model,
            manifest=self._manifest,
            source_sha256=self._weights.source_sha256,
        )

    def _usable(self, path: Path) -> tuple[ChunkFile, NDArray[np.uint8]] | None:
        """A chunk file and its rows' digests, if it was made as is wanted now."""
        try:
            chunk = read_chunk_file(path)
            if self._why_not(chunk) is not None or chunk.metadata.get("chunk") != path.stem:
                return None
            return chunk, chunk.digests()
        except (ChunkError, OSError, ValueError):
            return None


def _kept(chunk: ChunkFile) -> SplitChunk:
    return SplitChunk(chunk.metadata["chunk_digest"], chunk.proteins, is_kept=True)
