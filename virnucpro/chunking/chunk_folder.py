"""The FASTA files of the chunks that are to be embedded, while a split writes them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from virnucpro.chunking.manifest import chunk_name
from virnucpro.sequences.fasta import FastaRecord

OPEN_FILES = 64


class ChunkFolder:
    """Writes unique proteins to their chunks' FASTA files; few are open, as chunks are nearly runs of the input."""

    def __init__(self, folder: Path, names: set[str]) -> None:
        self._folder, self._names = folder, names
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def add(self, chunk: int, record: FastaRecord) -> None:
        if chunk not in self._open:
            if chunk_name(chunk) not in self._names:
                return  # it is embedded already
            if len(self._open) == OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[chunk] = (self._folder / f"{chunk_name(chunk)}.fasta").open("ab")
        self._open[chunk].write(b">%b\n%b\n" % (record.id.encode(), record.sequence))

    def close(self) -> None:
        for out in self._open.values():
            out.close()
        self._open.clear()
