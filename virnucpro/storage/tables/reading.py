"""Reading merged tables back: ids and a matrix, whatever the format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.errors import UserError


class Embeddings(NamedTuple):
    """Mean vectors: ``ids[i]`` has the vector ``matrix[i]``, (n, D), in input order."""

    ids: list[str]
    matrix: NDArray[Any]


class ResidueEmbeddings(NamedTuple):
    """Per-residue vectors: ``ids[i]`` has the matrix ``values[offsets[i]:offsets[i + 1]]``, (residues, D)."""

    ids: list[str]
    values: NDArray[Any]
    offsets: NDArray[np.int64]


def read_embeddings(path: str | Path, layer: int | None = None) -> Embeddings:
    """Read the mean vectors of a merged table: Parquet, HDF5, ``npy`` or ``virnucpro_pt``, known by its contents.

    ``npy`` is memory-mapped: nothing is read until rows are used. The others are read into memory.

    Args:
        path: the file or folder that the merge wrote.
        layer: which layer, when the table holds several.

    Raises:
        UserError: there is no such table, it cannot be read, or it does not hold what is asked for.
    """
    kind, path = _kind(path)
    if kind == "virnucpro_pt":
        return _read_virnucpro_pt(path, layer)
    if kind == "npy":
        column = _folder_column("embedding", layer, path)
        return Embeddings(_read_ids(path), np.load(path / f"{column}.npy", mmap_mode="r"))
    if kind == "parquet":
        return _read_parquet(path, layer)
    ids, parts, nothing = _read_hdf5(path, "embedding", layer)
    return Embeddings(ids, np.stack(parts) if parts else nothing)


def read_residues(path: str | Path, layer: int | None = None) -> ResidueEmbeddings:
    """Read the per-residue vectors of a merged table; see :func:`read_embeddings`."""
    kind, path = _kind(path)
    if kind == "npy":
        column = _folder_column("residues", layer, path)
        values = np.load(path / f"{column}.npy", mmap_mode="r")
        return ResidueEmbeddings(_read_ids(path), values, np.load(path / "offsets.npy"))
    if kind == "parquet":
        return _read_parquet_residues(path, layer)
    if kind == "hdf5":
        ids, parts, nothing = _read_hdf5(path, "residues", layer)
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return ResidueEmbeddings(ids, np.concatenate([nothing, *parts]), offsets)
    raise UserError(f"{path} holds mean vectors only; read the per-residue ones from parquet, hdf5 or npy")


def _kind(path: str | Path) -> tuple[str, Path]:
    path = Path(path)
    if (path / "ids.txt").is_file():
        return "npy", path
    if path.is_dir() and any(path.glob("output_*_ESM.pt")):
        return "virnucpro_pt", path
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: no table can be read there ({error.strerror}); check the path") from None
    if start.startswith(b"PAR1"):
        return "parquet", path
    if start == b"\x89HDF\r\n\x1a\n":
        return "hdf5", path
    raise UserError(
        f"{path} is not a table of embeddings; give what the merge wrote (parquet, hdf5, npy, virnucpro_pt)"
    )


def _column(word: str, layer: int | None, names: list[str], provenance: dict[str, Any], path: Path) -> str:
    """The column's name: ``embedding``, or ``embedding_{layer}`` in a table of several layers."""
    found = sorted(name for name in names if re.fullmatch(rf"{word}(_\d+)?", name))
    layers = provenance.get("layers") or []
    wanted = word if layer is None or (found == [word] and layers == [layer]) else f"{word}_{layer}"
    if wanted in found:
        return wanted
    have = f"it has {', '.join(found)} of layer {', '.join(map(str, layers))}" if found else "it has none of that kind"
    raise UserError(f"{path} has no column {wanted} ({have}); name a layer that it has")


def _folder_column(word: str, layer: int | None, folder: Path) -> str:
    provenance = json.loads((folder / "provenance.json").read_text())
    return _column(word, layer, [file.stem for file in folder.glob("*.npy")], provenance, folder)


def _read_ids(folder: Path) -> list[str]:
    return (folder / "ids.txt").read_text(encoding="utf-8").split("\n")[:-1]


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _parquet_provenance(file: Any) -> dict[str, Any]:
    return dict(json.loads((file.schema_arrow.metadata or {}).get(b"virnucpro", b"{}")))


