"""The formats that a merged table can have, by the names that the configuration uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from virnucpro.errors import UserError
from virnucpro.storage.atomic import atomic_path
from virnucpro.storage.parquet import ParquetTable
from virnucpro.storage.table import Layout, TableWriter

FORMATS = ("parquet", "hdf5", "virnucpro_pt")


@contextmanager
def open_table(
    name: str, path: Path, layout: Layout, provenance: dict[str, Any], records_per_file: int
) -> Iterator[TableWriter]:
    """A writer of the format called ``name``; its file or folder is in place when the block ends well.

    Raises:
        UserError: a format that is not known, or that cannot hold what ``layout`` says.
    """
    if name == "parquet":
        with atomic_path(path) as temporary, closing(ParquetTable(temporary, layout, provenance)) as table:
            yield table
    else:
        raise UserError(f"unknown table format {name!r}: give one of {', '.join(FORMATS)}")
