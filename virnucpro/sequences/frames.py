"""Where VirNucPro cuts a contig: windows of one length whose overlaps are as even as whole numbers allow.

A contig of L bases is cut into n = ceil(L / w) windows of w bases. They are E = n w - L bases too long, which the
overlaps share: low = floor(E / n), the first E - low (n - 1) overlaps are low + 1 and the others low. The sum of the
overlaps can exceed E, so the last window, cut at L, can be short. A contig shorter than w is one window.
(Li-Jing-1997/VirNucPro, ``units.py``; its classifier was trained on windows cut so.)

Six-frame translation of many windows at once, by table lookups over bytes.

Every place of the text is translated as if a codon began there, forward and on the other strand. Taken
every third place, these are the three frames, so the protein of a window and frame is a run of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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
