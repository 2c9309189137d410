"""The index of one sample: which records came in, and where each one's embedding is.

A Parquet file with one row an input record, in input order; records with the same residues share
``chunk`` and ``row``. The schema's metadata entry ``virnucpro`` is JSON: the counts of the split, and each
chunk's digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError

INDEX_FORMAT = "virnucpro-index-1"
METADATA_KEY = b"virnucpro"
BATCH_ROWS = 1 << 16

INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("replaced", pa.int32(), nullable=False),
    ]
)


def chunk_name(number: int) -> str:
    """``chunk_00000``, ``chunk_00001``, ... (more digits when five do not do)."""
    return f"chunk_{number:05d}"


@dataclass(frozen=True)
class IndexRows:
    """A run of index rows: n records in input order."""

    ids: list[str]
    length: NDArray[np.int32]
    digest: NDArray[np.uint8]  # (n, 16)
    chunk: NDArray[np.int32]
    row: NDArray[np.int32]
    replaced: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class IndexSummary:
    """What an index's metadata says.

    ``counts`` are the split's (records, unique, residues, ...); ``chunk_digests`` has one entry a chunk.
    """

    counts: dict[str, int]
    chunk_digests: list[str]


class IndexWriter:
    """Writes index rows in row groups of :data:`BATCH_ROWS`."""

    def __init__(self, path: Path, summary: IndexSummary) -> None:
        text = json.dumps({"format": INDEX_FORMAT, "counts": summary.counts, "chunk_digests": summary.chunk_digests})
        self._schema = INDEX_SCHEMA.with_metadata({METADATA_KEY: text.encode()})
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", compression_level=1, use_dictionary=["chunk", "replaced"]
        )

    def write(self, rows: IndexRows) -> None:
        digests = np.ascontiguousarray(rows.digest, np.uint8).reshape(-1)
        columns = [
            pa.array(rows.ids, pa.string()),
            pa.array(rows.length, pa.int32()),
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(rows), [None, pa.py_buffer(digests)]),
            pa.array(rows.chunk, pa.int32()),
            pa.array(rows.row, pa.int32()),
            pa.array(rows.replaced, pa.int32()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema), row_group_size=BATCH_ROWS)

    def close(self) -> None:
        self._writer.close()


@contextmanager
def index_writer(path: Path, summary: IndexSummary) -> Iterator[IndexWriter]:
    """Write an index, whole or not at all."""
    with atomic_path(path) as temporary:
        writer = IndexWriter(temporary, summary)
        try:
            yield writer
        finally:
            writer.close()


def _open(path: Path) -> tuple[pq.ParquetFile, dict[str, Any]]:
    way_out = "delete it and run the same command again"
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such index; run the split first") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as an index ({str(error).splitlines()[0]}); {way_out}") from None
    try:
        summary = json.loads((file.schema_arrow.metadata or {})[METADATA_KEY])
    except (KeyError, ValueError):
        summary = {}
    if summary.get("format") != INDEX_FORMAT or not file.schema_arrow.equals(INDEX_SCHEMA):
        file.close()
        raise UserError(f"{path} is not an index of this program's version; {way_out}")
    return file, summary


def read_index_summary(path: Path) -> IndexSummary:
    """Counts and chunk digests, from the file's footer alone.

    Raises:
        UserError: missing, damaged, or not an index.
    """
    file, summary = _open(path)
    file.close()
    return IndexSummary(summary["counts"], summary["chunk_digests"])


def read_index(path: Path, batch_rows: int = BATCH_ROWS) -> Iterator[IndexRows]:
    """Read an index's rows in order, so many at a time.

    Raises:
        UserError: missing, damaged, or not an index.
    """
    file, _ = _open(path)
    with file:
        for batch in file.iter_batches(batch_size=batch_rows, use_threads=False):
            digests = batch.column("digest")
            raw = np.frombuffer(digests.buffers()[1], np.uint8, len(batch) * 16, digests.offset * 16)
            numbers = {name: batch.column(name).to_numpy() for name in ("length", "chunk", "row", "replaced")}
            yield IndexRows(ids=batch.column("id").to_pylist(), digest=raw.reshape(-1, 16), **numbers)
