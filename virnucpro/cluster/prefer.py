"""Ampere or newer where available: Slurm's ``--prefer``, made of features that the cluster really has.

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

from virnucpro.cluster.gpus import is_ampere_or_newer
from virnucpro.cluster.slurm import Cluster, JobSize, gpu_partitions

FIRST_VERSION = (22, 5)

# What may stand in a feature without meaning something in the expression (| & , [] () *).
_PLAIN = re.compile(r"[\w.:=/+-]+")


def preferred_features(
    cluster: Cluster, job: JobSize, *, partition: str | None = None, also: Iterable[str] = ()
) -> list[str]:
    """Features that mean Ampere or newer, of nodes that can hold the job, sorted.

    Args:
        partition: where the job goes; None for the default partition (any, where there is no default).
        also: further features that the site prefers.
    """
    also = tuple(also)
    groups = cluster.groups_for(job, partition or cluster.default_partition)
    features = {feature for group in groups for feature in group.features}
    return sorted(feature for feature in features if _PLAIN.fullmatch(feature) and is_ampere_or_newer(feature, also))


def prefer_option(
    cluster: Cluster | None, job: JobSize, *, partition: str | None = None, also: Iterable[str] = ()
) -> str:
    """The ``--prefer`` option for ``sbatch``, quoted for a shell; empty where there is nothing to prefer."""
    if cluster is None or cluster.version < FIRST_VERSION:
        return ""
    features = preferred_features(cluster, job, partition=partition, also=also)
    return f"--prefer={shlex.quote('|'.join(features))}" if features else ""


def gpu_partition(cluster: Cluster | None, job: JobSize) -> str | None:
    """The partition to name for a GPU job: None where the default will do or the choice is not ours.

    The default partition will do when one of its nodes can hold the job. Else, when exactly one other
    partition can hold it, it is that one. Among several only the user can choose.
    """
    if cluster is None:
        return None
    names = gpu_partitions(cluster, job)
    if len(names) == 1 and names[0] != cluster.default_partition:
        return names[0]
    return None
