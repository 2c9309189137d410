"""Many small samples in one run: jobs planned and run, wall time and CPU time, for this checkout or another.

    python -m benchmarks.bench_samples 100 1000 [--checkout DIR] [--until merge_embeddings] [--dry-run]

Each sample has 50 proteins of 20 to 100 residues (as stop-free frames of 300 bp windows have), of which 20 are the next
sample's too. The model is esm2_demo, so that what counts is everything but the model. Wall time is that of the whole
command, with two cores given to it; CPU time is that of the command and all its jobs.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PROTEINS, SHARED = 50, 20
LETTERS = np.frombuffer(b"LAGVSERTIDPKQNFYMHWC", np.uint8)


def protein(number: int) -> str:
    draws = np.random.default_rng(number)
    return LETTERS[draws.integers(0, 20, draws.integers(20, 101))].tobytes().decode()


def write_samples(folder: Path, count: int) -> None:
    folder.mkdir()
    for sample in range(count):
        first = sample * (PROTEINS - SHARED)
        text = "".join(f">s{sample}_{place}\n{protein(first + place)}\n" for place in range(PROTEINS))
        (folder / f"s{sample:04d}.faa").write_text(text)


def call(checkout: Path, folder: Path, *arguments: str) -> tuple[str, float, float]:
    """Run Snakemake: what it printed, wall seconds, CPU seconds."""
    command = [sys.executable, "-m", "snakemake", "-s", str(checkout / "workflow" / "Snakefile"), "--cores", "2"]
    command += [*arguments, "--config", "samples=data", "model=esm2_demo"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "VIRNUCPRO_DISPLAY": "snakemake"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
    return done.stdout, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def planned(text: str) -> int:
    """The number of jobs in Snakemake's first table of them."""
    found = re.search(r"^total +(\d+)$", text, flags=re.MULTILINE)
    assert found is not None, text[-2000:]
    return int(found[1])


def measure(count: int, checkout: Path, folder: Path, extra: list[str], *, dry: bool) -> None:
    write_samples(folder / "data", count)
    text, seconds, _ = call(checkout, folder, "--dry-run", "--quiet", "rules", *extra)
    cells = [f"{count:,}", f"{planned(text):,}", f"{seconds:.1f}"]
    if not dry:
        text, seconds, busy = call(checkout, folder, *extra)
        jobs = len(re.findall(r"^(?:local)?(?:rule|checkpoint) (?!all:)\w+:$", text, flags=re.MULTILINE))
        cells += [f"{jobs:,}", f"{seconds:.1f}", f"{busy:.1f}", f"{busy / count:.2f}"]
        tables = len(list(folder.glob("results/*/embeddings.parquet")))
        assert tables == count, f"{tables} tables of {count} samples"
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--checkout", type=Path, default=ROOT, help="a clone of this or another version")
    parser.add_argument("--until", help="the last rule of the run, such as merge_embeddings: tables and nothing else")
    parser.add_argument("--dry-run", action="store_true", help="count what is planned and run nothing")
    given = parser.parse_args()
    extra = ["--until", given.until] if given.until else []
    print("| samples | jobs planned | dry run, s | jobs run | wall, s | CPU, s | CPU s a sample |", flush=True)
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for count in given.samples:
        with tempfile.TemporaryDirectory() as folder:
            measure(count, given.checkout.resolve(), Path(folder), extra, dry=given.dry_run)


if __name__ == "__main__":
    main()
