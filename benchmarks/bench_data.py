"""Time and memory of split and merge on a large synthetic sample; each stage is a process of its own.

    python -m benchmarks.bench_data [--records 1000000] [--embed-dim 320] [--formats parquet] [--folder DIR]
    python -m benchmarks.bench_data --pooling per_residue --records 20000 --embed-dim 1280 --formats npy,parquet

The FASTA has proteins of 300 residues on average, a third of the records repeat an earlier one. The embedding is
faked by a stub that writes chunk files of the right shape (noise), because this benchmark is about the data stages.
"disk" writes as many bytes as the chunk files have to one file and flushes it: what a merge cannot be faster than. Nor
can it be faster than one thread's sha256, which "disk" measures too. Each of the formats is merged by itself; with
--against in turns with the code of another checkout, which is run with the same Python.
Peak memory is the process's largest resident set (getrusage), Python and its libraries included, and so is CPU time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from virnucpro.storage.chunk_metadata import EmbeddingIdentity

STAGES = ("generate", "split", "stub", "disk", "merge", "translate")
SETTINGS = ("records", "embed_dim", "pooling", "chunk_residues")
FILES = {
    "parquet": "embeddings.parquet",
    "hdf5": "embeddings.h5",
    "virnucpro_pt": "virnucpro_pt",
    "npy": "embeddings_npy",
    "chunk_files": "chunk_files",
}


def generate(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Write the FASTA; repeats are drawn from all earlier sequences by their seeds, so that memory stays small."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"LAGVSERTIDPKQNFYMHWC", np.uint8)
    pool = letters[rng.integers(0, 20, 1 << 22)].tobytes()
    fresh = rng.random(options.records) >= 1 / 3
    fresh[0] = True
    source = np.where(fresh, np.arange(options.records), 0)
    repeats = np.flatnonzero(~fresh)
    source[repeats] = (rng.random(len(repeats)) * repeats).astype(np.int64)
    while not fresh[source].all():
        source = source[source]
    lengths = np.clip(np.exp(rng.normal(5.49, 0.65, options.records)), 20, 30_000).astype(np.int64)
    starts = rng.integers(0, len(pool) - 30_000, options.records)
    with (folder / "proteins.faa").open("wb") as out:
        for i, s in enumerate(source.tolist()):
            start, length = int(starts[s]), int(lengths[s])
            # A repeat has its source's residues; the number at the front keeps unlike ones apart.
            out.write(b">tr|A%09d|NAME a protein\n%b%b\n" % (i, _number(s), pool[start : start + length]))
    return {"bytes": (folder / "proteins.faa").stat().st_size}


def _number(value: int) -> bytes:
    """A number in letters that stand for residues."""
    return str(value).translate(str.maketrans("0123456789", "LAGVSERTID")).encode()


def split(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    from virnucpro.base.settings import LongProteins
    from virnucpro.chunking.manifest import ONE_SAMPLE, SplitSettings
    from virnucpro.chunking.split import ToSplit, split_samples

    fasta = folder / "proteins.faa"
    settings = SplitSettings(options.chunk_residues, 1, 2560, LongProteins())
    split = ToSplit([fasta], folder / "index.parquet", folder / "skipped.tsv")
    counts = split_samples({ONE_SAMPLE: split}, folder / "chunks", settings).samples[ONE_SAMPLE].counts
    return {"bytes": fasta.stat().st_size, "chunks": counts["chunks"], "unique": counts["unique"]}


def stub_identity(options: argparse.Namespace) -> EmbeddingIdentity:
    """What the stub's chunk files say that they are."""
    from virnucpro.base.settings import LongProteins
    from virnucpro.storage.chunk_metadata import EmbeddingIdentity

    return EmbeddingIdentity(
        pooling=(options.pooling,),
        precision="fp16",
        long_proteins=LongProteins(),
        model="esm2_stub",
        weights_sha256="0" * 64,
        embed_dim=options.embed_dim,
        layers=(6,),
    )


def stub_tensors(sequences: Sequence[bytes], name: str, vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a chunk file of these sequences, with any ``vectors (n, D)`` under ``name``."""
    from virnucpro.base.digest import residue_digest

    n = len(sequences)
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    return {
        "digests": np.frombuffer(b"".join(map(residue_digest, sequences)), np.uint8).reshape(n, 16),
        "lengths": lengths,
        "windows": np.ones(n, np.int32),
        "embedded": lengths,
        "precision": np.zeros(n, np.uint8),
        name: vectors,
    }


def stub(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Chunk files of the right shape, with the digests and lengths of the chunk's proteins."""
    from virnucpro.base.records import read_record
    from virnucpro.chunking.manifest import ChunkManifest
    from virnucpro.sequences.fasta import read_fasta
    from virnucpro.storage.chunk_metadata import ChunkMetadata, ChunkSource, DeviceRun, RunStatistics
    from virnucpro.storage.chunk_writer import write_chunk_file

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1 << 16, options.embed_dim), dtype=np.float32)
    size = 0
    for fasta in sorted((folder / "chunks").glob("*.fasta")):
        sequences = [record.sequence for record in read_fasta(fasta)]
        n = len(sequences)
        residues = sum(map(len, sequences))
        if options.pooling == "mean":
            tensors = stub_tensors(sequences, "mean.6", np.resize(noise, (n, options.embed_dim)))
        else:
            tensors = stub_tensors(sequences, "residues.6", np.resize(noise, (residues, options.embed_dim)))
            tensors["starts"] = np.cumsum(tensors["embedded"], dtype=np.int64) - tensors["embedded"]
        digest = read_record(fasta.with_suffix(".json"), ChunkManifest).digest
        path = folder / "tensors" / f"{fasta.stem}.safetensors"
        statistics = RunStatistics(n, residues, residues, 1.0, 0.0, 0.0, 0, 0, 0)
        run = DeviceRun(("float16",), "standard_attention", "stub", "none", "stub", {}, statistics)
        source = ChunkSource(fasta.stem, digest, "0" * 64, 6, demo=True)
        write_chunk_file(path, tensors, ChunkMetadata(source, stub_identity(options), run).to_entries())
        size += path.stat().st_size
    return {"bytes": size}


