"""Compare FASTA readers: which files each reads rightly, and how fast.

    python benchmarks/bench_fasta_parsers.py [--records 200000]

Right means: two proteins, "a" MKV and "b" LL (or the id of the case), or for the files marked "refuse" any exception.
Readers that are not installed (pip install biopython dnaio pyfastx needletail) are skipped. Speed is the best of three
passes over a file of proteins of 300 residues on average, 60 to a line, ids and residues as bytes or text, not cleaned
(the reader of this package is measured both raw and with its checks).
"""

from __future__ import annotations

import argparse
import gzip
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from virnucpro.sequences.fasta import read_fasta, read_raw
from virnucpro.sequences.files import SequenceFile

Reader = Callable[[Path], Iterator[tuple[str, str]]]


def with_biopython(path: Path) -> Iterator[tuple[str, str]]:
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        for title, sequence in SimpleFastaParser(file):
            yield title.split(None, 1)[0], sequence


def with_dnaio(path: Path) -> Iterator[tuple[str, str]]:
    import dnaio

    with dnaio.open(path, fileformat="fasta", open_threads=0) as records:
        for record in records:
            yield record.id, record.sequence


def with_pyfastx(path: Path) -> Iterator[tuple[str, str]]:
    import pyfastx

    yield from pyfastx.Fasta(str(path), build_index=False)


def with_needletail(path: Path) -> Iterator[tuple[str, str]]:
    import needletail

    for record in needletail.parse_fastx_file(str(path)):
        yield record.id.split(None, 1)[0], record.seq


def with_virnucpro_raw(path: Path) -> Iterator[tuple[str, str]]:
    for record in read_raw(SequenceFile(path)):
        yield record.id, record.text.replace(b"\n", b"").decode("latin-1")


def with_virnucpro(path: Path) -> Iterator[tuple[str, str]]:
    for record in read_fasta(path):
        yield record.id, record.sequence.decode("ascii")


READERS: dict[str, Reader] = {
    "biopython": with_biopython,
    "dnaio": with_dnaio,
    "pyfastx": with_pyfastx,
    "needletail": with_needletail,
    "virnucpro (raw)": with_virnucpro_raw,
    "virnucpro": with_virnucpro,
}

TWO = [("a", "MKV"), ("b", "LL")]
CASES: dict[str, tuple[bytes, list[tuple[str, str]] | None]] = {
    "Windows line ends": (b">a x\r\nMK\r\nV\r\n>b\r\nLL\r\n", TWO),
    "old Mac line ends": (b">a\rMKV\r>b\rLL\r", TWO),
    "empty lines": (b"\n>a\n\nMK\n\nV\n\n>b\nLL\n\n", TWO),
    "; comments": (b"; note\n>a\n;about a\nMKV\n>b\nLL\n", TWO),
    "no last line end": (b">a\nMKV\n>b\nLL", TWO),
    "space after >": (b"> a x\nMKV\n> b\nLL\n", TWO),
    "byte order mark": (b"\xef\xbb\xbf>a\nMKV\n>b\nLL\n", TWO),
    "id with / and |": (b">sp|P1/2|X d\nMKV\n", [("sp|P1/2|X", "MKV")]),
    "UTF-8 id": (">é|Ω d\nMKV\n".encode(), [("é|Ω", "MKV")]),
    "Latin-1 id": (b">prot\xe9ine d\nMKV\n", [("protéine", "MKV")]),
    "gzip, two members": (gzip.compress(b">a\nMK") + gzip.compress(b"V\n>b\nLL\n"), TWO),
    "gzip cut short: refuse": (
        gzip.compress(b">a\nMKV\n>b\n" + random.Random(0).randbytes(4000).hex().encode())[:-800],
        None,
    ),
    "lost line end: refuse": (b">a\nMKV>b\nLL\n", None),
    "empty record: refuse": (b">a\nMKV\n>c\n>b\nLL\n", None),
    "a digit: refuse": (b">a\nMK1V\n", None),
    "text: refuse": (b"Hello\nworld\n", None),
    "empty file: refuse": (b"", None),
}


def verdict(reader: Reader, path: Path, wanted: list[tuple[str, str]] | None) -> str:
    try:
        found = list(reader(path))
    except Exception:  # whatever kind a reader refuses with
        return "ok" if wanted is None else "refuses"
    if wanted is None:
        return "takes it"
    return "ok" if found == wanted else "wrong"


def write_speed_files(folder: Path, records: int) -> tuple[Path, Path]:
    chance = random.Random(0)
    pool = "".join(chance.choices("LAGVSERTIDPKQNFYMHWC", k=1 << 20))
    plain = folder / "speed.fasta"
    with plain.open("w") as out:
        for i in range(records):
            length = max(20, int(chance.expovariate(1 / 300)))
            start = chance.randrange(len(pool) - length)
            lines = (pool[place : min(place + 60, start + length)] for place in range(start, start + length, 60))
            out.write(f">tr|A{i:08d}|NAME_{i} a protein of something\n" + "\n".join(lines) + "\n")
    packed = folder / "speed.fasta.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes(), 6))
    return plain, packed


def speed(reader: Reader, path: Path, size: int) -> float:
    """MB of plain text a second of processor time, best of three."""
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        for _ in reader(path):
            pass
        best = max(best, size / 1e6 / (time.process_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    records = parser.parse_args().records
    readers = {}
    for name, reader in READERS.items():
        try:
            label = name if name.startswith("virnucpro") else f"{name} {version(name)}"
        except PackageNotFoundError:
            print(f"{name}: not installed, skipped")
            continue
        readers[label] = reader
    with tempfile.TemporaryDirectory() as folder:
        width = max(map(len, CASES)) + 2
        print(" " * width + "  ".join(f"{label:>16}" for label in readers))
        for number, (case, (data, wanted)) in enumerate(CASES.items()):
            path = Path(folder) / f"case{number}.fasta{'.gz' if data.startswith(bytes([31, 139])) else ''}"
            path.write_bytes(data)
            print(f"{case:{width}}" + "  ".join(f"{verdict(reader, path, wanted):>16}" for reader in readers.values()))
        plain, packed = write_speed_files(Path(folder), records)
        size = plain.stat().st_size
        print(f"\nMB/s of plain text, {records} proteins, {size / 1e6:.0f} MB")
        for kind, path in (("plain", plain), ("gzip", packed)):
            print(f"{kind:{width}}" + "  ".join(f"{speed(reader, path, size):16.0f}" for reader in readers.values()))


if __name__ == "__main__":
    main()
