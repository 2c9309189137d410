"""The text of a sequence file, whatever it is packed with, and the digest of the file's bytes as they were read.

Plain text, gzip (several members too), bzip2, xz and zstd are told apart by their first bytes, not by the name. Needs
the standard library alone: the process that plans a run reads files too.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast

from virnucpro.base.errors import UserError

BLOCK = 1 << 20
"""Bytes that are read, and given out, at once."""

LARGEST_DICTIONARY = 1 << 29
"""Bytes of memory that an xz file may ask for; `xz -9` asks for 2^26."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

_OTHER_KINDS = {
    b"PK\x03\x04": "is a zip archive: unpack it with `unzip`",
    b"\x37\x7a\xbc\xaf\x27\x1c": "is a 7z archive: unpack it with `7z x`",
    b"\xff\xfe": "is UTF-16 text: save it as plain text (UTF-8)",
    b"\xfe\xff": "is UTF-16 text: save it as plain text (UTF-8)",
}


class Decompressor(Protocol):
    """What the decompressors of ``bz2``, ``lzma`` and ``compression.zstd`` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class SequenceFile:
    """A file on disk that is read from its beginning to its end, perhaps several times.

    Attributes:
        path: where it is.
        read: bytes of the file (packed, if it is) that the last reading has taken so far.
        sha256: hex digest of the file's bytes, once a reading has come to its end; "" before. What is digested is what
            was read, so it stands for the records that were given out, whatever happens to the file afterwards.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.read = 0
        self.sha256 = ""

    @property
    def size(self) -> int:
        """Bytes on the disk, 0 if the file is gone."""
        return self.path.stat().st_size if self.path.exists() else 0

    def text(self) -> Iterator[bytes]:
        """The file's text in blocks: every line end is ``\\n``, the last line has one, no byte order mark.

        Raises:
            UserError: the file is missing, unreadable, damaged, cut short, or packed in a way that can't be read.
        """
        self.read, self.sha256 = 0, ""
        after_return = ended = False
        for block in _without_mark(self._unpacked()):
            if after_return and block.startswith(b"\n"):
                block = block[1:]
                after_return = False
                if not block:
                    continue
            after_return = block.endswith(b"\r")
            if b"\r" in block:
                block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            ended = block.endswith(b"\n")
            yield block
        if not ended:
            yield b"\n"

    def _unpacked(self) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with self._open() as file:
            raw = _Counted(self, file, digest.update)
            kind = None
            try:
                kind = _kind(self.path, file.peek(8)[:8])
                yield from _blocks(self.path, kind, raw)
                while raw.read(BLOCK):  # what an unpacker may have left
                    pass
            except UserError:
                raise
            except EOFError:
                raise UserError(
                    f"{self.path} is cut short: its {kind} data end too early; copy or download it again"
                ) from None
            except _damage() as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise UserError(f"{self.path} cannot be read: {error.strerror or error}") from None
                raise UserError(
                    f"{self.path} is damaged: its {kind} data cannot be read ({error}); download it again"
                ) from None
        self.sha256 = digest.hexdigest()

    def _open(self) -> Any:
        """Pipes are refused because files are read twice."""
        path = self.path
        try:
            if path.is_dir():
                raise UserError(f"{path} is a folder; give the FASTA files in it")
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is not a regular file; save the sequences to a file first")
            return path.open("rb")
        except FileNotFoundError:
            raise UserError(f"{path}: there is no such file; check the path") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


class _Counted:
    """A file whose bytes are counted and digested as they are read."""

    def __init__(self, owner: SequenceFile, file: BinaryIO, update: Callable[[bytes], None]) -> None:
        self._owner, self._file, self._update = owner, file, update

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._owner.read += len(data)
        self._update(data)
        return data


def _kind(path: Path, start: bytes) -> str | None:
    """What a file is packed with, by its first bytes; None for plain text."""
    for magic, what in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise UserError(f"{path} {what}")
    return next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), None)


def _blocks(path: Path, kind: str | None, raw: _Counted) -> Iterator[bytes]:
    if kind == "gzip":
        unpacked = gzip.GzipFile(fileobj=cast("IO[bytes]", raw), mode="rb")
        yield from iter(lambda: unpacked.read(BLOCK), b"")
    elif kind == "bzip2":
        yield from _decompressed(raw, bz2.BZ2Decompressor)
    elif kind == "xz":
        yield from _decompressed(raw, lambda: lzma.LZMADecompressor(memlimit=LARGEST_DICTIONARY))
    elif kind == "zstd":
        zstd = _zstd()
        if zstd is None:
            raise UserError(
                f"{path} is compressed with zstd, which this Python can't read: `pip install backports.zstd`, "
                "or unpack it with `unzstd`"
            )
        yield from _decompressed(raw, zstd.ZstdDecompressor)
    else:
        yield from iter(lambda: raw.read(BLOCK), b"")


def _decompressed(raw: _Counted, make: Callable[[], Decompressor]) -> Iterator[bytes]:
    """Every stream of a file, one after the other (Python's own readers leave out what follows a damaged one)."""
    decompressor = make()
    while True:
        data = b""
        if decompressor.eof:
            data = decompressor.unused_data.lstrip(b"\0")  # xz pads with NULs
            while not data:
                more = raw.read(BLOCK)
                if not more:
                    return
                data = more.lstrip(b"\0")
            decompressor = make()
        elif decompressor.needs_input:
            data = raw.read(BLOCK)
            if not data:
                raise EOFError
        text = decompressor.decompress(data, BLOCK)
        if text:
            yield text


def _zstd() -> Any:
    """Python 3.14's module or its backport; None where neither is installed."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _damage() -> tuple[type[Exception], ...]:
    """What the unpackers raise for bytes that are not theirs (gzip and bz2 raise OSError without a number)."""
    zstd = _zstd()
    return (OSError, zlib.error, lzma.LZMAError, *([zstd.ZstdError] if zstd else []))


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    for block in blocks:
        start += block
        if len(start) >= len(_BYTE_ORDER_MARK):
            break
    start = start.removeprefix(_BYTE_ORDER_MARK)
    if start:
        yield start
    yield from blocks
