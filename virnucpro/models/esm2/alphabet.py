"""ESM-2's tokens: special ones, and one for each residue, through a table of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virnucpro.base.errors import UserError
from virnucpro.sequences.fasta import RESIDUES

CLS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 32
"""ESM-2's special tokens; the vocabulary has 33 (fair-esm's ``Alphabet.from_architecture("ESM-1b")``)."""

FIRST_RESIDUE = 4
"""The token of the first of :data:`virnucpro.sequences.fasta.RESIDUES`; the others follow in their order."""

_UNKNOWN = 255
_TABLE = np.full(256, _UNKNOWN, dtype=np.uint8)
_TABLE[np.frombuffer(RESIDUES.encode(), dtype=np.uint8)] = FIRST_RESIDUE + np.arange(len(RESIDUES), dtype=np.uint8)


def tokenise(sequence: bytes, name: str) -> np.ndarray:
    """Token ids of the residues alone, without BOS and EOS.

    Args:
        sequence: cleaned residues, upper case.
        name: the protein's id, for the error.

    Returns:
        uint8 ``(residues,)``.

    Raises:
        UserError: a character has no token.
    """
    ids = _TABLE[np.frombuffer(sequence, dtype=np.uint8)]
    if len(ids) and ids.max() == _UNKNOWN:
        position = int((ids == _UNKNOWN).argmax())
        character = chr(sequence[position])
        raise UserError(
            f"protein {name!r} has {character!r} at residue {position + 1}, which is no residue of ESM-2: "
            "split the input again, which cleans it"
        )
    return ids


class ESM2Tokenizer:
    """One token a residue, between BOS and EOS (see :class:`virnucpro.models.base.Tokenizer`)."""

    begin: tuple[int, ...] = (CLS,)
    end: tuple[int, ...] = (EOS,)

    def encode(self, sequences: Sequence[bytes], names: Sequence[str]) -> list[np.ndarray]:
        return [tokenise(sequence, name) for sequence, name in zip(sequences, names, strict=True)]
