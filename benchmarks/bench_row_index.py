"""How long the index over digests takes to build, to extend and to search, and its memory: ``--millions 1 10 100``.

Digests are drawn at random. Each number of them has a process of its own, so that the peak of memory is its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.storage.row_index import IndexedFile, RowIndex

PER_FILE = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.millions[0], given.folder)
        return
    print("digests    build   extend by 1 %   find 1 million (half are there)   find 1,000   on disk   peak memory")
    for millions in given.millions:
        command = [sys.executable, "-m", "benchmarks.bench_row_index", "--one", "--millions", str(millions)]
        subprocess.run([*command, "--folder", str(given.folder)], check=True)


def digests(number: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (count, 16), np.uint8)


def measure(millions: int, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        index = RowIndex(Path(scratch) / "index")

        def some() -> Iterator[tuple[int, NDArray[np.uint8]]]:
            for number in range(millions):
                yield number, digests(number, PER_FILE)

        files = [IndexedFile(f"{number}.safetensors", "") for number in range(millions)]
        drawn = time.perf_counter()
        for _ in some():
            pass
        start = time.perf_counter()
        index.extend(files, some())
        built = time.perf_counter() - start - (start - drawn)
        start = time.perf_counter()
        index.extend([IndexedFile("more.safetensors", "")], [(millions, digests(1 << 20, millions * PER_FILE // 100))])
        extended = time.perf_counter() - start
        wanted = np.concatenate([digests(0, PER_FILE)[: PER_FILE // 2], digests(1 << 21, PER_FILE // 2)])
        start = time.perf_counter()
        file, row = index.find(wanted)
        found = time.perf_counter() - start
        half = PER_FILE // 2
        assert (file[:half] == 0).all()
        assert (row[:half] == np.arange(half)).all()
        assert (file[half:] == -1).all()
        start = time.perf_counter()
        index.find(wanted[:1000])
        few = time.perf_counter() - start
        size = sum(path.stat().st_size for path in (Path(scratch) / "index").iterdir()) / 1e6
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(
            f"{millions:4d} M  {built:7.1f} s  {extended:7.2f} s  {found:20.2f} s  {few:22.3f} s"
            f"  {size:12,.0f} MB  {peak:6,.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
