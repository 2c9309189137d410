"""Tokens: the table of bytes against fair-esm's own alphabet."""

from __future__ import annotations

import pytest
from esm.data import Alphabet

from tests.oracle import random_protein
from virnucpro.base.errors import UserError
from virnucpro.models.esm2.alphabet import CLS, EOS, MASK, PAD, UNK, tokenise
from virnucpro.sequences.fasta import RESIDUES

ALPHABET = Alphabet.from_architecture("ESM-1b")


def test_every_residue_has_fair_esms_index() -> None:
    assert tokenise(RESIDUES.encode(), "all").tolist() == ALPHABET.encode(RESIDUES)


def test_special_tokens_are_fair_esms() -> None:
    own = (CLS, PAD, EOS, UNK, MASK)
    theirs = (
        ALPHABET.cls_idx,
        ALPHABET.padding_idx,
        ALPHABET.eos_idx,
        ALPHABET.unk_idx,
        ALPHABET.mask_idx,
    )
    assert own == theirs == (0, 1, 2, 3, 32)
    assert len(ALPHABET) == 33


def test_long_sequences_tokenise_as_fair_esm() -> None:
    sequence = random_protein(3000, seed=4)
    assert tokenise(sequence.encode(), "long").tolist() == ALPHABET.encode(sequence)


@pytest.mark.parametrize("letter", ["J", "a", "*", "1", " ", "<", "\xe9"])
def test_a_letter_without_token_is_named(letter: str) -> None:
    with pytest.raises(UserError, match=r"'p7'.*residue 3"):
        tokenise(f"MK{letter}L".encode("latin-1"), "p7")
