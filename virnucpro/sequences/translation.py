"""From contigs to the proteins that VirNucPro embeds: windows, six frames, those without a stop codon.

Follows VirNucPro's own scripts (https://github.com/Li-Jing-1997/VirNucPro, ``units.py`` and ``prediction.py``), quirks
included, because its classifier was trained so; see :mod:`virnucpro.sequences.frames` for the cutting and
:mod:`virnucpro.sequences.frames` for the translation. Ids are ``{contig}_chunk_{window from 1}`` and ``F1`` ... ``R3``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.atomic import atomic_path
from virnucpro.base.errors import UserError
from virnucpro.sequences.fasta import RawRecord, empty_record, letter_error, read_raw
from virnucpro.sequences.frames import FRAMES, Windows, cut_windows, stop_free_frames
from virnucpro.sequences.repeats import SeenIds
from virnucpro.sequences.residues import SPACE

BLOCK = 1 << 18
"""Bases translated at once: what is made of them fits into the processor's cache. Longer contigs go in runs."""

NUCLEOTIDES = b"ACGTURYSWKMBDHVNX.-"
"""IUPAC's letters for bases, and those for gaps and unknown ones."""

_CLEANING = bytes(letter if letter in NUCLEOTIDES else 0 for letter in bytes(range(256)).upper())


@dataclass(frozen=True)
class TranslationCounts:
    """What came in and out: ``silent_contigs`` have no stop-free frame in any window, so no protein."""

    contigs: int
    bases: int
    windows: int
    proteins: int
    silent_contigs: int


def read_contigs(path: Path) -> Iterator[tuple[RawRecord, bytes]]:
    """Each record of a nucleotide FASTA file with its bases in upper case.

    Raises:
        UserError: as :func:`read_raw`; an empty record, or a letter that no nucleotide sequence has.
    """
    for record in read_raw(path):
        bases = record.text.translate(_CLEANING, SPACE)
        if b"\0" in bases:
            place = next(i for i, byte in enumerate(record.text) if byte not in SPACE and not _CLEANING[byte])
            raise letter_error(
                path, record, place, "is no nucleotide; mend it, or set input to protein if these are proteins"
            )
        if not bases:
            raise empty_record(path, record)
        yield record, bases


def translate_contigs(
    inputs: Sequence[Path],
    proteins: Path,
    nucleotides: Path,
    *,
    window: int = 500,
    logger: logging.Logger | None = None,
) -> TranslationCounts:
    """Write the stop-free frames of all windows as a protein and a nucleotide FASTA file, record by record alike.

    Args:
        inputs: nucleotide FASTA files.
        proteins, nucleotides: FASTA files to write; both appear when all of the input was read and is right.
        window: bases a window; VirNucPro has classifiers for 300 and 500.

    Raises:
        UserError: a file that cannot be read or is not nucleotide FASTA, an id that occurs twice, or no
            stop-free frame at all.
    """
    if not inputs:
        raise UserError("no FASTA file was given for this sample; name at least one")
    if window < 3:
        raise UserError(f"nucleotide window is {window}; give 300 or 500, as VirNucPro's classifiers were trained")
    log = logger or logging.getLogger(__name__)
    ids = SeenIds()
    bases_read = with_u = 0
    with (
        atomic_path(proteins) as protein_path,
        atomic_path(nucleotides) as nucleotide_path,
        protein_path.open("wb") as protein_out,
        nucleotide_path.open("wb") as nucleotide_out,
    ):
        writer = _FrameWriter(protein_out, nucleotide_out, window)
        for path in inputs:
            for record, bases in read_contigs(path):
                ids.add(record.id)
                bases_read += len(bases)
                with_u += b"U" in bases
                writer.add(record.id, bases)
        writer.flush()
        ids.refuse_repeats(inputs)
        if not writer.proteins:
            listed = ", ".join(map(str, inputs))
            raise UserError(f"{listed}: no window of {window} bases has a frame without stop codon; is this DNA?")
    counts = TranslationCounts(len(ids), bases_read, writer.windows, writer.proteins, len(ids) - writer.with_protein)
    log.info(
        "%d contigs of %d bases: %d windows, %d stop-free frames",
        *(counts.contigs, counts.bases, counts.windows, counts.proteins),
    )
    if counts.silent_contigs:
        log.info("%d contigs have no stop-free frame, so no protein", counts.silent_contigs)
    if with_u:
        log.warning("%d contigs hold U: codons with it add nothing, as in VirNucPro; write T to translate them", with_u)
    return counts


class _FrameWriter:
    """Collects contigs until there are enough to be worked on at once, and writes their stop-free frames as FASTA."""

    def __init__(self, protein_out: BinaryIO, nucleotide_out: BinaryIO, window: int) -> None:
        self._protein_out, self._nucleotide_out = protein_out, nucleotide_out
        self._window = window
        self._ids: list[bytes] = []
        self._contigs: list[bytes] = []
        self._size = 0
        self.windows = self.proteins = self.with_protein = 0

    def add(self, contig_id: str, bases: bytes) -> None:
        if self._size + len(bases) > BLOCK:
            self.flush()
        self._ids.append(contig_id.encode())
        self._contigs.append(bases)
        self._size += len(bases)

    def flush(self) -> None:
        has_protein = np.zeros(len(self._ids), bool)
        for text, windows in _pieces(self._contigs, self._window):
            self._write(text, windows, has_protein)
            self.windows += len(windows.start)
        self.with_protein += int(has_protein.sum())
        self._ids, self._contigs, self._size = [], [], 0

    def _write(self, text: bytes, windows: Windows, has_protein: NDArray[np.bool_]) -> None:
        ids, contigs, numbers = self._ids, windows.contig.tolist(), windows.number.tolist()
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
