"""Chunk files read: what the header says, whether every byte is what was written, and whether they are ours.

:mod:`virnucpro.storage.chunk_layout` says what is in them, :mod:`virnucpro.storage.chunk_writer` writes them. Needs
numpy and nothing else of weight: it also runs where only the GPU part is installed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.digest import digest_of_digests
from virnucpro.base.errors import UserError
from virnucpro.base.safetensors_header import HeaderError, read_header
from virnucpro.base.settings import VECTORS
from virnucpro.chunking.manifest import SplitRecord, chunk_name, chunk_number
from virnucpro.storage.blocks import block_digests
from virnucpro.storage.chunk_layout import (
    BLOCK,
    CHECKSUM_ENTRY,
    CHUNK_FORMAT,
    DTYPES,
    FORMATS,
    NO_CHECKSUM,
    TensorShape,
    checksum_of,
    wrong_tensors,
)
from virnucpro.storage.chunk_metadata import EmbeddingIdentity, decoded, serves


class ChunkError(UserError):
    """A chunk file that cannot be trusted: cut short, damaged, or not one of ours."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; delete it and run the same command again to recompute it")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class ChunkFile:
    """A chunk file whose header was read.

    ``metadata`` are the strings of the header; ``layout`` gives each tensor's dtype, shape and
    place in the file in bytes.
    """

    path: Path
    metadata: dict[str, str]
    layout: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]

    @property
    def version(self) -> int:
        """Of the format."""
        return FORMATS[self.metadata["format"]]

    @property
    def proteins(self) -> int:
        """n, the number of proteins (rows)."""
        return self.layout["digests"][1][0]

    @property
    def names(self) -> list[str]:
        return list(self.layout)

    def _place(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        if name not in self.layout:
            raise ChunkError(self.path, f"it holds no tensor {name!r} (it has {', '.join(self.layout)})")
        return self.layout[name]

    def tensors(self, name: str) -> NDArray[Any]:
        """One tensor as a read-only memory-mapped array; its pages are read as they are touched.

        Raises:
            ChunkError: the file has no tensor of that name.
        """
        dtype, shape, offset = self._place(name)
        if math.prod(shape) == 0:  # an empty range cannot be mapped
            return np.empty(shape, dtype)
        return np.memmap(self.path, dtype=dtype, mode="r", offset=offset, shape=shape)

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, read into memory (for the small ones); not through a map, for the disk may err.

        Raises:
            ChunkError: the file has no tensor of that name, or cannot be read.
        """
        dtype, shape, offset = self._place(name)
        try:
            values = np.fromfile(self.path, dtype, math.prod(shape), offset=offset)
        except OSError as error:
            raise ChunkError(self.path, f"it cannot be read ({error.strerror})") from None
        if values.size < math.prod(shape):
            raise ChunkError(self.path, "it was cut short while it was read")
        return values.reshape(shape)

    def digests(self) -> NDArray[np.uint8]:
        """The digests of the sequences, (n, 16), read into memory.

        Raises:
            ChunkError: they are not those that the header names.
        """
        digests = self.read("digests")
        if digest_of_digests([digests.tobytes()]) != self.metadata.get("chunk_digest"):
            raise ChunkError(self.path, "its sequences are not those that its header names")
        return digests

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each protein the number of its first residue among the file's residues, and how many there are."""
        begins = self.read("starts" if self.version > 1 else "offsets")
        return begins[: self.proteins], self.read("embedded").astype(np.int64)

    def residues(self, row: int, layer: int) -> NDArray[Any]:
        """The vectors (residues, D) of protein number ``row``, memory-mapped.

        Raises:
            ChunkError: the file has no such residues.
        """
        values = self.tensors(f"residues.{layer}")
        begin = int(self.tensors("starts" if self.version > 1 else "offsets")[row])
        return values[begin : begin + int(self.tensors("embedded")[row])]


def read_chunk_file(path: Path) -> ChunkFile:
    """Read a chunk file's header; the data are not looked at (see :func:`verify_chunk_file`).

    Raises:
        ChunkError: missing, unreadable, cut short, or not a chunk file.
    """
    with _open(path) as file:
        return _read_header(path, file)[0]


def verify_chunk_file(path: Path, blocks: ThreadPoolExecutor | None = None) -> ChunkFile:
    """Read a chunk file and compare every byte of it with its checksum.

    Args:
        blocks: hashes several blocks of the file at the same time.

    Raises:
        ChunkError: missing, unreadable, cut short, damaged, or not a chunk file.
    """
    with _open(path) as file:
        chunk, start, digits_at = _read_header(path, file)
        file.seek(0)
        head = bytearray(file.read(start))
        head[digits_at : digits_at + len(NO_CHECKSUM)] = NO_CHECKSUM.encode("ascii")
        try:
            found = _sha256(head, file) if chunk.version == 1 else _checksum(bytes(head), file, blocks)
        except OSError as error:
            raise ChunkError(path, f"it cannot be read ({error.strerror})") from None
        except EOFError:
            raise ChunkError(path, "it was cut short while it was read") from None
    if found != chunk.metadata["checksum"]:
        raise ChunkError(path, "its bytes do not give its checksum, so it was damaged")
    return chunk


def _checksum(head: bytes, file: BinaryIO, blocks: ThreadPoolExecutor | None) -> str:
    size = os.fstat(file.fileno()).st_size - len(head)
    if blocks is not None:
        return checksum_of(head, block_digests(file.fileno(), len(head), size, blocks))
    with ThreadPoolExecutor(1) as pool:
        return checksum_of(head, block_digests(file.fileno(), len(head), size, pool))


def _sha256(head: bytearray, file: BinaryIO) -> str:
    """The checksum of a file of format 1, from where it is read on."""
    checksum = hashlib.sha256(head)
    buffer = bytearray(BLOCK)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        checksum.update(memoryview(buffer)[:count])
    return checksum.hexdigest()


def _open(path: Path) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise ChunkError(path, f"it cannot be read ({error.strerror})") from None


def _read_header(path: Path, file: BinaryIO) -> tuple[ChunkFile, int, int]:
    """The header, where the data start, and where the checksum's digits stand (both in bytes from the file's start)."""
    try:
        header = read_header(file)
    except HeaderError as error:
        raise ChunkError(path, f"{error}, so it is not a complete chunk file") from None
    places = [match.start(1) for match in CHECKSUM_ENTRY.finditer(header.text)]
    version = FORMATS.get(header.metadata.get("format", ""))
    if version is None or len(places) != 1:
        raise ChunkError(path, f"it is not a chunk file (no format such as {CHUNK_FORMAT!r} in its metadata)")
    reason = wrong_tensors({name: TensorShape(*entry[:2]) for name, entry in header.tensors.items()}, version)
    if reason is not None:
        raise ChunkError(path, reason)
    places_of = {
        name: (np.dtype(DTYPES[entry.dtype]), entry.shape, header.data_start + entry.begin)
        for name, entry in header.tensors.items()
    }
    return ChunkFile(Path(path), header.metadata, places_of), header.data_start, 8 + places[0]


LISTED = 10
"""Files named one by one in an error; the rest are counted."""


class Verification:
    """Chunk files being verified by threads, all that are needed; a context manager.

    They may be read meanwhile, as long as nothing that is made of them is kept before :meth:`result` has returned.
    """

    def __init__(
        self,
        split: SplitRecord,
        tensors: Path,
        expected: Mapping[str, str],
        *,
        numbers: Sequence[int] | None = None,
        threads: int = 1,
    ) -> None:
        """Begin. Arguments as for :func:`verify_chunks`."""
        wanted = [*map(chunk_number, split.chunks)] if numbers is None else numbers
        self.paths = {number: tensors / f"{chunk_name(number)}.safetensors" for number in sorted(wanted)}
        self._files, self._blocks = (ThreadPoolExecutor(max(1, threads)) for _ in range(2))

        def check(number: int, path: Path) -> ChunkFile | ChunkError | None:
            name = chunk_name(number)
            try:
                return verify_chunk(path, name, split.chunks[name].digest, expected, self._blocks)
            except ChunkError as error:
                return error if path.exists() else None

        self._checks = {number: self._files.submit(check, number, path) for number, path in self.paths.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._blocks.shutdown(wait=False, cancel_futures=True)
        self._files.shutdown(cancel_futures=True)

    def result(self) -> dict[int, ChunkFile]:
        """Wait for the end; see :func:`verify_chunks`."""
        results = {number: check.result() for number, check in self._checks.items()}
        whole = {number: result for number, result in results.items() if isinstance(result, ChunkFile)}
        missing = [self.paths[number] for number, result in results.items() if result is None]
        bad = {result.path: result.reason for result in results.values() if isinstance(result, ChunkError)}
        bad |= _odd_ones_out(list(whole.values()))
        if bad:
            for path in bad:
                with suppress(FileNotFoundError):  # asked once more, it is renamed already
                    path.replace(path.with_name(path.name + ".bad"))
            raise UserError(_sentence(bad, missing))
        if missing:
            listed = _listed(map(str, missing), len(missing))
            raise UserError(
                f"{len(missing)} of {len(results)} chunk files are missing ({listed}); "
                "run the same command again to compute them"
            )
        return whole


def verify_chunks(
    split: SplitRecord,
    tensors: Path,
    expected: Mapping[str, str],
    *,
    numbers: Sequence[int] | None = None,
    threads: int = 1,
) -> dict[int, ChunkFile]:
    """Check every chunk file that is needed, all of them before any is used.

    A file that is damaged, made of other sequences, or made with another model or other settings than
    ``expected`` (and than the rest) is renamed to ``NAME.bad``, so that the next call recomputes it.

    Args:
        tensors: the folder of chunk files, which have the names of chunks (``chunk_00000.safetensors``).
        expected: metadata entries that all files must have; JSON values are compared as values.
        numbers: of the chunks; None for all of the split.
        threads: files, and blocks of them, hashed at the same time.

    Returns:
        the chunk files by their numbers, rising.

    Raises:
        UserError: files are missing or bad; all are in the one sentence.
    """
    with Verification(split, tensors, expected, numbers=numbers, threads=threads) as verification:
        return verification.result()


def verify_chunk(
    path: Path, name: str, digest: str, expected: Mapping[str, str], blocks: ThreadPoolExecutor | None = None
) -> ChunkFile:
    """Check one chunk file: every byte, that it is chunk ``name`` of these sequences, and made as ``expected``.

    Args:
        blocks: hashes several blocks of the file at the same time.

    Raises:
        ChunkError: the file cannot be trusted or is another; its ``reason`` says why.
    """
    chunk = verify_chunk_file(path, blocks)
    for key, value in {"chunk": name, **expected}.items():
        if not serves(key, chunk.metadata, value):
            raise ChunkError(path, f"it was made with {key} {chunk.metadata.get(key)}, not {value}")
    width = chunk.metadata.get("embed_dim")
    for tensor, (_, shape, _) in chunk.layout.items():
        if tensor.partition(".")[0] in (*VECTORS, "residues") and str(shape[1]) != width:
            raise ChunkError(path, f"its tensor {tensor!r} is {shape[1]} wide, and its model {width}")
    rows = digest_of_digests([chunk.read("digests").tobytes()])
    if digest != rows or chunk.metadata.get("chunk_digest") != rows:
        raise ChunkError(path, "it was made of other sequences than this sample has now")
    return chunk


def why_not_chunk(path: Path, name: str, digest: str, expected: Mapping[str, str]) -> str | None:
    """Why a chunk file is not the one that is wanted (see :func:`verify_chunk`); None when it is, byte for byte."""
    try:
        verify_chunk(path, name, digest, expected)
    except ChunkError as error:
        return error.reason
    return None


def _odd_ones_out(chunks: Sequence[ChunkFile]) -> dict[Path, str]:
    """Files made otherwise than most, where what is expected does not settle it."""
    bad: dict[Path, str] = {}
    for key in (field.name for field in fields(EmbeddingIdentity)):
        values = Counter(chunk.metadata.get(key) for chunk in chunks)
        if len(values) < 2:
            continue
        usual = values.most_common(1)[0][0]
        for chunk in chunks:
            found = chunk.metadata.get(key)
            if decoded(found) != decoded(usual):
                bad[chunk.path] = f"it was made with {key} {found}, the others with {usual}"
    return bad


def _listed(names: Any, count: int) -> str:
    shown = [name for name, _ in zip(names, range(LISTED), strict=False)]
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _sentence(bad: Mapping[Path, str], missing: Sequence[Path]) -> str:
    one = len(bad) == 1
    listed = _listed((f"{path}: {reason}" for path, reason in bad.items()), len(bad))
    also = f"; {len(missing)} more are missing ({_listed(map(str, missing), len(missing))})" if missing else ""
    return (
        f"{len(bad)} chunk file{' is' if one else 's are'} bad ({listed}){also}; renamed to NAME.bad, so "
        f"run the same command again to recompute {'it' if one else 'them'}"
    )
