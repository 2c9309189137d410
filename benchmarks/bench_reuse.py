"""A new release of a proteome: what is left to embed, and how long everything but the embedding takes.

    python -m benchmarks.bench_reuse [--proteins 200000] [--embed-dim 1280] [--folder DIR]

A release of so many proteins is there, embedded. The next one has 5 % more, and 1.5 % of the old ones are changed. It
is split, once in a new folder with ``reuse`` and once in the same one; what is new is embedded by a stub (noise, whose
time does not count), and the table is written.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.bench_data import stub_tensors
from virnucpro.base.digest import FileDigests
from virnucpro.base.settings import EmbeddingSettings, LongProteins
from virnucpro.chunking.manifest import SplitRecord, SplitSettings
from virnucpro.chunking.split import ToSplit, split_samples
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.reference import ModelRef
from virnucpro.sequences.fasta import read_fasta
from virnucpro.storage.chunk_metadata import (
    ChunkMetadata,
    ChunkSource,
    DeviceRun,
    RunStatistics,
    embedding_identity,
    identity,
)
from virnucpro.storage.chunk_writer import write_chunk_file
from virnucpro.storage.merge import merge_embeddings
from virnucpro.storage.pool import Finder
from virnucpro.storage.reuse import Reuse
from virnucpro.storage.sample_files import PoolFiles, SampleFiles
from virnucpro.weights.manifest import WeightsManifest, WeightsRequest
from virnucpro.weights.prepare import prepare_weights

LOG = logging.getLogger("bench_reuse")
SETTINGS = EmbeddingSettings(precision="fp16")
LETTERS = np.frombuffer(b"LAGVSERTIDPKQNFYMHWC", np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proteins", type=int, default=200_000)
    parser.add_argument("--embed-dim", type=int, default=1280)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        measure(Path(scratch), given.proteins, given.embed_dim)


def measure(folder: Path, proteins: int, embed_dim: int) -> None:
    write_checkpoint(folder / "my.pt", Architecture(layers=1, embed_dim=embed_dim, heads=embed_dim // 64))
    weights = WeightsRequest.of(ModelRef.of(folder / "my.pt"), folder, FileDigests())
    manifest = prepare_weights(str(folder / "my.pt"), weights.file, log=LOG.debug)
    new, changed = proteins // 20, proteins * 3 // 200
    old = [protein(number) for number in range(proteins)]
    release = [*(protein(-number - 1) for number in range(changed)), *old[changed:]]
    release += [protein(proteins + number) for number in range(new)]
    random.Random(0).shuffle(release)
    Release(folder / "old", weights, manifest).run("old", old)
    print(
        f"{proteins:,} proteins, then {len(release):,}, of which {new:,} are new and {changed:,} changed; D {embed_dim}"
    )
    print("| | sequences left to embed | their share | split, s | merge, s | both, s | both, CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    reuse = Reuse((folder / "old",), folder / "new" / ".reuse", ("stub",))
    for what, run in (
        ("`reuse` in a new folder", Release(folder / "new", weights, manifest, reuse)),
        ("the same folder", Release(folder / "old", weights, manifest)),
    ):
        left, split, merge, busy = run.run("release", release)
        print(
            f"| {what} | {left:,} | {100 * left / len(release):.1f} % | {split:.1f} | {merge:.1f} "
            f"| {split + merge:.1f} | {busy:.1f} |",
            flush=True,
        )


def protein(number: int) -> bytes:
    draws = np.random.default_rng(abs(number) * 2 + (number < 0))
    return LETTERS[draws.integers(0, 20, int(np.clip(np.exp(draws.normal(5.49, 0.65)), 20, 2000)))].tobytes()


class Release:
    """A folder of results."""

    def __init__(
        self, folder: Path, weights: WeightsRequest, manifest: WeightsManifest, reuse: Reuse | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._weights, self._manifest, self._reuse = folder, weights, manifest, reuse
        self._pool, self._sample = PoolFiles(folder), SampleFiles(folder)

    def run(self, name: str, sequences: list[bytes]) -> tuple[int, float, float, float]:
        """Sequences that were left to embed; seconds of split and merge; and of the CPU for both."""
        fasta = self._folder / f"{name}.faa"
        fasta.write_bytes(b"".join(b">p%d\n%b\n" % entry for entry in enumerate(sequences)))
        start, busy = time.perf_counter(), time.process_time()
        find = Finder(self._pool.tensors, SETTINGS, self._weights, reuse=self._reuse, logger=LOG)
        cut = SplitSettings(20_000_000, 1, self._manifest.embed_dim, LongProteins())
        sample = ToSplit([fasta], self._sample.index, self._sample.skipped)
        record = split_samples({"one": sample}, self._pool.chunks, cut, find=find, logger=LOG)
        split, busy = time.perf_counter() - start, time.process_time() - busy
        left = self._embed(record)
        start, since = time.perf_counter(), time.process_time()
        merge_embeddings(
            self._sample.index,
            self._pool.chunks,
            self._pool.tensors,
            {"parquet": self._folder / "embeddings.parquet"},
            self._sample.report,
            expected=identity(self._manifest, SETTINGS),
            threads=2,
            logger=LOG,
        )
        return left, split, time.perf_counter() - start, busy + time.process_time() - since

    def _embed(self, record: SplitRecord) -> int:
        """Write chunk files of noise."""
        count = 0
        for name in record.to_embed():
            sequences = [entry.sequence for entry in read_fasta(self._pool.chunks / f"{name}.fasta")]
            n, residues = len(sequences), sum(map(len, sequences))
            noise = np.random.default_rng(n).standard_normal((n, self._manifest.embed_dim), np.float32)
            tensors = stub_tensors(sequences, "mean.1", noise)
            statistics = RunStatistics(n, residues, residues + 2 * n, 1.0, 0.0, 0.0, 0, 0, 0)
            run = DeviceRun(("float16",), "standard_attention", "stub", "stub", "stub", {}, statistics)
            source = ChunkSource(name, record.chunks[name].digest, self._manifest.source_sha256, 1, demo=True)
            entries = ChunkMetadata(source, embedding_identity(self._manifest, SETTINGS), run).to_entries()
            write_chunk_file(self._pool.chunk_file(name), tensors, entries)
            count += n
        return count


if __name__ == "__main__":
    main()
