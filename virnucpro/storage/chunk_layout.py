"""What a chunk file is made of: tensors of fixed names, their places, and a header that holds the checksum.

It is plain safetensors (https://huggingface.co/docs/safetensors, "Format"), so any reader of that format opens it. With
n proteins and D the model's width it holds

    digests   uint8   (n, 16)  blake2b-16 of each protein's residues
    lengths   int32   (n,)     residues of the protein
    windows   int32   (n,)     windows that it was run in (1: whole)
    embedded  int32   (n,)     residues that entered (fewer than lengths when truncated)
    precision uint8   (n,)     index into the JSON list of the metadata entry "precisions"
    mean.{layer}      float32 (n, D); bos.{layer} and max.{layer} the same
    residues.{layer}  float32 or float16 (sum of embedded, D) with starts int64 (n,)

Protein i has the rows ``starts[i]`` to before ``starts[i] + embedded[i]`` of ``residues.{layer}``: they lie in the
order in which they were computed, longest protein first, so that they can be written as they come.

The metadata entry ``checksum`` is a sha256. Over the header, with the checksum's own 64 digits taken as ``0``, and over
the sha256 of each :data:`BLOCK` bytes of the data that follow it (the last block is shorter): blocks are hashed by
several threads, in any order. So a flipped byte anywhere, header included, is found.

Files of format 1 are read too: there the checksum is the sha256 over every byte of the file, and residues lie protein
by protein, with ``offsets`` int64 (n + 1,) in place of ``starts``.

Needs the standard library alone: the process that plans a run asks how large a file will be.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from virnucpro.base.safetensors_header import WIDTHS, TensorEntry, header_bytes
from virnucpro.base.settings import VECTORS

FORMATS = {"virnucpro-chunk-1": 1, "virnucpro-chunk-2": 2}
"""Names of the formats that are read, and their numbers."""

CHUNK_FORMAT = "virnucpro-chunk-2"
"""The one that is written."""

CHECKSUM_ENTRY = re.compile(rb'"checksum":"([0-9a-f]{64})"')
NO_CHECKSUM = "0" * 64

BLOCK = 1 << 22
"""Bytes that are hashed as one."""

DTYPES = {"U8": "u1", "F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8"}
"""NumPy's names of the number formats, by those of safetensors."""

REQUIRED = {"digests": "U8", "lengths": "I32", "windows": "I32", "embedded": "I32", "precision": "U8"}


class TensorShape(NamedTuple):
    """A tensor's dtype, by the name that safetensors gives it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * WIDTHS[self.dtype]


def chunk_shapes(
    proteins: int,
    residues: int,
    *,
    embed_dim: int,
    layers: Iterable[int],
    pooling: Collection[str],
    residue_dtype: str = "float32",
) -> dict[str, TensorShape]:
    """The tensors of a chunk.

    Args:
        proteins: in the chunk.
        residues: of them all that are embedded.
        embed_dim: the model's width.
        layers: those that are kept.
        pooling: what is kept of each.
        residue_dtype: of the residues' vectors, ``float32`` or ``float16``.
    """
    shapes = {name: TensorShape(dtype, (proteins,)) for name, dtype in REQUIRED.items()}
    shapes["digests"] = TensorShape("U8", (proteins, 16))
    layers = tuple(layers)
    for kind in VECTORS:
        if kind in pooling:
            shapes |= {f"{kind}.{layer}": TensorShape("F32", (proteins, embed_dim)) for layer in layers}
    if "per_residue" in pooling:
        shapes["starts"] = TensorShape("I64", (proteins,))
        dtype = residue_dtype.replace("float", "F")
        shapes |= {f"residues.{layer}": TensorShape(dtype, (residues, embed_dim)) for layer in layers}
    return shapes


def tensor_places(shapes: Mapping[str, TensorShape]) -> dict[str, int]:
    """Where each tensor begins, in bytes from the start of the data, in the order in which they lie there.

    Wide numbers come first, as safetensors itself does it, so that every tensor starts aligned.
    """
    places, end = {}, 0
    for name in sorted(shapes, key=lambda name: (-WIDTHS[shapes[name].dtype], name)):
        places[name] = end
        end += shapes[name].nbytes
    return places


def head_bytes(shapes: Mapping[str, TensorShape], metadata: Mapping[str, str], length: int = 0) -> tuple[bytes, int]:
    """What stands before the data, with no checksum yet, and where the checksum's digits go.

    Args:
        length: bytes that it is to have at least; blanks fill it.

    Raises:
        ValueError: names or shapes that are not those of a chunk, or metadata that look like a checksum.
    """
    reason = wrong_tensors(shapes, 2)
    if reason is not None:
        raise ValueError(reason)
    places = tensor_places(shapes).items()
    tensors = {name: TensorEntry(*shapes[name], begin, begin + shapes[name].nbytes) for name, begin in places}
    said = {**dict(sorted(metadata.items())), "format": CHUNK_FORMAT, "checksum": NO_CHECKSUM}
    head = header_bytes(tensors, said, length=length)
    digits = [match.start(1) for match in CHECKSUM_ENTRY.finditer(head)]
    if len(digits) != 1:
        raise ValueError("a metadata value looks like a checksum entry")
    return head, digits[0]


def checksum_of(head: bytes, blocks: Sequence[bytes]) -> str:
    """The checksum, in hex, of a head without one and the sha256 of each block of the data."""
    return hashlib.sha256(head + b"".join(blocks)).hexdigest()


def wrong_tensors(tensors: Mapping[str, TensorShape], version: int) -> str | None:
    """What keeps these names, dtypes and shapes from being a chunk's; None when nothing does."""
    missing = [name for name in REQUIRED if name not in tensors]
    if missing:
        return f"it lacks the tensors {', '.join(missing)}"
    n = tensors["digests"].shape[0] if tensors["digests"].shape else -1
    begins, count = ("offsets", n + 1) if version == 1 else ("starts", n)
    for name, (dtype, shape) in tensors.items():
        if name in REQUIRED:
            right = (REQUIRED[name], (n, 16) if name == "digests" else (n,)) == (dtype, shape)
        elif name == begins:
            right = (dtype, shape) == ("I64", (count,))
        elif name.partition(".")[0] in VECTORS:
            right = len(shape) == 2 and shape[0] == n and dtype in ("F32", "F16")
        elif name.startswith("residues."):
            right = len(shape) == 2 and begins in tensors and dtype in ("F32", "F16")
        else:
            right = False
        if not right:
            return f"its tensor {name!r} is {dtype} {list(shape)}, which no chunk of {n} proteins has"
    return None
