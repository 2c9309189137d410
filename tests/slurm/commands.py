"""Slurm's own commands, for the tests."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SLURM = (
    *("--profile", "slurm"),
    *("--set-resources", "embed_esm2:mem_mb=attempt * 2000", "embed_esm2:nodes=1", "detect_gpu:nodes=1"),
    *("embed_esm2:slurm_partition=gpu", "detect_gpu:slurm_partition=gpu"),
    *("--slurm-init-seconds-before-status-checks", "3"),
)
"""Arguments of Snakemake, as a user of a small cluster would give them: less memory than the cautious default, and no
waiting for the first status."""


def slurm(*command: str) -> str:
    """Run a command of Slurm's and give what it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def submit(*options: str, script: str = "sleep 1") -> tuple[str | None, str]:
    """Submit a job: its id, or None and why it was refused."""
    command = ["sbatch", "--parsable", "--output=/dev/null", "--mem=1000", *options, "--wrap", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return (done.stdout.strip(), "") if done.returncode == 0 else (None, done.stderr)


def jobs(states: str = "all") -> dict[str, dict[str, str]]:
    """Every job by its id: state, node, comment, and how often it was requeued."""
    found = {}
    for line in slurm("squeue", "--noheader", f"--states={states}", "--format=%i|%T|%N|%k").splitlines():
        number, state, node, comment = line.split("|", 3)
        found[number] = {"state": state, "node": node, "comment": comment}
    return found


def wait(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait for something that a machine at full load may take long for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.3)


def set_features(node: str, features: str) -> None:
    """Give a node other features: none of them active first, or Slurm objects to taking some away."""
    slurm("scontrol", "update", f"NodeName={node}", "ActiveFeatures=")
    slurm("scontrol", "update", f"NodeName={node}", f"Features={features}")


@contextmanager
def out_of_service(nodes: str, state: str = "DRAIN") -> Iterator[None]:
    """Nodes that take no jobs for a while (DRAIN), or that are gone with all that ran there (DOWN)."""
    slurm("scontrol", "update", f"NodeName={nodes}", f"State={state}", "Reason=test")
    try:
        yield
    finally:
        slurm("scontrol", "update", f"NodeName={nodes}", "State=RESUME")
