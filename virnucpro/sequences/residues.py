"""From the letters in a FASTA file to the residues that ESM-2 has tokens for."""

from __future__ import annotations

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
"""The letters with a token of their own (fair-esm's alphabet "ESM-1b", in its order)."""

SPACE = b" \t\n\r\x0b\x0c"

_upper = bytes(range(256)).upper()

_known = RESIDUES.encode("ascii") + b"J*"

_CLEANING = bytes(letter if letter in _known else 0 for letter in _upper)
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


def is_residue(letter: int) -> bool:
    """Whether a byte may stand in a protein record (white space apart)."""
    return _CLEANING[letter] != 0
