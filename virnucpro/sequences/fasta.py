"""Reading FASTA: every file that people have, each record checked, nothing lost in silence.

A record is a line that begins with ``>`` and the lines up to the next such line. Read rightly are:
plain and gzip files (known by their first bytes, several gzip members as ``cat`` or bgzip makes them),
line ends of Unix, Windows and old Macs, empty lines, lines of any length, comment lines that begin with
``;``, a UTF-8 byte order mark, and a missing last line end. The id is the header's first word, verbatim;
an id that is not UTF-8 is read as Latin-1, which has a letter for every byte.

The module reads blocks and lets ``bytes.split`` and ``bytes.translate`` do the work; readers of other
projects were compared with it on the cases above and on speed (benchmarks/bench_fasta_parsers.py).

How much is in a FASTA file, quickly: for planning, not for splitting.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from virnucpro.base.errors import UserError
from virnucpro.sequences.residues import SPACE, clean_residues, is_residue

BLOCK = 1 << 20


LONGEST_RECORD = (1 << 31) - 1
"""Bytes of one record: lengths are stored as int32."""


_GZIP = b"\x1f\x8b"


_OTHER_KINDS = {
    b"BZh": "is compressed with bzip2: unpack it with `bunzip2`",
    b"\xfd7zXZ": "is compressed with xz: unpack it with `unxz`",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it with `unzstd`",
    b"PK\x03\x04": "is a zip archive: unpack it with `unzip`",
    b"\xff\xfe": "is UTF-16 text: save it as plain text (UTF-8)",
    b"\xfe\xff": "is UTF-16 text: save it as plain text (UTF-8)",
}


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


_CONTROL = bytes(range(32)) + b"\x7f"


class RawRecord(NamedTuple):
    """A record as it stands in the file: ``text`` holds the sequence lines, line ends as ``\\n``, no comments."""

    id: str
    line: int
    text: bytes


class FastaRecord(NamedTuple):
    """A protein: id verbatim, residues cleaned (ASCII), residues that became ``X``, and the header's line (from 1)."""

    id: str
    sequence: bytes
    replaced: int
    line: int


def read_fasta(path: Path) -> Iterator[FastaRecord]:
    """Read proteins one by one, in the file's order; memory holds one block and the longest record.

    Raises:
        UserError: the file is missing, unreadable, damaged, empty or not FASTA; a record has no id or no
            residues, or a letter that no protein has. The sentence names file, line and id.
    """
    for record in read_raw(path):
        cleaned = clean_residues(record.text)
        if cleaned is None:
            raise _wrong_letter(path, record)
        if not cleaned[0]:
            raise empty_record(path, record)
        yield FastaRecord(record.id, cleaned[0], cleaned[1], record.line)


def empty_record(path: Path, record: RawRecord) -> UserError:
    """The error for a record without any residue."""
    return UserError(
        f"{path}, line {record.line}: record {record.id!r} is empty; give it a sequence or take it out of the file"
    )


def letter_error(path: Path, record: RawRecord, place: int, what: str) -> UserError:
    """The error for the byte at ``place`` of a record's text; ``what`` ends the sentence."""
    # Comment lines were taken out of the text, so the line is found by reading the file again.
    line = record.line + 1 + record.text.count(b"\n", 0, place) + _comments_before(path, record, place)
    return UserError(f"{path}, line {line}: {_letter(record.text[place])} in record {record.id!r} {what}")


def _letter(byte: int) -> str:
    return repr(chr(byte)) if 32 < byte < 127 else f"byte 0x{byte:02x}"


def _wrong_letter(path: Path, record: RawRecord) -> UserError:
    place = next(i for i, byte in enumerate(record.text) if byte not in SPACE and not is_residue(byte))
    what = "is no residue; mend the sequence or take the record out of the file"
    if record.text[place : place + 1] == b">":
        what = "stands inside a line; a line end before it seems to be lost"
    return letter_error(path, record, place, what)


def _comments_before(path: Path, record: RawRecord, place: int) -> int:
    """Comment lines between a record's header and the given place of its text."""
    wanted = record.text.count(b"\n", 0, place) + 1
    comments = seen = number = 0
    for block in _lines_by_block(path):
        for line in block.split(b"\n")[:-1]:
            number += 1
            if number <= record.line:
                continue
            if line.startswith(b";"):
                comments += 1
            else:
                seen += 1
            if seen == wanted:
                return comments
    return comments


def read_raw(path: Path) -> Iterator[RawRecord]:
    """Read records of any kind of sequence, letters unchecked, in the file's order.

    Raises:
        UserError: the file is missing, unreadable, damaged, empty or not FASTA, or a record has no id.
    """
    path = Path(path)
    line = 1  # of the first byte not yet given away
    kept: list[bytes] = []  # of the record that is not yet at its end
    size = 0
    started = False
    for block in _lines_by_block(path):
        if not started:
            skipped = _skip_to_first_header(path, block, line)
            line += block.count(b"\n", 0, skipped)
            if skipped == len(block):
                continue
            block = block[skipped:]
            started = True
        kept.append(block)
        size += len(block)
        if size > LONGEST_RECORD:
            raise UserError(f"{path}, line {line}: a record longer than {LONGEST_RECORD} bytes; is this a FASTA file?")
        if b"\n>" not in block and not (len(kept) > 1 and block.startswith(b">")):
            continue
        *whole, last = b"".join(kept).removeprefix(b">").split(b"\n>")
        for text in whole:
            yield _raw_record(path, text, line)
            line += text.count(b"\n") + 1
        kept = [b">" + last]
        size = len(last)
    if not started:
        raise UserError(f"{path} is empty: no FASTA record in it; give a file with sequences")
    yield _raw_record(path, b"".join(kept)[1:].removesuffix(b"\n"), line)


