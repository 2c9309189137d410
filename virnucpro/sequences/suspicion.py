"""What is surely no protein although all of its letters are: nucleotides, alignments, messages of programs and servers.

Each check looks at a file's records one by one and then at the file as a whole, and says in words what is wrong. What
may be right (a gap, many unknown residues, one short peptide ``GATTACA``) passes here; the split counts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from virnucpro.sequences.fasta import FastaRecord, RawRecord
from virnucpro.sequences.files import BLOCK

NUCLEOTIDE_LETTERS = b"ACGTUN"

SURE_LENGTH = 30
"""Letters from which a record is judged by its letters alone. A, C, G, T, N and U make 26 % of Swiss-Prot's residues:
30 in a row by chance happen once in 10^17 records."""

SURE_LETTERS_TOGETHER = 100
"""Letters of all records together (primers, k-mers) from which a file of shorter ones is judged; ``GATTACA`` is not."""

FOREIGN_SHARE = 0.05
"""Other letters that a nucleotide record may hold: IUPAC codes in a contig."""

LEAST_BASE_SHARE = 0.04
"""Each of A, C, G and T (or U) has at least this share of a nucleotide record; genomes poorest in G and C have 7 % of
each. Proteins of few letters lack one: poly-Ala, Gly-Ala silk, Ala-Ala-Thr antifreeze proteins, Asn repeats."""

SURE_GAPS, SURE_GAP_SHARE = 3, 0.1
"""Gaps, and their share, from which a record was surely cut out of an alignment."""

SURE_WIDTH = 10
"""Columns from which records of one length, one of them with gaps, are surely an alignment."""

PLACEHOLDERS = (b"None", b"none", b"Null", b"null", b"NaN", b"nan")
"""What programs write for a sequence that they don't have, as a whole record."""

MESSAGE_WORDS = (
    b"aborted|available|broken|cancelled|connection|errors?|exceeded|exception|failure|fault|forbidden|found|gateway|"
    b"internal|interrupt|interrupted|maintenance|memory|permission|proxy|requests?|segmentation|sequence|service|"
    b"temporarily|terminated|timeout|truncated|unauthori[sz]ed|unavailable|unexpected|unknown"
)
"""Words of messages, between blanks. Each has seven letters or more, or one that stands for no common residue (B, O, U,
X, Z), so that residues in blocks don't spell it by chance."""

_WORD = re.compile(rb"(?i)(?<![^ \t\n])(?:" + MESSAGE_WORDS + rb")\.{0,3}(?![^ \t\n])")
_LINE = re.compile(rb"(?im)^[ \t]*(?:killed|" + MESSAGE_WORDS + rb")\.{0,3}[ \t]*$")

_LOWER = re.compile(rb"[a-z]{4}")
"""Fewer letters in lower case, and blanks, come of typing."""

_NOT_COLUMNS = bytes(range(ord("a"), ord("z") + 1)) + b". \t\n\r\x0b\x0c*"


class Check(Protocol):
    """One kind of suspicion about one file."""

    def record(self, raw: RawRecord, record: FastaRecord, /) -> str | None:
        """What is wrong with a record, to follow its name in a sentence; None if nothing is."""

    def file(self) -> str | None:
        """What is wrong with the file whose records were seen, to follow its name; None if nothing is."""


def _count_others(text: bytes, letters: bytes) -> int:
    """How many bytes are none of these letters; block by block, because a record can be as large as the memory."""
    return sum(len(text[i : i + BLOCK].translate(None, letters)) for i in range(0, len(text), BLOCK))


class Nucleotides:
    """DNA or RNA given as proteins."""

    def __init__(self) -> None:
        self._pooled = bytearray()
        self._others = False

    def record(self, raw: RawRecord, record: FastaRecord) -> str | None:
        sequence = record.sequence
        others = _count_others(sequence, NUCLEOTIDE_LETTERS)
        if others:
            self._others = True
        elif not self._others and len(self._pooled) < SURE_LETTERS_TOGETHER:
            self._pooled += sequence
        if len(sequence) < SURE_LENGTH or others > FOREIGN_SHARE * len(sequence) or not _has_all_bases(sequence):
            return None
        return (
            f"is DNA or RNA ({len(sequence):,} letters, {len(sequence) - others:,} of them A, C, G, T, U or N), "
            "not a protein: set input to nucleotide to have it translated"
        )

    def file(self) -> str | None:
        if self._others or len(self._pooled) < SURE_LETTERS_TOGETHER or not _has_all_bases(bytes(self._pooled)):
            return None
        return (
            "holds DNA or RNA (all letters are A, C, G, T, U or N), not proteins: set input to nucleotide to have it "
            "translated"
        )


