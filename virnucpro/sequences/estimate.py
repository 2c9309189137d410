"""How much is in a FASTA file, quickly: for planning, not for splitting."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

BLOCK = 1 << 20
ENOUGH = 1 << 26
"""Bytes of a file that are read; a larger one is judged by its beginning."""

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Amount:
    """Records and letters of FASTA; ``exact`` when all of it was read."""

    records: int
    letters: int
    exact: bool

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.records + other.records, self.letters + other.letters, self.exact and other.exact)


def estimate(path: Path, enough: int = ENOUGH) -> Amount:
    """Count records and sequence letters, from the first ``enough`` bytes if the file has more.

    Nothing is checked: what is not FASTA gives some numbers too.

    Raises:
        OSError: the file cannot be read (a damaged gzip file included).
        EOFError: a gzip file that is cut short.
    """
    records = letters = 0
    in_header = False
    at_line_start = True
    with path.open("rb") as file:
        size = path.stat().st_size
        packed = file.read(2) == _GZIP
        file.seek(0)
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file
        while block := stream.read(BLOCK):
            for line in block.splitlines(keepends=True):
                if at_line_start:
                    in_header = line.startswith(b">")
                    records += in_header
                if not in_header:
                    letters += len(line.rstrip(b"\r\n"))
                at_line_start = line.endswith((b"\n", b"\r"))
            read = file.tell()
            if read >= enough and read < size:
                share = size / read
                return Amount(round(records * share), round(letters * share), exact=False)
    return Amount(records, letters, exact=True)
