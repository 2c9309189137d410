"""The whole embed job, files to file, beside the pure forward of the same proteins; and how cost grows.

    python -m benchmarks.bench_job --model 650M --proteins 20000 --devices cuda:0
    python -m benchmarks.bench_job --model 650M --proteins 10000 --pooling per_residue --dtype float16
    python -m benchmarks.bench_job --model 650M --growth

Random float16 weights are written to a temporary folder first. "share" is the job's tokens per second of
embedding time (its loop, without loading) and of its whole time (start to file), over the pure forward's. Between the
two: the start, and the end, from the last batch to the file in place. The forward's rate is that of pooling mean; the
peak of host memory is this process's.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import engines
from benchmarks.bench_esm2 import best_of
from benchmarks.workloads import SIZES, lengths_of, proteins_of
from virnucpro.base.digest import digest_of_digests, residue_digest
from virnucpro.base.limits import keep_freed_memory
from virnucpro.base.records import write_record
from virnucpro.base.settings import EmbeddingSettings, LongProteins
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.cuda.devices import parse_device
from virnucpro.engine.job import embed_chunk
from virnucpro.models.esm2.alphabet import FIRST_RESIDUE
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.models.precision import exact_products, resolve_precision
from virnucpro.sequences.fasta import RESIDUES
from virnucpro.storage.chunk_metadata import RunStatistics
from virnucpro.weights.prepare import prepare_weights

LETTERS = np.frombuffer(("?" * FIRST_RESIDUE + RESIDUES).encode(), dtype=np.uint8)


def write_weights(folder: Path, architecture: Architecture, device: torch.device) -> None:
    """w.safetensors with random float16 weights."""
    checkpoint = folder / "esm2_bench.pt"
    write_checkpoint(checkpoint, architecture, dtype=torch.float16, regression=False, device=device)
    prepare_weights(str(checkpoint), folder / "w.safetensors", log=lambda line: None)
    checkpoint.unlink()


def write_chunk(folder: Path, sequences: list[bytes]) -> None:
    """c.fasta and c.json of these sequences."""
    with (folder / "c.fasta").open("wb") as file:
        file.writelines(b">p%d\n%s\n" % (number, sequence) for number, sequence in enumerate(sequences))
    digest = digest_of_digests(map(residue_digest, sequences))
    residues = sum(map(len, sequences))
    write_record(folder / "c.json", ChunkManifest("c", len(sequences), residues, cost=residues, digest=digest))


def sequences_of(proteins: list[np.ndarray]) -> list[bytes]:
    """The residues of these token ids."""
    return [LETTERS[ids].tobytes() for ids in proteins]


def run_job(folder: Path, settings: EmbeddingSettings, devices: list[str]) -> tuple[RunStatistics, float]:
    """The job's statistics and its whole seconds."""
    started = time.perf_counter()
    statistics = embed_chunk(
        folder / "c.fasta",
        folder / "w.safetensors",
        folder / "out.safetensors",
        settings,
        devices=devices,
        logger=logging.getLogger("job"),
    )
    return statistics, time.perf_counter() - started


def compare_with_forward(
    folder: Path, architecture: Architecture, count: int, devices: list[str], settings: EmbeddingSettings
) -> None:
    """Print the job's rates beside the forward's."""
    device = parse_device(devices[0])
    lengths = lengths_of("swiss", count)
    proteins = proteins_of(lengths)
    tokens = int((lengths + 2).sum())
    write_chunk(folder, sequences_of(proteins))
    statistics, whole = run_job(folder, settings, devices)
    size = (folder / "out.safetensors").stat().st_size
    print(
        f"job on {', '.join(devices)}: {tokens:,} tokens, loop {statistics.seconds:.1f} s "
        f"({tokens / statistics.seconds:,.0f} tokens/s), before the first batch {statistics.load_seconds:.1f} s, "
        f"whole {whole:.1f} s, reading and end {whole - statistics.seconds - statistics.load_seconds:.1f} s; "
        f"file of {size / 1e9:.2f} GB ({size / whole / 1e9:.2f} GB/s), peak host memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB",
        flush=True,
    )
    with exact_products():
        dtype = resolve_precision("auto", device)
        some = proteins[:: max(1, count // 10000)]
        run = engines.ours(
            architecture, some, device, dtype, fused=settings.kernels == "auto" and device.type == "cuda"
        )
        seconds = best_of(run, device, 1)
    rate = sum(len(ids) + 2 for ids in some) / seconds
    print(
        f"pure forward on {devices[0]}: {rate:,.0f} tokens/s; share of it: loop "
        f"{100 * tokens / statistics.seconds / rate:.1f} %, whole job {100 * tokens / whole / rate:.1f} %"
    )


def growth(folder: Path, device: str, base: int) -> None:
    """Print how seconds grow with the count of proteins and with their length."""
    for factor in (1, 10, 100):
        write_chunk(folder, sequences_of(proteins_of(lengths_of("swiss", base * factor))))
        statistics, whole = run_job(folder, EmbeddingSettings(), [device])
        print(f"{base * factor:>8} proteins: loop {statistics.seconds:8.2f} s, whole {whole:8.2f} s", flush=True)
    for length in (100, 200, 500, 1000, 2000, 4000):
        write_chunk(folder, sequences_of(proteins_of(lengths_of(str(length), max(4, base * 300 * 4 // length)))))
        statistics, _ = run_job(folder, EmbeddingSettings(long_proteins=LongProteins("full")), [device])
        print(f"length {length:>5}: {statistics.tokens_per_second:10,.0f} tokens/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="8M")
    parser.add_argument("--proteins", type=int, default=1000)
    parser.add_argument("--devices", nargs="+", default=["cuda:0" if torch.cuda.is_available() else "cpu"])
    parser.add_argument("--kernels", choices=["auto", "eager"], default="auto")
    parser.add_argument("--pooling", nargs="+", choices=["mean", "per_residue"], default=["mean"])
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of residues' vectors")
    parser.add_argument("--folder", type=Path, help="where files are written for a while (default: the system's)")
    parser.add_argument("--growth", action="store_true", help="how cost grows instead (small sizes)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="    %(message)s")
    keep_freed_memory()  # as every job does
    architecture = SIZES[arguments.model]
    settings = EmbeddingSettings(
        pooling=tuple(arguments.pooling), kernels=arguments.kernels, residue_dtype=arguments.dtype
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_weights(folder, architecture, parse_device(arguments.devices[0]))
        if arguments.growth:
            growth(folder, arguments.devices[0], arguments.proteins // 10)
        else:
            compare_with_forward(folder, architecture, arguments.proteins, arguments.devices, settings)


if __name__ == "__main__":
    main()
