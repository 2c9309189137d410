"""What the tables are called, for those that only name them.

The formats that a merged table can have, by the names that the configuration uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from virnucpro.base.atomic import atomic_directory, atomic_path
from virnucpro.base.errors import UserError

if TYPE_CHECKING:
    from virnucpro.storage.report_record import Provenance
    from virnucpro.storage.tables.rows import Layout, TableWriter

TABLES = {
    "parquet": "embeddings.parquet",
    "hdf5": "embeddings.h5",
    "virnucpro_pt": "virnucpro_pt",
    "npy": "embeddings_npy",
}
"""What a format's table is called in a sample's folder."""


FOLDERS = frozenset({"virnucpro_pt", "npy"})
"""Formats whose table is a folder of files."""


EXTRAS = {"hdf5": ("h5py", "data")}
"""What a format needs beyond the package's own requirements, and the extra that brings it."""


def check_formats(names: Sequence[str]) -> None:
    """See that tables of these formats can be written here, before anything is computed for them.

    Raises:
        UserError: no format, one that is not known, or one whose library is not installed.
    """
    unknown = [name for name in names if name not in TABLES]
    if unknown or not names:
        raise UserError(f"unknown table formats {unknown}: give one or more of {', '.join(TABLES)}")
    for name in names:
        module, extra = EXTRAS.get(name, (None, None))
        if module is not None and find_spec(module) is None:
            raise UserError(f"the format {name} needs {module}, which is not here: pip install 'virnucpro[{extra}]'")


@contextmanager
def open_table(
    name: str, path: Path, layout: Layout, provenance: Provenance, records_per_file: int
) -> Iterator[TableWriter]:
    """A writer of the format called ``name``; its file or folder is in place when the block ends well.

    Raises:
        UserError: a format that is not known, or that cannot hold what ``layout`` says.
    """
    check_formats([name])
    # Each is imported when it is used: h5py and torch are slow to load, and not everyone has both.
    if name == "parquet":
        from virnucpro.storage.tables.parquet import ParquetTable

        with atomic_path(path) as temporary, closing(ParquetTable(temporary, layout, provenance)) as table:
            yield table
    elif name == "hdf5":
        from virnucpro.storage.tables.hdf5 import Hdf5Table

        with atomic_path(path) as temporary, closing(Hdf5Table(temporary, layout, provenance)) as table:
            yield table
    elif name == "virnucpro_pt":
        from virnucpro.storage.tables.virnucpro_pt import VirnucproTable

        with (
            atomic_directory(path) as temporary,
            closing(VirnucproTable(temporary, layout, provenance, records_per_file)) as table,
        ):
            yield table
    else:
        from virnucpro.storage.tables.npy import NpyTable

        with atomic_directory(path) as temporary, closing(NpyTable(temporary, layout, provenance)) as table:
            yield table
