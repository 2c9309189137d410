"""One host's GPUs: a job over several of them, and one job a GPU through the workflow, beside one GPU.

    python -m benchmarks.bench_gpus --gpus 1 2 4 8 --models 650M 3B --proteins 100000
    python -m benchmarks.bench_gpus --gpus 1 2 --models 650M --pooling per_residue --proteins 15000
    python -m benchmarks.bench_gpus --device cpu --gpus 1 2 --models 8M --proteins 300     (pretended devices)

``--proteins`` are each GPU's, so that a job takes as long on eight as on one; lengths are Swiss-Prot-like, weights
random. Every line is a process of its own, files to file. "loop" and "whole" are tokens per second, and in brackets
what a GPU gets of what one alone has; "start and end" are the seconds outside of the loop, of them "first" until the
last GPU's first batch. Cores are CPU seconds over wall seconds, memory that of the largest process. The first rows
must have the same bits on every number of GPUs (on a CPU they need not: docs/accuracy.md).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bench_job import sequences_of, write_chunk, write_weights
from benchmarks.workloads import SIZES, lengths_of, proteins_of
from virnucpro.cuda.devices import device_name, parse_device
from virnucpro.models.esm2.synthetic import write_checkpoint
from virnucpro.storage.chunk_file import ChunkFile, read_chunk_file
from virnucpro.storage.chunk_metadata import ChunkMetadata
from virnucpro.storage.sample_files import PoolFiles

ROOT = Path(__file__).resolve().parents[1]
CHUNK = "c"
WORKFLOW_CHUNKS = 2
"""Chunks of each GPU in the workflow's run."""


@dataclass(frozen=True)
class Ran:
    """What a process took: seconds of the wall and of the CPU, and bytes of its largest process."""

    seconds: float
    cpu: float
    memory: int

    def __str__(self) -> str:
        return f"{self.cpu / self.seconds:.1f} cores, {self.memory / 1e9:.1f} GB of host memory"


def run(command: Sequence[str], log: Path) -> Ran:
    """Run to its end, with what it prints in ``log``.

    Raises:
        SystemExit: it failed; with the end of what it printed.
    """
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n" + "\n".join(log.read_text().splitlines()[-20:]))
    return Ran(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def one_job(folder: Path, devices: Sequence[str], pooling: str, dtype: str) -> Ran:
    """The embed job of the chunk in a folder on these devices, as the workflow's rule runs it."""
    return run(
        [
            *(sys.executable, "-m", "virnucpro.cli", "embed-chunk", str(folder), CHUNK, "--devices", *devices),
            *("--weights", str(folder / "w.safetensors"), "--pooling", pooling, "--dtype", dtype),
        ],
        folder / "job.log",
    )


def workflow(folder: Path, fasta: Path, checkpoint: Path, gpus: int, device: str, residues: int) -> Ran:
    """The workflow on the same proteins, up to its table, one job a GPU."""
    given = {
        "samples": fasta,
        "model": checkpoint,
        "results": folder / f"results-{gpus}",
        "resources": folder / "resources",
        "chunk_residues": max(1, residues // (WORKFLOW_CHUNKS * gpus)),
    }
    config = [f"{name}={value}" for name, value in given.items()]
    resources = ["--resources", f"gpu={gpus if device == 'cuda' else 0}"]
    command = [sys.executable, "-m", "snakemake", "--cores", str(os.cpu_count()), *resources]
    command += ["--until", "merge_embeddings", "--config", *config]
    return run(command, folder / "workflow.log")


def measure(
    folder: Path, model: str, counts: Sequence[int], proteins: int, device: str, pooling: str, dtype: str
) -> None:
    """Print a line for each number of GPUs, for one job over them and for the workflow."""
    pool = PoolFiles(folder)
    write_weights(folder, SIZES[model], parse_device(device))
    checkpoint = folder / "esm2_bench.pt"
    write_checkpoint(checkpoint, SIZES[model], dtype=torch.float16, regression=False, device=parse_device(device))
    alone = {"loop": 0.0, "whole": 0.0, "workflow": 0.0}
    bits: NDArray[np.uint8] | None = None
    for gpus in counts:
        lengths = lengths_of("swiss", proteins * gpus)
        tokens, residues = int((lengths + 2).sum()), int(lengths.sum())
        pool.chunks.mkdir(exist_ok=True)
        write_chunk(pool.chunks, sequences_of(proteins_of(lengths)))
        output = pool.chunk_file(CHUNK)
        output.parent.mkdir(exist_ok=True)
        devices = ["cpu"] * gpus if device == "cpu" else [f"cuda:{number}" for number in range(gpus)]
        began = time.time()
        ran = one_job(folder, devices, pooling, dtype)
        chunk = read_chunk_file(output)
        done = ChunkMetadata.from_entries(chunk.metadata, output).run
        seconds, ended = done.statistics.seconds, datetime.fromisoformat(done.ended).timestamp()
        rates = {"loop": tokens / seconds, "whole": tokens / ran.seconds}
        found = _first_vectors(chunk, min(proteins, 100), pooling, SIZES[model].layers)
        same = "" if bits is None else ", the same bits" if np.array_equal(bits, found) else ", OTHER BITS"
        bits = found if bits is None else bits
        shares = {name: _share(alone, name, rate, gpus) for name, rate in rates.items()}
        print(
            f"{model}, {pooling}, one job on {gpus}: loop {shares['loop']}, whole {shares['whole']} "
            f"of {ran.seconds:.0f} s; start and end {ran.seconds - seconds:.1f} s, "
            f"first {max(0.0, ended - seconds - began):.1f} s; "
            f"{output.stat().st_size / ran.seconds / 1e9:.2f} GB/s, {ran}{same}",
            flush=True,
        )
        output.unlink()
        if pooling == "mean":
            ran = workflow(folder, pool.chunks / f"{CHUNK}.fasta", checkpoint, gpus, device, residues)
            share = _share(alone, "workflow", tokens / ran.seconds, gpus)
            print(
                f"{model}, workflow, {WORKFLOW_CHUNKS} chunks a GPU, on {gpus}: {share} of {ran.seconds:.0f} s; {ran}",
                flush=True,
            )


def _first_vectors(chunk: ChunkFile, rows: int, pooling: str, layer: int) -> NDArray[np.uint8]:
    """The bytes of the first proteins' vectors."""
    if pooling == "per_residue":
        values = np.concatenate([chunk.residues(row, layer) for row in range(rows)])
    else:
        values = chunk.read(f"{pooling}.{layer}")[:rows]
    return np.ascontiguousarray(values).view(np.uint8)


def _share(alone: dict[str, float], name: str, rate: float, gpus: int) -> str:
    """A rate, and each GPU's share of what one alone had."""
    alone[name] = alone[name] or rate / gpus
    return f"{rate:,.0f} ({rate / gpus / alone[name]:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=["650M"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers of them, the smallest first")
    parser.add_argument("--proteins", type=int, default=100_000, help="of each GPU")
    parser.add_argument("--pooling", choices=["mean", "per_residue"], default="mean")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float16", help="of residues' vectors")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help="where files are written for a while (default: the system's)")
    given = parser.parse_args()
    there = torch.cuda.device_count() if given.device == "cuda" else max(given.gpus)
    counts = [count for count in given.gpus if count <= there]
    print(f"{there} x {device_name(parse_device(given.device))}, {os.cpu_count()} cores, torch {torch.__version__}")
    for model in given.models:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            measure(Path(folder), model, counts, given.proteins, given.device, given.pooling, given.dtype)


if __name__ == "__main__":
    main()
