"""From contigs to the proteins that VirNucPro embeds: windows, six frames, those without a stop codon.

Follows VirNucPro's own scripts (https://github.com/Li-Jing-1997/VirNucPro, ``units.py`` and ``prediction.py``), quirks
included, because its classifier was trained so. Ids are ``{contig}_chunk_{window from 1}`` and ``F1`` ... ``R3``.

A contig of L bases is cut into n = ceil(L / w) windows of w bases. They are E = n w - L bases too long, which the
overlaps share: low = floor(E / n), the first E - low (n - 1) overlaps are low + 1 and the others low. The sum of the
overlaps can exceed E, so the last window, cut at L, can be short. A contig shorter than w is one window.

Many windows are translated at once, by table lookups over bytes: every place of the text as if a codon began there,
forward and on the other strand. Taken every third place, these are the three frames, so the protein of a window and
frame is a run of bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.settings import InputPolicies, default
from virnucpro.sequences.fasta import GAPS, SPACE, FastaRecord, RawRecord, letter_error
from virnucpro.sequences.intake import Intake, Kind, Skipped, skipped_table
from virnucpro.sequences.suspicion import CONTIG_CHECKS


class Windows(NamedTuple):
    """Windows of several contigs, contig by contig, (m,) each: contig, number in it (from 0), first base, end."""

    contig: NDArray[np.int64]
    number: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]


def cut_windows(lengths: NDArray[np.integer], window: int) -> Windows:
    """The windows of contigs of these lengths (each over 0), places counted from each contig's first base."""
    length = np.asarray(lengths, np.int64)
    count = -(-length // window)
    excess = count * window - length
    low = excess // count
    wider = excess - low * (count - 1)
    contig = np.repeat(np.arange(len(length)), count)
    number = np.arange(len(contig)) - np.repeat(np.cumsum(count) - count, count)
    overlapped = number * low[contig] + np.minimum(number, wider[contig])
    start = number * window - overlapped
    return Windows(contig, number, start, np.minimum(start + window, length[contig]))


FRAMES = (b"F1", b"F2", b"F3", b"R1", b"R2", b"R3")

NOTHING, STOP = 0, ord("*")

_BASES = b"TCAG"

# The standard code (NCBI translation table 1), codons in the order of _BASES, first base slowest.
_STANDARD_CODE = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"

_DIGIT = bytes(_BASES.find(bytes([letter])) if letter in _BASES else 4 for letter in range(256))
"""Each letter as a digit: 0 to 3 for T C A G, 4 for any other."""

COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")
"""VirNucPro complements these four alone; other letters stay what they are."""


def _codon_tables() -> tuple[bytes, bytes]:
    """Residue by codon number 25 a + 5 b + c (:data:`_DIGIT`), as read forward and on the other strand."""
    forward, reverse = bytearray(256), bytearray(256)
    other = [2, 3, 0, 1]  # T C A G pairs with A G T C
    for number in range(64):
        a, b, c = number // 16, number // 4 % 4, number % 4
        codon = 25 * a + 5 * b + c
        forward[codon] = _STANDARD_CODE[number]
        reverse[codon] = _STANDARD_CODE[16 * other[c] + 4 * other[b] + other[a]]
    return bytes(forward), bytes(reverse)


_FORWARD, _REVERSE = _codon_tables()


class Frame(NamedTuple):
    """A stop-free frame: its window (row of the windows given), which of :data:`FRAMES`, residues and bases kept."""

    window: int
    frame: int
    protein: bytes
    nucleotides: bytes


def stop_free_frames(text: bytes, windows: Windows) -> Iterator[Frame]:
    """Frames without a stop codon and with at least one residue, window by window, F1 to F3 and R1 to R3.

    A codon with a letter other than A, C, G, T adds nothing to the protein. The bases kept beside a protein
    of p residues are ``strand[f : f + 3 p + 1]`` (f from 0; one more than 3 p, and p counts what was added).

    Args:
        text: upper-case bases of one or several contigs.
        windows: ``start`` and ``end`` are positions in ``text``.
    """
    if len(text) < 3:
        return
    digits = np.frombuffer(text.translate(_DIGIT), np.uint8)
    codons = digits[:-2] * np.uint8(25) + digits[1:-1] * np.uint8(5) + digits[2:]
    raw = codons.tobytes()
    length = windows.end - windows.start
    residues, begin, end, bases, limit = [], [], [], [], []
    for strand, table in enumerate((_FORWARD, _REVERSE)):
        thirds, first_of_third = _by_thirds(raw.translate(table))
        if strand:
            thirds = thirds[::-1]
        residues.append(np.ascontiguousarray(thirds))
        for frame in range(3):
            count = np.maximum(length - frame, 0) // 3
            if strand:
                last = windows.end - frame - 3  # where the frame's first codon is, going down from here
                begin.append(thirds.size - 1 - (first_of_third[last % 3] + last // 3))
                bases.append(len(text) - windows.end + frame)
                limit.append(len(text) - windows.start)
            else:
                first = windows.start + frame
                begin.append(first_of_third[first % 3] + first // 3)
                bases.append(first)
                limit.append(windows.end)
            begin[-1] = np.where(count > 0, begin[-1], 0)
            end.append(begin[-1] + count)
    most = int(length.max()) // 3
    stops = [_running_count(residues[strand] == STOP, most) for strand in (0, 1)]
    has_gaps = bool((digits == 4).any())
    gaps = [_running_count(residues[strand] == NOTHING, most) for strand in (0, 1)] if has_gaps else []
    kept = np.empty((len(length), 6), np.int64)
    for f in range(6):
        strand, a, b = f // 3, begin[f], end[f]
        kept[:, f] = b - a
        if has_gaps:
            kept[:, f] -= gaps[strand][b] - gaps[strand][a]
        kept[stops[strand][b] != stops[strand][a], f] = 0
    protein_text = [strand.tobytes() for strand in residues]
    base_text = [text, text.translate(COMPLEMENT)[::-1]]
    rows, frames = np.nonzero(kept)
    chosen = kept[rows, frames]
    table_of = [np.stack(columns)[frames, rows].tolist() for columns in (begin, end, bases, limit)]
    for row, f, p, a, b, base, last_base in zip(
        rows.tolist(), frames.tolist(), chosen.tolist(), *table_of, strict=True
    ):
        strand = f > 2
        protein = protein_text[strand][a:b]
        if b - a != p:
            protein = protein.translate(None, b"\0")
        yield Frame(row, f, protein, base_text[strand][base : min(base + 3 * p + 1, last_base)])


def _by_thirds(residues: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Places 0, 3, 6, ... then 1, 4, 7, ... then 2, 5, 8, ...; and where each of the three begins."""
    every = np.frombuffer(residues, np.uint8)
    parts = [every[phase::3] for phase in range(3)]
    return np.concatenate(parts), np.cumsum([0, len(parts[0]), len(parts[1])])


def _running_count(flags: NDArray[np.bool_], most: int) -> NDArray[np.unsignedinteger]:
    """How many flags are set before each place, (n + 1,), in the narrowest numbers that hold ``most``.

    The numbers wrap round. The difference of two places with at most ``most`` flags between them is right all the
    same, and narrow numbers are several times faster.
    """
    counts = np.zeros(len(flags) + 1, np.min_scalar_type(most))
    np.cumsum(flags.view(np.uint8), dtype=counts.dtype, out=counts[1:])
    return counts


BLOCK = 1 << 18
"""Bases translated at once: what is made of them fits into the processor's cache. Longer contigs go in runs."""

SKIPPED_CONTIGS_TABLE = "skipped_contigs.tsv"
"""Beside a sample's translation: the contigs that were skipped or have no protein."""

SILENT_REASON = "no stop-free frame"

NUCLEOTIDES = b"ACGTURYSWKMBDHVNX.-"
"""IUPAC's letters for bases, and those for gaps and unknown ones."""

_CLEANING = bytes(letter if letter in NUCLEOTIDES else 0 for letter in bytes(range(256)).upper())


@dataclass(frozen=True)
class TranslationCounts:
    """What was taken in and came out.

    ``silent_contigs`` of the ``contigs`` have no stop-free frame in any window, so no protein; ``skipped`` ones came in
    besides. The table of skipped contigs lists both. ``inputs`` are the sha256 of the FASTA files as they were read.
    """

    contigs: int
    bases: int
    windows: int
    proteins: int
    silent_contigs: int
    skipped: int = 0
    inputs: tuple[str, ...] = ()


def as_contig(path: Path, record: RawRecord) -> FastaRecord:
    """A record's bases in upper case, maybe none.

    Raises:
        UserError: a letter that no nucleotide sequence has.
    """
    bases = record.text.translate(_CLEANING, SPACE)
    if b"\0" in bases:
        position = next(i for i, byte in enumerate(record.text) if byte not in SPACE and not _CLEANING[byte])
        raise letter_error(
            path, record, position, "is no nucleotide; fix it, or set input to protein if these are proteins"
        )
    return FastaRecord(record.id, bases, 0, record.line, record.header, path)


# Ids of contigs go into FASTA headers again, whose first word alone is the id.
CONTIGS = Kind(as_contig, CONTIG_CHECKS, blank="_")


def _as_bases(path: Path, record: RawRecord) -> FastaRecord:
    """A frame's nucleotides. A gap becomes N, which has the same token, so that a frame is never one of gaps alone."""
    frame = as_contig(path, record)
    return frame._replace(sequence=frame.sequence.translate(_WITHOUT_GAPS))


_WITHOUT_GAPS = bytes.maketrans(GAPS, b"N" * len(GAPS))

# What translate_contigs writes beside the proteins; nothing in it is suspicious.
FRAME_BASES = Kind(_as_bases, ())


def translate_contigs(
    inputs: Sequence[Path],
    proteins: Path,
    nucleotides: Path,
    skipped: Path | None = None,
    *,
    window: int = default("nucleotide.window"),
    policies: InputPolicies = InputPolicies(),
    logger: logging.Logger | None = None,
) -> TranslationCounts:
    """Write the stop-free frames of all windows as a protein and a nucleotide FASTA file, record by record alike.

    Args:
        inputs: nucleotide FASTA files.
        proteins, nucleotides: FASTA files to write; both appear when all of the input was read and is right.
        skipped: the table of contigs without a protein to write; by default :data:`SKIPPED_CONTIGS_TABLE` beside
            ``proteins``.
        window: bases a window; VirNucPro has classifiers for 300 and 500.
        policies: what is done about empty contigs, repeated ids and the like; by default they are errors. A sample
            without any stop-free frame is an empty one.

    Raises:
        UserError: a file that cannot be read or is not nucleotide FASTA, or what the policies refuse.
    """
    if window < 3:
        raise UserError(f"nucleotide window is {window}; give 300 or 500, as VirNucPro's classifiers were trained")
    log = logger or logging.getLogger(__name__)
    intake = Intake(inputs, CONTIGS, policies)
    for _ in intake.first_reading():
        pass
    skipped = skipped or Path(proteins).with_name(SKIPPED_CONTIGS_TABLE)
    contigs = bases = with_u = 0
    with (
        atomic_path(proteins) as protein_path,
        atomic_path(nucleotides) as nucleotide_path,
        skipped_table(skipped) as skip,
        protein_path.open("wb") as protein_out,
        nucleotide_path.open("wb") as nucleotide_out,
    ):
        writer = _FrameWriter(protein_out, nucleotide_out, skip, window)
        for contig in intake.second_reading(writer.skip):
            contigs += 1
            bases += len(contig.sequence)
            with_u += b"U" in contig.sequence
            writer.add(contig)
        writer.flush()
        if not writer.proteins and policies.empty_samples == "error":
            listed = ", ".join(map(str, inputs))
            raise UserError(
                f"{listed}: no window of {window} bases has a frame without stop codon; give DNA, or "
                "set empty_samples to skip"
            )
    made = (writer.windows, writer.proteins, writer.silent_contigs)
    counts = TranslationCounts(contigs, bases, *made, intake.skipped, tuple(intake.digests))
    log.info(
        "%d contigs of %d bases: %d windows, %d stop-free frames",
        *(counts.contigs, counts.bases, counts.windows, counts.proteins),
    )
    if counts.silent_contigs:
        log.info("%d contigs have no stop-free frame, so no protein: %s lists them", counts.silent_contigs, skipped)
    if counts.skipped:
        log.warning("%d contigs were skipped: %s lists them", counts.skipped, skipped)
    if with_u:
        log.warning("%d contigs hold U: codons with it add nothing, as in VirNucPro; write T to translate them", with_u)
    return counts


class _FrameWriter:
    """Collects contigs until there are enough to be worked on at once, and writes their stop-free frames as FASTA."""

    def __init__(
        self, protein_out: BinaryIO, nucleotide_out: BinaryIO, skip: Callable[[Skipped], None], window: int
    ) -> None:
        self._protein_out, self._nucleotide_out = protein_out, nucleotide_out
        self._skip = skip
        self._window = window
        self._contigs: list[FastaRecord] = []
        self._entries: list[Skipped | int] = []  # in input order; a number is a contig's
        self._size = 0
        self.windows = self.proteins = self.silent_contigs = 0

    def add(self, contig: FastaRecord) -> None:
        if self._size + len(contig.sequence) > BLOCK:
            self.flush()
        self._entries.append(len(self._contigs))
        self._contigs.append(contig)
        self._size += len(contig.sequence)

    def skip(self, skipped: Skipped) -> None:
        self._entries.append(skipped)

    def flush(self) -> None:
        has_protein = np.zeros(len(self._contigs), bool)
        ids = [contig.id.encode() for contig in self._contigs]
        for text, windows in _pieces([contig.sequence for contig in self._contigs], self._window):
            self._write(text, windows, ids, has_protein)
            self.windows += len(windows.start)
        for entry in self._entries:
            if isinstance(entry, Skipped):
                self._skip(entry)
            elif not has_protein[entry]:
                contig = self._contigs[entry]
                self._skip(Skipped(contig.id, contig.path, contig.line, SILENT_REASON))
        self.silent_contigs += int((~has_protein).sum())
        self._contigs, self._entries, self._size = [], [], 0

    def _write(self, text: bytes, windows: Windows, ids: Sequence[bytes], has_protein: NDArray[np.bool_]) -> None:
        contigs, numbers = windows.contig.tolist(), windows.number.tolist()
        proteins: list[bytes] = []
        nucleotides: list[bytes] = []
        for window, frame, protein, bases in stop_free_frames(text, windows):
            contig = contigs[window]
            header = b">%b_chunk_%d%b\n" % (ids[contig], numbers[window] + 1, FRAMES[frame])
            proteins += (header, protein, b"\n")
            nucleotides += (header, bases, b"\n")
            has_protein[contig] = True
        self._protein_out.write(b"".join(proteins))
        self._nucleotide_out.write(b"".join(nucleotides))
        self.proteins += len(proteins) // 3


def _pieces(contigs: Sequence[bytes], window: int) -> Iterator[tuple[bytes, Windows]]:
    """The contigs' windows with the text that they are places of: all in one, or a long contig in runs."""
    if not contigs:
        return
    lengths = np.array([len(bases) for bases in contigs], np.int64)
    windows = cut_windows(lengths, window)
    if len(contigs) > 1 or len(contigs[0]) <= BLOCK:
        shift = (np.cumsum(lengths) - lengths)[windows.contig]
        yield b"".join(contigs), windows._replace(start=windows.start + shift, end=windows.end + shift)
        return
    at_once = max(1, BLOCK // window)
    for first in range(0, len(windows.start), at_once):
        run = Windows(*(column[first : first + at_once] for column in windows))
        begin, end = int(run.start[0]), int(run.end[-1])
        yield contigs[0][begin:end], run._replace(start=run.start - begin, end=run.end - begin)