def disk(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    size = sum(path.stat().st_size for path in (folder / "tensors").iterdir())
    block = np.random.default_rng(0).bytes(1 << 24)
    path, start = folder / "written", time.perf_counter()
    with path.open("wb") as file:
        for _ in range(0, size, len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    found = {"bytes": size, "seconds": time.perf_counter() - start}
    start, digest = time.perf_counter(), hashlib.sha256()
    for _ in range(64):
        digest.update(block)
    return {**found, "sha256_mb_s": round(64 * len(block) / (time.perf_counter() - start) / 1e6)}


def merge(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    from virnucpro.base.limits import usable_cores
    from virnucpro.sequences.fasta import read_fasta
    from virnucpro.storage.chunk_metadata import header_entries
    from virnucpro.storage.merge import merge_embeddings

    outputs = {name: folder / FILES[name] for name in options.formats.split(",")}
    expected = header_entries(stub_identity(options))
    counts = merge_embeddings(
        folder / "index.parquet",
        folder / "chunks",
        folder / "tensors",
        outputs,
        folder / "report.json",
        expected=expected,
        threads=usable_cores(),
    )
    # What is delivered: the table's vectors, repeats included.
    vectors = counts.records
    if options.pooling == "per_residue":
        vectors = sum(len(record.sequence) for record in read_fasta(folder / "proteins.faa"))
    return {"bytes": vectors * counts.embed_dim * 4 * len(outputs), "records": counts.records}


def translate(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Six frames of contigs of 3,000 bases on average, as many bases as there are records times 100."""
    from virnucpro.sequences.translation import translate_contigs

    rng = np.random.default_rng(0)
    bases = np.frombuffer(b"ACGT", np.uint8)
    path = folder / "contigs.fna"
    left, number = options.records * 100, 0
    with path.open("wb") as out:
        while left > 0:
            length = int(np.clip(rng.exponential(3000), 200, 200_000))
            out.write(b">contig_%d\n%b\n" % (number, bases[rng.integers(0, 4, length)].tobytes()))
            left, number = left - length, number + 1
    start = time.process_time()
    counts = translate_contigs([path], folder / "frames.faa", folder / "frames.fna")
    return {"bytes": counts.bases, "seconds": time.process_time() - start, "proteins": counts.proteins}


def run_stage(name: str, folder: Path, options: argparse.Namespace) -> None:
    stages: dict[str, Callable[[Path, argparse.Namespace], dict[str, float]]] = {
        "generate": generate,
        "split": split,
        "stub": stub,
        "disk": disk,
        "merge": merge,
        "translate": translate,
    }
    start = time.perf_counter()
    found = stages[name](folder, options)
    found.setdefault("seconds", time.perf_counter() - start)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found))


def run(root: Path, folder: Path, stage: str, formats: str, options: argparse.Namespace, label: str) -> None:
    """Run one stage with the code of a checkout, in a process of its own, and print what it took."""
    command = [sys.executable, "-m", "benchmarks.bench_data", "--folder", str(folder), "--stage", stage]
    for key, value in (("formats", formats), *((key, getattr(options, key)) for key in SETTINGS)):
        command += [f"--{key.replace('_', '-')}", str(value)]
    os.sync()  # what came before is none of its business
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=root).stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds, size, peak = found.pop("seconds"), found.pop("bytes") / 1e6, found.pop("peak") / 1e6
    more = "".join(f"  {key} {value}" for key, value in found.items())
    print(f"{label:28}{seconds:10.1f}{cpu:8.1f}{size:10.0f}{size / seconds:8.0f}{peak:10.0f}{more}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--embed-dim", type=int, default=320)
    parser.add_argument("--pooling", choices=["mean", "per_residue"], default="mean")
    parser.add_argument("--chunk-residues", type=int, default=20_000_000)
    parser.add_argument("--formats", default="parquet", help="comma-separated: " + ", ".join(FILES))
    parser.add_argument("--folder", type=Path, help="where to work (kept); by default a temporary folder")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated; default: all")
    parser.add_argument("--rounds", type=int, default=1, help="how often each merge runs")
    parser.add_argument("--against", type=Path, help="another checkout, whose merge is run too, in turns")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage, options.folder, options)
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="bench_data"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{options.records} records, D = {options.embed_dim}")
    print(f"{'stage':28}{'seconds':>10}{'CPU s':>8}{'MB':>10}{'MB/s':>8}{'peak MB':>10}")
    here = Path(__file__).parents[1]
    checkouts = [here] if options.against is None else [options.against.resolve(), here]
    merges = [(root, name) for _ in range(options.rounds) for name in options.formats.split(",") for root in checkouts]
    try:
        for stage in options.stages.split(","):
            for root, formats in merges if stage == "merge" else [(here, options.formats)]:
                words = [stage, *([formats] if stage == "merge" else []), *(["(before)"] if root != here else [])]
                run(root, folder.resolve(), stage, formats, options, " ".join(words))
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