def _raw_record(path: Path, text: bytes, line: int) -> RawRecord:
    header, _, body = text.partition(b"\n")
    words = header.split(None, 1)
    if not words:
        raise UserError(f"{path}, line {line}: a header without an id; write one after the '>'")
    if b";" in body and (body.startswith(b";") or b"\n;" in body):
        body = b"\n".join(part for part in body.split(b"\n") if not part.startswith(b";"))
    try:
        record_id = words[0].decode("utf-8")
    except UnicodeDecodeError:
        record_id = words[0].decode("latin-1")
    if not record_id.isprintable() and len(words[0].translate(None, _CONTROL)) != len(words[0]):
        raise UserError(f"{path}, line {line}: the id {record_id!r} holds control characters; is this a FASTA file?")
    return RawRecord(record_id, line, body)


def _skip_to_first_header(path: Path, block: bytes, line: int) -> int:
    """Bytes of empty lines and comments that a block begins with."""
    place = 0
    while place < len(block):
        end = block.index(b"\n", place) + 1
        if block.startswith(b">", place):
            break
        words = block[place:end].strip(SPACE)
        if words and not block.startswith(b";", place):
            number = line + block.count(b"\n", 0, place)
            raise UserError(
                f"{path}, line {number}: {words[:20]!r} stands before the first line that begins with '>'; "
                "this is not a FASTA file"
            )
        place = end
    return place


def _lines_by_block(path: Path) -> Iterator[bytes]:
    """A file's text in blocks that end at a line end; every line end is ``\\n``, the last line has one too."""
    with _open(path) as file:
        kept: list[bytes] = []
        size = 0
        last_was_return = False
        ended = first = True
        while block := _read(path, file):
            if first:
                block = block.removeprefix(_BYTE_ORDER_MARK)
                first = False
            if last_was_return and block.startswith(b"\n"):
                block = block[1:]
                last_was_return = False
                if not block:
                    continue
            last_was_return = block.endswith(b"\r")
            if b"\r" in block:
                block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            ended = block.endswith(b"\n")
            cut = block.rfind(b"\n") + 1
            size += len(block)
            if size > LONGEST_RECORD:
                raise UserError(f"{path}: a line longer than {LONGEST_RECORD} bytes; this is not a FASTA file")
            if not cut:
                kept.append(block)
                continue
            yield b"".join([*kept, block[:cut]])
            kept = [block[cut:]]
            size = len(kept[0])
        if not ended:
            yield b"".join([*kept, b"\n"])


def _read(path: Path, file: BinaryIO) -> bytes:
    try:
        return file.read(BLOCK)
    except EOFError:
        raise UserError(f"{path} is cut short: its gzip data end too early; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged: its gzip data cannot be read ({error}); download it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open plain or gzip, told apart by the first bytes; pipes are refused because files are read twice."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the FASTA files in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; save the sequences to a file first")
        file = path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with file:
        try:
            start = file.peek(8)[:8]
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        for magic, what in _OTHER_KINDS.items():
            if start.startswith(magic):
                raise UserError(f"{path} {what}")
        if not start.startswith(_GZIP):
            yield cast(BinaryIO, file)
            return
        with gzip.open(file) as unpacked:
            yield cast(BinaryIO, unpacked)


ENOUGH = 1 << 26
"""Bytes of a file that are read; a larger one is judged by its beginning."""


@dataclass(frozen=True)
class Amount:
    """Records and letters of FASTA; ``exact`` when all of it was read."""

    records: int
    letters: int
    exact: bool

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.records + other.records, self.letters + other.letters, self.exact and other.exact)


def estimate(path: Path, enough: int = ENOUGH) -> Amount:
    """Count records and sequence letters, from the first ``enough`` bytes if the file has more.

    Nothing is checked: what is not FASTA gives some numbers too.

    Raises:
        OSError: the file cannot be read (a damaged gzip file included).
        EOFError: a gzip file that is cut short.
    """
    records = letters = 0
    in_header = False
    at_line_start = True
    with path.open("rb") as file:
        size = path.stat().st_size
        packed = file.read(2) == _GZIP
        file.seek(0)
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file
        while block := stream.read(BLOCK):
            for line in block.splitlines(keepends=True):
                if at_line_start:
                    in_header = line.startswith(b">")
                    records += in_header
                if not in_header:
                    letters += len(line.rstrip(b"\r\n"))
                at_line_start = line.endswith((b"\n", b"\r"))
            read = file.tell()
            if read >= enough and read < size:
                share = size / read
                return Amount(round(records * share), round(letters * share), exact=False)
    return Amount(records, letters, exact=True)
