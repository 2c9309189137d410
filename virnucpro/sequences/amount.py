"""How much is in FASTA files, quickly: for planning, not for splitting. Needs the standard library alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virnucpro.base.digest import residue_digest
from virnucpro.sequences.fasta import as_protein, read_raw
from virnucpro.sequences.files import SequenceFile
from virnucpro.sequences.suspicion import GAPS

ENOUGH = 1 << 26
"""Bytes of a file that are read; a larger one is judged by its beginning."""

ENOUGH_TEXT = 1 << 28
"""Bytes of sequences that are read of a packed file."""


@dataclass(frozen=True)
class Amount:
    """Records and their letters, and those of different sequences alone; ``exact`` when all of it was read."""

    records: int
    letters: int
    unique: int
    unique_letters: int
    exact: bool


def estimate(paths: Sequence[Path], *, skip_repeated_ids: bool = False, enough: int = ENOUGH) -> Amount:
    """Count what a sample's files hold, as the split would take it; of each file the first ``enough`` bytes are read.

    Records without residues do not count. Contigs count as proteins do, letter by letter.

    Raises:
        UserError: a file that can't be read or is not FASTA, or a letter that no sequence has.
    """
    seen: set[bytes] = set()
    ids: set[str] = set()
    totals = [0.0] * 4
    exact = True
    for path in paths:
        counts = [0] * 4
        text = taken = 0  # bytes of sequences, and of the file, whose records are counted
        file = SequenceFile(path)
        for raw in read_raw(file):
            if file.read > taken:
                if taken >= enough or text >= ENOUGH_TEXT:
                    exact = False
                    break
                taken = file.read
            record = as_protein(path, raw)
            text += len(raw.header) + len(raw.text)
            if record.sequence.strip(GAPS) and not (skip_repeated_ids and record.id in ids):
                if skip_repeated_ids:
                    ids.add(record.id)
                digest = residue_digest(record.sequence)
                is_new = digest not in seen
                seen.add(digest)
                length = len(record.sequence)
                counts = [n + more for n, more in zip(counts, (1, length, is_new, is_new * length), strict=True)]
        share = 1.0 if file.sha256 else file.size / taken
        totals = [total + count * share for total, count in zip(totals, counts, strict=True)]
    records, letters, unique, unique_letters = map(round, totals)
    return Amount(records, letters, unique, unique_letters, exact)
