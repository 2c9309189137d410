"""The file that one embed job leaves: a safetensors file that proves its own integrity. Are all there, and ours?

It is plain safetensors (https://huggingface.co/docs/safetensors, "Format"), so any reader of that
format opens it. Two things are added. The metadata entry ``checksum`` is the sha256 over every byte
of the file with the checksum's own 64 digits taken as ``0``: a flipped byte anywhere, header
included, is found. And the tensors have fixed names and shapes, n proteins and D the model's width:

    digests   uint8   (n, 16)  blake2b-16 of each protein's residues
    lengths   int32   (n,)     residues of the protein
    windows   int32   (n,)     windows that it was run in (1: whole)
    embedded  int32   (n,)     residues that entered (fewer than lengths when truncated)
    precision uint8   (n,)     index into the JSON list of the metadata entry "precisions"
    mean.{layer}      float32 (n, D)
    residues.{layer}  float32 (sum of embedded, D) with offsets int64 (n + 1,)

Needs numpy and nothing else of weight: it also runs where only the GPU part is installed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.digest import digest_of_digests
from virnucpro.base.errors import UserError
from virnucpro.base.safetensors_header import HeaderError, read_header
from virnucpro.chunking.manifest import SplitRecord, chunk_name
from virnucpro.storage.chunk_metadata import EmbeddingIdentity

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_FORMAT = "virnucpro-chunk-1"
CHECKSUM_ENTRY = re.compile(rb'"checksum":"([0-9a-f]{64})"')
NO_CHECKSUM = "0" * 64
BLOCK = 1 << 22

_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_REQUIRED = {"digests": "U8", "lengths": "I32", "windows": "I32", "embedded": "I32", "precision": "U8"}


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
    def proteins(self) -> int:
        """n, the number of proteins (rows)."""
        return self.layout["digests"][1][0]

    @property
    def names(self) -> list[str]:
        return list(self.layout)

    def tensors(self, name: str) -> NDArray[Any]:
        """One tensor as a read-only memory-mapped array; its pages are read as they are touched.

        Raises:
            ChunkError: the file has no tensor of that name.
        """
        if name not in self.layout:
            raise ChunkError(self.path, f"it holds no tensor {name!r} (it has {', '.join(self.layout)})")
        dtype, shape, offset = self.layout[name]
        if math.prod(shape) == 0:  # an empty range cannot be mapped
            return np.empty(shape, dtype)
        return np.memmap(self.path, dtype=dtype, mode="r", offset=offset, shape=shape)

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, read into memory (for the small ones)."""
        return np.array(self.tensors(name))


def decoded(text: str | None) -> Any:
    """A metadata entry as JSON where it is a JSON list or object, else as the text that it is."""
    if text is None or not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _as_array(name: str, tensor: NDArray[Any] | Tensor) -> NDArray[Any]:
    array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()
    array = np.ascontiguousarray(array)
    if array.dtype not in _NAMES:
        raise TypeError(f"tensor {name!r} has dtype {array.dtype}; a chunk file holds {', '.join(map(str, _NAMES))}")
    return array


