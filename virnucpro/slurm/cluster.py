"""What a Slurm cluster has, as ``sinfo`` tells it, which of it can hold a job, and which of it a job prefers.

Ampere or newer where available: Slurm's ``--prefer``, made of features that the cluster really has. It asks for nodes
with a feature and takes others when those are busy, where ``--constraint`` would wait. What it must not do is get a job
refused, and Slurm (22.05.8, tried) refuses a submission when

- a feature is named that no node of the cluster has, or
- no node with the features is in the job's partition, or is large enough for the job.

So features are taken from ``sinfo``, and from nodes alone that could hold this very job. ``--prefer`` came
with Slurm 22.05 (its release notes); older versions refuse the option itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from virnucpro.base.text import short
from virnucpro.cuda import AMPERE

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


GENERATIONS = ("ampere", "ada", "lovelace", "adalovelace", "hopper", "blackwell", "rubin")

# Models by NVIDIA's list of CUDA GPUs with capability 8.0 and newer (developer.nvidia.com/cuda-gpus), in lower case
# and without separators.
MODELS = (
    *("a2", "a10", "a10g", "a16", "a30", "a40", "a100", "a800"),
    *("a2000", "a3000", "a4000", "a4500", "a5000", "a5500", "a6000"),
    *("3050", "3060", "3070", "3080", "3090", "3050ti", "3060ti", "3070ti", "3080ti", "3090ti"),
    *("l2", "l4", "l20", "l40", "l40s", "2000ada", "4000ada", "4500ada", "5000ada", "5880ada", "6000ada"),
    *("4060", "4070", "4080", "4090", "4060ti", "4070ti", "4070super", "4080super", "4090d"),
    *("h20", "h100", "h200", "h800", "gh200"),
    *("b100", "b200", "b300", "gb10", "gb200", "gb300"),
    *("5060", "5070", "5080", "5090", "5060ti", "5070ti", "pro4000", "pro4500", "pro5000", "pro6000"),
)

BRANDS = ("nvidia", "tesla", "geforce", "quadro", "rtx", "gpu")

CAPABILITY_WORDS = ("sm", "cc", "compute", "computecap", "computecapability", "capability", "cudacc", "gpucc", "gpusm")

_MODEL = re.compile(f"(?:{'|'.join(BRANDS)})*(?:{'|'.join(MODELS)})")

_GENERATION = re.compile(f"(?:{'|'.join(BRANDS)})*(?:{'|'.join(GENERATIONS)})")

_CAPABILITY = re.compile(f"(?:{'|'.join(CAPABILITY_WORDS)})(\\d+)(?:\\.(\\d))?[af]?")


def is_ampere_or_newer(feature: str, also: Iterable[str] = ()) -> bool:
    """Whether a node feature names a GPU of compute capability 8.0 or newer.

    Args:
        feature: the feature as Slurm lists it; case and separators do not matter.
        also: features that the site says mean so, letter for letter.

    >>> [is_ampere_or_newer(feature) for feature in ("A100-SXM4-80GB", "rtx_3090", "sm80", "v100", "avx512")]
    [True, True, True, False, False]
    """
    if feature in also:
        return True
    words = re.findall(r"[a-z0-9.]+", feature.lower())
    # "rtx_a6000", "RTX-A6000" and "rtxa6000" are one name: look at every run of neighbouring words.
    runs = ["".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    return any(_GENERATION.fullmatch(run) or _MODEL.fullmatch(run) or _new_capability(run) for run in runs)


def _new_capability(text: str) -> bool:
    """``sm80``, ``cc8.6``, ``compute90``, ``sm100a``: the last digit is the minor number."""
    found = _CAPABILITY.fullmatch(text)
    if found is None:
        return False
    number, minor = found[1], found[2]
    if minor is not None:
        return (int(number), int(minor)) >= AMPERE
    if len(number) == 1:
        return int(number) >= AMPERE[0]
    return (int(number[:-1]), int(number[-1])) >= AMPERE


FIRST_VERSION = (22, 5)

# What may stand in a feature without meaning something in the expression (| & , [] () *).
_PLAIN = re.compile(r"[\w.:=/+-]+")


def preferred_features(
    cluster: Cluster, job: JobSize, *, partition: str | None = None, also: Iterable[str] = ()
) -> list[str]:
    """Features that mean Ampere or newer, of nodes that can hold the job, sorted.

    Args:
        partition: where the job goes, several comma-separated; None where that is not known: then features that every
            partition has which can hold the job.
        also: further features that the site prefers.
    """
    also = tuple(also)
    by_partition: dict[str, set[str]] = {}
    for group in cluster.groups_for(job, partition):
        where = group.partition if partition is None else partition
        by_partition.setdefault(where, set()).update(group.features)
    features = set.intersection(*by_partition.values()) if by_partition else set()
    return sorted(feature for feature in features if _PLAIN.fullmatch(feature) and is_ampere_or_newer(feature, also))


def prefer_option(
    cluster: Cluster | None, job: JobSize, *, partition: str | None = None, also: Iterable[str] = ()
) -> str:
    """The ``--prefer`` option for ``sbatch``, quoted for a shell; empty where there is nothing to prefer."""
    if cluster is None or cluster.version < FIRST_VERSION:
        return ""
    features = preferred_features(cluster, job, partition=partition, also=also)
    return f"--prefer={shlex.quote('|'.join(features))}" if features else ""