def _has_all_bases(letters: bytes) -> bool:
    least = LEAST_BASE_SHARE * len(letters)
    return all(sum(map(letters.count, base)) >= least for base in ((b"A",), (b"C",), (b"G",), (b"T", b"U")))


class Alignment:
    """Aligned sequences: gaps in them, or all of one length (in a3m without the insertions, which are lower case)."""

    def __init__(self) -> None:
        self._lengths: int | None = None
        self._columns: int | None = None
        self._same_length = self._same_columns = True
        self._records = 0
        self._gapped = False

    def record(self, raw: RawRecord, record: FastaRecord) -> str | None:
        sequence = record.sequence
        self._records += 1
        if self._same_length:
            self._lengths = self._lengths or len(sequence)
            self._same_length = len(sequence) == self._lengths >= SURE_WIDTH
        if self._same_columns:
            columns = _count_others(raw.text, _NOT_COLUMNS)
            self._columns = self._columns or columns
            self._same_columns = columns == self._columns >= SURE_WIDTH
        gaps = sum(map(sequence.count, (b"-", b".")))
        self._gapped |= gaps > 0
        if len(sequence) < SURE_WIDTH or gaps < SURE_GAPS or gaps < SURE_GAP_SHARE * len(sequence):
            return None
        return f"comes out of an alignment ({gaps:,} of its {len(sequence):,} letters are gaps): take the gaps out"

    def file(self) -> str | None:
        if self._records < 2 or not self._gapped or not (self._same_length or self._same_columns):
            return None
        columns = self._lengths if self._same_length else self._columns
        return f"is an alignment ({self._records:,} records of {columns:,} columns, with gaps): take the gaps out"


class Words:
    """A message in place of residues, such as ``Sequence unavailable`` or ``Internal Server Error``."""

    def __init__(self) -> None:
        self._upper_alone = False  # records were seen, and all of them in upper case
        self._lower = False
        self._lines_without_blanks = self._lines_with_blanks = False

    def record(self, raw: RawRecord, record: FastaRecord) -> str | None:
        text = raw.text
        has_blanks = b" " in text or b"\t" in text
        is_upper = text.isupper()
        if has_blanks or not is_upper:
            words = self._words(text, has_blanks)
            if words is not None:
                shown = words.strip().decode("ascii")
                shown = shown if len(shown) <= 40 else shown[:37] + "..."
                return f"holds words, no residues ({shown!r}): fetch the file again or fix the record"
        self._lower |= not is_upper
        self._upper_alone = not self._lower
        self._lines_with_blanks |= has_blanks and any(len(line.split()) > 1 for line in text.split(b"\n"))
        self._lines_without_blanks |= not has_blanks
        return None

    def _words(self, text: bytes, has_blanks: bool) -> bytes | None:
        """The line that is words."""
        if text.strip() in PLACEHOLDERS:
            return text
        alone = _LINE.search(text)
        if alone and not alone.group().isupper():
            before = text[: alone.start()].strip()
            if before.isupper() if before else self._upper_alone:
                return alone.group()
        if not has_blanks:
            return None
        lines = [line for line in text.split(b"\n") if line.strip()]
        broken = [line for line in lines if len(line.split()) > 1]
        whole = [line for line in lines if len(line.split()) == 1]
        others_are_upper = all(line.isupper() for line in whole) if whole else self._upper_alone
        others_are_whole = (self._lines_without_blanks or bool(whole)) and not self._lines_with_blanks
        for line in broken:
            if _WORD.search(line):
                return line
            sizes = [len(word) for word in line.split()]
            is_in_blocks = len(set(sizes[:-1])) == 1 and sizes[-1] <= sizes[0]  # as databases print sequences
            is_odd_one_out = others_are_upper or (len(sizes) > 2 and others_are_whole and len(broken) == 1)
            if not is_in_blocks and _LOWER.search(line) and is_odd_one_out:
                return line
        return None

    def file(self) -> str | None:
        return None


PROTEIN_CHECKS: Sequence[Callable[[], Check]] = (Words, Nucleotides, Alignment)
CONTIG_CHECKS: Sequence[Callable[[], Check]] = (Alignment,)
