"""A chunk file being written: residues stream into it while they are computed, everything else comes at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.storage.blocks import BlockWriter
from virnucpro.storage.chunk_layout import DTYPES, TensorShape, checksum_of, head_bytes, tensor_places

if TYPE_CHECKING:
    from torch import Tensor

NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}

ROOM = 1 << 13
"""Bytes of the header for what is known only at the end: how the chunk was computed, and statistics."""

PAGE = 1 << 12
"""Bytes; the data of a file that is streamed begin at a multiple of them."""


@dataclass(frozen=True)
class ResidueRegion:
    """The part of a chunk file that one device fills: as many residues as its proteins have, in each layer.

    Attributes:
        file: the file that is being written.
        data_start, data_size: where its data begin, and their bytes.
        layers: which layers are kept.
        begins: for each, where the region begins, in bytes from the start of the data.
        first: the number of the region's first residue within the chunk.
        rows: how many residues the region holds.
        embed_dim: numbers of a residue's vector.
        dtype: of these, ``float32`` or ``float16``.
    """

    file: str
    data_start: int
    data_size: int
    layers: tuple[int, ...]
    begins: tuple[int, ...]
    first: int
    rows: int
    embed_dim: int
    dtype: str


class ResidueStream:
    """Takes residues in the order in which they come, and has them written to a region; see :class:`BlockWriter`."""

    def __init__(self, region: ResidueRegion, blocks: BlockWriter) -> None:
        self.dtype = np.dtype(region.dtype)
        self._region, self._blocks = region, blocks
        self._rows = 0

    def append(self, values: Mapping[int, NDArray[Any]]) -> int:
        """Take residues ``(rows, D)`` of each layer, C-contiguous and in :attr:`dtype`, which nobody changes any more.

        Returns:
            The number that the first of them has in the chunk.

        Raises:
            OSError: what came earlier could not be written.
            ValueError: more residues than the region holds.
        """
        region, first = self._region, self._rows
        self._rows += len(values[region.layers[0]])
        if self._rows > region.rows:
            raise ValueError(f"{self._rows} residues where {region.rows} were expected")
        place = first * region.embed_dim * self.dtype.itemsize
        places = zip(region.layers, region.begins, strict=True)
        self._blocks.write([(begin + place, values[layer]) for layer, begin in places])
        return region.first + first


class ChunkWriter:
    """A chunk file whose tensors' shapes are known, and whose contents come bit by bit."""

    def __init__(self, file: Path, shapes: Mapping[str, TensorShape], head_length: int) -> None:
        self._file, self._shapes, self._head_length = file, shapes, head_length
        self._places = tensor_places(shapes)
        self._size = sum(shape.nbytes for shape in shapes.values())
        self._blocks = BlockWriter(file, head_length, self._size)

    def __enter__(self) -> Self:
        self._blocks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._blocks.__exit__(*error)

    def regions(self, rows: Sequence[int]) -> list[ResidueRegion]:
        """The chunk's residues, divided among devices in turn: for each the region of so many ``rows``."""
        names = [name for name in self._shapes if name.startswith("residues.")]
        (_, embed_dim), dtype = self._shapes[names[0]].shape, np.dtype(DTYPES[self._shapes[names[0]].dtype])
        layers = tuple(int(name.removeprefix("residues.")) for name in names)
        found, first = [], 0
        for count in rows:
            at = first * embed_dim * dtype.itemsize
            begins = tuple(self._places[name] + at for name in names)
            found.append(
                ResidueRegion(
                    str(self._file),
                    self._head_length,
                    self._size,
                    layers,
                    begins,
                    first,
                    count,
                    embed_dim,
                    dtype.name,
                )
            )
            first += count
        return found

    def stream(self, region: ResidueRegion) -> ResidueStream:
        """What fills a region in this process."""
        return ResidueStream(region, self._blocks)

    def finish(
        self,
        tensors: Mapping[str, NDArray[Any] | Tensor],
        metadata: Mapping[str, str],
        digests: Mapping[int, bytes] | None = None,
    ) -> None:
        """Write all tensors that were not streamed, and the header; ``format`` and ``checksum`` are added to it.

        Args:
            digests: of blocks that other processes have written.

        Raises:
            OSError: something could not be written.
            TypeError: a tensor of a dtype that chunk files do not hold.
            ValueError: tensors of other shapes than were promised, or metadata that do not fit.
        """
        arrays = {name: as_array(name, tensor) for name, tensor in tensors.items()}
        for name, array in arrays.items():
            if shape_of(array) != self._shapes[name]:
                raise ValueError(f"tensor {name!r} is {array.dtype} {array.shape}, not {self._shapes[name]}")
        self._blocks.write([(self._places[name], array) for name, array in arrays.items()])
        head, digits = head_bytes(self._shapes, metadata, self._head_length)
        if len(head) != self._head_length:
            raise ValueError(f"the header takes {len(head)} bytes, and {self._head_length} were kept for it")
        checksum = checksum_of(head, self._blocks.digests(dict(digests or {})))
        self._blocks.write_head(head[:digits] + checksum.encode("ascii") + head[digits + len(checksum) :])


@contextmanager
def open_chunk_file(
    path: Path, shapes: Mapping[str, TensorShape], metadata: Mapping[str, str], *, room: int = ROOM
) -> Iterator[ChunkWriter]:
    """A chunk file to write: in place when the block ends well, and else not there at all.

    Args:
        metadata: what is known of it by now.
        room: bytes of the header for what else there will be.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
        ValueError: names or shapes that are not those of a chunk.
    """
    length = len(head_bytes(shapes, metadata)[0])
    if room:
        length = -(-(length + room) // PAGE) * PAGE
    with atomic_path(path) as temporary, ChunkWriter(temporary, shapes, length) as writer:
        yield writer


def write_chunk_file(path: Path, tensors: Mapping[str, NDArray[Any] | Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as a chunk file, whole or not at all; ``format`` and ``checksum`` are added.

    Equal arguments give equal bytes.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
        TypeError: a tensor of a dtype that chunk files do not hold.
        ValueError: tensors whose names or shapes are not those of a chunk file.
    """
    arrays = {name: as_array(name, tensor) for name, tensor in tensors.items()}
    shapes = {name: shape_of(array) for name, array in arrays.items()}
    with open_chunk_file(path, shapes, metadata, room=0) as writer:
        writer.finish(arrays, metadata)


def shape_of(array: NDArray[Any]) -> TensorShape:
    """An array's dtype and shape as chunk files name them."""
    return TensorShape(NAMES[array.dtype], array.shape)


def as_array(name: str, tensor: NDArray[Any] | Tensor) -> NDArray[Any]:
    """A tensor of a chunk as a C-contiguous array.

    Raises:
        TypeError: a dtype that chunk files do not hold.
    """
    array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()
    array = np.ascontiguousarray(array)
    if array.dtype not in NAMES:
        raise TypeError(f"tensor {name!r} has dtype {array.dtype}; a chunk file holds {', '.join(map(str, NAMES))}")
    return array
