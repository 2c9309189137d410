"""The header of a safetensors file (https://huggingface.co/docs/safetensors, "Format"), by the standard library.

Eight bytes give the header's length; the header is JSON: an entry a tensor with dtype, shape and place, and
``__metadata__``, texts by name. The process that plans a run reads headers where neither numpy nor torch is installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

LARGEST_HEADER = 1 << 24
"""Bytes. The format allows six times as many; ESM-2 15B needs 100,000, and what is parsed takes 20 times its size."""

MOST_DIMENSIONS = 64
"""Of a tensor, as in NumPy."""

WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "I16": 2, "U16": 2} | {
    "F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8
}  # fmt: skip
"""Bytes of one number of each dtype."""


class HeaderError(Exception):
    """What is wrong with a header, as the rest of a sentence that begins with the file's name."""


class TensorEntry(NamedTuple):
    """One tensor: its dtype by the format's name, its shape, and where its bytes begin and end in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header that fits its file: tensors lie one behind the other and end where the file ends.

    Attributes:
        text: the JSON as it stands in the file, with its padding.
        data_start: where the tensors' bytes begin, in bytes from the file's start.
    """

    text: bytes
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    data_start: int


def header_bytes(
    tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str], *, alignment: int = 8, length: int = 0
) -> bytes:
    """What stands before the data, equal for equal arguments; blanks fill it.

    Args:
        alignment: bytes; the data begin at a multiple of them.
        length: bytes that it is to have at least.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    for name, (dtype, shape, begin, end) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * max(-(8 + len(text)) % alignment, length - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def read_header(file: BinaryIO) -> Header:
    """Read and check the header of an open file.

    Raises:
        HeaderError: cut short, damaged, or no safetensors file.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if size < 10:
        raise HeaderError(f"it is cut short ({size} bytes)")
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= LARGEST_HEADER:
        raise HeaderError("it has no safetensors header")
    if 8 + length > size:
        raise HeaderError(f"it is cut short ({size} bytes, its header alone is {length}), or has no safetensors header")
    text = file.read(length)
    try:
        content = json.loads(text)
        metadata = {str(key): str(value) for key, value in content.pop("__metadata__", {}).items()}
        tensors = {
            str(name): TensorEntry(str(entry["dtype"]), _numbers(entry["shape"]), *_numbers(entry["data_offsets"]))
            for name, entry in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise HeaderError("its header is damaged, or it is no safetensors file") from None
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1][2:]):
        width = WIDTHS.get(entry.dtype)
        if width is None or entry.begin != end or entry.end - entry.begin != math.prod(entry.shape) * width:
            raise HeaderError(f"its header is damaged (tensor {name[:100]!r})")
        end = entry.end
    data_start = 8 + length
    if data_start + end != size:
        short = "cut short" if size < data_start + end else "too long"
        raise HeaderError(f"it is {short}: {size} bytes, its header promises {data_start + end}")
    return Header(text, metadata, tensors, data_start)


def _numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MOST_DIMENSIONS:
        raise ValueError("not a short list")
    if not all(type(value) is int and 0 <= value < 1 << 63 for value in values):
        raise ValueError("not a list of whole numbers")
    return tuple(values)
