"""Merged table as Parquet: one row a record, embeddings as fixed-size lists.

Columns: ``id``, ``length``, ``treatment``, ``precision``, ``replaced``, ``embedding``
(``fixed_size_list<float>[D]``; ``embedding_{layer}`` for several layers) and, with per-residue pooling,
``residues`` (``large_list<fixed_size_list<float>[D]>``: values and offsets). The schema's metadata entry
``virnucpro`` is the provenance as JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.base.records import record_text
from virnucpro.storage.index import METADATA_KEY
from virnucpro.storage.report_record import Provenance
from virnucpro.storage.tables.rows import Layout, Rows, as_dtype

_COMPRESSED = ("id", "length", "treatment", "precision", "replaced")


class ParquetTable:
    """Writes one row group each time it is given rows; floats are stored as they are, for they hardly compress."""

    def __init__(self, path: Path, layout: Layout, provenance: Provenance) -> None:
        self._path = path
        self._layout = layout
        vector = pa.list_(pa.field("element", _arrow_type(layout.dtype), nullable=False), layout.embed_dim)
        fields = [
            pa.field("id", pa.string(), nullable=False),
            pa.field("length", pa.int32(), nullable=False),
            pa.field("treatment", pa.string(), nullable=False),
            pa.field("precision", pa.string(), nullable=False),
            pa.field("replaced", pa.int32(), nullable=False),
        ]
        for (kind, _), name in layout.names.items():
            of_residues = pa.large_list(pa.field("element", vector, nullable=False))
            fields.append(pa.field(name, vector if kind == "mean" else of_residues, nullable=False))
        self._schema = pa.schema(fields, metadata={METADATA_KEY: record_text(provenance).encode()})
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression=dict.fromkeys(_COMPRESSED, "zstd"),
            use_dictionary=["treatment", "precision", "replaced"],
            write_statistics=["id", "length"],
        )

    def write(self, rows: Rows) -> None:
        columns = [
            pa.array(rows.ids, pa.string()),
            pa.array(rows.length, pa.int32()),
            pa.array(rows.treatment, pa.string()),
            pa.array(rows.precision, pa.string()),
            pa.array(rows.replaced, pa.int32()),
        ]
        for (kind, layer), name in self._layout.names.items():
            values = (rows.mean if kind == "mean" else rows.residues)[layer]
            arrow_type = self._schema.field(name).type
            if kind == "mean":
                columns.append(self._vectors(values, arrow_type))
            else:
                vectors = self._vectors(values, arrow_type.value_type)
                columns.append(pa.LargeListArray.from_arrays(pa.array(rows.offsets), vectors, type=arrow_type))
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema), row_group_size=len(rows))

    def _vectors(self, values: NDArray[Any], arrow_type: pa.DataType) -> pa.Array:
        narrow = np.ascontiguousarray(as_dtype(values, self._layout.dtype, self._path))
        return pa.FixedSizeListArray.from_arrays(pa.array(narrow.reshape(-1)), type=arrow_type)

    def close(self) -> None:
        self._writer.close()


def _arrow_type(dtype: str) -> pa.DataType:
    return pa.float16() if dtype == "float16" else pa.float32()