def write_chunk_file(path: Path, tensors: Mapping[str, NDArray[Any] | Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as a chunk file, whole or not at all; ``format`` and ``checksum`` are added.

    Equal arguments give equal bytes. Nothing is copied but a block at a time.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
        TypeError: a tensor of a dtype that chunk files do not hold.
        ValueError: tensors whose names or shapes are not those of a chunk file.
    """
    arrays = {name: _as_array(name, tensor) for name, tensor in tensors.items()}
    # Wide numbers first, as safetensors itself does, so that every tensor starts aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {
        "__metadata__": {**dict(sorted(metadata.items())), "format": CHUNK_FORMAT, "checksum": NO_CHECKSUM}
    }
    end = 0
    for name in names:
        begin, end = end, end + arrays[name].nbytes
        dtype = _NAMES[arrays[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
    reason = _wrong_tensors({name: (_NAMES[array.dtype], array.shape) for name, array in arrays.items()})
    if reason is not None:
        raise ValueError(f"{path}: {reason}")
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    digits = [match.start(1) for match in CHECKSUM_ENTRY.finditer(text)]
    if len(digits) != 1:
        raise ValueError(f"{path}: a metadata value looks like a checksum entry")
    checksum = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        for piece in (len(text).to_bytes(8, "little"), text):
            checksum.update(piece)
            out.write(piece)
        for name in names:
            flat = arrays[name].reshape(-1).view("u1")
            for start in range(0, flat.size, BLOCK):
                block = flat[start : start + BLOCK].data
                checksum.update(block)
                out.write(block)
        out.seek(8 + digits[0])
        out.write(checksum.hexdigest().encode("ascii"))


def read_chunk_file(path: Path) -> ChunkFile:
    """Read a chunk file's header; the data are not looked at (see :func:`verify_chunk_file`).

    Raises:
        ChunkError: missing, unreadable, cut short, or not a chunk file.
    """
    with _open(path) as file:
        return _read_header(path, file)[0]


def verify_chunk_file(path: Path) -> ChunkFile:
    """Read a chunk file and compare every byte of it with its checksum, in blocks.

    Raises:
        ChunkError: missing, unreadable, cut short, damaged, or not a chunk file.
    """
    with _open(path) as file:
        chunk, start, digits_at = _read_header(path, file)
        file.seek(0)
        head = bytearray(file.read(start))
        head[digits_at : digits_at + 64] = NO_CHECKSUM.encode("ascii")
        checksum = hashlib.sha256(head)
        buffer = bytearray(BLOCK)
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            checksum.update(memoryview(buffer)[:count])
    if checksum.hexdigest() != chunk.metadata["checksum"]:
        raise ChunkError(path, "its bytes do not give its checksum, so it was damaged")
    return chunk


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
    if header.metadata.get("format") != CHUNK_FORMAT or len(places) != 1:
        raise ChunkError(path, f"it is not a chunk file (no format {CHUNK_FORMAT!r} in its metadata)")
    reason = _wrong_tensors({name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()})
    if reason is not None:
        raise ChunkError(path, reason)
    places_of = {
        name: (_DTYPES[entry.dtype], entry.shape, header.data_start + entry.begin)
        for name, entry in header.tensors.items()
    }
    return ChunkFile(Path(path), header.metadata, places_of), header.data_start, 8 + places[0]


def _wrong_tensors(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str | None:
    """What keeps these names, dtypes and shapes from being a chunk's; None when nothing does."""
    missing = [name for name in _REQUIRED if name not in tensors]
    if missing:
        return f"it lacks the tensors {', '.join(missing)}"
    n = tensors["digests"][1][0] if tensors["digests"][1] else -1
    for name, (dtype, shape) in tensors.items():
        if name in _REQUIRED:
            right = (_REQUIRED[name], (n, 16) if name == "digests" else (n,)) == (dtype, shape)
        elif name == "offsets":
            right = (dtype, shape) == ("I64", (n + 1,))
        elif name.startswith("mean."):
            right = len(shape) == 2 and shape[0] == n and dtype in ("F32", "F16")
        elif name.startswith("residues."):
            right = len(shape) == 2 and "offsets" in tensors and dtype in ("F32", "F16")
        else:
            right = False
        if not right:
            return f"its tensor {name!r} is {dtype} {list(shape)}, which no chunk of {n} proteins has"
    return None


LISTED = 10
"""Files named one by one in an error; the rest are counted."""


def verify_chunks(
    split: SplitRecord, tensors: Sequence[Path], expected: Mapping[str, str], *, threads: int = 1
) -> list[ChunkFile]:
    """Check every chunk file that a split needs, all of them before any is used.

    A file that is damaged, made of other sequences, or made with another model or other settings than
    ``expected`` (and than the rest) is renamed to ``NAME.bad``, so that the next call recomputes it.

    Args:
        tensors: the chunk files, known by their names (``chunk_00000.safetensors``).
        expected: metadata entries that all files must have; JSON values are compared as values.
        threads: files hashed at the same time.

    Returns:
        the chunk files in the order of their numbers.

    Raises:
        UserError: files are missing or bad; all are in the one sentence.
    """
    by_name = {Path(path).stem: Path(path) for path in tensors}
    names = [chunk_name(number) for number in range(len(split.chunks))]
    missing = [by_name.get(name, Path(f"{name}.safetensors")) for name in names if not _is_there(by_name.get(name))]
    present = [(number, by_name[name]) for number, name in enumerate(names) if _is_there(by_name.get(name))]

    def check(item: tuple[int, Path]) -> ChunkFile | ChunkError:
        try:
            return verify_chunk(item[1], chunk_name(item[0]), split.chunks[item[0]], expected)
        except ChunkError as error:
            return error

    with ThreadPoolExecutor(max(1, threads)) as pool:
        results = list(pool.map(check, present))
    whole = [result for result in results if isinstance(result, ChunkFile)]
    bad = {result.path: result.reason for result in results if isinstance(result, ChunkError)}
    bad |= _odd_ones_out(whole)
    if bad:
        for path in bad:
            path.replace(path.with_name(path.name + ".bad"))
        raise UserError(_sentence(bad, missing))
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} chunk files are missing ({_listed(map(str, missing), len(missing))}); "
            "run the same command again to compute them"
        )
    return whole


def _is_there(path: Path | None) -> bool:
    return path is not None and path.exists()


def verify_chunk(path: Path, name: str, digest: str, expected: Mapping[str, str]) -> ChunkFile:
    """Check one chunk file: every byte, that it is chunk ``name`` of these sequences, and made as ``expected``.

    Raises:
        ChunkError: the file cannot be trusted or is another; its ``reason`` says why.
    """
    chunk = verify_chunk_file(path)
    for key, value in {"chunk": name, **expected}.items():
        if not _same(chunk.metadata.get(key), value):
            raise ChunkError(path, f"it was made with {key} {chunk.metadata.get(key)}, not {value}")
    width = chunk.metadata.get("embed_dim")
    for tensor, (_, shape, _) in chunk.layout.items():
        if tensor.startswith(("mean.", "residues.")) and str(shape[1]) != width:
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


def _same(found: str | None, wanted: str) -> bool:
    return found is not None and (found == wanted or decoded(found) == decoded(wanted))


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
            if found != usual and not (found is not None and usual is not None and _same(found, usual)):
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
