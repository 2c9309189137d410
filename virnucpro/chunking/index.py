"""The index of one sample: which records came in, and where each one's embedding is.

A Parquet file with one row an input record, in input order; records with the same residues share
``chunk`` and ``row``. Pages carry checksums, and the split's record (:mod:`virnucpro.chunking.manifest`) the sha256 of
the whole file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.base.errors import UserError

INDEX_FORMAT = "virnucpro-index-3"
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
        pa.field("description", pa.string(), nullable=False),
    ],
    metadata={METADATA_KEY: INDEX_FORMAT.encode()},
)


@dataclass(frozen=True)
class IndexRows:
    """A run of index rows: n records in input order; ``descriptions`` are what follows the ids in their headers."""

    ids: list[str]
    length: NDArray[np.int32]
    digest: NDArray[np.uint8]  # (n, 16)
    chunk: NDArray[np.int32]
    row: NDArray[np.int32]
    replaced: NDArray[np.int32]
    descriptions: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def keys(self) -> NDArray[np.int64]:
        """A number for each record, (n,), that is equal where ``chunk`` and ``row`` are."""
        return self.chunk.astype(np.int64) << 32 | self.row


class IndexWriter:
    """Writes index rows in row groups of :data:`BATCH_ROWS`."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(
            path,
            INDEX_SCHEMA,
            compression="zstd",
            compression_level=1,
            use_dictionary=["chunk", "replaced"],
            write_page_checksum=True,
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
            pa.array(rows.descriptions, pa.string()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=INDEX_SCHEMA), row_group_size=BATCH_ROWS)

    def close(self) -> None:
        self._writer.close()


def read_index(path: Path, batch_rows: int = BATCH_ROWS, *, chunks: Sequence[int] | None = None) -> Iterator[IndexRows]:
    """Read an index's rows in order, so many at a time.

    Args:
        chunks: the numbers of the sample's chunks, rising: rows then have the chunk's place among these as its number.

    Raises:
        UserError: missing, damaged, or not an index.
    """
    way_out = "delete it and run the same command again"
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such index; run the split first") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as an index ({str(error).splitlines()[0]}); {way_out}") from None
    with file:
        if not file.schema_arrow.equals(INDEX_SCHEMA, check_metadata=True):
            raise UserError(f"{path} is not an index of this program's version; {way_out}")
        try:
            for batch in file.iter_batches(batch_size=batch_rows, use_threads=False):
                rows = _rows(batch)
                yield rows if chunks is None else replace(rows, chunk=_places(rows.chunk, chunks, path))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); {way_out}") from None


def _places(numbers: NDArray[np.int32], chunks: Sequence[int], path: Path) -> NDArray[np.int32]:
    known = np.array(chunks, np.int32)
    places = np.searchsorted(known, numbers)
    if len(numbers) and not (np.append(known, -1)[places] == numbers).all():
        raise UserError(f"{path} names chunks that its split does not have: run the same command again")
    return places.astype(np.int32)


def _rows(batch: pa.RecordBatch) -> IndexRows:
    digests = batch.column("digest")
    raw = np.frombuffer(digests.buffers()[1], np.uint8, len(batch) * 16, digests.offset * 16)
    numbers = {name: batch.column(name).to_numpy() for name in ("length", "chunk", "row", "replaced")}
    texts = {"ids": batch.column("id").to_pylist(), "descriptions": batch.column("description").to_pylist()}
    return IndexRows(**texts, digest=raw.reshape(-1, 16), **numbers)
