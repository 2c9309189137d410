"""Merged table as Parquet: one row a record, embeddings as fixed-size lists.

Columns: ``id``, ``length``, ``description``, ``treatment``, ``precision``, ``origin``, ``replaced``, ``embedding``
(``fixed_size_list<float>[D]``; ``embedding_{layer}`` for several layers), ``bos`` and ``max`` the same and,
with per-residue pooling,
``residues`` (``large_list<fixed_size_list<float>[D]>``: values and offsets). The schema's metadata entry
``virnucpro`` is the provenance as JSON. Each page has a checksum, which readers compare.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.base.digest import FileProof
from virnucpro.base.limits import usable_cores
from virnucpro.base.records import record_text
from virnucpro.chunking.index import METADATA_KEY
from virnucpro.storage.hashed_file import HashedFile
from virnucpro.storage.report_record import Provenance
from virnucpro.storage.tables.parquet_footer import MAGIC, WrittenFile, end_of_file, moved
from virnucpro.storage.tables.rows import (
    COMPUTED,
    Embeddings,
    Layout,
    ResidueEmbeddings,
    Rows,
    column_name,
    damaged,
    read_provenance,
)

_COMPRESSED = ("id", "length", "description", "treatment", "precision", "origin", "replaced")

ENCODERS = 4
"""Threads at most: each encodes 0.3 GB/s of float32, and holds two row groups in memory."""


class RowGroups:
    """A Parquet file whose row groups are encoded by several threads; a context manager.

    Arrow spends 12 ns on each number of a nested list, whatever its settings, so one thread is slower than any disk.
    """

    def __init__(self, path: Path, schema: pa.Schema, **options: Any) -> None:
        """Args: ``options`` of :class:`pyarrow.parquet.ParquetWriter`."""
        self._schema, self._options = schema, options
        self._file = HashedFile(path)
        self._file.write(MAGIC)
        self._metadata: pq.FileMetaData | None = None
        self._threads = min(ENCODERS, usable_cores())
        self._pool = ThreadPoolExecutor(self._threads, "parquet")
        self._coming: deque[Future[WrittenFile]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._file.__exit__(kind, error, at)

    def write(self, batch: pa.RecordBatch) -> None:
        """Have a batch encoded as one row group, which is in the file some calls later."""
        if len(self._coming) == self._threads:
            self._append()
        self._coming.append(self._pool.submit(self._encoded, batch))

    def _encoded(self, batch: pa.RecordBatch | None) -> WrittenFile:
        """A file of its own, of this row group alone."""
        out = WrittenFile()
        with pq.ParquetWriter(out, self._schema, **self._options) as writer:
            if batch is not None:
                writer.write_batch(batch, row_group_size=len(batch))
        return out

    def _append(self) -> None:
        groups, footer = self._coming.popleft().result().split()
        metadata = _metadata(moved(footer, self._file.size - len(MAGIC)))
        _check_places(metadata, self._file.size, self._file.size + sum(map(len, groups)))
        if self._metadata is None:
            self._metadata = metadata
        else:
            self._metadata.append_row_groups(metadata)
        for part in groups:
            self._file.write(part)

    def finish(self) -> FileProof:
        while self._coming:
            self._append()
        if self._metadata is None:
            out = self._encoded(None)
        else:
            out = WrittenFile()
            self._metadata.write_metadata_file(out)
        self._file.write(end_of_file(out.split()[1]))
        return self._file.finish()


def _check_places(metadata: pq.FileMetaData, begin: int, end: int) -> None:
    """Raise ValueError unless the columns of the one row group lie between these places of the file."""
    group = metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        first = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        if not begin <= first <= first + column.total_compressed_size <= end:
            raise ValueError(f"Arrow's column {column.path_in_schema} is not where its row group is")


def _metadata(footer: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(MAGIC + end_of_file(footer)))


class ParquetTable:
    """Writes one row group each time it is given rows; floats are stored as they are, for they hardly compress."""

    def __init__(self, path: Path, layout: Layout, provenance: Provenance) -> None:
        self._layout = layout
        vector = pa.list_(pa.field("element", _arrow_type(layout.dtype), nullable=False), layout.embed_dim)
        fields = [
            pa.field("id", pa.string(), nullable=False),
            pa.field("length", pa.int32(), nullable=False),
            pa.field("description", pa.string(), nullable=False),
            pa.field("treatment", pa.string(), nullable=False),
            pa.field("precision", pa.string(), nullable=False),
            pa.field("origin", pa.string(), nullable=False),
            pa.field("replaced", pa.int32(), nullable=False),
        ]
        for (kind, _), name in layout.names.items():
            of_residues = pa.large_list(pa.field("element", vector, nullable=False))
            fields.append(pa.field(name, of_residues if kind == "residues" else vector, nullable=False))
        self._schema = pa.schema(fields, metadata={METADATA_KEY: record_text(provenance).encode()})
        self.proofs: dict[str, FileProof] = {}
        self._groups = RowGroups(
            path,
            self._schema,
            compression=dict.fromkeys(_COMPRESSED, "zstd"),
            use_dictionary=["treatment", "precision", "origin", "replaced"],
            write_statistics=["id", "length"],
            write_page_checksum=True,
        )

    def __enter__(self) -> Self:
        return self

    def write(self, rows: Rows) -> None:
        columns = [
            pa.array(rows.ids, pa.string()),
            pa.array(rows.length, pa.int32()),
            pa.array(rows.descriptions or [""] * len(rows), pa.string()),
            pa.array(rows.treatment, pa.string()),
            pa.array(rows.precision, pa.string()),
            pa.array(rows.origin or [COMPUTED] * len(rows), pa.string()),
            pa.array(rows.replaced, pa.int32()),
        ]
        for (kind, layer), name in self._layout.names.items():
            values = rows.values(kind, layer, self._layout.dtype)
            arrow_type = self._schema.field(name).type
            if kind != "residues":
                columns.append(_vectors(values, arrow_type))
            else:
                vectors = _vectors(values, arrow_type.value_type)
                columns.append(pa.LargeListArray.from_arrays(pa.array(rows.offsets), vectors, type=arrow_type))
        self._groups.write(pa.record_batch(columns, schema=self._schema))

    def finish(self) -> None:
        self.proofs[""] = self._groups.finish()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._groups.__exit__(kind, error, at)


write_table = ParquetTable


def _vectors(values: NDArray[Any], arrow_type: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), type=arrow_type)


def _arrow_type(dtype: str) -> pa.DataType:
    return pa.float16() if dtype == "float16" else pa.float32()


@contextmanager
def _opened(path: Path, word: str, layer: int | None) -> Iterator[tuple[pq.ParquetFile, str]]:
    """The file, and the name of the column to read; damage that is found in the block becomes one sentence."""
    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            entry = (schema.metadata or {}).get(METADATA_KEY)
            provenance = None if entry is None else read_provenance(entry.decode("utf-8", "replace"), path)
            yield file, column_name(word, layer, schema.names, provenance, path)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, pa.ArrowException) as error:
        raise damaged(path, error) from None


def read_embeddings(path: Path, layer: int | None, word: str = "vectors") -> Embeddings:
    """Row group by row group into one matrix, so that the floats are in memory once."""
    with _opened(path, word, layer) as (file, column):
        vector = file.schema_arrow.field(column).type
        matrix = np.empty((file.metadata.num_rows, vector.list_size), vector.value_type.to_pandas_dtype())
        ids: list[str] = []
        for batch in file.iter_batches(batch_size=8192, columns=["id", column]):
            start = len(ids)
            ids += batch.column("id").to_pylist()
            values = batch.column(column).flatten().to_numpy()
            matrix[start : len(ids)] = values.reshape(-1, vector.list_size)
        if len(ids) != len(matrix):
            raise ValueError(f"{len(ids)} rows of {len(matrix)}")
        return Embeddings(ids, matrix)


def read_batches(path: Path, layer: int, word: str) -> Iterator[NDArray[Any]]:
    """The same, some rows at a time, each (rows, D)."""
    with _opened(path, word, layer) as (file, column):
        vector = file.schema_arrow.field(column).type
        for batch in file.iter_batches(batch_size=8192, columns=[column]):
            yield batch.column(column).flatten().to_numpy().reshape(-1, vector.list_size)


def read_precisions(path: Path) -> list[str]:
    """The number format in which each record was computed."""
    with _opened(path, "vectors", None) as (file, _):
        found: list[str] = file.read(columns=["precision"])["precision"].to_pylist()
        return found


def read_residues(path: Path, layer: int | None) -> ResidueEmbeddings:
    """Batch by batch, joined at the end."""
    with _opened(path, "residues", layer) as (file, column):
        vector = file.schema_arrow.field(column).type.value_type
        ids: list[str] = []
        parts = [np.empty((0, vector.list_size), vector.value_type.to_pandas_dtype())]
        lengths = [np.zeros(1, np.int64)]
        for batch in file.iter_batches(batch_size=256, columns=["id", column]):
            ids += batch.column("id").to_pylist()
            lists = batch.column(column)
            parts.append(lists.flatten().flatten().to_numpy().reshape(-1, vector.list_size))
            lengths.append(lists.value_lengths().to_numpy())
        return ResidueEmbeddings(ids, np.concatenate(parts), np.cumsum(np.concatenate(lengths), dtype=np.int64))
