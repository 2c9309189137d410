"""Merged tables: the formats there are, and writing and reading a table of any of them.

Each format has a module of its own that writes and reads it. Needs the standard library alone until a table is opened:
the process that plans a run asks for names only, and not everyone has h5py, pyarrow and torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from virnucpro.base.atomic import atomic_directory, atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.settings import checked
from virnucpro.storage.report_record import Provenance

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from virnucpro.storage.tables.rows import Embeddings, Layout, ResidueEmbeddings, TableWriter


class TableFormat(NamedTuple):
    """One format: its table's name in a sample's folder, whether that is a folder, our module, and the library.

    ``per_record`` are the bytes that a record takes at least, beside its vectors: the shortest id, headers of its
    dataset in HDF5, of its pickled tensor.
    """

    name: str
    is_folder: bool
    module: str
    library: str
    per_record: int


TABLES = {
    "parquet": TableFormat("embeddings.parquet", False, "parquet", "pyarrow", 4),
    "hdf5": TableFormat("embeddings.h5", False, "hdf5", "h5py", 250),
    "virnucpro_pt": TableFormat("virnucpro_pt", True, "virnucpro_pt", "torch", 60),
    "npy": TableFormat("embeddings_npy", True, "npy", "numpy", 11),
    "chunk_files": TableFormat("embeddings_chunk_files", True, "chunk_files", "numpy", 20),
}
"""The formats, by the names that the configuration uses."""

WITHOUT_VECTORS = frozenset({"chunk_files"})
"""Formats that only say where the vectors are."""


class _Module(Protocol):
    """What each format's module has."""

    def write_table(self, path: Path, layout: Layout, provenance: Provenance) -> TableWriter: ...

    def read_embeddings(self, path: Path, layer: int | None, word: str = ...) -> Embeddings: ...

    def read_residues(self, path: Path, layer: int | None) -> ResidueEmbeddings: ...


def check_formats(names: Sequence[str]) -> None:
    """See that tables of these formats can be written and read here, before anything is computed for them.

    Raises:
        UserError: no format, one that is not known, or one whose library is not installed.
    """
    unknown = [name for name in names if name not in TABLES]
    if unknown or not names:
        raise UserError(f"unknown table formats {unknown}: give one or more of {', '.join(TABLES)}")
    for name in names:
        if find_spec(TABLES[name].library) is None:
            raise UserError(
                f"the format {name} needs the package {TABLES[name].library}, which is not installed: "
                'pip install "virnucpro[data]"'
            )


def _module(name: str) -> _Module:
    check_formats([name])
    return cast(_Module, import_module(f"{__name__}.{TABLES[name].module}"))


@contextmanager
def open_table(name: str, path: Path, layout: Layout, provenance: Provenance) -> Iterator[TableWriter]:
    """A writer of the format called ``name``; its file or folder is in place when the block ends well.

    Raises:
        UserError: a format that is not known, whose library is not installed, or that cannot hold what ``layout`` says.
    """
    module = _module(name)
    put_in_place = atomic_directory if TABLES[name].is_folder else atomic_path
    with put_in_place(path) as temporary, module.write_table(temporary, layout, provenance) as table:
        yield table
        table.finish()


def read_embeddings(path: str | Path, layer: int | None = None, pooling: str | None = None) -> Embeddings:
    """Read the vectors of a merged table in any format (Parquet, HDF5, ...), which is known by its contents.

    ``npy`` is memory-mapped: nothing is read until rows are used. The others are read into memory.

    Args:
        path: the file or folder that the merge wrote.
        layer: which layer, when the table holds several.
        pooling: ``mean``, ``bos`` or ``max``, when it holds several; by default the first of these that it has.

    Returns:
        Ids and their vectors, (n, D), float32 or float16, in input order.

    Raises:
        UserError: there is no such table, it is damaged, it does not hold what is asked for, or the library for its
            format is not installed.
    """
    from virnucpro.storage.tables.rows import COLUMNS

    word = "vectors" if pooling is None else COLUMNS[checked("pooling", pooling)[0]]
    return _module(_format_of(Path(path))).read_embeddings(Path(path), layer, word)


def read_parts(path: Path, layer: int, pooling: str) -> Iterator[NDArray[Any]]:
    """The vectors of a merged table, some at a time, each (rows, D): Parquet and npy are not read into memory whole.

    Raises:
        UserError: as :func:`read_embeddings`.
    """
    name = _format_of(path)
    if name == "parquet":
        from virnucpro.storage.tables.rows import COLUMNS

        # By name, as all formats: what embeds imports this module and has no pyarrow in its environment.
        yield from cast("Any", _module(name)).read_batches(path, layer, COLUMNS[pooling])
        return
    matrix = read_embeddings(path, layer, pooling).matrix
    for begin in range(0, len(matrix), PART_ROWS):
        yield matrix[begin : begin + PART_ROWS]


PART_ROWS = 8192


def read_residues(path: str | Path, layer: int | None = None) -> ResidueEmbeddings:
    """Read the per-residue vectors of a merged table; see :func:`read_embeddings`.

    Returns:
        Ids, vectors (sum of residues, D), and offsets (n + 1,): record i's are ``offsets[i]:offsets[i + 1]``. Those of
        ``npy`` and ``chunk_files`` are read from the disk as they are used, and need no memory before.
    """
    return _module(_format_of(Path(path))).read_residues(Path(path), layer)


def _format_of(path: Path) -> str:
    """The format of a table, by its contents."""
    if (path / "chunks.json").is_file():
        return "chunk_files"
    if (path / "ids.txt").is_file():
        return "npy"
    if path.is_dir() and any(path.glob("output_*_ESM.pt")):
        return "virnucpro_pt"
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: no table can be read there ({error.strerror}); check the path") from None
    if start.startswith(b"PAR1"):
        return "parquet"
    if start == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    raise UserError(f"{path} is not a table of embeddings; give what the merge wrote ({', '.join(TABLES)})")
