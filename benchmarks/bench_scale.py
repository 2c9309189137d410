"""Snakemake with many chunks: the time and memory of planning and scheduling, with jobs that take no time.

    python benchmarks/bench_scale.py 1000 10000

For each number of chunks a real split makes them; then a dry run, a run under an executor whose jobs are done at once
(what remains is Snakemake's own work), a second call that finds nothing to do, and the start of one job as a cluster
starts it. Prints time, memory, and files.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from virnucpro.api import embed

ROOT = Path(__file__).parents[1]
EXECUTOR = Path(__file__).parent / "instant_executor"
WEIGHTS = "resources/esm2_demo.safetensors"
TABLE = "results/own/embeddings.parquet"
LENGTH = 100
NOTHING_TO_DO = "second call, nothing to do"


def call(folder: Path, *arguments: str) -> tuple[float, int]:
    """Run Snakemake: seconds, and the most memory that it held, in MB."""
    command = [
        *(sys.executable, "-c", MEASURE, sys.executable, "-m", "snakemake", "-s", str(ROOT / "workflow" / "Snakefile")),
        *arguments,
        *("--config", "samples=own.faa", "model=esm2_demo", f"chunk_residues={LENGTH}"),
    ]
    paths = os.pathsep.join(filter(None, [str(EXECUTOR), os.environ.get("PYTHONPATH")]))
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - started, int(done.stderr.rsplit("PEAK ", 1)[1])


# A process of its own, so that the largest child is this one call's.
MEASURE = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
    "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, file=sys.stderr); sys.exit(code)"
)


def measure(chunks: int, folder: Path, jobs: int) -> None:
    chance = random.Random(chunks)
    with (folder / "own.faa").open("w") as fasta:
        for number in range(chunks):
            fasta.write(f">protein_{number}\n{''.join(chance.choices('ACDEFGHIKLMNPQRSTVWY', k=LENGTH))}\n")
    instant = ("--executor", "instant", "--jobs", str(jobs), "--seconds-between-status-checks", "1")
    one_job = (
        "--mode remote --force --nolock --allowed-rules embed_esm2 "
        "--target-jobs embed_esm2:sample=own,chunk=chunk_00000"
    )
    steps = [
        ("split, weights", ("--cores", "2", "results/own/chunks", "results/gpu.json", WEIGHTS)),
        ("dry run", ("--cores", "2", "--dry-run", TABLE)),
        (f"all jobs, {jobs} at a time, done at once", (*instant, TABLE)),
        (NOTHING_TO_DO, (*instant, TABLE)),
        ("start of one job on a node", (*instant, *one_job.split())),
    ]
    for name, arguments in steps:
        if name == NOTHING_TO_DO:  # empty files are not what is asked for, so now the real ones
            settings: dict[str, Any] = {"model": "esm2_demo", "chunk_residues": LENGTH, "devices": ["cpu"]}
            embed(folder / "own.faa", folder / "results" / "own", weights_folder=folder / "resources", **settings)
        seconds, megabytes = call(folder, *arguments)
        print(f"| {chunks:,} | {name} | {seconds:.1f} | {megabytes:,} |", flush=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    own = sum(".snakemake" not in path.parts for path in files)
    print(f"| {chunks:,} | files: results {own:,}, .snakemake {len(files) - own:,} | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Planning and scheduling of many chunks.")
    parser.add_argument("chunks", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--jobs", type=int, default=200, help="jobs in the queue at once")
    arguments = parser.parse_args()
    print("| chunks | step | seconds | MB |\n| --- | --- | --- | --- |", flush=True)
    for chunks in arguments.chunks:
        with tempfile.TemporaryDirectory() as folder:
            measure(chunks, Path(folder), arguments.jobs)


if __name__ == "__main__":
    main()
