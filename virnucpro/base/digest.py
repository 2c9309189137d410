"""Digests that stand for sequences, chunks and files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def residue_digest(residues: bytes) -> bytes:
    """16 bytes that stand for a sequence: blake2b of the residues in ASCII.

    Two of 10^9 different sequences share one with a chance of about 10^-21.
    """
    return hashlib.blake2b(residues, digest_size=16).digest()


def digest_of_digests(digests: Iterable[bytes]) -> str:
    """What stands for a chunk: blake2b-16 over its proteins' digests in row order, in hex."""
    total = hashlib.blake2b(digest_size=16)
    for digest in digests:
        total.update(digest)
    return total.hexdigest()
