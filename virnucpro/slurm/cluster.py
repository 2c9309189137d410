"""What a Slurm cluster has, as ``sinfo`` tells it, and which of it can hold a job."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field

from virnucpro.base.text import short

SECONDS = 15.0
"""How long ``sinfo`` may take; a controller under load answers slowly."""

_FIELDS = "%P|%a|%f|%G|%m|%c"
_GRES = re.compile(
    r"(?:^|,)gpu(?::(?P<type>[^:,()]*[^:,()\d][^:,()]*))?(?::no_consume)?(?::(?P<count>\d+))?(?:\([^)]*\))?(?=,|$)"
)


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that are alike: their partition, features, GPUs by type, memory (MB) and processors."""

    partition: str
    default: bool
    features: tuple[str, ...]
    gpus: dict[str, int]
    memory_mb: int
    cpus: int

    def holds(self, job: JobSize) -> bool:
        """Whether one of these nodes, empty, is large enough for the job."""
        gpus = sum(self.gpus.values()) if job.gpu_type is None else self.gpus.get(job.gpu_type, 0)
        return gpus >= job.gpus and self.memory_mb >= job.memory_mb and self.cpus >= job.cpus


@dataclass(frozen=True)
class JobSize:
    """What a job asks of one node."""

    gpus: int = 1
    gpu_type: str | None = None
    memory_mb: int = 0
    cpus: int = 1


@dataclass(frozen=True)
class Cluster:
    """The cluster's version, as (year, month), and its nodes."""

    version: tuple[int, int]
    groups: tuple[NodeGroup, ...] = field(default=())

    @property
    def default_partition(self) -> str | None:
        return next((group.partition for group in self.groups if group.default), None)

    def groups_for(self, job: JobSize, partition: str | None = None) -> list[NodeGroup]:
        """The nodes that can hold the job, in these partitions (comma-separated) or in all."""
        names = None if partition is None else set(partition.split(","))
        return [group for group in self.groups if (names is None or group.partition in names) and group.holds(job)]


def ask_cluster(*, timeout: float = SECONDS) -> Cluster | None:
    """What ``sinfo`` says, or None where there is none or it gives no answer."""
    program = shutil.which("sinfo")
    if program is None:
        return None
    # A user's own format or filter in the environment would change what is printed.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SINFO_")}
    texts = []
    for arguments in (["--version"], ["--noheader", "--exact", f"--format={_FIELDS}"]):
        try:
            done = subprocess.run(
                [program, *arguments], capture_output=True, text=True, timeout=timeout, env=environment, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode != 0:
            return None
        texts.append(done.stdout)
    return Cluster(parse_version(texts[0]), tuple(parse_groups(texts[1])))


def why_not_reached(*, timeout: float = SECONDS) -> str | None:
    """Why no job can be submitted here, in a sentence; None where Slurm answers, or takes its time."""
    way_out = "start the run on a node of the cluster that submits jobs, or without --profile slurm"
    missing = [program for program in ("sinfo", "sbatch") if shutil.which(program) is None]
    if missing:
        return f"there is no Slurm here ({' and '.join(missing)} not found): {way_out}"
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None  # a controller under load: submission itself waits and tries again
    if done.returncode == 0:
        return None
    said = short((done.stderr.strip().splitlines() or ["it says nothing"])[-1].removeprefix("sinfo: "))
    return f"Slurm cannot be reached (sinfo: {said}): {way_out}, or ask those who run it"


def parse_version(text: str) -> tuple[int, int]:
    """``slurm 23.02.7`` and ``slurm-wlm 22.05.8`` as (23, 2) and (22, 5); (0, 0) where there is no number."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def parse_groups(text: str) -> list[NodeGroup]:
    """Lines of partition, its state, features, generic resources, memory and processors, separated by ``|``.

    Partitions that take no jobs are left out.
    """
    groups = []
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) != len(_FIELDS.split("|")):
            continue
        partition, state, features, gres, memory, cpus = parts
        if state != "up":
            continue
        groups.append(
            NodeGroup(
                partition=partition.rstrip("*"),
                default=partition.endswith("*"),
                features=() if features == "(null)" else tuple(features.split(",")),
                gpus=parse_gres(gres),
                memory_mb=_number(memory),
                cpus=_number(cpus),
            )
        )
    return groups


def parse_gres(text: str) -> dict[str, int]:
    """GPUs by type in a node's generic resources; those without a type under ``""``.

    >>> parse_gres("gpu:a100:4(S:0-1),gpu:2,nvme:1")
    {'a100': 4, '': 2}
    """
    gpus: dict[str, int] = {}
    for found in _GRES.finditer(text):
        kind = found["type"] or ""
        gpus[kind] = gpus.get(kind, 0) + int(found["count"] or 1)
    return gpus


def _number(text: str) -> int:
    """``16000`` and ``16000+`` (the least of several)."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0
