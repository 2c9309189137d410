"""Rates on a CPU whose cores are idle, and beside processes that keep them busy, by how long threads spin at barriers.

    python -m benchmarks.bench_busy_cores --models demo 8M 35M --spins unset 0 1000 ours

``unset`` is what torch's OpenMP library does by itself, ``ours`` what our commands set; a number is a value of
GOMP_SPINCOUNT. Each figure is of a process of its own, the settings take turns, and the rounds' median is printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.workloads import SIZES, lengths_of, proteins_of
from virnucpro.base.limits import let_waiting_threads_sleep
from virnucpro.models.esm2.sizes import Architecture

ROOT = Path(__file__).resolve().parents[1]
DEMO = Architecture(layers=3, embed_dim=64, heads=4)
MODELS = {"demo": DEMO, **SIZES}
VARIABLE = "GOMP_SPINCOUNT"


def measure(model: str, seconds: float) -> float:
    """Tokens per second of our loop in this process, with every core that it sees."""
    import torch

    from benchmarks import engines

    lengths = lengths_of("swiss", 40 if model in ("demo", "8M") else 12)
    run = engines.ours(MODELS[model], proteins_of(lengths), torch.device("cpu"), torch.float32, fused=False)
    run()
    runs, started = 0, time.perf_counter()
    while not runs or time.perf_counter() - started < seconds:
        run()
        runs += 1
    return runs * float(np.sum(lengths + 2)) / (time.perf_counter() - started)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def rate(model: str, spin: str, seconds: float) -> float:
    """The rate of a process with that setting."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-m", "benchmarks.bench_busy_cores", "--run", model, "--seconds", str(seconds)]
    if spin == "ours":
        command.append("--ours")
    elif spin != "unset":
        environment[VARIABLE] = spin
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def table(models: Sequence[str], spins: Sequence[str], beside: Sequence[int], rounds: int, seconds: float) -> None:
    """Print the median rates of each model and setting."""
    print(f"{'model':>6} {'busy':>5} " + " ".join(f"{spin:>9}" for spin in spins), flush=True)
    for model in models:
        for processes in beside:
            rates: dict[str, list[float]] = {spin: [] for spin in spins}
            with busy(processes):
                for number in range(rounds):
                    for spin in spins if number % 2 == 0 else reversed(spins):
                        rates[spin].append(rate(model, spin, seconds))
            figures = " ".join(f"{median(rates[spin]):>9,.0f}" for spin in spins)
            print(f"{model:>6} {processes:>5} {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["demo", "8M", "35M"])
    parser.add_argument("--spins", nargs="+", default=["unset", "0", "1000", "ours"])
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], help="processes beside")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--run", choices=list(MODELS), help=argparse.SUPPRESS)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        if given.ours:
            let_waiting_threads_sleep()
        print(measure(given.run, given.seconds))
        return
    table(given.models, given.spins, given.busy, given.rounds, given.seconds)


if __name__ == "__main__":
    main()