def _read_parquet(path: Path, layer: int | None) -> Embeddings:
    """Row group by row group into one matrix, so that the floats are in memory once."""
    file = _open_parquet(path)
    column = _column("embedding", layer, file.schema_arrow.names, _parquet_provenance(file), path)
    vector = file.schema_arrow.field(column).type
    matrix = np.empty((file.metadata.num_rows, vector.list_size), vector.value_type.to_pandas_dtype())
    ids: list[str] = []
    with file:
        for batch in file.iter_batches(batch_size=8192, columns=["id", column]):
            start = len(ids)
            ids += batch.column("id").to_pylist()
            values = batch.column(column).flatten().to_numpy()
            matrix[start : len(ids)] = values.reshape(-1, vector.list_size)
    return Embeddings(ids, matrix)


def _read_parquet_residues(path: Path, layer: int | None) -> ResidueEmbeddings:
    file = _open_parquet(path)
    column = _column("residues", layer, file.schema_arrow.names, _parquet_provenance(file), path)
    vector = file.schema_arrow.field(column).type.value_type
    ids: list[str] = []
    parts = [np.empty((0, vector.list_size), vector.value_type.to_pandas_dtype())]
    lengths = [np.zeros(0, np.int64)]
    with file:
        for batch in file.iter_batches(batch_size=256, columns=["id", column]):
            ids += batch.column("id").to_pylist()
            lists = batch.column(column)
            vectors = lists.flatten()
            parts.append(vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size))
            lengths.append(lists.value_lengths().to_numpy())
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return ResidueEmbeddings(ids, np.concatenate(parts), offsets)


def _read_hdf5(path: Path, word: str, layer: int | None) -> tuple[list[str], list[NDArray[Any]], NDArray[Any]]:
    """Ids, the array of each, and one of no vectors, which says width and type where there is no id."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read as HDF5: {error}") from None
    with file:
        if "columns" not in file.attrs:
            raise UserError(f"{path} was not written by virnucpro; read it with h5py")
        columns = json.loads(file.attrs["columns"])
        provenance = json.loads(file.attrs["virnucpro"])
        column = _column(word, layer, columns, provenance, path)
        plain: list[tuple[str, NDArray[Any]]] = []
        placed: list[tuple[int, str, NDArray[Any]]] = []
        for name, found in _records(file, None if len(columns) == 1 else column):
            # Low-level calls: with a million datasets, the objects that h5py makes of each take most of the time.
            values = found if isinstance(found, h5py.h5d.DatasetID) else h5py.h5d.open(found, column.encode())
            array = np.empty(values.shape, values.dtype)
            values.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
            if h5py.h5a.get_num_attrs(found) and h5py.h5a.exists(found, b"record"):
                attributes = file[name].attrs
                placed.append((int(attributes["record"]), str(attributes["id"]), array))
            else:
                plain.append((name, array))
    # Ids that are stored under another name, or one level down, know their place; the rest is in order.
    for number, record_id, array in sorted(placed, key=lambda item: item[0]):
        plain.insert(number, (record_id, array))
    nothing = np.empty((0, provenance["embed_dim"]), provenance["dtype"])
    return [record_id for record_id, _ in plain], [array for _, array in plain], nothing


def _records(group: Any, column: str | None, above: str = "") -> Iterator[tuple[str, Any]]:
    """Path and identifier of every record (a dataset, or a group of columns), those one level down included."""
    import h5py

    for name in group:
        found = h5py.h5o.open(group.id, name.encode())
        if isinstance(found, h5py.h5d.DatasetID) or (column is not None and _has_column(found, column)):
            yield f"{above}{name}", found
        else:
            yield from _records(group[name], column, f"{above}{name}/")


def _has_column(group: Any, column: str) -> bool:
    import h5py

    return column.encode() in group and isinstance(h5py.h5o.open(group, column.encode()), h5py.h5d.DatasetID)


def _read_virnucpro_pt(folder: Path, layer: int | None) -> Embeddings:
    import torch

    provenance = json.loads((folder / "provenance.json").read_text())
    if layer is not None:
        _column("embedding", layer, ["embedding"], provenance, folder)
    numbers = [
        int(found[1]) for file in folder.iterdir() if (found := re.fullmatch(r"output_(\d+)_ESM\.pt", file.name))
    ]
    ids: list[str] = []
    parts = [np.empty((0, provenance["embed_dim"]), np.float32)]
    for number in sorted(numbers):
        content = torch.load(folder / f"output_{number}_ESM.pt", weights_only=True, map_location="cpu")
        ids += content["proteins"]
        parts += [torch.stack(content["data"]).numpy()] if content["data"] else []
    return Embeddings(ids, np.concatenate(parts))
