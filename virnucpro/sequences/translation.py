"""From contigs to the proteins that VirNucPro embeds: windows, six frames, those without a stop codon.

Follows VirNucPro's own scripts (https://github.com/Li-Jing-1997/VirNucPro, ``units.py`` and ``prediction.py``), quirks
included, because its classifier was trained so; see :mod:`virnucpro.sequences.frames` for the cutting and the
translation. Ids are ``{contig}_chunk_{window from 1}`` and ``F1`` ... ``R3``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.base.settings import InputPolicies, default
from virnucpro.sequences.fasta import FastaRecord, RawRecord, letter_error
from virnucpro.sequences.frames import FRAMES, Windows, cut_windows, stop_free_frames
from virnucpro.sequences.intake import Intake, Kind, Skipped, skipped_table
from virnucpro.sequences.residues import SPACE
from virnucpro.sequences.suspicion import CONTIG_CHECKS, GAPS

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
    policies: InputPolicies | None = None,
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
    policies = policies or InputPolicies()
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
