"""The residues are fair-esm's tokens, and digests are what the files' contract says."""

from __future__ import annotations

import hashlib

import pytest
from esm.data import Alphabet

from virnucpro.base.digest import digest_of_digests, residue_digest
from virnucpro.sequences.fasta import RESIDUES, clean_residues


def test_residues_are_the_one_letter_tokens_of_fair_esm() -> None:
    tokens = Alphabet.from_architecture("ESM-1b").all_toks
    assert set(RESIDUES) == {token for token in tokens if len(token) == 1}
    letters = RESIDUES + "J*"
    each = (bytes([byte]) for byte in range(256) if not bytes([byte]).isspace())
    taken = {byte.decode("latin-1") for byte in each if clean_residues(byte) is not None}
    assert taken == {*letters, *letters.lower()}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (b"mk v\n*", (b"MKV", 0)),
        (b"M*K*", (b"MXK", 1)),
        (b"JjJ", (b"XXX", 3)),
        (b"*", (b"", 0)),
        (b"", (b"", 0)),
        (b"M1", None),
        (b"M\xc3\x89", None),
        (b"M>", None),
    ],
)
def test_cleaning(text: bytes, cleaned: tuple[bytes, int] | None) -> None:
    assert clean_residues(text) == cleaned


def test_digests() -> None:
    assert residue_digest(b"MKV") == hashlib.blake2b(b"MKV", digest_size=16).digest()
    digests = [residue_digest(b"MKV"), residue_digest(b"L")]
    assert digest_of_digests(digests) == hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
