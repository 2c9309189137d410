"""Names that clusters give to GPUs of the Ampere generation and newer ones.

FlashAttention-2 needs compute capability 8.0 (Ampere). Slurm knows nothing of that: administrators label
nodes with features of their own choice, such as ``ampere``, ``a100``, ``A100-SXM4-80GB``, ``rtx_3090``,
``GPU_SKU:H100_SXM5``, ``sm80`` or ``GPU_CC:8.0``. This table says which of them mean Ampere or newer; a
site with other names adds them in the configuration (``prefer_features``).

Ampere or newer where available: Slurm's ``--prefer``, made of features that the cluster really has.

``--prefer`` asks for nodes with a feature and takes others when those are busy, where ``--constraint`` would
wait. What it must not do is get a job refused, and Slurm (22.05.8, tried) refuses a submission when

- a feature is named that no node of the cluster has, or
- no node with the features is in the job's partition, or is large enough for the job.

So features are taken from ``sinfo``, and from nodes alone that could hold this very job. ``--prefer`` came
with Slurm 22.05 (its release notes); older versions refuse the option itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from virnucpro.cuda import AMPERE
from virnucpro.slurm.cluster import Cluster, JobSize

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
