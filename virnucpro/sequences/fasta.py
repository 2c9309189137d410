"""Reading FASTA: every file that people have, each record checked, nothing lost in silence.

A record is a line that begins with ``>`` and the lines up to the next such line. Read rightly are: packed files (see
:mod:`virnucpro.sequences.files`), line ends of Unix, Windows and old Macs, empty lines, lines of any length, comment
lines that begin with ``;``, a UTF-8 byte order mark, and a missing last line end. The id is the header's first word,
verbatim; an id that is not UTF-8 is read as Latin-1, which has a letter for every byte.

Letters become the residues that ESM-2 has tokens for. How much files hold is told quickly, for planning. Needs the
standard library alone: the process that plans a run reads files too.

The module reads blocks and lets ``bytes.split`` and ``bytes.translate`` do the work; readers of other
projects were compared with it on the cases above and on speed (benchmarks/bench_fasta_parsers.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from virnucpro.base.digest import residue_digest
from virnucpro.base.errors import UserError
from virnucpro.base.text import short
from virnucpro.sequences.files import SequenceFile

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
"""The letters with a token of their own (fair-esm's alphabet "ESM-1b", in its order)."""

GAPS = b"-."
"""Those that stand for no residue."""

SPACE = b" \t\n\r\x0b\x0c"

_CLEANING = bytes(letter if letter in RESIDUES.encode("ascii") + b"J*" else 0 for letter in bytes(range(256)).upper())
"""Upper-cases; every byte that is no residue, ``J`` or ``*`` becomes NUL."""

_TO_X = bytes.maketrans(b"J*", b"XX")


def clean_residues(text: bytes) -> tuple[bytes, int] | None:
    """The residues of one record as ESM-2 takes them.

    White space is dropped, lower case is upper-cased, one ``*`` at the end is dropped; a ``*`` inside
    and ``J`` (leucine or isoleucine), which have no token, become ``X``.

    Returns:
        residues (ASCII, letters of :data:`RESIDUES`, maybe empty) and how many became ``X``; None when the
        text holds anything else (a digit, ``>``, a byte outside ASCII).

    >>> clean_residues(b"mkv j*\\nLL*"), clean_residues(b"MK7")
    ((b'MKVXXLL', 2), None)
    """
    residues = text.translate(_CLEANING, SPACE)
    if b"\0" in residues:
        return None
    if residues.endswith(b"*"):
        residues = residues[:-1]
    replaced = 0
    if b"*" in residues or b"J" in residues:
        replaced = residues.count(b"*") + residues.count(b"J")
        residues = residues.translate(_TO_X)
    return residues, replaced


LONGEST_RECORD = (1 << 31) - 1
"""Bytes of one record: lengths are stored as int32."""

LONGEST_PROTEIN = 1 << 24
"""Bytes of a protein's record. The longest known have 45,000 residues; a chromosome is refused before it fills memory.
"""

_CONTROL = bytes(range(32)) + b"\x7f"


class RawRecord(NamedTuple):
    """A record as it stands in the file.

    ``line`` is its header's, from 1; ``header`` is what follows the ``>``; ``text`` holds the sequence lines, line ends
    as ``\\n``, each comment line left empty.
    """

    id: str
    line: int
    text: bytes
    header: bytes


class FastaRecord(NamedTuple):
    """A sequence: id verbatim, letters cleaned (ASCII), how many residues became ``X``, and the header's line (from 1).

    ``header`` is the whole header as it stands in the file ``path``.
    """

    id: str
    sequence: bytes
    replaced: int
    line: int
    header: bytes
    path: Path


def read_fasta(path: Path) -> Iterator[FastaRecord]:
    """Read proteins one by one, in the file's order; memory holds one block and about twice the longest record.

    Raises:
        UserError: the file is missing, unreadable, damaged, empty or not FASTA; a record has no id or no
            residues, or a letter that no protein has. The sentence names file, line and id.
    """
    is_empty = True
    for record in read_raw(SequenceFile(path)):
        is_empty = False
        protein = as_protein(path, record)
        if not protein.sequence:
            raise empty_record(protein)
        del record
        yield protein
    if is_empty:
        raise empty_file(path)


def as_protein(path: Path, record: RawRecord) -> FastaRecord:
    """A record's residues, maybe none.

    Raises:
        UserError: a letter that no protein has.
    """
    cleaned = clean_residues(record.text)
    if cleaned is None:
        raise _wrong_letter(path, record)
    return FastaRecord(record.id, cleaned[0], cleaned[1], record.line, record.header, path)


def empty_file(path: Path, way_out: str = "") -> UserError:
    """The error for a file without any record; ``way_out`` ends the sentence."""
    return UserError(f"{path} is empty: no FASTA record in it; give a file with sequences{way_out}")


def empty_record(record: FastaRecord, way_out: str = "") -> UserError:
    """The error for a record without any residue; ``way_out`` ends the sentence."""
    where = f"{record.path}, line {record.line}"
    return UserError(
        f"{where}: record {short(record.id)} is empty; give it a sequence or take it out of the file{way_out}"
    )


def letter_error(path: Path, record: RawRecord, position: int, what: str) -> UserError:
    """The error for the byte at ``position`` of a record's text; ``what`` ends the sentence."""
    line = record.line + 1 + record.text.count(b"\n", 0, position)
    return UserError(f"{path}, line {line}: {_letter(record.text[position])} in record {short(record.id)} {what}")


def _letter(byte: int) -> str:
    return repr(chr(byte)) if 32 < byte < 127 else f"byte 0x{byte:02x}"


def _wrong_letter(path: Path, record: RawRecord) -> UserError:
    position = next(i for i, byte in enumerate(record.text) if byte not in SPACE and not _CLEANING[byte])
    what = "is no residue; fix the sequence or take the record out of the file"
    if record.text[position : position + 1] == b">":
        what = "stands inside a line; a line end before it seems to be lost"
    elif record.text[position : position + 1] == b"<":
        what = "is no residue: a web page seems to have got into the file; download it again"
    return letter_error(path, record, position, what)


def read_raw(file: SequenceFile, longest: int = LONGEST_RECORD) -> Iterator[RawRecord]:
    """Read records of any kind of sequence, letters unchecked, in the file's order; none of a file without records.

    Raises:
        UserError: the file is missing, unreadable, damaged or not FASTA, or a record has no id.
    """
    path = file.path
    line = 1  # where the current record begins
    pieces: list[bytes] = []  # of the current record, from behind its ">"
    size = 0
    started = False  # whether a first ">" was seen; until then what is read is what stands before it
    line_ended = True
    for block in file.text():
        first, *others = block.split(b"\n>")
        if line_ended and block.startswith(b">"):
            # The ">" that ends the current record is the first byte of this block.
            if started:
                pieces[-1] = pieces[-1].removesuffix(b"\n")
                record, lines = _raw_record(path, pieces, line)
                line += lines
                yield record
                del record
            started = True
            first, pieces, size = first[1:], [], 0
        line_ended = block.endswith(b"\n")
        if not started:
            line, first = _before_first(path, line, b"".join([*pieces, first]), whole=bool(others))
            pieces = []
        pieces.append(first)
        size += len(first)
        if size > longest:
            raise UserError(
                f"{path}, line {line}: a record of more than {longest:,} letters, more than can be read here: "
                "is this a FASTA file, and of what the setting input says it holds?"
            )
        del block, first
        for text in others:
            if started:
                record, lines = _raw_record(path, pieces, line)
                line += lines
                yield record
                del record
            started = True
            pieces, size = [text], len(text)
        others.clear()
    if started:
        pieces[-1] = pieces[-1].removesuffix(b"\n")
        yield _raw_record(path, pieces, line)[0]


def _raw_record(path: Path, pieces: list[bytes], line: int) -> tuple[RawRecord, int]:
    """A record out of its pieces, which are let go, and the number of its lines."""
    whole = next((i for i, piece in enumerate(pieces) if b"\n" in piece), len(pieces) - 1)
    header, line_end, first = b"".join(pieces[: whole + 1]).partition(b"\n")
    body = b"".join([first, *pieces[whole + 1 :]])
    pieces.clear()
    lines = 1 + (body.count(b"\n") + 1 if line_end else 0)
    words = header.split(None, 1)
    if not words:
        raise UserError(f"{path}, line {line}: a header without an id; write one after the '>'")
    if b";" in body and (body.startswith(b";") or b"\n;" in body):
        body = b"\n".join(b"" if part.startswith(b";") else part for part in body.split(b"\n"))
    return RawRecord(header_text(path, line, words[0]), line, body, header), lines


LONGEST_DESCRIPTION = 1000
"""Letters of a header's description that are kept."""


def description_of(header: bytes) -> str:
    """What follows the id in a header: its words with one blank between them, signs that do not print as blanks.

    >>> description_of(b"YP_009724390.1 surface glycoprotein  [SARS-CoV-2]")
    'surface glycoprotein [SARS-CoV-2]'
    """
    words = header.split(None, 1)
    if len(words) < 2:
        return ""
    text = _decoded(words[1])
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(text.split())[:LONGEST_DESCRIPTION]


def _decoded(words: bytes) -> str:
    try:
        return words.decode("utf-8")
    except UnicodeDecodeError:
        return words.decode("latin-1")


def header_text(path: Path, line: int, words: bytes) -> str:
    """Words of a header as text.

    Raises:
        UserError: there are control characters in it.
    """
    text = _decoded(words)
    if not text.isprintable() and len(words.translate(None, _CONTROL)) != len(words):
        raise UserError(f"{path}, line {line}: the id {short(text)} holds control characters; is this a FASTA file?")
    return text


def _before_first(path: Path, line: int, text: bytes, *, whole: bool) -> tuple[int, bytes]:
    """Check that only blanks and comments stand before the first record.

    Returns:
        The line that comes next, and what is already known of it; ``whole`` says that the text's last line has ended.
    """
    lines = text.split(b"\n")
    for number, each in enumerate(lines):
        words = each.strip(SPACE)
        if words and not each.startswith(b";"):
            raise UserError(
                f"{path}, line {line + number}: {words[:20]!r} stands before the first line that begins with '>'; "
                "this is not a FASTA file"
            )
    return (line + len(lines), b"") if whole else (line + len(lines) - 1, lines[-1][:1])


ENOUGH = 1 << 26
"""Bytes of a file that are read; a larger one is judged by its beginning."""

ENOUGH_TEXT = 1 << 28
"""Bytes of sequences that are read of a packed file."""


@dataclass(frozen=True)
class Amount:
    """Records and their letters, and those of different sequences alone; ``exact`` when all of it was read."""

    records: int
    letters: int
    unique: int
    unique_letters: int
    exact: bool


def estimate(paths: Sequence[Path], *, skip_repeated_ids: bool = False, enough: int = ENOUGH) -> Amount:
    """Count what a sample's files hold, as the split would take it; of each file the first ``enough`` bytes are read.

    Records without residues do not count. Contigs count as proteins do, letter by letter.

    Raises:
        UserError: a file that can't be read or is not FASTA, or a letter that no sequence has.
    """
    seen: set[bytes] = set()
    ids: set[str] = set()
    totals = [0.0] * 4
    exact = True
    for path in paths:
        counts = [0] * 4
        text = taken = 0  # bytes of sequences, and of the file, whose records are counted
        file = SequenceFile(path)
        for raw in read_raw(file):
            if file.read > taken:
                if taken >= enough or text >= ENOUGH_TEXT:
                    exact = False
                    break
                taken = file.read
            record = as_protein(path, raw)
            text += len(raw.header) + len(raw.text)
            if record.sequence.strip(GAPS) and not (skip_repeated_ids and record.id in ids):
                if skip_repeated_ids:
                    ids.add(record.id)
                digest = residue_digest(record.sequence)
                is_new = digest not in seen
                seen.add(digest)
                length = len(record.sequence)
                counts = [n + more for n, more in zip(counts, (1, length, is_new, is_new * length), strict=True)]
        share = 1.0 if file.sha256 else file.size / taken
        totals = [total + count * share for total, count in zip(totals, counts, strict=True)]
    records, letters, unique, unique_letters = map(round, totals)
    return Amount(records, letters, unique, unique_letters, exact)
